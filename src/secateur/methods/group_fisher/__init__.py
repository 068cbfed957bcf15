"""Group Fisher pruning: one channel after the other goes while the network is trained."""

from secateur.methods.group_fisher.method import ROW, GroupFisher

__all__ = ["ROW", "GroupFisher"]
