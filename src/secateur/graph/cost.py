"""Cost of any plan from one recording: MACs, parameters, activations, as sums of products of alive counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from secateur.graph.channels import Solution
from secateur.graph.recorder import Recording

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """What one forward pass of the example input costs."""

    macs: int  # multiply-accumulates of convolutions, linear layers, matrix products and attention
    params: int  # elements of all parameters
    activations: int  # elements written by all operators
    peak_activations: int  # most activation elements alive at one time
    latency: int | None = None  # predicted microseconds on a runtime, where one was attached (`secateur.latency`)

    def as_dict(self) -> dict[str, int]:
        """The figures there are, by name."""
        return {name: figure for name, figure in asdict(self).items() if figure is not None}


@dataclass(frozen=True)
class _Terms:
    """A sum of terms: `coefficient` times the counts of up to `axes.shape[1]` axes (the last axis counts one)."""

    coefficient: Floats
    axes: NDArray[np.int64]

    def evaluate(self, counts: Floats) -> Floats:
        """Each term, for counts [..., axes + 1]."""
        result = np.broadcast_to(self.coefficient, (*counts.shape[:-1], len(self.coefficient))).copy()
        for k in range(self.axes.shape[1]):
            result *= counts[..., self.axes[:, k]]
        return result


class CostModel:
    """Exact cost of widths; `evaluate` is vectorised over leading dimensions. A `Graph` makes it.

    recording: what the trace saw. solution: the groups. parameters: elements of every parameter, by name.
    """

    names = ("macs", "params", "activations", "peak_activations")  # those that are exact
    latency: Callable[[Floats], Floats] | None = None  # predicted microseconds of widths [..., groups], [...]

    def __init__(self, recording: Recording, solution: Solution, parameters: Mapping[str, int]) -> None:
        self.widths = np.array([g.width for g in solution.groups], dtype=np.float64)
        at = {id(a): k for k, a in enumerate(solution.axes)}
        representatives = np.array([g.channels[0] for g in solution.groups], dtype=np.int64)
        # [axes, groups], and of each column few entries: a whole table would be quadratic in the depth
        self._owned = solution.multiplicity[representatives].T.tocsr().astype(np.float64)
        sizes = np.array([len(a) for a in solution.axes], dtype=np.float64)
        self._base = sizes - self._owned @ self.widths
        self._macs = _terms([(m.coefficient, [at[id(a)] for a in m.axes]) for m in recording.ledger.macs], len(at))
        self.mac_calls = np.array([m.op for m in recording.ledger.macs], dtype=np.int64)
        self.mac_axes = np.array([len(m.axes) for m in recording.ledger.macs], dtype=np.int64)
        ran = [_place_term(recording, at, name, n) for name, n in parameters.items() if name in recording.first_use]
        idle = sum(n for name, n in parameters.items() if name not in recording.first_use)
        self._params = _terms([*ran, (idle, [])], len(at))
        self._buffers = _terms([_label_term(b.label, b.sizes, at) for b in recording.buffers], len(at))
        self._alive = _liveness(recording)

    def evaluate(self, widths: ArrayLike) -> dict[str, Floats]:
        """Costs of `widths` [..., groups] (alive channels per group, in the graph's order), each [...]."""
        counts = self._counts(widths)
        sizes = self._buffers.evaluate(counts)
        found = {
            "macs": self._macs.evaluate(counts).sum(-1),
            "params": self._params.evaluate(counts).sum(-1),
            "activations": sizes.sum(-1),
            "peak_activations": self._peak(sizes),
        }
        if self.latency is not None:
            found["latency"] = self.latency(np.asarray(widths, dtype=np.float64))
        return found

    def macs_by_call(self, widths: ArrayLike) -> Floats:
        """MACs of every product [..., products]; `mac_calls` holds the operator call of each."""
        return self._macs.evaluate(self._counts(widths))

    def cost(self, widths: ArrayLike) -> Cost:
        """The cost of one plan's widths; a latency in whole microseconds below it, so that bounds still hold."""
        found = self.evaluate(np.asarray(widths, dtype=np.float64))
        latency = {"latency": int(found.pop("latency"))} if "latency" in found else {}
        return Cost(**{name: round(float(figure)) for name, figure in found.items()}, **latency)

    def written(self, widths: ArrayLike) -> Floats:
        """Elements written by all operators [...]: the cost "activations" alone."""
        total: Floats = self._buffers.evaluate(self._counts(widths)).sum(-1)
        return total

    def factors(self, widths: ArrayLike) -> Floats:
        """What the MACs of every product are made of [..., products, factors]: alive counts of its axes."""
        return self._counts(widths)[..., self._macs.axes]

    def _counts(self, widths: ArrayLike) -> Floats:
        given = np.asarray(widths, dtype=np.float64)
        leading = given.shape[:-1]
        flat = given.reshape(math.prod(leading), given.shape[-1])
        counts = self._base + (self._owned @ flat.T).T.reshape(*leading, len(self._base))
        return np.concatenate([counts, np.ones((*counts.shape[:-1], 1))], axis=-1)

    def _peak(self, sizes: Floats) -> Floats:
        if not sizes.shape[-1]:
            return np.zeros(sizes.shape[:-1])
        flat = sizes.reshape(-1, sizes.shape[-1])
        alive = np.cumsum(self._alive @ flat.T, axis=0)
        peak: Floats = alive.max(axis=0).reshape(sizes.shape[:-1])
        return peak


def _terms(rows: list[tuple[int, list[int]]], one: int) -> _Terms:
    width = max((len(axes) for _, axes in rows), default=0)
    axes = np.full((len(rows), width), one, dtype=np.int64)
    for k, (_, entry) in enumerate(rows):
        axes[k, : len(entry)] = entry
    return _Terms(np.array([c for c, _ in rows], dtype=np.float64), axes)


def _label_term(
    label: tuple[NDArray[np.int64] | None, ...], sizes: tuple[int, ...], at: dict[int, int]
) -> tuple[int, list[int]]:
    coefficient, axes = 1, []
    for axis, size in zip(label, sizes, strict=True):
        if axis is None:
            coefficient *= size
        else:
            axes.append(at[id(axis)])
    return coefficient, axes


def _place_term(recording: Recording, at: dict[int, int], name: str, elements: int) -> tuple[int, list[int]]:
    label = recording.places[name]
    axes = [a for a in label if a is not None]
    labelled = math.prod([len(a) for a in axes])
    return elements // max(labelled, 1), [at[id(a)] for a in axes if len(a)]


def _liveness(recording: Recording) -> sp.csr_matrix:
    """+1 where a buffer is born, -1 after its last use; the running sum over calls is what is alive."""
    births = [b.birth for b in recording.buffers]
    deaths = [b.death + 1 for b in recording.buffers]
    n = len(births)
    rows = np.array(births + deaths, dtype=np.int64)
    cols = np.tile(np.arange(n), 2)
    data = np.concatenate([np.ones(n), -np.ones(n)])
    return sp.csr_matrix((data, (rows, cols)), shape=(len(recording.calls) + 2, n))
