"""Provable filter pruning: PFP."""

from secateur.methods.pfp.method import PFP, ROW

__all__ = ["PFP", "ROW"]
