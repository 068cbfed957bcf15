"""ManiDP: where gates stand, what training sums, thresholds and budgets, what is cut, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.allocate import Constraints
from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.forms import formed
from secateur.graph import trace
from secateur.methods import METHODS
from secateur.methods.manidp import ManiDP
from secateur.methods.manidp.sites import found
from secateur.methods.manidp.thresholds import kth, remaining
from secateur.models import create
from secateur.recipe import Training
from secateur.repair import repairs
from secateur.testing.networks import NETWORKS, Projection, Residual
from secateur.training.optimisers import make_optimiser

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 3])


def network() -> nn.Module:
    torch.manual_seed(0)
    net = Residual()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.running_mean.normal_(0, 0.3)
    return net


def made(net: nn.Module | None = None, **options: Any) -> ManiDP:
    return ManiDP(network() if net is None else net, X, **{"budget": "flops=0.6", "steps": 4, **options})


def draw(pruner: ManiDP, seed: int = 0, scale: float = 0.3) -> None:
    """Gates that differ from channel to channel and image to image."""
    generator = torch.Generator().manual_seed(seed)
    for gate in pruner.gates:
        gate.expand.data.normal_(0, scale, generator=generator)
        gate.shift.data.uniform_(0.3, 1.7, generator=generator)


def step(pruner: ManiDP) -> torch.Tensor:
    """One step without an optimiser; what was added to the loss."""
    output = pruner.train()(X)
    pruner.after_forward(output, Y)
    added = pruner.loss()
    (F.cross_entropy(output, Y) + added).backward()
    pruner.after_backward()
    pruner.after_step()
    return added.detach()


def shown(batches: int = 2) -> list[tuple[torch.Tensor, Any]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(8, 3, 8, 8, generator=generator), None) for _ in range(batches)]


# ------------------------------------------------------------------------------------------------- where gates stand


def names(net: nn.Module, x: torch.Tensor = X) -> dict[str, tuple[Any, ...]]:
    return {s.name: (s.norm, s.relu, s.columns) for s in found(trace(net.eval(), x), Constraints(), 2)}


def test_gates_stand_inside_branches_and_in_trunks_of_plain_networks() -> None:
    assert names(network()) == {  # none on the first convolution; the second of a block has no ReLU before the sum
        "first.0": ("first.1", True, False), "first.3": ("first.4", False, True),
        "second.0": ("second.1", True, False), "second.3": ("second.4", False, True),
        "neck.0": ("neck.1", True, False),
    }  # fmt: skip


def test_shortcuts_have_none() -> None:
    assert names(Projection()) == {"body.0": ("body.1", True, False), "body.3": ("body.4", False, True)}


class Pooled(nn.Module):
    """A shortcut that pools first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.pool, self.short, self.b = nn.AvgPool2d(2), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.short(self.pool(x)) + self.b(F.relu(self.a(x))))
        return x.mean((2, 3))


def test_shortcuts_that_pool_have_none_and_layers_without_a_norm_have() -> None:
    assert names(Pooled()) == {"a": (None, True, False), "b": (None, False, True)}


def test_zoo() -> None:
    x = torch.randn(1, 3, 32, 32)
    convolutions = [
        n for n, m in create("resnet20").named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1
    ]
    assert list(names(create("resnet20"), x)) == convolutions[1:]
    vgg = names(create("vgg16_bn"), x)
    assert len(vgg) == 12
    assert [columns for _, _, columns in vgg.values()] == [False] + [True] * 11  # zeros come through max pools


def test_hidden_units() -> None:
    """As many as outputs, but half of them from 80 up."""
    sites = {s.name: s.hidden for s in found(trace(network(), X), Constraints(), 2)}
    assert sites == {"first.0": 32, "first.3": 24, "second.0": 32, "second.3": 24, "neck.0": 48}


def test_layers_that_are_hardly_larger_than_a_gate_have_none() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    net.append(nn.Conv2d(16, 16, 1))
    assert list(names(net)) == ["2"]


# ---------------------------------------------------------------------------------------------------------- training


def test_open_gates_change_nothing_and_drawn_ones_do() -> None:
    wanted = network().eval()(X)
    assert torch.equal(made().eval()(X), wanted)
    pruner = made(start="kaiming").eval()
    assert not torch.allclose(pruner(X), wanted, atol=1e-2)
    assert torch.equal(pruner.plain().eval()(X), wanted)


