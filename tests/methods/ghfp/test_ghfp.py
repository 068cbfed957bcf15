"""GHFP and its family: what the specification lists as properties, with its worked numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ConfigError
from secateur.graph import trace
from secateur.methods.ghfp import GHFP
from secateur.methods.ghfp.filters import Filters, event, floor_count
from secateur.models import create
from secateur.testing.networks import NETWORKS

TOY = {network.name: network for network in NETWORKS}
NONE = np.zeros(4, dtype=np.bool_)

#: floor(N P_t) and floor(N P_t lambda_t) behind each of 12 epochs, where 12 of 20 filters go.
SOFT = {
    "hfp": [12] * 12,
    "sfp": [12] * 12,
    "asfp": [0, 7, 10, 11, 11, 11, 11, 11, 11, 11, 11, 12],
    "srfp": [12] * 12,
    "asrfp": [0, 7, 10, 11, 11, 11, 11, 11, 11, 11, 11, 12],
    "ghfp": [2, 5, 6, 8, 9, 10, 11, 11, 11, 11, 11, 12],
}
HARD = dict.fromkeys(("sfp", "asfp", "srfp", "asrfp"), [0] * 11 + [12]) | {
    "hfp": [12] * 12,
    "ghfp": [0, 2, 4, 5, 7, 9, 10, 11, 11, 11, 11, 12],
}
#: alpha_t = (1e-5)^(t/12), save that it is 0 behind the last epoch.
DECAY = [1.0, 0.383119, 0.14678, 0.0562341, 0.0215443, 0.00825404, 0.00316228, 0.00121153, 4.64159e-4, 1.77828e-4]
DECAY += [6.81292e-5, 0.0]


def pair(width: int = 20) -> Any:
    """Filters of four weights each, and what reads them."""
    return nn.Sequential(nn.Conv2d(4, width, 1, bias=False), nn.Conv2d(width, 2, 1))


def pruner(model: nn.Module, steps: int, budget: str = "flops=0.4", size: int = 2, **settings: Any) -> GHFP:
    return GHFP(model, torch.randn(1, 4, size, size), budget=budget, steps=steps, **{"events": 0, **settings})


def epoch(method: GHFP, optimiser: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step."""
    method.train()
    optimiser.zero_grad()
    F.cross_entropy(method(images), labels).backward()
    method.after_backward()
    optimiser.step()
    method.after_step()
    method.after_epoch()


# ----------------------------------------------------------------------------------------------------------- one event


def test_multipliers_of_one_event() -> None:
    found = event(
        np.array([4.0, 1, 3, 2]), NONE, prune=floor_count(4, 0.75), harden=floor_count(4, 0.75 / 3), factor=0.5
    )
    assert found.multipliers.tolist() == [1, 0, 0.5, 0.5]
    assert found.pruned.tolist() == [False, True, True, True]
    assert found.hard.tolist() == [False, True, False, False]


def test_the_ends_of_the_scheme_are_the_other_methods() -> None:
    norms = np.array([4.0, 1, 3, 2])
    soft = event(norms, NONE, prune=2, harden=0, factor=0.0)
    assert soft.multipliers.tolist() == [1, 0, 1, 0]  # SFP: zero, and none for good
    assert not soft.hard.any()
    hard = event(norms, NONE, prune=2, harden=2, factor=0.7)
    assert (hard.multipliers.tolist(), hard.hard.tolist()) == ([1, 0, 1, 0], [False, True, False, True])  # HFP
    assert (event(norms, NONE, prune=2, harden=0, factor=1.0).multipliers == 1).all()  # SRFP's first: nothing changes


def test_two_soft_events_multiply() -> None:
    norms = np.array([4.0, 1, 3, 2])
    first = event(norms, NONE, prune=2, harden=0, factor=0.5).multipliers
    second = event(norms * first, NONE, prune=2, harden=0, factor=0.25).multipliers
    assert (first * second).tolist() == [1, 0.125, 1, 0.125]


@pytest.mark.parametrize(("width", "share", "wanted"), [(10, 1 - 0.9, 1), (100, 1 - 0.9, 10), (40, 1 - 0.8, 8)])
def test_counts_are_not_lost_to_rounding(width: int, share: float, wanted: int) -> None:
    assert floor_count(width, share) == wanted
    assert floor_count(8, 0.1) == 0  # N P < 1 prunes nothing


