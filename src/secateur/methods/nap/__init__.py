"""Network automatic pruning: NAP."""

from secateur.methods.nap.method import NAP, ROW

__all__ = ["NAP", "ROW"]
