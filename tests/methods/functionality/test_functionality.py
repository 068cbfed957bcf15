"""Functionality: the properties and traps of its specification."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.errors import ConfigError, InputError, ModelError
from secateur.graph import trace
from secateur.methods.functionality.images import (
    Ascent,
    WeightContribution,
    directions,
    maximise,
    singly,
    true_logit,
)
from secateur.methods.functionality.method import Functionality, FunctionalitySettings, _balanced
from secateur.methods.functionality.redundancy import going, removed, split
from secateur.recipe import Recipe
from secateur.repair.merging import merge
from secateur.statistics.gather import gather
from secateur.testing import NETWORKS

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def batches(count: int = 2, seed: int = 0, size: int = 16) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = torch.randint(0, 5, (size,), generator=generator)
        yield torch.randn(size, 3, 8, 8, generator=generator), labels


def collected(model: nn.Module, budget: str = "flops=0.6", **settings: Any) -> Functionality:
    method = Functionality(model, IMAGE, budget=budget, **{"ascent_steps": 20, "restarts": 3, **settings})
    method.collect(batches(), F.cross_entropy)
    return method


# ---------------------------------------------------------------------------------------------- how many and which


@pytest.mark.parametrize(
    ("sizes", "number", "wanted"),
    [
        ((3, 1), 2, (2, 0)), ((5, 3, 1, 3), 4, (2, 1, 0, 1)), ((4, 4, 2), 5, (2, 2, 1)), ((4, 4, 2), 99, (3, 3, 1)),
        ((1, 1, 1), 2, (0, 0, 0)), ((5, 2), 0, (0, 0)),
    ],
)  # fmt: skip
def test_shares_of_clusters_by_hand(sizes: tuple[int, ...], number: int, wanted: tuple[int, ...]) -> None:
    assert tuple(split(np.array(sizes), number)) == wanted


def test_every_number_is_divided_entirely_and_no_cluster_is_emptied() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        sizes = generator.integers(1, 9, generator.integers(1, 7))
        for number in range(int(sizes.sum()) + 3):
            shares = split(sizes, number)
            assert shares.sum() == min(number, int((sizes - 1).sum()))
            assert (shares < sizes).all()
            assert (shares >= 0).all()


def test_the_last_of_a_function_stays_though_it_contributes_least() -> None:
    labels, gamma = np.array([0, 0, 0, 1]), np.array([0.9, 0.1, 0.5, 0.05])
    assert np.flatnonzero(removed(labels, gamma, 2)).tolist() == [1, 2]
    assert np.argsort(gamma)[:2].tolist() == [3, 1]  # what γ alone would remove
    assert removed(labels, gamma, 9).sum() == 2


def test_when_channels_go() -> None:
    labels, gamma = np.array([0, 0, 0, 1]), np.array([0.9, 0.1, 0.5, 0.05])
    assert going(labels, gamma).tolist() == [2.0, 0.5, 1.0, 1.5]
    generator = np.random.default_rng(1)
    for _ in range(20):
        labels = np.unique(generator.integers(0, 6, 15), return_inverse=True)[1]
        found = going(labels, generator.random(15))
        assert len(np.unique(found[found > 1])) == labels.max() + 1
        assert (found <= 1).sum() == 15 - labels.max() - 1


def test_no_share_removes_nothing_and_all_of_it_leaves_one_of_every_function() -> None:
    method = collected(plain())
    assert method.plan().masks["0"].any()
    for name, labels in method._labels.items():
        clusters = int(labels.max()) + 1
        assert clusters in range(-(-len(labels) // 3), len(labels) // 2 + 1)
        assert not method._removed(name, 0).any()
        full = ~method._removed(name, len(labels) - clusters)
        assert sorted(labels[full]) == list(range(clusters))


def test_costs_fall_with_the_budget_and_functions_get_coarser_below_one_of_each() -> None:
    method, costs = collected(plain()), []
    for budget in ("flops=0.9", "flops=0.6", "flops=0.3", "flops=0.1"):
        method.budget = secateur.Budget.parse(budget)
        plan = method.plan()
        costs.append(method.graph.cost(plan).macs / method.graph.cost().macs)
        assert costs[-1] <= float(budget.partition("=")[2])
        for name, labels in method._labels.items():
            if plan.widths[name] > labels.max():
                assert len(np.unique(labels[plan.masks[name]])) == labels.max() + 1
    assert (np.diff(costs) < 0).all()
    assert min(plan.widths[n] / (labels.max() + 1) for n, labels in method._labels.items()) < 1


# ---------------------------------------------------------------------------------------------------- what is alike


def test_equal_filters_do_the_same_and_one_of_them_goes() -> None:
    model = plain()
    with torch.no_grad():
        model[0].weight[6] = model[0].weight[2]
        model[0].weight[4] *= 0.01  # small, and like no other: L1 removes it first
    method = collected(model, ascent_steps=40)
    labels = method._labels["0"]
    assert labels[2] == labels[6]
    rows = method._rows["0"]
    assert np.linalg.norm(rows[2] - rows[6]) < 0.05
    assert min(np.linalg.norm(rows[2] - rows[k]) for k in range(8) if k not in (2, 6)) > 0.3
    alone = np.array([0, 1, 2, 3, 4, 5, 2, 6])
    gone = np.flatnonzero(removed(alone, method._gamma["0"], 1))
    assert gone.item() in (2, 6)
    assert model[0].weight.abs().sum((1, 2, 3)).argmin() == 4
    images = next(batches())[0]
    twin = copy.deepcopy(model).eval()
    merge(dict(twin.named_parameters()), trace(model, IMAGE), {"0": alone})
    assert torch.allclose(twin(images), model.eval()(images), atol=1e-5)
    assert (twin[3].weight[:, 6] == 0).all()


def test_size_is_no_function() -> None:
    """A filter s times as large is read s times more weakly: the same image, the same cluster."""

    def network(factor: float) -> nn.Sequential:
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 5)
        )
        with torch.no_grad():
            model[0].weight[3] *= factor
            model[2].weight[:, 3] /= factor
        return model

    a, b = collected(network(1.0)), collected(network(50.0))
    assert np.allclose(a._rows["0"] @ a._rows["0"].T, b._rows["0"] @ b._rows["0"].T, atol=1e-3)
    assert np.array_equal(a._labels["0"], b._labels["0"])


def test_the_seed_decides_and_the_chunk_does_not() -> None:
    a, b = collected(plain(), chunk=3), collected(plain(), chunk=64)
    for name, labels in a._labels.items():
        assert np.array_equal(labels, b._labels[name])
    assert a.plan() == b.plan()
    other = collected(plain(), seed=5)
    assert not np.allclose(a._rows["0"] @ a._rows["0"].T, other._rows["0"] @ other._rows["0"].T, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"anywhere": True}, {"contribution": "taylor"}, {"size": 5}, {"blur": 0.0}, {"wrt": "weight"}, {"merge": True},
        {"wrt": "weight", "contribution": "taylor", "merge": True},
    ],
)  # fmt: skip
def test_options(settings: dict[str, Any]) -> None:
    method = collected(plain(), **settings)
    method.finish()
    assert method.result is not None
    assert method.result.reached("flops") <= 0.6


def test_settings_of_the_ascent_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Ascent] = []

    def watched(model: nn.Module, view: Any, start: torch.Tensor, ascent: Ascent, **others: Any) -> torch.Tensor:
        seen.append(ascent)
        return maximise(model, view, start, ascent, **others)

    monkeypatch.setattr("secateur.methods.functionality.method.maximise", watched)
    one = collected(plain(), ascent_steps=1)
    many = collected(plain(), ascent_steps=30, ascent="constant", blur=0.0)
    assert [(a.steps, a.momentum, a.sigma) for a in seen] == [(1, 0.9, 0.4)] * 2 + [(30, 0.0, 0.0)] * 2
    assert not np.allclose(one._rows["0"] @ one._rows["0"].T, many._rows["0"] @ many._rows["0"].T, atol=1e-3)


def test_size_rate_and_spectra_reach_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[torch.Tensor] = []
    rates: list[float] = []
    spectra: list[bool] = []

    def watched(model: nn.Module, view: Any, start: torch.Tensor, ascent: Ascent, **others: Any) -> torch.Tensor:
        starts.append(start)
        rates.append(ascent.rate / math.sqrt(start.numel()) * 55)
        return maximise(model, view, start, ascent, **others)

    def compared(images: torch.Tensor, *, anywhere: bool) -> torch.Tensor:
        spectra.append(anywhere)
        return directions(images, anywhere=anywhere)

    monkeypatch.setattr("secateur.methods.functionality.method.maximise", watched)
    monkeypatch.setattr("secateur.methods.functionality.method.directions", compared)
    collected(plain(), ascent_steps=1)
    collected(plain(), ascent_steps=1, size=5, rate=2.0, anywhere=True)
    half = len(starts) // 2
    assert {start.shape[-1] for start in starts[half:]} == {5}
    assert {start.shape[-1] for start in starts[:half]} != {5}
    assert rates == pytest.approx([1.0] * half + [2.0] * half)
    assert spectra == [False] * half + [True] * half


def test_only_so_many_images_are_looked_at_of_every_class_as_many() -> None:
    x = torch.arange(20.0).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    labels = torch.tensor([0] * 12 + [1] * 6 + [2] * 2)
    shown = list(zip(x.split(7), labels.split(7), strict=True))

    def looked(images: int, pairs: Any = shown) -> tuple[list[int], int]:
        found = list(_balanced(iter(pairs), images))
        return torch.bincount(torch.cat([y for _, y in found])).tolist(), sum(len(inputs) for inputs, _ in found)

    assert looked(9) == ([4, 3, 2], 9)
    assert looked(3) == ([1, 1, 1], 3)
    assert looked(20) == ([12, 6, 2], 20)
    first = torch.cat([inputs for inputs, _ in _balanced(shown, 9)])[:, 0, 0, 0]
    assert first.tolist() == [0, 1, 2, 3, 12, 13, 14, 18, 19]
    bare = [(inputs, None) for inputs, _ in shown]
    assert sum(len(inputs) for inputs, _ in _balanced(bare, 9)) == 14  # whole batches, as nothing tells classes
    few, all_ = (collected(plain(), images=images)._gamma["0"] for images in (5, 1000))
    assert not np.allclose(few, all_)


def test_plans_do_not_cluster_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import secateur.methods.functionality.method as module

    method, calls = collected(plain(), budget="flops=0.15"), []
    true = module.kmeans
    monkeypatch.setattr(module, "kmeans", lambda *a, **k: calls.append(a[1]) or true(*a, **k))
    first = method.plan()
    assert calls  # fewer channels than functions
    number = len(calls)
    assert method.plan() == first
    assert len(calls) == number


@pytest.mark.parametrize("pooled", [True, False])
def test_images_are_small_where_the_network_takes_them(pooled: bool) -> None:
    """In front of a linear layer, too: behind a global pooling, and not behind a flattening."""
    torch.manual_seed(0)
    inner: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if pooled else []
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, 2, 1), nn.ReLU(), *inner, nn.Flatten(),
        nn.Linear(4 if pooled else 4 * 36, 5),
    )  # fmt: skip
    method = Functionality(model.eval(), torch.randn(1, 3, 24, 24), budget="flops=0.6", size=8)
    assert method._fits(method._views["0"], (3, 8, 8))
    assert method._fits(method._views["2"], (3, 8, 8)) == pooled
    grown = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 9), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(4, 5)).eval()  # fmt: skip
    method = Functionality(grown, torch.randn(1, 3, 24, 24), budget="flops=0.6", size=8)
    assert not method._fits(method._views["2"], (3, 8, 8))  # the second kernel is larger than its map
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in grown.modules())


# ------------------------------------------------------------------------------------------------- γ from weights


def averaged() -> nn.Sequential:
    """A linear head on the means of the maps of one convolution."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5, bias=False)
    )  # fmt: skip


