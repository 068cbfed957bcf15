"""ACP: clusters are counted as DBSCAN does, the swarm moves as it is meant to, candidates inherit what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import secateur
from secateur import runs
from secateur.errors import ConfigError
from secateur.methods.acp import Acp
from secateur.methods.acp.density import MeanMaps, cosine_distances, fitting_eps, kinds
from secateur.methods.acp.swarm import ahead, begun, fly, inertia, pulled
from secateur.methods.trials import Shown
from secateur.plan import Plan
from secateur.recipe import Recipe
from secateur.statistics import gather
from secateur.testing import NETWORKS
from secateur.testing.networks import Residual, block
from secateur.training import Silent

NETWORK = NETWORKS[0]


def counted(rows: Any, eps: float) -> int:
    return kinds(cosine_distances(np.asarray(rows, dtype=np.float64)), eps)


def angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1)


# -------------------------------------------------------------------------------------------------------- clustering


def test_multiples_of_one_map_are_one_kind_and_orthogonal_maps_their_own() -> None:
    rows = [[k, 2 * k, 0, 0] for k in (1, 2, 3, 0.5, 7, 11)] + [[0, 0, 5, 0], [0, 0, 0, 1]]
    assert counted(rows, 0.01) == 3
    assert counted([[-k for k in row] if n == 0 else row for n, row in enumerate(rows)], 0.01) == 4  # a sign flips


def test_zero_rows_are_far_from_all_and_each_other() -> None:
    rows = [[k, 0, 0] for k in (1, 2, 3, 4)] + [[0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert counted(rows, 0.01) == 8
    distances = cosine_distances(np.array(rows, dtype=np.float64))
    assert distances[6, 7] == distances[6, 0] == 1
    assert distances[6, 6] == 0


def test_ten_vectors_on_a_fan() -> None:
    fan = angles(*range(0, 40, 4))
    distances = cosine_distances(fan)
    assert distances[0, 1] == pytest.approx(0.002436, abs=1e-6)
    assert distances[0, 2] == pytest.approx(0.009732, abs=1e-6)
    assert [counted(fan, eps) for eps in (0.002, 0.003, 0.0098, 0.011)] == [10, 10, 1, 1]


def test_the_count_falls_with_eps_and_forgets_scale_and_order() -> None:
    generator = np.random.default_rng(3)
    kind = generator.normal(size=(3, 40))[np.arange(22) % 3]
    rows = kind + np.linspace(0.02, 0.8, 22)[:, None] * generator.normal(size=(22, 40))
    grid = np.linspace(0.005, 1.6, 60)
    found = [counted(rows, eps) for eps in grid]
    assert found == sorted(found, reverse=True)
    assert found[0] == 22
    assert found[-1] == 1
    assert len(set(found)) > 6
    shuffled = (rows * generator.uniform(0.1, 9, (22, 1)))[generator.permutation(22)]
    assert [counted(shuffled, eps) for eps in grid] == found


def test_eps_is_the_least_whose_widths_fit() -> None:
    assert fitting_eps(lambda eps: eps >= 0.375) == pytest.approx(0.375, abs=1e-8)
    assert fitting_eps(lambda eps: False) == 2.0


def test_mean_maps_are_those_before_the_norm_over_all_images() -> None:
    net = nn.Sequential(block(3, 6), block(6, 4)).eval()
    graph = secateur.trace(net, torch.zeros(1, 3, 8, 8))
    method = Acp(nn.Sequential(block(3, 6), block(6, 4), nn.Flatten(), nn.Linear(256, 5)), torch.zeros(1, 3, 8, 8),
                 budget="flops=0.7")  # fmt: skip
    graph = method.graph
    maps = MeanMaps({group.name: method._taps(group) for group in graph.groups})
    images = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    gather(method.model, [(images[:3], None), (images[3:], None)], [maps])
    group = graph.groups[0]
    raw = method.model[0][0](images).mean(0).flatten(1)
    wanted = torch.nn.functional.normalize(raw, dim=1).detach()
    assert torch.allclose(torch.from_numpy(maps.rows(group.name)).float(), wanted, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- swarm


def test_where_particles_begin() -> None:
    c, most = np.array([10, 3, 30]), np.array([16, 4, 32])
    assert begun(c, most, 0, np.array([1, -1, 1])).tolist() == [10, 3, 30]
    assert begun(c, most, 1, np.ones(3, dtype=int)).tolist() == [11, 4, 31]
    assert begun(c, most, 4, -np.ones(3, dtype=int)).tolist() == [6, 1, 26]


def test_one_step() -> None:
    x, v, most = np.array([10]), np.array([1.5]), np.array([64])
    assert ahead(x, v, most).tolist() == [13]
    assert pulled(x, v, np.array([12]), np.array([8]), w=0.6, r=0.5) == pytest.approx([0.6561])
    x, v, best = np.array([10, 3]), np.array([-1.9, 2.0]), np.array([60, 3])
    assert ahead(x, v, np.array([64, 4])).tolist() == [6, 4]  # truncated towards zero, and never above what there is
    assert pulled(x, v, best, best, w=0.6, r=1.0).tolist() == [2.0, pytest.approx(0.729 * 1.2)]


def test_inertia_falls() -> None:
    assert [inertia(t, 8) for t in (0, 7)] == pytest.approx([0.6, 0.425])


STAR, FIRST, MOST = np.arange(3, 23), np.full(20, 20), np.full(20, 64)


def near(x: np.ndarray) -> float:
    return -float(((x - STAR) ** 2).sum())


def test_the_swarm_asks_ninety_times_and_beats_its_first_vector() -> None:
    asked: list[np.ndarray] = []

    def fitness(places: list[np.ndarray]) -> list[float]:
        asked.extend(x.copy() for x in places)
        return [near(x) for x in places]

    best, tops = fly(FIRST, MOST, fitness, particles=10, cycles=8, seed=1)
    assert len(asked) == 90
    assert (asked[0] == FIRST).all()
    assert tops == sorted(tops)
    assert tops[-1] == near(best) == max(map(near, asked))
    assert tops[-1] > near(FIRST)
    for number, x in enumerate(asked[10:90]):  # of each particle at most eight dimensions move at a time
        before = asked[10 + number - 10]
        assert (x != before).sum() <= 8
    assert any((a[-1] != b[-1]) for a, b in zip(asked[:10], asked[80:90], strict=True))  # the last one moves, too
    again, _ = fly(FIRST, MOST, fitness, particles=10, cycles=8, seed=1)
    assert (again == best).all()


def one_by_one(particles: int, cycles: int, seed: int) -> tuple[list[list[int]], list[int]]:
    """What a swarm asks, and its best, where each particle moves when the one before it has been answered."""
    asked, swarm = [], []
    best, top = FIRST, -np.inf
    for number in range(particles):
        draw = np.random.default_rng([seed, 0, number])
        x = begun(FIRST, MOST, number, draw.integers(-1, 2, len(FIRST)))
        swarm.append([x, draw.uniform(-2, 2, len(FIRST)), x, near(x)])
        asked.append(x.tolist())
        if near(x) > top:
            best, top = x, near(x)
    for cycle in range(cycles):
        for number, particle in enumerate(swarm):
            x, v, own, fitness = particle
            draw = np.random.default_rng([seed, 1 + cycle, number])
            j = np.sort(draw.permutation(len(FIRST))[:8])
            w, r, x, v = inertia(cycle, cycles), draw.random(), x.copy(), v.copy()
            after = np.clip(np.trunc(x[j] + 2 * v[j]), 1, MOST[j])
            v[j] = np.clip(0.729 * (w * v[j] + 2 * r * (own[j] - x[j]) + 2 * r * (best[j] - x[j])), -2, 2)
            x[j] = after
            asked.append(x.tolist())
            particle[:] = (x, v, x, near(x)) if near(x) > fitness else (x, v, own, fitness)
            if near(x) > top:
                best, top = x, near(x)
    return asked, best.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_particles_that_move_together_go_where_they_went_one_by_one(seed: int) -> None:
    asked: list[list[int]] = []

    def fitness(places: list[np.ndarray]) -> list[float]:
        asked.extend(x.tolist() for x in places)
        return [near(x) for x in places]

    best, _ = fly(FIRST, MOST, fitness, particles=6, cycles=5, seed=seed)
    assert (asked, best.tolist()) == one_by_one(6, 5, seed)


# ------------------------------------------------------------------------------------------------------------ method


def searched(**options: Any) -> tuple[Acp, list[Any], list[tuple[Any, Any]]]:
    batches, kept = list(NETWORK.batches(3, seed=2)), list[Any]()
    method = Acp(NETWORK.make(), NETWORK.inputs(), budget="flops=0.5", **{"particles": 3, "cycles": 1, **options})
    method.search(Shown(batches, cross_entropy, method.model, 0, kept=kept.append))
    return method, kept, batches


def test_a_candidate_inherits_rows_and_the_columns_of_the_layer_before() -> None:
    method, _, _ = searched(norms="new")
    plan = method.plan()
    narrow, wide = method._prepared(method.graph.cut(plan).model), method.model
    first = np.flatnonzero(plan.masks["first.0"])
    stem = np.flatnonzero(plan.masks["stem.0"])
    assert torch.equal(narrow.first[0].weight, wide.first[0].weight[first][:, stem])
    with torch.no_grad():
        wide.stem[1].weight.mul_(3)
    whole = method._prepared(method.plain())
    assert float(whole.stem[1].weight.detach().max()) == 1  # norms begin anew
    x = torch.randn(2, 3, 8, 8)
    whole.stem[1].weight.data.mul_(3)
    assert torch.allclose(whole.eval()(x), wide.eval()(x), atol=1e-6)


def test_norms_may_be_kept() -> None:
    method, _, _ = searched()
    with torch.no_grad():
        method.model.stem[1].weight.mul_(3)
    whole = method._prepared(method.plain())
    assert torch.equal(whole.stem[1].weight, method.model.stem[1].weight)
    with pytest.raises(ConfigError, match=r"leave norms out"):
        Acp(Residual(), NETWORK.inputs(), budget="flops=0.5", fitness="recalibrate", norms="kept")


def test_the_result_has_widths_filters_and_weights_of_the_best_prepared() -> None:
    method, kept, batches = searched()
    best = max(kept, key=lambda row: (row["accuracy"], -row["trial"]))
    assert method.plan().widths == best["about"]["widths"]
    assert [row["epochs"] for row in kept] == [1] * len(kept)
    small = method.finish()
    trials = Shown(batches, cross_entropy, method.model, 0)
    trials._train(twin := method._prepared(method.graph.cut(method.plan()).model), 1, best["trial"])
    for (name, found), wanted in zip(small.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(found, wanted), name
    assert method.plan().provenance["trials"] == len(kept) <= 6
    assert any(note.startswith("The swarm (eps ") for note in method.notes)


def test_widths_that_several_layers_make_stay_whole_if_the_budget_allows() -> None:
    method, _, _ = searched()
    assert method.plan().masks["stem.0"].all()
    assert any("(residual streams) stay whole: stem.0" in note for note in method.notes)
    narrow = Acp(Residual(), NETWORK.inputs(), budget="flops=0.03")
    assert any("are searched too, as the budget is out of reach otherwise" in note for note in narrow.notes)


def test_settings_take_effect() -> None:
    method, kept, _ = searched(inherit="l1", fitness="recalibrate", eps=0.5)
    assert {row["epochs"] for row in kept} == {0}
    assert method.plan().provenance["eps"] == 0.5
    mask = method.plan().masks["neck.0"]
    norms = method.model.neck[0].weight.detach().abs().flatten(1).sum(1).numpy()
    assert norms[mask].min() >= norms[~mask].max()


def test_a_repair_of_another_plan_is_said() -> None:
    method, _, _ = searched()
    other = Plan({name: np.ones_like(mask) for name, mask in method.plan().masks.items()})
    before = method.plain()
    method.repair(model := method.plain(), other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert method.notes[-1].startswith("The cut keeps other channels than the best candidate")


def test_nothing_tried_is_refused() -> None:
    with pytest.raises(ConfigError, match="has tried nothing"):
        Acp(NETWORK.make(), NETWORK.inputs(), budget="flops=0.5").finish()


# --------------------------------------------------------------------------------------------------------------- runs

RECIPE = """
name: acp
model: zoo:resnet8
data: {name: digits, train_images: 200, batch_size: 50}
method: {name: acp, particles: 3, cycles: 1}
budget: flops=0.5
train: {epochs: 1, lr: 0.05}
search: {images: 64, batch: 32}
export: {onnx: false, pt2: false}
latency: null
engine: {device: cpu}
"""


class Dying(Silent):
    """Ends the process, as far as this process can, at the second trial."""

    def trial(self, done: int, total: int | None, best: str) -> None:
        if done == 2:
            raise KeyboardInterrupt


def test_a_run_that_is_interrupted_in_the_search_ends_as_one_that_is_not(tmp_path: Path) -> None:
    runs.start(Recipe.parse(RECIPE), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        runs.start(Recipe.parse(RECIPE), tmp_path / "cut", progress=Dying())
    assert (tmp_path / "cut" / "search.jsonl").read_text().count("\n") == 3
    outcome = runs.resume(tmp_path / "cut")
    for name in ("search.jsonl", "plan.json", "model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert outcome.results["verification"]["exact"]
    assert 0.4 < outcome.results["remaining"]["macs"] <= 0.5
