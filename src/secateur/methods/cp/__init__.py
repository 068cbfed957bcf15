"""Channel pruning: CP, by LASSO selection and least-squares reconstruction."""

from secateur.methods.cp.method import CP, ROW

__all__ = ["CP", "ROW"]
