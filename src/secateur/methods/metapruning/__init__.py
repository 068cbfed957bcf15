"""MetaPruning: a network that makes the weights for any widths, and a search with it; see `method`."""

from secateur.methods.metapruning.method import ROW, MetaPruning

__all__ = ["ROW", "MetaPruning"]
