"""What a plan will take on a runtime: layer times from the table, everything else from a few whole networks.

    time = a · Σ layers + b · elements written + c,     a, b, c >= 0

a, b and c come from the network itself: it is cut to a few sets of widths, each is run as it will be, and the three
numbers fit those times best (least squares of relative errors).
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.budget import Target
from secateur.graph import Graph, SizeConflict
from secateur.graph.forms import Form
from secateur.graph.modules import map_tensors
from secateur.graph.trace import Masks
from secateur.latency.benches import Layer
from secateur.latency.grid import Grid, Odd, points
from secateur.latency.table import Table, Watcher
from secateur.plan import Plan, fingerprint

#: Shares of every group in the networks that are timed whole: first and last groups of the network, linear between.
_SHAPES = ((1.0, 1.0), (0.75, 0.75), (0.5, 0.5), (0.25, 0.25), (0.35, 0.8), (0.8, 0.35))
_ROUNDS, _WARM = 25, 3
_TOLD = 1.03  # times what was counted, from which on users are told of odd widths
_OTHER = Form("linear", 1, (64,))  # what one multiply-accumulate costs where there is no layer
_OTHER_WIDTH = 256
_FOUR = 4  # channels below a multiple of the step


@dataclass(frozen=True)
class Trial:
    """A whole network that was timed: what the table says of it, and how long it took, in microseconds."""

    layers: float
    elements: float
    measured: float


@dataclass(frozen=True)
class Prediction:
    """Latency as a function of widths, on one target; attach it to a graph with `Graph.attach`."""

    target: Target
    step: int
    grids: Mapping[Form, Grid]
    per_mac: float  # microseconds, of products that are no layers
    factors: tuple[float, float, float] = (1.0, 0.0, 0.0)  # a, b, c
    trials: tuple[Trial, ...] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""  # what went wrong with keeping the table, for the report

    def bind(self, graph: Graph) -> Callable[[FloatArray], FloatArray]:
        """The function from widths [..., groups] to microseconds [...], monotone in every width."""
        bound = _Bound(self, graph)
        return lambda widths: bound.total(widths, Grid.at)

    def expect(self, graph: Graph, widths: IntArray) -> FloatArray:
        """Microseconds to expect of these widths [..., groups]; more than `bind` says of odd ones."""
        return _Bound(self, graph).total(np.asarray(widths, dtype=np.float64), Grid.expected)

    @property
    def error(self) -> float:
        """The median relative error over the networks that were timed whole."""
        a, b, c = self.factors
        each = [abs(a * t.layers + b * t.elements + c - t.measured) / t.measured for t in self.trials]
        return statistics.median(each) if each else 0.0

    def about(self, graph: Graph, plan: Masks) -> dict[str, Any]:
        """What a plan should say about the prediction it was made with, as JSON; "note": what its user should know."""
        a, b, c = self.factors
        widths = graph.widths(plan)
        counted, expected = float(self.bind(graph)(widths.astype(np.float64))), float(self.expect(graph, widths))
        odd = (
            f"{expected:,.0f} microseconds are to be expected, not the {counted:,.0f} that were counted, because many "
            f"widths are no multiples of {self.step}: with align={self.step} they are."
        )
        note = " ".join([self.note] * bool(self.note) + [odd] * (expected > _TOLD * counted))
        return {
            "target": str(self.target),
            "align": self.step,
            "layer_factor": round(a, 4),
            "us_per_element": float(f"{b:.4g}"),
            "fixed_us": round(c, 2),
            "median_error": round(self.error, 4),
            "trials": [[round(t.measured, 1), round(a * t.layers + b * t.elements + c, 1)] for t in self.trials],
            "counted_us": round(counted, 1),
            "expected_us": round(expected, 1),
            "conditions": dict(self.conditions),
            **({"note": note} if note else {}),
        }


class _Bound:
    """A prediction on one graph: which products are layers of which grid."""

    def __init__(self, prediction: Prediction, graph: Graph) -> None:
        self.prediction, self.costs = prediction, graph.costs
        self.scale = batch_scale(graph, prediction.target)
        self.places: dict[Form, IntArray] = {}
        known = np.zeros(len(graph.costs.mac_calls), dtype=np.bool_)
        for form, places in layers_of(graph, prediction.target).items():
            self.places[form] = places
            known[places] = True
        self.others: BoolArray = ~known

    def layers(self, widths: FloatArray, look: Callable[[Grid, FloatArray, FloatArray], FloatArray]) -> FloatArray:
        """The sum over all layers [...], before the factors."""
        factors = self.costs.factors(widths)
        total = np.zeros(widths.shape[:-1])
        for form, places in self.places.items():
            grid = self.prediction.grids[form]
            total = total + look(grid, factors[..., places, 0], factors[..., places, 1]).sum(-1)
        rest = self.costs.macs_by_call(widths)[..., self.others].sum(-1)
        found: FloatArray = total + rest * self.prediction.per_mac * self.scale
        return found

    def elements(self, widths: FloatArray) -> FloatArray:
        """Elements that are written [...]."""
        return self.costs.written(widths) * self.scale

    def total(self, widths: FloatArray, look: Callable[[Grid, FloatArray, FloatArray], FloatArray]) -> FloatArray:
        """Microseconds [...]."""
        a, b, c = self.prediction.factors
        return a * self.layers(widths, look) + b * self.elements(widths) + c


def layers_of(graph: Graph, target: Target) -> dict[Form, IntArray]:
    """The products of a network that are layers, as numbers of `costs.mac_calls`, by form at the target's batch."""
    found: dict[Form, list[int]] = {}
    scale = batch_scale(graph, target)
    whole = graph.costs.macs_by_call(graph.widths())
    factors = graph.costs.factors(graph.widths())
    for k, (call, axes) in enumerate(zip(graph.costs.mac_calls, graph.costs.mac_axes, strict=True)):
        form = graph.recording.calls[call].form
        if form is None or axes != 2 or form.macs(*map(int, factors[k, :2])) != whole[k]:
            continue
        found.setdefault(_at_batch(form, scale), []).append(k)
    return {form: np.array(places, dtype=np.int64) for form, places in found.items()}


