"""Conditional accuracy change: the worked numbers, properties and traps of its specification; gates, schedule, DCPH."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F

import secateur
from secateur.errors import ConfigError, ModelError
from secateur.graph.readers import readers, summed
from secateur.methods.dcpcac import DCPCAC
from secateur.methods.dcpcac.conditional import Evidence, conditional_change, direct, first_order
from secateur.methods.dcpcac.narrowing import _OPTIMISERS
from secateur.methods.dcpcac.settings import DCPCACSettings
from secateur.methods.kit.answers import losses, right
from secateur.models import create
from secateur.testing import NETWORKS

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Worth = Callable[[torch.Tensor], torch.Tensor]  # gates [samples, channels] -> q [samples]

# ------------------------------------------------------------------------------------- the estimators, full enumeration


def every(channels: int) -> torch.Tensor:
    """All 2^C gates."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=channels)), dtype=torch.float64)


def chances(z: torch.Tensor, p: float) -> torch.Tensor:
    """How probable each row of gates is."""
    return ((1 - p) * z + p * (1 - z)).prod(1)


def expectation(q: Worth, channels: int, p: float, given: tuple[int, float] | None = None) -> float:
    """E[q], or E[q | z_c = value], by enumeration."""
    z = every(channels)
    weight = chances(z, p)
    if given is not None:
        weight = weight * (z[:, given[0]] == given[1])
    return float((weight * q(z)).sum() / weight.sum())


def exact(q: Worth, channels: int, p: float) -> list[float]:
    """CAC_c = E[q] - E[q | z_c = 0]."""
    return [expectation(q, channels, p) - expectation(q, channels, p, (c, 0.0)) for c in range(channels)]


def draw(samples: int, channels: int, p: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(samples, channels, generator=generator, dtype=torch.float64) >= p).double()


def estimate(q: Worth, channels: int, p: float, samples: int, seed: int = 0) -> torch.Tensor:
    z = draw(samples, channels, p, seed)
    return conditional_change(direct(z, q(z)), torch.full((channels,), p, dtype=torch.float64), "accuracy")


def either(z: torch.Tensor) -> torch.Tensor:
    """Channel 1 or 2 is enough; 3 does nothing."""
    return ((z[:, 0] + z[:, 1]) > 0).double()


def both(z: torch.Tensor) -> torch.Tensor:
    return z[:, 0] * z[:, 1]


def test_redundant_channels_are_worth_something_together() -> None:
    assert expectation(either, 3, 0.2) == pytest.approx(0.96)
    assert expectation(either, 3, 0.2, (0, 0.0)) == pytest.approx(0.8)
    assert exact(either, 3, 0.2) == pytest.approx([0.16, 0.16, 0.0])
    on = torch.ones(1, 3, dtype=torch.float64)
    alone = [float(either(on) - either(on.index_fill(1, torch.tensor(c), 0.0))) for c in range(3)]
    assert alone == [0.0, 0.0, 0.0]  # leaving one out with all others on would prune both

    def without(z: torch.Tensor) -> torch.Tensor:
        return either(torch.stack([z[:, 0], torch.zeros_like(z[:, 0]), z[:, 1]], 1))

    assert expectation(without, 2, 0.2) == pytest.approx(0.8)
    assert exact(without, 2, 0.2)[0] == pytest.approx(0.8)


