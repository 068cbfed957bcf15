"""What cannot be pruned is refused in one sentence that names the true cause, and what can be is pruned rightly.

Each network may be dealt with either way; blaming Secateur's rules, a traceback or a wrong cut is neither.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _judge import TOLERANCE, cut_rightly, error, image, relu_conv, right_or_refused, unique
from torch import nn
from torch.nn import functional as F

import secateur


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = relu_conv(3, 16), relu_conv(16, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.between(self.b(self.a(x))).mean((2, 3)))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


def noise(x: torch.Tensor) -> torch.Tensor:
    return x + 0.3 * torch.randn_like(x)


def multiplied(x: torch.Tensor) -> torch.Tensor:
    return x * torch.empty_like(x).normal_(1, 0.3)


def dropped_paths(x: torch.Tensor) -> torch.Tensor:
    return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5)


def dropped_channels(x: torch.Tensor) -> torch.Tensor:
    return F.dropout2d(x, 0.5, training=True)


def alpha_dropped(x: torch.Tensor) -> torch.Tensor:
    return F.alpha_dropout(x, 0.4, training=True)


def gumbel(x: torch.Tensor) -> torch.Tensor:
    return x * F.gumbel_softmax(x.mean((2, 3)), dim=1)[..., None, None]


def shuffled_images(x: torch.Tensor) -> torch.Tensor:
    return x + x[torch.randperm(x.shape[0])] + torch.rand(1)


def by_python(x: torch.Tensor) -> torch.Tensor:
    return x * random.uniform(0.5, 1.5)


def by_numpy(x: torch.Tensor) -> torch.Tensor:
    return x + torch.from_numpy(np.random.rand(*x.shape[2:]).astype(np.float32))


def sampled(x: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(x, 0.5).sample()


def noisy_subset(x: torch.Tensor) -> torch.Tensor:
    return x * torch.multinomial(torch.ones(x.shape[0], 4), 1)[..., None, None]


RANDOM = [
    noise, multiplied, dropped_paths, dropped_channels, alpha_dropped, gumbel, shuffled_images, by_python, by_numpy,
    sampled, noisy_subset,
]  # fmt: skip


@pytest.mark.parametrize("function", RANDOM, ids=lambda f: f.__name__)
def test_a_random_forward_is_named_or_pruned_rightly(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = unique(Base()).eval()
    model.between = function
    result = right_or_refused(lambda: secateur.prune(model, image(), budget="flops=0.5"), "random", "dropout", "noise")
    if result is not None:
        model.between = result.model.between = lambda x: x  # the rest of it must compute the same
        assert error(model, result.model, image()) <= TOLERANCE


class Inferring(Base):
    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x)


class InferringPart(Base):
    """A frozen backbone under a block of its own, a head with gradients."""

    def forward(self, x: torch.Tensor) -> Any:
        with torch.inference_mode():
            x = self.b(self.a(x))
        return self.fc(x.clone().mean((2, 3)))


class InferringHead(Base):
    def forward(self, x: torch.Tensor) -> Any:
        x = self.b(self.a(x)).mean((2, 3))
        return self.classes(x)

    @torch.inference_mode()
    def classes(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


class InferringLeaf(Base):
    def __init__(self) -> None:
        super().__init__()
        leaf = self.b[0]
        leaf.forward = torch.inference_mode()(leaf.forward)


@pytest.mark.parametrize("build", [Inferring, InferringPart, InferringHead])
def test_inference_mode_in_the_forward_pass(build: Callable[[], nn.Module]) -> None:
    model = unique(build()).eval()
    result = right_or_refused(lambda: secateur.prune(model, image(), budget="flops=0.5"), "inference_mode")
    if result is not None:
        assert error(model, result.model, image()) <= TOLERANCE


def exported(model: nn.Module) -> Any:
    return torch.export.export(model, (image(),)).module()


def exported_program(model: nn.Module) -> Any:
    return torch.export.export(model, (image(),))


def scripted(model: nn.Module) -> Any:
    return torch.jit.trace(model, image())


def exported_part(model: nn.Module) -> Any:
    model.b = torch.export.export(model.b, (torch.zeros(2, 16, 8, 8),)).module()
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", [exported, exported_program, scripted, exported_part], ids=lambda h: h.__name__)
def test_exported_and_traced_modules(how: Callable[[nn.Module], Any]) -> None:
    given = how(unique(Base()).eval())
    names = ("export", "jit", "script", "traced", "ExportedProgram", "written in code")
    result = right_or_refused(lambda: secateur.prune(given, image(), budget="flops=0.5"), *names)
    if result is not None:
        assert result.reached("flops") <= 0.5
        assert result.verification.passed


def list_in_itself(model: nn.Module) -> None:
    model.notes = [1, 2]
    model.notes.append(model.notes)


def dict_in_itself(model: nn.Module) -> None:
    model.registry = {"width": 16}
    model.registry["self"] = {"again": model.registry}


def tuple_around_a_list(model: nn.Module) -> None:
    held: list[Any] = []
    model.sizes = (held, 16)
    held.append(model.sizes)


def model_in_a_list(model: nn.Module) -> None:
    model.owners = [model]
    model.b.parent = [model]  # a way back that PyTorch does not follow


def objects_in_a_circle(model: nn.Module) -> None:
    class Node:
        next: Any = None

    first, second = Node(), Node()
    first.next, second.next = second, first
    model.node = first


def module_in_itself(model: nn.Module) -> None:
    model.b.again = model


@pytest.mark.parametrize(
    "harm",
    [list_in_itself, dict_in_itself, tuple_around_a_list, model_in_a_list, objects_in_a_circle, module_in_itself],
    ids=lambda h: h.__name__,
)
def test_attributes_that_contain_themselves(harm: Callable[[nn.Module], None]) -> None:
    model = unique(Base()).eval()
    harm(model)
    result = right_or_refused(lambda: secateur.prune(model, image(), budget="flops=0.5"), "itself")
    if result is not None:
        assert result.model.a[0].out_channels < 16
        with torch.no_grad():
            assert result.model(image()).shape == (2, 5)


class WidthAndScale(Base):
    """One attribute is a width and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], self.width, -1, 8) / self.width**0.5


