"""NAP at work: both modes, the properties and the traps of its specification that need a network."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.methods.kit.sparse import keep_zeros
from secateur.methods.nap.method import NAP
from secateur.runtime import save_weights
from secateur.runtime.sparse import read_sparse, save_sparse

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain(width: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.Conv2d(width, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 20, 3, 2, 1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(80, 24), nn.ReLU(), nn.Linear(24, 5),
    )  # fmt: skip


def batches(count: int, seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = torch.randint(0, 5, (16,), generator=generator)
        images = 0.5 * torch.randn(16, 3, 8, 8, generator=generator)
        images[:, 0] += labels[:, None, None] / 2.5 - 1.0
        yield images, labels


def pruner(build: Callable[[], nn.Module] = plain, budget: str = "flops=0.5", steps: int = 12, **settings: Any) -> NAP:
    return NAP(build(), IMAGE, budget=budget, steps=steps, **settings)


def weighted(share: float = 0.1, **settings: Any) -> NAP:
    return pruner(budget=f"params={share}", mode="weight", **settings)


def train(method: NAP, steps: int, look: Callable[[], None] | None = None, parts: int = 1) -> None:
    method.train()
    optimiser = torch.optim.SGD(method.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    for images, labels in batches(steps, seed=1):
        optimiser.zero_grad()
        for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            output = method(x)
            method.after_forward(output, y)
            (F.cross_entropy(output, y) / parts + method.loss()).backward()
            method.after_backward()
        optimiser.step()
        method.after_step()
        if look is not None:
            look()


def collected(method: NAP, count: int = 6) -> NAP:
    method.collect(batches(count), F.cross_entropy)
    return method


# ------------------------------------------------------------------------------------------- scores of a network


def test_scores_of_single_weights_are_those_of_the_dense_fisher_matrix() -> None:
    """One linear layer on one input, every target drawn very often: A (x) G is the exact Fisher matrix."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(1, 3).double()
    method = NAP(net, x, budget="params=0.5", mode="weight", damping=1e-2)
    method.collect([(x.expand(30000, 3), torch.zeros(30000, dtype=torch.long))], F.cross_entropy)
    logits = net(x)
    factors = method.factors
    full = torch.kron(factors.inputs("2")[0, :-1, :-1].contiguous(), factors.gradients("2")[0])
    grads = torch.zeros(12, 12).double()
    for target, p in enumerate(logits.softmax(1)[0].detach()):
        (d,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([target])), net[2].weight, retain_graph=True)
        grads += p * torch.outer(d.T.flatten(), d.T.flatten())
    assert float((full - grads).norm() / grads.norm()) < 0.02
    curve = method.importance.curvature("2")
    dense = torch.linalg.inv(torch.kron(curve.inputs[0, 0].contiguous(), curve.gradients[0])).diag().view(5, 3).T
    wanted = net[2].weight.detach() ** 2 / (2 * dense[:, :4])
    torch.testing.assert_close(method.importance.of_weights()["2.weight"], wanted)


