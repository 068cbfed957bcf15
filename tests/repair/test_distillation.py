"""Distillation: its errors and first step worked out by hand, and networks that answer as they did again."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.plan import Plan
from secateur.repair import Case
from secateur.repair.distillation import Distillation, relative_error


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Residual(nn.Module):
    """A stream of four channels, which a branch of six is added to, and a norm in the branch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 4, 1)
        self.wide, self.norm, self.narrow = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 3)
        self.norm.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.narrow(self.norm(self.wide(x)).relu())
        found: torch.Tensor = self.head(x.mean((2, 3)))
        return found


def case_of(net: nn.Module, example: Any, group: str, removed: list[int]) -> Case:
    graph = secateur.trace(net, example)
    masks = {each.name: np.ones(each.width, dtype=np.bool_) for each in graph.groups}
    masks[group][removed] = False
    case = Case(copy.deepcopy(net), lambda: copy.deepcopy(net), graph, Plan(masks))
    case.clear()
    return case


def repaired(net: nn.Module, images: Any, group: str, removed: list[int], **settings: Any) -> Case:
    case = case_of(net, images[0][0][:1], group, removed)
    Distillation(**settings).apply(case, images)
    case.clear()
    return case


def test_relative_error_by_hand() -> None:
    assert relative_error(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 4.0])).item() == pytest.approx(4 / 25)
    assert relative_error(torch.tensor([1.0, 2.0]), torch.zeros(2)).item() == pytest.approx(5.0)


@pytest.mark.parametrize("inner", [0.0, 2.0])
def test_what_is_held_out_is_measured_as_said(inner: float) -> None:
    """Of 16 images numbers 8 and 16 are held out: answers, and what the layers read that lose no inputs."""
    net, images = Residual().double().eval(), [(draw(16, 2, 5, 5), None)]
    case = repaired(net, images, "wide", [1, 4], inner=inner, steps=1, rate=1e-9)
    cut, x = case_of(net, images[0][0], "wide", [1, 4]).model, images[0][0][[7, 15]]
    seen: dict[str, list[torch.Tensor]] = {}
    for each in (net, cut):
        for name in ("stem", "wide", "head"):  # not narrow, which loses inputs
            each.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: seen.setdefault(name, []).append(args[0])
            )
    with torch.no_grad():
        wanted = relative_error(*reversed([each(x) for each in (net, cut)]))
        wanted += inner * torch.stack([relative_error(now, was) for was, now in seen.values()]).mean()
    assert f"from {float(wanted):.3g} to" in case.notes[0]


def test_the_first_step_by_hand() -> None:
    """Adam's first step is its rate, whatever the gradient: a tenth of 0.2, times the size of the weights."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0], [2.0]]))
        net[1].weight.copy_(torch.tensor([[0.5, 0.5]]))  # twice what it reads; half of it once a channel is gone
    case = repaired(net, [(torch.ones(8, 1, dtype=torch.float64), None)], "0", [1], steps=1, rate=0.2)
    assert case.model.get_parameter("0.weight").flatten().tolist() == pytest.approx([2.04, 0.0])
    assert case.model.get_parameter("1.weight").flatten().tolist() == pytest.approx([0.51, 0.0])
    assert case.notes == ["Distillation took the error on images held out from 0.25 to 0.23."]  # ((2 - 1.02²) / 2)²


def test_a_network_answers_as_it_did_on_images_it_has_not_seen() -> None:
    net, images = Residual().double().eval(), [(draw(40, 2, 5, 5, seed=s), None) for s in range(5)]
    case = repaired(net, images, "wide", [0, 2], steps=150, rate=0.05)
    cut, x = case_of(net, images[0][0], "wide", [0, 2]), draw(100, 2, 5, 5, seed=9)
    with torch.no_grad():
        before, after = (float(relative_error(each.model(x), net(x))) for each in (cut, case))
    assert after < before / 20
    assert torch.equal(case.model.norm.running_mean, net.norm.running_mean)  # type: ignore[arg-type, union-attr]
    assert not bool(case.model.narrow.weight[:, [0, 2]].any())  # type: ignore[index, union-attr]
    again, other = (repaired(net, images, "wide", [0, 2], steps=3, seed=seed).model.state_dict() for seed in (1, 2))
    same = repaired(net, images, "wide", [0, 2], steps=3, seed=1).model.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in again.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in again.items())


def test_weights_stay_where_it_does_harm() -> None:
    net, images = Residual().double().eval(), [(draw(16, 2, 5, 5), None)]
    case = repaired(net, images, "wide", [5], steps=2, rate=1.0)
    wanted = case_of(net, images[0][0], "wide", [5]).model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in case.model.state_dict().items())
    assert "left the weights as they were" in case.notes[0]


class Pair(nn.Module):
    """Two inputs, and a whole number beside the answer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.second(self.first(a + b).relu())
        return {"scores": found, "best": found.argmax(1)}


def test_inputs_that_are_no_single_tensor_come_as_they_are() -> None:
    net = Pair().double().eval()
    images = [((draw(6, 3, seed=s), draw(6, 3, seed=s + 50)), None) for s in range(9)]
    case = case_of(net, images[0][0], "first", [0, 3])
    Distillation(steps=60, rate=0.05, batch=1).apply(case, images)  # the eighth batch is held out
    case.clear()
    a, b = draw(50, 3, seed=98), draw(50, 3, seed=99)
    with torch.no_grad():
        nets = net, case_of(net, images[0][0], "first", [0, 3]).model, case.model
        whole, bare, mended = (each(a, b)["scores"] for each in nets)
        before, after = float(relative_error(bare, whole)), float(relative_error(mended, whole))
    assert after < before / 3
