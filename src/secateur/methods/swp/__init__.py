"""SWP: stripe-wise pruning."""

from secateur.methods.swp.method import ROW, SWP

__all__ = ["ROW", "SWP"]