def test_channel_scores_are_sums_over_the_group() -> None:
    """A residual stream: the rows of all its producers; the depthwise layer inside counts as one."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.skip = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.deep, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8 * 64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.stem(x))
            result: torch.Tensor = self.head((x + self.skip(self.deep(x))).flatten(1))
            return result

    for side in ("producer", "consumer", "both"):
        torch.manual_seed(0)
        method = collected(NAP(Net(), IMAGE, budget="flops=0.6", side=side))
        assert len(method.graph.groups) == 1
        curves = {name: method.importance.curvature(name) for name in method.factors.layers}
        rows = sum(curves[name].rows() for name in ("stem", "skip", "deep"))
        channels = np.arange(8)[:, None]
        columns = curves["skip"].columns(channels * 9 + np.arange(9)) + curves["head"].columns(
            channels * 64 + np.arange(64)
        )
        wanted = {"producer": rows, "consumer": columns, "both": rows + columns}[side]
        np.testing.assert_allclose(next(iter(method.score().values())), wanted, rtol=1e-9)


@pytest.mark.parametrize("mode", ["channel", "weight"])
def test_scaling_a_layer_and_its_reader_changes_no_plan(mode: str) -> None:
    """No norms; the first layer's output five times as large, the next layer's weights a fifth."""

    def build(scale: float) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(12, 12, 3, 2, 1, bias=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(192, 5, bias=False),
        ).double()  # fmt: skip
        with torch.no_grad():
            net[0].weight *= scale
            net[2].weight /= scale
        return net

    found = []
    for scale in (1.0, 5.0):
        budget = "flops=0.5" if mode == "channel" else "params=0.3"
        method = NAP(build(scale), IMAGE.double(), budget=budget, mode=mode)
        method.collect([(x.double(), y) for x, y in batches(4)], F.cross_entropy)
        found.append(method)
    if mode == "channel":
        assert found[0].plan() == found[1].plan()
        for name, scores in found[0].score().items():
            np.testing.assert_allclose(scores, found[1].score()[name], rtol=1e-6)
        return
    for name, scores in found[0].importance.of_weights().items():
        torch.testing.assert_close(scores, found[1].importance.of_weights()[name], rtol=1e-6, atol=0)
    small = [method.finish() for method in found]
    assert all(torch.equal(a != 0, b != 0) for a, b in zip(small[0].parameters(), small[1].parameters(), strict=True))


def test_layers_that_matter_more_keep_more() -> None:
    """Two branches into one sum, one of them ten times as loud: its share of what is kept rises."""

    class Net(nn.Module):
        def __init__(self, loud: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
            self.x, self.y = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 12, 1)
            self.head, self.loud = nn.Linear(12, 5), loud

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = self.loud * self.x(self.a(x).relu()) + self.y(self.b(x).relu())
            result: torch.Tensor = self.head(both.relu().mean((2, 3)))
            return result

    shares: dict[str, list[float]] = {"channel": [], "weight": []}
    for loud in (1.0, 10.0):
        method = collected(NAP(Net(loud), IMAGE, budget="flops=0.5", allocator="global"))
        widths = method.plan().widths
        shares["channel"].append(widths["a"] / (widths["a"] + widths["b"]))
        single = collected(NAP(Net(loud), IMAGE, budget="params=0.3", mode="weight")).finish()
        assert isinstance(single, Net)
        kept = [int(layer.weight.count_nonzero()) for layer in (single.a, single.b)]
        shares["weight"].append(kept[0] / sum(kept))
    assert shares["channel"][1] > shares["channel"][0] + 0.1
    assert shares["weight"][1] > shares["weight"][0] + 0.1
    # trap: divided by their layer's sum the scores no longer know
    even = [
        collected(NAP(Net(loud), IMAGE, budget="flops=0.5", allocator="global", normalize="layer_sum")).plan().widths
        for loud in (1.0, 10.0)
    ]
    assert abs(even[1]["a"] - even[0]["a"]) <= 2


def test_scores_do_not_depend_on_batches() -> None:
    """Trap: gradients of means over batches, the last of which is smaller."""
    images, labels = next(batches(1))
    whole, ragged = pruner(), pruner()
    whole.collect([(images, labels)], F.cross_entropy)
    ragged.collect(zip(images.split((7, 7, 2)), labels.split((7, 7, 2)), strict=True), F.cross_entropy)
    for name, scores in whole.score().items():
        np.testing.assert_allclose(ragged.score()[name], scores, rtol=1e-3)


def test_statistics_are_of_evaluation_mode_while_training() -> None:
    """Trap: in training mode a norm hides the curvature along the rows before it."""
    method = pruner(steps=1000)
    train(method, 10)
    for name, layer in method.factors.layers.items():
        curve = method.importance.curvature(name)
        assert bool((curve.rows() > 0).all()), layer
    before = {name: tensor.clone() for name, tensor in method.model.state_dict().items()}
    assert method.model.training
    collected(method, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.model.state_dict().items())


def test_in_place_activations_change_no_factor() -> None:
    """Trap: hooks that see what an in-place activation left."""
    other = plain()
    for module in other.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    methods = [collected(pruner()), collected(NAP(other, IMAGE, budget="flops=0.5"))]
    for a, b in zip(methods[0].factors.buffers(), methods[1].factors.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_empirical_fisher_takes_labels() -> None:
    method = pruner(fisher="empirical")
    train(method, 12, parts=2)
    assert method.plan().widths
    careless = pruner(fisher="empirical")
    careless.train()
    careless(next(batches(1))[0]).sum().backward()
    with pytest.raises(ConfigError, match="after_forward"):
        careless.after_step()
    collected(pruner(fisher="empirical")).finish()


# ------------------------------------------------------------------------------------------------------ channels


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"side": "consumer"}, {"side": "both", "weight_update": True}, {"form": "obd"},
        {"form": "sum", "side": "both"},
        {"rounds": 1}, {"damping_kind": "split"}, {"positions": 4}, {"largest": 30, "weight_update": True},
        {"compensate": False}, {"decay": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_trained_cut_and_equal_to_its_masked_self(settings: dict[str, Any]) -> None:
    method = pruner(**settings)
    train(method, 12)
    images = next(batches(1, seed=5))[0]
    small = method.finish().eval()
    assert method.result is not None
    assert method.result.verification is not None
    assert method.result.verification.passed
    assert 0.45 <= method.result.reached("flops") <= 0.5  # a single channel costs up to 4% here
    with method.evaluation_modes()["hard"], torch.no_grad():
        wanted = method.eval()(images)
    torch.testing.assert_close(small(images), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(method.eval()(images), wanted)  # masked as it stands
    assert method.metrics()["round"] == method.settings.rounds
    assert method.metrics()["flops"] == pytest.approx(method.result.reached("flops"))


def test_rounds_are_geometric_and_masks_monotone() -> None:
    method = pruner(steps=40, rounds=5, end=0.5)
    seen: list[tuple[int, float]] = []
    masks: list[dict[str, Any]] = []

    def look() -> None:
        if method._round > len(seen):
            seen.append((method.step, method.metrics()["flops"]))
            masks.append(dict(method._kept))

    train(method, 40, look)
    assert [step for step, _ in seen] == [4, 8, 12, 16, 20]
    for number, (_, left) in enumerate(seen, 1):
        assert 0.5 ** (number / 5) * 0.92 <= left <= 0.5 ** (number / 5)
    for before, after in itertools.pairwise(masks):
        assert all(not (after[name] & ~before[name]).any() for name in after)
    assert method.plan().masks.keys() == masks[-1].keys()


def test_removed_channels_stay_zero_whatever_momentum_says() -> None:
    method = pruner(steps=16, rounds=2, end=0.5)

    def look() -> None:
        for parameter, mask in method._holding():
            assert bool((parameter[~mask] == 0).all())

    train(method, 16, look)
    assert method._held


def test_one_shot_from_calibration() -> None:
    method = collected(pruner())
    before = {name: tensor.clone() for name, tensor in method.model.state_dict().items()}
    small = method.finish()
    assert method.result is not None
    assert 0.48 <= method.result.reached("flops") <= 0.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.model.state_dict().items())
    assert type(small) is nn.Sequential
    with pytest.raises(ConfigError, match="No statistics"):
        pruner().plan()


@pytest.mark.parametrize("bias", [True, False])
def test_the_constant_of_a_removed_channel_moves_on(bias: bool) -> None:
    """Trap: behind its norm a channel whose row is zero says beta - gamma mu / sigma; its readers would miss that."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[0].weight[5] = 0.0
        net[1].bias[5], net[1].running_mean[5] = 2.0, -1.0
    wanted = copy.deepcopy(net)
    method = NAP(net, IMAGE, budget="flops=0.99", allocator="global")
    method.collect(batches(4), F.cross_entropy)
    assert method.score()["0"].argmin() == 5
    for compensate, near in ((True, True), (False, False)):
        method.settings = method.settings.model_copy(update={"compensate": compensate})
        masks = {g.name: np.ones(g.width, dtype=np.bool_) for g in method.graph.groups}
        masks["0"][5] = False
        twin = copy.deepcopy(net)
        method.repair(twin, secateur.Plan(masks))
        error = float(((twin(IMAGE) - wanted(IMAGE)).abs().max() / wanted(IMAGE).abs().max()).detach())
        assert (error < 1e-5) == near


