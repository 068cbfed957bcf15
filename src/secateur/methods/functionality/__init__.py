"""Functionality-oriented filter pruning: of filters that look for the same, some are enough."""

from secateur.methods.functionality.method import ROW, Functionality

__all__ = ["ROW", "Functionality"]
