"""A method's plan around a size in code that shows only at the plan's own widths: what it wanted, as far as it can be.

Below the contract. The method's own graph stays as it is, for its state speaks of those groups: a second graph, of the
same network, settles the size (channels are tied or stay), the plan is carried over to it, and its masks are told back
in the method's groups, so that the method's own repair can follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.allocate import Constraints, allocate
from secateur.budget import Budget
from secateur.errors import BudgetError
from secateur.graph import Graph, SizeConflict, trace
from secateur.graph.settled import find_settled, keep_settled
from secateur.plan import Plan, fingerprint
from secateur.surgery import nothing_to_prune


class Replanner:
    """Carries one method's plan over to a graph in which sizes in code are settled."""

    def __init__(self, own: Graph, wanted: Plan, budget: Budget, constraints: tuple[Constraints, Constraints]) -> None:
        """own: the method's graph, whose groups `wanted` speaks of. constraints: the method's; those given, in need."""
        self.own, self.wanted, self.budget, self.constraints = own, wanted, budget, constraints
        self.graph: Graph | None = None

    def around(self, conflict: SizeConflict, plain: nn.Module, inputs: Any) -> tuple[Plan, Plan, str]:
        """The plan for a fresh trace, the same in the method's groups, and a sentence about what settled.

        Args:
            conflict: what the cut of the last plan met. plain: an ordinary copy of the network.

        Raises:
            BudgetError: nothing can be pruned any more, or the budget is out of reach now.
        """
        if self.graph is None:
            self.graph = trace(plain, inputs, attention="head_dim" if self.own.attention == "head_dim" else "heads")
            noted = keep_settled(self.own.settled, self.own.recording.calls)
            for known in find_settled(noted, self.graph.recording.calls):
                self.graph.settle(known)
            if self.own.timing is not None:
                self.graph.attach(self.own.timing)
        said = self.graph.settle(conflict)
        if not self.graph.groups:
            raise BudgetError(nothing_to_prune(self.graph))
        parts = dict(self._parts(self.graph))
        kept = np.concatenate([self.wanted.masks[group.name] for group in self.own.groups])
        worth = kept + self._ranks(plain) / 2  # what was wanted first, heavier weights first among equals
        scores = {name: np.array([worth[ids].mean() for ids in each]) for name, each in parts.items()}
        plan = self._allocated(scores, parts)
        plan.provenance = {**plan.provenance, **self.wanted.provenance}
        plan.provenance["settled"] = keep_settled(self.graph.settled, self.graph.recording.calls)
        plan.architecture = fingerprint(self.graph)
        return plan, self._told_back(plan, parts), said

    def _numbered(self) -> Iterator[tuple[str, int, IntArray, IntArray]]:
        """Every member of the method's groups, with the number of each channel through all of them."""
        first = 0
        for group in self.own.groups:
            for member in group.members:
                yield member.name, member.dim, member.index, np.arange(first, first + group.width)
            first += group.width

    def _parts(self, graph: Graph) -> Iterator[tuple[str, list[IntArray]]]:
        """For every channel of every new group the numbers of the method's channels that it is made of."""
        owners: dict[tuple[str, int], IntArray] = {}
        sizes = graph.tensors()
        for name, dim, index, numbers in self._numbered():
            owner = owners.setdefault((name, dim), np.full(sizes[name].shape[dim], -1, dtype=np.int64))
            owner[index] = numbers[:, None]
        for group in graph.groups:
            rows = [owners[m.name, m.dim][m.index] for m in group.members if (m.name, m.dim) in owners]
            table = np.concatenate(rows, axis=1)
            yield group.name, [np.unique(row[row >= 0]) for row in table]

    def _ranks(self, plain: nn.Module) -> FloatArray:
        """The place of every channel among those of its group by the size of its weights, from 0 up to below 1."""
        tensors = dict(plain.named_parameters())
        total = sum(group.width for group in self.own.groups)
        weight = np.zeros(total)
        for name, dim, index, numbers in self._numbered():
            if name in tensors:
                tensor = tensors[name].detach().abs().double().movedim(dim, 0)
                sums = tensor.reshape(len(tensor), -1).sum(1).cpu().numpy()
                weight[numbers] += sums[index].sum(1)
        ranks, first = np.empty(total), 0
        for group in self.own.groups:
            own = slice(first, first + group.width)
            ranks[own] = weight[own].argsort().argsort() / group.width
            first += group.width
        return ranks

    def _allocated(self, scores: Mapping[str, FloatArray], parts: Mapping[str, list[IntArray]]) -> Plan:
        """A plan within the budget, under the method's own constraints if they allow one."""
        assert self.graph is not None
        own, given = (self._kept(each, parts) for each in self.constraints)
        try:
            return allocate(scores, self.graph, self.budget, own, allocator="global", normalise="none")
        except BudgetError:
            return allocate(scores, self.graph, self.budget, given, allocator="global", normalise="none")

    def _kept(self, constraints: Constraints, parts: Mapping[str, list[IntArray]]) -> Constraints:
        """The constraints, with groups that stay whole by their new names."""
        whole, first = set[int](), 0
        for group in self.own.groups:
            if group.name in constraints.keep:
                whole |= set(range(first, first + group.width))
            first += group.width
        names = [name for name, each in parts.items() if whole & set(np.concatenate(each).tolist())]
        return constraints.keeping(names)

    def _told_back(self, plan: Plan, parts: Mapping[str, list[IntArray]]) -> Plan:
        """The same plan in the method's own groups; what cannot go any more stays."""
        kept = np.ones(sum(group.width for group in self.own.groups), dtype=np.bool_)
        for name, each in parts.items():
            for ids, stays in zip(each, plan.masks[name], strict=True):
                kept[ids] = stays
        masks: dict[str, BoolArray] = {}
        first = 0
        for group in self.own.groups:
            masks[group.name] = kept[first : first + group.width]
            first += group.width
        return Plan(masks, plan.provenance, self.wanted.architecture)


def trial_widths(graph: Graph, seed: int) -> Iterator[dict[str, BoolArray]]:
    """Masks with which a network is cut on trial, to meet sizes in its code early: half of all, few, and at random."""
    generator = np.random.default_rng(seed)
    yield {g.name: generator.permutation(g.width) < -(-g.width // 2) for g in graph.groups}
    yield {g.name: generator.permutation(g.width) < -(-g.width // 8) for g in graph.groups}
    yield {g.name: generator.permutation(g.width) < generator.integers(1, g.width + 1) for g in graph.groups}
