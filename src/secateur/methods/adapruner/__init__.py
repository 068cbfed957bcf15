"""AdaPruner: widths from the scales of norms, and the rule by which weights are inherited, tried out."""

from secateur.methods.adapruner.method import ROW, AdaPruner

__all__ = ["ROW", "AdaPruner"]
