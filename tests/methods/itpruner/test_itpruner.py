"""ITPruner: the dependence of layers, the published program and its widths, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.errors import BudgetError, ConfigError, InputError
from secateur.graph import trace
from secateur.methods.itpruner.dependence import (
    Grams,
    alphas,
    beta_for,
    first_images,
    nhsic,
    rbf,
    sights,
    totals,
)
from secateur.methods.itpruner.method import ITPruner, restricted_norms
from secateur.methods.itpruner.solvers import Program, as_published, project, scale, solve_program
from secateur.plan import Plan
from secateur.statistics.gather import gather
from secateur.testing.networks import NETWORKS

PUBLISHED = [44, 35, 71, 71, 145, 104, 145, 290, 205, 325, 432, 429, 469]


def _gram(x: torch.Tensor) -> torch.Tensor:
    x = x.double().flatten(1)
    return x @ x.T


def _layers(n: int = 12, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 7, generator=generator, dtype=torch.float64)
    other = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return [x, x.tanh() @ torch.randn(7, 4, generator=generator, dtype=torch.float64) + 0.3 * other[:, :4], other]


# --------------------------------------------------------------------------------------------------- the dependence


def test_worked_numbers_of_three_images() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0]])
    near, none = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [0.0]])
    found = nhsic([_gram(x), _gram(near), _gram(none)])
    assert found[0, 1] == pytest.approx(0.964286, abs=1e-6)
    assert found[0, 2] == pytest.approx(0.0, abs=1e-12)


def test_it_is_linear_cka_of_centred_features() -> None:
    layers = _layers()
    found = nhsic([_gram(x) for x in layers])
    a, b = (x - x.mean(0) for x in layers[:2])
    wanted = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert found[0, 1] == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_symmetric_one_with_itself_and_blind_to_scale_shift_and_turns(kernel: str, estimator: str) -> None:
    layers = _layers()
    turn = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64))[0]
    found = nhsic([_gram(x) for x in layers], kernel, estimator)
    assert np.array_equal(found, found.T)
    assert found.diagonal().tolist() == [1.0] * 3
    assert (np.abs(found) <= 1).all()
    assert estimator == "unbiased" or (found >= 0).all()
    moved = [_gram(-2.5 * layers[0] @ turn + torch.arange(7)), *(_gram(x) for x in layers[1:])]
    np.testing.assert_allclose(nhsic(moved, kernel, estimator), found, atol=1e-10)


def test_the_unbiased_estimate_is_that_of_song() -> None:
    """[tr KL + 1ᵀK1 1ᵀL1 / (n-1)(n-2) - 2 1ᵀKL1 / (n-2)] / n(n-3) of kernels without their diagonals."""

    def hsic(k: torch.Tensor, other: torch.Tensor) -> float:
        n, one = len(k), torch.ones(len(k), dtype=torch.float64)
        k, other = k - k.diagonal().diag(), other - other.diagonal().diag()
        whole = (k @ other).trace() + (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
        return float((whole - 2 * (one @ k @ other @ one) / (n - 2)) / (n * (n - 3)))

    a, b, _ = (_gram(x) for x in _layers())
    for kernel, (k, other) in {"linear": (a, b), "rbf": (rbf(a), rbf(b))}.items():
        wanted = hsic(k, other) / (hsic(k, k) * hsic(other, other)) ** 0.5
        assert nhsic([a, b], kernel, "unbiased")[0, 1] == pytest.approx(wanted, rel=1e-10)  # type: ignore[arg-type]


def test_the_rbf_kernel_is_as_wide_as_the_median_distance() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])
    squares = torch.tensor([[0.0, 1, 9], [1, 0, 4], [9, 4, 0]], dtype=torch.float64)  # their median is 1
    torch.testing.assert_close(rbf(_gram(x)), torch.exp(-squares / 2))


def test_a_copy_of_a_layer_adds_one_to_its_twin() -> None:
    layers = _layers()
    before = totals(nhsic([_gram(x) for x in layers]))
    after = totals(nhsic([_gram(x) for x in [*layers, 3 * layers[1] + 1]]))
    assert after[1] - before[1] == pytest.approx(1.0, abs=1e-12)


def test_importance() -> None:
    assert totals(np.eye(3)).tolist() == [0.0] * 3  # without itself
    h = np.array([2.0, 1.0, 1.0])
    np.testing.assert_allclose(alphas(h, 4.0), np.exp([-2.0, -1.0, -1.0]))
    assert alphas(h, 0.0).tolist() == [1.0] * 3
    np.testing.assert_allclose(alphas(h[::-1], 4.0), alphas(h, 4.0)[::-1])
    alpha = alphas(h, beta_for(h, 6.0))
    assert alpha.max() / alpha.min() == pytest.approx(6.0)
    assert beta_for(np.ones(3), 6.0) == 0.0
    assert alphas(np.zeros(2), 5.0).tolist() == [1.0, 1.0]  # nothing depends on anything


# ------------------------------------------------------------------------------------------------------ the program


def _vgg(alpha: np.ndarray) -> tuple[Program, np.ndarray]:
    """The authors' coefficients of VGG-16 on CIFAR-10, 100M operations wanted.

    Products of convolutions; 5 operations for each normalised and rectified element, 2 for each pooled one, 3 for the
    average, 4 for a norm and twice the products of the first linear layer.
    """
    widths = np.array([64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512], dtype=float)
    sides = np.array([32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2], dtype=float)
    single = 5 * widths * sides**2
    single[0] += 27 * widths[0] * sides[0] ** 2
    for layer in (1, 3, 6, 9):
        single[layer] += 2 * widths[layer] * (sides[layer] / 2) ** 2
    single[12] += widths[12] * (3 + 2 * 512 + 4)
    pairs = 9 * widths[:-1] * widths[1:] * sides[1:] ** 2

    def cost(p: np.ndarray) -> np.ndarray:
        return (p @ single + (p[:, :-1] * p[:, 1:]) @ pairs)[:, None]

    return Program(alpha, np.full(13, 0.01), cost, np.array([100e6])), widths


def test_the_counter_of_the_published_vgg() -> None:
    program, _ = _vgg(np.zeros(13))
    assert program.cost(np.ones((1, 13)))[0, 0] == 315_168_256


@pytest.mark.parametrize(
    "alpha",
    [np.zeros(13), np.full(13, 1e-8), *(np.random.default_rng(k).uniform(0, 1e-8, 13) for k in range(3))],
    ids=["nothing", "1e-8", "random", "random again", "and again"],
)
def test_published_widths_whatever_the_scores(alpha: np.ndarray) -> None:
    """At the released size of alpha the scores do not count: the published vector comes out for any of them."""
    program, widths = _vgg(alpha)
    assert np.around(widths * as_published(program)).astype(int).tolist() == PUBLISHED


def test_scores_that_count_set_whole_layers_to_nothing() -> None:
    program, widths = _vgg(np.random.default_rng(0).uniform(0, 1, 13))
    found = np.around(widths * as_published(program)).astype(int)
    assert (found == 0).sum() >= 2


def test_the_projection_gives_the_published_widths_within_a_channel() -> None:
    program, widths = _vgg(np.full(13, 0.3))
    calls = []
    counted = Program(program.alpha, program.least, lambda p: calls.append(len(p)) or program.cost(p), program.limits)
    found = np.around(widths * project(counted)).astype(int)
    wanted = np.array(PUBLISHED)
    wanted[[8, 12]] = [204, 468]
    assert found.tolist() == wanted.tolist()
    assert calls.count(26) == 4  # gradients, both sides of 13 layers at once


def _product(alpha: list[float], limit: float = 0.25) -> Program:
    return Program(np.array(alpha), np.zeros(2), lambda p: (p[:, 0] * p[:, 1])[:, None], np.array([limit]))


def test_a_bilinear_budget_is_not_convex() -> None:
    """F = p1 p2 <= 1/4: from (1, 1) the solver ends at the worst point of the boundary, or in a corner."""
    np.testing.assert_allclose(as_published(_product([1.0, 1.0])), [0.5, 0.5], atol=1e-4)
    np.testing.assert_allclose(as_published(_product([1.0, 0.9])), [1.0, 0.25], atol=1e-4)
    assert solve_program(_product([1.0, 1.0])).sum() == pytest.approx(1.25, abs=1e-3)  # the best: a corner


def test_what_is_at_its_least_share_takes_no_part_in_steps() -> None:
    """F = p1 + p2 <= 0.6 with p1 >= 0.5: (1, 1) -> (0.3, 0.3), clipped to (0.5, 0.3) -> (0.5, 0.1), in two steps."""
    gradients = []

    def cost(p: np.ndarray) -> np.ndarray:
        gradients.append(len(p) == 4)  # both sides of two shares at once
        return p.sum(1)[:, None]

    found = project(Program(np.ones(2), np.array([0.5, 0.0]), cost, np.array([0.6])))
    np.testing.assert_allclose(found, [0.5, 0.1], atol=1e-6)
    assert sum(gradients) == 2


def test_gradients_are_exact_for_products_and_squares() -> None:
    """A trunk gives squares: F = p1 + 2 p1 p2 + 3 p2²."""
    program = Program(
        np.ones(2), np.zeros(2), lambda p: (p[:, 0] + 2 * p[:, 0] * p[:, 1] + 3 * p[:, 1] ** 2)[:, None], np.ones(1)
    )
    np.testing.assert_allclose(program.gradient(np.array([0.3, 0.7])), [[2.4, 4.8]], rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 0.9), st.floats(1.1, 4.0))
def test_what_the_projection_promises(seed: int, part: float, factor: float) -> None:
    """Within the budget, which is used; equal importance is none; more importance never makes a layer narrower."""
    rng = np.random.default_rng(seed)
    single, pairs = rng.uniform(0, 1, 5), rng.uniform(0, 1, 4)

    def cost(p: np.ndarray) -> np.ndarray:
        return (p @ single + (p[:, :-1] * p[:, 1:]) @ pairs)[:, None]

    def solved(alpha: np.ndarray) -> np.ndarray:
        return project(Program(alpha, np.full(5, 0.05), cost, part * cost(np.ones((1, 5)))[0]))

    alpha = rng.uniform(0.5, 2.0, 5)
    found = solved(alpha)
    assert part * (1 - 1e-3) <= cost(found[None])[0, 0] / cost(np.ones((1, 5)))[0, 0] <= part * (1 + 2e-6)
    np.testing.assert_allclose(solved(np.full(5, 7.0)), solved(np.ones(5)))
    layer = int(rng.integers(5))
    assert solved(alpha * np.where(np.arange(5) == layer, factor, 1.0))[layer] >= found[layer] - 1e-5


@pytest.mark.parametrize("solver", [project, solve_program, scale])
def test_a_budget_that_is_met_leaves_everything(solver: Callable[[Program], np.ndarray]) -> None:
    np.testing.assert_allclose(solver(_product([1.0, 0.5], 1.0)), [1.0, 1.0], atol=1e-6)


def test_of_two_bounds_both_are_met() -> None:
    program = Program(np.array([1.0, 2.0]), np.full(2, 0.05), lambda p: p.copy(), np.array([0.5, 0.8]))
    np.testing.assert_allclose(project(program), [0.5, 0.8], atol=1e-5)


def test_scaled_shares_follow_importance() -> None:
    program = Program(np.array([2.0, 1.0, 0.1]), np.full(3, 0.3), lambda p: p.sum(1, keepdims=True), np.array([1.5]))
    np.testing.assert_allclose(scale(program), [0.8, 0.4, 0.3], atol=1e-6)


# --------------------------------------------------------------------------------------------------- in a network


def test_filters_are_ranked_by_inputs_that_stay() -> None:
    """Rows (.1, 3, .1), (1, 0, 1), (.9, 1, .2) with inputs 0 and 2 kept: filter 1 is the largest, not 0."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(),
                          nn.Conv2d(3, 2, 1, bias=False))  # fmt: skip
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, 1.0, 2.0]).view(3, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([[0.1, 3, 0.1], [-1, 0, 1], [0.9, 1, 0.2]]).view(3, 3, 1, 1))
    graph = trace(model, torch.zeros(1, 1, 2, 2))
    norms = restricted_norms(graph, {"0": 2, "2": 1})
    np.testing.assert_allclose(norms["2"], [0.2, 2.0, 1.1], rtol=1e-6)
    np.testing.assert_allclose(restricted_norms(graph, {"0": 3, "2": 1})["2"], [3.2, 2.0, 2.1], rtol=1e-6)
    np.testing.assert_allclose(norms["0"], [3.0, 1.0, 2.0])


