"""SWP: the skeleton's gradients and updates, what is cut, emptied branches, budgets, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.allocate import Constraints
from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.forms import FORMS, formed
from secateur.methods.swp import SWP
from secateur.models import create
from secateur.repair import repairs
from secateur.testing.networks import Residual

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 10, 1),
    )  # fmt: skip


def made(net: nn.Module | None = None, **options: Any) -> SWP:
    return SWP(chain() if net is None else net, X, **{"budget": "flops=1", "steps": 10, **options})


def put(pruner: SWP, name: str, counts: list[int]) -> None:
    """Give the filters of a layer so many stripes, the first ones; the others' skeleton is zero."""
    skeleton = pruner._by_name[name]
    there = torch.arange(skeleton.values[0].numel()).expand(len(counts), -1) < torch.tensor(counts)[:, None]
    skeleton.values.data *= there.view_as(skeleton.values)


def drop(pruner: SWP) -> None:
    """What a training step without a gradient does."""
    pruner.train()(X)
    pruner.loss()
    pruner.after_step()


def test_a_skeleton_of_ones_changes_nothing() -> None:
    wanted = chain().eval()(X)
    pruner = made().eval()
    assert torch.equal(pruner(X), wanted)
    assert torch.equal(pruner.plain().eval()(X), wanted)


def test_gradients() -> None:
    """dL/dW = I D and dL/dI = sum_c W D, with D = dL/dWeff."""
    pruner = made(alpha=0.0)
    layer, skeleton = pruner.model[0], pruner._by_name["0"]
    skeleton.values.data.uniform_(0.5, 1.5)
    effective = (layer.weight * skeleton.values[:, None]).detach().requires_grad_()
    F.conv2d(X, effective, padding=1).square().sum().backward()
    layer(X).square().sum().backward()
    assert torch.allclose(layer.weight.grad, skeleton.values[:, None] * effective.grad, rtol=1e-4)
    assert torch.allclose(skeleton.values.grad, (layer.weight * effective.grad).sum(1), rtol=1e-4, atol=1e-4)


def test_l1_step() -> None:
    """From I = .5 with lr .1, alpha 1e-2 and no gradient from the data to .499; where I is zero there is none."""
    pruner = made(alpha=1e-2)
    values = pruner._by_name["0"].values
    values.data.fill_(0.5)
    values.data[0, 0, 0] = 0
    optimiser = torch.optim.SGD([values], 0.1)
    pruner.loss().backward()
    optimiser.step()
    assert values[1, 1, 1].item() == pytest.approx(0.499)
    assert values[0, 0, 0].item() == 0
    assert pruner.loss().item() == pytest.approx(1e-2 * (35 * 0.499 + 54), rel=1e-5)


def test_what_falls_to_the_threshold_stays_out() -> None:
    """Gradient, momentum and norm included: nothing brings a stripe back."""
    pruner = made(delta=0.05)
    values = pruner._by_name["0"].values
    optimiser = torch.optim.SGD(pruner.parameters(), 0.05, momentum=0.9)
    for step in range(4):
        optimiser.zero_grad()
        F.cross_entropy(pruner(X).mean((2, 3)), torch.tensor([0, 1])).backward()
        pruner.after_backward()
        if step:
            assert not values.grad[0].any()
            assert values.grad[1, 0, 0] == 0  # of a filter that has other stripes, and a gradient
            assert values.grad[1, 0, 1] != 0
            assert pruner.model[1].weight.grad[0] == 0
        optimiser.step()
        if step == 0:
            values.data[0], values.data[1, 0, 0], values.data[1, 0, 1] = 0.05, -0.05, -0.051
        pruner.after_step()
        assert not values[0].any()
        assert values[1, 0, 0] == 0
    assert values[1, 0, 1] < 0
    norm = pruner.model[1]
    assert norm.weight[0] == norm.bias[0] == 0
    assert norm.weight[1] != 0