def test_the_mean_answer_stands_when_columns_move_to_make_up_for_others() -> None:
    """The update changes the bias, too; with the compensation the reader's mean output is what it was."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    data = torch.randn(400, 6, generator=torch.Generator().manual_seed(1)).double() + 0.5
    method = NAP(net, data[:2], budget="params=0.6", side="consumer", weight_update=True)
    method.collect([(data, torch.zeros(400, dtype=torch.long))], F.cross_entropy)
    twin = copy.deepcopy(net)
    mask = np.ones(8, dtype=np.bool_)
    mask[[1, 4, 6]] = False
    method.repair(twin, secateur.Plan({"0": mask}))
    with torch.no_grad():
        assert not torch.allclose(twin(data), net(data), atol=1e-3)
        torch.testing.assert_close(twin(data).mean(0), net(data).mean(0), atol=1e-9, rtol=0)


def test_the_update_hurts_less_than_removing_alone() -> None:
    torch.manual_seed(0)
    net = plain()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for x, y in batches(40):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    images = torch.cat([x for x, _ in batches(8, seed=9)])
    with torch.no_grad():
        dense = net.eval()(images)
    for options in ({"side": "consumer", "compensate": False}, {"mode": "weight", "budget": "params=0.3"}):
        errors = []
        for update in (True, False):
            method = NAP(copy.deepcopy(net), IMAGE, **{"budget": "flops=0.7", "weight_update": update, **options})
            with torch.no_grad():
                errors.append(float((collected(method, 20).finish().eval()(images) - dense).norm() / dense.norm()))
        assert errors[0] < errors[1], options


def test_no_group_loses_more_than_its_cap_unless_the_budget_says_so() -> None:
    method = collected(pruner(max_prune_ratio=0.5, budget="flops=0.5"))
    assert all(2 * method.plan().widths[g.name] >= g.width for g in method.graph.groups)
    tight = collected(pruner(max_prune_ratio=0.5, budget="flops=0.1"))
    assert any("max_prune_ratio" in note for note in tight.notes)
    tight.finish()


def test_networks_it_cannot_score() -> None:
    net = nn.Sequential(
        nn.ConvTranspose2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3), nn.Flatten(), nn.Linear(1152, 5)
    )
    method = NAP(net, IMAGE, budget="flops=0.6", side="consumer")
    assert any("stay whole" in note for note in method.notes)
    with pytest.raises(ModelError, match="no score"):
        NAP(net, IMAGE, budget="flops=0.6")


def test_what_is_gone_decides_nothing_about_what_is_left() -> None:
    """Per cost, after a round: scores of -1 for what is gone would leave cost alone to decide about the rest."""
    method = collected(pruner())
    assert method.allocator == "per_cost"
    at_once = method.plan()
    method._kept = method._choose(0.3).masks
    assert not all(mask.all() for mask in method._kept.values())
    after = method.plan().widths
    assert all(after[name] >= 0.6 * width for name, width in at_once.widths.items())
    for name, mask in method._kept.items():
        assert (method.score()[name][~mask] < 0).all()


def test_a_dead_channel_that_is_left_goes_before_what_is_gone_comes_back() -> None:
    """Both cost no loss; the one that is gone is below."""
    method = collected(pruner())
    with torch.no_grad():
        method.model[0].weight[:3] = 0.0
    method._kept["0"][0] = False
    scores = method.score()["0"]
    assert scores[1] == scores[2] == 0.0
    assert scores[0] < 0.0
    plan = method.plan()
    assert not plan.masks["0"][:3].any()


def test_a_round_takes_at_most_its_share_of_a_group() -> None:
    for share, least in ((0.5, 0.5), (0.2, 0.8), (1.0, 0.0)):
        method = collected(pruner(budget="flops=0.2", rounds=2, round_ratio=share))
        first = method._choose(0.5)
        for group in method.graph.groups:
            assert first.widths[group.name] >= np.floor(least * group.width)
        if share == 0.2:
            assert method.graph.cost(first).macs > 0.55 * method.graph.cost().macs  # 0.2^0.5 = 0.45 is out of reach
        assert method.graph.cost(method.plan()).macs <= 0.2 * method.graph.cost().macs  # the last makes up for it


@pytest.mark.parametrize(
    ("budget", "allocator"),
    [
        ("params=0.5", "global"),
        ("flops=0.5", "per_cost"),
        ("flops=0.5,params=0.6", "per_cost"),
        ("peak=0.9", "per_cost"),
    ],
)
def test_what_is_ranked_follows_the_budget_unless_the_user_says(budget: str, allocator: str) -> None:
    assert pruner(budget=budget).allocator == allocator
    for given in ("global", "uniform", "per_cost"):
        assert pruner(budget=budget, allocator=given).allocator == given


@pytest.mark.parametrize("mode", ["channel", "weight"])
def test_masked_weights_get_no_gradient(mode: str) -> None:
    """Else they would count in a clipped norm, and momentum would gather for them."""

    def saying() -> nn.Module:
        net = plain()
        net[7] = nn.Sigmoid()  # a channel of zeros says one half, so that its readers' weights have gradients
        return net

    budget = "flops=0.5" if mode == "channel" else "params=0.5"
    method = pruner(saying, budget, steps=16, rounds=2, end=0.5, mode=mode)
    train(method, 10)
    held = [(parameter, mask) for parameter, mask in method._holding() if not mask.all()]
    assert held
    images, labels = next(batches(1))
    for parameter in method.parameters():
        parameter.grad = None
    F.cross_entropy(method(images), labels).backward()
    assert any(bool(p.grad[~mask].any()) for p, mask in held if p.grad is not None)
    method.after_backward()
    assert not any(bool(p.grad[~mask].any()) for p, mask in held if p.grad is not None)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_old_statistics_fade_as_decay_says(decay: float) -> None:
    method = pruner(steps=10, end=0.9, decay=decay, stat_every=1, rounds=1)
    train(method, 3)
    assert method.factors.updates == 3
    assert method.factors.weight == pytest.approx(16 * (1 + decay + decay**2))


# -------------------------------------------------------------------------------------------------- other answers


def one_number(flat: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    ends = [nn.Flatten(0)] if flat else []
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 1), *ends,
    )  # fmt: skip


def binary(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(output.flatten(), target.flatten().float())


def squared(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output.flatten(), target.flatten())


OTHERS = {
    "yes or no [N, 1]": (one_number, lambda y: (y > 2).float()[:, None], binary, "binary"),
    "yes or no, labels [N]": (one_number, lambda y: (y > 2).long(), binary, "binary"),
    "quantity [N, 1]": (one_number, lambda y: y[:, None] / 3.0, squared, "numbers"),
    "quantity [N]": (lambda: one_number(flat=True), lambda y: y / 3.0, squared, "numbers"),
    "several labels": (plain, lambda y: ((y[:, None] >> torch.arange(5)) & 1).float(), binary, "binary"),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_networks_with_other_answers_are_scored(case: str, fisher: str) -> None:
    """One output has one class, of which the Fisher matrix is zero: the answer is yes or no, or a number."""
    build, asked, loss, kind = OTHERS[case]
    method = NAP(build(), IMAGE, budget="flops=0.5", steps=6, rounds=2, fisher=fisher)
    optimiser = torch.optim.SGD(method.parameters(), 0.01)
    method.train()
    for x, y in batches(6):
        optimiser.zero_grad()
        output = method(x)
        method.after_forward(output, asked(y))
        loss(output, asked(y)).backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
    assert method.factors.answers == kind
    for name, mask in method._kept.items():
        assert np.ptp(method.importance.of_channels()[name][mask]) > 0
    method.finish()
    shown = NAP(build(), IMAGE, budget="flops=0.5", fisher=fisher)
    shown.collect([(x, asked(y)) for x, y in batches(2)], loss)
    assert shown.factors.answers == kind
    assert all(np.ptp(scores) > 0 for scores in shown.score().values())


def test_factors_of_a_single_number_are_gauss_newtons() -> None:
    """A linear network with a normal answer: G is 1 whatever the weights, and dL of a row is w A w' / 2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 1, bias=False)).double()
    x = torch.randn(4000, 4).double()
    method = NAP(net, x[:2], budget="params=0.7", damping=0.0, answers="numbers")
    method.collect([(x, torch.zeros(4000).double())], squared)
    assert float(method.factors.gradients("1")) == pytest.approx(1.0, rel=0.1)
    readers = net[1].weight.detach()
    torch.testing.assert_close(method.factors.gradients("0")[0], readers.T @ readers, rtol=0.1, atol=1e-3)


