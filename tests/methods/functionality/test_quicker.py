"""The network that images climb on: it computes the same, and what cannot be folded is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import models
from secateur.graph import trace
from secateur.graph.norms import sources
from secateur.methods.functionality import Functionality, method
from secateur.methods.functionality.images import maximise
from secateur.methods.functionality.quicker import quicker

IMAGE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOGETHER = torch.channels_last


def lived_in(model: nn.Module) -> nn.Module:
    """With norms that have seen images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        model.train()(IMAGE)
    return model.eval()


class Scaled(nn.BatchNorm2d):
    """No norm alone, though it is derived from one."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(input))


class Viewed(nn.Sequential):
    """Flattens by a view."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(super().forward(x).view(len(x), -1), torch.ones(2, 8 * 16 * 16))


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_all_norms_of_a_network_are_folded_and_it_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = lived_in(models.create(name))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    twin, layout = quicker(model, sources(trace(model, IMAGE[:1])).of, IMAGE[:1])
    assert layout is TOGETHER
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert all(p.is_contiguous(memory_format=TOGETHER) for p in twin.parameters() if p.ndim == 4)
    with torch.no_grad():
        assert torch.allclose(twin(IMAGE.contiguous(memory_format=TOGETHER)), model(IMAGE), atol=1e-5)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_what_is_looked_at_watched_or_derived_is_not_folded() -> None:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3, padding=1), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))]
    norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(8), Scaled(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)]
    model = lived_in(nn.Sequential(*(each for pair in zip(convs, norms, strict=True) for each in pair)))
    convs[3].register_forward_hook(lambda _, __, output: 2 * output)
    twin, _ = quicker(model, sources(trace(model, IMAGE[:1])).of, IMAGE[:1], shown={"2"})
    assert [k for k, m in enumerate(twin.children()) if isinstance(m, nn.BatchNorm2d)] == [3, 5, 7]
    with torch.no_grad():
        assert torch.allclose(twin(IMAGE), model(IMAGE), atol=1e-5)


def test_a_network_that_views_maps_as_a_row_keeps_channels_apart() -> None:
    torch.manual_seed(0)
    model = lived_in(Viewed(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)))
    twin, layout = quicker(model, {"1": "0"}, IMAGE[:1])
    assert layout is torch.contiguous_format
    with torch.no_grad():
        assert torch.allclose(twin(IMAGE), model(IMAGE), atol=1e-4)


def test_images_are_those_of_the_network_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = lived_in(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16 * 16, 5),
        )
    )  # fmt: skip
    found: list[torch.Tensor] = []

    def noted(*args: Any, **keywords: Any) -> torch.Tensor:
        found.append(maximise(*args, **keywords))
        return found[-1]

    monkeypatch.setattr(method, "maximise", noted)
    for _ in range(2):
        pruner = Functionality(model, IMAGE[:1], budget="flops=0.6", ascent_steps=5, restarts=1)
        pruner.collect([(IMAGE, torch.arange(4))], F.cross_entropy)
        monkeypatch.setattr(method, "quicker", lambda model, *_, **__: (model, torch.contiguous_format))
    quick, plain = found[: len(found) // 2], found[len(found) // 2 :]
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(quick, plain, strict=True))
    assert {image.is_contiguous() for image in plain} == {True} != {image.is_contiguous() for image in quick}
