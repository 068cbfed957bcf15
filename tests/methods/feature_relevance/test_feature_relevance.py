"""Feature relevance: the properties and traps of its specification, on networks worked by hand and while training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.allocate import Constraints
from secateur.errors import ConfigError, ModelError
from secateur.graph import trace
from secateur.methods.feature_relevance.method import FeatureRelevance
from secateur.methods.feature_relevance.propagation import Rule
from secateur.methods.feature_relevance.relevance import (
    Layout,
    Relevance,
    channel_relevance,
    class_factors,
    layout,
    makers,
)
from secateur.methods.kit.rounds import Rounds
from secateur.models import create
from secateur.statistics.gather import gather
from secateur.testing import NETWORKS

IMAGE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain(width: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.Conv2d(width, 16, 3, 2, 1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 5),
    )  # fmt: skip


def batches(count: int, seed: int = 0, size: int = 16) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = torch.randint(0, 5, (size,), generator=generator)
        images = torch.rand(size, 3, 8, 8, generator=generator)
        images[:, 0] += labels[:, None, None] / 2.5 - 1.0
        yield images, labels


def pruner(
    model: nn.Module | None = None, budget: str = "flops=0.5", steps: int = 12, **settings: Any
) -> FeatureRelevance:
    return FeatureRelevance(plain() if model is None else model, IMAGE, budget=budget, steps=steps, **settings)


def train(method: FeatureRelevance, steps: int, first: int = 0) -> Iterator[None]:
    method.train()
    optimiser = torch.optim.SGD(method.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    for images, labels in list(batches(first + steps, seed=1))[first:]:
        optimiser.zero_grad()
        output = method(images)
        method.after_forward(output, labels)
        F.cross_entropy(output, labels).backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
        yield


def collected(model: nn.Module, shown: Any = None, **settings: Any) -> FeatureRelevance:
    method = pruner(model, **settings)
    method.collect(batches(4) if shown is None else shown, F.cross_entropy)
    return method


# ------------------------------------------------------------------------------------------------------ the score


def accuracies(*share: float) -> torch.Tensor:
    return torch.tensor([[100.0, 100.0, 100.0 * a] for a in share], dtype=torch.float64)


def test_class_factors_by_hand() -> None:
    assert class_factors(accuracies(0.9, 0.6, 0.3)).tolist() == pytest.approx([0.7311, 0.8176, 0.9526], abs=1e-4)
    assert class_factors(accuracies(0.4, 0.4)).tolist() == pytest.approx([0.7311, 0.7311], abs=1e-4)
    assert class_factors(accuracies(0.4, 0.0)).tolist() == pytest.approx([0.7311, 1.0], abs=1e-4)
    assert class_factors(accuracies(0.0, 0.0)).tolist() == [1.0, 1.0]


def test_scores_by_hand() -> None:
    """The mean over classes comes before the absolute value."""
    means = torch.tensor([[2, -1, 0.5], [1, 3, -0.5], [-4, 1, 0.1]], dtype=torch.float64)
    counts, found = accuracies(0.9, 0.6, 0.3), Layout((0,), (3,), (2,), 3, ())
    v = channel_relevance(100 * means, counts, class_factors(counts), found)[0]
    assert v.tolist() == pytest.approx([0.5102, 0.8914, 0.0173], abs=1e-4)
    assert (v / v.norm()).tolist() == pytest.approx([0.4967, 0.8678, 0.0169], abs=1e-4)
    plain_v = channel_relevance(100 * means, counts, torch.ones(3).double(), found)[0]
    assert plain_v.tolist() == pytest.approx([1 / 3, 1.0, 1 / 30], abs=1e-9)
    assert v.argsort().tolist() == [2, 0, 1]
    assert means.abs().mean(0).argsort().tolist() == [2, 1, 0]  # another order


def test_classes_without_samples_do_not_count() -> None:
    counts = torch.tensor([[10.0, 10, 5], [0, 0, 0]], dtype=torch.float64)
    sums = torch.tensor([[10.0, 20.0], [0.0, 0.0]], dtype=torch.float64)
    v = channel_relevance(sums, counts, torch.ones(2).double(), Layout((0,), (2,), (2,), 2, ()))[0]
    assert v.tolist() == [1.0, 2.0]


def test_members_of_a_group_add_up() -> None:
    counts = torch.tensor([[1.0, 1, 1]], dtype=torch.float64)
    sums = torch.tensor([[1.0, -2.0, -4.0, 1.0]], dtype=torch.float64)
    v = channel_relevance(sums, counts, torch.ones(1).double(), Layout((3, 3), (2, 2), (2, 2), 1, ()))
    assert v[3].tolist() == [5.0, 3.0]


def test_scores_have_length_one_in_every_group() -> None:
    for values in collected(plain()).score().values():
        assert (values**2).sum() == pytest.approx(1.0)
        assert np.sqrt((values**2).mean()) == pytest.approx(1 / np.sqrt(len(values)))  # wide groups score less


def test_relevance_by_hand() -> None:
    """Two layers: what the second gives back to each channel, for the true class."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 1.0]]))
    graph = trace(model, torch.rand(2, 2))
    sums, counts = torch.zeros(2, 2).double(), torch.zeros(2, 3).double()
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    gather(model, [(x, torch.tensor([0, 0]))], [Relevance(makers(graph), sums, counts, Rule())])
    assert sums[0].tolist() == pytest.approx([4.0, -2.0])  # (2, -1) for each of two samples
    assert sums[1].tolist() == [0.0, 0.0]
    assert counts.tolist() == [[2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]  # class 1 has the larger logit: both are wrong


def test_gradient_times_activation_is_something_else() -> None:
    model = plain().eval()
    images, labels = next(batches(1))
    maps = model[:3](images).detach().requires_grad_()
    model[3:](maps).gather(1, labels[:, None]).sum().backward()
    assert maps.grad is not None
    product = (maps * maps.grad).mean((0, 2, 3)).abs()
    found = collected(model, [(images, labels)], class_factor=False, stem=True).score()["0"]
    assert not np.allclose(found, (product / product.norm()).detach().numpy(), atol=0.05)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("factor", [True, False])
def test_settings_reach_the_rule_and_the_classes(alpha: float, factor: bool) -> None:
    """Scores are those of the rule with this alpha, summed and weighed as the setting says."""
    model = plain()
    graph = trace(model, IMAGE)
    found = layout(model, makers(graph), IMAGE)
    sums, counts = torch.zeros(5, sum(found.widths)).double(), torch.zeros(5, 3).double()
    gather(model, batches(4), [Relevance(makers(graph), sums, counts, Rule(alpha))])
    factors = class_factors(counts) if factor else torch.ones(5).double()
    assert factors.unique().numel() > 1 or not factor  # the classes are not answered alike
    scores = collected(plain(), alpha=alpha, class_factor=factor, stem=True).score()
    for number, v in channel_relevance(sums, counts, factors, found).items():
        np.testing.assert_allclose(scores[graph.groups[number].name], (v / v.norm()).numpy(), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- what is read


def numbers(network: str) -> tuple[Any, Layout]:
    chosen = next(n for n in NETWORKS if n.name == network)
    model = chosen.make()
    graph = trace(model, chosen.inputs())
    return graph, layout(model, makers(graph), chosen.inputs())


def test_residual_streams_are_read_behind_their_sums() -> None:
    graph, found = numbers("residual")
    names = [graph.groups[k].name for k in found.groups]
    assert names.count("stem.0") == 2  # two sums; the stem's own output is none of them
    assert names.count("first.0") == names.count("second.0") == names.count("neck.0") == 1
    graph, found = numbers("projection")
    assert sorted(graph.groups[k].name for k in found.groups) == ["body.0", "body.3", "stem.0"]


def test_depthwise_convolutions_follow() -> None:
    graph, found = numbers("depthwise")
    names = [graph.groups[k].name for k in found.groups]
    assert names.count("body.0") == 1


@pytest.mark.parametrize("name", ["resnet8_b", "densenet40", "mobilenet_v2", "preresnet20", "vgg16_bn"])
def test_every_group_of_the_zoo_is_read(name: str) -> None:
    torch.manual_seed(0)
    model, image = create(name), torch.rand(2, 3, 32, 32)
    graph = trace(model, image)
    found = layout(model, makers(graph), image)
    assert set(found.groups) == set(range(len(graph.groups)))
    assert not found.unknown


def test_sums_do_not_depend_on_the_batch_size_and_add_up() -> None:
    model = plain()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    graph = trace(model, IMAGE)
    width = sum(layout(model, makers(graph), IMAGE).widths)
    images, labels = (torch.cat(part) for part in zip(*batches(4), strict=True))

    def of(*parts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sums, counts = torch.zeros(5, width).double(), torch.zeros(5, 3).double()
        gather(model, parts, [Relevance(makers(graph), sums, counts, Rule())])
        return sums, counts

    whole, small = of((images, labels)), of(*zip(images.split(7), labels.split(7), strict=True))
    halves = of((images[:32], labels[:32])), of((images[32:], labels[32:]))
    for k in range(2):
        assert torch.allclose(whole[k], small[k], rtol=1e-3, atol=1e-4)
        assert torch.allclose(whole[k], halves[0][k] + halves[1][k], rtol=1e-3, atol=1e-4)


def test_mixed_images_count_for_their_classes() -> None:
    images, labels = next(batches(1))
    hard = collected(plain(), [(images, labels)])
    soft = collected(plain(), [(images, F.one_hot(labels, 5).float())])
    for name, values in hard.score().items():
        assert np.allclose(values, soft.score()[name])


def test_samples_without_finite_relevance_are_left_out_and_counted() -> None:
    images, labels = next(batches(1))
    spoilt = images.clone()
    spoilt[3] = 1e3
    keep = torch.arange(16) != 3
    model = plain()

    def spoil(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        far = (inputs[0].amax((1, 2, 3), keepdim=True) > 900).float()
        return output + (output - output) / (1 - far)  # 0 / 0 of that image

    model[0].register_forward_hook(spoil)
    found, wanted = (
        collected(model, [(spoilt, labels)], class_factor=False),
        collected(model, [(images[keep], labels[keep])], class_factor=False),
    )
    assert any("1 samples had relevance that is not finite" in note for note in found.notes)
    for name, values in wanted.score().items():
        assert np.allclose(values, found.score()[name], atol=1e-5)


def test_a_channel_that_nobody_listens_to_goes_first_and_orders_follow_channels() -> None:
    model = plain()
    with torch.no_grad():
        model[6].weight[:, 5] = 0
    scores = collected(model, budget="flops=0.7").score()["3"]
    assert scores.argmin() == 5
    assert scores[5] < 1e-6
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    other = plain()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other[3].weight.copy_(model[3].weight[order])
        other[6].weight.copy_(model[6].weight[:, order])
    assert np.allclose(collected(other, budget="flops=0.7").score()["3"], scores[order.numpy()], atol=1e-5)


# ------------------------------------------------------------------------------------------------------- training


def test_the_schedule_is_the_codes() -> None:
    s = FeatureRelevance.Config()
    rounds = Rounds(s.rounds, s.start, s.end, 200)
    assert [e for e in range(1, 201) if rounds.over(e) > rounds.over(e - 1)] == list(range(15, 151, 15))


def test_pruned_channels_stay_pruned_and_events_take_equal_shares() -> None:
    method, seen = pruner(steps=40, rounds=4), [np.ones(52, dtype=bool)]
    for _ in train(method, 40):
        kept = np.concatenate([method._kept[n] for n in ("3", "6", "10")])
        assert not (kept & ~seen[-1]).any()
        seen.append(kept)
        for name, mask in method._held.items():
            assert (method.model.get_parameter(name)[~mask] == 0).all()
    gone = np.array([52 - k.sum() for k in seen])
    steps = np.flatnonzero(np.diff(gone)) + 1
    assert len(steps) == 4
    taken = np.diff(gone)[steps - 1]
    assert taken.max() <= 2 * taken.min() + 2  # the same each time, but for what the budget turns out to need
    assert method.metrics()["flops"] <= 0.5
    assert method.plan().masks["3"].sum() == method._kept["3"].sum()


def test_relevance_is_taken_from_the_last_batches_before_each_event(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    look = FeatureRelevance._look
    monkeypatch.setattr(FeatureRelevance, "_look", lambda self, *call: (seen.append(self.step), look(self, *call)))
    for _ in train(pruner(steps=40, rounds=2, batches=3), 40):
        pass
    assert seen == [13, 14, 15, 28, 29, 30]  # events after 15 and 30 of 40 steps


@pytest.mark.parametrize("budget", [0.2, 0.85])
def test_channels_are_exchanged_to_use_the_budget_up(budget: float) -> None:
    """In pairs of channels the ranking alone would leave 4% and 2.5% of these budgets."""
    method = collected(plain(), budget=f"flops={budget}", stem=True, constraints=Constraints(align=2))
    assert method.aim.used(method.plan().widths) >= 0.99


def test_nothing_leaks_from_pruned_channels() -> None:
    method = pruner(steps=10)
    for _ in train(method, 10):
        pass
    gone = np.flatnonzero(~method._kept["3"])
    assert len(gone)
    model = method.model
    assert (model.get_parameter("3.weight")[gone] == 0).all()
    assert (model.get_parameter("4.bias")[gone] == 0).all()
    assert (model.get_parameter("6.weight")[:, gone] == 0).all()
    small, images = method.finish().eval(), next(batches(1))[0]
    assert torch.allclose(small(images), model.eval()(images), atol=1e-5)


def test_a_group_never_ends_empty() -> None:
    method = pruner(budget="flops=0.13", steps=10)
    for _ in train(method, 10):
        pass
    assert all(width >= 1 for width in method.plan().widths.values())
    assert method.finish() is not None


def test_what_the_first_layer_makes_stays_whole_unless_asked_or_needed() -> None:
    method = pruner()
    assert "0" in method.constraints.keep
    assert any("only the first layer makes stays whole" in note for note in method.notes)
    assert "0" not in pruner(stem=True).constraints.keep
    needed = pruner(budget="flops=0.05")
    assert "0" not in needed.constraints.keep
    assert any("ranked with the rest" in note for note in needed.notes)


def test_training_is_as_without_the_method_until_something_goes() -> None:
    method, other = pruner(steps=100, rounds=2), plain()
    optimiser = torch.optim.SGD(other.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    other.train()
    for (images, labels), _ in zip(batches(10, seed=1), train(method, 10), strict=True):
        optimiser.zero_grad()
        F.cross_entropy(other(images), labels).backward()
        optimiser.step()
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), method.model.state_dict().values(), strict=True)
    )


def test_data_and_targets_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="has seen no data: train with it until its first event"):
        pruner().finish()
    assert pruner().evaluation_modes() == {}
    method = pruner(steps=10).train()
    method(IMAGE).sum().backward()
    with pytest.raises(ConfigError, match="was not given the targets"):
        method.after_step()
    with pytest.raises(ConfigError, match="the targets do not tell it"):
        collected(plain(), [(IMAGE, torch.tensor([0, 7]))])


def test_networks_without_classes_are_refused() -> None:
    with pytest.raises(ModelError, match="relevance cannot start at a class"):
        pruner(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)))
    with pytest.raises(ConfigError, match="set start below end"):
        pruner(start=0.8)


def test_what_tells_no_class_is_refused_before_training() -> None:
    with pytest.raises(ModelError, match=r"is \(2, 1\) and not \[samples, two classes or more\]"):
        pruner(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)))
    several = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    for target in (several, several.long(), torch.tensor([0.5, 2.0]), torch.tensor([0, 5])):
        method = pruner(steps=1000).train()
        with pytest.raises(ConfigError, match=r"the targets do not tell it: .*several labels do not"):
            method.after_forward(method(IMAGE), target)
    method = pruner(steps=1000).train()
    method.after_forward(method(IMAGE), torch.tensor([[0.7, 0.3, 0, 0, 0], [0, 0, 0, 0, 1.0]]))


def test_one_shot_meets_the_budget() -> None:
    chosen = NETWORKS[0]
    method = FeatureRelevance(chosen.make(), chosen.inputs(), budget="flops=0.4")
    method.collect(chosen.batches(4), F.cross_entropy)
    method.finish()
    assert method.result is not None
    assert 0.99 * 0.4 <= method.result.reached("flops") <= 0.4