def test_hard_filters_stay_hard_and_ties_fall_to_the_lower_number() -> None:
    norms = np.array([0.0, 0, 0, 5])  # soft ones that are dead, too, before a hard one
    found = event(norms, np.array([False, False, True, False]), prune=2, harden=1, factor=0.0)
    assert found.hard.tolist() == [False, False, True, False]
    assert found.pruned.tolist() == [True, False, True, False]


# -------------------------------------------------------------------------------------------------------- the schedule


@pytest.mark.parametrize("member", SOFT)
def test_masks_of_every_epoch_of_twelve(member: str) -> None:
    """Against a replay of the equations filter by filter, with weights that move in between as if they were trained."""
    torch.manual_seed(0)
    model = pair()
    method, weight = pruner(model, 12, member=member), model[0].weight
    mine, frozen = weight.detach().double().flatten(1).numpy().copy(), set[int]()
    moves = np.random.default_rng(0).normal(0, 0.3, (12, *mine.shape))
    for t in range(12):
        with torch.no_grad():
            weight.add_(torch.from_numpy(moves[t]).to(weight).view_as(weight))
        method.after_step()
        method.after_epoch()
        mine += moves[t]
        mine[sorted(frozen)] = 0
        ranked = sorted(range(20), key=lambda i: (math.sqrt((mine[i] ** 2).sum()), i))
        alpha = DECAY[t] if member in ("srfp", "asrfp", "ghfp") else 0.0
        for i in ranked[: SOFT[member][t]]:
            mine[i] *= alpha
        frozen |= set(ranked[: HARD[member][t]])
        mine[sorted(frozen)] = 0
        assert np.flatnonzero(method.pruned).tolist() == sorted(ranked[: SOFT[member][t]]), f"S behind epoch {t}"
        assert np.flatnonzero(method.hard).tolist() == sorted(frozen), f"H behind epoch {t}"
        assert len(frozen) == HARD[member][t]
        assert np.abs(weight.detach().numpy().reshape(20, 4) - mine).max() < 1e-5
    assert np.flatnonzero(~method.plan().masks["0"]).tolist() == sorted(frozen)


def test_events_stand_behind_every_so_many_epochs_and_behind_the_last() -> None:
    method, seen = pruner(pair(), 10, interval=4, member="sfp"), []
    for _ in range(5):
        method.after_step()
        method.after_step()
        before = method.pruned.clone()
        method.after_epoch()
        seen.append(bool((method.pruned != before).any()))
    assert seen == [False, False, False, True, False]  # the one behind the last epoch hardens them
    assert int(method.hard.sum()) == 12
    assert method.metrics() == {"flops": pytest.approx(0.4), "channels": pytest.approx(0.4), "hard": 1.0}


def test_the_constructor_changes_no_weight() -> None:
    model = pair()
    before = model[0].weight.detach().clone()
    pruner(model, 4, member="hfp")
    assert torch.equal(model[0].weight, before)


# -------------------------------------------------------------------------------------------- hard and soft in training


def test_a_hard_filter_moves_unless_its_values_are_set() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], 0.1, momentum=0.9, nesterov=True)
    optimiser.state[weight]["momentum_buffer"] = torch.tensor([0.3])
    weight.grad = torch.zeros(1)  # masked only
    optimiser.step()
    assert weight.item() == pytest.approx(-0.0243)


