"""A setting that somebody before the method takes for himself is refused, and not ignored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ConfigError
from secateur.methods import Method, Settings


def _method(name: str) -> type[Method]:
    fields = {"__annotations__": {name: int}, name: 3, "__module__": __name__}
    config = type("Own", (Settings,), fields)
    ones = {"score": lambda self: {group.name: np.arange(group.width) for group in self.graph.groups}}
    return type("Mine", (Method,), {"name": "mine", "Config": config, **ones})


@pytest.mark.parametrize("name", ["name", "budget", "seed", "watch"])
def test_no_setting_is_named_like_what_every_constructor_takes(name: str) -> None:
    with pytest.raises(ConfigError, match=f"The setting {name!r} of Mine"):
        _method(name)


@pytest.mark.parametrize("name", ["align", "loss", "verify", "max_ratio", "data", "ratios"])
def test_prune_says_that_it_takes_an_argument_for_itself(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    images = torch.zeros(1, 3, 8, 8)
    mine = _method(name)
    with pytest.raises(ConfigError, match=f"The setting {name!r} of the method 'mine' is named like an argument of"):
        secateur.prune(network, images, method=mine, budget="flops=0.5")
    given: dict[str, Any] = {name: 5}
    made = mine(network, images, budget="flops=0.5", **given)
    assert getattr(made.settings, name) == 5


def test_other_names_are_settings() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    found = secateur.prune(network, torch.zeros(1, 3, 8, 8), method=_method("loss_of"), budget="flops=0.5", loss_of=7)
    assert found.plan.provenance["settings"] == {"loss_of": 7}