def test_embeddings_are_no_class_scores() -> None:
    """Labels come with them, and the loss holds images against each other."""

    def contrast(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        other = output @ output.T - 1e9 * torch.eye(len(labels))
        return -(other.log_softmax(1) * (labels[:, None] == labels)).mean()

    shown = NAP(plain(), IMAGE, budget="flops=0.5")
    shown.collect(batches(2), contrast)
    assert shown.factors.answers == "numbers"
    assert any("for class scores" in note for note in shown.notes)
    plain_one = collected(pruner())
    assert plain_one.factors.answers == "classes"


def test_a_single_number_nobody_explains_is_refused_at_once() -> None:
    method = NAP(one_number(), IMAGE, budget="flops=0.5", steps=100)
    with pytest.raises(ConfigError, match=r"after_forward\(output, target\) in the loop, or set answers"):
        step_on(method, 20)
    assert method.step < 20


def step_on(method: NAP, steps: int) -> None:
    method.train()
    for _ in range(steps):
        method(IMAGE).sum().backward()
        method.after_backward()
        method.after_step()


def test_scores_that_say_nothing_end_the_training_at_the_first_round() -> None:
    net = one_number()
    with torch.no_grad():
        net[6].weight.zero_()
    method = NAP(net, IMAGE, budget="flops=0.5", steps=100, answers="numbers")
    with pytest.raises(ConfigError, match="no gradient reaches the layers"):
        step_on(method, 20)
    assert method.step == 4
    shown = NAP(net, IMAGE, budget="flops=0.5", answers="numbers")
    shown.collect(((x, y.float()) for x, y in batches(2)), squared)
    with pytest.raises(ConfigError, match="no gradient reaches the layers"):
        shown.finish()


# ------------------------------------------------------------------------------------------------ single weights


@pytest.mark.parametrize("share", [0.5, 0.1, 0.043])
def test_exactly_so_many_weights_stay(share: float) -> None:
    method = weighted(share)
    counted: list[int] = []
    masks: list[dict[str, torch.Tensor]] = [{n: torch.ones_like(m) for n, m in method.weight_masks.by_name().items()}]

    def look() -> None:
        now = {name: mask.clone() for name, mask in method.weight_masks.by_name().items()}
        assert all(not bool((now[name] & ~masks[-1][name]).any()) for name in now)  # never come back
        assert all(bool((method.model.get_parameter(n)[~m] == 0).all()) for n, m in now.items())
        masks.append(now)
        counted.append(method.weight_masks.kept)

    train(method, 12, look)
    total = method.weight_masks.total
    assert total == sum(m.weight.numel() for m in method.model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert counted[-1] == round(share * total)
    assert counted == sorted(counted, reverse=True)
    small = method.finish()
    zeros = {name: int((p == 0).sum()) for name, p in small.named_parameters()}
    assert sum(zeros[name] for name in method.weight_masks.names) == total - round(share * total)
    assert sum(zeros.values()) == total - round(share * total)  # biases and norms are never pruned
    assert [p.shape for p in small.parameters()] == [p.shape for p in method.model.parameters()]
    assert sum("times fewer" in note for note in method.notes) == 1
    method.finish()
    assert sum("times fewer" in note for note in method.notes) == 1
    assert method.metrics()["weights"] == pytest.approx(share, abs=1e-3)
    with method.evaluation_modes()["hard"], torch.no_grad():
        torch.testing.assert_close(method.eval()(IMAGE), small.eval()(IMAGE))


def test_weights_in_one_shot_and_with_an_absolute_budget() -> None:
    small = collected(weighted(0.2)).finish()
    total = sum(m.weight.numel() for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    kept = sum(int(m.weight.count_nonzero()) for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert kept == round(0.2 * total)
    method = collected(pruner(budget="params=1k", mode="weight"))
    method.finish()
    assert method.result is not None
    assert method.result.plan.provenance["sparse"]["nonzero"] == 1000


def test_ties_and_dead_features() -> None:
    """A colour that is never there: its weights are the first to go; equal scores do not upset the count."""
    method = weighted(0.9)
    dark = [(x * torch.tensor([1.0, 1.0, 0.0])[:, None, None], y) for x, y in batches(4)]
    method.collect(dark, F.cross_entropy)
    scores = method.importance.of_weights()["0.weight"]
    assert float(scores[:, 2].median()) < 0.02 * float(scores[:, :2].median())
    small: Any = method.finish()
    kept = [float((small[0].weight[:, colours] != 0).float().mean()) for colours in ((2,), (0, 1))]
    assert kept[0] < kept[1] - 0.02
    equal = {name: torch.zeros(mask.shape) for name, mask in method.weight_masks.by_name().items()}
    masks = method.weight_masks.threshold(equal, 0.3)
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.3 * method.weight_masks.total)


def test_layers_can_be_left_whole() -> None:
    constraints = secateur.Constraints(ignore=("0", "12"))
    method = NAP(plain(), IMAGE, budget="params=0.3", mode="weight", constraints=constraints)
    small: Any = collected(method).finish()
    assert bool((small[0].weight != 0).all())
    assert bool((small[12].weight != 0).all())
    with pytest.raises(BudgetError, match="must stay"):
        NAP(plain(), IMAGE, budget="params=0.01", mode="weight", constraints=secateur.Constraints(ignore=("10",)))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"budget": "flops=0.5"}, "flops"), ({"budget": "params=0.5,peak=0.5"}, "peak"),
        ({"budget": "params=1e-9"}, "stay"),
        ({"constraints": secateur.Constraints(align=4)}, "align"),
        ({"constraints": secateur.Constraints(min_channels=2)}, "min_channels"),
    ],
)  # fmt: skip
def test_what_single_weights_cannot_do(options: dict[str, Any], word: str) -> None:
    with pytest.raises((BudgetError, ConfigError), match=word):
        NAP(plain(), IMAGE, **{"budget": "params=0.5", "mode": "weight", **options})


