"""Why the pruned network is or is not faster: remarks computed from the measured times, each by a rule written here.

No remark without a figure of this run. Every rule is a function of `Facts` that returns a remark, or None where its
condition, given in its docstring, does not hold. Shares of time are shares of the sum of all layers' own times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.report.page import words
from secateur.report.page.headline import interval, runtime_name
from secateur.report.page.layers import BLOCK, Facts, Layer, by_kind, misaligned, narrowed, pair
from secateur.report.page.measured import Interval, RuntimeRow
from secateur.report.page.results import LayerRow

_FOLLOWS = 0.8  # of the saved MACs saved as time: the time follows the arithmetic
_WORTH = 0.10  # of the time: a cause smaller than this is not worth a remark
_FOLDED = 0.01  # of the dense time
_WIDE = 1.5  # an interval's end over its beginning: the times vary too much to say anything
_SLOWER = 1.05  # a layer's time is longer, not just jitter
_TINY_MS = 0.05  # calling such a layer costs about as much as computing it
_RATE = 0.9  # MACs a second, pruned against dense: below this the layers became less efficient
_HEAVY = 2.0  # share of time over share of MACs: a kind of layer that moves memory rather than computes
_DRAGS = 0.05  # by how much the activations' remaining share exceeds that of the MACs


@dataclass(frozen=True)
class Remark:
    """A cause, in one phrase and a sentence or two with its figures."""

    title: str
    text: str


def remarks(known: Facts) -> tuple[Remark, ...]:
    """All remarks whose conditions hold, in the order of RULES."""
    return tuple(remark for rule in RULES if (remark := rule(known)) is not None)


def _against_macs(known: Facts) -> Remark | None:
    """Whenever MACs and a latency are known: how much of the saved arithmetic arrives as saved time."""
    rest = known.run.results.remaining("macs")
    rows = known.run.latency.runtimes if known.run.latency else []
    measured = [row for row in rows if row.ratio is not None]
    if rest is None or not measured:
        return None
    said = [_gained(row, row.ratio, 1 - rest) for row in measured if row.ratio is not None]
    return Remark("Arithmetic and time", f"{words.percent(1 - rest)} of the MACs are gone. {' '.join(said)}")


def _gained(row: RuntimeRow, ratio: Interval, saved: float) -> str:
    """How much of the MACs' share the time lost on one runtime."""
    name, change = runtime_name(row), 1 - 1 / ratio.median
    low, high = ratio.low or ratio.median, ratio.high or ratio.median
    if not row.apart:
        again = "; the times vary too much, measure again on a quiet machine" if high > _WIDE * low else ""
        return f"{name}: no significant change ({interval(ratio)}{again})."
    if change < 0:
        return f"{name}: {words.percent(-change)} more time, not less."
    promise = "as the MACs promise" if change >= _FOLLOWS * saved else "less than the MACs promise"
    return f"{name}: {words.percent(change)} of the time saved, {promise}."


def _alignment(known: Facts) -> Remark | None:
    """Whenever widths changed: how many are no multiple of BLOCK; with times, how those layers fared."""
    rows = [row for row in known.run.results.layers if narrowed(row)]
    if not rows:
        return _group_alignment(known)
    odd = [row.name for row in rows if misaligned(row)]
    if not odd:
        text = f"All {words.number_of(len(rows), 'narrowed layer')} kept widths that are multiples of {BLOCK}."
        return Remark("Alignment", text)
    crooked = [layer for layer in known.layers if layer.misaligned]
    straight = [x for x in known.layers if x.counts and narrowed(x.counts) and not x.misaligned]
    text = (
        f"{len(odd):,} of {words.number_of(len(rows), 'narrowed layer')} {_verb(odd, 'has', 'have')} a width that is "
        f"no multiple of {BLOCK}: {words.several([_narrow(row) for row in rows if misaligned(row)], 4)}. Kernels that "
        f"compute channels in blocks of {BLOCK} do the work of the next multiple."
    )
    if crooked and _fared(crooked):
        text += f" They keep {_fared(crooked)}, and take {words.percent(known.share(crooked))} of the pruned network's."
        text += f" The other narrowed layers keep {_fared(straight)}." if _fared(straight) else ""
    if known.share(crooked) >= _WORTH:
        text += f" To keep whole blocks: `--set constraints.align={BLOCK}`."
    return Remark("Alignment", text)


