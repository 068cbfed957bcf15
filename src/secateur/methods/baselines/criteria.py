"""The criteria: one frozen row each, from which lists, docs and tests are made, and `score`, which calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from secateur._defaults import own_defaults
from secateur._hints import check_graph, choose
from secateur._protocols import GraphLike
from secateur.errors import ConfigError
from secateur.methods.baselines import formulas
from secateur.methods.baselines.gradients import accumulate_gradients
from secateur.methods.kit.scores import Scores


@dataclass(frozen=True)
class Criterion:
    """One criterion: what it is, where it comes from, and which of `score`'s options its function takes."""

    name: str
    summary: str
    needs_data: bool
    paper: str
    year: int
    arxiv: str
    options: tuple[str, ...]
    function: Callable[..., Scores]


_COMMON = ("reduce", "members")

#: Ways to score the channels of a network as it stands, one frozen row each.
CRITERIA: tuple[Criterion, ...] = (
    Criterion(
        "random", "random channels, the baseline", False,
        "Recovering from Random Pruning: On the Plasticity of Deep Convolutional Neural Networks", 2018, "1801.10447",
        ("seed",), formulas.random,
    ),
    Criterion(
        "l1", "sum of absolute weights", False,
        "Pruning Filters for Efficient ConvNets", 2017, "1608.08710", _COMMON, formulas.l1,
    ),
    Criterion(
        "l2", "Euclidean norm of the weights", False,
        "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", 2018, "1808.06866",
        _COMMON, formulas.l2,
    ),
    Criterion(
        "bn_scale", "magnitude of the batch norm scale", False,
        "Learning Efficient Convolutional Networks through Network Slimming", 2017, "1708.06519",
        ("reduce",), formulas.bn_scale,
    ),
    Criterion(
        "fpgm", "sum of distances to the other filters", False,
        "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", 2019, "1811.00250",
        _COMMON, formulas.fpgm,
    ),
    Criterion(
        "taylor", "first-order change of the loss", True,
        "Importance Estimation for Neural Network Pruning", 2019, "1906.10771",
        (*_COMMON, "gradients"), formulas.taylor,
    ),
    Criterion(
        "lamp", "squared norm over those not smaller", False,
        "Layer-adaptive Sparsity for the Magnitude-based Pruning", 2021, "2010.07611", _COMMON, formulas.lamp,
    ),
)  # fmt: skip


@own_defaults
def score(
    name: str,
    graph: GraphLike,
    *,
    reduce: str = "sum",
    members: str = "producers",
    seed: int = 0,
    gradients: Mapping[str, torch.Tensor] | None = None,
    data: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
) -> Scores:
    """Score every channel of `graph` by the criterion called `name`, passing it those options that it takes.

    Args:
        name: one of CRITERIA. graph: the traced network.
        reduce: how the members of a group are combined: "sum", "mean", "max" or "prod".
        members: what is scored: "producers" of a channel, or "all" that goes with it.
        seed: of a criterion that draws.
        gradients, data, loss: a criterion that needs gradients takes them from `gradients`, by parameter name, or from
            `data` and `loss` (see `accumulate_gradients`).
    """
    choose(name, [row.name for row in CRITERIA], "criterion")
    check_graph(graph, "score")
    row = next(row for row in CRITERIA if row.name == name)
    if row.needs_data and gradients is None:
        if data is None or loss is None:
            raise ConfigError(
                f"The criterion {name!r} needs data and a loss: pass data=(batches) and loss=(a function)."
            )
        gradients = accumulate_gradients(graph.model, data, loss)
    options = {"reduce": reduce, "members": members, "seed": seed, "gradients": gradients}
    return row.function(graph, **{option: options[option] for option in row.options})
