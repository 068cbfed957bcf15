"""How many kinds of channels a group has: density clustering of mean feature maps, counted and never labelled.

What is counted is what scikit-learn's DBSCAN finds: clusters, plus points that are in none. Distances are those of
cosines, so that a channel and any positive multiple of it are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_sum
from secateur._protocols import FloatArray
from secateur.errors import InputError
from secateur.graph.channels import Seen
from secateur.statistics.gather import Collector

#: Points within eps, itself included, that make a point a core of a cluster.
MIN_POINTS = 5


def cosine_distances(rows: FloatArray) -> FloatArray:
    """d(c,e) = 1 - cos(X_c, X_e) of rows [channels, values]; a zero row is at distance 1 from all but itself."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    distances: FloatArray = np.clip(1.0 - unit @ unit.T, 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def kinds(distances: FloatArray, eps: float) -> int:
    """Clusters plus points in no cluster, of distances [channels, channels]: at least 1, and falling as `eps` grows."""
    from sklearn.cluster import DBSCAN  # which takes a second to import

    labels = DBSCAN(eps=eps, min_samples=MIN_POINTS, metric="precomputed").fit_predict(distances)
    return int(labels.max() + 1 + (labels < 0).sum())


def fitting_eps(fits: Callable[[float], bool], rounds: int = 20) -> float:
    """The least eps found by halving 0 .. 2 at which the widths fit; 2 where even those do not.

    fits: whether the widths at an eps are within the budget; once some are, those at a larger one must be.
    """
    low, high = 0.0, 2.0
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


class MeanMaps(Collector):
    """The mean over images of what layers make, before anything normalises it; one map of each layer, in float64."""

    def __init__(self, taps: Mapping[str, Sequence[Seen]]) -> None:
        """taps: by group, the outputs of layers that make its channels."""
        self.taps = taps
        self._sums: dict[str, torch.Tensor] = {}
        self._images = torch.zeros((), dtype=torch.float64)
        self._first = next((tap.module for each in taps.values() for tap in each), "")

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Hook into every layer once."""
        names = {tap.module for taps in self.taps.values() for tap in taps}
        return [model.get_submodule(name).register_forward_hook(self._hook(name)) for name in sorted(names)]

    def _hook(self, name: str) -> Callable[..., None]:
        def add(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            total = output.detach().sum(0, dtype=torch.float64).cpu()
            before = self._sums.get(name)
            if before is not None and before.shape != total.shape:
                raise InputError(
                    f"The maps of {name} are of several sizes, and their mean is asked for: show images of one size."
                )
            self._sums[name] = total if before is None else before + total
            self._images = self._images + (len(output) if name == self._first else 0)

        return add

    def total(self) -> None:
        """Add up over processes."""
        self._sums = {name: global_sum(value) for name, value in self._sums.items()}
        self._images = global_sum(self._images)

    def rows(self, group: str) -> FloatArray | None:
        """X of a group, [channels, values]: maps of all its layers side by side, each row of length 1; None: no maps.

        A map of a single position tells channels apart by its sign alone, so such layers are left out.
        """
        parts = []
        for tap in self.taps[group]:
            total = self._sums.get(tap.module)
            if total is None or total.ndim < 2 or total[0].numel() < 2 or tap.dim < 1:
                continue
            maps = total.movedim(tap.dim - 1, 0)[torch.from_numpy(tap.index)].flatten(1).numpy()
            parts.append(maps / np.maximum(np.linalg.norm(maps, axis=1, keepdims=True), 1e-300))
        return np.concatenate(parts, axis=1) if parts else None
