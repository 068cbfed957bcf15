"""Channel pruning in a white box: class-wise masks, and a vote."""

from secateur.methods.cwb.method import CWB, ROW

__all__ = ["CWB", "ROW"]
