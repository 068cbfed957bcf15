"""How far the classes lie apart in every channel: scatter between and within classes, of all groups in one pass.

A channel is looked at where it is read, behind norm and activation: at the inputs of the layers that read it (of a
residual stream: every block's output) and, filtered channel by channel, at those of depthwise convolutions.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_max, global_sum, world
from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.errors import ConfigError, ModelError
from secateur.methods.kit.classes import class_numbers, few_of
from secateur.statistics.gather import Collector

Batches = Iterable[tuple[Any, Any]]
#: Numbers in the sums of all classes (8 bytes each); maps are pooled coarser where it would take more.
MOST = 1 << 26


def scatter(sums: torch.Tensor, squares: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Between-class and within-class scatter [channels] from sums over samples, in double precision.

    Every class counts alike, however many of its samples were there: as if n_k samples were n = N / K, with the same
    mean and scatter. S_k and Q_k are thus taken n / n_k times; then

        A_c = sum_k |S_kc|^2 / n,  S = sum_k S_k:      b_c = A_c - |S_c|^2 / N,  w_c = Q_c - A_c

    Args:
        sums: S [classes, channels, d] of the features. squares: Q [classes, channels] of their squared norms.
        counts: n [classes] samples; all above 0.
    """
    share = counts.mean() / counts  # n / n_k
    sums, squares = sums * share[:, None, None], squares * share[:, None]
    each = (sums.square().sum(2) / counts.mean()).sum(0)
    between = each - sums.sum(0).square().sum(1) / counts.sum()
    return between.clamp_min(0.0), (squares.sum(0) - each).clamp_min(0.0)


@dataclass(frozen=True)
class Sample:
    """Which samples are looked at: of every class in `counts` that many, the first that come.

    skipped: classes with one sample only, within which nothing scatters.
    """

    counts: Mapping[int, int]
    skipped: tuple[int, ...]

    @classmethod
    def of(cls, batches: Batches, most: int, classes: Iterable[int] | None = None) -> Sample:
        """Go through the targets once.

        Args:
            most: samples of a class. classes: only of these; None: of all.

        Raises:
            ConfigError: targets are no class numbers, a class asked for does not occur, or fewer than two classes have
                two samples.
        """
        found: Counter[int] = Counter()
        for batch in batches:
            found.update(_labels(batch).tolist())
        if not found:
            raise ConfigError("The data are empty: give at least one batch of (inputs, target).")
        wanted = set(found) if classes is None else set(classes)
        missing = sorted(wanted - set(found))
        if missing:
            there = ", ".join(map(str, sorted(found)[:10])) + (", ..." if len(found) > 10 else "")
            raise ConfigError(f"Class {missing[0]} does not occur in the data shown, which has {there}: leave it out.")
        counts = {k: min(found[k], most) for k in sorted(wanted) if found[k] > 1}
        if len(counts) < 2:
            raise ConfigError(
                f"Of {len(wanted)} classes {len(counts)} have two samples or more: show at least two samples of at "
                "least two classes."
            )
        return cls(counts, tuple(sorted(wanted - set(counts))))

    def few(self, batches: Batches) -> Iterator[tuple[Any, torch.Tensor]]:
        """These samples, batch by batch, with their classes numbered 0, 1, ... in the order of `counts`."""
        number = {label: k for k, label in enumerate(self.counts)}
        for inputs, labels in few_of(batches, self.counts):
            yield inputs, torch.tensor([number[label] for label in labels.tolist()])


def _labels(batch: Any) -> torch.Tensor:
    found = class_numbers(batch)
    if found is None:
        raise ConfigError(
            "Classes are to be told apart, and targets are no whole numbers, one a sample (of several labels none is "
            "the class): give batches of (inputs, class numbers)."
        )
    return found


@dataclass
class _Sums:
    """What is known of one layer's input."""

    totals: torch.Tensor  # [classes, positions * d]
    squares: torch.Tensor  # [classes, positions]


@dataclass
class _Pass:
    """One batch on its way through the model."""

    inputs: list[tuple[weakref.ref[torch.Tensor], str]] = field(default_factory=list)  # of the first batch
    features: dict[str, torch.Tensor] = field(default_factory=dict)


