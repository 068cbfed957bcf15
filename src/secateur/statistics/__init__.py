"""Statistics of a network on data, gathered in one pass and shared by methods."""

from secateur.statistics.curvature import Curvature
from secateur.statistics.gather import Collector, gather, replayable
from secateur.statistics.kfac import Factors, Layer

__all__ = ["Collector", "Curvature", "Factors", "Layer", "gather", "replayable"]
