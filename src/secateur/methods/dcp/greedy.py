"""Greedy forward selection: a layer is emptied and filled again with the units whose gradients ask for them most.

    L(V) = L_M(V) + lambda L_S(V)          L_M = |Y - XVᵀ - c|² / 2Q     L_S: a loss further on in the network
    G = dL/dV at V, where the units not chosen are zero; those with the largest norm of G join, with their former
    weights; V is fitted anew on those chosen; and so on.

A unit is a set of kernels: all those that read one channel, or a single one. L_M comes from second moments, exactly and
without a pass; L_S from passes through the part of the network behind the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from secateur._protocols import BoolArray
from secateur.statistics.samples import PatchSums, least_squares

#: How often SGD is tried with a smaller rate.
_TRIALS = 3
#: The share of the first loss that counts as none.
_NOTHING = 1e-10


class Reconstruction:
    """L_M as a function of the weights [outputs, columns] of one layer; the constant is the best one, or zero.

    places: N where places count by weights, and moments are over the sum of these. offset: is added to the value.
    """

    def __init__(self, moments: PatchSums, *, constant: bool, places: int | None = None, offset: float = 0.0) -> None:
        self.moments, self.constant, self._offset = moments, constant, offset
        self._xx, self._xy = moments.covariances(constant=constant)
        self._energy = moments.energy(constant=constant)
        self.outputs = moments.y.numel() * (1.0 if places is None else places / max(moments.count, 1e-300))

    def value(self, weight: torch.Tensor) -> float:
        """L_M."""
        w = self._split(weight)
        quadratic = (torch.bmm(w, self._xx) * w).sum() - 2 * (w * self._xy.mT).sum()
        return max(self._energy + float(quadratic), 0.0) / (2 * self.outputs) + self._offset

    def gradient(self, weight: torch.Tensor) -> torch.Tensor:
        """dL_M/dV [outputs, columns]."""
        return (torch.bmm(self._split(weight), self._xx) - self._xy.mT).flatten(0, 1) / self.outputs

    def shift(self, weight: torch.Tensor) -> torch.Tensor:
        """The best constant [outputs]."""
        m = self.moments
        if not self.constant:
            return torch.zeros_like(m.y).flatten()
        return ((m.y - torch.einsum("goc,gc->go", self._split(weight), m.x)) / m.count).flatten()

    def fit(self, weight: torch.Tensor, mask: torch.Tensor, ridge: float) -> torch.Tensor:
        """The best weights on the entries [outputs, columns] that stay, the same columns in all rows of a group."""
        rows = mask.unflatten(0, (len(self._xx), -1))[:, 0]
        return least_squares(self.moments, weight, rows, ridge=ridge, constant=self.constant)[0]

    def _split(self, weight: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = weight.double().unflatten(0, (len(self._xx), -1))
        return result


@dataclass(frozen=True)
class Part:
    """A layer under choice.

    units: [outputs, inputs] the unit of every kernel; -1: of none, it stays; -2: it went before. former: old weights.
    goal: of a layer that is not the first, what the loss further on makes of its weights, where moments tell.
    """

    name: str
    layer: Any
    units: torch.Tensor
    former: torch.Tensor
    goal: Reconstruction | None = None

    def open(self, kept: torch.Tensor) -> torch.Tensor:
        """Which weights may be other than zero, in their shape. kept: mask of units."""
        mask = torch.cat([kept, kept.new_zeros(1), kept.new_ones(1)])[self.units]
        return mask.view(*mask.shape, *[1] * (self.former.dim() - 2)).expand_as(self.former)

    def scores(self, gradient: torch.Tensor, count: int, how: str) -> torch.Tensor:
        """The norm of G of every unit: of its kernels' norms the sum, or the root of the sum of squares."""
        norms = gradient.double().flatten(2).square().sum(2) if gradient.dim() > 2 else gradient.double().square()
        values = norms.sqrt() if how == "sum" else norms
        index = torch.where(self.units < 0, count, self.units).flatten()
        total = values.new_zeros(count + 1).index_add_(0, index, values.flatten())[:count]
        return total if how == "sum" else total.sqrt()


@dataclass(frozen=True)
class GreedyRules:
    """How the choice goes. weight: lambda; norm: of scores; epochs, rate: of SGD on the joint loss after each round;
    batches: of passes."""

    weight: float
    norm: Literal["sum", "frobenius"]
    epochs: int
    rate: float
    ridge: float
    batches: int


