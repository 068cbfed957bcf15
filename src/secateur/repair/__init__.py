"""Changes of the surviving weights, made on a copy before it is cut, that make the cut hurt less or not at all."""

from secateur.repair.merging import Clusters, collapse, merge, mergeable

__all__ = ["Clusters", "collapse", "merge", "mergeable"]
