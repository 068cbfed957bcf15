"""Group Fisher pruning: the worked numbers, properties and traps of its specification."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.allocate import Constraints
from secateur.errors import ConfigError, ModelError
from secateur.graph import trace
from secateur.graph.readers import readers
from secateur.methods.group_fisher.gate_gradients import Fisher, Shared, filters
from secateur.methods.group_fisher.method import GroupFisher, memory
from secateur.models import create
from secateur.statistics.gather import gather
from secateur.testing.networks import NETWORKS, Network

BY_NAME = {network.name: network for network in NETWORKS}
RESIDUAL = BY_NAME["residual"]


def summed(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target)


def fisher(model: nn.Module, batches: Any, loss: Any = summed, inputs: Any = None) -> Fisher:
    """Scores of all channels of a model."""
    batches = list(batches)
    graph = trace(model, batches[0][0][:1] if inputs is None else inputs)
    found = Fisher(readers(graph)[0] | filters(graph), int(graph.widths().sum()), torch.device("cpu"))
    gather(model, batches, [found], loss)
    return found


def made(network: Network = RESIDUAL, **options: Any) -> GroupFisher:
    return GroupFisher(network.make(), network.inputs(), **{"budget": "flops=0.5", "steps": 60, **options})


def trained(method: GroupFisher, steps: int, *, seed: int = 0, parts: int = 1) -> list[int]:
    """Train; channels that are left after every step."""
    optimiser = torch.optim.SGD(method.parameters(), 0.01, momentum=0.9)
    left = []
    method.train()
    for images, labels in RESIDUAL.batches(steps, seed):
        optimiser.zero_grad()
        for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            (F.cross_entropy(method(x), y) / parts).backward()
            method.after_backward()
        optimiser.step()
        method.after_step()
        left.append(sum(int(mask.sum()) for mask in method.masks.values()))
    return left


# ----------------------------------------------------------------------------------------------- what is scored


class Chain(nn.Module):
    """y = w2 relu(w1 x), as convolutions with one number each; two channels, so that they form a group."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
        self.a.weight.data, self.b.weight.data = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0, 1.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(F.relu(self.a(x)))
        return result


def test_scalar_closed_form() -> None:
    """Property 3: y = 6, dL/dm = (y - t) y = 6, score 36; the channel that is silent has 0."""

    def half_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((output - target) ** 2 / 2).mean()

    found = fisher(Chain(), [(torch.tensor([[3.0]]), torch.tensor([[5.0]]))], half_square)
    assert found.squares.tolist() == [36.0, 0.0]


class Fork(nn.Module):
    """One channel that two layers read, with given gradients: a loss of sum(weights * outputs)."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.make = nn.Linear(1, 2, bias=False)
        self.one, self.two = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        self.make.weight.data.fill_(1.0)
        self.one.weight.data.fill_(first)
        self.two.weight.data.fill_(second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.make(x)
        return torch.cat([self.one(x), self.two(x)], 1)


@pytest.mark.parametrize(("values", "score"), [((3.0, -3.0), 0.0), ((2.0, 2.0), 16.0)])
def test_a_shared_mask_sums_before_it_squares(values: tuple[float, float], score: float) -> None:
    """Property 2: r = (3), (-3) gives 0 and not 18; r = 2, 2 gives 16 and not 8."""
    found = fisher(Fork(*values), [(torch.ones(1, 1), torch.zeros(1))], lambda output, target: output.sum())
    assert found.squares.tolist() == [score, score]


@pytest.mark.parametrize("name", [n for n in BY_NAME if n != "shuffle"])
def test_against_masks_of_single_samples(name: str) -> None:
    """Properties 1 and 2 by brute force: autograd's gradient of masks [samples, channels] before every reader."""
    network = BY_NAME[name]
    model = network.make().eval().double()
    graph = trace(model, network.inputs().double())
    tables = readers(graph)[0] | filters(graph)
    channels = int(graph.widths().sum())
    (images, labels), *_ = list(network.batches(1))
    images = images.double()
    masks = torch.ones(len(images), channels + 1, dtype=torch.float64, requires_grad=True)

    def gate(table: np.ndarray) -> Any:
        def before(layer: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
            factors = masks[:, table]
            return args[0] * factors.view(*factors.shape, *[1] * (args[0].dim() - 2))

        return before

    handles = [model.get_submodule(name).register_forward_pre_hook(gate(table)) for name, table in tables.items()]
    F.cross_entropy(model(images), labels, reduction="sum").backward()
    for handle in handles:
        handle.remove()
    assert masks.grad is not None
    wanted = masks.grad[:, :-1]
    shared = Shared(tables, channels)
    with shared.on(model, watching=True):
        F.cross_entropy(model(images), labels, reduction="sum").backward()
    found = shared.take(len(images))
    assert found is not None
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)
    assert (wanted.abs().sum(0) > 0).sum() > channels / 2