@pytest.mark.parametrize("contribution", ["gradient", "taylor"])
def test_contribution_of_weights_in_closed_form(contribution: str) -> None:
    """Z = Σ_i u_yi mean_p A_i(p) has dZ/dW_i = u_yi · mean_p x[p + ·]: the mean patch, times a weight of the head."""
    model = averaged()
    method = collected(model, "flops=0.9", wrt="weight", contribution=contribution)
    patch = torch.cat([F.unfold(x, 3, stride=2, padding=1).mean(2) for x, _ in batches()])  # [32, 3 · 9]
    classes = torch.cat([labels for _, labels in batches()])
    slopes = (model[3].weight.detach()[classes][:, :, None] * patch[:, None]).abs()  # [32, 6, 27]
    weight = model[0].weight.detach().flatten(1).abs()
    wanted = (slopes if contribution == "gradient" else slopes * weight).mean((0, 2))
    assert np.allclose(method._gamma["0"], wanted / wanted.max(), rtol=1e-5)
    from_maps = collected(averaged(), "flops=0.9", contribution=contribution)._gamma["0"]
    assert not np.allclose(method._gamma["0"], from_maps, rtol=1e-3)


def test_with_one_logit_maps_and_weights_see_the_head_alone() -> None:
    model = averaged()
    with torch.no_grad():
        model[3].weight[:] = model[3].weight[0].clone()
    sizes = model[3].weight[0].detach().abs()
    for wrt in ("map", "weight"):
        assert np.allclose(collected(model, "flops=0.9", wrt=wrt)._gamma["0"], sizes / sizes.max(), rtol=1e-5)


