"""Dynamical channel pruning by conditional accuracy change, and its variant with doubled channels."""

from secateur.methods.dcpcac.method import DCPCAC, ROW

__all__ = ["DCPCAC", "ROW"]