def test_scores_do_not_see_scales() -> None:
    """Property 4: A times a and what reads it over a changes nothing; the loss times k gives k² and the same order."""
    batches = list(RESIDUAL.batches(2))
    model = RESIDUAL.make().eval()
    before = fisher(model, batches).squares
    with torch.no_grad():
        model.neck[1].weight *= 4.0
        model.neck[1].bias *= 4.0
        model.head.fc.weight /= 4.0
    torch.testing.assert_close(fisher(model, batches).squares, before, rtol=1e-4, atol=1e-10)
    tripled = fisher(model, batches, lambda output, target: 3 * summed(output, target)).squares
    torch.testing.assert_close(tripled, 9 * before, rtol=1e-3, atol=1e-9)


def test_sums_over_samples_whatever_the_batch() -> None:
    """Property 5: two batches of 4 are one of 8; and the squares of the mean, which the trap gives, are far less."""
    (images, labels), *_ = list(RESIDUAL.batches(1))
    model = RESIDUAL.make()
    whole = fisher(model, [(images, labels)]).squares
    parts = fisher(model, [(images[:3], labels[:3]), (images[3:], labels[3:])]).squares
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-12)
    shares = [fisher(model, [(images[k], labels[k])]) for k in (slice(0, 5), slice(5, 8))]
    torch.testing.assert_close(shares[0].squares + shares[1].squares, whole, rtol=1e-4, atol=1e-12)


def test_the_training_sums_what_collect_does() -> None:
    """With a network that evaluates and weights that stand still, in micro-batches of unequal sizes."""
    method = made(steps=1000)
    (images, labels), *_ = list(RESIDUAL.batches(1))
    method.train()
    for module in method.model.modules():
        module.training = False
    for some in (slice(0, 5), slice(5, 8)):
        F.cross_entropy(method(images[some]), labels[some]).backward()
        method.after_backward()
    method.after_step()
    wanted = fisher(RESIDUAL.make(), [(images, labels)]).squares
    torch.testing.assert_close(method.sums.double(), wanted, rtol=1e-4, atol=1e-9)


def test_memory_of_a_parent() -> None:
    """Property 6: a stride-2 layer on 112x112 gives 56x56 = 3136 elements per channel; the order turns round."""
    first, second = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(6, 2, 1))
    graph = trace(model, torch.randn(1, 3, 112, 112))
    assert memory(graph).tolist() == [3136.0, 784.0]
    method = GroupFisher(model, torch.randn(1, 3, 112, 112), budget="flops=0.5")
    method.sums[:4], method.sums[4:] = 2.0, 1.0
    scores = method.score()
    assert scores["0"][0] * 3136 == pytest.approx(2 * scores["2"][0] * 784)
    assert scores["0"][0] < scores["2"][0]
    method = GroupFisher(model, torch.randn(1, 3, 112, 112), budget="flops=0.5", normaliser="none")
    method.sums[:4], method.sums[4:] = 2.0, 1.0
    assert method.score()["0"][0] == 2 * method.score()["2"][0]


