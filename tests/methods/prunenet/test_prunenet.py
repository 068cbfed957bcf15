"""PruneNet: importance is variance after filtering, the convex problem is solved exactly, lambda meets the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import BudgetError, ConfigError
from secateur.methods import method
from secateur.methods.kit.aim import Aim
from secateur.methods.prunenet.group_lasso import GroupLasso, Problem
from secateur.methods.prunenet.method import Path
from secateur.testing import NETWORKS
from secateur.testing.networks import block


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(samples: int, columns: int, seed: int = 0) -> torch.Tensor:
    x = draw(samples, columns, seed=seed) @ (draw(columns, columns, seed=seed + 1) / columns**0.5)
    return x - x.mean(0)


def problem(weight: torch.Tensor, sigma: torch.Tensor, each: int = 1, fixed: int = 0) -> Problem:
    channels = (len(sigma) - fixed) // each
    columns = np.arange(channels * each).reshape(channels, each)
    return Problem(weight, sigma, [(np.arange(channels), columns)], np.arange(channels * each, len(sigma)))


def lasso(*problems: Problem, ridge: float = 0.0) -> GroupLasso:
    return GroupLasso(problems, len(problems[0].parts[0][0]), ridge=ridge)


def correlated(channels: int = 6, each: int = 2, outputs: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = inputs(400, channels * each, seed)
    return draw(outputs, channels * each, seed=seed + 7), x.T @ x / len(x)


def kkt(found: GroupLasso, strength: float) -> float:
    """How far the solution is from its optimality conditions."""
    alive, worst = found.norms() > 0, 0.0
    worst = max([0.0, *(found.residuals()[~alive] - strength)])
    for channel in np.flatnonzero(alive).tolist():
        norm = found.norms()[channel]
        for layer in found.layers:
            at = layer.blocks[channel]
            if at is not None:
                gradient = ((layer.wh - layer.uh) @ layer.sh)[:, at]
                worst = max(worst, float((gradient - strength * layer.uh[:, at] / norm).abs().max()))
    return worst


# --------------------------------------------------------------------------------------------------------- importance


def test_importance_is_the_variance_after_filtering() -> None:
    x, weight = inputs(300, 6), draw(4, 6, seed=3)
    found = lasso(problem(weight, x.T @ x / 300, 2)).norms()
    whole = (x @ weight.T).square().sum() / 300
    for channel in range(3):
        z = x[:, 2 * channel : 2 * channel + 2] @ weight[:, 2 * channel : 2 * channel + 2].T
        assert found[channel] ** 2 == pytest.approx(float(z.square().sum() / 300 / whole))


def test_scale_of_channels_and_of_layers_does_not_matter() -> None:
    weight, sigma = correlated()
    scale = torch.tensor([1.0, 0.01, 7.0, 2.0, 1.0, 30.0]).double().repeat_interleave(2)
    one = lasso(problem(weight, sigma, 2))
    for other in (problem(weight / scale, sigma * scale[:, None] * scale, 2), problem(50 * weight, sigma, 2)):
        two = lasso(other)
        np.testing.assert_allclose(one.norms(), two.norms())
        np.testing.assert_allclose(one.solve(0.2), two.solve(0.2), atol=1e-6)
        one.load([layer.wh for layer in one.layers])
    # what a weight norm says does change
    assert not torch.allclose(weight.norm(dim=0), (weight / scale).norm(dim=0))


def test_a_channel_that_never_changes_is_worth_nothing() -> None:
    weight, sigma = correlated()
    sigma[2:4] = sigma[:, 2:4] = 0.0
    found = lasso(problem(weight, sigma, 2), ridge=1e-6)
    assert found.norms()[1] == 0.0
    assert found.solve(0.01)[1] == 0.0
    assert np.isfinite(found.norms()).all()


def test_uncorrelated_channels() -> None:
    weight, sigma = draw(4, 5), torch.diag(draw(5, seed=2).square() + 0.1)
    found = lasso(problem(weight, sigma))
    before = found.norms()
    assert (before**2).sum() == pytest.approx(1.0)
    for strength in (0.1, 0.3, 0.5):
        found.load([layer.wh for layer in found.layers])
        np.testing.assert_allclose(found.solve(strength), np.maximum(0, before - strength), atol=1e-9)


# ------------------------------------------------------------------------------------------------------ optimisation


@pytest.mark.parametrize(
    ("threshold", "wanted"), [(0.1, (0.93333, 0.13333)), (0.3, (0.8, 0.0)), (0.5, (0.6, 0.0)), (1.1, (0.0, 0.0))]
)
def test_two_correlated_inputs(threshold: float, wanted: tuple[float, float]) -> None:
    sigma = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.2]], dtype=torch.float64)
    found = lasso(problem(weight, sigma))
    size = found.layers[0].scale  # sigma_l
    found.solve(threshold / size + 1e-12, tolerance=1e-14)
    assert (found.layers[0].uh * size)[0].tolist() == pytest.approx(wanted, abs=1e-5)


def test_the_ends_of_the_path() -> None:
    weight, sigma = correlated()
    found = lasso(problem(weight, sigma, 2))
    before = found.norms()
    np.testing.assert_allclose(found.solve(0.0), before)
    largest = found.largest()
    assert not found.solve(largest * (1 + 1e-9)).any()
    assert (found.solve(largest * 0.98) > 0).sum() >= 1  # zeros come back


@pytest.mark.parametrize("strength", [0.02, 0.1, 0.4])
@pytest.mark.parametrize(("each", "outputs", "fixed"), [(1, 3, 0), (2, 4, 0), (3, 40, 0), (2, 4, 3)])
def test_it_is_optimal(strength: float, each: int, outputs: int, fixed: int) -> None:
    x = inputs(300, 5 * each + fixed)
    found = lasso(problem(draw(outputs, 5 * each + fixed, seed=8), x.T @ x / 300, each, fixed))
    found.solve(strength, tolerance=1e-15)
    assert kkt(found, strength) < 1e-6


def test_several_layers_share_one_norm() -> None:
    problems = [problem(*correlated(outputs=3 + seed, seed=10 * seed), 2) for seed in range(3)]
    found = lasso(*problems)
    single = [lasso(each).norms() for each in problems]
    np.testing.assert_allclose(found.norms(), np.sqrt(sum(s**2 for s in single)))
    for strength in (0.05, 0.8):
        norms = found.solve(strength, tolerance=1e-15)
        assert kkt(found, strength) < 1e-6
    assert 0 < (norms > 0).sum() < 6


def test_the_objective_never_rises() -> None:
    found = lasso(problem(*correlated(), 2))
    found.layers[0].refresh()
    last = found.objective(0.2)
    for _ in range(15):
        for channel in range(6):
            found._step(channel, 0.2)
            assert found.objective(0.2) <= last + 1e-12
            last = found.objective(0.2)
        with np.errstate(divide="ignore"):
            found.layers[0].leap(np.where(found.norms() > 0, 0.2 / found.norms(), np.inf))
        assert found.objective(0.2) <= last + 1e-12
        last = found.objective(0.2)


def test_alike_inputs_do_not_make_it_creep() -> None:
    """Half the channels are the others with a little noise; blocks one by one would need thousands of sweeps."""
    x = inputs(500, 8)
    x = torch.cat([x, x + 1e-3 * draw(500, 8, seed=5)], 1)
    found = lasso(problem(draw(4, 16, seed=2), x.T @ x / 500))
    found.solve(0.05, sweeps=30, tolerance=1e-13)
    assert kkt(found, 0.05) < 1e-4


def _rounded() -> torch.Tensor:
    """What 40 patches of 54 columns have in common, as sums in single precision far from their mean leave it."""
    x = 1 + 1e-3 * draw(40, 54, seed=3).float()
    mean = x.mean(0)
    return (x.T @ x / 40 - torch.outer(mean, mean)).double()


def _beyond_one() -> torch.Tensor:
    """Two channels whose correlation is said to be 1.5."""
    sigma = torch.eye(54, dtype=torch.float64)
    sigma[0, 9] = sigma[9, 0] = 1.5
    return sigma


def _below_zero() -> torch.Tensor:
    """One direction with a variance of -0.01."""
    direction = draw(54, 1, seed=4)
    direction /= direction.norm()
    return torch.eye(54, dtype=torch.float64) - 1.01 * direction @ direction.T


@pytest.mark.parametrize("made", [_rounded, _beyond_one, _below_zero])
def test_variances_that_rounding_made_negative_give_finite_scores(made: Callable[[], torch.Tensor]) -> None:
    sigma = made()
    assert torch.linalg.eigvalsh(sigma)[0] < 0
    found = lasso(problem(draw(4, 54, seed=2), sigma, 9))
    for strength in (0.01, 0.1, 0.3):
        norms = found.solve(strength, sweeps=10)
        assert np.isfinite(norms).all()
        assert found.objective(strength) >= 0
    blocks = found.layers[0].sh.unflatten(0, (6, 9)).unflatten(2, (6, 9)).diagonal(dim1=0, dim2=2)
    torch.testing.assert_close(blocks.permute(2, 0, 1), torch.eye(9, dtype=torch.float64).expand(6, 9, 9))


# ---------------------------------------------------------------------------------------------------------- networks


def collected(model: nn.Module, *, number: int = 0, batches: int = 24, **options: Any) -> Any:
    network = NETWORKS[number]
    pruner = method("prunenet").factory(model.eval(), network.inputs(), **{"budget": "flops=0.5", **options})
    pruner.collect(network.batches(batches, seed=3), F.cross_entropy)
    return pruner


class Chain(nn.Module):
    """No residual streams; hidden channels 8..15 repeat 0..7."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = block(3, 16), block(16, 24)
        self.fc = nn.Linear(24, 5)
        with torch.no_grad():
            self.one[0].weight[8:] = self.one[0].weight[:8]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.two(self.one(x)).mean((2, 3)))
        return result


