"""CATRO: the worked numbers, properties and traps of its specification, its two stages, and real networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.allocate import Constraints
from secateur.allocate.blocks import Bounds, stack
from secateur.allocate.strategies import uniform
from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.graph import trace
from secateur.graph.readers import observed
from secateur.methods.catro import submodular
from secateur.methods.catro.class_scatter import ClassScatter, Sample, scatter
from secateur.methods.catro.method import CATRO, fisher, ranked_by_ratio, scatters, trace_ratio
from secateur.methods.catro.submodular import greedy, shares, utility
from secateur.models import create
from secateur.statistics.gather import gather
from secateur.testing import NETWORKS

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def chain(seed: int = 0) -> nn.Sequential:
    """Convolutions with norms, a flattening, and a linear layer; five classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip


def images(count: int = 60, classes: int = 5, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose class moves one colour, in unequal numbers."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator) % classes
    x = torch.randn(count, 3, 8, 8, generator=generator)
    x[:, 0] += labels[:, None, None] / 2
    return x, labels


def batches(count: int = 60, size: int = 20, **options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = images(count, **options)
    return list(zip(x.split(size), y.split(size), strict=True))


def seen(model: nn.Module, shown: list[Any], *, pool: int = 4, samples: int = 10**9, **options: Any) -> Any:
    """b and w of every channel of every group."""
    graph = trace(model, IMAGE)
    tables, _ = observed(graph)
    sample = Sample.of(shown, samples)
    collector = ClassScatter(tables, sample.counts.values(), graph.widths().tolist(), pool=pool, **options)
    gather(model, sample.few(shown), [collector])
    return collector.result


def two_pass(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """b, w and t of [samples, channels, d], as they are defined, every class as if it had as many samples."""
    f, classes = features.double(), labels.unique()
    mean = torch.stack([f[labels == k].mean(0) for k in classes]).mean(0)
    between, within, total = torch.zeros(3, f.shape[1]).double()
    for k in classes:
        own, each = f[labels == k], len(f) / len(classes)
        between += each * (own.mean(0) - mean).square().sum(1)
        within += each * (own - own.mean(0)).square().mean(0).sum(1)
        total += each * (own - mean).square().mean(0).sum(1)
    return between, within, total


def sums(features: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, ...]:
    f = features.double()
    counts = torch.bincount(labels, minlength=classes).double()
    totals = torch.zeros(classes, *f.shape[1:]).double().index_add_(0, labels, f)
    squares = torch.zeros(classes, f.shape[1]).double().index_add_(0, labels, f.square().sum(2))
    return totals, squares, counts


def method(model: nn.Module | None = None, budget: str = "flops=0.5", **settings: Any) -> CATRO:
    return CATRO(chain() if model is None else model, IMAGE, budget=budget, **settings)


# ------------------------------------------------------------------------------------------------------- scatter


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_one_pass_is_two_passes(offset: float) -> None:
    """Properties 1 and 2; a mean far from zero does not matter in double precision."""
    torch.manual_seed(0)
    features, labels = torch.randn(50, 7, 4).double() + offset, torch.randint(0, 4, (50,))
    b, w = scatter(*sums(features, labels, 4))
    between, within, total = two_pass(features, labels)
    slack = 1e-10 if offset == 0 else 1e-6
    torch.testing.assert_close(b, between, rtol=slack, atol=0)
    torch.testing.assert_close(w, within, rtol=slack, atol=0)
    torch.testing.assert_close(b + w, total, rtol=slack, atol=0)


def test_without_differences_there_is_no_scatter() -> None:
    """Property 8: the same features in all classes give b = 0; one feature a class gives w = 0."""
    labels = torch.arange(4).repeat_interleave(3)
    same = torch.tensor([1.0, 2.0, 4.0]).repeat(4)[:, None, None]
    b, w = scatter(*sums(same, labels, 4))
    assert float(b) == pytest.approx(0, abs=1e-12)
    assert float(w) > 1
    assert trace_ratio(b.numpy(), w.numpy(), 1).ratios[-1] == pytest.approx(0, abs=1e-12)
    b, w = scatter(*sums(labels.double()[:, None, None], labels, 4))
    assert float(w) == pytest.approx(0, abs=1e-12)
    assert float(b) > 1
    assert np.isfinite(trace_ratio(b.numpy(), w.numpy(), 1).scores).all()


def test_classes_count_alike_whatever_their_numbers() -> None:
    """A class seen four times as often, with the same mean and scatter, changes nothing but the common factor."""
    torch.manual_seed(2)
    features, labels = torch.randn(12, 5, 2), torch.arange(12) % 3
    common = torch.cat([features, *[features[labels == 0]] * 3]), torch.cat([labels, *[labels[labels == 0]] * 3])
    for mine, true in zip(scatter(*sums(*common, 3)), scatter(*sums(features, labels, 3)), strict=True):
        torch.testing.assert_close(mine / 24, true / 12)
    x, y = images(60, classes=3)
    rare = torch.cat([(y > 0).nonzero()[:, 0], (y == 0).nonzero()[:4, 0]])
    one = method()
    one.collect([(x[rare], y[rare])], F.cross_entropy)
    most = int(torch.bincount(y[rare]).max())
    assert one.notes == [f"Classes were seen in 4 to {most} samples; each counts alike."]


def test_names_order_and_copies_of_samples() -> None:
    """Property 9."""
    torch.manual_seed(1)
    features, labels = torch.randn(40, 6, 2), torch.randint(0, 4, (40,))
    b, w = scatter(*sums(features, labels, 4))
    order = torch.randperm(40)
    renamed = torch.tensor([2, 0, 3, 1])[labels]
    for other in (sums(features[order], labels[order], 4), sums(features, renamed, 4)):
        for mine, true in zip(scatter(*other), (b, w), strict=True):
            torch.testing.assert_close(mine, true)
    twice = scatter(*sums(features.repeat(2, 1, 1), labels.repeat(2), 4))
    torch.testing.assert_close(twice[0], 2 * b)
    torch.testing.assert_close(twice[1], 2 * w)


def test_what_is_collected_is_what_layers_read() -> None:
    """Hooks against features taken by hand, for maps that are pooled, maps that are not, and a flattening."""
    model, (x, y) = chain(), images()
    b, w = seen(model, batches())
    with torch.no_grad():
        maps = [model[:3](x), model[:5](x), model[:8](x)]
    wanted = []
    for values in maps:
        pooled = F.adaptive_avg_pool2d(values, min(4, values.shape[2])).flatten(2)
        between, within, total = two_pass(pooled, y)
        wanted.append(torch.stack([between, within]) / total.sum())  # shares of the scatter
    np.testing.assert_allclose([b, w], torch.cat(wanted, 1), rtol=1e-6, atol=1e-9)


def test_batches_do_not_matter_and_nothing_stays() -> None:
    model = chain()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, many = seen(model, batches(size=60)), seen(model, batches(size=7))
    np.testing.assert_allclose(one, many, rtol=1e-6, atol=1e-9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_halves_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with half of the batches each, one of which never sees some of the layers' inputs."""
    model, shown = chain(), batches(size=15)
    graph = trace(model, IMAGE)
    tables, _ = observed(graph)
    sample = Sample.of(shown, 10**9)
    few = list(sample.few(shown))

    def half(part: list[Any]) -> ClassScatter:
        collector = ClassScatter(tables, sample.counts.values(), graph.widths().tolist())
        collector.total, total = lambda: None, collector.total  # type: ignore[method-assign]
        gather(model, part or few, [collector])
        collector.total = total  # type: ignore[method-assign]
        return collector

    first, second, whole = half(few[::2]), half(few[1::2]), half(few)
    whole.total()
    for name, sums_ in first._sums.items():
        sums_.totals += second._sums[name].totals
        sums_.squares += second._sums[name].squares
    first.total()
    np.testing.assert_allclose(first.result, whole.result, rtol=1e-12)


def test_a_process_without_batches_has_sums_of_the_same_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    import secateur.methods.catro.class_scatter as module

    tables = {"a": np.arange(3), "b": np.arange(3)}
    idle = ClassScatter(tables, [2, 2], [3])
    monkeypatch.setattr(module, "world", lambda: 2)
    monkeypatch.setattr(module, "global_max", lambda lengths: torch.tensor([12, 0]))
    idle._agree()
    assert {name: tuple(s.totals.shape) for name, s in idle._sums.items()} == {"a": (2, 12)}
    assert idle._sums["a"].squares.shape == (2, 3)


def test_a_tensor_that_two_layers_read_counts_once() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1)
            self.head = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.stem(x))
            return self.head((self.a(x) + self.b(x)).mean((2, 3)))

    torch.manual_seed(0)
    b, w = seen(Fork(), batches())
    assert (b + w)[:6].sum() == pytest.approx(1)
    assert (b + w)[6:].sum() == pytest.approx(1)


def test_a_depthwise_channel_is_seen_before_and_behind() -> None:
    """Members of different sizes count as shares of the scatter at each."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    tables, others = observed(trace(model, IMAGE))
    assert set(tables) == {"2", "4", "8"}
    assert not others
    b, w = seen(model, batches())
    assert (b + w)[:6].sum() == pytest.approx(2)


def test_maps_are_pooled_coarser_where_sums_would_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    import secateur.methods.catro.class_scatter as module

    monkeypatch.setattr(module, "MOST", 5 * 60 * 4)
    tables = {"a": np.arange(60)}
    assert ClassScatter(tables, [2] * 5, [60], pool=4).pool == 2
    assert ClassScatter(tables, [2] * 50, [60], pool=4).pool == 1
    one = method()
    one.collect(batches(), F.cross_entropy)
    assert "Maps were averaged to a side of 2: sums over classes would take too much memory." in one.notes


# --------------------------------------------------------------------------------------------------- trace ratio


def ratio(b: np.ndarray, w: np.ndarray, chosen: Any) -> float:
    return float(b[list(chosen)].sum() / w[list(chosen)].sum())


def test_the_iteration_finds_the_best_set() -> None:
    """Properties 3 and 6: against all subsets; lam never falls; J falls with k, from max b/w to sum b / sum w."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        b, w = rng.exponential(size=(2, 9)) + 1e-3
        best = []
        for k in range(1, 10):
            found = trace_ratio(b, w, k)
            best.append(max(ratio(b, w, s) for s in itertools.combinations(range(9), k)))
            assert ratio(b, w, found.chosen) == pytest.approx(best[-1], rel=1e-9)
            assert found.ratios[-1] == pytest.approx(best[-1], rel=1e-9)
            assert len(found.chosen) == k
            assert list(found.ratios) == sorted(found.ratios)
            assert len(found.ratios) <= 8
            assert set(np.argsort(-found.scores, kind="stable")[:k]) == set(found.chosen)
        assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(best))
        assert best[0] == pytest.approx((b / w).max())
        assert best[-1] == pytest.approx(b.sum() / w.sum())


def test_ratios_of_single_channels_are_not_the_solution() -> None:
    """Property 4."""
    b, w = np.array([9, 4, 0.01]), np.array([3, 2, 0.01])
    assert ratio(b, w, [0, 1]) == 2.6
    found = trace_ratio(b, w, 2)
    assert found.chosen.tolist() == [0, 2]
    assert found.ratios[-1] == pytest.approx(2.9934, abs=1e-4)


def test_the_largest_between_are_not_the_solution() -> None:
    """Property 5."""
    b, w = np.array([4.0, 3, 2]), np.array([1.0, 3, 1])
    found = trace_ratio(b, w, 2)
    assert found.chosen.tolist() == [0, 2]
    assert found.ratios == (1.75, 3.0)


def test_scale() -> None:
    """Property 7."""
    rng = np.random.default_rng(3)
    b, w = rng.exponential(size=(2, 8))
    assert trace_ratio(9 * b, 9 * w, 4).chosen.tolist() == trace_ratio(b, w, 4).chosen.tolist()
    assert trace_ratio(9 * b, 9 * w, 4).ratios[-1] == pytest.approx(trace_ratio(b, w, 4).ratios[-1])
    scale = np.ones(8)
    scale[2] = 25.0
    np.testing.assert_allclose(fisher(b * scale, w * scale, 1e-8), fisher(b, w, 1e-8))
    assert ratio(b * scale, w * scale, range(8)) != pytest.approx(ratio(b, w, range(8)))


def test_dead_channels_go_first() -> None:
    """The trap: b = w = 0 would score 0, above every channel whose ratio is below lam."""
    b, w = np.array([9.0, 4.0, 0.0, 2.0, 1e-12]), np.array([3.0, 2.0, 0.0, 2.0, 1e-12])
    assert {2, 4} & set(trace_ratio(b, w, 2).chosen.tolist())
    assert scatters(b, w, 1e-8).tolist() == [True, True, False, True, False]
    scores, lam = ranked_by_ratio(b, w, 2, 1e-8)
    assert np.argsort(-scores, kind="stable")[:3].tolist() == [0, 1, 3]
    assert lam == pytest.approx(2.6)
    assert fisher(b, w, 1e-8)[[2, 4]].tolist() == [0.0, 0.0]
    scores, _ = ranked_by_ratio(b, w, 4, 1e-8)  # more than are alive
    assert np.isfinite(scores).all()
    scores, lam = ranked_by_ratio(np.zeros(3), np.zeros(3), 2, 1e-8)
    assert lam == 0
    assert np.isfinite(scores).all()


def test_copies_are_both_kept() -> None:
    """A limit of the criterion: redundancy is not modelled."""
    b, w = np.array([9.0, 9.0, 4.0]), np.array([1.0, 1.0, 1.0])
    assert trace_ratio(b, w, 2).chosen.tolist() == [0, 1]


# -------------------------------------------------------------------------------------------------------- widths


class Costs:
    """Two layers in a row: what a channel costs depends on the other width."""

    def evaluate(self, widths: Any) -> dict[str, np.ndarray]:
        n = np.asarray(widths, dtype=np.float64)
        macs = 3 * n[..., 0] + n[..., 0] * n[..., 1] + 2 * n[..., 1]
        return dict.fromkeys(("macs", "params", "activations", "peak_activations"), macs)


def best_widths(ranked: list[np.ndarray], bounds: Bounds, beta: float) -> float:
    pairs = np.array(list(itertools.product(range(1, 5), repeat=2)))
    return max(utility([r[:n] for r, n in zip(ranked, p, strict=True)], beta) for p in pairs[bounds.fit(pairs)])


def test_the_utility_is_monotone_and_submodular() -> None:
    """Property 10, first half."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        s = shares(rng.exponential(size=8))
        order = rng.permutation(8)
        small, large, more = order[:2], order[:5], order[6]

        def gain(chosen: np.ndarray, s: np.ndarray = s, more: int = more) -> float:
            return utility([np.append(s[chosen], s[more])], 50) - utility([s[chosen]], 50)

        assert gain(small) >= gain(large) - 1e-12 >= -1e-12
    assert shares(np.zeros(4)).tolist() == [0.25] * 4
    assert shares(np.array([1e300, 3e300])).tolist() == [0.25, 0.75]


def test_greed_is_near_the_best() -> None:
    """Property 10, second half: at least 0.9 of the best of all widths, in each of 100 trials."""
    worst = 1.0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        ranked = [np.sort(shares(rng.exponential(size=4)))[::-1] for _ in range(2)]
        blocks = stack(ranked, np.array([1, 1]), Constraints())
        bounds = Bounds(Costs(), {"macs": float(rng.uniform(10, 34))})
        widths = greedy(blocks, bounds, ranked, 50)
        assert bounds.fit(widths[None]).all()
        even = uniform(blocks, bounds)
        found, other = (utility([r[:n] for r, n in zip(ranked, ns, strict=True)], 50) for ns in (widths, even))
        assert found >= other - 1e-9 or bounds.one(widths) > bounds.one(even)
        worst = min(worst, found / best_widths(ranked, bounds, 50))
    assert worst >= 0.9


def test_the_heap_is_as_greedy_as_looking_at_all() -> None:
    """Old values at the top of the heap are looked at again; single steps against the plain algorithm."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ranked = [np.sort(shares(rng.exponential(size=10)))[::-1] for _ in range(2)]
        blocks, limit = stack(ranked, np.array([1, 1]), Constraints()), float(rng.uniform(30, 130))
        bounds, widths = Bounds(Costs(), {"macs": limit}), np.array([1, 1])
        while True:
            found = []
            for k in range(2):
                wider = widths + np.eye(2, dtype=np.int64)[k]
                if widths[k] < 10 and bounds.fit(wider[None])[0]:
                    gain = utility([r[:n] for r, n in zip(ranked, wider, strict=True)], 50)
                    gain -= utility([r[:n] for r, n in zip(ranked, widths, strict=True)], 50)
                    found.append((gain / float((bounds.one(wider) - bounds.one(widths))[0]), -k))
            if not found:
                break
            widths[-max(found)[1]] += 1
        mine = greedy(blocks, bounds, ranked, 50)
        u = [utility([r[:n] for r, n in zip(ranked, ns, strict=True)], 50) for ns in (mine, widths)]
        assert u[0] >= u[1] - 1e-12 or (bounds.one(mine) / limit).max() > (bounds.one(widths) / limit).max()


def test_the_budget_is_not_used_up_at_any_price() -> None:
    """Of exchanges that leave less of the budget only those count that cost less than a hundredth of U."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        ranked = [np.sort(shares(rng.exponential(size=4)))[::-1] for _ in range(2)]
        blocks = stack(ranked, np.array([1, 1]), Constraints())
        bounds = Bounds(Costs(), {"macs": float(rng.uniform(10, 34))})
        stacks = submodular._Stacks(blocks, ranked, 50)
        climbed = submodular._climb(blocks, bounds, stacks, blocks.floors)
        best = max(stacks.utility(climbed), stacks.utility(uniform(blocks, bounds)))
        assert stacks.utility(greedy(blocks, bounds, ranked, 50)) >= 0.99 * best


def test_a_plan_says_what_is_unspent() -> None:
    torch.manual_seed(0)
    coarse = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    one = CATRO(coarse, IMAGE, budget="flops=0.5")
    one.collect(batches(), F.cross_entropy)
    plan = one.plan()
    used = one.graph.cost(plan).macs / one.graph.cost().macs / 0.5
    assert used < 0.99
    assert plan.provenance["unspent"].startswith(f"{used:.1%} of the budget is used: no exchange of channels")
    assert "unspent" not in method_plan(budget="flops=0.5").provenance


# -------------------------------------------------------------------------------------------------------- samples


def test_of_every_class_as_many() -> None:
    shown = batches(100)
    sample = Sample.of(shown, 6)
    few = list(sample.few(shown))
    assert torch.bincount(torch.cat([y for _, y in few])).tolist() == [6] * 5
    x, y = images(100)
    first = x[y == 3][:6]
    mine = torch.cat([inputs[labels == 3] for inputs, labels in few])
    assert torch.equal(mine, first)
    again = Sample.of(batches(100, size=7), 6)
    assert again == sample


def test_classes_that_are_left_out_have_no_say() -> None:
    """Property 11, and the network for a part of its task."""
    shown = batches(100)
    noisy = [(torch.where((y < 2)[:, None, None, None], x, 100 * torch.randn_like(x)), y) for x, y in shown]
    one, other = (method(classes=[0, 1]) for _ in range(2))
    one.collect(shown, F.cross_entropy)
    other.collect(noisy, F.cross_entropy)
    assert one.plan() == other.plan()
    assert one.plan().provenance["classes"] == 2
    every = method()
    every.collect(shown, F.cross_entropy)
    assert any((every.plan().masks[name] != mask).any() for name, mask in one.plan().masks.items())


def test_a_class_with_one_sample_is_left_out() -> None:
    x, y = images(40)
    y[y == 4] = 3
    y[0] = 4
    alone = method()
    alone.collect([(x, y)], F.cross_entropy)
    assert alone.notes[0] == "1 classes with a single sample were left out."
    without = method()
    without.collect([(x[1:], y[1:])], F.cross_entropy)
    assert alone.plan().masks.keys() == without.plan().masks.keys()
    assert alone.plan() == without.plan()


@pytest.mark.parametrize(
    ("shown", "error", "word"),
    [
        (lambda: iter(()), ConfigError, "data are empty"),
        (lambda: [torch.zeros(2, 3, 8, 8)], ConfigError, "no whole numbers"),
        (lambda: [(IMAGE, torch.rand(2, 5))], ConfigError, "no whole numbers"),
        (lambda: [(IMAGE, torch.tensor([[0, 1], [1, 1]]))], ConfigError, "of several labels none is the class"),
        (lambda: [(IMAGE, torch.zeros(3, dtype=torch.long))], ConfigError, "no whole numbers"),
        (lambda: [(IMAGE, torch.tensor([1, 1]))], ConfigError, "at least two classes"),
        (lambda: [(IMAGE, torch.tensor([1, 2]))], ConfigError, "of 2 classes 0 have two samples"),
    ],
)
def test_data_that_do_not_serve(shown: Callable[[], Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=f"(?i){word}"):
        method().collect(shown(), F.cross_entropy)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="two different classes"):
        method(classes=[1, 1])
    some = method(classes=[1, 7])
    with pytest.raises(ConfigError, match=r"Class 7 does not occur in the data shown, which has 0, 1, 2, 3, 4"):
        some.collect(batches(), F.cross_entropy)
    with pytest.raises(BudgetError, match=r"With r_min=0\.9, t"):
        method(r_min=0.9)
    with pytest.raises(ConfigError, match="has seen no data"):
        method().finish()
    with pytest.raises(ModelError, match="every group must stay whole"):
        CATRO(chain(), IMAGE, budget="flops=1", constraints=Constraints(max_ratio=0.0))


# ------------------------------------------------------------------------------------------------ the whole method


def test_later_layers_are_looked_at_behind_the_pruned_ones() -> None:
    """Masks in the pass are what the cut network computes."""
    model, x = chain(), images()[0]
    kept = np.ones(36, dtype=np.bool_)
    kept[[0, 3, 4]] = False
    wanted = np.zeros(36, dtype=np.bool_)
    wanted[12:28] = True
    b, w = seen(model, batches(), wanted=wanted, kept=kept)
    assert not b[:12].any()
    assert not w[28:].any()
    twin = chain()
    with torch.no_grad():
        twin[3].weight[:, [0, 3, 4]] = 0
        pooled = F.adaptive_avg_pool2d(twin[:5](x), 4).flatten(2)
    between, within, total = two_pass(pooled, images()[1])
    np.testing.assert_allclose(b[12:28], between / total.sum(), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(w[12:28], within / total.sum(), rtol=1e-5, atol=1e-9)


def test_passes_over_the_data() -> None:
    class Counted(list[Any]):
        times = 0

        def __iter__(self) -> Any:
            Counted.times += 1
            return super().__iter__()

    for settings, wanted in (({"refresh": 1}, 2), ({"refresh": 2}, 3), ({"refresh": None}, 4), ({"sweeps": 2}, 7)):
        Counted.times = 0
        one = method(budget="flops=0.25", **settings)
        one.collect(Counted(batches()), F.cross_entropy)
        assert Counted.times == wanted  # the targets, stage 1, and what is looked at anew
        assert one.plan().widths == method_plan(budget="flops=0.25").widths  # of which the second stage has no say
    assert len(one.ratios) == 3
    assert min(one.ratios.values()) > 0  # of groups that stay whole as well


def method_plan(**settings: Any) -> secateur.Plan:
    one = method(**settings)
    one.collect(batches(), F.cross_entropy)
    return one.plan()


def test_other_allocators_find_the_widths() -> None:
    one = method(allocator="uniform")
    one.collect(batches(), F.cross_entropy)
    kept = [n / g.width for n, g in zip(one.plan().widths.values(), one.graph.groups, strict=True)]
    assert max(kept) - min(kept) < 0.2
    noted = method(normalise="mean")
    assert "it takes another allocator" in noted.notes[0]


def test_channels_that_tell_classes_apart_stay() -> None:
    """A network in which every second channel of the first layer sees nothing but noise."""
    model = chain()
    with torch.no_grad():
        model[0].weight[::2, 0] = 0  # the colour that tells the class
        model[0].weight[1::2] = 0
        model[0].weight[1::2, 0, 1, 1] = torch.tensor([1.0, -1.0] * 3)
        model[0].bias[1::2] = torch.tensor([0.5, 3.0] * 3)
    one = CATRO(model, IMAGE, budget="flops=0.5", constraints=Constraints(keep=("3", "5")))
    one.collect(batches(200), F.cross_entropy)
    mask = one.plan().masks["0"]
    assert mask[1::2].sum() > mask[::2].sum()
    assert mask.sum() <= 7


def test_a_residual_network() -> None:
    torch.manual_seed(0)
    model = create("resnet8_b")
    x, y = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    one = CATRO(model, x[:1], budget="flops=0.5")
    one.collect([(x, y)], F.cross_entropy)
    one.finish()
    assert one.result is not None
    assert 0.495 <= one.result.reached("flops") <= 0.5
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    for name_, score in one.score().items():
        mask = one.plan().masks[name_]
        assert score[mask].min() >= score[~mask].max(initial=-np.inf)


def test_streams_stay_whole_while_the_budget_allows() -> None:
    network = NETWORKS[0]

    def kept(budget: str, **settings: Any) -> tuple[int, str]:
        method = CATRO(network.make(), network.inputs(), budget=budget, **settings)
        method.collect(network.batches(2), F.cross_entropy)
        return method.plan().widths["stem.0"], " ".join(method.notes)

    width, said = kept("flops=0.7")
    assert width == 24
    assert "Channels that several layers make together stay whole: stem.0" in said
    width, said = kept("flops=0.1")
    assert width < 24
    assert "cannot be met with residual streams whole" in said
    width, said = kept("flops=0.7", streams=True)
    assert width < 24
    assert "together" not in said