def test_memory_counts_all_parents_of_a_group() -> None:
    """A residual stream counts every layer that makes it; with a depthwise convolution its own output too."""
    network = BY_NAME["projection"]
    graph = trace(network.make(), network.inputs())
    at = [group.name for group in graph.groups]
    stream = next(k for k, name in enumerate(at) if graph.groups[k].width == 24 and "shortcut" in str(_made(graph, k)))
    assert memory(graph)[stream] == 2 * (16 + 16)  # two images of 4x4, by the body and by the shortcut
    network = BY_NAME["depthwise"]
    graph = trace(network.make(), network.inputs())
    inside = next(k for k, group in enumerate(graph.groups) if group.width == 36)
    assert memory(graph)[inside] == 2 * (64 + 64)


def _made(graph: Any, k: int) -> list[str]:
    return [member.name for member in graph.groups[k].producers()]


def test_the_flops_normaliser_is_the_papers() -> None:
    """ΔC of a chain: members' c'_o h w k² and parents' h w c'_i k²."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 3))
    method = GroupFisher(model, torch.randn(1, 3, 8, 8), budget="flops=0.5", normaliser="flops")
    method.sums.fill_(1.0)
    delta = 64 * 3 * 9 + 64 * 6, 64 * 4 + 36 * 2 * 9
    scores = method.score()
    assert scores["0"][0] / scores["2"][0] == pytest.approx(delta[1] / delta[0])
    method.masks["2"][:3] = False  # the members of the first group have three outputs less
    scores = method.score()
    assert scores["0"][0] / scores["2"][-1] == pytest.approx(delta[1] / (delta[0] - 64 * 3))


# ---------------------------------------------------------------------------------------------------- the groups


def test_groups_of_a_residual_stage() -> None:
    """Property 7: who reads the stream of a stage shares one mask, whoever makes it."""
    graph = trace(create("resnet20_b"), torch.randn(1, 3, 32, 32))
    tables = readers(graph)[0]
    first = np.cumsum([0, *graph.widths()])
    number = next(k for k, group in enumerate(graph.groups) if any("layer1.1.conv2" in n for n in _made(graph, k)))
    reading = {name for name, table in tables.items() if (table == first[number]).any()}
    assert {"layer1.1.conv1", "layer1.2.conv1", "layer2.0.conv1"} <= reading
    assert any("layer2.0" in name and "conv1" not in name for name in reading)  # the projection
    made = {name.removesuffix(".weight") for name in _made(graph, number) if "conv" in name and name.endswith("weight")}
    assert {"conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"} <= made


def test_groups_of_an_inverted_residual() -> None:
    """Property 7: the expansion's channels are read by the depthwise convolution and the projection."""
    network = BY_NAME["depthwise"]
    graph = trace(network.make(), network.inputs())
    number = next(k for k, group in enumerate(graph.groups) if group.width == 36)
    first = int(np.cumsum([0, *graph.widths()])[number])
    tables = readers(graph)[0] | filters(graph)
    assert {name for name, table in tables.items() if (table == first).any()} == {"body.3", "body.6"}


