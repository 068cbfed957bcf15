"""ManiDP: input-dependent pruning, regularised by the manifold of the images."""

from secateur.methods.manidp.method import ROW, ManiDP

__all__ = ["ROW", "ManiDP"]
