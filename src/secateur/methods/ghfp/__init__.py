"""Gradually hard filter pruning, and its family: hard, soft and asymptotically soft pruning while training."""

from secateur.methods.ghfp.method import GHFP, ROW

__all__ = ["GHFP", "ROW"]
