"""The staircase of one layer: its time at every width, and the step that fits it best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur._hints import choose
from secateur._protocols import FloatArray
from secateur.budget import Target
from secateur.errors import ConfigError
from secateur.graph import Graph
from secateur.graph.forms import Form
from secateur.latency.benches import BENCHES, Layer, timed
from secateur.latency.prediction import layers_of
from secateur.latency.table import conditions

_STEPS = (1, 2, 4, 8, 16, 32)
_WIDTHS = 33  # from the layer's own width down
_ROUNDS = 3


@dataclass(frozen=True)
class Staircase:
    """Microseconds of one layer by its width, on both sides."""

    layer: str
    form: Form
    outs: int
    ins: int
    widths: dict[str, tuple[int, ...]]  # of "outputs" and "inputs", ascending; the other side is whole
    times: dict[str, tuple[float, ...]]
    target: Target

    def step(self, side: str) -> int:
        """The step of the staircase that fits best: time = a + b · (width, up to the next multiple of it)."""
        widths, times = np.array(self.widths[side], dtype=np.float64), np.array(self.times[side])
        misses = [_miss(np.ceil(widths / step) * step, times) for step in _STEPS]
        return _STEPS[int(np.argmin(misses))]

    def saved(self, side: str) -> float:
        """The share of the time that the narrowest of the widths saves."""
        times = self.times[side]
        return 1 - times[0] / times[-1]

    def as_json(self) -> dict[str, Any]:
        """Everything, with the conditions of the measurement."""
        sides = {}
        for side, widths in self.widths.items():
            spent = [round(time, 2) for time in self.times[side]]
            sides[side] = {"widths": list(widths), "us": spent, "step": self.step(side)}
        about = {"layer": self.layer, "form": str(self.form), "outputs": self.outs, "inputs": self.ins}
        return {"target": str(self.target), "conditions": conditions(self.target), **about, "sides": sides}


def staircase(graph: Graph, target: Target, layer: str | None = None) -> Staircase:
    """Time one layer at its own width and at the 32 below it, on the side of its outputs and of its inputs.

    Args:
        graph: the traced network. target: runtime, batch size and threads.
        layer: the name of a convolution or linear layer; None: the one with the most MACs.

    Raises:
        ConfigError: there is no such layer, or the runtime is not installed.
    """
    choose(target.runtime, list(BENCHES), "runtime of a latency")
    from secateur.runtime.engines import ENGINES

    ENGINES[target.runtime].require()
    name, (form, outs, ins) = _found(graph, target, layer)
    sides: dict[str, list[Layer]] = {}
    if form.groups <= 1:
        sides["outputs"] = [(form, width, ins) for width in _below(outs)]
    if form.kind != "depthwise" and form.groups == 1 and ins > 3:
        sides["inputs"] = [(form, outs, width) for width in _below(ins)]
    if not sides:
        raise ConfigError(
            f"{name} is a grouped convolution: {form.groups} widths change at a time; name another layer."
        )
    every = [each for rows in sides.values() for each in rows]
    found = np.min([timed(target.runtime, every, target.threads) for _ in range(_ROUNDS)], axis=0)
    times = dict(zip(every, found.tolist(), strict=True))
    widths = {side: tuple(out if side == "outputs" else into for _, out, into in rows) for side, rows in sides.items()}
    spent = {side: tuple(times[row] for row in rows) for side, rows in sides.items()}
    return Staircase(name, form, outs, ins, widths, spent, target)


def _below(width: int) -> list[int]:
    return list(range(max(1, width - _WIDTHS + 1), width + 1))


def _found(graph: Graph, target: Target, layer: str | None) -> tuple[str, Layer]:
    factors, macs = graph.costs.factors(graph.widths()), graph.costs.macs_by_call(graph.widths())
    known: dict[str, tuple[float, Layer]] = {}
    for form, places in layers_of(graph, target).items():
        for k in places.tolist():
            name = graph.recording.calls[graph.costs.mac_calls[k]].module or "the model"
            known.setdefault(name, (float(macs[k]), (form, int(factors[k, 0]), int(factors[k, 1]))))
    if not known:
        raise ConfigError("The network has no convolution in two dimensions and no linear layer to time.")
    name = choose(layer, known, "layer") if layer is not None else max(known, key=lambda each: known[each][0])
    return name, known[name][1]


def _miss(stairs: FloatArray, times: FloatArray) -> float:
    """The squared error of the best line through times over stairs."""
    design = np.stack([np.ones_like(stairs), stairs], axis=1)
    found, *_ = np.linalg.lstsq(design, times, rcond=None)
    return float(((design @ found - times) ** 2).sum())