def weights_seen(model: nn.Module, kernels: Any, pairs: Any, kind: Any = "gradient") -> WeightContribution:
    found = WeightContribution(kernels, kind)
    gather(model, singly(pairs), [found], true_logit)
    return found


def kernels_of(model: nn.Module, inputs: torch.Tensor) -> dict[str, list[Any]]:
    method = Functionality(model, inputs, budget="flops=0.5", wrt="weight")
    return method._kernels


@pytest.mark.parametrize("name", ["residual", "depthwise", "shuffle", "no norm"])
def test_contributions_of_weights_are_autograds_of_every_sample(name: str) -> None:
    """All weights that make a channel: of both layers of a sum, of a depthwise convolution, of every group's part."""
    chosen = next(n for n in NETWORKS if n.name == name)
    model = chosen.make().eval()
    kernels = kernels_of(model, chosen.inputs())
    images, labels = next(chosen.batches(1))
    found = weights_seen(model, list(kernels.values()), [(images, labels)]).means()
    own = dict(model.named_parameters())
    slopes = [dict(zip(own, torch.autograd.grad(model(x[None])[0, y], list(own.values())), strict=True))
              for x, y in zip(images, labels, strict=True)]  # fmt: skip
    for (group, members), gamma in zip(kernels.items(), found, strict=True):
        wanted = np.zeros(len(gamma))
        for member in members:
            size = torch.stack([slope[member.name] for slope in slopes]).abs().mean(0).movedim(member.dim, 0)
            wanted += np.array([float(size[rows].mean()) for rows in member.index])
        assert np.allclose(gamma, wanted, rtol=1e-4), group


