"""A runtime that takes a made-up time: so many microseconds a multiply-accumulate, in steps, and some for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

import secateur
from secateur._protocols import FloatArray
from secateur.budget import Target
from secateur.latency import prediction
from secateur.latency.benches import Layer

STEP = 4
PER_MAC, PER_ELEMENT, FIXED = 1e-3, 2e-3, 30.0


def layer_time(layer: Layer) -> float:
    """Widths count up to the next multiple of STEP, and odd ones take a fifth more."""
    form, out, into = layer
    wide = [-(-n // STEP) * STEP if n > 3 else n for n in (out, into)]
    odd = 1.2 if wide != [out, into] else 1.0
    return PER_MAC * form.macs(*wide) * odd


def timed(runtime: str, layers: Sequence[Layer], threads: int) -> FloatArray:
    """Stands for `benches.timed`."""
    return np.array([layer_time(layer) for layer in layers])


def times_of(models: Sequence[nn.Module], example_inputs: Any, target: Target, rounds: int = 1) -> FloatArray:
    """Stands for `prediction.times_of`: twice what the layers take alone, and the elements that are written."""
    return np.array([network_time(model, example_inputs, target) for model in models])


def network_time(model: nn.Module, inputs: Any, target: Target) -> float:
    """Microseconds of a whole network, from its own trace."""
    graph = secateur.trace(model, inputs)
    factors = graph.costs.factors(graph.widths())
    total = FIXED + PER_ELEMENT * graph.cost().activations * prediction.batch_scale(graph, target)
    for form, places in prediction.layers_of(graph, target).items():
        for k in places:
            total += 2 * layer_time((form, int(factors[k, 0]), int(factors[k, 1])))
    return total
