"""Batch-whitening channel pruning: BWCP."""

from secateur.methods.bwcp.method import BWCP, ROW

__all__ = ["BWCP", "ROW"]
