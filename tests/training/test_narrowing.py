"""A model that gets narrower while it is trained: optimisers, averages, checkpoints and loops of one's own follow."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _toy import CPU, Narrower, ToySplit, make_engine, short, toy_net
from torch import nn
from torch.nn import functional as F

from secateur.errors import RunError
from secateur.methods.contract import Method
from secateur.recipe import EngineConfig

EVERY_STEP = EngineConfig(device="cpu", precision="fp32", checkpoint_minutes=1e-9)
OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
}


def train(method: Method, optimiser: torch.optim.Optimizer, first: int, last: int) -> torch.Tensor:
    """A loop of one's own, which knows nothing of narrowing."""
    method.train()
    batches = list(ToySplit(16 * 15).batches(16))
    for images, labels in batches[first:last]:
        optimiser.zero_grad()
        output = method(images)
        method.after_forward(output, labels)
        loss = F.cross_entropy(output, labels) + method.loss()
        loss.backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
    return loss.detach()


def net() -> nn.Module:
    return toy_net(dropout=0.0)


# ------------------------------------------------------------------------------------------------- loops of one's own


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_the_state_of_optimisers_follows_by_itself(kind: str) -> None:
    method = Narrower(net())
    parameters = dict(method.model.named_parameters())
    optimiser = OPTIMISERS[kind](method.parameters())
    train(method, optimiser, 0, 4)
    method.at = {}
    before = {name: {k: v.clone() for k, v in optimiser.state[p].items()} for name, p in parameters.items()}
    method.narrow({"conv": np.array([True, False, True, True, False, True])})
    kept = torch.tensor([0, 2, 3, 5])
    for key, value in optimiser.state[parameters["conv.weight"]].items():
        old = before["conv.weight"][key]
        assert torch.equal(value, old[kept] if old.dim() and old.shape[0] == 6 else old), key
    for key, value in optimiser.state[parameters["head.weight"]].items():
        old = before["head.weight"][key]
        assert torch.equal(value, old[:, kept] if old.dim() and old.shape[-1] == 6 else old), key
    assert all(parameters[name] is p for name, p in method.model.named_parameters())  # the same objects
    train(method, optimiser, 4, 6)


def test_training_goes_on_as_if_the_network_had_been_narrow() -> None:
    """The narrowed model with its optimiser's sliced state takes the steps that a network built narrow takes."""
    method = Narrower(net())
    method.at = {4: [0, 2, 5]}
    optimiser = OPTIMISERS["sgd"](method.parameters())
    train(method, optimiser, 0, 4)
    twin = type(method.model)(0.0)
    twin.conv, twin.norm, twin.head = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.Linear(3, 4)
    twin.load_state_dict(method.model.state_dict())
    other = OPTIMISERS["sgd"](twin.parameters())
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    loss = train(method, optimiser, 4, 8)
    for images, labels in list(ToySplit(16 * 15).batches(16))[4:8]:
        other.zero_grad()
        wanted = F.cross_entropy(twin(images), labels)
        wanted.backward()
        other.step()
    assert torch.equal(loss, wanted.detach())
    assert all(torch.equal(a, b) for a, b in zip(method.model.parameters(), twin.parameters(), strict=True))


def test_attributes_follow_and_the_result_is_proven_against_the_original() -> None:
    method = Narrower(net())
    train(method, OPTIMISERS["sgd"](method.parameters()), 0, 12)
    assert (method.model.conv.out_channels, method.model.norm.num_features, method.model.head.in_features) == (2, 2, 2)
    small = method.finish()
    assert method.result is not None
    assert method.result.verification is not None
    assert method.result.verification.passed
    assert method.result.before.params == sum(p.numel() for p in net().parameters())
    assert method.result.plan.widths == {"conv": 2}
    assert len(method.result.plan.masks["conv"]) == 6  # in channels of the original
    same = zip(small.state_dict().items(), method.model.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in same)


def test_state_dict_brings_a_fresh_model_to_its_widths_and_back() -> None:
    method = Narrower(net())
    wide = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    train(method, OPTIMISERS["sgd"](method.parameters()), 0, 6)
    narrow = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    other = Narrower(net())
    for state in (narrow, wide, narrow):  # also back to an earlier, wider moment
        other.load_state_dict(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
        assert other.model.conv.out_channels == len(state["model.conv.weight"])
        assert other.model(torch.randn(3, 2, 6, 6)).shape == (3, 4)


def test_a_loss_that_is_still_alive_does_not_hold_the_old_shape() -> None:
    method = Narrower(net())
    method.train()
    images, labels = next(ToySplit(16).batches(16))
    loss = F.cross_entropy(method(images), labels)
    loss.backward()
    method.narrow({"conv": np.arange(6) < 4})
    assert method.model.conv.weight.grad is None
    again = F.cross_entropy(method(images), labels)  # `loss` and its graph are alive
    again.backward()
    assert method.model.conv.weight.grad.shape == method.model.conv.weight.shape


# -------------------------------------------------------------------------------------------------------- the engine


def fit(
    folder: Path | None, die_after: int | None = None, config: EngineConfig = EVERY_STEP, **options: Any
) -> Narrower:
    method = Narrower(toy_net())
    if die_after is not None:
        original = method.after_step

        def dying() -> None:
            original()
            if method.step == die_after:
                raise _Killed

        method.after_step = dying  # type: ignore[method-assign]
    make_engine(folder, config).fit("train", method, short(**options), method=method)
    return method


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("options", [{}, {"optimiser": "adamw", "lr": 0.01, "ema": 0.9, "mixup": 0.3, "clip": 1.0}])
@pytest.mark.parametrize(
    "kills", [(3,), (7,), (13,), (2, 6, 12)]
)  # before, between and after the narrowings at 4 and 11
def test_killed_and_resumed_is_bit_identical(tmp_path: Path, options: dict[str, Any], kills: tuple[int, ...]) -> None:
    whole = fit(tmp_path / "whole", **options)
    for step in kills:
        with pytest.raises(_Killed):
            fit(tmp_path / "killed", die_after=step, **options)
    resumed = fit(tmp_path / "killed", **options)
    assert resumed.model.conv.out_channels == 2
    wanted, found = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())
    assert whole.state() == resumed.state()


def test_the_best_epoch_may_be_wider_than_the_last() -> None:
    method = Narrower(toy_net())
    method.at = {36: [1, 4]}  # in the last epoch but one of eight
    fitted = make_engine(None, CPU).fit("train", method, short(epochs=8, select="best", lr=1e-4), method=method)
    width = 6 if fitted.best_epoch == 7 else 2
    assert method.model.conv.out_channels == width
    assert int(method.alive.sum()) == width


def test_a_foreign_checkpoint_is_still_refused(tmp_path: Path) -> None:
    fit(tmp_path)
    other = make_engine(tmp_path, EVERY_STEP)
    with pytest.raises(RunError, match=r"of another network, as .* differs"):
        other.fit("train", toy_net(), short())
