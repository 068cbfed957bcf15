"""ITPruner: widths from how much layers depend on each other."""

from secateur.methods.itpruner.method import ROW, ITPruner

__all__ = ["ROW", "ITPruner"]
