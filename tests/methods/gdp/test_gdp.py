"""GDP: what the specification lists as properties and traps, with its worked numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ConfigError
from secateur.methods.gdp import GDP
from secateur.methods.gdp.polarization import smooth_count
from secateur.testing.networks import NETWORKS

TOY = {network.name: network for network in NETWORKS}


def toy(name: str = "residual", budget: str = "flops=0.5", steps: int = 100, **settings: Any) -> GDP:
    given = {"streams": True, "even": False, **settings}
    return GDP(TOY[name].make(), TOY[name].inputs(), budget=budget, steps=steps, **given)


def train(method: GDP, steps: int, lr: float = 0.05, *, seed: int = 0, **options: Any) -> list[dict[str, float]]:
    network = TOY["residual"]
    optimiser = torch.optim.SGD(method.parameter_groups(options.pop("decay", 0.0)), lr, **options)
    method.train()
    seen = []
    for images, labels in network.batches(steps, seed=seed):
        optimiser.zero_grad()
        (F.cross_entropy(method(images), labels) + method.loss()).backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
        seen.append(method.metrics())
    return seen


def ahead(method: GDP, progress: float) -> None:
    """As if this share of training were over."""
    method.step = round(progress * method.steps)


# ------------------------------------------------------------------------------------------------- where gates stand


@pytest.mark.parametrize("name", TOY)
def test_inserting_gates_changes_nothing(name: str) -> None:
    model, images = TOY[name].make().eval(), TOY[name].inputs()
    wanted = model(images)
    method = GDP(model, images, budget="flops=0.7", steps=10).eval()
    assert torch.allclose(method(images), wanted, atol=1e-6)
    ahead(method, 0.7)  # nor does the fall of eps, where gates are at 1
    assert method.eps < 0.01
    assert torch.allclose(method(images), wanted, atol=1e-5)


def test_readers_of_one_stream_share_one_gate_and_depthwise_layers_have_none() -> None:
    method = toy()
    assert [name for name, p in method.named_parameters() if not name.startswith("model.")] == ["a"]
    stream = {name: index[:24].tolist() for name, index in method.gates._index.items() if name != "head.fc"}
    assert {name for name, index in stream.items() if index == list(range(24))} == {"first.0", "second.0", "neck.0"}
    depthwise = toy("depthwise", "flops=0.6", 10)
    assert set(depthwise.gates._index) == {"body.0", "body.6", "head.fc"}  # body.3 filters channel by channel


def test_weight_decay_leaves_gates_alone() -> None:
    method = toy(strength=0.0, phases=[0.5, 0.9, 1.0])
    free = method.parameter_groups(0.1)[-1]
    assert free["weight_decay"] == 0
    assert free["params"] == [method.a]


# --------------------------------------------------------------------------------------------------- pull and shutting


def test_the_loss_reports_the_cost_and_pulls_by_its_linear_form() -> None:
    method = toy(strength=3.0)
    ahead(method, 0.2)
    method.a.data.uniform_(0.2, 1.2, generator=torch.Generator().manual_seed(0))
    method.eval()
    opened = smooth_count(method.a.detach().double(), 0.1)
    widths = np.bincount(method._group, opened.numpy())
    share = float(method.graph.costs.evaluate(widths)["macs"]) / method.graph.cost().macs
    found = method.loss()
    assert found.item() == pytest.approx(3 * (share - 0.5), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, method.a)
    nudged = widths.copy()
    nudged[1] += 1e-3
    price = (float(method.graph.costs.evaluate(nudged)["macs"]) / method.graph.cost().macs - share) / 1e-3
    slopes = (0.2 * method.a / (method.a.square() + 0.1).square()).detach()
    inside = torch.from_numpy(method._group == 1)
    largest = (method.a.detach() * inside).argmax()  # the one that must stay is not pulled
    wanted = 3 * price * slopes * inside
    wanted[largest] = 0
    assert torch.allclose(gradient[inside], wanted[inside].float(), rtol=1e-3)


def pull(method: GDP) -> bool:
    """Whether the penalty has a gradient."""
    found = method.loss()
    return found.requires_grad and bool(torch.autograd.grad(found, method.a)[0].any())


def test_the_pull_waits_and_ends_and_stops_when_open_gates_meet_the_budget() -> None:
    method = toy(strength=1.0)
    for progress, pulls in ((0.0, False), (0.09, False), (0.1, True), (0.59, True), (0.61, False)):
        ahead(method, progress)
        assert pull(method) == pulls
    ahead(method, 0.3)
    method.a.data.fill_(0.2)  # the soft cost alone meets it
    assert method.loss().item() == 0
    assert pull(method)
    masks = method.plan().masks
    method._shut(~np.concatenate([masks[g.name] for g in method.graph.groups]))
    assert not pull(method)


@pytest.mark.parametrize("options", [{"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "decay": 1e-2}, {}])
def test_shut_gates_stay_shut(options: dict[str, Any]) -> None:
    method = toy(strength=0.0)
    optimiser_moves = train(method, 2, momentum=0.9)
    assert not any(row["shut"] for row in optimiser_moves)
    shut = np.arange(len(method.a)) % 3 == 0
    method._shut(shut)
    train(method, 5, 0.1, **options)
    assert not method.a[torch.from_numpy(shut)].any()
    assert method.a[torch.from_numpy(~shut)].all()
    method.a.data[torch.from_numpy(shut)] = 0.3  # as momentum from before would
    method.after_step()
    assert not method.a[torch.from_numpy(shut)].any()


def test_a_gradient_of_zero_does_not_hold_a_gate_against_momentum() -> None:
    a = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([a], 0.1, momentum=0.9, nesterov=True)
    optimiser.state[a]["momentum_buffer"] = torch.tensor([1.0])
    smooth_count(a, 0.1).sum().backward()
    assert a.grad == 0
    optimiser.step()
    assert a.item() == pytest.approx(-0.081)


def test_gates_that_are_nearly_shut_or_cross_zero_are_shut_save_the_last_of_a_group() -> None:
    method = toy(strength=0.0, budget="flops=0.02")
    first = torch.from_numpy(method._group == 0)
    method.a.data[first] = 0.0099
    method.a.data[0] = 0.00995
    method.a.data[30], method.a.data[31], method.a.data[32] = -0.5, 0.0099, 0.0101
    method.after_step()
    assert method.shut[first].tolist() == [False] + [True] * 23
    assert method.shut[[30, 31, 32]].tolist() == [True, True, False]
    assert method._crossed == 1


def test_no_more_gates_are_shut_than_the_budget_asks_for_and_the_smallest_first() -> None:
    method = toy(strength=0.0)
    stream, neck = (torch.from_numpy(method._group == number) for number in (0, 3))
    method.a.data[stream] = torch.linspace(0.001, 0.009, 24)
    method.after_step()
    shut = method.shut[stream].tolist()
    assert shut == [True] * sum(shut) + [False] * (24 - sum(shut))
    assert method.metrics()["flops"] > 0.5  # one more, and too much would go
    before = int(method.shut.sum())
    method.a.data[neck] = torch.linspace(0.005, 0.0099, 96)
    method.after_step()
    assert 0.99 * 0.5 <= method.metrics()["flops"] <= 0.5
    assert method.shut[stream].tolist() == shut
    assert 0 < int(method.shut.sum()) - before < 95


def test_where_strength_is_raised_all_groups_are_pulled_alike() -> None:
    """The gradient of the loss is strength times the mean price times g', for every gate that may shut."""
    method = toy(even=None)
    assert method.strength > 1
    assert method.even
    ahead(method, 0.2)
    method.a.data.uniform_(0.8, 1.2, generator=torch.Generator().manual_seed(0))
    method.loss().backward()
    price = method.cost.at(method._soft(method.opened()))[1][method._group].mean()
    a, eps = method.a.detach().double(), method.eps
    slopes = 2 * a * eps / (a.square() + eps).square()
    wanted = method.strength * price * slopes * torch.from_numpy(method._above_floors())
    assert torch.allclose(method.a.grad.double(), wanted, rtol=1e-4)
    assert not toy(even=None, steps=10**9).even  # a long training: the price decides
    assert not toy(even=None, strength=50.0).even


