"""White box pruning: the worked numbers, properties and traps of its specification, votes, folds, and training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import secateur
from secateur.allocate import Constraints
from secateur.budget import Budget
from secateur.errors import BudgetError, ConfigError, ModelError, VerificationError
from secateur.graph import trace
from secateur.methods.cwb.class_gates import class_weights, expected, gate
from secateur.methods.cwb.method import CWB
from secateur.methods.cwb.voting import class_votes, elect, elected
from secateur.testing import NETWORKS

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def chain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 12, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 4),
    )  # fmt: skip


def method(model: nn.Module | None = None, budget: str = "flops=0.5", **settings: Any) -> CWB:
    return CWB(chain() if model is None else model, IMAGE, budget=budget, steps=10, **settings)


def batch(count: int = 8, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (count,), generator=generator)
    return torch.randn(count, 3, 8, 8, generator=generator) + y.view(-1, 1, 1, 1) / 4, y


def step(one: CWB, x: torch.Tensor, y: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    one.train()
    one.before_forward(y)
    loss = F.cross_entropy(one(x), y) + one.loss()
    loss.backward()
    one.after_backward()
    optimiser.step()
    one.after_step()


def moved(one: CWB, seed: int = 0) -> CWB:
    """Entries as a training might leave them, some sums below zero."""
    with torch.no_grad():
        one.entries.copy_(torch.randn(len(one.entries), generator=torch.Generator().manual_seed(seed)) + 0.3)
    return one


# -------------------------------------------------------------------------------------------------------- the gate


def test_gates_at_first() -> None:
    """Property 1: with M = 1 the gate is 1 plus K - 1 uniforms; mean (K + 1) / 2, variance (K - 1) / 12."""
    k, n = 10, 40_000
    weights = class_weights(torch.arange(n) % k, k)
    g = gate(torch.ones(k, 1), weights, torch.rand(n, k, generator=torch.Generator().manual_seed(0)))
    assert float(g.mean()) == pytest.approx(5.5, abs=0.03)
    assert float(g.var()) == pytest.approx(9 / 12, rel=0.03)
    assert float(g.min()) > 1
    assert float(expected(torch.ones(k, 1), noise=True)) == pytest.approx(5.5)
    one = method()
    torch.testing.assert_close(one.mean(), torch.ones(22))  # divided by it
    torch.testing.assert_close(method(scaled=False).mean(), torch.full((22,), 2.5))


def test_gradient_of_the_entries() -> None:
    """Property 2: dL/dM = D^T r, with r[n, c] = sum_hw x dL/dout; against a loop over two samples."""
    torch.manual_seed(0)
    entries, x, y = torch.randn(3, 2, requires_grad=True), torch.randn(2, 2, 4, 4), torch.tensor([0, 2])
    uniform, outer = torch.rand(2, 3), torch.randn(2, 2, 4, 4)
    weights = class_weights(y, 3)
    d = weights + (1 - weights) * uniform
    (x * gate(entries, weights, uniform)[:, :, None, None] * outer).sum().backward()
    wanted = torch.zeros(3, 2)
    for n in range(2):
        assert d[n, y[n]] == 1
        for k in range(3):
            for c in range(2):
                wanted[k, c] += d[n, k] * (x[n, c] * outer[n, c]).sum()
    torch.testing.assert_close(entries.grad, wanted)


def test_hard_gates_learn_of_their_own_class_only() -> None:
    """Property 3."""
    x, y = batch()
    y = y % 2  # classes 2 and 3 are absent
    for noise, absent in (("none", 0.0), ("uniform", 1e-9)):
        one = method(noise=noise)
        one.train()
        one.before_forward(y)
        F.cross_entropy(one(x), y).backward()
        parts = one.entries.grad.split([40, 48])
        least = min(float(part.view(4, -1)[2:].abs().sum()) for part in parts)
        assert (least > absent) if noise == "uniform" else (least == 0)
        assert float(parts[0].view(4, -1)[:2].abs().sum()) > 0
    torch.testing.assert_close(gate(torch.eye(3), class_weights(torch.tensor([2, 0]), 3), None), torch.eye(3)[[2, 0]])


def test_mean_and_variance_of_a_gate() -> None:
    """Property 4, by sampling: S / 2 + M[t] / 2, and sum_{k != t} M[k]^2 / 12."""
    k, n, t = 4, 60_000, 2
    entries = torch.randn(k, 3, generator=torch.Generator().manual_seed(3))
    weights = class_weights(torch.full((n,), t), k)
    g = gate(entries, weights, torch.rand(n, k, generator=torch.Generator().manual_seed(4)))
    torch.testing.assert_close(g.mean(0), entries.sum(0) / 2 + entries[t] / 2, atol=0.02, rtol=0)
    torch.testing.assert_close(g.var(0), (entries.square().sum(0) - entries[t].square()) / 12, atol=0.02, rtol=0)
    by_class = torch.stack([entries.sum(0) / 2 + entries[j] / 2 for j in range(k)])
    torch.testing.assert_close(expected(entries, noise=True), by_class.mean(0))
    torch.testing.assert_close(expected(entries, noise=False), entries.mean(0))


def test_mixed_targets() -> None:
    """Shares of classes weigh as they are; fewer classes in the data than the network has are no matter."""
    weights = class_weights(torch.tensor([[0.7, 0.3], [0.0, 1.0]]), 3)
    assert weights.tolist() == [[pytest.approx(0.7), pytest.approx(0.3), 0], [0, 1, 0]]
    assert torch.equal(gate(torch.eye(3), weights, torch.ones(2, 3)), torch.ones(2, 3))


@pytest.mark.parametrize(
    "row", [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.5, -0.5, 0.0]], ids=["several", "none", "negative"]
)
def test_labels_that_are_no_shares_of_classes_are_refused(row: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"add up to 1 \(several labels do not\)"):
        class_weights(torch.tensor([[0.5, 0.5, 0.0], row]), 3)


def test_draws_are_fresh_and_repeatable() -> None:
    """The trap: a draw kept for every layer or pass would tell the class."""
    one, other = method(), method()
    y = torch.zeros(3, dtype=torch.long)
    first = one._gates(y, (0, 0, 0, 0))
    assert torch.equal(first, other._gates(y, (0, 0, 0, 0)))
    assert not torch.equal(first, one._gates(y, (0, 1, 0, 0)))
    assert not torch.equal(first[0], first[1])  # samples
    assert not torch.equal(first[:, 0], first[:, 10])  # layers
    assert torch.equal(first[:, 0], first[:, 1])  # channels of a layer share D
    assert not torch.equal(first, method(seed=1)._gates(y, (1, 0, 0, 0)))


class Fork(nn.Module):
    """One layer whose channels two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.stem(x))
        answer: torch.Tensor = self.head((self.left(h) * self.right(h)).mean((2, 3)))
        return answer


