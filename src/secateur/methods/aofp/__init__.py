"""AOFP: filters that are masked at random, by halves, until those are found that the next layer does not miss."""

from secateur.methods.aofp.method import AOFP, ROW

__all__ = ["AOFP", "ROW"]