def _shown(model: nn.Module, x: torch.Tensor, layer: str) -> torch.Tensor:
    kept = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return kept[0]


def test_kernels_are_of_what_the_first_reader_gets() -> None:
    """Behind norm and activation; a hidden width in front of its depthwise convolution; one pass, one batch."""
    network = next(n for n in NETWORKS if n.name == "depthwise")
    model = network.make()
    x = torch.cat([images for images, _ in network.batches(2)])
    graph = trace(model, network.inputs())
    places = sights(graph)
    assert {name: place.module for name, place in places.items()} == {"stem.0": "body.0", "body.0": "body.3"}
    grams = Grams(places, 16, torch.device("cpu"))
    gather(model, [(x, None)], [grams])
    for name, place in places.items():
        seen = _shown(model, x, place.module).double().flatten(1)
        torch.testing.assert_close(grams.kernels[name], seen @ seen.T, rtol=1e-5, atol=1e-6)


def test_a_group_in_a_concatenation_is_looked_at_by_itself() -> None:
    network = next(n for n in NETWORKS if n.name == "concatenation")
    graph = trace(network.make(), network.inputs())
    places = sights(graph)
    assert (places["first.0"].module, places["first.0"].index.tolist()) == ("second.0", list(range(16, 32)))
    assert places["second.0"].module == "head.fc"


