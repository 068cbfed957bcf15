"""Layers with their measured times and their counted MACs, joined by name, and the tables made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from secateur.report.page import words
from secateur.report.page.inputs import Run
from secateur.report.page.measured import LayerTimes
from secateur.report.page.results import LayerRow

BLOCK = 8  # channels that the kernels of PyTorch (oneDNN) and ONNX Runtime on a CPU with AVX2 compute together
SHOWN = 12  # layers in the first table, the slowest


@dataclass(frozen=True)
class Layer:
    """What is known of one layer: measured times, counted MACs and channels."""

    name: str
    kind: str
    dense_ms: float  # 0 where the dense network has no such layer
    pruned_ms: float  # 0 where it is gone
    new: bool
    gone: bool
    counts: LayerRow | None

    @property
    def macs(self) -> tuple[int, int]:
        """MACs before and after, 0 where the layer has none."""
        return (self.counts.macs_before or 0, self.counts.macs_after or 0) if self.counts else (0, 0)

    @property
    def widths(self) -> str:
        """Channels in and out, before and after, as far as they are known."""
        return widths(self.counts) if self.counts else ""

    @property
    def times(self) -> str:
        """Time before and after."""
        if self.gone:
            return f"{words.milliseconds(self.dense_ms)} → gone"
        after = words.milliseconds(self.pruned_ms)
        return f"new → {after}" if self.new else f"{words.milliseconds(self.dense_ms).removesuffix(' ms')} → {after}"

    @property
    def misaligned(self) -> bool:
        """Pruning made a width that is no multiple of BLOCK."""
        return bool(self.counts and misaligned(self.counts))


@dataclass(frozen=True)
class Facts:
    """All that the rules look at."""

    run: Run
    layers: tuple[Layer, ...]

    @property
    def dense_ms(self) -> float:
        """The layers' times in the dense network."""
        return sum(layer.dense_ms for layer in self.layers)

    @property
    def pruned_ms(self) -> float:
        """The layers' times in the pruned network."""
        return sum(layer.pruned_ms for layer in self.layers)

    def share(self, layers: Iterable[Layer]) -> float:
        """The share of the pruned network's time that some layers take."""
        return sum(layer.pruned_ms for layer in layers) / self.pruned_ms if self.pruned_ms else 0.0


@dataclass(frozen=True)
class LayerLine:
    """One row of the table of layers."""

    layer: Layer
    macs: str
    macs_share: str
    time_share: str
    change: str


@dataclass(frozen=True)
class Kind:
    """One row of the table of kinds of layers."""

    name: str
    layers: int
    macs_share: str
    time_share: str
    dense: str
    pruned: str


def facts(run: Run) -> Facts:
    """Join the measured times with the counted MACs, by the layers' names."""
    counts = {row.name: row for row in run.results.layers}
    times = run.latency.layers if run.latency else []
    return Facts(run, tuple(_layer(row, counts.get(row.name)) for row in times if _measured(row)))


def lines(known: Facts) -> tuple[LayerLine, ...]:
    """All layers, those that take longest first."""
    whole = sum(layer.macs[0] for layer in known.layers)
    found = sorted(known.layers, key=lambda layer: -max(layer.dense_ms, layer.pruned_ms))
    return tuple(
        LayerLine(
            layer,
            words.percent(layer.macs[1] / layer.macs[0]) if layer.macs[0] else "no MACs",
            words.percent(layer.macs[0] / whole) if whole and layer.macs[0] else "none",
            words.percent(layer.dense_ms / known.dense_ms) if known.dense_ms else words.UNKNOWN,
            "gone" if layer.gone else words.percent(layer.pruned_ms / layer.dense_ms) if layer.dense_ms else "new",
        )
        for layer in found
    )


def kinds(known: Facts) -> tuple[Kind, ...]:
    """Shares of MACs and of time in the dense network by kind of layer, the longest first."""
    whole = sum(layer.macs[0] for layer in known.layers)
    rows = []
    for name, layers in by_kind(known.layers):
        dense, pruned = sum(x.dense_ms for x in layers), sum(x.pruned_ms for x in layers)
        macs = sum(x.macs[0] for x in layers)
        rows.append(
            Kind(
                name,
                len(layers),
                words.percent(macs / whole) if macs else "none",
                words.percent(dense / known.dense_ms) if known.dense_ms else words.UNKNOWN,
                words.milliseconds(dense),
                words.milliseconds(pruned),
            )
        )
    return tuple(rows)


def misaligned(row: LayerRow) -> bool:
    """Whether pruning gave a layer a width, in or out, that is no multiple of BLOCK."""
    pairs = ((row.in_before, row.in_after), (row.out_before, row.out_after))
    return any(after and after != before and after % BLOCK for before, after in pairs)


def widths(row: LayerRow) -> str:
    """ "16→32 to 11→24": channels in and out, before and after."""
    before, after = pair(row.in_before, row.out_before), pair(row.in_after, row.out_after)
    return before if before == after else f"{before} to {after}"


def narrowed(row: LayerRow) -> bool:
    """Whether pruning changed the channels of a layer, in or out."""
    pairs = ((row.in_before, row.in_after), (row.out_before, row.out_after))
    return any(before is not None and after is not None and before != after for before, after in pairs)


def by_kind(layers: Iterable[Layer]) -> list[tuple[str, list[Layer]]]:
    """Layers by kind, the kind that takes longest first."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.kind, []).append(layer)
    return sorted(found.items(), key=lambda item: -sum(x.dense_ms for x in item[1]))


def pair(wide: int | None, high: int | None) -> str:
    """Channels in and out."""
    return f"{'?' if wide is None else wide}→{'?' if high is None else high}"


def _measured(row: LayerTimes) -> bool:
    return row.dense_ms is not None or row.pruned_ms is not None


def _layer(row: LayerTimes, counts: LayerRow | None) -> Layer:
    kind = row.kind or (counts.kind if counts else None) or "layer"
    dense, pruned = row.dense_ms, row.pruned_ms
    return Layer(row.name, kind, dense or 0.0, pruned or 0.0, dense is None, pruned is None, counts)
