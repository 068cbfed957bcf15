"""Channel pruning by class-aware trace ratio optimisation: CATRO."""

from secateur.methods.catro.method import CATRO, ROW

__all__ = ["CATRO", "ROW"]