def test_what_is_added_to_the_loss() -> None:
    """lambda L_sp + gamma L_sim of all gates, with C of the images so far, then that of the epoch before."""
    pruner = made(sparsity=0.7, similarity=0.0, hard=0.9)
    output = pruner.train()(X)
    losses = F.cross_entropy(output, Y, reduction="none").detach()
    added = step(made(sparsity=0.7, similarity=0.0, hard=0.9))
    limit = 0.9 * losses.mean()
    weights = torch.where(losses < limit, (limit - losses) / limit, torch.zeros(4))
    assert weights.any()
    assert added.item() == pytest.approx(0.7 * 5 * weights.mean().item(), rel=1e-5)  # five gates, pi = 1
    pruner = made()
    step(pruner)
    assert pruner.numbers[1].item() == pytest.approx(losses.sum().item(), rel=1e-5)
    pruner.after_epoch()
    assert pruner.numbers[4].item() == pytest.approx(losses.mean().item(), rel=1e-5)
    pruner.numbers[4] = 100.0  # now everything is easy
    pruner.settings = pruner.settings.model_copy(update={"similarity": 0.0, "sparsity": 1.0})
    now = F.cross_entropy(pruner.train()(X), Y, reduction="none").detach()
    assert step(pruner).item() == pytest.approx(5 * (1 - now / 50).mean().item(), rel=1e-4)


