"""Optimisers after a cut: the next step works, and what they know of the surviving weights is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn, optim

import secateur

IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

OPTIMISERS: list[Callable[[Iterable[Any]], optim.Optimizer]] = [
    lambda p: optim.SGD(p, 1e-3, momentum=0.9),
    lambda p: optim.Adam(p, 1e-3, amsgrad=True),
    lambda p: optim.Adafactor(p, 1e-3),
    lambda p: optim.LBFGS(p, 1e-3, max_iter=2),
]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), *middle, nn.Flatten(), nn.Linear(16, 5))


def step(model: nn.Module, optimiser: optim.Optimizer) -> None:
    def closure() -> float:
        optimiser.zero_grad()
        loss = model(IMAGE).square().mean()
        loss.backward()
        return float(loss)

    optimiser.step(closure)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("make", OPTIMISERS)
def test_an_optimiser_with_state_goes_on_after_a_cut(make: Any, inplace: bool) -> None:
    model = small()
    optimiser = make(model.parameters())
    step(model, optimiser)
    result = secateur.prune(model, IMAGE, budget="flops=0.5", inplace=inplace)
    if not inplace:
        secateur.follow(optimiser, result)
    held = [p for group in optimiser.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in result.model.parameters()]
    before = [p.detach().clone() for p in held]
    step(result.model, optimiser)
    assert all(not torch.equal(a, b) for a, b in zip(before, held, strict=True))


def test_momentum_is_that_of_the_surviving_weights() -> None:
    model = small()
    optimiser = optim.Adam(model.parameters())
    step(model, optimiser)
    moments = {n: optimiser.state[p]["exp_avg"].clone() for n, p in model.named_parameters()}
    result = secateur.prune(model, IMAGE, budget="flops=0.5")
    secateur.follow(optimiser, result)
    rows, columns = result.cut.slices["3.weight"][:2]
    assert rows is not None
    assert columns is not None
    kept = optimiser.state[dict(result.model.named_parameters())["3.weight"]]["exp_avg"]
    assert torch.equal(kept, moments["3.weight"][rows][:, columns])
    assert optimiser.state[dict(result.model.named_parameters())["7.bias"]]["step"] == 1


def test_state_of_another_form_starts_anew_and_other_optimisers_are_left_alone() -> None:
    model, other = small(), small()
    optimiser, foreign = (
        optim.SGD(model.parameters(), 0.1, momentum=0.9),
        optim.SGD(other.parameters(), 0.1, momentum=0.9),
    )
    step(model, optimiser)
    step(other, foreign)
    weight = model[0].weight
    optimiser.state[weight]["rows"] = torch.zeros(16, 3)
    secateur.prune(model, IMAGE, budget="flops=0.5", inplace=True)
    assert optimiser.state[weight] == {}
    assert foreign.state[other[0].weight]["momentum_buffer"].shape == (16, 3, 3, 3)
    step(model, optimiser)


def test_what_cannot_be_followed_is_told() -> None:
    """An optimiser of another network went on with that one, in silence."""
    model = secateur.models.create("tiny")
    result = secateur.prune(model, torch.zeros(1, 3, 16, 16), budget="flops=0.5")
    other = torch.optim.SGD(secateur.models.create("tiny").parameters(), 0.1)
    with pytest.raises(secateur.ConfigError, match="holds no parameter of the network that was pruned"):
        secateur.follow(other, result)
    with pytest.raises(secateur.ConfigError, match="is no optimiser: give one of"):
        secateur.follow(model, result)  # type: ignore[arg-type]
    own = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(secateur.ConfigError, match="is no result: give what"):
        secateur.follow(own, result.model)  # type: ignore[arg-type]
    for _ in range(2):  # the second time there is nothing left to do
        secateur.follow(own, result)
    assert {id(p) for p in own.param_groups[0]["params"]} == {id(p) for p in result.model.parameters()}


def test_nothing_is_searched_for_optimisers_where_nobody_holds_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def search() -> list[Any]:
        raise AssertionError("all objects were looked through")

    monkeypatch.setattr("secateur.graph.following.gc.get_objects", search)
    secateur.prune(small(), IMAGE, budget="flops=0.5", inplace=True)
    model = small()
    held = [model[0].weight]
    with pytest.raises(AssertionError):
        secateur.prune(model, IMAGE, budget="flops=0.5", inplace=True)
    assert held[0] is model[0].weight


class Preconditioned(optim.Optimizer):
    """Keeps a matrix for every dimension of a parameter, in a container, as Shampoo and its kin do."""

    def __init__(self, parameters: Iterable[Any], container: Callable[[list[torch.Tensor]], Any]) -> None:
        super().__init__(parameters, {"lr": 1e-3})
        self.container = container

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state["factors"] = self.container([torch.eye(n) for n in parameter.shape])
            factors = state["factors"]
            found = parameter.grad
            for dim, factor in enumerate(factors.values() if isinstance(factors, dict) else factors):
                found = torch.tensordot(found, factor, ([0], [0]))  # the next dimension comes first
                assert dim < parameter.dim()
            parameter.data.sub_(found, alpha=1e-3)


@pytest.mark.parametrize("container", [list, tuple, lambda each: dict(enumerate(each))], ids=["list", "tuple", "dict"])
@pytest.mark.parametrize("inplace", [True, False])
def test_what_an_optimiser_keeps_in_containers_starts_anew(container: Any, inplace: bool) -> None:
    model = small()
    optimiser = Preconditioned(model.parameters(), container)
    step(model, optimiser)
    result = secateur.prune(model, IMAGE, budget="flops=0.5", inplace=inplace)
    if not inplace:
        secateur.follow(optimiser, result)
    step(result.model, optimiser)
