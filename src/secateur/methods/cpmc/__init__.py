"""Channel pruning via multi-criteria based on weight dependency: CPMC."""

from secateur.methods.cpmc.method import CPMC, ROW

__all__ = ["CPMC", "ROW"]
