"""Discrimination-aware channel and kernel pruning: DCP and DKP."""

from secateur.methods.dcp.method import DCP, ROW

__all__ = ["DCP", "ROW"]
