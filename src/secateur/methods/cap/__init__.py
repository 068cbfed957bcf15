"""Pruning with compensation: channels go whose part the others can take over, and the others take it over."""

from secateur.methods.cap.method import ROW, Cap

__all__ = ["ROW", "Cap"]