def test_grouped_convolutions_lose_the_same_places_everywhere() -> None:
    """Property 10, with the groups of the graph: of c = 8 in 2 groups a mask of 4 entries, each with 2 inputs."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 2, 1))
    images, labels = torch.randn(3, 3, 4, 4), torch.zeros(3, dtype=torch.long)
    method = GroupFisher(model, images, budget="flops=0.5", steps=4)
    assert [group.width for group in method.graph.groups] == [4, 4]
    method.collect([(images, labels)], lambda output, target: (output**2).mean())
    narrow = method.finish()
    assert narrow[1].groups == 2
    assert narrow[1].in_channels % 2 == 0


# ------------------------------------------------------------------------------------------------------ training


def test_one_channel_an_event_and_none_comes_back() -> None:
    """Property 9, with training long enough: each event takes one; sums begin anew, and a mask stays."""
    method = made(steps=4000, interval=3, budget="flops=0.97")
    total = method.shared.channels
    gone: set[tuple[str, int]] = set()
    for step in range(1, 13):
        left = trained(method, 1, seed=step)
        if not method.over:
            assert left == [total - step // 3]
            assert bool((method.sums > 0).any()) == (step % 3 != 0)
        now = {(name, int(k)) for name, mask in method.masks.items() for k in np.flatnonzero(~mask)}
        assert gone <= now
        gone = now
    assert len(gone) >= 4


def test_the_least_important_goes_first() -> None:
    """The one channel of an event is the smallest of acc / ΔM over the whole network."""
    method = made(steps=4000, interval=2)
    trained(method, 1)
    optimiser = torch.optim.SGD(method.parameters(), 0.01)
    images, labels = next(iter(RESIDUAL.batches(1, 7)))
    F.cross_entropy(method(images), labels).backward()
    method.after_backward()
    optimiser.step()
    assert method._pending is not None
    values = (method.sums + method._pending).double().numpy()
    method.after_step()
    number = np.repeat(np.arange(len(method.graph.groups)), method.graph.widths())
    wanted = int(np.argmin(values / memory(method.graph)[number]))
    assert np.flatnonzero(~np.concatenate(list(method.masks.values()))).tolist() == [wanted]


@pytest.mark.parametrize("normaliser", ["memory", "flops", "none"])
def test_a_short_training_meets_the_budget_by_its_end(normaliser: str) -> None:
    """As many go at an event as the schedule wants; at 75% the budget is met within 1%, and nothing goes after."""
    method = made(steps=40, normaliser=normaliser, budget="flops=0.5,params=0.7")
    left = trained(method, 40)
    assert left[29] < left[15] < left[2] < method.shared.channels
    assert len(set(left[29:])) == 1
    assert method.over
    narrow = method.finish()
    assert method.result is not None
    used = max(method.result.reached(key) / share for key, share in (("flops", 0.5), ("params", 0.7)))
    assert 0.99 <= used <= 1.0
    images, _ = next(iter(RESIDUAL.batches(1, 3)))
    method.eval()
    torch.testing.assert_close(narrow.eval()(images), method(images), rtol=1e-4, atol=1e-5)  # property 8


def test_masked_is_cut_with_biases_too() -> None:
    """Property 8: producers with biases; consumers ignore what is masked, so that biases do not matter."""
    network = BY_NAME["no norm"]
    method = GroupFisher(network.make(), network.inputs(), budget="params=0.5", steps=10)
    method.collect(network.batches(2), F.cross_entropy)
    narrow = method.finish().eval()
    images, _ = next(iter(network.batches(1)))
    method.eval()
    with method.evaluation_modes()["hard"]:
        wanted = method(images).detach()
    torch.testing.assert_close(narrow(images), wanted, rtol=1e-5, atol=1e-6)
    assert float((wanted - method(images).detach()).abs().max()) > 1e-3


def test_at_once_without_training() -> None:
    """collect, then finish: the budget within 1%, the same again, and independent of the batches."""
    images = torch.cat([x for x, _ in RESIDUAL.batches(4)])
    labels = torch.cat([y for _, y in RESIDUAL.batches(4)])
    plans = []
    for size in (8, 32):
        method = made(budget="flops=0.4")
        method.collect(zip(images.split(size), labels.split(size), strict=True), F.cross_entropy)
        method.finish()
        assert method.result is not None
        assert 0.99 <= method.result.reached("flops") / 0.4 <= 1.0
        plans.append(method.plan())
    assert plans[0] == plans[1]


def test_groups_without_gradients_are_not_touched() -> None:
    """Trap: a group for which no gradient came would go first, all of it."""
    method = made()
    method.sums.fill_(1.0)
    first = method.graph.groups[0]
    method.sums[: first.width] = 0.0
    assert method.plan().masks[first.name].all()
    method = made(budget="flops=0.05")  # which cannot be met so
    method.sums.fill_(1.0)
    method.sums[: method.graph.groups[0].width] = 0.0
    assert not method.plan().masks[first.name].all()


def test_overflowing_batches_are_left_out() -> None:
    """Trap: a scaled loss in half precision may overflow; its sums would never be finite again."""
    method = made(steps=1000)
    method.train()
    images, labels = next(iter(RESIDUAL.batches(1)))
    (F.cross_entropy(method(images), labels) * float("inf")).backward()
    method.after_backward()
    method.after_step()
    assert not method.sums.any()
    F.cross_entropy(method(images), labels).backward()
    method.after_backward()
    method.after_step()
    assert bool(torch.isfinite(method.sums).all() & (method.sums > 0).any())


def test_a_scaled_loss_has_the_same_sums() -> None:
    """Trap: a loss scale that changes would weigh the steps before and after by its square."""
    plain, scaled = made(steps=1000), made(steps=1000)
    for scale, (images, labels) in zip((1.0, 1024.0, 256.0), RESIDUAL.batches(3), strict=True):
        for method, times in ((plain, 1.0), (scaled, scale)):
            method.train()
            (F.cross_entropy(method(images), labels) * times).backward()
            method.loss_scale = torch.tensor(times)
            method.after_backward()
            method.after_step()
    assert bool((plain.sums > 0).any())
    torch.testing.assert_close(scaled.sums, plain.sums, rtol=1e-4, atol=0.0)


def test_frozen_weights_have_gradients_of_masks_too() -> None:
    model = RESIDUAL.make().requires_grad_(False)
    model.head.requires_grad_(True)
    method = GroupFisher(model, RESIDUAL.inputs(), budget="flops=0.5", steps=1000)
    trained_on = list(RESIDUAL.batches(1))
    method.train()
    F.cross_entropy(method(trained_on[0][0]), trained_on[0][1]).backward()
    method.after_backward()
    method.after_step()
    assert bool((method.sums > 0).all())


def test_tokens_of_one_sample_are_summed() -> None:
    """Linear layers that read [samples, tokens, features], and layers that read [samples · windows, ...]."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.a(x))
            x = F.relu(self.b(x.flatten(0, 1)))
            result: torch.Tensor = self.c(x.view(-1, 4, x.shape[-1]).mean(1))
            return result

    torch.manual_seed(0)
    model, images, labels = Windows(), torch.randn(6, 4, 3), torch.arange(6) % 5
    whole = fisher(model, [(images, labels)], inputs=images[:2]).squares
    alone = sum(fisher(model, [(images[k : k + 1], labels[k : k + 1])], inputs=images[:2]).squares for k in range(6))
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-12)