def test_the_weights_that_count() -> None:
    def named(name: str) -> dict[str, list[str]]:
        chosen = next(n for n in NETWORKS if n.name == name)
        return {g: [m.name for m in members] for g, members in kernels_of(chosen.make(), chosen.inputs()).items()}

    assert named("residual")["stem.0"] == ["stem.0.weight", "first.3.weight", "second.3.weight"]
    assert named("depthwise")["body.0"] == ["body.0.weight", "body.3.weight"]
    assert named("no norm") == {"0": ["0.weight"], "2": ["2.weight"], "5": ["5.weight"]}  # no biases


def test_weights_of_samples_do_not_cancel_and_no_batch_matters() -> None:
    model = averaged()
    x = next(batches())[0][:1]
    both = weights_seen(model, [kernels_of(model, IMAGE)["0"]], [(torch.cat([x, -x]), torch.tensor([2, 2]))])
    one = weights_seen(model, both.kernels, [(x, torch.tensor([2]))])
    assert torch.allclose(both.means()[0], one.means()[0], rtol=1e-6)
    assert one.means()[0].min() > 0

    images, labels = next(batches())
    found = []
    for size in (1, 5, 16):
        method = Functionality(plain(), IMAGE, budget="flops=0.6", wrt="weight", merge=True, ascent_steps=1, restarts=1)
        method.collect(list(zip(images.split(size), labels.split(size), strict=True)), F.cross_entropy)
        found.append(method)
    for name, gamma in found[0]._gamma.items():
        assert all(np.array_equal(other._gamma[name], gamma) for other in found)
    assert found[0].plan() == found[1].plan() == found[2].plan()
    states = [method.finish().state_dict() for method in found]
    assert all(torch.allclose(states[0][key], other[key]) for other in states[1:] for key in states[0])


