"""DistributedDataParallel inside a method that trains, where it is taken off: every process would train by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import secateur
from secateur.errors import ConfigError, ModelError
from secateur.methods import METHODS, create

IMAGES, LABELS = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
TRAINING = [row.name for row in METHODS if row.acts == "while training"]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    body += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def _method(name: str, network: nn.Module) -> Any:
    return create(name, network, IMAGES[:2], budget="params=0.6" if name == "swp" else "flops=0.6", steps=6).train()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", TRAINING)
def test_a_wrapper_that_would_be_taken_off_is_refused_in_training(name: str) -> None:
    method = _method(name, DistributedDataParallel(_network()))
    method.before_forward(LABELS)
    remedy = r"all_reduce\(p.grad\)" if method.narrows else rf"DistributedDataParallel\(.*\) around {name}\."
    with pytest.raises(ModelError, match=f"{name} trains the network itself, .* {remedy}"):
        method(IMAGES)
    method.eval()(IMAGES)  # every process gets the same there


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrap", [lambda n: nn.DataParallel(DistributedDataParallel(n)), torch.compile])
def test_it_is_seen_at_every_depth(wrap: Any) -> None:
    inner = _network()
    network = wrap(inner) if wrap is not torch.compile else torch.compile(DistributedDataParallel(inner))
    with pytest.raises(ModelError, match="trains the network itself"):
        _method("ghfp", network)(IMAGES)


@pytest.mark.usefixtures("group")
def test_around_the_method_it_is_where_it_belongs() -> None:
    method = _method("ghfp", _network())
    DistributedDataParallel(method, find_unused_parameters=True)(IMAGES)
    inside = _method("ghfp", DistributedDataParallel(_network()))
    DistributedDataParallel(inside, find_unused_parameters=True)(IMAGES)  # whose gradients are averaged in any case
    found = secateur.prune(DistributedDataParallel(_network()), IMAGES[:2], budget="flops=0.6")  # nothing is trained
    assert type(found.model) is nn.Sequential


def test_a_network_trained_past_the_method_is_told_before_it_narrows() -> None:
    """As where DistributedDataParallel is put around `method.model`."""
    method = _method("dcpcac", _network())
    optimiser = torch.optim.SGD(method.model.parameters(), 0.01, momentum=0.9)

    def steps() -> None:
        for _ in range(6):
            output = method.model(IMAGES)
            method.after_forward(output, LABELS)
            nn.functional.cross_entropy(output, LABELS).backward()
            method.after_backward()
            optimiser.step()
            method.after_step()

    with pytest.raises(ConfigError, match="no forward pass in training: call the pruner"):
        steps()