def test_streams_stay_whole_unless_they_are_asked_for_or_needed() -> None:
    inside, wide = toy(streams=False), toy(streams=True)
    gated = [{m.graph.groups[k].name for k in set(m._group.tolist())} for m in (inside, wide)]
    assert gated[0] < gated[1]
    assert any("stay whole" in note for note in inside.notes)
    assert not any("stay whole" in note for note in wide.notes)
    needed = toy(streams=False, budget="flops=0.05")
    assert {needed.graph.groups[k].name for k in set(needed._group.tolist())} == gated[1]
    assert any("so they are pruned" in note for note in needed.notes)


def test_without_strength_nothing_closes_and_with_much_it_closes_until_the_budget_is_met() -> None:
    assert not train(toy(strength=0.0, steps=60), 30)[-1]["shut"]
    strong = toy(strength=60.0, steps=60)
    seen = train(strong, 36)
    assert seen[-2]["flops"] < 0.6  # by the pull alone
    assert 0.99 * 0.5 <= seen[-1]["flops"] <= 0.5
    assert seen[-1]["between"] < 0.1  # polarised
    assert min(strong._widths().values()) >= 1


def test_what_the_pull_leaves_over_is_shut_at_its_end_and_said() -> None:
    method = toy(strength=0.0, steps=10)
    train(method, 6)
    shut = int(method.shut.sum())
    assert shut > 0
    assert method.metrics()["flops"] <= 0.5
    assert any(f"was not met: the {shut} of 184 gates nearest to zero" in note for note in method.notes)
    order = method.score()
    kept = method.plan().masks
    assert all(order[name][kept[name]].min() > 0 for name in kept)


