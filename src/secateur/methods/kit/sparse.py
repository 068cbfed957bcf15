"""Masks over single weights: one threshold for all layers, zeros that stay, and what they save."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.allocate import Constraints
from secateur.allocate.patterns import matched, parse_patterns
from secateur.budget import Budget
from secateur.errors import BudgetError, ConfigError, VerificationError
from secateur.graph import Graph
from secateur.graph.channels import Member


class WeightMasks(nn.Module):
    """Which single weights stay; buffers in the shapes of the parameters, so that checkpoints hold them."""

    def __init__(self, graph: Graph, weights: Iterable[str], constraints: Constraints) -> None:
        super().__init__()
        tensors = graph.tensors()
        self.names = tuple(weights)
        for number, name in enumerate(self.names):
            self.register_buffer(str(number), torch.ones_like(tensors[name], dtype=torch.bool))
        patterns = parse_patterns(graph, constraints.ignore, "ignore")
        places = {name: [Member(name, 0, "producer", np.empty((0, 0), np.int64))] for name in self.names}
        self.whole = {name for name, place in places.items() if any(matched(p, place) for p in patterns)}

    @property
    def total(self) -> int:
        """Weights that masks are about."""
        return sum(mask.numel() for mask in self.buffers())

    @property
    def kept(self) -> int:
        """Weights that stay."""
        return int(sum(int(mask.sum()) for mask in self.buffers()))

    def by_name(self) -> dict[str, torch.Tensor]:
        """The masks by parameter."""
        return dict(zip(self.names, self.buffers(), strict=True))

    def set(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Take other masks."""
        for name, mask in self.by_name().items():
            mask.copy_(masks[name])

    @torch.no_grad()
    def threshold(self, scores: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
        """Masks that keep exactly round(share · weights), the best of all layers; what is gone does not come back."""
        own = self.by_name()
        pooled = torch.cat([self._ranked(name, own[name], scores[name]) for name in self.names])
        keep = round(share * len(pooled))
        edge = pooled.kthvalue(len(pooled) - keep + 1).values if keep else pooled.new_tensor(float("inf"))
        chosen = pooled > edge
        ties = (pooled == edge).nonzero().squeeze(1)
        chosen[ties[: keep - int(chosen.sum())]] = True
        parts = chosen.split([own[name].numel() for name in self.names])
        return {name: part.view_as(own[name]) & own[name] for name, part in zip(self.names, parts, strict=True)}

    def _ranked(self, name: str, mask: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if name in self.whole:
            return torch.full((mask.numel(),), float("inf"), dtype=torch.float64, device=mask.device)
        return torch.where(mask.to(scores.device), scores.double(), -1.0).flatten().to(mask.device)

    def describe(self, model: nn.Module) -> tuple[str, dict[str, Any]]:
        """What is left in a finished model, as papers say it: a sentence, and the numbers.

        Raises:
            VerificationError: more weights are other than zero than the masks let stay.
        """
        weights = {name: model.get_parameter(name) for name in self.names}
        left = sum(int(weight.count_nonzero()) for weight in weights.values())
        if left > self.kept:
            raise VerificationError(
                f"The finished network has {left} single weights that are not zero, and the masks let {self.kept} "
                "stay: this is a defect of the method, please report it."
            )
        times = self.total / max(left, 1)
        sentence = (
            f"Single weights: {left} of {self.total} in {len(weights)} linear and convolution layers are not zero "
            f"({left / self.total:.1%}), {times:.3g} times fewer; the network keeps its shape, so MACs and dense files "
            "do not shrink."
        )
        return sentence, {"names": list(self.names), "weights": self.total, "nonzero": left, "times": round(times, 4)}


def share_of(budget: Budget, masks: WeightMasks | None) -> float:
    """The share of weights that may stay; `masks` None: as far as it can be said without them.

    Raises:
        BudgetError: the budget bounds something else, or what must stay whole is more than it allows.
    """
    bounds = dict(budget.bounds)
    if set(bounds) != {"params"}:
        other = next(key for key in bounds if key != "params")
        raise BudgetError(
            f"Single weights that are set to zero save no {other}: give the share of weights that stay, such as "
            "params=0.1."
        )
    value = bounds["params"]
    if masks is None:
        return min(value, 1.0)
    share = min(value / masks.total if value > 1 else value, 1.0)
    whole = sum(mask.numel() for name, mask in masks.by_name().items() if name in masks.whole)
    if round(share * masks.total) < max(whole, 1):
        raise BudgetError(
            f"The budget params={value:g} leaves {round(share * masks.total)} of {masks.total} weights, and "
            f"{max(whole, 1)} must stay: raise it" + (", or ignore fewer layers." if whole else ".")
        )
    return share


def check_constraints(constraints: Constraints) -> None:
    """Refuse what is about widths."""
    usual = Constraints()
    for name in ("min_channels", "max_ratio", "align"):
        if getattr(constraints, name) != getattr(usual, name):
            raise ConfigError(f"constraints.{name} is about channels, and only single weights go here: leave it out.")


def keep_zeros(model: nn.Module, names: Iterable[str]) -> None:
    """From now on the weights of these parameters that are zero get no gradient, and so stay zero in training.

    A new optimiser has no momentum for them, and weight decay leaves zero as it is.
    """
    for name in names:
        parameter = model.get_parameter(name)
        mask = parameter.detach() != 0
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient.device))
