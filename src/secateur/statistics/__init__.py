"""Statistics of a network on data, gathered in one pass, as several methods and repairs use them."""

from secateur.statistics.gather import Collector, gather, replayable

__all__ = ["Collector", "gather", "replayable"]
