"""Grouping against a definition that knows no rules: what must go along when one index of one weight goes.

Without biases, zeroing what produces a channel makes it zero whatever the input. Then whatever consumes it may hold
anything: that is what makes a group sound. If one of its producers is left out, what consumes it matters again: that is
what makes a group no larger than it must be.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from structures import CASES, Case
from torch import nn

from secateur import trace

# Convolutions, additions, concatenations and reshapes only: a gate dies from either side.
CHOSEN = (
    "plain chain", "residual, identity", "residual, projection", "dense concat", "dual path concat", "grouped",
    "partial slice (GhostNet)", "split by a list of sizes", "chunk: halves stay equal", "C2f of YOLO",
    "grouped, two group counts on one tensor (4 and 6)", "depthwise", "one input a group, several outputs",
    "transposed", "transposed, grouped", "channel shuffle by view and transpose", "two ShuffleNet v2 units",
    "pixel shuffle",
    "pixel unshuffle", "space to depth by strided slices", "flatten to linear", "flip and add: mirror pairs",
    "a convolution that runs twice", "a weight shared by two convolutions",
)  # fmt: skip
PICKED = [case for case in CASES if case.name in CHOSEN]
# Producers that come one after the other (a depthwise convolution after its input) die from either end.
IN_SERIES = (
    "partial slice (GhostNet)", "depthwise", "one input a group, several outputs", "a convolution that runs twice",
)  # fmt: skip
PARALLEL = [case for case in PICKED if case.name not in IN_SERIES]


def without_bias(case: Case) -> nn.Module:
    """The network with random weights and nothing that turns a zero into something else."""
    torch.manual_seed(3)
    model = case.build().double().eval()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                nn.init.normal_(parameter)
            elif "bias" in name:
                nn.init.zeros_(parameter)
    return model


def run(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model(inputs)
    return torch.cat([t.flatten() for t in (out if isinstance(out, list | tuple) else [out])])


def test_all_chosen_networks_exist() -> None:
    assert len(PICKED) == len(CHOSEN)


@pytest.mark.parametrize("case", PICKED, ids=str)
def test_what_a_channel_consumes_has_no_effect_once_its_producers_are_zero(case: Case) -> None:
    """Sound: with the producing rows zero, the consuming columns may hold anything. One channel at a time."""
    model, x = without_bias(case), case.inputs().double()
    for group in trace(model, x).groups:
        for channel in {0, group.width - 1}:
            zeroed = copy.deepcopy(model)
            for member in group.producers():
                if member.name in dict(zeroed.named_parameters()):
                    index = torch.from_numpy(member.index[channel])
                    zeroed.get_parameter(member.name).data.index_fill_(member.dim, index, 0)
            noisy = copy.deepcopy(zeroed)
            for member in group.consumers():
                weight = noisy.get_parameter(member.name).data
                index = torch.from_numpy(member.index[channel])
                noise = torch.randn(weight.index_select(member.dim, index).shape, dtype=weight.dtype)
                if not any(p.name == member.name for p in group.producers()):  # a square weight is both at once
                    weight.index_copy_(member.dim, index, noise)
            torch.testing.assert_close(run(noisy, x), run(zeroed, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", PARALLEL, ids=str)
def test_no_smaller_set_would_do(case: Case) -> None:
    """Leave out any one producer of a channel, and its consumers have an effect again: nothing is tied in vain."""
    model, x = without_bias(case), case.inputs().double()
    graph = trace(model, x)
    wrong = []
    for group in graph.groups:
        owned = [m for m in group.producers() if m.name in dict(model.named_parameters()) and m.name.endswith("weight")]
        owned = [m for m in owned if graph.tensors()[m.name].dim() > 1]
        consumers = {m.name for m in group.consumers()}
        for member in owned:
            for one in range(member.index.shape[1]):
                kept_alive = copy.deepcopy(model)
                for other in owned:
                    index = other.index[0]
                    if other is member:
                        index = np.delete(index, one)
                    kept_alive.get_parameter(other.name).data.index_fill_(other.dim, torch.from_numpy(index), 0)
                noisy = copy.deepcopy(kept_alive)
                for name in consumers - {m.name for m in owned}:
                    for m in group.consumers():
                        if m.name == name:
                            weight, index = noisy.get_parameter(name).data, torch.from_numpy(m.index[0])
                            weight.index_copy_(m.dim, index, 5 * torch.randn_like(weight.index_select(m.dim, index)))
                if not consumers - {m.name for m in owned}:
                    continue
                if torch.allclose(run(noisy, x), run(kept_alive, x), rtol=1e-9, atol=1e-9):
                    wrong.append((group.name, member.name, one))
    assert not wrong


@pytest.mark.parametrize("case", PICKED, ids=str)
def test_channels_are_disjoint_and_cover_what_is_not_frozen(case: Case) -> None:
    """Every index of every weight belongs to at most one channel of each dimension; indices outside are frozen."""
    model = without_bias(case)
    graph = trace(model, case.inputs().double())
    owners: dict[tuple[str, int], list[int]] = {}
    for group in graph.groups:
        for member in group.members:
            owners.setdefault((member.name, member.dim), []).extend(member.index.ravel().tolist())
    for (name, dim), indices in owners.items():
        assert len(indices) == len(set(indices))
        assert max(indices) < graph.tensors()[name].shape[dim]
    output = [f.name for f in graph.frozen]
    assert output
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    convs = [n for n in convs if f"{n}.weight" in graph.tensors()]  # a shared weight has one name
    for name in convs:
        dim = 1 if isinstance(model.get_submodule(name), nn.ConvTranspose2d) else 0
        whole = graph.tensors()[f"{name}.weight"].shape[dim]
        assert len(owners.get((f"{name}.weight", dim), [])) == whole or name in output or case.settled