def test_worked_chain() -> None:
    """Stripes (5, 0, 9, 2) and (9, 1, 0, 4, 9, 3): 3 and 5 channels, 48 and 78 weights, 3072 and 4992 products."""
    pruner = made()
    put(pruner, "0", [5, 0, 9, 2])
    put(pruner, "3", [9, 1, 0, 4, 9, 3])
    drop(pruner)
    narrow = pruner.finish()
    assert list(pruner.result.plan.widths.values()) == [3, 5]
    layers = {name: layer.weight.numel() for name, _, layer in formed(narrow)}
    assert layers == {"0": 48, "3": 78}
    assert pruner.result.after.macs == 2 * (3072 + 4992 + 5 * 10 * 64)  # of two images
    assert pruner.result.before.macs == 2 * (6912 + 13824 + 6 * 10 * 64)
    assert torch.allclose(narrow.eval()(X), pruner.eval()(X), atol=1e-5)


def test_an_emptied_branch_is_its_constant() -> None:
    """Out = relu(x + c), c = beta - gamma mean / sqrt(var + eps): neither the constant nor the ReLU is dropped."""
    torch.manual_seed(0)
    net = Residual()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.bias.data.normal_()
    pruner = made(net).eval()
    pruner._by_name["first.3"].values.data.zero_()
    drop(pruner)
    norm = pruner.model.first[4]
    c = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    assert (c != 0).any()  # the norm at the end of a branch is not masked
    narrow = pruner.finish().eval()
    stem = pruner.model.eval().stem(X)
    x = F.relu(stem + c[:, None, None])
    assert torch.allclose(F.relu(narrow.stem(X) + narrow.first(narrow.stem(X))), x, atol=1e-5)
    inner = next(
        g.name for g in pruner.graph.groups if any(m.name == "first.3.weight" and m.dim == 1 for m in g.members)
    )
    assert pruner.result.plan.widths[inner] == 1  # nobody reads what the branch computes inside
    assert not sum(len(row) for row in pruner.result.plan.forms["first.0"].data["kept"])
    assert torch.allclose(narrow(X), pruner.eval()(X), atol=1e-4)


STREAM = ("stem.0", "first.3", "second.3")


@pytest.mark.parametrize("last", STREAM)
def test_a_stream_goes_where_all_that_make_it_are_empty(last: str) -> None:
    """Whichever of the layers that make a channel is the last to lose its stripes."""
    pruner = made(Residual())
    for name in (name for name in STREAM if name != last):
        pruner._by_name[name].values.data[3] = 0
    drop(pruner)
    group = next(g.name for g in pruner.graph.groups if any(m.name == "stem.0.weight" for m in g.members))
    assert pruner.plan().widths[group] == 24
    assert pruner.model.stem[1].weight[3] != 0
    pruner._by_name[last].values.data[3] = 0
    drop(pruner)
    plan = pruner.plan()
    assert plan.widths[group] == 23
    assert not plan.masks[group][3]
    assert pruner.model.stem[1].weight[3] == 0


def test_flops_fall_as_the_threshold_rises() -> None:
    found = []
    for delta in (0.0, 0.3, 0.6, 0.9):
        pruner = made(delta=delta)
        generator = torch.Generator().manual_seed(0)
        for skeleton in pruner._by_name.values():
            skeleton.values.data.uniform_(0, 1, generator=generator)
        wanted = pruner.eval()(X)
        narrow = pruner.finish().eval()
        found.append(pruner.result.after.macs)
        if delta == 0:
            assert torch.allclose(narrow(X), wanted, atol=1e-5)
            assert pruner.result.after == pruner.result.before
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize("budget", ["flops=0.5", "params=0.4", "flops=0.7,params=0.3"])
def test_budgets_are_met_within_one_percent(budget: str) -> None:
    pruner = made(Residual(), budget=budget)
    generator = torch.Generator().manual_seed(0)
    for skeleton in pruner._by_name.values():
        skeleton.values.data.uniform_(0.1, 1, generator=generator)
    pruner.finish()
    result = pruner.result
    used = [result.reached(key) / bound for key, bound in pruner.budget.bounds]
    assert 0.99 <= max(used) <= 1
    threshold = result.plan.provenance["threshold"]
    kept = {name: int((s.values.abs() > threshold).sum()) for name, s in pruner._by_name.items()}
    assert result.plan.provenance["stripes"] == sum(kept.values())
    assert any("training dropped stripes at 0.01" in note for note in pruner.notes)


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg16_bn", "resnet56"])
def test_the_papers_networks(name: str) -> None:
    x = torch.randn(1, 3, 32, 32)
    pruner = SWP(create(name), x, budget="flops=0.3", steps=10)
    pruner.verify_cut = False
    generator = torch.Generator().manual_seed(0)
    for skeleton in pruner._by_name.values():
        skeleton.values.data.uniform_(0.1, 1, generator=generator)
    pruner.finish()
    assert 0.297 <= pruner.result.reached("flops") <= 0.3