def test_all_who_read_a_channel_see_one_gate() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    net = Fork()
    with torch.no_grad():
        plain = F.relu(net.stem(x))
    one = CWB(net, x, budget="flops=0.7", units="all", steps=10)
    read: list[torch.Tensor] = []
    for name in ("left", "right"):
        one.model.get_submodule(name).register_forward_pre_hook(lambda _, args: read.append(args[0].detach()))
    one.train()
    one.before_forward(y)
    one(x)
    assert len(read) == 2
    assert torch.equal(*read)
    assert not torch.equal(read[0], plain)
    open_ = plain.amax((2, 3)) > 0
    factors = torch.where(open_, read[0].amax((2, 3)) / plain.amax((2, 3)), 1.0)
    torch.testing.assert_close(read[0], plain * factors[:, :, None, None])  # one number a sample and channel


# ---------------------------------------------------------------------------------------------------------- votes


def test_votes() -> None:
    """Properties 5 and 6: opposite signs cancel; names of classes and a common scale do not matter."""
    masks = np.array([[0.9, 0.1, -0.8], [0.8, 0.1, 0.9]])
    np.testing.assert_allclose(class_votes(masks), [1.7, 0.2, 0.1])
    assert np.abs(masks).sum(0)[2] == pytest.approx(1.7)  # what a sum of absolutes would say
    np.testing.assert_allclose(class_votes(masks[::-1]), class_votes(masks))
    one, other = moved(method()), moved(method())
    with torch.no_grad():
        other.entries.mul_(3.0)
    assert one.plan() == other.plan()


