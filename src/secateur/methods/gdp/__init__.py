"""Gates with differentiable polarization: GDP."""

from secateur.methods.gdp.method import GDP, ROW

__all__ = ["GDP", "ROW"]
