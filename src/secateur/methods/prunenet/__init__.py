"""PruneNet: a convex problem for every layer says which channels it needs; one lambda for the whole network."""

from secateur.methods.prunenet.method import ROW, PruneNet

__all__ = ["ROW", "PruneNet"]