def test_thresholds_are_monotone_and_floors_hold() -> None:
    """Property 7, and the code's sweep against a plain one."""
    graph = trace(chain(), IMAGE)
    rng = np.random.default_rng(0)
    votes = {group.name: rng.random(group.width) for group in graph.groups}
    constraints = Constraints(max_ratio=0.7)
    every = np.concatenate(list(votes.values()))
    before = graph.widths()
    for keep in np.arange(0.9, 0.0, -0.01):
        widths = elected(votes, graph, constraints, float(keep))
        assert (widths <= before).all()
        assert (widths >= (0.3 * graph.widths()).astype(int)).all()
        edge = np.sort(every)[::-1][max(int(keep * 22), 1) - 1]
        floors = constraints.floors(graph)
        assert widths.tolist() == [max((v >= edge).sum(), f) for v, f in zip(votes.values(), floors, strict=True)]
        before = widths
    plan = elect(votes, graph, Budget.parse("flops=0.5"), constraints, step=0.01)
    assert 0 < plan.provenance["keep"] < 0.9
    full = graph.cost().macs
    assert graph.cost(plan).macs <= full / 2
    assert graph.costs.evaluate(elected(votes, graph, constraints, plan.provenance["keep"] + 0.01))["macs"] > full / 2
    exact = elect(votes, graph, Budget.parse("flops=0.5"), constraints)
    assert graph.cost(exact).macs >= graph.cost(plan).macs


def test_what_no_channel_fits_into_is_said() -> None:
    """Half of the MACs can be met within 1%, half a channel more cannot."""
    graph = trace(chain(), IMAGE)
    votes = {group.name: np.arange(1.0, group.width + 1) for group in graph.groups}
    full, found = graph.cost().macs, 0
    for share in (0.5, 0.35, 0.3, 0.25):
        plan = elect(votes, graph, Budget.parse(f"flops={share}"), Constraints())
        used = graph.cost(plan).macs / (share * full)
        assert ("unspent" in plan.provenance) == (used < 0.99)
        found += used < 0.99
        for name, width in plan.widths.items():
            if width < len(votes[name]):
                more = np.array([plan.widths[n] + (n == name) for n in votes])
                assert graph.costs.evaluate(more)["macs"] > share * full
    assert found


@pytest.mark.parametrize("step", [0.01, 0.2, 0.45])
def test_what_coarse_steps_leave_is_said(step: float) -> None:
    graph = trace(chain(), IMAGE)
    rng = np.random.default_rng(0)
    votes = {group.name: rng.random(group.width) for group in graph.groups}
    plan = elect(votes, graph, Budget.parse("flops=0.5"), Constraints(max_ratio=0.9), step=step)
    used = graph.cost(plan).macs / (0.5 * graph.cost().macs)
    assert ("unspent" in plan.provenance) == (used < 0.99)
    assert step < 0.2 or plan.provenance["unspent"].endswith(f"falls in steps of {step:g}.")


def test_ties_and_what_cannot_be_reached() -> None:
    """Equal votes are all at the threshold, and never lead below the budget; floors may be above it."""
    graph = trace(chain(), IMAGE)
    same = {group.name: np.full(group.width, 4.0) for group in graph.groups}
    with pytest.raises(BudgetError, match="vote does not reach the budget"):
        elect(same, graph, Budget.parse("flops=0.5"), Constraints(max_ratio=0.7), step=0.01)
    assert graph.cost(elect(same, graph, Budget.parse("flops=0.5"), Constraints(max_ratio=0.7))).macs > 0
    with pytest.raises(BudgetError, match=r"With min_preserve=0\.3, t"):
        method(budget="flops=0.15")


def test_the_share_that_stays_is_rounded_down() -> None:
    """As in the code: int(0.3 * 16) = 4 of 16, not 5; at least one channel; bounds of one's own are not touched."""
    one = method()
    assert [one.constraints.floor(width) for width in (16, 12, 10, 2)] == [4, 3, 3, 1]
    assert one.constraints.keeping(("0",)).floor(16) == 4
    given = method(constraints=Constraints(max_ratio=0.5)).constraints
    assert [given.floor(width) for width in (16, 5)] == [8, 3]
    assert method(budget="flops=0.9", constraints=Constraints(min_channels=6, align=4)).constraints.floor(16) == 8


