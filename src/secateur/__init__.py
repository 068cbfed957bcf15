"""Secateur: channel pruning of convolutional networks, exact and verified."""

from secateur._version import __version__

__all__ = ["__version__"]