def test_the_network_is_left_as_it_was() -> None:
    model = plain()
    before, grads = copy.deepcopy(model.state_dict()), {}
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number != 0)
        parameter.grad = grads[number] = torch.full_like(parameter, 7.0) if number % 2 == 0 else None
    collected(model, wrt="weight")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for number, parameter in enumerate(model.parameters()):
        assert parameter.requires_grad == (number != 0)
        assert parameter.grad is grads[number]
        assert parameter.grad is None or bool((parameter.grad == 7).all())
    wrong = [(torch.ones(2, 3, 0, 0), torch.zeros(2, dtype=torch.long))]
    with pytest.raises(InputError, match="holds nothing"):
        Functionality(model, IMAGE, budget="flops=0.6", wrt="weight").collect(wrong, F.cross_entropy)
    assert next(model.parameters()).grad is grads[0]  # also when it ends early


def test_batches_of_several_are_refused_where_single_samples_are_needed() -> None:
    model = averaged()
    with pytest.raises(ConfigError, match=r"pass batches of one, singly\(batches\)"):
        gather(model, batches(1), [WeightContribution([kernels_of(model, IMAGE)["0"]])], true_logit)


class Tinted(nn.Module):
    """Channels that a vector makes, and channels that a kernel makes."""

    def __init__(self, kernel: bool) -> None:
        super().__init__()
        self.tint, self.norm = nn.Parameter(torch.rand(8)), nn.BatchNorm2d(8)
        self.layer = nn.Conv2d(8, 6, 3) if kernel else None
        self.head = nn.Conv2d(6 if kernel else 8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.mean(1, keepdim=True) * self.tint.view(-1, 1, 1))
        result: torch.Tensor = self.head(F.relu(x if self.layer is None else self.layer(x))).mean((2, 3))
        return result


def test_channels_that_no_kernel_makes_stay_whole() -> None:
    method = Functionality(Tinted(True), IMAGE, budget="flops=0.9", wrt="weight")
    assert any("Groups that no kernel makes stay whole: " in note for note in method.notes)
    assert method._cut_groups() == ["layer"]
    with pytest.raises(ModelError, match="wrt=weight has no weights to look at: set wrt: map"):
        Functionality(Tinted(False), IMAGE, budget="flops=0.9", wrt="weight")
    Functionality(Tinted(False), IMAGE, budget="flops=0.9")


def test_both_options_are_given_as_all_others() -> None:
    text = "{name: x, model: zoo:resnet8, data: digits, method: l1, budget: flops=0.5, train: {epochs: 1}}"
    recipe = Recipe.parse(text, ["method=functionality", "method.wrt=weight", "method.merge=true"])
    assert recipe.method.settings == {"wrt": "weight", "merge": True}
    config = FunctionalitySettings(**recipe.method.settings)
    assert (config.wrt, config.merge) == ("weight", True)
    assert (FunctionalitySettings().wrt, FunctionalitySettings().merge) == ("map", False)
    with pytest.raises(ConfigError, match="wrt"):
        Functionality(plain(), IMAGE, budget="flops=0.5", wrt="weights")


# ---------------------------------------------------------------------------------------------------------- networks


def test_residual_streams_stay_whole_unless_the_budget_needs_them() -> None:
    chosen = NETWORKS[0]
    method = Functionality(chosen.make(), chosen.inputs(), budget="flops=0.5")
    assert "stem.0" in method.constraints.keep
    low = Functionality(chosen.make(), chosen.inputs(), budget="flops=0.02")
    assert "stem.0" not in low.constraints.keep
    assert any("with residual streams whole, so they are pruned" in note for note in low.notes)


def test_channels_are_seen_behind_their_activation_and_flattened_maps_as_maps() -> None:
    method = Functionality(plain(), IMAGE, budget="flops=0.6")
    assert [(v.reader, v.before) for v in method._views.values()] == [("3", "1"), ("7", "3")]
    flat = NETWORKS[-1]
    views = Functionality(flat.make(), flat.inputs(), budget="flops=0.6")._views
    assert views["2"].index.shape == (24, 4)  # four columns of the linear layer behind the flattening
    depthwise = next(n for n in NETWORKS if n.name == "depthwise")
    views = Functionality(depthwise.make(), depthwise.inputs(), budget="flops=0.6")._views
    assert views["body.0"].before == "body.4"  # the norm behind the depthwise convolution stands for the pair


def test_what_is_refused() -> None:
    with pytest.raises(ModelError, match="functionality draws images"):
        Functionality(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(2, 6), budget="flops=0.5")
    with pytest.raises(ConfigError, match="has seen no data: call collect"):
        Functionality(plain(), IMAGE, budget="flops=0.5").finish()