def test_images_are_weighed_where_answers_are_no_classes() -> None:
    pruner = made()
    scores, labels = torch.zeros(4, 3, 2, 2), torch.zeros(4, 2, 2, dtype=torch.long)
    labels[:, 0] = 255  # no class
    pruner.after_forward(scores, labels)
    torch.testing.assert_close(pruner._losses_of, torch.full((4,), math.log(3) / 2))
    pruner.after_forward(torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(pruner._losses_of, torch.tensor([0.125, 1.53125]))
    with pytest.raises(ConfigError, match="do not show which those are"):
        pruner.after_forward(torch.zeros(4, 3), {"label": Y})


def test_features_are_those_before_the_gate_and_behind_the_relu() -> None:
    pruner = made()
    draw(pruner)
    maps: dict[str, torch.Tensor] = {}
    for site in pruner.sites:  # a hook that is there first sees the map without its gate

        def note(_: nn.Module, __: Any, out: torch.Tensor, site: Any = site) -> None:
            maps[site.name] = out.detach().relu() if site.relu else out.detach()

        pruner.model.get_submodule(site.end).register_forward_hook(note, prepend=True)
    pruner.train()(X)
    for k, site in enumerate(pruner.sites):
        assert torch.allclose(pruner.work.features[k], maps[site.name].mean((2, 3)), atol=1e-6)
    assert (pruner.work.features[1] < 0).any()  # in front of a sum


def test_sums_are_of_training_images_and_thresholds_of_the_second_epoch() -> None:
    pruner = made(steps=4)
    draw(pruner)
    pruner.eval()(X)
    assert not pruner.get_buffer("sums0").any()
    pruner.train()
    with torch.no_grad():
        pruner(X)
    assert pruner.numbers[0] == 0
    step(pruner)
    pi = [gate_pi(pruner, k) for k in range(2)]
    assert torch.allclose(pruner.get_buffer("sums0"), pi[0].sum(0).double(), atol=1e-5)
    pruner.after_epoch()
    assert torch.allclose(pruner.means0, pi[0].mean(0).double(), atol=1e-6)
    assert not pruner.sums0.any()
    assert (pruner.xi == -10000).all()
    step(pruner)
    pruner.after_epoch()
    rate = (1 - pruner.target) / 2 * np.cos(np.pi * 0.5) + (1 + pruner.target) / 2  # two of four steps
    k = int(np.ceil(rate * 32))
    assert pruner.xi[0].item() == pytest.approx(pruner.means0.sort(descending=True).values[k - 1].item(), rel=1e-6)
    assert pruner.metrics()["rate"] == pytest.approx(rate)
    before = pruner.metrics()["active"]
    step(pruner)
    pruner.after_epoch()
    assert 0.3 < pruner.metrics()["active"] < before


def gate_pi(pruner: ManiDP, k: int) -> torch.Tensor:
    """Saliencies of a site for X."""
    seen: list[torch.Tensor] = []
    layer = pruner.model.get_submodule(pruner.sites[k].name)
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    state = {n: b.clone() for n, b in pruner.named_buffers()}
    with torch.no_grad():
        pruner.train()(X)
    handle.remove()
    for name, buffer in pruner.named_buffers():
        buffer.copy_(state[name])
    return pruner.gates[k](seen[0]).detach()


def test_the_rate_while_training_follows_from_the_budget() -> None:
    """mac(t) = sum of dense r(out) r(in), and the gates."""
    pruner = made(budget="flops=0.5")
    t, total = pruner.target, 0.0
    shapes = {"first.0": (24, 32), "first.3": (32, 24), "second.0": (24, 32), "second.3": (32, 24)}
    for name, (inputs, outputs) in shapes.items():
        total += 64 * 9 * inputs * outputs * t * (t if name.endswith("3") else 1) + outputs * (inputs + outputs)
    total += 64 * 24 * 96 * t + 48 * (24 + 96) + 64 * 9 * 3 * 24 + 96 * 5
    assert total == pytest.approx(0.5 * pruner.graph.cost().macs / 4, rel=1e-3)


def test_a_channel_that_is_shut_learns_from_similarity_alone() -> None:
    pruner = made(similarity=0.0, sparsity=0.0)
    draw(pruner)
    pruner.gates[0].shift.data[3] = 0.2
    pruner.gates[0].expand.data[3] = 0  # pi = .2 for every image
    pruner.gates[0].shift.data[4] = -1
    pruner.gates[0].expand.data[4] = 0  # pi = 0
    pruner.xi[0] = 0.5
    step(pruner)
    assert not pruner.gates[0].shift.grad[3:5].any()
    assert pruner.gates[0].shift.grad.any()
    pruner.gates[0].shift.grad = None
    pruner.settings = pruner.settings.model_copy(update={"similarity": 1.0})
    step(pruner)
    assert pruner.gates[0].shift.grad[3] != 0
    assert pruner.gates[0].shift.grad[4] == 0  # relu is not active


def test_weight_decay_leaves_gates_alone() -> None:
    pruner = made()
    optimiser = make_optimiser(pruner, Training(epochs=1, lr=0.1, weight_decay=1e-2))
    free = {id(p) for g in optimiser.param_groups if not g["weight_decay"] for p in g["params"]}
    assert {id(p) for p in pruner.gates.parameters()} <= free
    assert id(pruner.model.stem[0].weight) not in free


# ------------------------------------------------------------------------------------------------------------ result


def test_mean_products_of_images_by_hand() -> None:
    """Every image's open outputs times inputs that are there, times places and kernel, and the gates."""
    pruner = made(budget="flops=0.7")
    draw(pruner)
    pruner.collect(shown(), None)
    narrow = pruner.finish().eval()
    layers, total = {name: layer for name, _, layer in formed(narrow)}, 0.0
    images = torch.cat([x for x, _ in shown()])
    seen: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda m, a, _, name=name: seen.__setitem__(name, a[0]))
    narrow(images)
    for name, layer in layers.items():
        u = F.relu(seen[name].mean((2, 3)) @ layer.reduce.T)
        pi = F.relu(u @ layer.expand.T + layer.shift)
        open_channels = ((pi >= layer.threshold) & (pi > 0)).sum(1).clamp(min=1)
        there = (seen[name] != 0).flatten(2).any(2).sum(1).clamp(min=1) if layer.columns else layer.in_channels
        total += (layer.kernel_size[0] ** 2 * 64 * open_channels * there).float().mean().item()
        total += layer.hidden * (layer.in_channels + layer.out_channels)
    total += 64 * 27 * 24 + layers["neck.0"].out_channels * 5
    assert pruner.result.expected.macs == pytest.approx(4 * total, rel=1e-5)
    assert pruner.result.expected.spread > 0
    assert pruner.result.expected.images == 16


@pytest.mark.parametrize("budget", [0.4, 0.6, 0.75])
def test_budgets_are_met_on_average_within_one_percent(budget: float) -> None:
    pruner = made(budget=f"flops={budget}")
    draw(pruner)
    pruner.collect(iter(shown()), None)
    pruner.finish()
    assert 0.99 * budget <= pruner.result.reached("flops") <= budget
    assert pruner.result.after.macs > pruner.result.expected.macs
    assert "unspent" not in pruner.result.plan.provenance