def test_channels_that_need_each_other() -> None:
    assert expectation(both, 2, 0.2) == pytest.approx(0.64)
    assert exact(both, 2, 0.2) == pytest.approx([0.64, 0.64])


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_both_forms_are_one_quantity(p: float) -> None:
    table = torch.rand(16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def q(z: torch.Tensor) -> torch.Tensor:
        return table[(z @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()]

    other = [(1 - p) * (expectation(q, 4, p, (c, 1.0)) - expectation(q, 4, p, (c, 0.0))) for c in range(4)]
    assert exact(q, 4, p) == pytest.approx(other, abs=1e-12)
    # and the estimator, given every outcome as often as it occurs, is exact
    z = every(4)
    times = chances(z, p)
    sums = torch.stack([times @ z, (times * q(z)) @ z, times @ (1 - z), (times * q(z)) @ (1 - z)], 1)
    found = conditional_change(sums, torch.full((4,), p, dtype=torch.float64), "accuracy")
    assert found.tolist() == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize(("q", "channels"), [(either, 3), (both, 2)])
def test_many_samples_come_to_the_enumeration(q: Worth, channels: int) -> None:
    found = estimate(q, channels, 0.2, 800_000)
    assert found.tolist() == pytest.approx(exact(q, channels, 0.2), abs=2e-3)


class FourChannels(nn.Module):
    """A trained-like network of four hidden channels; one is read with weight zero, one does harm."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]]))
            self.hidden.bias.copy_(torch.tensor([0.1, 0.1, 0.5, 0.2]))
            self.out.weight.copy_(torch.tensor([[2.0, -1.0, 0.0, -0.6], [-1.0, 2.0, 0.0, 0.6]]))
            self.out.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.relu(self.hidden(x)))


def points(count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 1] > x[:, 0]).long()


def enumerated(model: FourChannels, metric: str, p: float) -> list[float]:
    """CAC of the four channels on 64 points under all 16 gates, with the gates' inverted scaling."""
    x, y = points(64)
    with torch.no_grad():
        hidden = F.relu(model.hidden(x))
        worths = []
        for z in every(4).float():
            logits = model.out(hidden * z / (1 - p))
            q = right(logits, y, "classes") if metric == "accuracy" else -losses(logits, y, "classes")
            worths.append(float(q.mean()))
    table = torch.tensor(worths, dtype=torch.float64)
    return exact(lambda z: table[(z @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=z.dtype)).long()], 4, p)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_method_on_four_channels_converges_to_the_enumeration(metric: str) -> None:
    """The whole way: hooks, gates of every sample, sums over steps, forgetting off; weights frozen."""
    model, p = FourChannels(), 0.2
    x, y = points(64)
    method = DCPCAC(model, x, budget="params=0.9", rate=p, metric=metric, steps=1000)
    method.train()
    many, wanted = x.repeat(500, 1), y.repeat(500)
    for _ in range(12):
        method.after_forward(method(many), wanted)
        method.after_backward()
        method.after_step()
    found, wanted = method.score()["hidden"], enumerated(model, metric, p)
    assert found == pytest.approx(wanted, abs=0.01)  # four times the root of sigma^2 (1 - p) / (n p)
    assert max(wanted) > 0.05
    assert wanted[2] == pytest.approx(0.0, abs=1e-9)  # nobody reads it


def test_first_order_of_a_linear_loss_is_exact() -> None:
    w = torch.tensor([0.5, -0.3, 0.0, 1.2], dtype=torch.float64)
    z = draw(200_000, 4, 0.2)
    slope = torch.autograd.functional.jacobian(lambda v: -(v @ w), torch.ones(4, dtype=torch.float64))  # dl/dz = -w
    seen = first_order(z, slope.expand_as(z))
    rate = torch.full((4,), 0.2, dtype=torch.float64)
    assert torch.allclose(conditional_change(seen, rate, "gradient"), w, atol=1e-12)
    found = conditional_change(direct(z, z @ w), rate, "loss")
    assert torch.allclose(found, 0.8 * w, atol=0.01)
    assert conditional_change(seen, rate, "gradient")[1] < 0  # what does harm is negative, not large


def test_first_order_is_exact_where_the_loss_is_affine_in_each_gate() -> None:
    """l = -(a z1 + b z1 z2): affine in every gate given the others, so the mean slope is E[l(off) - l(on)]."""
    a, b, p = 0.4, 1.0, 0.3
    z = every(2)
    times = chances(z, p)
    slope = -torch.stack([a + b * z[:, 1], b * z[:, 0]], 1)
    on = torch.stack([times @ z, -((times[:, None] * z * slope).sum(0))], 1)
    found = conditional_change(F.pad(on, (0, 2)), torch.full((2,), p, dtype=torch.float64), "gradient")

    def q(z: torch.Tensor) -> torch.Tensor:
        return a * z[:, 0] + b * z[:, 0] * z[:, 1]

    wanted = [expectation(q, 2, p, (c, 1.0)) - expectation(q, 2, p, (c, 0.0)) for c in range(2)]
    assert found.tolist() == pytest.approx(wanted)


def test_an_estimate_is_as_sharp_as_the_root_of_its_samples() -> None:
    spread = [np.std([estimate(either, 3, 0.2, n, seed)[0].item() for seed in range(200)]) for n in (500, 2000)]
    assert spread[0] / spread[1] == pytest.approx(2.0, rel=0.25)
    q = draw(4000, 1, 0.1, seed=5)[:, 0]  # right 9 times of 10, whatever the gates: sigma = 0.3
    found = [
        conditional_change(direct(draw(4000, 1, 0.1, seed), q), torch.tensor([0.1]), "accuracy").item()
        for seed in range(10, 210)
    ]
    assert np.std(found) == pytest.approx(0.3 * np.sqrt(0.9 / (4000 * 0.1)), rel=0.2)  # the noise budget


def test_what_is_usual_changes_no_expectation_and_takes_the_drift_out() -> None:
    """Answers get better with time; on and off are forgotten alike, and what earlier steps were worth is subtracted."""
    errors: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(30):
        evidence = Evidence(3, torch.device("cpu"))
        plain = torch.zeros(3, 4, dtype=torch.float64)
        for step in range(60):
            z = draw(16, 3, 0.2, 1000 * seed + step)
            q = z @ torch.tensor([0.1, 0.0, 0.05], dtype=torch.float64) + 0.1 * step
            evidence.add_worth(z.float(), q.float())
            evidence.images = 16
            images = evidence.total(torch.arange(3))
            assert images == 16
            evidence.learn(torch.arange(3), images, 20.0, first=step == 0)
            plain = plain * (1 - 1 / 20.0) + direct(z, q)
        rate = torch.full((3,), 0.2)
        errors[True].append(float(conditional_change(evidence.seen, rate, "loss")[0]) - 0.08)
        errors[False].append(float(conditional_change(plain, rate, "loss")[0]) - 0.08)
    assert abs(np.mean(errors[True])) < 4 * np.std(errors[True]) / np.sqrt(30)
    assert np.std(errors[True]) < 0.5 * np.std(errors[False])


def test_forgetting_on_and_off_differently_would_bias_every_estimate() -> None:
    """The trap: s0/n0 beside a running accuracy of another horizon, while accuracy rises."""
    on, off, p = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), 0.2
    fast = torch.zeros(2, dtype=torch.float64)
    for step in range(400):
        z = draw(64, 1, p, step)
        q = torch.full((64,), step / 400, dtype=torch.float64)  # the gate does nothing
        sums = direct(z, q)[0]
        on, off = 0.99 * on + sums[:2], 0.99 * off + sums[2:]
        fast = 0.5 * fast + torch.stack([q.new_tensor(64.0), q.sum()])
    alike = conditional_change(torch.cat([on, off])[None], torch.tensor([p]), "accuracy")
    assert abs(alike.item()) < 0.02
    assert fast[1] / fast[0] - off[1] / off[0] > 0.1


