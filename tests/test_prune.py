"""The public door: one call from a model and a budget to a smaller model, its plan, its costs and its proof."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur import Plan
from secateur.errors import ConfigError
from secateur.models import create

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return create("resnet20").eval()


def macs(model: nn.Module) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).requires_grad_(False)(IMAGE)
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("allocator", ["global", "uniform", "per_cost"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale", "fpgm", "lamp", "random"])
def test_every_criterion_with_every_allocator(resnet: nn.Module, criterion: str, allocator: str) -> None:
    result = secateur.prune(resnet, IMAGE, budget="flops=0.5", method=criterion, allocator=allocator, min_channels=2)
    assert result.verification.exact
    assert result.verification.max_relative_error <= 1e-5
    assert 0.49 <= result.reached("flops") <= 0.5
    assert result.after.macs == macs(result.model)
    assert result.before.macs == macs(resnet)
    assert result.after.params == sum(p.numel() for p in result.model.parameters())
    assert type(result.model) is type(resnet)
    assert min(result.plan.widths.values()) >= 2
    assert result.plan.provenance["method"] == criterion
    assert result.settled == ()


@pytest.mark.parametrize(
    ("budget", "bound"),
    [("params=0.4", "params"), ("activations=0.7", "activations"), ("peak=0.8", "peak"), ("flops=2e7", "flops")],
)
def test_other_budgets(resnet: nn.Module, budget: str, bound: str) -> None:
    result = secateur.prune(resnet, IMAGE, budget=budget, allocator="uniform")
    whole = {"flops": result.before.macs}.get(bound, 1)
    target = float(budget.partition("=")[2]) / whole
    assert 0.9 * target <= result.reached(bound) <= target


def test_several_bounds_at_once(resnet: nn.Module) -> None:
    result = secateur.prune(resnet, IMAGE, budget={"flops": 0.6, "params": 0.3})
    assert result.reached("flops") <= 0.6
    assert result.reached("params") <= 0.3


def test_align_min_channels_and_max_ratio(resnet: nn.Module) -> None:
    result = secateur.prune(resnet, IMAGE, budget="flops=0.5", align=4, min_channels=6, max_ratio=0.75)
    for group in result.graph.groups:
        width = result.plan.widths[group.name]
        assert width % 4 == 0
        assert width >= max(8, group.width / 4)
    assert result.verification.exact


def test_ignore(resnet: nn.Module) -> None:
    result = secateur.prune(resnet, IMAGE, budget="flops=0.6", ignore=("layer3.*", "conv1"))
    for name, module in result.model.named_modules():
        if isinstance(module, nn.Conv2d) and (name == "conv1" or name.startswith("layer3")):
            assert module.out_channels == resnet.get_submodule(name).out_channels
    assert secateur.prune(resnet, IMAGE, budget="flops=0.8", ignore="layer3.*").plan.widths


def test_ratios(resnet: nn.Module) -> None:
    result = secateur.prune(resnet, IMAGE, allocator="ratios", ratios={"layer1.0.conv1": 0.5, "layer2.1.conv1": 0.25})
    changed = {n: w for n, w in result.plan.widths.items() if w != len(result.plan.masks[n])}
    assert changed == {"layer1.0.conv1": 8, "layer2.1.conv1": 24}


def test_a_function_as_criterion(resnet: nn.Module) -> None:
    def last_first(graph: secateur.Graph) -> dict[str, np.ndarray]:
        return {g.name: -np.arange(g.width, dtype=float) - 1 for g in graph.groups}

    result = secateur.prune(resnet, IMAGE, budget="flops=0.5", method=last_first, allocator="uniform", normalise="none")
    for mask in result.plan.masks.values():
        assert mask[: mask.sum()].all()
    assert result.plan.provenance["method"] == "last_first"
    assert result.verification.exact


def test_taylor_with_data(resnet: nn.Module) -> None:
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,))) for _ in range(2)]
    before = {n: t.clone() for n, t in resnet.state_dict().items()}
    result = secateur.prune(
        resnet, IMAGE, budget="flops=0.5", method="taylor", data=iter(batches), loss=nn.functional.cross_entropy
    )
    assert result.verification.exact
    assert all(torch.equal(t, before[n]) for n, t in resnet.state_dict().items())
    assert all(p.grad is None for p in resnet.parameters())
    assert not resnet.training


def test_same_seed_same_plan_other_seed_other_plan(resnet: nn.Module) -> None:
    plans = [secateur.prune(resnet, IMAGE, budget="flops=0.5", method="random", seed=s).plan for s in (3, 3, 4)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_a_saved_plan_applies_to_a_fresh_copy(resnet: nn.Module, tmp_path: Path) -> None:
    result = secateur.prune(resnet, IMAGE, budget="flops=0.5")
    result.plan.save(tmp_path / "plan.json")
    torch.manual_seed(1)
    fresh = create("resnet20").eval()
    again = secateur.apply(fresh, IMAGE, Plan.load(tmp_path / "plan.json"))
    assert {n: p.shape for n, p in again.model.state_dict().items()} == {
        n: p.shape for n, p in result.model.state_dict().items()
    }
    assert again.after == result.after
    assert again.verification.exact
    again.model.load_state_dict(result.model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.model(IMAGE), result.model(IMAGE))


def test_apply_in_place(resnet: nn.Module) -> None:
    plan = secateur.prune(resnet, IMAGE, budget="flops=0.5").plan
    model = copy.deepcopy(resnet)
    result = secateur.apply(model, IMAGE, plan, inplace=True)
    assert result.model is model
    assert macs(model) == result.after.macs


def test_apply_says_that_nothing_is_left_to_cut(resnet: nn.Module) -> None:
    result = secateur.prune(resnet, IMAGE, budget="flops=0.5")
    again = secateur.apply(result.model, IMAGE, result.plan)
    assert "nothing was left to do" in " ".join(again.notes)
    assert again.after.macs == result.after.macs


def test_prune_again_what_was_pruned(resnet: nn.Module) -> None:
    once = secateur.prune(resnet, IMAGE, budget="flops=0.7")
    twice = secateur.prune(once.model, IMAGE, budget="flops=0.7")
    assert once.after == twice.before
    assert twice.verification.exact


def test_the_whole_budget_prunes_nothing(resnet: nn.Module) -> None:
    result = secateur.prune(resnet, IMAGE, budget="flops=1")
    assert result.before == result.after
    with torch.no_grad():
        assert torch.equal(result.model(IMAGE), resnet(IMAGE))


def test_the_cut_model_trains(resnet: nn.Module) -> None:
    model = secateur.prune(resnet, IMAGE, budget="flops=0.5").model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(IMAGE), torch.tensor([1, 2]))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_the_signature_promised_in_the_readme() -> None:
    wanted = (
        "model example_inputs method budget data repair allocator align ignore min_channels verify seed inplace".split()
    )
    parameters = inspect.signature(secateur.prune).parameters
    assert set(wanted) <= set(parameters)
    for name in wanted[2:]:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert not isinstance(parameters[name].default, list | dict | set)


@pytest.mark.parametrize("name", ["vgg16_bn", "densenet40", "mobilenet_v1", "mobilenet_v2", "lenet5"])
def test_the_other_families_of_the_zoo(name: str) -> None:
    torch.manual_seed(0)
    model = create(name).eval()
    channels = next(p for p in model.parameters() if p.dim() == 4).shape[1]
    result = secateur.prune(model, torch.randn(1, channels, 32, 32), budget="flops=0.5", allocator="uniform")
    assert result.verification.exact
    assert result.reached("flops") <= 0.5


@pytest.mark.parametrize(
    ("method", "meant"), [("functionality", "or did you mean ascent_steps="), ("cp", "leave it out.")]
)
def test_steps_are_those_of_a_training(method: str, meant: str) -> None:
    model, x = secateur.models.create("tiny"), torch.randn(4, 3, 32, 32)
    with pytest.raises(ConfigError, match=meant):
        secateur.prune(model, x, budget="flops=0.7", method=method, steps=200, data=[(x, torch.arange(4))])


@pytest.mark.parametrize("method", ["l1", "cpmc"])
@pytest.mark.parametrize(
    ("budget", "told"),
    [("params=10M", True), ("flops=1.0", True), ("flops=1,params=0.9", False), ("latency=900ms@pytorch", True)],
)
def test_a_budget_that_asks_for_nothing_is_told(method: str, budget: str, told: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    notes = secateur.prune(net, torch.zeros(1, 3, 8, 8), method=method, budget=budget).notes
    assert ("Nothing was removed: the network is within the budget as it is." in notes) is told