# ----------------------------------------------------------------------------------------------- going on, refusing


def test_going_on_from_a_checkpoint() -> None:
    """Masks and sums come back, in the middle of an interval."""
    method = made(steps=60, interval=5)
    trained(method, 23)
    other = made(steps=60, interval=5)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    other.load_state(json.loads(json.dumps(method.state())))
    assert trained(method, 37, seed=5) == trained(other, 37, seed=5)
    assert method.plan() == other.plan()


def test_the_model_is_not_touched() -> None:
    """No hook stays in it, and masks act in the method's own forward only."""
    method = made(steps=20)
    trained(method, 20)
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in method.model.modules())


def test_intervals() -> None:
    assert made(steps=10_000).interval == 25
    assert made(steps=400).interval == 15
    assert made(steps=6).interval == 1
    with pytest.raises(ConfigError, match=r"start is 0\.8 and end is 0\.75"):
        made(start=0.8)


def test_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="has seen no gradients"):
        made().finish()
    with pytest.raises(ModelError, match="every group must stay whole"):
        made(constraints=Constraints(max_ratio=0.0), budget="flops=1.0")
    assert "normalise='mean' was not applied" in made(normalise="mean").notes[-1]


def test_overwritten_inputs_are_refused() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            y: torch.Tensor = self.b(x)
            x.mul_(2.0)
            return y

    with pytest.raises(ModelError, match="What b reads is overwritten"):
        fisher(Overwrites(), [(torch.randn(2, 2), torch.zeros(2, dtype=torch.long))])