def half_of_one(pruner: Any) -> Any:
    """The plan that drops the copies, whatever the scores."""
    plan = pruner.plan()
    plan.masks = {name: np.arange(len(mask)) < (8 if len(mask) == 16 else 24) for name, mask in plan.masks.items()}
    return plan


@pytest.mark.parametrize("weights", ["refit", "select"])
def test_refit_makes_copies_superfluous(weights: str) -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    pruner = collected(model, weights=weights)
    plain = pruner.plain()
    plan = half_of_one(pruner)
    pruner.repair(plain, plan)
    with torch.no_grad():
        plain.one[0].weight[8:] = 0.0
        plain.one[1].weight[8:] = 0.0
        plain.one[1].bias[8:] = 0.0
        x, _ = next(NETWORKS[0].batches(1, seed=9))
        error = float((plain.eval()(x) - model(x)).abs().max())
    assert (error < 1e-3) == (weights == "refit")


def test_refit_is_no_worse_than_select() -> None:
    torch.manual_seed(0)
    model, errors = Chain().eval(), []
    x = torch.cat([x for x, _ in NETWORKS[0].batches(8, seed=3)])
    for weights in ("refit", "select"):
        small = collected(model, weights=weights, positions=None, budget="flops=0.4").finish().eval()
        with torch.no_grad():
            errors.append(float((small(x) - model(x)).square().mean()))
    assert errors[0] < errors[1]