def trained(member: str, epochs: int, *, momentum: float, norms: str = "scaled") -> tuple[GHFP, Any, list[Any]]:
    """A network with a norm whose channels are active; of every epoch, filters just before its event."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(4, 10, 1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 3, 1), nn.Flatten())
    model[1].bias.data.fill_(1.0)
    method = pruner(model, 3 * epochs, "flops=0.6", size=1, member=member, norms=norms)
    optimiser = torch.optim.SGD(method.parameters(), 0.1, momentum=momentum, weight_decay=5e-4)
    images, labels, seen = torch.randn(16, 4, 1, 1), torch.randint(0, 3, (16,)), []
    method.after_epoch, event_of = lambda: None, method.after_epoch  # type: ignore[method-assign]
    for _ in range(epochs):
        for _ in range(3):
            epoch(method, optimiser, images, labels)
        seen.append({"weight": model[0].weight.detach().clone(), "pruned": method.pruned.clone()})
        event_of()
    return method, model, seen


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_hard_filters_stay_zero_with_all_that_makes_them(momentum: float) -> None:
    method, model, seen = trained("hfp", 4, momentum=momentum)
    hard = method.hard
    assert int(hard.sum()) == 4
    assert all((row["pruned"] == hard).all() for row in seen[1:])  # sticky
    for row in seen[1:]:
        assert not row["weight"][hard].any()
    for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias, model[1].running_mean):
        assert not tensor[hard].any()
        assert tensor[~hard].all()
    assert all(p.grad is None or not p.grad[hard].any() for p in (model[0].weight, model[1].bias))


@pytest.mark.parametrize(("momentum", "norms"), [(0.9, "scaled"), (0.0, "left")])
def test_soft_filters_come_back(momentum: float, norms: str) -> None:
    _, _, seen = trained("sfp", 8, momentum=momentum, norms=norms)
    for row in seen[1:]:
        assert row["weight"][row["pruned"]].flatten(1).any(1).all()


def test_a_soft_filter_that_has_grown_is_pruned_no_more_and_a_hard_one_is() -> None:
    for member, left in (("sfp", True), ("hfp", False)):
        method = pruner(pair(), 4, member=member)
        method.after_step()
        method.after_epoch()
        first = int(method.pruned.nonzero()[0])
        method.model.get_parameter("0.weight").data[first] = 9.0
        method.after_step()
        method.after_epoch()
        assert bool(method.pruned[first]) != left


def test_norms_that_are_scaled_keep_a_soft_filter_down_without_momentum() -> None:
    _, _, seen = trained("sfp", 3, momentum=0.0)
    assert not seen[2]["weight"][seen[2]["pruned"]].any()


def test_norms_shrink_with_soft_filters_or_are_left() -> None:
    for norms, wanted in (("scaled", 0.5), ("left", 1.0)):
        model: Any = nn.Sequential(nn.Conv2d(4, 10, 1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 3, 1))
        model[1].bias.data.fill_(1.0)
        before = model[0].bias.detach().clone()
        method = pruner(model, 4, "flops=0.6", member="srfp", alpha=0.5, norms=norms)
        method.after_step()
        method.after_epoch()
        soft = method.pruned
        assert int(soft.sum()) == 4
        for parameter in (model[1].weight, model[1].bias):
            assert parameter[soft].tolist() == [wanted] * 4
            assert parameter[~soft].tolist() == [1.0] * 6
        assert torch.allclose(model[0].bias[soft], 0.5 * before[soft])


# ------------------------------------------------------------------------------------------------------- coupled groups


def test_one_norm_a_group_over_all_that_makes_a_channel() -> None:
    graph = trace(TOY["depthwise"].make(), TOY["depthwise"].inputs())
    found = Filters(graph).norms()
    weights = dict(graph.model.named_parameters())
    inner = next(g.name for g in graph.groups if g.width == 36)
    rows = [weights[f"body.{k}.weight"].detach().flatten(1) for k in (0, 3)]  # the expansion and the depthwise one
    assert found[inner] == pytest.approx(torch.cat(rows, 1).double().norm(dim=1).numpy())
    stream = next(g.name for g in graph.groups if g.width == 12)
    rows = [weights[f"{name}.weight"].detach().flatten(1) for name in ("stem.0", "body.6")]
    assert found[stream] == pytest.approx(torch.cat(rows, 1).double().norm(dim=1).numpy())


def test_streams_stay_whole_unless_the_budget_needs_them() -> None:
    for budget, says in (("flops=0.6", "stay whole: stem.0"), ("flops=0.1", "so they are pruned: stem.0")):
        method = GHFP(TOY["depthwise"].make(), TOY["depthwise"].inputs(), budget=budget, steps=2)
        assert any(says in note for note in method.notes)
        kept = method.plan().masks["stem.0"]
        assert kept.all() == (budget == "flops=0.6")


def test_the_narrow_network_is_the_trained_one_and_a_cut_too_early_says_what_it_lost() -> None:
    network, found = TOY["residual"], []
    for planned in (2, 8):
        method = GHFP(network.make(), network.inputs(), budget="flops=0.5", steps=planned)
        optimiser = torch.optim.SGD(method.parameters(), 0.05, momentum=0.9)
        for images, labels in network.batches(2):
            epoch(method, optimiser, images, labels)
        method.finish()
        found.append((method.agreement, [note for note in method.notes if "cut changed" in note]))
    assert found[0][0] < 1e-6
    assert not found[0][1]
    assert found[1][0] > 1e-3
    assert len(found[1][1]) == 1


def test_a_loop_without_ends_of_epochs_is_told() -> None:
    method = pruner(pair(), 4)
    method.train()
    method(torch.randn(1, 4, 2, 2))
    method.after_step()
    with pytest.raises(ConfigError, match=r"call after_epoch\(\) after every epoch"):
        method.finish()


# ------------------------------------------------------------------------------------------------- the published FLOPs


@pytest.mark.parametrize(("layers", "rate", "saved"), [(56, 0.4, 0.5263), (56, 0.3, 0.4106), (110, 0.3, 0.4078)])
def test_published_savings_of_sfp(layers: int, rate: float, saved: float) -> None:
    """Every convolution loses the rate of its filters, and of its inputs where one layer alone makes them.

    A zero in a filter is seen by the next convolution, and not behind a sum with the shortcut.
    """
    model, image = create(f"resnet{layers}"), torch.randn(2, 3, 32, 32)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    costs = []

    def watch(layer: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        sees_zeros = (inputs[0].abs().sum((0, 2, 3)) == 0).double().mean() > 0.45
        macs = layer.weight.numel() * output.shape[2] * output.shape[3]
        costs.append((macs, macs * (1 - rate) ** (2 if sees_zeros else 1)))

    generator = torch.Generator().manual_seed(0)
    for conv, norm in zip(convs, norms, strict=True):
        conv.register_forward_hook(watch)
        gone = torch.randperm(conv.out_channels, generator=generator)[: conv.out_channels // 2]  # in sums a quarter
        for tensor in (conv.weight, norm.weight, norm.bias):
            tensor.data[gone] = 0
    with torch.no_grad():
        model(image)
    assert len(costs) == layers - 1
    whole, left = np.array(costs).sum(0)
    assert 1 - left / whole == pytest.approx(saved, abs=5e-5)


# --------------------------------------------------------------------------------------------- events within epochs


def events_of(steps: int, epochs: int, **settings: Any) -> list[tuple[int, int, int]]:
    """(step, t, T) of every event of a training of so many epochs."""
    method, found = pruner(pair(), steps, **settings), list[tuple[int, int, int]]()
    original = method._event

    def noted(t: int, count: int) -> None:
        found.append((method.step, t, count))
        original(t, count)

    method._event = noted  # type: ignore[method-assign]
    for step in range(1, steps + 1):
        method.train()(torch.randn(2, 4, 2, 2))
        method.after_step()
        if step % (steps // epochs) == 0:
            method.after_epoch()
    return found


def test_a_short_training_has_its_events_within_epochs() -> None:
    """Twelve in three epochs, or as many as there are steps for; the last behind three quarters of the steps."""
    assert events_of(48, 3, events=12) == [(5, 0, 12), *((3 * k, k - 1, 12) for k in range(2, 13))]
    assert events_of(30, 3, events=4) == [(8, 0, 4), (12, 1, 4), (17, 2, 4), (23, 3, 4)]
    assert events_of(8, 2, events=12) == [(k + 1, k - 1, 6) for k in range(1, 7)]


def test_with_enough_epochs_events_are_behind_them() -> None:
    behind = [(2 * k, k - 1, 12) for k in range(1, 13)]
    assert events_of(24, 12, events=12) == behind
    assert events_of(24, 12, events=5) == behind
    assert events_of(24, 3, events=0) == [(8, 0, 3), (16, 1, 3), (24, 2, 3)]
    assert events_of(24, 6, events=12, interval=2) == [(8, 1, 6), (16, 3, 6), (24, 5, 6)]


def test_it_goes_on_between_two_events_within_an_epoch() -> None:
    torch.manual_seed(0)
    whole, first = (pruner(pair(), 24, events=12) for _ in range(2))
    first.load_state_dict(whole.state_dict())
    for method in (whole, first):
        for _ in range(7):
            method.train()(torch.ones(2, 4, 2, 2))
            method.after_step()
    second = pruner(pair(), 24, events=12)
    second.load_state_dict(first.state_dict())
    second.load_state(first.state())
    for method in (whole, second):
        for _ in range(17):
            method.train()(torch.ones(2, 4, 2, 2))
            method.after_step()
    assert torch.equal(whole.hard, second.hard)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
