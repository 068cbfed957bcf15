"""One small network for every structure Secateur claims to understand, with what is expected of it."""

from structures import convolution, gates, norms, odd, reshaping, sequences, sharing
from structures._case import CASES, Case

__all__ = ["CASES", "Case", "convolution", "gates", "norms", "odd", "reshaping", "sequences", "sharing"]
