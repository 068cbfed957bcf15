"""Sizes in code: what moves together for them is the least that is needed, and everything else stays free."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _harness import assert_sound, halve, masked_error, randomise, shapes
from structures._case import Net, conv, head
from torch import nn

import secateur
from secateur import Plan, trace
from secateur.errors import PlanError
from secateur.graph import SizeConflict
from secateur.graph.settling import concerned, remedies
from secateur.surgery import settled_plan

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class C2f(nn.Module):
    """Halves of a width, one of which goes on; how they are taken is told."""

    def __init__(self, width: int, halves: Callable[[C2f, torch.Tensor], Any]) -> None:
        super().__init__()
        self.c, self.halves = width // 2, halves
        self.cv1, self.m, self.cv2 = conv(width, width, 1), conv(self.c, self.c), conv(3 * self.c, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.halves(self, self.cv1(x))
        return self.cv2(torch.cat([a, b, self.m(b).relu()], 1))


def two_blocks(halves: Callable[[C2f, torch.Tensor], Any]) -> Net:
    net = Net(
        lambda m, x: m.head(m.d(m.b(m.a(m.stem(x))))), stem=conv(3, 16), a=C2f(16, halves), b=C2f(16, halves),
        d=conv(16, 16), head=head(16),
    )  # fmt: skip
    return randomise(net)


HALVES = {
    "a pair of one attribute": lambda m, y: y.split((m.c, m.c), 1),
    "a list of one attribute": lambda m, y: torch.split(y, [m.c] * 2, dim=1),
    "an attribute and the rest": lambda m, y: y.split([m.c, y.shape[1] - m.c], 1),
    "narrow": lambda m, y: (y.narrow(1, 0, m.c), y.narrow(1, m.c, m.c)),
}


@pytest.mark.parametrize("spelling", HALVES)
def test_only_the_stated_parts_are_tied(spelling: str) -> None:
    free = trace(two_blocks(lambda m, y: y.chunk(2, 1)), IMAGE)
    result = secateur.prune(two_blocks(HALVES[spelling]), IMAGE, budget="flops=0.5")
    assert len(result.graph.groups) >= len(free.groups)
    assert {f.name for f in result.graph.frozen} <= {"head.2"}
    assert result.verification.passed


class Shifted(nn.Module):
    """A fraction of the width there is goes another way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.a, self.b = way, conv(3, 24), conv(24, 16)

    def parts(self, x: torch.Tensor) -> torch.Tensor:
        c = x.shape[1]
        if self.way == "one : three":
            return torch.cat([x[:, : c // 4].roll(1, -1), x[:, c // 4 :]], 1)
        if self.way == "one : one : six":
            fold, y = c // 8, torch.zeros_like(x)
            y[:, :fold, 1:], y[:, fold : 2 * fold, :-1] = x[:, :fold, :-1], x[:, fold : 2 * fold, 1:]
            y[:, 2 * fold :] = x[:, 2 * fold :]
            return y
        first, rest = x.split([c // 3, c - c // 3], 1)  # one : two
        return torch.cat([first.flip(-1), rest], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.parts(F.relu(self.a(x)))).relu()


@pytest.mark.parametrize(("way", "at_once"), [("one : three", 4), ("one : one : six", 8), ("one : two", 3)])
def test_a_fraction_of_a_width_ties_runs(way: str, at_once: int) -> None:
    model = randomise(nn.Sequential(Shifted(way), head(16)))
    graph = trace(model, IMAGE)
    plan, made = uneven(graph)
    assert graph.settled[-1].done.name == "parts of one width stay in proportion"
    (group,) = [g for g in graph.groups if g.name == "0.a"]
    assert (group.width, graph.tensors()["0.a.weight"].shape[0]) == (24 // at_once, 24)
    assert all(m.index.shape[1] == at_once for m in group.members if m.name == "0.a.weight" and m.dim == 0)
    assert graph.verify(made, plan).passed


def uneven(graph: secateur.Graph, seed: int = 0, **options: Any) -> tuple[Plan, Any]:
    """A plan of random widths, so that nothing is in proportion by chance, and its cut."""

    def make(graph: secateur.Graph) -> Plan:
        generator = np.random.default_rng(seed)
        masks = {}
        for group in graph.groups:
            kept = max(1, int(generator.integers(group.width // 3, group.width)))
            masks[group.name] = generator.permutation(group.width) < kept
        return Plan(masks)

    return settled_plan(graph, make, **options)


class Filled(nn.Module):
    """A shortcut filled up to the width an attribute says."""

    def __init__(self, inputs: int, outputs: int, way: int) -> None:
        super().__init__()
        self.i, self.o, self.way, self.c = inputs, outputs, way, conv(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, *size = x.shape
        if self.way == 0:
            more = torch.zeros(b, self.o - x.shape[1], *size)
        elif self.way == 1:
            more = x.new_zeros((b, self.o - x.size(1), *size))
        elif self.way == 2:
            more = torch.full((b, self.o - x.shape[1], *size), 0.0) if self.o > self.i else x[:, :0]
        return F.relu(self.c(x) + torch.cat([x, more], 1))


@pytest.mark.parametrize("way", range(3))
def test_an_attribute_less_a_width_follows(way: int) -> None:
    model = randomise(nn.Sequential(conv(3, 8), Filled(8, 12, way), Filled(12, 20, way), head(20)))
    graph = trace(model, IMAGE)
    for seed in range(2):
        plan, made = uneven(graph, seed)
        assert graph.settled == []
        assert [made.model[k].o for k in (1, 2)] == [made.model[k].c.out_channels for k in (1, 2)]
    assert graph.verify(made, plan).passed


class Area(nn.Module):
    """Attention that states three times the width of its input, and calls it the width of its result."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv, self.p = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        y = self.qkv(x).reshape(2 * b, n // 2, c * 3)
        q, k, v = y.view(2 * b, n // 2, self.heads, 3 * self.size).transpose(1, 2).chunk(3, -1)
        y = (((q * 0.3) @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2)
        return x + self.p(y.reshape(b, n, c))


def test_a_multiple_of_a_width_goes_in_proportion() -> None:
    net = Net(
        lambda m, x: m.head(m.b(m.a(m.stem(x).flatten(2).transpose(1, 2))).transpose(1, 2)), stem=conv(3, 24),
        a=Area(24, 4), b=Area(24, 6), head=nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 5)),
    )  # fmt: skip
    model = randomise(net)
    result = secateur.prune(model, IMAGE, budget="flops=0.6")
    assert not {f.name for f in result.graph.frozen} & {"a.qkv", "a.p", "stem"}
    assert result.verification.passed
    assert result.model.a.heads < 4


def test_rows_and_columns_of_one_attribute() -> None:
    class Transform(nn.Module):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.k, self.c, self.f1, self.f2 = k, nn.Conv1d(k, 12, 1), nn.Linear(12, k), nn.Linear(k, k * k)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.f2(self.f1(self.c(x).relu().amax(2)).relu()).view(-1, self.k, self.k)
            return torch.bmm(x.transpose(1, 2), y).transpose(1, 2)

    net = Net(
        lambda m, x: m.o(m.d(m.t(m.a(x.flatten(2)).relu())).relu().amax(2)), a=nn.Conv1d(3, 8, 1), t=Transform(8),
        d=nn.Conv1d(8, 16, 1), o=nn.Linear(16, 5),
    )  # fmt: skip
    graph = trace(randomise(net), IMAGE)
    plan, made = uneven(graph)
    assert {"t.c", "t.f1", "d"} <= {g.name for g in graph.groups}  # f1 is as wide, but it is not what the code states
    assert graph.verify(made, plan).passed


class Late(nn.Module):
    """Halves in the middle of a width: fine for as long as both ends lose as many."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), conv(8, 12), head(20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        half = x.shape[1] // 2
        return self.c(torch.cat([self.b(x[:, :half]), x[:, half:]], 1))


def test_a_conflict_that_shows_only_at_other_widths() -> None:
    model = randomise(Late())
    graph = trace(model, IMAGE)
    assert [g.width for g in graph.groups if g.name.startswith("a")] == [8, 8]
    made = []

    def make(graph: secateur.Graph) -> Plan:
        made.append([g.width for g in graph.groups])
        masks = {g.name: np.arange(g.width) < g.width - 2 for g in graph.groups}
        if len(made) > 1:
            return Plan(masks)
        return Plan(masks | {"a": np.arange(8) < 3})

    made.append([])  # the second plan is an even one
    even = settled_plan(trace(model, IMAGE), make)
    made.clear()
    assert even[1].model.a.out_channels == 12  # by chance
    notes: list[str] = []
    plan, cut = settled_plan(graph, make, notes=notes)
    assert len(made) == 2
    assert notes == [str(conflict) for conflict in graph.settled]
    assert "written in code" in notes[0]
    assert cut.model.a.out_channels % 2 == 0
    assert graph.verify(cut, plan).passed


@pytest.mark.parametrize("seed", range(4))
def test_prune_never_ends_in_a_conflict(seed: int) -> None:
    result = halve(randomise(Late()), IMAGE, seed, 0.3 + seed / 10)
    assert_sound(result, IMAGE)
    assert masked_error(result, IMAGE) <= 1e-4


def test_a_plan_keeps_what_was_done() -> None:
    model = two_blocks(HALVES["a pair of one attribute"])
    result = secateur.prune(model, IMAGE, budget="flops=0.5")
    assert [len(entry) for entry in result.plan.provenance["settled"]] == [7]
    again = secateur.apply(copy.deepcopy(model), IMAGE, result.plan, verify=False)
    assert shapes(again.model) == shapes(result.model)
    assert again.settled == result.settled
    result.plan.provenance["settled"] = [result.plan.provenance["settled"][0][:4]]
    with pytest.raises(PlanError, match="size in code"):
        secateur.apply(copy.deepcopy(model), IMAGE, result.plan, verify=False)


def test_a_network_that_calls_less_the_second_time() -> None:
    class Caches(nn.Module):
        """Makes its anchors in the first run and keeps them, as detectors do."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.anchors = two_blocks(HALVES["a pair of one attribute"]), None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.anchors is None:
                self.anchors = torch.arange(4).float().add(1).mean()
            return self.body(x) * self.anchors

    fresh = Caches().eval()
    result = secateur.prune(fresh, IMAGE, budget="flops=0.5")
    used = copy.deepcopy(fresh)
    used(IMAGE)
    assert result.settled
    again = secateur.apply(used, IMAGE, result.plan)
    assert shapes(again.model) == shapes(result.model)
    assert again.settled == result.settled


def test_a_size_that_is_a_number_freezes_only_what_it_says() -> None:
    net = Net(
        lambda m, x: m.head(m.c(m.b(F.relu(m.a(x)).view(2, 2, 8, 8, 8).transpose(1, 2).flatten(1, 2)))),
        a=conv(3, 16), b=conv(16, 12), c=conv(12, 10), head=head(10),
    )  # fmt: skip
    graph = trace(randomise(net), IMAGE)
    plan, made = uneven(graph)
    assert {"b", "c"} <= {g.name for g in graph.groups}
    assert any("a size is written in code (view" in f.reason for f in graph.frozen if f.name == "a")
    assert graph.verify(made, plan).passed


def test_settling_says_which_call_it_was_about() -> None:
    graph = trace(two_blocks(HALVES["a pair of one attribute"]), IMAGE)
    (at,) = [k for k, call in enumerate(graph.recording.calls) if call.name.endswith("split_with_sizes")][:1]
    said = graph.settle(SizeConflict(at, "a", "split_with_sizes", "split_sizes is 3 and must be 4"))
    assert said.endswith("split_sizes is 3 and must be 4; the parts it states stay equal.")
    parts = graph.recording.calls[at].expects
    assert all(
        np.array_equal(graph.solution.component[a.axis], graph.solution.component[b.axis]) for a, b in pairwise(parts)
    )


def test_a_remedy_of_which_nothing_is_known_is_taken_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut that meets another size first, as DETR's `d_model`, tells nothing of what would have happened later."""
    graph = trace(two_blocks(HALVES["a pair of one attribute"]), IMAGE)
    (at,) = [k for k, call in enumerate(graph.recording.calls) if call.name.endswith("split_with_sizes")][:1]
    asked: list[int] = []

    def earlier(*given: object) -> None:
        asked.append(1)
        if len(asked) <= reach:
            raise SizeConflict(at - 1, "a", "convolution", "another size")

    monkeypatch.setattr(importlib.import_module("secateur.graph.trace"), "check", earlier)
    conflict = SizeConflict(at, "a", "split_with_sizes", "split_sizes is 3 and must be 4")
    reach = 2  # both cuts of the first remedy
    calls = concerned(graph.recording, dict(graph.model.named_modules()), at)
    names = [remedy.name for remedy in remedies(graph.recording, graph.solution, calls, conflict.detail)][:3]
    shown = graph._choose(calls, conflict.detail)
    assert shown is not None
    assert shown.number > 0, names
    asked.clear()
    reach = 10**9  # nothing is ever known: the one that leaves most is better than none
    unknown = graph._choose(calls, conflict.detail)
    assert unknown is not None


class Heads(nn.Module):
    """Attention over positions whose heads and features are told by attributes; of two heads one may be left."""

    def __init__(self, width: int, dim: int, way: str) -> None:
        super().__init__()
        self.way, self.n_heads, self.head_dim = way, width // dim, dim
        self.to_qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, places, _ = x.shape
        split = (batch, places, self.n_heads, self.head_dim)
        q, k, v = (t.reshape(split).permute(0, 2, 1, 3) for t in self.to_qkv(x).chunk(3, -1))
        if self.way == "einsum":
            found = torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)
        elif self.way == "einsum of one product":
            found = (q @ k.transpose(-1, -2)).softmax(-1) @ v + 0 * torch.einsum("bhid,bhid->bhi", q, k).unsqueeze(-1)
        else:
            found = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.merge(found.permute(0, 2, 1, 3).reshape(batch, places, -1))


def two_stages(way: str) -> Net:
    """Of 2 and 4 heads of 8 features: a quarter of the wider stage's width is as large as a head."""
    net = Net(
        lambda m, x: m.head(m.b(m.down(m.a(m.stem(x).flatten(2).transpose(1, 2))))).mean(1),
        stem=conv(3, 16), a=Heads(16, 8, way), down=nn.Linear(16, 32), b=Heads(32, 8, way), head=nn.Linear(32, 5),
    )  # fmt: skip
    return randomise(net)


@pytest.mark.parametrize("way", ["einsum", "einsum of one product", "product"])
def test_heads_that_come_down_to_one_cost_no_other_channels(way: str) -> None:
    graph = trace(two_stages(way), IMAGE)
    before = sum(group.width > 1 for group in graph.groups)
    plan, cut = halved(graph)
    assert graph.verify(cut, plan).passed
    assert sum(group.width > 1 for group in graph.groups) == before  # heads stay where they must, their features go
    assert {f.name for f in graph.frozen} <= {"head"}
    assert graph.cost(plan).macs < 0.4 * graph.cost().macs


def halved(graph: secateur.Graph) -> tuple[Plan, Any]:
    """Half of every group, when sizes in code have been settled."""
    for _ in range(9):
        plan = Plan({g.name: np.arange(g.width) < (g.width + 1) // 2 for g in graph.groups})
        try:
            return plan, graph.cut(plan)
        except SizeConflict as conflict:
            graph.settle(conflict)
    raise AssertionError("settling does not end")
