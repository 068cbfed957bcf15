"""Whose hands a model is in, what an own loop has left out, and parameters that weight decay leaves alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.errors import ConfigError, ModelError
from secateur.methods import Method
from secateur.recipe import Training
from secateur.training.optimisers import make_optimiser

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def create(name: str, model: nn.Module | None = None) -> Method:
    given = network() if model is None else model
    return secateur.methods.create(name, given, IMAGES[:2], budget="flops=0.6", steps=4)


class Gated(Method):
    """A gate a group, which decay must not pull on."""

    name = "gated"

    def prepare(self) -> None:
        self.gates = nn.Parameter(torch.ones(len(self.graph.groups)))

    def undecayed(self) -> list[nn.Parameter]:
        return [self.gates]

    def loss(self) -> torch.Tensor:
        return 0 * self.gates.sum()

    def score(self) -> dict[str, Any]:
        return dict(secateur.score("l1", self.graph))


# --------------------------------------------------------------------------------------------------------- weight decay


def _decays(optimiser: torch.optim.Optimizer) -> dict[int, float]:
    return {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}


@pytest.mark.parametrize(
    "make",
    [
        lambda method: torch.optim.SGD(method.parameter_groups(0.1), lr=1.0),
        lambda method: torch.optim.AdamW(method.parameter_groups(0.1), lr=1.0),
        lambda method: make_optimiser(method, Training(weight_decay=0.1)),
        lambda method: make_optimiser(method, Training(weight_decay=0.1, optimiser="adamw")),
        lambda method: make_optimiser(method, Training(weight_decay=0.1, decay_norm=False)),
        lambda method: make_optimiser(nn.Sequential(method), Training(weight_decay=0.1)),  # wrapped, as by DDP
    ],
)
def test_weight_decay_leaves_gates_alone(make: Callable[[Method], torch.optim.Optimizer]) -> None:
    method = Gated(network(), IMAGES[:2], budget="flops=0.6")
    decays = _decays(make(method))
    assert decays.keys() == {id(p) for p in method.parameters()}
    assert decays[id(method.gates)] == 0.0
    assert decays[id(method.model[0].weight)] == 0.1


def test_without_gates_nothing_is_apart() -> None:
    method = create("csgd")
    (group,) = method.parameter_groups(0.1)
    assert group["weight_decay"] == 0.1
    assert group["params"] == list(method.parameters())


# ---------------------------------------------------------------------------------------------------------------- hands


@pytest.mark.parametrize("first", ["bwcp", "dcpcac", "cwb"])
@pytest.mark.parametrize("second", ["bwcp", "csgd", "l1"])
def test_a_model_in_other_hands_is_refused_by_name(first: str, second: str) -> None:
    model = network()
    pruner = create(first, model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=rf"already in use by '{first}'.*plain\(\)"):
        create(second, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(create(second, pruner.plain()), Method)


def test_a_method_that_inserts_nothing_leaves_the_model_free() -> None:
    model = network()
    held = [create(name, model) for name in ("l1", "csgd", "cpmc", "group_fisher")]
    assert isinstance(create("bwcp", model), Method)
    assert len(held) == 4


def test_a_method_that_is_gone_holds_nothing() -> None:
    model = network()
    create("csgd", model)
    gc.collect()
    assert isinstance(create("l1", model), Method)


# ---------------------------------------------------------------------------------------------------- calls left out


def _train(pruner: Method, *, without: str = "") -> None:
    optimiser = torch.optim.SGD(pruner.parameters(), lr=0.01)
    pruner.train()
    for _ in range(4):
        optimiser.zero_grad()
        pruner.before_forward(LABELS)
        output = pruner.model(IMAGES) if without == "pruner" else pruner(IMAGES)
        pruner.after_forward(output, LABELS)
        loss = F.cross_entropy(output, LABELS)
        (loss if without == "loss" else loss + pruner.loss()).backward()
        pruner.after_backward()
        optimiser.step()
        if without != "after_step":
            pruner.after_step()
    pruner.after_epoch()


@pytest.mark.parametrize("name", ["bwcp", "csgd", "group_fisher"])
@pytest.mark.parametrize(
    ("without", "words"),
    [("after_step", r"call after_step\(\) after"), ("pruner", r"call the pruner, pruner\(x\)"), ("", "")],
)
def test_a_loop_that_leaves_out_a_call_is_told(name: str, without: str, words: str) -> None:
    pruner = create(name)
    _train(pruner, without=without)
    if not without:
        assert isinstance(pruner.finish(), nn.Module)
        return
    with pytest.raises(ConfigError, match=words) as caught:
        pruner.finish()
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["bwcp", "cwb"])
def test_a_loop_without_the_penalty_is_told(name: str) -> None:
    pruner = create(name)
    _train(pruner, without="loss")
    with pytest.raises(ConfigError, match=r"its loss\(\) was never asked for: train with .*pruner\.loss\(\)\.$"):
        pruner.finish()


@pytest.mark.parametrize(
    ("name", "state"),
    [(name, state) for name in ("bwcp", "csgd", "nap") for state in ({}, {"step": 3, "of": "another"}, None, 3, [1])]
    + [("l1", {}), ("l1", None)],  # which has nothing but its steps
)
def test_the_state_of_another_method_is_refused(name: str, state: Any) -> None:
    with pytest.raises(ConfigError, match=rf"This is no state of the method '{name}' \(\w+: .*\): give what state"):
        create(name).load_state(state)


def test_a_method_that_goes_on_from_a_state_may_finish_without_another_step() -> None:
    pruner, other = create("csgd"), create("csgd")
    _train(pruner)
    other.load_state_dict(pruner.state_dict())
    other.load_state(pruner.state())
    assert isinstance(other.finish(), nn.Module)
