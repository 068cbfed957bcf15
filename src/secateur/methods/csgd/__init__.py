"""Filters that are trained to become equal, and then merged: Centripetal SGD."""

from secateur.methods.csgd.method import CSGD, ROW

__all__ = ["CSGD", "ROW"]