def test_a_group_that_no_layer_reads_is_looked_at_where_it_is_made() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Conv2d(3, 6, 1), nn.Parameter(torch.ones(6, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x).mean((2, 3)) @ self.out

    (place,) = sights(trace(Net(), torch.zeros(2, 3, 4, 4))).values()
    assert (place.module, place.reads, place.index.tolist()) == ("first", False, list(range(6)))


def test_images_are_joined_across_batches() -> None:
    x = torch.arange(10.0).view(10, 1)
    whole, seen = first_images([(part, None) for part in x.split(4)], 9, torch.device("cpu"))
    assert (seen, whole.flatten().tolist()) == (9, list(range(9)))
    nested, seen = first_images([({"a": part, "b": torch.tensor(2)}, None) for part in x.split(4)], 100, x.device)
    assert (seen, nested["a"].flatten().tolist(), int(nested["b"])) == (10, list(range(10)), 2)


def test_rows_that_are_no_images_are_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu()[:-1])

    grams = Grams(sights(trace(Net(), torch.zeros(3, 3))), 5, torch.device("cpu"))
    with pytest.raises(InputError, match="4 rows of 5 images"):
        gather(Net(), [(torch.randn(5, 3), None)], [grams])


def _pruner(name: str = "residual", count: int = 4, **options: object) -> ITPruner:
    network = next(n for n in NETWORKS if n.name == name)
    made = ITPruner(network.make(), network.inputs(), **{"budget": "flops=0.5", **options})  # type: ignore[arg-type]
    if count:
        made.collect(network.batches(count), lambda output, target: output.sum())
    return made


