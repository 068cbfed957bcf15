"""Steering by worked numbers: the ramp, the controller's two parts, its bounds, and the level of the gates."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from secateur.methods.bwcp import BWCP
from secateur.methods.bwcp.steering import Ramp, Steering
from secateur.models import create

MARGINS = {"a": np.array([-3.0, -1.0, 1.0, 3.0]), "b": np.array([-2.0, 0.5, 2.0, 4.0])}


class FakeGates:
    """Eight channels; what is open is all that counts."""

    level = 0.0

    def margins(self) -> dict[str, np.ndarray[Any, Any]]:
        return MARGINS

    def closed_below(self, level: float, margins: Mapping[str, Any]) -> dict[str, Any]:
        return {name: z >= level for name, z in margins.items()}


#: The share of the network left is that of open channels, and half of it is wanted.
AIM: Any = SimpleNamespace(goal=0.5, fraction=lambda widths: sum(widths.values()) / 8)


def steering(**settings: Any) -> Steering:
    numbers = {"most": 0.1, "reward": 0.5, "proportional": 2.0, "gain": 20.0, "level": True} | settings
    gates: Any = FakeGates()
    return Steering(gates, AIM, Ramp(0.1, 0.3), **numbers)


def test_the_ramp() -> None:
    ramp = Ramp(0.1, 0.3)
    assert [ramp.wanted(at, 0.5) for at in (0.0, 0.1, 0.2, 0.3, 1.0)] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5])


def test_the_strength_has_a_proportional_and_an_integral_part() -> None:
    """5 of 8 channels are open where half are wanted: an excess of 0.125 at every look."""
    s = steering()
    s.look(1.0, 0.01)
    assert s.strength == pytest.approx(0.1 * (20 * 0.125 * 0.01 + 2 * 0.125))
    s.look(1.0, 0.01)
    assert s.strength == pytest.approx(0.1 * (20 * 0.125 * 0.02 + 2 * 0.125))
    for settings, wanted in (({"gain": 0.0}, 2 * 0.125), ({"proportional": 0.0}, 20 * 0.125 * 0.02)):
        s = steering(**settings)
        s.look(1.0, 0.01)
        s.look(1.0, 0.01)
        assert s.strength == pytest.approx(0.1 * wanted)
    for _ in range(100):
        s.look(1.0, 0.5)
    assert s.strength == 0.1  # the most


def test_too_little_is_rewarded_within_bounds() -> None:
    """At the start of the ramp everything is wanted, and 3 of 8 are shut."""
    s = steering()
    s.look(0.0, 0.001)
    assert s.strength == pytest.approx(-0.1 * 0.5)  # -0.0075 - 0.75, and no more than the reward
    s = steering(proportional=0.0)
    s.look(0.0, 0.01)
    assert s.strength == pytest.approx(-0.1 * 20 * 0.375 * 0.01)


def test_the_level_leaves_what_is_wanted() -> None:
    """Four channels of eight: the level lies between the fourth margin from above, 1, and the fifth, 0.5."""
    s = steering()
    s.look(1.0, 0.01)
    assert s.gates.level == pytest.approx((1.0 + 0.5) / 2)
    s.look(0.2, 0.01)  # six channels are wanted
    assert s.gates.level == pytest.approx((-2.0 - 1.0) / 2)
    s = steering(level=False)
    s.look(1.0, 0.01)
    assert s.gates.level == 0.0


def pruner(**settings: Any) -> BWCP:
    torch.manual_seed(0)
    return BWCP(create("tiny"), torch.zeros(2, 3, 32, 32), budget="flops=0.6", steps=100, **settings)


def test_gates_sharpen_from_the_end_of_the_warm_up() -> None:
    method = pruner(warmup=0.2, sharpness=[10.0, 60.0])
    for step, (is_open, sharpness) in {
        10: (False, 10.0),
        20: (True, 10.0),
        60: (True, 35.0),
        100: (True, 60.0),
    }.items():
        method.step = step
        method._follow()
        assert (method.gates.open, method.gates.sharpness) == (is_open, pytest.approx(sharpness))


def test_the_penalty_on_gamma_is_ratio_times_that_on_beta() -> None:
    """The sum over norms of strength (ratio |gamma| + beta), on channels that are pressed."""
    for ratio in (2.0, 0.5):
        method = pruner(ratio=ratio, warmup=0.0)
        method.gates.open = True
        method.steering.strength = 0.3
        method._press()
        gamma = torch.cat([layer.weight for layer in method.gates.layers.values()])
        beta = torch.cat([layer.bias for layer in method.gates.layers.values()])
        wanted = 0.3 * (method._pressure * (ratio * gamma.abs() + beta)).sum()
        assert method.loss().item() == pytest.approx(wanted.item(), rel=1e-5)
        assert wanted.item() > 0
        assert float(method._pressure.sum()) > 0


def test_a_level_out_of_reach_shuts_all_gates_of_training_but_the_floors() -> None:
    method = pruner(warmup=0.0, floor=0.25)
    method.gates.open, method.gates.sharpness = True, 60.0
    means = []
    for level in (-1.0, 9.0):
        method.gates.level = level
        masks = {name: torch.cat([m[None] for m in _drawn(method, name)]) for name in method.gates.owners}
        means.append(float(torch.cat([mask.flatten() for mask in masks.values()]).mean()))
    assert means[0] > 0.95
    assert means[1] == pytest.approx(0.25, abs=0.02)


def _drawn(method: BWCP, group: str) -> list[torch.Tensor]:
    """The gates of training, drawn a few times."""
    method.train()
    layer = next(layer for layer in method.gates.layers.values() if layer.key in method.gates.owners[group])
    roots = getattr(layer, "root", None)
    return [method.gates._mask_of(group, layer, roots).detach() for _ in range(3)]


def test_soft_gates_stand_at_their_level() -> None:
    """A channel whose margin is the level is open half of the time; one sharper step away hardly ever shut."""
    from secateur.methods.bwcp.concrete import gate_logit, soft_gate

    uniform = torch.linspace(0.001, 0.999, 999)
    for above, sharpness, share in ((0.0, 60.0, 0.5), (0.5, 10.0, 0.872), (0.5, 60.0, 1.0)):
        z = torch.full_like(uniform, above)
        gate = soft_gate(gate_logit(z, "probability", sharpness), uniform, 0.5)
        assert float((gate > 0.5).float().mean()) == pytest.approx(share, abs=0.01)