@pytest.mark.parametrize("settings", [{"start": 0.8}, {"rounds": 0}, {"end": 1.5}, {"mode": "row"}, {"positions": 0}])
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        pruner(**settings)


def test_zeros_stay_in_fine_tuning() -> None:
    method = weighted(0.2)
    train(method, 12)
    small = method.finish().train()
    zeros = {name: small.get_parameter(name) == 0 for name in method.weight_masks.names}
    keep_zeros(small, method.weight_masks.names)
    for optimiser in (
        torch.optim.SGD(small.parameters(), 0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
        torch.optim.AdamW(small.parameters(), 1e-3),
    ):
        for x, y in batches(4):
            optimiser.zero_grad()
            F.cross_entropy(small(x), y).backward()
            optimiser.step()
    assert all(torch.equal(small.get_parameter(name) == 0, mask) for name, mask in zeros.items())


def test_the_sparse_file_holds_the_same_in_less(tmp_path: Any) -> None:
    method = weighted(0.05)
    train(method, 12)
    small = method.finish()
    size = save_sparse(small, tmp_path / "a.safetensors", method.weight_masks.names)
    dense = sum(p.numel() * 4 for p in small.parameters())
    assert size == (tmp_path / "a.safetensors").stat().st_size < 0.4 * dense
    found = read_sparse(tmp_path / "a.safetensors")
    assert found.keys() == small.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in small.state_dict().items())
    plain().load_state_dict(found)
    save_weights(small, tmp_path / "b.safetensors", {})
    for name in ("b.safetensors", "none.safetensors"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_sparse(tmp_path / name)


# ------------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("mode", ["channel", "weight"])
def test_training_goes_on_from_a_state(mode: str) -> None:
    budget = "flops=0.5" if mode == "channel" else "params=0.2"
    first = NAP(plain(), IMAGE, budget=budget, mode=mode, steps=20)
    train(first, 9)
    second = NAP(plain(), IMAGE, budget=budget, mode=mode, steps=20)
    second.load_state_dict(first.state_dict())
    second.load_state(first.state())
    for method in (first, second):
        train(method, 11)
    assert first.state() == second.state()
    for a, b in ((first, second), (first.finish(), second.finish())):
        other = b.state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


def test_the_report_counts_weights_that_are_not_zero() -> None:
    from secateur.report.page.headline import _budget
    from secateur.report.page.results import Results

    costs = {"macs": 10, "params": 100, "activations": 10, "peak_activations": 10}
    asked = {"format": "secateur.run", "version": 1, "budget": "params=0.1", "before": costs, "after": costs}
    found = Results.model_validate({**asked, "sparse": {"weights": 80, "nonzero": 8, "names": [], "times": 10.0}})
    assert "weights that are not zero 10.0% of at most 10.0%" in _budget(found)[0]
    assert "over by" in _budget(Results.model_validate(asked))[0]