def batch_scale(graph: Graph, target: Target) -> float:
    """How many times the images of the traced example the target runs at once."""
    from secateur.runtime.inputs import batch_of

    return target.batch / (batch_of(graph.example_inputs) or 1)


def _at_batch(form: Form, scale: float) -> Form:
    if form.kind == "linear":
        return replace(form, size=(max(1, round(form.size[0] * scale)),))
    return replace(form, batch=max(1, round(form.batch * scale)))


# ------------------------------------------------------------------------------------------------------------ the table


def predict(graph: Graph, target: Target, watch: Watcher | None = None, table: Table | None = None) -> Prediction:
    """Measure what is not known yet of this network's layers, then fit the rest to whole networks.

    Args:
        graph: where a size in code stands against cutting it freely, it is settled. target: where.
        watch: told of the progress. table: None: this machine's.

    Raises:
        ConfigError: the runtime is unknown or not installed. RunError: it cannot run this network.
    """
    table = table or Table(target)
    cuts = cuts_of(graph, table.step)
    wanted = _wanted(graph, target, table.step)
    other = (_OTHER, _OTHER_WIDTH, _OTHER_WIDTH)
    table.measure([other, *(layer for layers in wanted for layer in layers.measured)], watch)
    grids = {layers.form: layers.grid(table.times, table.step) for layers in wanted}
    per_mac = table.times[other] / _OTHER.macs(_OTHER_WIDTH, _OTHER_WIDTH)
    plain = Prediction(target, table.step, grids, per_mac, conditions=table.conditions)
    network = _name(graph, target)
    if network not in table.fits:
        found = fitted(plain, graph, cuts)
        table.keep(network, (found.factors, tuple((t.layers, t.elements, t.measured) for t in found.trials)))
    factors, trials = table.fits[network]
    return replace(plain, factors=factors, trials=tuple(Trial(*row) for row in trials), note=table.note)


def _name(graph: Graph, target: Target) -> str:
    """A name for a network as it is timed: its structure, its cost and its inputs."""
    shapes: list[tuple[int, ...]] = []
    map_tensors(graph.example_inputs, lambda tensor: shapes.append(tuple(tensor.shape)))
    cost = graph.cost()
    about = (fingerprint(graph), target.batch, cost.macs, cost.params, cost.activations, shapes, _SHAPES)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Wanted:
    """Which widths of a form to measure: every pair of these, and pairs beside multiples."""

    form: Form
    outs: tuple[int, ...]
    ins: tuple[int, ...]
    below: tuple[_Below, ...]

    @property
    def measured(self) -> Iterator[Layer]:
        """All layers to time."""
        for pair in [*((out, into) for out in self.outs for into in self.ins), *(row.pair for row in self.below)]:
            yield self.form, *pair

    def grid(self, times: Mapping[Layer, float], step: int) -> Grid:
        """The grid, once all is measured."""
        pairs = {(out, into): times[self.form, out, into] for out in self.outs for into in self.ins}
        return Grid.of(pairs, step, (self._odd(times, 0), self._odd(times, 1)))

    def _odd(self, times: Mapping[Layer, float], side: int) -> Odd:
        odd, four = {}, 1.0
        for row in self.below:
            time = times[(self.form, *row.pair)]
            if row.side == side and row.lacking % _FOUR == 0:
                four = time / times[(self.form, *row.even)]
            elif row.side == side:
                odd[row.pair] = time
        return Odd.of(odd, four)