def test_eps_falls_between_its_phases() -> None:
    method, found = toy(), []
    for progress in (0.0, 0.6, 0.7, 0.8, 1.0):
        ahead(method, progress)
        found.append(method.eps)
    assert found == pytest.approx([0.1, 0.1, 0.1**2.5, 1e-4, 1e-4])


def test_a_short_training_has_a_stronger_pull() -> None:
    short, longer = toy(steps=100).strength, toy(steps=200).strength
    assert short == pytest.approx(2 * longer)
    assert toy(steps=10**9).strength == 1


@pytest.mark.parametrize("settings", [{"phases": [0.6, 0.5, 0.8]}, {"eps": [1e-4, 0.1]}])
def test_settings_out_of_order_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        toy(**settings)


# ---------------------------------------------------------------------------------------------------------- the result


def test_the_folded_narrow_network_is_the_gated_one() -> None:
    network = TOY["residual"]
    method = GDP(network.make().double(), network.inputs().double(), budget="flops=0.5", steps=10, streams=True)
    method.double()
    method.a.data.uniform_(0.1, 1.3, generator=torch.Generator().manual_seed(0))
    method.a.data[::3] = 0
    method.shut.copy_(method.a == 0)
    method._follow()
    images = network.inputs().double()
    method.eval()
    with torch.no_grad():
        assert torch.allclose(method.plain().eval()(images), method(images), atol=1e-12)
        with method.evaluation_modes()["hard"]:
            wanted = method(images)
        assert torch.allclose(method.finish().eval()(images), wanted, atol=1e-12)
    plan = method.plan()
    for number, group in enumerate(method.graph.groups):
        gates = method.a[torch.from_numpy(method._group == number)].detach()
        gone = ~torch.from_numpy(plan.masks[group.name])
        assert not (gone & (gates > gates[~gone].min())).any()  # the smallest gates of a group


def test_an_average_of_weights_keeps_shut_gates_shut() -> None:
    method = toy(strength=0.0)
    method._shut(np.arange(len(method.a)) % 2 == 0)
    method.a.data.fill_(0.4)  # what an average over the steps before has
    assert not method.opened()[::2].any()
    assert method.opened()[1::2].all()
    assert all((s > 0).sum() == (len(s) + 1) // 2 or (s > 0).sum() == len(s) // 2 for s in method.score().values())


def test_gates_are_in_single_precision_under_autocast() -> None:
    method = toy(strength=0.0)
    method.a.data.fill_(1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        opened = method.opened()
    assert opened.dtype == torch.float32
    assert opened.min() > 0


# ----------------------------------------------------------------------------------------------- a task of the kind xor


def xor(strength: float, last: float) -> tuple[int, list[float], float]:
    """32 hidden gates on a task of the kind xor, a penalty on their mean, eps 0.1 to `last`: shut, open, accuracy."""
    torch.manual_seed(0)
    x = torch.rand(512, 8) * 2 - 1
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    hidden, out, a = nn.Linear(8, 32), nn.Linear(32, 2), nn.Parameter(torch.ones(32))
    optimiser = torch.optim.SGD([*hidden.parameters(), *out.parameters(), a], 0.1, momentum=0.9)
    shut, eps = torch.zeros(32, dtype=torch.bool), 0.1
    for step in range(1500):
        eps = 0.1 * (last / 0.1) ** (step / 1500)
        g = smooth_count(a, eps)
        loss = F.cross_entropy(out(F.relu(hidden(x)) * g), y) + strength * g.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            shut |= smooth_count(a, eps) < 1e-3
            a[shut] = 0
    g = smooth_count(a.detach(), eps)
    accuracy = (out(F.relu(hidden(x)) * g).argmax(1) == y).double().mean()
    return int(shut.sum()), g[~shut].tolist(), float(accuracy)


@pytest.mark.long
def test_a_learnable_task_keeps_what_it_needs_and_an_early_fall_of_eps_keeps_all() -> None:
    shut, left, accuracy = xor(0.05, 0.1)
    assert 6 <= shut <= 12
    assert max(left) > 0.9
    assert accuracy > 0.99
    assert 25 <= xor(0.2, 0.1)[0] <= 31
    assert xor(0.05, 1e-3)[0] == 0