class GreedySelection:
    """The choice for one layer, and for others that read the same channels.

    parts: the first is reconstructed; the others take part with the loss further on alone.
    further: L_S of one batch as things stand, a mean over samples. shift: adds a constant to the first layer's answer.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        units: int,
        goal: Reconstruction,
        further: Callable[[int], torch.Tensor],
        shift: Callable[[torch.Tensor], None],
        rules: GreedyRules,
    ) -> None:
        self.parts, self.units, self.goal, self.rules = parts, units, goal, rules
        self._further, self._move = further, shift
        self._constant = torch.zeros_like(goal.moments.y).flatten()
        self.kept = torch.zeros(units, dtype=torch.bool, device=parts[0].former.device)
        self._rate = rules.rate
        self.losses: list[float] = []
        self.added = np.zeros(units, dtype=np.int64)  # the round in which each unit joined
        self.order: list[int] = []  # units as they joined

    def run(self, count: int, per_round: int) -> BoolArray:
        """Choose `count` units, so many in each round; V is left in the layers, and `losses` has one value more."""
        for part in self.parts:
            part.layer.weight.copy_(part.former * part.open(self.kept))
        self._balance()
        while True:
            value, gradients = self._look()
            self.losses.append(value)
            left = count - int(self.kept.sum())
            if left <= 0:
                return np.asarray(self.kept.cpu().numpy())
            self._add(gradients, min(per_round, left))
            self._refit()

    def settle(self, kept: BoolArray) -> None:
        """Fit V for units that have been chosen before."""
        self.kept = torch.from_numpy(kept).to(self.kept.device)
        for part in self.parts:
            part.layer.weight.copy_(part.former * part.open(self.kept))
        self._refit()

    def restore(self, weights: Sequence[torch.Tensor]) -> None:
        """Put weights, one tensor a part, and the constant back."""
        for part, weight in zip(self.parts, weights, strict=True):
            part.layer.weight.copy_(weight)
        self._move(-self._constant)
        self._constant = torch.zeros_like(self._constant)

    def _look(self) -> tuple[float, list[torch.Tensor]]:
        """L and its gradient for every part, over all batches."""
        first = self.parts[0].layer.weight
        value = self.goal.value(first.flatten(1))
        gradients = [torch.zeros_like(part.former, dtype=torch.float64) for part in self.parts]
        gradients[0] += self.goal.gradient(first.flatten(1)).view_as(first)
        for part, total in zip(self.parts[1:], gradients[1:], strict=True):
            if part.goal is not None:
                value += part.goal.value(part.layer.weight.flatten(1))
                total += part.goal.gradient(part.layer.weight.flatten(1)).view_as(total)
        if self.rules.weight:
            share = self.rules.weight / self.rules.batches
            for number in range(self.rules.batches):
                loss, found = self._backward(number)
                value += share * loss
                for total, gradient in zip(gradients, found, strict=True):
                    total += share * gradient
        return value, gradients

    @torch.enable_grad()
    def _backward(self, number: int) -> tuple[float, list[torch.Tensor]]:
        weights = [part.layer.weight for part in self.parts]
        for weight in weights:
            weight.requires_grad_(True)
        try:
            loss = self._further(number)
            reached = loss.requires_grad  # not where what the loss sees does not come through these layers
            found = torch.autograd.grad(loss, weights, allow_unused=True) if reached else [None] * len(weights)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
        pairs = zip(found, weights, strict=True)
        return float(loss.detach()), [torch.zeros_like(w) if g is None else g for g, w in pairs]

    def _add(self, gradients: Sequence[torch.Tensor], number: int) -> None:
        """Units that the gradients ask for most join; once nothing is left to gain, those of the largest weights."""
        if self.losses[-1] <= _NOTHING * self.losses[0]:  # the gradients are rounding errors
            gradients = [part.former for part in self.parts]
        scores = torch.zeros(self.units, dtype=torch.float64, device=self.kept.device)
        for part, gradient in zip(self.parts, gradients, strict=True):
            size = float(part.former.double().norm()) if len(self.parts) > 1 else 1.0
            scores += part.scores(gradient, self.units, self.rules.norm) / max(size, 1e-30)
        scores[self.kept] = -1.0  # after a fit by SGD their gradients are small and not zero
        best = torch.argsort(scores, descending=True, stable=True)[:number]
        self.kept[best] = True
        self.added[best.cpu().numpy()] = self.added.max(initial=0) + 1
        self.order += best.tolist()
        fresh = torch.zeros_like(self.kept)
        fresh[best] = True
        for part in self.parts:
            joins = part.open(fresh) & ~part.open(torch.zeros_like(fresh))
            part.layer.weight.copy_(torch.where(joins, part.former, part.layer.weight))

    def _refit(self) -> None:
        """L_M to its minimum on what is chosen, then SGD on L."""
        part, goal = self.parts[0], self.goal
        mask = part.open(self.kept)
        flat = part.layer.weight.flatten(1)
        better = goal.fit(flat, mask.flatten(1), self.rules.ridge)
        part.layer.weight.copy_((better.to(flat).view_as(mask)) * mask)
        self._balance()
        if self.rules.weight and self.rules.epochs:
            self._descend()

    def _descend(self) -> None:
        """SGD on L; with a smaller rate from then on, or not at all, where it would raise the loss.

        A network of small weights in evaluation, whose norms no longer take scales away, has steep losses.
        """
        before = [part.layer.weight.clone() for part in self.parts]
        value = self._value()
        for _ in range(_TRIALS):
            self._steps()
            self._balance()
            if self._value() <= value:
                return
            for part, weight in zip(self.parts, before, strict=True):
                part.layer.weight.copy_(weight)
            self._balance()
            self._rate /= 4

    def _value(self) -> float:
        """L as things stand, without gradients."""
        further = [float(self._further(number)) for number in range(self.rules.batches)]
        return self.goal.value(self.parts[0].layer.weight.flatten(1)) + self.rules.weight * float(np.mean(further))

    def _steps(self) -> None:
        weights = [part.layer.weight for part in self.parts]
        masks = [part.open(self.kept) for part in self.parts]
        optimiser = torch.optim.SGD(weights, self._rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
        for _ in range(self.rules.epochs):
            for number in range(self.rules.batches):
                _, found = self._backward(number)
                found = [self.rules.weight * gradient for gradient in found]
                found[0] = found[0] + self.goal.gradient(weights[0].flatten(1)).view_as(weights[0]).to(weights[0])
                for weight, gradient, mask in zip(weights, found, masks, strict=True):
                    weight.grad = gradient * mask
                optimiser.step()
                for weight, mask in zip(weights, masks, strict=True):
                    weight.mul_(mask)
        for weight in weights:
            weight.grad = None

    def _balance(self) -> None:
        """Move the constant to where it is best for the weights as they are."""
        best = self.goal.shift(self.parts[0].layer.weight.flatten(1))
        self._move(best - self._constant)
        self._constant = best