class _Below(NamedTuple):
    """A pair of widths of the grid, and so many channels less on one side (0: outputs, 1: inputs)."""

    side: int
    even: tuple[int, int]
    lacking: int

    @property
    def pair(self) -> tuple[int, int]:
        """The widths to measure."""
        out, into = self.even
        return (out - self.lacking, into) if self.side == 0 else (out, into - self.lacking)


def _wanted(graph: Graph, target: Target, step: int) -> list[_Wanted]:
    full = graph.costs.factors(graph.widths())
    least = graph.costs.factors(np.ones(len(graph.groups)))
    result = []
    for form, places in layers_of(graph, target).items():
        sides: list[tuple[int, ...]] = []
        for k, unit in ((0, max(form.groups, 1)), (1, 1)):  # a grouped convolution has so many outputs at a time
            prunable = bool((least[places, k] < full[places, k]).any())
            steps = points([int(n) // unit for n in full[places, k]], max(1, step // unit), prunable=prunable)
            sides.append(tuple(unit * n for n in steps))
        outs, ins = sides
        result.append(_Wanted(form, outs, ins, _below(form, outs, ins, step)))
    return result


def _below(form: Form, outs: Sequence[int], ins: Sequence[int], step: int) -> tuple[_Below, ...]:
    """Where to measure what widths below a multiple cost, for outputs and for inputs: few and many of both.

    Each halfway to the multiple before, and many of both also at a multiple of four. Few are not the fewest: runtimes
    tell microseconds as whole numbers.
    """
    if form.groups > 1 or step < _FOUR:
        return ()
    result = []
    multiples = [[n for n in side if n % step == 0] for side in (outs, ins)]
    for side in (0, 1):
        sides = [multiples[k] if k == side else list((outs, ins)[k]) for k in (0, 1)]
        if not sides[side]:
            continue
        few_many = [dict.fromkeys((each[len(each) // 3], each[-1])) for each in sides]
        pairs = [(out, into) for out in few_many[0] for into in few_many[1]]
        result += [_Below(side, pair, step // 2 - 1) for pair in pairs]
        if step > _FOUR:
            result.append(_Below(side, pairs[-1], _FOUR))
    return tuple(result)


# ------------------------------------------------------------------------------------------------------- whole networks


def fitted(prediction: Prediction, graph: Graph, cuts: Sequence[tuple[Plan, nn.Module]]) -> Prediction:
    """The prediction with the factors that suit this network, of whole networks that are timed."""
    measured = times_of([model for _, model in cuts], graph.example_inputs, prediction.target)
    bound = _Bound(prediction, graph)
    widths = np.stack([graph.widths(plan) for plan, _ in cuts]).astype(np.float64)
    layers, elements = bound.layers(widths, Grid.at), bound.elements(widths)
    trials = tuple(map(Trial, layers.tolist(), elements.tolist(), measured.tolist()))
    rows = np.stack([layers, elements, np.ones(len(trials))], axis=1) / measured[:, None]
    scale = rows.max(0)
    found, _ = nnls(rows / scale, np.ones(len(trials)))
    a, b, c = (found / scale).tolist()
    return replace(prediction, factors=(a, b, c), trials=trials)


def cuts_of(graph: Graph, step: int) -> list[tuple[Plan, nn.Module]]:
    """The network at different sets of widths, in multiples of `step`; sizes in code that stand against it settle."""
    try:
        return [(plan, graph.cut(plan).model) for plan in _plans(graph, step)]
    except SizeConflict as conflict:
        graph.settle(conflict)
        return cuts_of(graph, step)


def _plans(graph: Graph, step: int) -> list[Plan]:
    result, count = [], max(len(graph.groups) - 1, 1)
    for first, last in _SHAPES:
        masks = {}
        for k, group in enumerate(graph.groups):
            share = first + (last - first) * k / count
            kept = max(step, round(share * group.width / step) * step) if share < 1 else group.width
            masks[group.name] = np.arange(group.width) < kept
        result.append(Plan(masks))
    return result


def times_of(models: Sequence[nn.Module], example_inputs: Any, target: Target, rounds: int = _ROUNDS) -> FloatArray:
    """Microseconds of whole networks [models] on a target: medians over rounds in which they take turns."""
    from secateur.runtime.engines import ENGINES, copied, threads_set
    from secateur.runtime.inputs import to_device, with_batch

    engine, cpu = ENGINES[target.runtime], torch.device("cpu")
    inputs = to_device(with_batch(example_inputs, target.batch), cpu)
    with threads_set(target.threads), torch.no_grad():
        calls = [engine.prepare(copied(model).to(cpu), inputs, target.threads) for model in models]
        times: list[list[float]] = [[] for _ in calls]
        for turn in range(_WARM + rounds):
            for k in range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls))):
                start = time.perf_counter()
                calls[k]()
                times[k].append(1e6 * (time.perf_counter() - start))
    return np.array([np.median(each[_WARM:]) for each in times])