def _group_alignment(known: Facts) -> Remark | None:
    """The same from the groups alone, when the run lists no layers."""
    changed = [row for row in known.run.results.groups if row.kept != row.width]
    odd = [f"{row.name} ({row.kept})" for row in changed if row.kept % BLOCK]
    if not changed:
        return None
    text = (
        f"{len(odd):,} of {words.number_of(len(changed), 'narrowed group')} have a width that is no multiple of {BLOCK}"
    )
    return Remark("Alignment", f"{text}: {words.several(odd, 6)}." if odd else f"{text}.")


def _folded(known: Facts) -> Remark | None:
    """When layers of the dense network are gone, folded into others, that took at least _FOLDED of its time."""
    layers = [layer for layer in known.layers if layer.gone]
    spent = sum(layer.dense_ms for layer in layers)
    if not known.dense_ms or spent < _FOLDED * known.dense_ms:
        return None
    kinds = words.several([kind for kind, _ in by_kind(layers)])
    text = (
        f"{words.number_of(len(layers), 'layer')} of the dense network ({kinds}) {_verb(layers, 'is', 'are')} "
        f"gone, and with them {words.percent(spent / known.dense_ms)} of its time: that gain is not the pruning's."
    )
    return Remark("Layers folded away", text)


def _efficiency(known: Facts) -> Remark | None:
    """When layers with MACs do less than _RATE of the MACs a second that they did: small layers, odd widths."""
    layers = [layer for layer in known.layers if layer.macs[0] and layer.macs[1]]
    dense, pruned = sum(x.dense_ms for x in layers), sum(x.pruned_ms for x in layers)
    if not dense or not pruned:
        return None
    before, after = sum(x.macs[0] for x in layers) / dense * 1e3, sum(x.macs[1] for x in layers) / pruned * 1e3
    if after >= _RATE * before:
        return None
    text = (
        f"Convolutions and other layers with MACs computed {words.count(before)} a second before pruning and "
        f"{words.count(after)} after it ({words.percent(after / before)}): narrow layers use the processor less well."
    )
    return Remark("Fewer MACs a second", text)


def _no_macs(known: Facts) -> Remark | None:
    """When layers without MACs (normalisation, activation, pooling) take at least _WORTH of the pruned time."""
    layers = [layer for layer in known.layers if not layer.macs[0] and not layer.gone]
    share = known.share(layers)
    if share < _WORTH or len(layers) == len(known.layers):
        return None
    dense = sum(layer.dense_ms for layer in layers) / known.dense_ms if known.dense_ms else 0.0
    kinds = words.several([kind for kind, _ in by_kind(layers)])
    text = (
        f"{words.number_of(len(layers), 'layer')} without MACs ({kinds}) took "
        f"{words.percent(dense)} of the dense time and {_verb(layers, 'takes', 'take')} {words.percent(share)} of the "
        "pruned: bound by memory, such layers shrink with the width, not with the product of two widths."
    )
    return Remark("Layers that do not multiply", text)


def _memory_bound(known: Facts) -> Remark | None:
    """When a kind of layer with MACs has _HEAVY times the share of time that it has of MACs, and _WORTH of the time."""
    whole, time = sum(layer.macs[0] for layer in known.layers), known.dense_ms
    if not whole or not time:
        return None
    said = []
    for name, layers in by_kind(known.layers):
        macs, spent = sum(x.macs[0] for x in layers) / whole, sum(x.dense_ms for x in layers) / time
        if macs and spent >= _WORTH and spent >= _HEAVY * macs:
            said.append(
                f"{name} layers hold {words.percent(macs)} of the MACs and take {words.percent(spent)} of the time"
            )
    if not said:
        return None
    return Remark("Bound by memory", f"In the dense network {'; '.join(said)}: they move more than they compute.")