class ClassScatter(Collector):
    """Scatter of every channel; `result` is there when the pass is over.

    Targets are classes numbered from 0, as `Sample.few` gives them. Sums are in double precision; they take 8 bytes
    for every class, position of a layer's input, and place of its pooled map: at most `MOST` of them.
    """

    def __init__(
        self,
        tables: Mapping[str, IntArray],
        counts: Iterable[int],
        widths: Iterable[int],
        *,
        pool: int = 4,
        wanted: BoolArray | None = None,
        kept: BoolArray | None = None,
    ) -> None:
        """Say what to look at.

        Args:
            tables: see `places`. counts: samples of every class. widths: of the groups.
            pool: side that maps are averaged to; smaller maps stay as they are.
            wanted: channels to look at; None: all. kept: channels that layers get to read, behind what is seen here.
        """
        self.counts = torch.tensor(list(counts), dtype=torch.float64)
        self.tables, self.widths = dict(tables), list(widths)
        channels = sum(self.widths)
        self.wanted = np.ones(channels, dtype=np.bool_) if wanted is None else wanted
        self.kept = np.ones(channels, dtype=np.bool_) if kept is None else kept
        positions = sum(len(t) for t in self.tables.values() if _any(self.wanted, t))
        self.pool = pool
        while self.pool > 1 and len(self.counts) * positions * self.pool**2 > MOST:
            self.pool //= 2
        self._sums: dict[str, _Sums] = {}
        self._same: dict[str, str] = {}  # layers that read the same tensor as another
        self._pass, self._batches = _Pass(), 0

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Look at inputs of layers, and shut what is not kept."""
        for name, table in self.tables.items():
            layer = model.get_submodule(name)
            seen, shut = _any(self.wanted, table), _any(~self.kept, table)
            if seen or shut:
                yield layer.register_forward_pre_hook(partial(self._look, name, seen, shut), with_kwargs=True)

    def _look(self, name: str, seen: bool, shut: bool, layer: nn.Module, args: Any, keywords: Any) -> Any:
        x: torch.Tensor = args[0] if args else keywords["input"]
        last = isinstance(layer, nn.Linear)
        if seen and self._same.get(name, name) == name:
            if not self._batches:
                self._same[name] = next((other for ref, other in self._pass.inputs if ref() is x), name)
                self._pass.inputs.append((weakref.ref(x), name))
            if self._same[name] == name:
                pooled = _pooled(x.detach().movedim(-1, 1) if last else x.detach(), self.pool)
                earlier = self._pass.features.get(name)  # a layer that runs several times
                self._pass.features[name] = pooled if earlier is None else torch.cat([earlier, pooled], 2)
        if not shut:
            return None
        table = self.tables[name]
        open_ = torch.from_numpy(((table < 0) | self.kept[table]).astype(np.float32)).to(x)
        masked = x * (open_ if last else open_.view(-1, *[1] * (x.dim() - 2)))
        return ((masked, *args[1:]), keywords) if args else (args, keywords | {"input": masked})

    def see(self, output: Any, target: torch.Tensor) -> None:
        """Add a batch to the sums of its classes."""
        for name, features in self._pass.features.items():
            if len(features) % len(target):
                raise ModelError(
                    f"{name} reads {len(features)} rows where the batch has {len(target)} samples, so that classes "
                    "cannot be told apart there: put the samples into the first dimension, or ignore what it reads."
                )
            features = features.unflatten(0, (len(target), -1)).mean(1)  # windows or tokens, sample by sample
            double = (features.cpu() if features.device.type == "mps" else features).double()
            labels = target.to(double.device)
            if name not in self._sums:
                shape = (len(self.counts), double[0].numel())
                self._sums[name] = _Sums(double.new_zeros(shape), double.new_zeros(shape[0], double.shape[1]))
            self._sums[name].totals.index_add_(0, labels, double.flatten(1))
            self._sums[name].squares.index_add_(0, labels, double.square().sum(2))
        self._pass, self._batches = _Pass(), self._batches + 1

    def total(self) -> None:
        """Add up over processes, and work out the scatter."""
        self._agree()
        between, within = np.zeros(len(self.wanted)), np.zeros(len(self.wanted))
        for name, sums in sorted(self._sums.items()):
            table = self.tables[name]
            counts = self.counts.to(sums.totals.device)
            totals, squares = global_sum(sums.totals), global_sum(sums.squares)
            found = scatter(totals.unflatten(1, (len(table), -1)), squares, counts)
            inside = (table >= 0) & self.wanted[table]
            b, w = (np.bincount(table[inside], v.cpu().numpy()[inside], len(self.wanted)).astype(float) for v in found)
            scale = self._scale(b + w)
            between += b * scale
            within += w * scale
        self.result: tuple[FloatArray, FloatArray] = between, within

    def _agree(self) -> None:
        """A process that saw no batch has sums of the same shapes as the others."""
        if world() == 1:
            return
        lengths = [sums.totals.shape[1] if (sums := self._sums.get(name)) else 0 for name in self.tables]
        device = next((sums.totals.device for sums in self._sums.values()), torch.device("cpu"))
        for (name, table), length in zip(self.tables.items(), global_max(torch.tensor(lengths)).tolist(), strict=True):
            if length and name not in self._sums:
                shape = (len(self.counts), length)
                zeros = torch.zeros(shape, dtype=torch.float64, device=device)
                self._sums[name] = _Sums(zeros, zeros.new_zeros(shape[0], len(table)))

    def _scale(self, total: FloatArray) -> FloatArray:
        """1 / T of each channel's group: what a place adds to a group is a share of the whole scatter there."""
        ends = np.cumsum(self.widths)[:-1]
        sums = [float(part.sum()) for part in np.split(total, ends)]
        return np.repeat([1 / s if s > 0 else 0.0 for s in sums], self.widths)


def _any(channels: BoolArray, table: IntArray) -> bool:
    return bool((channels[table[table >= 0]]).any())


def _pooled(x: torch.Tensor, side: int) -> torch.Tensor:
    """Maps [samples, positions, ...] as features [samples, positions, d], averaged where a side is longer."""
    inner = x.shape[2:]
    if any(n > side for n in inner):
        function: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}.get(len(inner))
        if function is None:
            return x.flatten(2).mean(2, keepdim=True)
        x = function(x, [min(side, n) for n in inner])
    return x.reshape(*x.shape[:2], -1)