class MeanBySum(Base):
    """A mean over channels that divides by a width that is kept elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.sum(1, keepdim=True) / self.width).sigmoid()


class Depth(Base):
    """The width seen decides how often something is done."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(x.shape[1] // 8):
            x = x * 1.5 - 0.1
        return x


class Seen(Base):
    """The width seen is a number of the computation."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.shape[1] ** 0.5 + x.size(1) * 0.01


@pytest.mark.parametrize("build", [WidthAndScale, MeanBySum, Depth, Seen], ids=lambda b: b.__name__)
def test_a_width_that_is_also_a_number(build: Callable[[], nn.Module]) -> None:
    model = unique(build()).eval()
    names = ("width", "size", "number", "shape")

    def cut() -> None:
        proof = secateur.prune(model, image(), budget="flops=0.8").verification
        if proof.exact:
            cut_rightly(model, image(), 0.8, budget="flops=0.8", training=False)
        else:  # it computes what its code says at its own width, which is told
            assert any("depends on the width" in reason for reason in proof.reasons)

    right_or_refused(cut, *names)


class Late(Base):
    """Makes a layer when it runs, anew each time."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        self.late = nn.Conv2d(x.shape[1], x.shape[1], 1)
        return self.late(x)


class LateOnce(Base):
    """Makes a layer when it first runs, and has run."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Conv2d(x.shape[1], x.shape[1], 1)
        return self.late(x)


@pytest.mark.parametrize("build", [Late, LateOnce], ids=lambda b: b.__name__)
def test_layers_made_while_running(build: Callable[[], nn.Module]) -> None:
    model = unique(build()).eval()
    names = ("made", "late", "adds", "added", "during", "random")
    result = right_or_refused(lambda: secateur.prune(model, image(), budget="flops=0.5"), *names)
    if result is not None:
        with torch.no_grad():
            assert result.model(image()).shape == (2, 5)


class NoNumber(Base):
    """What is no number stands where a norm over channels makes the cut inexact."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 16)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return x.masked_fill(x > 1e9, math.nan) + torch.full((1,), math.nan).nan_to_num()


class Turned(Base):
    """A constant that is complex."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return (x * torch.tensor(1j)).imag


@pytest.mark.parametrize("build", [NoNumber, Turned], ids=lambda b: b.__name__)
def test_constants_that_are_no_real_numbers(build: Callable[[], nn.Module]) -> None:
    model = unique(build()).eval()
    proof = secateur.prune(model, image(), budget="flops=0.8").verification
    assert proof is not None
    assert proof.passed
    assert proof.exact is (build is Turned)
    assert not any("depends on the width" in reason for reason in proof.reasons)


class Branches(Base):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


def test_operators_that_take_functions_are_refused_by_name() -> None:
    """Layers of the branch that is not taken would stay wide, and both are compiled."""
    with pytest.raises(secateur.ModelError, match=r"calls torch's operator 'cond'.* Python's own if") as refusal:
        secateur.trace(Branches(), image())
    assert "report" not in str(refusal.value)