def test_the_budget_is_the_cost_model() -> None:
    """F(1) is what the network costs, and F at whole widths what the network cut to them does."""
    made = _pruner()
    program = made._program(np.ones(len(made.graph.groups)))
    assert program.cost(np.ones((1, len(made.graph.groups))))[0, 0] == made.graph.cost().macs
    plan = made.plan()
    counts = made.graph.widths(plan)
    narrow = made.graph.cut(plan).model
    found = trace(narrow, made.example_inputs).cost().macs
    assert program.cost((counts / made.graph.widths())[None])[0, 0] == pytest.approx(found, rel=1e-12)


def test_what_depends_least_keeps_the_largest_share() -> None:
    made = _pruner(spread=50.0)
    alpha, _ = made.importance()
    even, uneven = _pruner(beta=0.0).shares(), made.shares()
    first, last = max(alpha, key=alpha.__getitem__), min(alpha, key=alpha.__getitem__)
    assert uneven[first] >= even[first]
    assert uneven[last] <= even[last]
    assert uneven != even


def test_the_order_of_images_and_their_batches_does_not_matter() -> None:
    network = NETWORKS[0]
    x = torch.cat([images for images, _ in network.batches(4)])
    found = []
    for order, size in ((torch.arange(32), 32), (torch.arange(32).flip(0), 5)):
        made = _pruner(count=0)
        made.collect([(part, None) for part in x[order].split(size)], lambda output, target: output.sum())
        found.append(made.dependence)
    np.testing.assert_allclose(found[0], found[1], atol=1e-10)


def test_that_published_widths_do_not_follow_the_scores_is_said() -> None:
    made = _pruner(solver="official", beta=2000.0)
    plan = made.plan()
    assert any("do not depend on the layers' importance" in note for note in plan.provenance["notes"])
    other = _pruner(solver="official", beta=2000.0)
    other.dependence = np.flip(np.asarray(made.dependence))
    assert other.plan() == plan
    assert not any("do not depend" in note for note in _pruner().plan().provenance["notes"])


def test_the_plan_says_what_it_is_from() -> None:
    made = _pruner(images=20)
    plan: Plan = made.plan()
    assert plan.provenance["solver"] == "projection"
    assert plan.provenance["beta"] == pytest.approx(beta_for(totals(made.dependence), 6.0))
    assert max(plan.provenance["importance"].values()) / min(plan.provenance["importance"].values()) == pytest.approx(6)
    made = _pruner(count=2)
    assert any("16 images" in note for note in made.notes)


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="seen no data"):
        _pruner(count=0).plan()
    with pytest.raises(ConfigError, match="needs 4"):
        _pruner(count=0).collect([(torch.randn(3, 3, 8, 8), None)], lambda output, target: output.sum())
    with pytest.raises(BudgetError, match="With r_min"):
        _pruner(count=0, r_min=0.9)
    with pytest.raises(ConfigError, match="not finite"):
        _pruner(count=0).collect([(torch.full((4, 3, 8, 8), 3e38), None)], lambda output, target: output.sum())