def test_what_is_worth_nothing_goes_and_nothing_is_missed() -> None:
    """Channels that never change have s = 0: without them, refitted, the network computes the same."""
    torch.manual_seed(0)
    model = Chain().eval()
    with torch.no_grad():
        model.one[1].weight[::2], model.one[1].bias[::2] = 0.0, -1.0
    pruner = collected(model, budget="flops=0.48")
    scores = pruner.score()
    assert not scores["one.0"][::2].any()
    assert scores["one.0"][1::2].all()
    plan = pruner.plan()
    plan.masks = {name: values > 0 for name, values in scores.items()}
    pruner.plan = lambda: plan
    assert plan.widths["one.0"] == 8
    x, _ = next(NETWORKS[0].batches(1, seed=9))
    with torch.no_grad():
        torch.testing.assert_close(pruner.finish().eval()(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_plan_says_what_lambda_leaves_whatever_floors_say() -> None:
    torch.manual_seed(0)
    pruner = collected(Chain(), budget="flops=0.3", floor=0.5)
    said, plan = pruner.plan().provenance["widths"], pruner.plan()
    assert said.keys() == plan.widths.keys()
    assert any(said[name] < plan.widths[name] for name in said)


def test_streams_stay_whole_unless_asked() -> None:
    whole = collected(NETWORKS[0].make(), budget="flops=0.5")
    assert whole.plan().widths["stem.0"] == 24
    assert 0.99 <= whole.graph.cost(whole.plan()).macs / whole.graph.cost().macs / 0.5 <= 1.0  # there is room
    assert "Channels that several layers make together stay whole: stem.0." in whole.notes
    cut = collected(NETWORKS[0].make(), units="all", budget="flops=0.3")
    assert cut.plan().widths["stem.0"] < 24


def within_and_full(pruner: Any, plan: Any) -> bool:
    """Whether the plan is within 30% of the operations, and would not be with any channel more."""
    widths = np.array([plan.widths[group.name] for group in pruner.graph.groups])
    limit = 0.3 * pruner.graph.cost().macs
    macs = pruner.graph.costs.evaluate(widths + np.vstack([np.zeros_like(widths), np.eye(len(widths), dtype=int)]))
    return bool(macs["macs"][0] <= limit and (macs["macs"][1:] > limit).all())


def test_one_lambda_meets_the_budget_and_channels_that_it_zeroes_go() -> None:
    torch.manual_seed(0)
    pruner = collected(Chain(), budget="flops=0.3")
    plan = pruner.plan()
    pruner.finish()
    assert within_and_full(pruner, plan)  # two coarse layers: no widths at all use more than 98.8%
    scores = pruner.score()
    assert plan.provenance["lambda"] > 0
    for name, mask in plan.masks.items():
        assert scores[name][mask].min() >= scores[name][~mask].max(initial=-np.inf)  # the later it dies, the better


def test_the_lambda_told_is_the_largest_tried_that_does_not_meet_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next one it is met; solved anew, the problems at that lambda have the solutions that were told."""
    paths: list[Path] = []
    bisect = Path.bisect
    monkeypatch.setattr(Path, "bisect", lambda self, *given: (paths.append(self), bisect(self, *given)))
    torch.manual_seed(0)
    pruner = collected(Chain(), budget="flops=0.3")
    (path,), said = paths, pruner.plan().provenance
    tried, aim = sorted(path.tried), Aim(pruner.graph, pruner.budget)
    assert said["tried"] == len(tried) > 2
    least = {group.name: 1 for group in pruner.graph.groups}
    assert not aim.met(path._widths(said["lambda"], least))
    assert aim.met(path._widths(tried[tried.index(said["lambda"]) + 1], least))
    assert said["widths"] == path.alive(said["lambda"])
    for solved, told in zip(path._lassos, path.tried[said["lambda"]], strict=True):
        again = solved.solve(said["lambda"], tolerance=1e-12)
        assert again.sum() == pytest.approx(
            told.sum(), rel=0.01
        )  # inputs are nearly alike: which of them share it varies


def test_the_floor_holds() -> None:
    pruner = collected(Chain(), budget="flops=0.3", floor=0.5)
    assert all(mask.sum() >= len(mask) / 2 for mask in pruner.plan().masks.values())
    with pytest.raises(BudgetError, match=r"^With units=inside and floor=0.9, the budget"):
        collected(Chain(), budget="flops=0.3", floor=0.9)


def test_importance_alone() -> None:
    pruner = collected(Chain(), mode="score")
    assert pruner.plan().provenance["tried"] == 1
    assert pruner.plan().provenance["lambda"] == 0.0
    pruner.finish()


def test_what_a_norm_does_to_outputs_counts() -> None:
    torch.manual_seed(0)
    model = Chain()
    with torch.no_grad():
        model.two[1].weight[:20] = 1e-4  # only outputs 20.. are seen by what follows
        model.two[0].weight[20:, :12] *= 1e-3  # and they read inputs 12.. only
    seen = collected(model, mode="score").score()["one.0"]
    assert seen[12:].min() > 5 * seen[:12].max()
    raw = collected(model, mode="score", after_norm=False).score()["one.0"]
    assert raw[12:].min() < 5 * raw[:12].max()


def test_labels_and_batch_sizes_do_not_matter() -> None:
    torch.manual_seed(0)
    model, network = Chain().eval(), NETWORKS[0]
    x = torch.cat([x for x, _ in network.batches(24, seed=3)])
    plans = []
    for size, label in ((8, 0), (50, 3)):
        pruner = method("prunenet").factory(model, network.inputs(), budget="flops=0.4")
        pruner.collect(((part, torch.full((len(part),), label)) for part in x.split(size)), F.cross_entropy)
        plans.append(pruner.plan().masks)
    for name, mask in plans[0].items():
        np.testing.assert_array_equal(mask, plans[1][name])


def test_settings_that_cannot_be() -> None:
    network = NETWORKS[0]
    with pytest.raises(ConfigError, match="mode is 'scores', but must be one of optimise, score; did you mean 'score'"):
        method("prunenet").factory(network.make(), network.inputs(), budget="flops=0.5", mode="scores")
    pruner = method("prunenet").factory(network.make(), network.inputs(), budget="flops=0.5", normalise="max")
    assert "so normalise='max' was not applied." in pruner.notes[0]
