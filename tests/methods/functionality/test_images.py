"""Activation maximisation: what images converge to and that they excite their channel; contributions in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ConfigError
from secateur.methods.functionality.images import (
    Ascent,
    Contribution,
    Extremes,
    Maps,
    View,
    ascend,
    blurred,
    directions,
    maximise,
    true_logit,
)
from secateur.statistics.gather import gather


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip


EYE = np.arange(6)[:, None]
FIRST = View("3", EYE, "1", 1, EYE)
LAST = View("7", np.arange(5)[:, None], "3", 1, np.arange(5)[:, None])


def test_one_position_converges_to_the_kernel() -> None:
    layer = nn.Conv2d(3, 4, 5, bias=False)
    kernels = layer.weight.detach()
    start = (0.1 * noise(3, 9, 9)).expand(4, 3, 9, 9)
    found = ascend(lambda x: layer(x)[torch.arange(4), torch.arange(4), 2, 2], start, Ascent(300, 1.0, 0.0))
    patches = found[:, :, 2:7, 2:7]
    assert (F.cosine_similarity(patches.flatten(1), kernels.flatten(1)) > 0.999).all()


def test_the_objective_grows_and_images_excite_their_own_channel_most() -> None:
    model, start = network(), 0.1 * noise(3, 12, 12)
    found = [maximise(model, FIRST, start, Ascent(steps, 0.2, 0.0)) for steps in (1, 5, 20, 60)]
    with Maps(model, FIRST).open() as maps:
        values = torch.stack([maps.of(np.arange(6))(images) for images in found])
        each = torch.stack([maps.of(np.full(6, c))(found[-1]) for c in range(6)])  # channel c on every image
    assert (values.diff(dim=0) > 0).all()
    assert (each.argmax(1) == torch.arange(6)).sum() >= 5


def test_momentum_and_shorter_steps_climb_higher_in_as_many() -> None:
    """By hand: v <- 0.9 v + 1 along a fixed direction, steps of rate · (1 + cos(π t / T))."""
    start = torch.zeros(1, 1, 2, 2)
    flat = ascend(lambda x: x.sum((1, 2, 3)), start, Ascent(3, 1.0, 0.0, momentum=0.9))
    assert float(flat[0, 0, 0, 0]) == pytest.approx(
        (2 * 1 + 1.5 * 1.9 + 0.5 * 2.71) / 2, abs=1e-5
    )  # four pixels: a length of 2
    model, begin = network(), 0.1 * noise(3, 12, 12)
    low, high = torch.full((3,), -1.0), torch.full((3,), 1.0)
    found = {m: maximise(model, FIRST, begin, Ascent(10, 0.3, 0.0, low, high, m)) for m in (0.0, 0.9)}
    with Maps(model, FIRST).open() as maps:
        value = {momentum: maps.of(np.arange(6))(images).mean() for momentum, images in found.items()}
    assert value[0.9] > 1.1 * value[0.0]


def test_images_do_not_depend_on_the_chunk_and_the_model_is_left_alone() -> None:
    model, start = network().train(), 0.1 * noise(3, 10, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    a = maximise(model, FIRST, start, Ascent(10, 0.5), chunk=2)
    b = maximise(model, FIRST, start, Ascent(10, 0.5), chunk=64)
    assert torch.allclose(a, b, atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_where_an_activation_lets_nothing_through_what_comes_before_it_climbs() -> None:
    model = network()
    with torch.no_grad():
        model[1].bias.fill_(-3.0)
    start = 0.1 * noise(3, 10, 10)
    climbed = maximise(model, FIRST, start, Ascent(60, 3.0, 0.0))
    with Maps(model, FIRST).open() as maps:
        before = maps.of(np.arange(6))(start.expand(6, 3, 10, 10))
        assert (before < 0).all()  # the map itself would be 0 everywhere, and its gradient too
        after = maps.of(np.arange(6))(climbed)
    assert (after > before + 1).all()


def test_pixels_stay_in_their_range_and_blur_keeps_brightness() -> None:
    low, high = torch.tensor([-1.0, -0.5, 0.0]), torch.tensor([1.0, 0.5, 0.25])
    found = maximise(network(), FIRST, 0.1 * noise(3, 8, 8), Ascent(30, 5.0, 0.4, low, high))
    assert (found.amin((0, 2, 3)) >= low).all()
    assert (found.amax((0, 2, 3)) <= high).all()
    flat = torch.full((2, 3, 6, 6), 0.7)
    assert torch.allclose(blurred(flat, 0.4), flat)
    assert torch.equal(blurred(found, 0.0), found)
    assert blurred(found, 0.8).var() < found.var()


def test_directions_do_not_see_contrast_brightness_or_with_spectra_the_place() -> None:
    images = noise(4, 3, 8, 8)
    found = directions(images)
    assert torch.allclose(found.norm(dim=1), torch.ones(4))
    assert torch.allclose(directions(3 * images + 2), found, atol=1e-5)
    assert torch.equal(directions(torch.ones(2, 3, 4, 4)), torch.zeros(2, 48))
    moved = images.roll((2, 3), (2, 3))
    assert not torch.allclose(directions(moved), found, atol=0.1)
    assert torch.allclose(directions(moved, anywhere=True), directions(images, anywhere=True), atol=1e-5)


def contributions(model: nn.Module, view: View, batches: Any, kind: Any = "gradient") -> torch.Tensor:
    collector = Contribution([view], kind)
    gather(model, batches, [collector], true_logit)
    return collector.means()[0]


def test_contribution_in_closed_form() -> None:
    """Z = Σ u_i mean A_i, so γ_i = |u_i| / positions, whatever the images and wherever the map is looked at."""
    model = nn.Sequential(*list(network())[:3], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    view = View("5", EYE, "1", 1, EYE)
    labels = torch.full((8,), 2)
    found = contributions(model, view, [(noise(8, 3, 10, 10), labels)])
    assert torch.allclose(found, model[5].weight[2].abs().double() / 100)
    taylor = contributions(model, view, [(noise(8, 3, 10, 10), labels)], "taylor")
    maps = model.eval()[:3](noise(8, 3, 10, 10)).mean((0, 2, 3))
    assert torch.allclose(taylor, (model[5].weight[2].abs() * maps).double() / 100, rtol=1e-4)


def test_contribution_does_not_cancel_and_does_not_depend_on_batches() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
    view = View("3", np.arange(2)[:, None], "0", 1, np.arange(2)[:, None])
    x, labels = noise(6, 1, 1, 1), torch.tensor([0, 1, 0, 1, 1, 0])
    assert contributions(model, view, [(x, labels)]).tolist() == [1.0, 2.0]
    assert contributions(model, view, [(x[:4], labels[:4]), (x[4:], labels[4:])]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("inplace", [True, False])
def test_contribution_of_a_map_inside(inplace: bool) -> None:
    model = network(inplace).eval()
    x, labels = noise(4, 3, 6, 6), torch.tensor([0, 1, 2, 3])
    maps = model[:3](x).detach().requires_grad_()
    model[3:](maps).gather(1, labels[:, None]).sum().backward()
    assert maps.grad is not None
    wanted = maps.grad.abs().mean((0, 2, 3)).double()
    assert torch.allclose(contributions(model, FIRST, [(x, labels)]), wanted, rtol=1e-4)


def test_answers_are_logits_of_true_classes_or_of_predicted_ones() -> None:
    logits = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert true_logit(logits, torch.tensor([0, 1])).item() == 1.5
    assert true_logit(logits, torch.tensor([[1.0, 0.0], [0.2, 0.8]])).item() == 1.5
    assert true_logit(logits, torch.tensor([[0], [1]], dtype=torch.uint8)).item() == 1.5
    assert true_logit(logits, torch.tensor([0, 255])).item() == 2.0  # the second is of no class
    assert true_logit(logits, None).item() == 4.0
    assert true_logit(logits, torch.tensor([[-1.0, -0.5], [0.7, 0.1]])).item() == 4.0  # numbers are no shares
    for target in (torch.tensor([0, 1]), torch.tensor([-1.3, 2.5]), torch.ones(2, 1)):
        assert true_logit(logits[:, :1], target).item() == 2.0  # a single output is no class
    assert true_logit(logits[:, :, None, None].expand(2, 2, 3, 3), None).item() == 4.0
    with pytest.raises(ConfigError, match="there is no logit to look at"):
        true_logit(torch.zeros(3), None)


def test_extremes() -> None:
    collector, model = Extremes(), network()
    gather(model, [(noise(4, 3, 6, 6), 0), (noise(3, 3, 6, 6, seed=1), 0)], [collector])
    every = torch.cat([noise(4, 3, 6, 6), noise(3, 3, 6, 6, seed=1)]).transpose(0, 1).flatten(1)
    assert torch.equal(collector.low, every.amin(1))
    assert torch.equal(collector.high, every.amax(1))