def test_ignored_layers_keep_all_stripes() -> None:
    pruner = made(Residual(), constraints=Constraints(ignore=("first",)))
    assert not any(name.startswith("first") for name in pruner.names)
    assert "second.0" in pruner.names


def test_what_is_refused() -> None:
    with pytest.raises(ModelError, match="pointwise"):
        made(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)))
    assert made(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)), pointwise=True).names == ("0", "2")
    with pytest.raises(BudgetError, match="flops or params"):
        made(budget="latency=1s@pytorch".replace("1s", "100ms"))
    with pytest.raises(BudgetError, match="out of reach"):
        made(budget="flops=0.001")
    with pytest.raises(ConfigError, match="fill stripes"):
        made().finish(repairs(["compensation"]))


def test_hard_mode_is_the_result() -> None:
    pruner = made(Residual(), budget="flops=0.4")
    for skeleton in pruner._by_name.values():
        skeleton.values.data.uniform_(0.1, 1)
    narrow = pruner.finish().eval()
    pruner.eval()
    with pruner.evaluation_modes()["hard"]:
        assert torch.allclose(pruner(X), narrow(X), atol=1e-4)
    assert not torch.allclose(pruner(X), narrow(X), atol=1e-2)
    assert pruner.metrics() == {"stripes": 1.0}
    assert FORMS["offsets"].summary in " ".join(pruner.result.notes)
    assert np.isclose(pruner.result.plan.provenance["stripes"] / pruner.result.plan.provenance["of"], 0.4, atol=0.1)


def trained(ramp: list[float] | None, steps: int = 10, **settings: Any) -> SWP:
    """Steps of a training too short for the penalty, with skeletons that differ."""
    pruner = made(Residual(), budget="flops=0.5", steps=steps, ramp=ramp, **settings)
    generator = torch.Generator().manual_seed(0)
    for skeleton in pruner._by_name.values():
        skeleton.values.data.uniform_(0.1, 1, generator=generator)
    return pruner


def test_the_bound_falls_on_its_ramp_and_stripes_of_least_size_go() -> None:
    pruner, found = trained([0.2, 0.6]), []
    for _ in range(10):
        drop(pruner)
        found.append(pruner._cost(pruner._planned(pruner._stays())).macs / pruner.graph.cost().macs)
    wanted = [1, 1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5, 0.5, 0.5]  # after steps 1 to 10: 0.2 to 0.6 of the training
    assert found[:2] == [1, 1]
    assert all(share <= bound for share, bound in zip(found, wanted, strict=True))
    assert found[2:] == pytest.approx(wanted[2:], abs=0.03)
    gone = torch.cat([s.values[~s.stays].flatten() for s in pruner._by_name.values()])
    left = torch.cat([s.values[s.stays].flatten() for s in pruner._by_name.values()])
    assert not gone.any()
    original = trained(None)
    sizes = torch.cat([s.values.flatten() for s in original._by_name.values()])
    assert float(left.min()) >= float(sizes.sort().values[len(gone) - 1])  # the smallest went
    pruner.finish()
    assert any(note.startswith(f"{len(gone)} of the {len(gone)} stripes that went") for note in pruner.notes)
    assert pruner.result.plan.provenance["pressed"] == len(gone)


def test_without_a_ramp_or_where_the_penalty_is_quicker_nothing_is_pressed() -> None:
    for ramp, least in ((None, 0.0), ([0.2, 0.6], 0.7)):
        pruner = trained(ramp, delta=0.01)
        for skeleton in pruner._by_name.values():
            skeleton.values.data[skeleton.values < least] = 0.001  # as the penalty would have it
        for _ in range(10):
            drop(pruner)
        pruner.finish()
        assert "pressed" not in pruner.result.plan.provenance
        assert not any("dropped for the budget" in note for note in pruner.notes)


@pytest.mark.parametrize("ramp", [[0.6, 0.2], [0.2], [-0.1, 0.5], [0.5, 1.5], [0.3, 0.3]])
def test_no_ramp(ramp: list[float]) -> None:
    with pytest.raises(ConfigError, match="ramp"):
        made(Residual(), ramp=ramp)
