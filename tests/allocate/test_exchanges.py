"""Exchanges: never over a bound, nothing changed where enough is used, and no exchange left that uses more."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from _fake_graph import FakeConv, FakeGraph, build
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.allocate import Constraints, exchanges
from secateur.allocate.blocks import Blocks, Bounds, stack
from secateur.allocate.exchanges import exchanged, used
from secateur.allocate.strategies import ALLOCATORS
from secateur.budget import KEYS

CLOSE = 0.99


@st.composite
def networks(draw: st.DrawFn) -> FakeGraph:
    """Small networks, of which one channel may be much: chains with skips to the layer after next."""
    widths = draw(st.lists(st.integers(2, 12), min_size=1, max_size=4))
    convs = []
    for group in range(len(widths)):
        reads = tuple({max(group - 1, 0), max(group - 1 - draw(st.integers(0, 1)), 0)}) if group else ()
        pixels, kernel = draw(st.sampled_from([1, 16, 64])), draw(st.sampled_from([1, 3]))
        convs.append(FakeConv(f"b{group}", reads, group, pixels, kernel, frozen_in=0 if reads else 3))
    convs.append(FakeConv("head", (len(widths) - 1,), None, 1, 1, frozen_out=5))
    return build(widths, convs, norms=False)


LIMITS = st.dictionaries(st.sampled_from(["flops", "params"]), st.floats(0.1, 1.0), min_size=1)


def legal(blocks: Blocks, group: int) -> list[int]:
    return [int(blocks.floors[group]), *blocks.end[blocks.first[group] : blocks.first[group + 1]].tolist()]


def neighbours(blocks: Blocks, widths: np.ndarray) -> list[np.ndarray]:
    """Widths after every single exchange: one group gets more, and at most one other less."""
    found = []
    for more, less in itertools.product(range(len(widths)), repeat=2):
        for up in [w for w in legal(blocks, more) if w > widths[more]]:
            lower = [w for w in legal(blocks, less) if w < widths[less]] if less != more else [up]
            for down in lower:
                found.append(widths.copy())
                found[-1][less] = down
                found[-1][more] = up
    return found


def kept(ranked: list[np.ndarray], widths: np.ndarray) -> float:
    return float(sum(values[:width].sum() for values, width in zip(ranked, widths, strict=True)))


@settings(max_examples=40)
@given(networks(), LIMITS, st.sampled_from([1, 1, 2, 4]), st.integers(0, 99), st.sampled_from(list(ALLOCATORS)))
def test_what_exchanges_leave(
    graph: FakeGraph, budget: dict[str, float], align: int, seed: int, allocator: str
) -> None:
    rng, rules = np.random.default_rng(seed), Constraints(align=align)
    ranked = [-np.sort(-rng.gamma(2.0, size=group.width)) for group in graph.groups]
    blocks = stack(ranked, rules.floors(graph), rules)
    full = graph.costs.evaluate(np.array([group.width for group in graph.groups]))
    bounds = Bounds(graph.costs, {KEYS[key]: share * float(full[KEYS[key]]) for key, share in budget.items()})
    if not bounds.fit(blocks.floors[None])[0]:
        return
    before = ALLOCATORS[allocator](blocks, bounds)
    after = exchanged(blocks, bounds, before, CLOSE)
    assert bounds.fit(after[None])[0]
    assert all(width in legal(blocks, group) for group, width in enumerate(after.tolist()))
    assert after.tolist() == exchanged(blocks, bounds, before, CLOSE).tolist()
    start, end = used(bounds, before[None])[0], used(bounds, after[None])[0]
    if start >= CLOSE:
        assert after.tolist() == before.tolist()
        return
    assert end > start or after.tolist() == before.tolist()
    if end < CLOSE:  # nothing that is one exchange away uses more
        assert max([used(bounds, other[None])[0] for other in neighbours(blocks, after)], default=-1.0) <= end
    enough = [other for other in neighbours(blocks, before) if used(bounds, other[None])[0] >= CLOSE]
    if enough:  # and of those that use enough at once the one that loses least
        assert kept(ranked, after) == pytest.approx(max(kept(ranked, other) for other in enough))


def test_the_reach_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many groups there are, no more exchanges than `_MOST` are looked at, and at least one block each."""
    convs = [FakeConv(f"b{k}", (k - 1,) if k else (), k, 16, 1, frozen_in=0 if k else 3) for k in range(3)]
    graph = build((12, 12, 12), [*convs, FakeConv("head", (2,), None, 1, 1, frozen_out=5)], norms=False)
    blocks = stack([np.ones(12)] * 3, np.ones(3, dtype=np.int64), Constraints())
    bounds, widths = Bounds(graph.costs, {"macs": 0.3 * float(graph.costs.evaluate([12] * 3)["macs"])}), np.full(3, 5)
    sizes = []
    for most in (1, 40, 1 << 14):
        monkeypatch.setattr(exchanges, "_MOST", most)
        graph.costs.calls.clear()
        assert bounds.fit(exchanged(blocks, bounds, widths, 1.1)[None])[0]
        sizes.append(max(graph.costs.calls))
    assert sizes[0] == 9  # 3 groups grow, and alone or with one of 2 others less
    assert sizes[0] < sizes[1] < sizes[2]
