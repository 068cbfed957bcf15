"""Recurrent layers that are one operator: PyTorch runs an LSTM so on CPUs where tensors have values."""

from __future__ import annotations

import math

import numpy as np

from secateur.graph.labels import Axis
from secateur.graph.rules.linear import count
from secateur.graph.rules.registry import Labels, Op, label_of, rule

_GATES = 4  # of an LSTM; other recurrent layers come in parts


@rule("mkldnn_rnn_layer")
def rnn_layer(op: Op) -> Labels:
    """One layer of an LSTM in one direction: a unit has a row in every gate, and a place in both states."""
    x, into, back = op.label("input"), op.label("weight0"), op.label("weight1")
    rows, ledger = into[0], op.ledger
    for name in ("weight1", "weight2", "weight3") if op.args["has_biases"] else ("weight1",):
        rows = op.join(rows, op.label(name)[0])
    op.join(x[-1], into[1])
    units: Axis = None
    if rows is not None:
        gates = rows.reshape(_GATES, -1)
        units = np.ascontiguousarray(gates[0])
        for gate in gates[1:]:
            ledger.tie(units, gate)
        op.expect("hidden_size", units)
    for axis in (back[1], op.label("hx_")[-1], op.label("cx_")[-1]):
        op.join(units, axis)
    ledger.consumed += [axis for axis in (into[1], back[1]) if axis is not None]
    op.weight = (into[0], into[1])
    steps = math.prod(op.args["input"].shape[:-1])
    for weight in ("weight0", "weight1"):
        count(op, steps, *zip(op.label(weight), op.args[weight].shape, strict=True))
    states = [(*label_of(op.args[name])[:-1], units) for name in ("hx_", "cx_")]
    space = [(None,) * out.dim() for out in op.outputs()[3:]]  # kept for gradients, where they are taken
    return [(*x[:-1], units), *states, *space]