def test_a_budget_that_open_gates_meet_is_not_used_up() -> None:
    pruner = made(budget="flops=1.0")
    draw(pruner)
    for gate in pruner.gates:
        gate.shift.data -= 0.8
    pruner.collect(shown(), None)
    plan = pruner.plan()
    assert plan.provenance["rate"] == 2.0
    assert plan.provenance["unspent"].endswith(".")


def test_gates_that_are_all_alike_shut_together() -> None:
    """Without training every saliency is 1: layers shut as a whole, and it is told that the budget is not used."""
    pruner = made()
    pruner.collect(shown(), None)
    pruner.finish()
    assert pruner.result.reached("flops") <= 0.6
    assert {int(n) for n in pruner._known[2].active.unique()} <= {0, 24, 32, 96}
    assert "unspent" in pruner.result.plan.provenance


def test_thresholds_that_do_not_meet_the_budget_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pruner = made()
    draw(pruner)
    monkeypatch.setattr(pruner, "_cost_of", lambda _: 1e12)
    with pytest.raises(BudgetError, match="above all saliencies"):
        pruner.collect(shown(), None)


def test_mean_products_fall_as_thresholds_rise() -> None:
    pruner = made()
    draw(pruner)
    costs = [pruner._cost_of(pruner._look(shown(), torch.full((5,), xi))) for xi in (-1.0, 0.8, 1.2, 1.6, 2.5)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.3 * costs[0]


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg16_bn", "resnet56"])
def test_the_papers_networks(name: str) -> None:
    x = torch.randn(1, 3, 32, 32)
    net = create(name)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.data.fill_(0.3)  # untrained streams grow from block to block
    pruner = ManiDP(net, x, budget="flops=0.4", steps=10)
    pruner.verify_cut = False
    draw(pruner, scale=0.02)
    pruner.collect([(torch.randn(8, 3, 32, 32), None)], None)
    narrow = pruner.finish().eval()
    assert 0.396 <= pruner.result.reached("flops") <= 0.4
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        whole, alone = narrow(x), torch.cat([narrow(image) for image in x.split(1)])
    assert (whole - alone).abs().max() <= 1e-5 * whole.abs().max()


def test_channels_that_nothing_opens_are_cut() -> None:
    """With their row of the gate, and the column of the gate that reads them; of a stream none goes."""
    pruner = made()
    draw(pruner)
    for k in (0, 1):
        pruner.gates[k].expand.data[[2, 5]], pruner.gates[k].shift.data[[2, 5]] = 0, -1
    pruner.collect(shown(), None)
    narrow = pruner.finish()
    masks = pruner.result.plan.masks
    inner = next(
        g.name for g in pruner.graph.groups if any(m.name == "first.0.weight" and m.dim == 0 for m in g.members)
    )
    assert not masks[inner][[2, 5]].any()
    layers = {name: layer for name, _, layer in formed(narrow)}
    kept = int(masks[inner].sum())
    assert layers["first.0"].expand.shape == (kept, 32)
    assert layers["first.3"].reduce.shape == (24, kept)
    stays = torch.from_numpy(np.flatnonzero(masks[inner]))
    assert torch.equal(layers["first.3"].reduce, pruner.gates[1].reduce[:, stays])
    assert torch.equal(layers["first.0"].shift, pruner.gates[0].shift[stays])
    assert layers["first.3"].out_channels == 24
    pruner.eval()
    with pruner.evaluation_modes()["hard"]:
        for images, _ in shown():
            assert torch.allclose(pruner(images), narrow.eval()(images), atol=1e-5)


def test_what_was_cut_stays_shut_for_images_that_would_have_opened_it() -> None:
    pruner = made()
    draw(pruner)
    pruner.gates[0].expand.data[[2, 5]], pruner.gates[0].shift.data[[2, 5]] = 0.01, -1
    pruner.collect(shown(), None)
    narrow = pruner.finish().eval()
    assert narrow.get_submodule("first.0").out_channels < pruner.gates[0].expand.shape[0]
    bright = 1000 * X
    pruner.eval()
    pruner(bright)
    assert (pruner.work.pi[0][:, [2, 5]] > 0).any()
    with pruner.evaluation_modes()["hard"]:
        wanted = narrow(bright)
        assert torch.allclose(pruner(bright), wanted, atol=1e-5 * float(wanted.abs().max()))


def test_constraints_keep_what_never_opens() -> None:
    pruner = made(constraints=Constraints(align=16))
    draw(pruner)
    pruner.gates[0].expand.data[1:20], pruner.gates[0].shift.data[1:20] = 0, -1
    pruner.collect(shown(), None)
    plan = pruner.plan()
    group = next(name for name, (k, _) in pruner.closing.of.items() if k == 0)
    assert plan.widths[group] == 16
    assert plan.masks[group][:4].all()  # the first of them


def test_hard_mode_is_the_result_and_training_has_thresholds_of_its_own() -> None:
    pruner = made()
    draw(pruner)
    assert pruner.evaluation_modes() == {}
    pruner.collect(shown(), None)
    narrow, before = pruner.finish().eval(), pruner.eval()(X)
    with pruner.evaluation_modes()["hard"]:
        assert torch.allclose(pruner(X), narrow(X), atol=1e-5)
    assert torch.equal(pruner(X), before)
    assert not torch.allclose(before, narrow(X), atol=1e-3)


def test_static_deployment_is_an_ordinary_network_of_mean_saliencies() -> None:
    pruner = made(deploy="static", budget="flops=0.7")
    draw(pruner)
    pruner.collect(shown(), None)
    narrow = pruner.finish().eval()
    assert not list(formed(narrow))
    assert type(narrow.first[0]) is nn.Conv2d
    result = pruner.result
    assert result.expected is None
    assert 0.68 <= result.reached("flops") <= 0.7
    assert result.after.params < result.before.params
    assert any("is an approximation of what was trained" in note for note in pruner.notes)
    seen = pruner._known[2]
    pi = torch.cat([gate_of(pruner, x) for x, _ in shown()]).double()
    wanted = torch.where(pi >= pruner._known[1][0], pi, 0).mean(0)
    assert torch.allclose(seen.masks[0], wanted, atol=1e-6)
    pruner.eval()
    with pruner.evaluation_modes()["hard"]:
        assert torch.allclose(pruner(X), narrow(X), atol=1e-5)


def gate_of(pruner: ManiDP, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return pruner.gates[0](pruner.model.eval().stem(x))


def test_what_is_refused() -> None:
    for budget in ("params=0.5", "flops=0.5,params=0.9", "peak=0.5", "activations=0.5"):
        with pytest.raises(BudgetError, match="flops alone"):
            made(budget=budget)
    with pytest.raises(BudgetError, match="out of reach"):
        made(budget="flops=0.02")
    grouped = next(n for n in NETWORKS if n.name == "grouped").make()
    with pytest.raises(ModelError, match="choose another method"):
        made(grouped)
    with pytest.raises(ConfigError, match="call collect"):
        made().finish()
    with pytest.raises(ConfigError, match="at least one batch"):
        made().collect([], None)
    pruner = made()
    pruner.collect(shown(), None)
    with pytest.raises(ConfigError, match="without gates"):
        pruner.finish(repairs(["batchnorm"]))


def test_ignored_layers_have_no_gates() -> None:
    pruner = made(constraints=Constraints(ignore=("first",)), budget="flops=0.8")
    assert [site.name for site in pruner.sites] == ["second.0", "second.3", "neck.0"]


def test_the_row_says_that_costs_are_means() -> None:
    row = next(row for row in METHODS if row.name == "manidp")
    assert (row.result, row.needs, row.collects) == ("per input", "training", True)


def test_thresholds_of_a_short_training_move_within_epochs_and_early() -> None:
    """Twelve times in its first three quarters, by the same cosine; then they stay, and the last means are at hand."""
    pruner, found = made(steps=16), list[float]()
    draw(pruner)
    for number in range(1, 17):
        step(pruner)
        if number % 8 == 0:
            pruner.after_epoch()
        found.append(float(pruner.xi[0]))
    assert pruner.short.most == 12
    moves = [k + 1 for k in range(1, 16) if found[k] != found[k - 1]]
    assert moves
    assert moves[0] >= 3  # the first end only takes means
    assert moves[-1] <= 13
    assert float(pruner.xi[0]) == kth(pruner.means0.cpu(), remaining(pruner.target, 1.0))  # the gates do not learn here
    draw(pruner, seed=3)
    step(pruner)
    pruner.after_epoch()
    assert float(pruner.xi[0]) == found[-1]
    assert float(pruner.xi[0]) != kth(pruner.means0.cpu(), remaining(pruner.target, 1.0))  # means alone are new
    behind = made(steps=16, events=0)
    draw(behind)
    for number in range(1, 17):
        step(behind)
        if number % 8 == 0:
            behind.after_epoch()
    assert behind.epochs == 2
    assert not behind.short.over