def _activations(known: Facts) -> Remark | None:
    """When a larger share of the activations remains than of the MACs, by more than _DRAGS."""
    macs, written = known.run.results.remaining("macs"), known.run.results.remaining("activations")
    if macs is None or written is None or written <= macs + _DRAGS:
        return None
    text = (
        f"{words.percent(written)} of the activations remain, but {words.percent(macs)} of the MACs: what is written to"
        " memory and read from it shrank less than what is computed."
    )
    return Remark("Traffic to memory", text)


def _untouched(known: Facts) -> Remark | None:
    """When layers with MACs that kept all of them take at least _WORTH of the pruned time."""
    layers = [layer for layer in known.layers if layer.macs[0] and layer.macs[0] == layer.macs[1]]
    share = known.share(layers)
    if share < _WORTH:
        return None
    names = words.several([layer.name for layer in layers], 5)
    text = f"{names} {_verb(layers, 'was', 'were')} not narrowed: {words.percent(share)} of the pruned network's time."
    return Remark("Layers that stayed whole", text)


def _tiny(known: Facts) -> Remark | None:
    """When layers with MACs of less than _TINY_MS take at least _WORTH of the pruned time."""
    layers = [layer for layer in known.layers if layer.macs[1] and 0 < layer.pruned_ms < _TINY_MS]
    share = known.share(layers)
    if share < _WORTH:
        return None
    text = (
        f"{words.number_of(len(layers), 'layer')} with MACs {_verb(layers, 'takes', 'take')} less than {_TINY_MS:g} ms "
        f"each, {words.percent(share)} of the pruned network's time together: at this size, calling a layer costs "
        "about as much as computing it, whatever its width. A larger batch would show more of the gain."
    )
    return Remark("Small layers", text)


def _slower(known: Facts) -> Remark | None:
    """When a layer lost MACs and yet takes _SLOWER times as long."""
    layers = [x for x in known.layers if x.macs[1] < x.macs[0] and not x.new and x.pruned_ms > _SLOWER * x.dense_ms]
    if not layers:
        return None
    layers.sort(key=lambda x: x.dense_ms - x.pruned_ms)
    said = [f"{x.name} ({words.milliseconds(x.dense_ms)} to {words.milliseconds(x.pruned_ms)})" for x in layers]
    text = f"{words.number_of(len(layers), 'layer')} with fewer MACs took longer: {words.several(said, 4)}."
    return Remark("Slower though narrower", text)


def _between(known: Facts) -> Remark | None:
    """When the layers' times leave at least _WORTH of the pruned network's whole time on PyTorch unexplained."""
    rows = known.run.latency.runtimes if known.run.latency else []
    whole = next((row.pruned.median_ms for row in rows if row.runtime == "pytorch" and row.pruned), None)
    if not whole or not known.pruned_ms or whole - known.pruned_ms < _WORTH * whole:
        return None
    text = (
        f"On PyTorch the pruned network's layers account for {words.milliseconds(known.pruned_ms)} of its "
        f"{words.milliseconds(whole)}: the rest is spent between them, on additions, copies and calls, which narrow "
        "layers hardly shorten."
    )
    return Remark("Between the layers", text)


RULES: tuple[Callable[[Facts], Remark | None], ...] = (
    _against_macs,
    _alignment,
    _folded,
    _efficiency,
    _no_macs,
    _memory_bound,
    _activations,
    _untouched,
    _tiny,
    _slower,
    _between,
)


def _fared(layers: Sequence[Layer]) -> str:
    """How the MACs and the time of some layers fell."""
    before, after = sum(x.macs[0] for x in layers), sum(x.macs[1] for x in layers)
    dense, pruned = sum(x.dense_ms for x in layers), sum(x.pruned_ms for x in layers)
    if not before or not dense:
        return ""
    return f"{words.percent(after / before)} of their MACs and {words.percent(pruned / dense)} of their time"


def _verb(things: Sequence[object], one: str, many: str) -> str:
    return one if len(things) == 1 else many


def _narrow(row: LayerRow) -> str:
    return f"{row.name} ({pair(row.in_after, row.out_after)})"