# ------------------------------------------------------------------------------------------------------------ folds


def test_folds_are_exact_for_any_sign_behind_the_activation() -> None:
    """Property 8: into a norm in front of a ReLU only a positive gate folds; into the readers any does."""
    torch.manual_seed(0)
    z, gamma, beta = torch.randn(50), torch.tensor(1.5), torch.tensor(0.3)
    for s, holds in ((2.0, True), (-2.0, False)):
        gated, folded = s * F.relu(gamma * z + beta), F.relu(s * gamma * z + s * beta)
        assert torch.allclose(gated, folded) == holds
    one = moved(method())
    assert float(one.mean().min()) < 0 < float(one.mean().max())
    x, _ = batch()
    one.eval()
    with torch.no_grad():
        torch.testing.assert_close(one.plain().eval()(x), one(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_folds_in_every_structure(network: secateur.testing.Network) -> None:
    one = moved(CWB(network.make(), network.inputs(), budget="flops=0.6"))
    x, _ = next(network.batches(1))
    one.eval()
    with torch.no_grad():
        wanted, given = one(x), one.plain().eval()(x)
    torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert not any(module._forward_pre_hooks for module in one.plain().modules())


def test_a_norm_takes_a_constant_gate_away() -> None:
    """Property 9, why gates stand behind the norm and not in front of it."""
    x = torch.randn(16, 3, 4, 4)
    norm = nn.BatchNorm2d(3, eps=1e-12)
    torch.testing.assert_close(norm(5.5 * x), norm(x), rtol=1e-4, atol=1e-5)
    varied = x * (1 + torch.rand(16, 3, 1, 1))
    assert not torch.allclose(norm(varied), norm(x), atol=0.01)


def test_the_penalty() -> None:
    """Property 10: sums (3, 4) cost 5 lambda, and every class's entries get lambda (3/5, 4/5)."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4))
    one = CWB(model, IMAGE, budget="flops=0.9", sparsity=0.1)
    with torch.no_grad():
        one.entries.copy_(torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0], [0.0, 1.0]]).flatten())
    value = one.loss()
    assert value.item() == pytest.approx(0.5)
    value.backward()
    torch.testing.assert_close(one.entries.grad.view(4, 2), torch.tensor([[0.06, 0.08]]).expand(4, 2))
    assert float(method().loss()) == 0


def test_evaluation_knows_no_label() -> None:
    """Property 11, and the trap of evaluating with true labels."""
    one = moved(method())
    x, y = batch()
    one.eval()
    with torch.no_grad():
        plain = one(x)
        one.before_forward(y)
        assert torch.equal(one(x), plain)
        one.before_forward((y + 1) % 4)
        assert torch.equal(one(x), plain)
        one.train()
        one.before_forward(y)
        one.eval()
        one(x)  # takes what was told away
        one.train()
        assert one._target is None
    small = one.finish().eval()
    assert one.result is not None
    assert small(x).shape == (8, 4)
    assert one.result.after.macs == trace(small, IMAGE).cost().macs


# -------------------------------------------------------------------------------------------------------- training


def test_channels_through_which_nothing_flows_go_first() -> None:
    """Half of the first layer sees the class, the other half nothing at all: no gradient, and no vote."""
    model = chain()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[::2, :, 1, 1] = 1.0  # brightness tells the class
        model[0].bias.zero_()
    one = CWB(model, IMAGE, budget="flops=0.6", steps=8, sparsity=0.01)
    optimiser = torch.optim.SGD(one.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for number in range(8):
        step(one, *batch(32, seed=number), optimiser)
    votes, entries = one.score()["0"], one.masks()["0"]
    assert float(entries.detach()[:, 1::2].max()) < 1  # the penalty and weight decay act on them, on all classes alike
    assert votes[1::2].tolist() == [0.0] * 5
    assert votes[::2].min() > 3
    assert one.plan().masks["0"][::2].sum() == min(one.plan().widths["0"], 5)
    assert one.metrics()["spread"] > 0
    assert one.step == 8


def test_masks_go_where_the_loss_falls() -> None:
    """The gradient of the entries against differences of the loss, under the same draws."""
    one = method()
    x, y = batch()
    one.train()

    def value() -> torch.Tensor:
        one.before_forward(y)
        result = F.cross_entropy(one(x), y)
        one.gates.clear()
        return result

    value().backward()
    slope = one.entries.grad
    assert slope is not None
    assert float(slope.abs().max()) > 0
    with torch.no_grad():
        step_by = 0.02 / slope.norm() * slope
        one.entries.add_(step_by)
        above = value()
        one.entries.sub_(2 * step_by)
        below = value()
    assert float(above - below) == pytest.approx(2 * 0.02 * float(slope.norm()), rel=0.05)


def test_targets_are_told_before_the_forward_pass() -> None:
    one = method()
    x, y = batch()
    optimiser = torch.optim.SGD(one.parameters(), 0.1)
    step(one, x, y, optimiser)
    assert one._target is None
    F.cross_entropy(one(x), y).backward()  # under the mean gate
    one.after_backward()
    optimiser.step()
    with pytest.raises(ConfigError, match=r"call before_forward\(target\) before every forward pass"):
        one.after_step()
    one.before_forward(y[:3])
    with pytest.raises(ConfigError, match="told 3 targets, and 8 samples followed"):
        one(x)
    for target, word in (
        (torch.full((8,), 4), "go from 4 to 4, and the network tells 4 apart"),
        (torch.zeros(8, 9), r"has the shape \(8, 9\)"),
        (torch.zeros(8), r"has the shape \(8,\)"),
    ):
        one.before_forward(target)
        with pytest.raises(ConfigError, match=word):
            one(x)
    with pytest.raises(ConfigError, match="the target is list"):
        one.before_forward([1, 2])


def test_micro_batches_draw_anew() -> None:
    one = method()
    x, y = batch()
    seen = []
    for _ in range(2):
        one.before_forward(y)
        F.cross_entropy(one(x), y).backward()
        seen.append(one.gates._factors.detach())
        one.after_backward()
    one.after_step()
    assert not torch.equal(seen[0], seen[1])
    assert one._micro == 0


def test_streams_may_stay_whole() -> None:
    network = NETWORKS[0]
    inside = moved(CWB(network.make(), network.inputs(), budget="flops=0.7"))
    kept = inside.plan().widths
    assert kept["stem.0"] == 24
    assert any("stay whole" in note for note in inside.notes)
    every = moved(CWB(network.make(), network.inputs(), budget="flops=0.7", units="all"))
    assert every.plan().widths["stem.0"] < 24
    assert not any("stay whole" in note for note in every.notes)
    beyond = moved(CWB(network.make(), network.inputs(), budget="flops=0.2"))
    assert beyond.plan().widths["stem.0"] < 24
    assert any("cannot be met with residual streams whole" in note for note in beyond.notes)


def test_what_is_refused() -> None:
    flat = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(ModelError, match=r"gives \(2, 4, 4, 4\) instead of one row of class scores"):
        method(flat)
    assert not any(module._forward_pre_hooks for module in flat.modules())
    with pytest.raises(ModelError, match="every group must stay whole"):
        method(budget="flops=1", constraints=Constraints(max_ratio=0.0))
    with pytest.raises(ConfigError, match="needs allocator='global'"):
        method(step=0.01, allocator="uniform")
    assert "was not applied" in method(normalise="mean").notes[0]
    with pytest.raises(ConfigError, match="learns its masks together with the weights"):
        method().collect([batch()], F.cross_entropy)


def test_what_cannot_be_folded_into_stays_whole() -> None:
    model = chain()
    weight_norm(model[3])
    one = method(model, budget="flops=0.9")
    assert "0" in one.constraints.keep
    assert one.plan().widths["0"] == 10


def test_a_wrong_fold_is_noticed() -> None:
    one = moved(method())
    one.mean = lambda: torch.ones(22) * (2.0 if one._open.sum() == 22 else 1.0)  # type: ignore[method-assign]
    with pytest.raises(VerificationError, match="With gates folded into its weights"):
        one.finish()
