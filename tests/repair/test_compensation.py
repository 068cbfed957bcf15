"""Compensation: the closed form is least squares, with its worked numbers, and repairs networks after any criterion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ConfigError
from secateur.graph.modules import clone_module
from secateur.plan import Plan
from secateur.repair import Case, mend, repair
from secateur.repair import repairs as repairs_of
from secateur.repair.compensation import corrected, solve
from secateur.testing import NETWORKS, Network


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(samples: int, inputs: int, seed: int = 0) -> torch.Tensor:
    """Correlated inputs with means."""
    return draw(samples, inputs, seed=seed) @ draw(inputs, inputs, seed=seed + 1) + draw(inputs, seed=seed + 2)


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.mean(0), (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)


def mask(*kept: int, of: int) -> torch.Tensor:
    result = torch.zeros(of, dtype=torch.bool)
    result[list(kept)] = True
    return result


@pytest.mark.parametrize(("kept", "weight", "bias", "scale"), [(0, 2.5, -1.5, 1.16619), (1, 4.0, 1.0, 1.03078)])
def test_two_inputs(kept: int, weight: float, bias: float, scale: float) -> None:
    sigma = torch.tensor([[4.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    w, mean = torch.tensor([[1.0, 3.0]], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    found, added = corrected(w, mean, sigma, mask(kept, of=2))
    assert (found.item(), added.item()) == pytest.approx((weight, bias))
    larger, added = corrected(w, mean, sigma, mask(kept, of=2), rescale=True)
    assert larger.item() / found.item() == pytest.approx(scale, rel=1e-5)
    assert added.item() == pytest.approx(1.0 - larger.item() * mean[kept].item())  # the mean stays exact


def test_it_is_least_squares() -> None:
    x, w, kept = mixed(200, 6), draw(3, 6, seed=9), mask(0, 2, 3, of=6)
    found, added = corrected(w, *moments(x), kept)
    design = torch.cat([x[:, kept], torch.ones(200, 1)], 1)
    wanted = torch.linalg.lstsq(design, x @ w.T).solution
    torch.testing.assert_close(found, wanted[:-1].T)
    torch.testing.assert_close(added, wanted[-1])


def test_without_a_place_for_a_constant_it_is_least_squares_without_one() -> None:
    x, w, kept = mixed(200, 6), draw(3, 6, seed=9), mask(0, 2, 3, of=6)
    found, added = corrected(w, *moments(x), kept, constant=False)
    torch.testing.assert_close(found, torch.linalg.lstsq(x[:, kept], x @ w.T).solution.T)
    assert float(added.abs().max()) == 0.0


def test_a_duplicate_hands_its_weight_over() -> None:
    x = mixed(100, 4)
    x[:, 3] = x[:, 1]
    w = draw(2, 4, seed=5)
    found, added = corrected(w, *moments(x), mask(0, 1, 2, of=4))
    torch.testing.assert_close(found[:, 1], w[:, 1] + w[:, 3])
    torch.testing.assert_close(found[:, ::2], w[:, 0:3:2])
    torch.testing.assert_close(added, torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)


def test_an_affine_function_of_what_stays_is_lost_without_loss() -> None:
    x = mixed(100, 4)
    x[:, 3] = 2 * x[:, 0] - x[:, 2] + 5
    w, kept = draw(2, 4, seed=5), mask(0, 1, 2, of=4)
    found, added = corrected(w, *moments(x), kept)
    torch.testing.assert_close(x[:, kept] @ found.T + added, x @ w.T)


def test_a_constant_input_becomes_a_bias() -> None:
    x = mixed(100, 3)
    x[:, 1] = 0.7
    w = draw(2, 3, seed=5)
    found, added = corrected(w, *moments(x), mask(0, 2, of=3))
    torch.testing.assert_close(found, w[:, [0, 2]])
    torch.testing.assert_close(added, 0.7 * w[:, 1])


def test_uncorrelated_inputs_keep_their_weights() -> None:
    w = draw(2, 3)
    sigma, mean = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)), draw(3, seed=1)
    found, added = corrected(w, mean, sigma, mask(0, 2, of=3))
    torch.testing.assert_close(found, w[:, [0, 2]])
    torch.testing.assert_close(added, w[:, 1] * mean[1])


def test_scale_and_offset_of_inputs_do_not_matter() -> None:
    x, w, kept = mixed(100, 4), draw(2, 4, seed=5), mask(0, 3, of=4)
    found, added = corrected(w, *moments(x), kept, ridge=0.01)
    scale = torch.tensor([2.0, 0.1, 7.0, 1.0], dtype=torch.float64)
    other, _ = corrected(w / scale, *moments(x * scale), kept, ridge=0.01)
    torch.testing.assert_close(other * scale[kept], found)
    moved, bias = corrected(w, *moments(x + 3), kept, ridge=0.01)
    torch.testing.assert_close(moved, found)
    assert float((bias - added).abs().max()) > 0.1


def test_rescaled_outputs_keep_mean_and_variance() -> None:
    x, w, kept = mixed(300, 6), draw(3, 6, seed=9), mask(0, 5, of=6)
    found, added = corrected(w, *moments(x), kept, rescale=True)
    before, after = x @ w.T, x[:, kept] @ found.T + added
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(after.var(0), before.var(0), rtol=1e-10, atol=1e-10)


def test_an_output_that_is_lost_altogether_stays_finite() -> None:
    sigma = torch.eye(2, dtype=torch.float64)
    w = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found, _ = corrected(w, torch.zeros(2, dtype=torch.float64), sigma, mask(0, of=2), rescale=True)
    torch.testing.assert_close(found, torch.tensor([[0.0], [2**0.5]], dtype=torch.float64))


def test_all_kept_is_the_weight_itself() -> None:
    w = draw(2, 3)
    found, added = corrected(w, draw(3), torch.eye(3, dtype=torch.float64) * torch.nan, mask(0, 1, 2, of=3))
    assert torch.equal(found, w)
    assert not added.any()


def test_singular_matrices_are_solved() -> None:
    half = draw(3, 5)
    matrix, right = half.T @ half, draw(5, 2, seed=3)
    found = solve(matrix, matrix @ right)
    torch.testing.assert_close(matrix @ found, matrix @ right, rtol=1e-5, atol=1e-5)
    nothing = solve(torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))
    assert not nothing.any()


# ----------------------------------------------------------------------------------------------------------- networks


def error_after(network: Network, repairs: list[Any]) -> float:
    """The squared change of the output by a cut of half the channels, over new images."""
    model = network.make().eval()
    settle(model, network)
    result = secateur.prune(
        model, network.inputs(), budget="flops=0.5", method="l1", data=network.batches(40, seed=1), repair=repairs
    )
    x = torch.cat([x for x, _ in network.batches(4, seed=8)])
    with torch.no_grad():
        return float((result.model.eval()(x) - model(x)).square().mean() / model(x).var())


def settle(model: nn.Module, network: Network) -> None:
    """Running statistics as after training."""
    model.train()
    with torch.no_grad():
        for x, _ in network.batches(20, seed=2):
            model(x)
    model.eval()


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
@pytest.mark.parametrize("settings", [{}, {"rescale": "never", "recollect": True}], ids=["", "recollect"])
def test_networks_lose_less(network: Network, settings: dict[str, Any]) -> None:
    alone = error_after(network, [])
    repaired = error_after(network, [{"name": "compensation", **settings}])
    assert repaired < 0.8 * alone


class Pair(nn.Module):
    """A hidden layer whose channels 4..7 repeat 0..3; what reads it may have a bias, and a norm behind it."""

    def __init__(self, *, bias: bool, norm: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 6, 3, padding=1, bias=bias)
        self.norm: nn.Module = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.fc = nn.Linear(6, 4)
        with torch.no_grad():
            for tensor in (self.one.weight, self.one.bias):
                tensor[4:] = tensor[:4]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.norm(self.two(self.one(x).relu())).relu().mean((2, 3)))
        return result


@pytest.mark.parametrize(("bias", "norm"), [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("given", ["compensation", ["compensation", "compensation"], ["cap"]])
def test_duplicates_go_without_a_trace(bias: bool, norm: bool, given: Any) -> None:
    torch.manual_seed(0)
    model = Pair(bias=bias, norm=norm).double().eval()
    x = draw(16, 3, 6, 6)
    graph = secateur.trace(model, x[:2])
    plan = Plan({g.name: np.arange(g.width) < (4 if g.width == 8 else g.width) for g in graph.groups})

    def copied() -> Any:
        return clone_module(model, lambda tensor: tensor.detach().clone())

    repaired = copied()
    repairs = repairs_of(given)
    mend(repaired, copied, graph, plan, repairs, [(x, torch.zeros(16))])
    torch.testing.assert_close(repaired(x), model(x), rtol=1e-4, atol=1e-5)
    assert not repaired.two.weight[:, 4:].any()


def test_a_layer_that_is_never_called_is_said() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.one(x).relu(), self.two.weight, self.two.bias)

    model = Functional()
    graph = secateur.trace(model, torch.zeros(2, 4))
    plan = Plan({g.name: np.arange(g.width) < 4 for g in graph.groups})
    case = Case(clone_module(model, torch.clone), lambda: model, graph, plan)
    with torch.no_grad():
        repair("compensation").apply(case, [(torch.randn(8, 4), torch.zeros(8))])
    assert case.notes == ["two is not called as a layer, so it was not compensated."]


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"rescale is 'norms', but must be one of norm, always, never; did you mean"):
        repair("compensation", rescale="norms")
    with pytest.raises(ConfigError, match="ridge"):
        repair("compensation", ridge=-1.0)
