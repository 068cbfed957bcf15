"""Staircases: the step that was built in is found, and a layer is found by its name."""

from __future__ import annotations

import _made_up
import pytest
import torch

import secateur
from secateur.budget import Target
from secateur.errors import ConfigError
from secateur.latency import staircase
from secateur.models import create


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> secateur.Graph:
    monkeypatch.setattr("secateur.latency.stairs.timed", _made_up.timed)
    return secateur.trace(create("resnet20"), torch.zeros(1, 3, 32, 32))


def test_the_step_is_found(graph: secateur.Graph) -> None:
    found = staircase(graph, Target("pytorch"), "layer3.0.conv2")
    assert (found.outs, found.ins) == (64, 64)
    assert found.widths["outputs"] == tuple(range(32, 65))
    assert found.step("outputs") == found.step("inputs") == _made_up.STEP
    assert 0.4 < found.saved("outputs") < 0.6
    said = found.as_json()
    assert said["sides"]["inputs"]["step"] == _made_up.STEP
    assert said["conditions"]["runtime"] == "pytorch"


def test_the_largest_layer_by_default(graph: secateur.Graph) -> None:
    assert staircase(graph, Target("pytorch")).layer.startswith("layer")


def test_an_unknown_layer_is_named(graph: secateur.Graph) -> None:
    with pytest.raises(ConfigError, match=r"Unknown layer 'layer9\.0\.conv1'"):
        staircase(graph, Target("pytorch"), "layer9.0.conv1")
