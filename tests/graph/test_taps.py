"""Where groups show in the forward pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import secateur


class _Shuffled(nn.Module):
    """Two convolutions side by side, concatenated, flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(3, 6, 3, padding=1)
        self.join = nn.Identity()
        self.flat = nn.Flatten()
        self.fc = nn.Linear(10 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.flat(self.join(torch.cat([self.a(x), self.b(x)], 1))))


def test_taps_name_outputs_dimensions_and_indices() -> None:
    graph = secateur.trace(_Shuffled(), torch.randn(2, 3, 4, 4))
    taps = {tap.module: tap for tap in graph.taps(next(g for g in graph.groups if g.name == "b"))}
    assert list(taps) == ["b", "join", "flat"]
    assert all(tap.dim == 1 and tap.position == 0 for tap in taps.values())
    assert np.array_equal(taps["b"].index[:, 0], np.arange(6))
    assert np.array_equal(taps["join"].index[:, 0], np.arange(4, 10))  # behind the four of `a`
    assert taps["flat"].index.shape == (6, 16)
    assert np.array_equal(taps["flat"].index[2], np.arange(6 * 16, 7 * 16))


def test_activations_at_a_tap_vanish_exactly_for_masked_channels() -> None:
    torch.manual_seed(0)
    model = _Shuffled()
    graph = secateur.trace(model, torch.randn(2, 3, 4, 4))
    group = next(g for g in graph.groups if g.name == "b")
    with torch.no_grad():
        model.b.weight[2] = 0
        model.b.bias[2] = 0
    seen = {}
    hook = model.flat.register_forward_hook(lambda _m, _i, out: seen.setdefault("flat", out))
    model(torch.randn(2, 3, 4, 4))
    hook.remove()
    index = next(t.index for t in graph.taps(group) if t.module == "flat")
    values = seen["flat"][:, torch.from_numpy(index)].abs().amax(dim=(0, 2))
    assert (values == 0).tolist() == [False, False, True, False, False, False]


class _Unused(nn.Module):
    """A branch that no forward pass takes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 4, 1)
        self.other = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def test_parameters_that_never_run_are_named_and_stay_whole() -> None:
    model = _Unused()
    graph = secateur.trace(model, torch.randn(1, 3, 4, 4))
    assert graph.never_ran == ("other.weight", "other.bias")
    small = secateur.prune(model, torch.randn(1, 3, 4, 4), budget="flops=0.5").model
    assert small.a.out_channels < 8
    assert small.other.weight.shape == (4, 8, 1, 1)


class _NeedsTargets(_Unused):
    """In training mode it wants targets, as detectors do."""

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        if self.training and targets is None:
            raise ValueError("targets are missing")
        return super().forward(x)


def test_why_training_branches_were_not_traced_is_told() -> None:
    graph = secateur.trace(_NeedsTargets(), torch.randn(1, 3, 4, 4))
    assert graph.never_ran == ("other.weight", "other.bias")
    assert graph.training_error == "ValueError: targets are missing"
    assert secateur.trace(_Unused(), torch.randn(1, 3, 4, 4)).training_error == ""