# -------------------------------------------------------------------------------------------------------------- metrics


def test_gradients_of_gates_are_those_of_each_sample() -> None:
    model, p = FourChannels(), 0.2
    x, y = points(32)
    method = DCPCAC(model, x, budget="params=0.9", rate=p, metric="gradient")
    method.train()
    output = method(x)
    z = method.gates.z
    assert z is not None
    method.after_forward(output, y)
    ((F.cross_entropy(output, y) + method.loss()) * 1000.0).backward()  # a loss scaler changes nothing
    method.after_backward()
    hidden = F.relu(model.hidden(x)).detach()
    leaf = z.detach().clone().requires_grad_()
    F.cross_entropy(model.out(hidden * leaf / (1 - p)), y, reduction="sum").backward()
    assert leaf.grad is not None
    method.after_step()
    wanted = -(z.detach() * leaf.grad).sum(0) / z.detach().sum(0)
    assert method.score()["hidden"] == pytest.approx(wanted.numpy(), rel=1e-4, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------- gates


def pruner(name: str = "tiny", budget: str = "flops=0.6", **options: Any) -> DCPCAC:
    torch.manual_seed(0)
    options = {"steps": 40, "evidence": 1, **options}
    return DCPCAC(create(name), IMAGE, budget=budget, **options)


def batches(count: int, seed: int = 0, size: int = 16) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose mean colour tells their class."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = torch.randint(0, 10, (size,), generator=generator)
        images = torch.randn(size, 3, 32, 32, generator=generator) * 0.5
        images[:, 0] += labels[:, None, None] / 5.0 - 1.0
        images[:, 1] += (labels % 3)[:, None, None].float() - 1.0
        yield images, labels


def train(method: DCPCAC, steps: int, lr: float = 0.05, seed: int = 0) -> list[float]:
    method.train()
    optimiser = torch.optim.SGD(method.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    flops = []
    for images, labels in batches(steps, seed):
        output = method(images)
        method.after_forward(output, labels)
        optimiser.zero_grad()
        (F.cross_entropy(output, labels) + method.loss()).backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
        flops.append(method.metrics()["flops"])
    return flops


def test_on_average_gates_change_nothing() -> None:
    x, _ = points(1)
    model = FourChannels()
    method = DCPCAC(model, x, budget="params=0.9", rate=0.3)
    seen: list[torch.Tensor] = []
    model.out.register_forward_hook(lambda _m, given, _o: seen.append(given[0]))
    method.train()
    method(x.expand(40_000, 2))
    assert torch.allclose(seen[0].mean(0), F.relu(model.hidden(x))[0], atol=0.03)
    on = F.relu(model.hidden(x))[0].detach() / 0.7
    first = seen[0].detach()
    assert (torch.minimum(first.abs(), (first - on).abs()) < 1e-6).all()


def test_evaluation_depends_on_no_gate_and_draws_are_repeated() -> None:
    one, other = pruner(rate=0.1, seed=1), pruner(rate=0.5, seed=2)
    assert torch.equal(one.eval()(IMAGE), other.eval()(IMAGE))
    one.train()
    first = one(IMAGE)
    assert torch.equal(first, one(IMAGE))  # the same step of the same seed
    one.after_backward()
    assert not torch.equal(first, one(IMAGE))  # the next micro-batch
    assert one.gates.z is not None
    assert not torch.equal(one.gates.z[0], one.gates.z[1])  # every sample has gates of its own


def test_without_gates_training_is_plain_training() -> None:
    method = pruner(rate=0.0, trunk=0.0, metric="gradient", start=0.9, end=1.0)
    train(method, 5)
    torch.manual_seed(0)
    plain = create("tiny")
    optimiser = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    for images, labels in batches(5):
        optimiser.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(method.model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", ["tiny", "resnet8_b", "preresnet20", "densenet40"])
def test_a_gate_that_is_shut_is_a_cut(name: str) -> None:
    """Gates fixed to any plan's masks give what the cut network gives, through sums, norms and concatenations."""
    torch.manual_seed(0)
    width = 0.5 if name == "densenet40" else 1.0
    method = DCPCAC(create(name, width=width).double(), IMAGE.double(), budget="flops=0.5")
    for module in method.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    generator = np.random.default_rng(0)
    masks = {g.name: generator.permutation(g.width) < -(-g.width // 2) for g in method.graph.groups}
    method.eval()
    with method.gates.fixed(np.concatenate(list(masks.values())), method.device), torch.no_grad():
        gated = method.model(IMAGE.double())
    method.narrow(masks)
    with torch.no_grad():
        assert torch.allclose(method(IMAGE.double()), gated, atol=1e-9)


def test_residual_streams_have_their_own_rate() -> None:
    method = pruner("resnet8", rate=0.1, trunk=0.02)
    trunk = {g.name for g, several in zip(method.graph.groups, summed(method.graph), strict=True) if several}
    assert "conv1" in trunk
    assert "layer1.0.conv1" not in trunk
    start = 0
    for group in method.graph.groups:
        assert method._rates[start].item() == pytest.approx(0.02 if group.name in trunk else 0.1)
        start += group.width


def test_concatenated_channels_keep_their_own_gates() -> None:
    tables, others = readers(secateur.trace(create("densenet40", width=0.5), IMAGE))
    assert not others
    lengths = {name: len(np.unique(table[table >= 0])) for name, table in tables.items()}
    table = max(tables.values(), key=len)
    assert max(lengths.values()) == (table >= 0).sum()  # one gate a position


def test_channels_nobody_misses_have_no_worth_and_copies_share_it() -> None:
    def scores(model: FourChannels) -> np.ndarray[Any, Any]:
        method = DCPCAC(model, points(2)[0], budget="params=0.9", rate=0.2, metric="loss", steps=1000)
        method.train()
        x, y = points(64)
        for _ in range(4):
            method.after_forward(method(x.repeat(500, 1)), y.repeat(500))
            method.after_backward()
            method.after_step()
        return method.score()["hidden"]

    alone = FourChannels()
    before = scores(alone)
    assert abs(before[2]) < 0.02
    copied = FourChannels()
    with torch.no_grad():  # channel 2 becomes a copy of 0, and each is read with half the weight
        copied.hidden.weight[2], copied.hidden.bias[2] = copied.hidden.weight[0], copied.hidden.bias[0]
        copied.out.weight[:, 2] = copied.out.weight[:, 0] / 2
        copied.out.weight[:, 0] /= 2
    after = scores(copied)
    assert after[0] < 0.6 * before[0]
    assert after[2] == pytest.approx(after[0], abs=0.03)


# ------------------------------------------------------------------------------------------------------------- schedule


def test_the_cost_follows_the_cubic_and_the_model_gets_narrower() -> None:
    method = pruner("resnet8_b", "flops=0.5", steps=40, every=2, start=0.1, end=0.6, cap=0.5)
    elements = [sum(p.numel() for p in method.model.parameters())]
    assert method.share(0.1) == 0.0
    assert method.share(0.6) == 1.0
    flops = train(method, 4)
    assert flops[-1] == 1.0  # m(t0) = 0
    for step in range(4, 26):
        flops += train(method, 1, seed=step)
        elements.append(sum(p.numel() for p in method.model.parameters()))
        if method._last == method.step:
            wanted = 1.0 - 0.5 * method.share(method.progress)
            waits = flops[-1] == flops[-2] and wanted < 0.51  # a large channel would end it too early
            assert waits or wanted - 0.03 <= flops[-1] <= wanted + 1e-9
    assert all(a >= b for a, b in itertools.pairwise(flops))
    assert elements[-1] < 0.7 * elements[0]
    assert len(set(elements)) > 5
    assert method.over
    assert 0.49 <= flops[-1] <= 0.5
    train(method, 3)
    assert method.gates.z is None  # p = 0 after the window


def test_half_of_the_channels_go_as_m_of_t_says() -> None:
    """DCPH: a doubled network ends with as many hidden channels as the baseline."""
    torch.manual_seed(0)
    method = DCPCAC(
        create("resnet8_b", width=2.0), IMAGE, budget="flops=0.9", double="channels", steps=30, every=1, start=0.1,
        end=0.7, cap=0.5, evidence=1,
    )  # fmt: skip
    base = sum(g.width for g in secateur.trace(create("resnet8_b"), IMAGE).groups)
    whole = len(method.alive)
    assert whole == 2 * base
    for step in range(24):
        train(method, 1, seed=step)
        gone = whole - int(method.alive.sum())
        assert (
            gone == round(base * method.share(method.progress)) or abs(gone - base * method.share(method.progress)) < 1
        )
    assert int(method.alive.sum()) == base
    small = method.finish()
    assert method.result is not None
    assert sum(method.result.plan.widths.values()) == base
    shares = [method.result.plan.widths[g.name] / g.width for g in method.graph.groups]
    assert max(shares) - min(shares) > 0.05  # a shape of its own
    with torch.no_grad():
        assert torch.allclose(small.eval()(IMAGE), method.eval()(IMAGE), atol=1e-5)


def test_dcph_may_match_the_cost_instead() -> None:
    torch.manual_seed(0)
    method = DCPCAC(create("tiny", width=2.0), IMAGE, budget="flops=1.0", double="flops", steps=10)
    method.finish()
    assert method.result is not None
    base = secateur.trace(create("tiny"), IMAGE).cost().macs
    assert 0.97 * base <= method.result.after.macs <= base


def test_a_recipe_doubles_the_network() -> None:
    settings = DCPCACSettings(double="channels")
    assert settings.model_arguments("zoo:resnet14", {"num_classes": 4}) == {"num_classes": 4, "width": 2.0}
    assert settings.model_arguments("zoo:resnet14", {"width": 0.5}) == {"width": 1.0}
    assert DCPCACSettings().model_arguments("torchvision:resnet18", {"a": 1}) == {"a": 1}
    with pytest.raises(ConfigError, match="cannot double the widths of torchvision:resnet18"):
        settings.model_arguments("torchvision:resnet18", {})


def test_no_event_takes_more_than_its_share_of_a_group() -> None:
    method = pruner("resnet8_b", "flops=0.2", steps=20, every=1, start=0.1, end=0.2, cap=0.2)
    for step in range(12):
        before = {name: int(mask.sum()) for name, mask in method.masks.items()}
        train(method, 1, seed=step)
        for name, mask in method.masks.items():
            assert before[name] - int(mask.sum()) <= max(1, int(0.2 * before[name] + 1e-9)), name
            assert mask.any()


def test_coarse_channels_still_use_the_budget() -> None:
    """The last event spares a group, or keeps channels in place of others, where more than 1% would be left over."""
    for seed in range(3):
        method = pruner("resnet8", "flops=0.55", steps=20, every=2, start=0.05, end=0.5, seed=seed)
        train(method, 12, seed=seed)
        assert method.over
        assert 0.99 <= method.metrics()["flops"] / 0.55 <= 1.0


@pytest.mark.parametrize("budget", ["flops=0.5", "flops=0.3", "params=0.5", "flops=0.5,params=0.6"])
def test_whatever_the_channels_are_worth_the_budget_is_used(budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What earlier events removed cannot come back, and the last one still comes within 1%: without training."""
    method, rng = pruner("resnet8_b", budget, steps=26, every=2), np.random.default_rng(0)
    limits = method._goals[-1].limits
    monkeypatch.setattr(DCPCAC, "_counts", lambda self: np.ones(len(self.alive)))
    groups = [group.width for group in method.graph.groups]
    for _ in range(10):
        worth = np.repeat(np.exp(rng.normal(size=len(groups))), groups) * rng.gamma(1.0, size=sum(groups))
        method.masks = {group.name: np.ones(group.width, dtype=np.bool_) for group in method.graph.groups}
        for share in [method.share(step / 26) for step in range(2, 14, 2)]:
            noisy = worth * np.exp(0.3 * rng.normal(size=len(worth)))
            monkeypatch.setattr(DCPCAC, "_change", lambda self, noisy=noisy: noisy)
            masks = method._lowered(share, 0.2)
            if share < 1 and method._goals[-1].met(method._widths(masks)):
                continue  # as `_prune` does
            assert all((method.masks[name] | ~mask).all() for name, mask in masks.items())
            method.masks = masks
        cost = method.graph.costs.evaluate(method._widths(method.masks))
        used = [float(cost[key]) / limit for key, limit in limits.items()]
        assert 0.99 <= max(used) <= 1.0


def test_without_evidence_nothing_goes_before_the_end_of_the_window() -> None:
    assert DCPCACSettings().start == 0.05  # late layers are not judged before they have learnt anything
    method = pruner(steps=20, every=1, evidence=1_000_000, start=0.1, end=0.5)
    flops = train(method, 20)
    assert flops[8] == 1.0
    assert flops[-1] <= 0.6
    assert any("less evidence than 1000000 samples" in note for note in method.notes)


def test_the_worst_channels_of_the_whole_network_go_and_stay_away() -> None:
    method = pruner("tiny", "flops=0.8", steps=100, every=10, start=0.05, end=0.4)
    train(method, 10)
    gone = {name: ~mask for name, mask in method.masks.items()}
    assert any(mask.any() for mask in gone.values())
    scores = method.score()
    for step in range(3):
        train(method, 10, seed=step)
        for name, mask in gone.items():
            assert not method.masks[name][mask].any()
            least = min(scores[n][~gone[n]].min() for n in gone)
            assert (scores[name][mask] < least).all()
        gone = {name: ~mask for name, mask in method.masks.items()}
        scores = method.score()
    seen = method.evidence.seen[~method.alive]
    assert not seen.any()  # what was seen of them is forgotten


def test_normalising_has_no_say_as_the_unit_is_the_same_everywhere() -> None:
    plans = []
    for normalise in ("mean", "none"):
        method = pruner("tiny", normalise=normalise, every=2, steps=10)
        train(method, 6)
        plans.append(method.plan())
    assert plans[0] == plans[1]


@pytest.mark.parametrize("allocator", ["per_cost", "uniform"])
def test_cost_awareness(allocator: str) -> None:
    method = pruner("resnet8_b", "flops=0.6", allocator=allocator, every=1, steps=10)
    train(method, 6)
    method.finish()
    assert method.result is not None
    assert 0.55 <= method.result.reached("flops") <= 0.6


def lowered(allocator: str, change: Callable[[int], np.ndarray]) -> np.ndarray:
    """Which channels go, of all groups, at once and to the budget; change: what so many channels are worth."""
    method = pruner("resnet8_b", "flops=0.6", allocator=allocator, steps=10)
    method._change = lambda: change(len(method.alive))  # type: ignore[method-assign]
    return ~np.concatenate([*method._lowered(1.0, 1.0).values()])


def test_what_a_channel_is_worth_is_seen_per_what_it_costs() -> None:
    def alike(count: int) -> np.ndarray:
        return np.random.default_rng(0).uniform(1, 1.01, count)

    assert lowered("per_cost", alike).sum() < 0.8 * lowered("global", alike).sum()  # dear ones go, and so fewer


@pytest.mark.parametrize("allocator", ["per_cost", "global"])
def test_a_channel_that_does_harm_goes_first_and_changes_nothing_for_the_others(allocator: str) -> None:
    def uniform(count: int) -> np.ndarray:
        return np.random.default_rng(0).uniform(0.5, 1, count)

    before = lowered(allocator, uniform)
    harmful = int(np.flatnonzero(~before)[0])

    def one_harms(count: int) -> np.ndarray:
        change = uniform(count)
        change[harmful] = -3.0
        return change

    after = lowered(allocator, one_harms)
    assert after[harmful]
    assert (np.delete(after, harmful) != np.delete(before, harmful)).sum() < 10  # of 224, those at the threshold


def test_what_is_found_suitable() -> None:
    assert pruner(steps=100)._suitable(16) == "loss"  # evidence: 1
    assert pruner(steps=600, evidence=None)._suitable(64) == "gradient"
    assert pruner(steps=391 * 160, evidence=None)._suitable(128) == "loss"
    method = pruner(steps=600, evidence=None, metric="accuracy")
    assert method.metric == "accuracy"


def test_memory_is_five_epochs_or_what_the_evidence_takes() -> None:
    method = pruner(metric="loss", evidence=None)
    assert method._memory(128) == np.inf  # as long as no epoch has ended
    method.step = 391
    method.after_epoch()
    assert method._memory(128) == pytest.approx(2 * 20_000 / (0.05 * 128), rel=1e-6)  # residual streams: p = 0.05
    method.settings = DCPCACSettings(evidence=100)
    assert method._memory(128) == 5 * 391
    method.settings = DCPCACSettings(memory=7)
    assert method._memory(128) == 7


# ------------------------------------------------------------------------------------------------ state, result, misuse


@pytest.mark.parametrize("metric", ["accuracy", "loss", "gradient"])
def test_stopped_and_gone_on_is_the_same_before_and_after_narrowing(metric: str) -> None:
    def run(stops: tuple[int, ...]) -> DCPCAC:
        options: dict[str, Any] = {"metric": metric, "every": 3, "start": 0.1, "end": 0.6, "cap": 0.5}
        method = pruner("tiny", "flops=0.5", steps=20, **options)
        optimiser = torch.optim.SGD(method.parameters(), 0.05, momentum=0.9)
        for number, (images, labels) in enumerate(batches(20)):
            if number in stops:
                tensors = {k: v.clone() for k, v in method.state_dict().items()}
                state, momentum = method.state(), optimiser.state_dict()
                method = pruner("tiny", "flops=0.5", steps=20, **options)
                method.load_state_dict(tensors)
                method.load_state(state)
                optimiser = torch.optim.SGD(method.parameters(), 0.05, momentum=0.9)
                optimiser.load_state_dict(momentum)
            method.train()
            optimiser.zero_grad()
            output = method(images)
            method.after_forward(output, labels)
            (F.cross_entropy(output, labels) + method.loss()).backward()
            method.after_backward()
            optimiser.step()
            method.after_step()
        return method

    whole, resumed = run(()), run((2, 7, 13))
    assert not whole.alive.all()
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert whole.state() == resumed.state()
    assert whole.plan() == resumed.plan()


def test_micro_batches_count_as_one_step() -> None:
    method = pruner(metric="loss")
    method.train()
    for images, labels in batches(3):
        output = method(images)
        method.after_forward(output, labels)
        F.cross_entropy(output, labels).backward()
        method.after_backward()
    method.after_step()
    seen = method.evidence.seen
    assert torch.allclose(seen[:, 0] + seen[:, 2], torch.tensor(48.0))


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    network = NETWORKS[0]
    method = DCPCAC(network.make(), network.inputs(), budget="flops=0.5", steps=12, metric="loss", evidence=1, every=2)
    optimiser = torch.optim.SGD(method.parameters(), 0.02, momentum=0.9)
    method.train()
    for images, labels in network.batches(12):
        own = slice(0, 5) if rank == 0 else slice(5, 8)
        optimiser.zero_grad()
        output = method(images[own])
        method.after_forward(output, labels[own])
        (F.cross_entropy(output, labels[own], reduction="sum") / 8).backward()
        method.after_backward()
        for parameter in method.parameters():
            distributed.all_reduce(parameter.grad)
        optimiser.step()
        method.after_step()
    torch.save({"alive": method.alive, "seen": method.evidence.seen}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_judge_by_the_samples_of_both(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_one_of_two, (str(tmp_path),), 2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert not first["alive"].all()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_overflow_in_mixed_precision_spoils_nothing() -> None:
    method = pruner(metric="gradient")
    method.train()
    images, labels = next(batches(1))
    output = method(images)
    method.after_forward(output, labels)
    ((F.cross_entropy(output, labels) + method.loss()) * torch.inf).backward()
    method.after_backward()
    method.after_step()
    assert not method.evidence.seen.any()


def test_a_loop_that_keeps_the_targets_to_itself_is_told() -> None:
    method = pruner()
    method.train()
    method(IMAGE).sum().backward()
    method.after_backward()
    with pytest.raises(ConfigError, match="call after_forward"):
        method.after_step()
    method = pruner(metric="loss")
    method.train()
    with pytest.raises(ConfigError, match="needs the target of every sample, 2 here"):
        method.after_forward(method(IMAGE), torch.tensor([1, 2, 3]))


# ------------------------------------------------------------------------------------------ other answers and losses


def narrow_end(outputs: int, flat: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    ends = [nn.Flatten(0)] if flat else []
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, outputs), *ends,
    )  # fmt: skip


class Dense(nn.Module):
    """Class scores for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


def yes_or_no(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(output.flatten(), target.flatten().float())


def squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output.flatten(), target.flatten())


def void(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target, ignore_index=255)


def contrast(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    other = output @ output.T - 1e9 * torch.eye(len(labels))
    return -(other.log_softmax(1) * (labels[:, None] == labels)).mean()


def pixels(y: torch.Tensor) -> torch.Tensor:
    labels = (y % 3)[:, None, None].expand(-1, 8, 8).clone()
    labels[:, 0] = 255
    return labels


#: Network, targets from labels, loss, what the answers are, and the metric that auto takes where evidence is plenty.
OTHERS: dict[str, tuple[Any, Any, Any, str | None, str]] = {
    "yes or no [N, 1]": (lambda: narrow_end(1), lambda y: (y > 4).float()[:, None], yes_or_no, "binary", "loss"),
    "yes or no, labels [N]": (lambda: narrow_end(1), lambda y: (y > 4).long(), yes_or_no, "binary", "loss"),
    "quantity [N, 1], targets [N]": (lambda: narrow_end(1), lambda y: y / 5.0, squares, "numbers", "loss"),
    "quantity [N]": (lambda: narrow_end(1, flat=True), lambda y: y / 5.0, squares, "numbers", "loss"),
    "several labels": (
        lambda: narrow_end(4), lambda y: ((y[:, None] >> torch.arange(4)) & 1).float(), yes_or_no, "binary", "loss"
    ),
    "pixels, some of no class": (Dense, pixels, void, "classes", "loss"),
    "embeddings": (lambda: narrow_end(16), lambda y: y, contrast, "classes", "gradient"),
    "targets in a dict": (
        lambda: narrow_end(10), lambda y: {"y": y}, lambda o, t: F.cross_entropy(o, t["y"]), None, "gradient"
    ),
}  # fmt: skip


@pytest.mark.parametrize("metric", ["auto", "gradient"])
@pytest.mark.parametrize("case", OTHERS)
def test_whatever_the_network_answers_its_channels_are_judged(case: str, metric: str) -> None:
    build, asked, loss, kind, chosen = OTHERS[case]
    method = DCPCAC(build(), IMAGE, budget="flops=0.6", steps=12, evidence=1, every=20, rate=0.3, metric=metric)
    optimiser = torch.optim.SGD(method.parameters(), 0.01)
    method.train()
    for x, y in batches(6):
        optimiser.zero_grad()
        output = method(x)
        method.after_forward(output, asked(y))
        (loss(output, asked(y)) + method.loss()).backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
    assert method.metric == (chosen if metric == "auto" else metric)
    assert method.answers == (kind if metric == "auto" else None)
    assert any("judged by its gradient" in note for note in method.notes) == (metric == "auto" and chosen == "gradient")
    assert all(np.ptp(scores) > 0 for scores in method.score().values())
    method.finish()


def test_right_or_wrong_needs_classes() -> None:
    method = DCPCAC(narrow_end(1), IMAGE, budget="flops=0.6", metric="accuracy")
    method.train()
    with pytest.raises(ConfigError, match="accuracy needs classes, and the targets are numbers"):
        method.after_forward(method(IMAGE), torch.tensor([0.3, 1.7]))


def test_a_network_that_says_the_same_of_every_image_is_told_at_the_first_event() -> None:
    net = narrow_end(10)
    with torch.no_grad():
        net[8].weight.zero_()
    method = DCPCAC(net, IMAGE, budget="flops=0.6", steps=100, evidence=1, every=5, metric="gradient")
    with pytest.raises(ConfigError, match="no channel makes any difference"):
        train(method, 10, lr=0.0)
    assert method.step == 5


def test_gates_shut_as_often_as_the_metric_needs() -> None:
    for metric, rates in (("gradient", {0.02, 0.01}), ("loss", {0.1, 0.05}), ("accuracy", {0.1, 0.05})):
        method = pruner("resnet8", metric=metric)
        assert {round(rate, 6) for rate in method._rates.tolist()} == rates
        assert torch.equal(method.gates.rates, method._rates[torch.from_numpy(method.gates.live)])
        assert {round(rate, 6) for rate in pruner("resnet8", metric=metric, rate=0.3)._rates.tolist()} == {
            0.3, min(rates)
        }  # fmt: skip
    method = pruner("resnet8", evidence=None, steps=40)
    train(method, 1)
    assert method.metric == "gradient"  # found suitable in the first step
    assert round(float(method.gates.rates.max()), 6) == 0.02


# ----------------------------------------------------------------------------------------- optimisers and processes


def test_a_distributed_wrapper_around_the_pruner_is_refused(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        for unused in (False, True):
            method = pruner()
            wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(method), find_unused_parameters=unused)
            wrapped.train()
            with pytest.raises(ModelError, match=r"dcpcac narrows .* all_reduce\(p.grad\)"):
                wrapped(IMAGE)
            wrapped.eval()(IMAGE)  # nothing narrows there
            method.over = True
            wrapped.train()(IMAGE)
    finally:
        distributed.destroy_process_group()


def test_only_optimisers_of_its_parameters_follow_and_none_outlives_the_method() -> None:
    from torch.optim import optimizer

    pruner().train()(IMAGE)
    gc.collect()  # of the method just made an inert hook is left, until the next one begins
    hooks, own = len(optimizer._global_optimizer_post_hooks), pruner("tiny", every=1, steps=10)
    stranger = torch.nn.Parameter(torch.ones(3))
    others = [torch.optim.SGD([stranger], 0.1, momentum=0.9)]
    before = torch.optim.SGD(own.model.parameters(), 0.05, momentum=0.9)  # made before any forward pass
    for images, labels in batches(6):
        own.train()
        output = own(images)
        own.after_forward(output, labels)
        before.zero_grad()
        (F.cross_entropy(output, labels) + own.loss()).backward()
        own.after_backward()
        before.step()
        stranger.grad = torch.ones(3)
        others[0].step()
        own.after_step()
    assert not own.alive.all()
    assert [*_OPTIMISERS[own]] == [before]
    assert all(before.state[p]["momentum_buffer"].shape == p.shape for p in own.model.parameters())
    assert len(optimizer._global_optimizer_post_hooks) <= hooks
    del own, output
    gc.collect()
    before.step()  # a hook of nobody's
    pruner().train()(IMAGE)
    assert len(optimizer._global_optimizer_post_hooks) <= hooks


def test_a_method_may_end_while_an_optimiser_goes_through_its_hooks() -> None:
    """As garbage does, whenever it is collected: PyTorch's list of hooks must not change then."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    left = [pruner()]
    ends = register_optimizer_step_post_hook(lambda *_: (left.clear(), gc.collect()))
    try:
        left[0].train()(IMAGE)
        stranger = torch.nn.Parameter(torch.ones(3))
        stranger.grad = torch.ones(3)
        torch.optim.SGD([stranger], 0.1).step()
    finally:
        ends.remove()
    assert not left


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.fc = nn.Conv2d(3, 8, 3), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found, _ = self.lstm(F.relu(self.conv(x)).flatten(2).transpose(1, 2)[:, :4])
        return self.fc(found[:, -1])


def test_what_no_gate_can_stand_before_stays_whole_or_is_refused() -> None:
    with pytest.raises(ModelError, match="can be gated"):
        DCPCAC(Recurrent(), IMAGE, budget="flops=0.99")


def test_gates_need_samples_in_front() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # [samples, tokens, 6]
            return self.b(F.relu(self.a(x.transpose(0, 1)))).transpose(0, 1).mean(1)

    method = DCPCAC(Swapped(), torch.randn(2, 5, 6), budget="params=0.7")
    method.train()
    with pytest.raises(ModelError, match="reads 5 rows where the batch has 2 samples"):
        method(torch.randn(2, 5, 6))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": 1.0}, "below 1"),
        ({"start": 0.5, "end": 0.4}, "let pruning end after it begins"),
        ({"metric": "grad"}, "one of auto, accuracy, loss, gradient"),
        ({"double": True}, "one of no, channels, flops"),
        ({"cap": 0.0}, "above 0"),
        ({"every": 0}, "at least 1"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pruner(**settings)
    assert words in str(caught.value)
