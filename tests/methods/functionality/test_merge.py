"""Functionality with `merge`: what goes leaves its share with the strongest of its cluster, in every kind of reader."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.allocate import Constraints
from secateur.errors import ConfigError
from secateur.graph import trace
from secateur.graph.modules import named_tensors
from secateur.methods import method as method_of
from secateur.methods.functionality.merge import Likeness, absorb, heirs, inexact, read_places
from secateur.methods.functionality.method import Functionality
from secateur.methods.kit.clustering import kmeans
from secateur.repair import repairs
from secateur.repair.masking import alive, apply_masks
from secateur.statistics.gather import gather
from secateur.testing import NETWORKS
from secateur.testing.networks import Concatenation, Depthwise, PreActivation, no_norm

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 5


def batches(size: int = 8) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield from zip(IMAGES.split(size), LABELS.split(size), strict=True)


def likeness_of(model: nn.Module, names: list[str], size: int = 8) -> Likeness:
    graph = trace(model, IMAGES[:2])
    found = Likeness(read_places(graph, names))
    gather(model, batches(size), [found])
    return found


class ForcedClusters(Functionality):
    """As many clusters as channels, save one."""

    def _clusters(self, rows: Any) -> Any:
        return kmeans(rows, len(rows) - 1, seed=self.seed, restarts=3)


# ---------------------------------------------------------------------------------------------------- property 9 (a)


def copied(factor: float = 1.0) -> nn.Sequential:
    """Filter 6 is filter 2, `factor` times as large; filter 4 is small, and like no other."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[6] = model[0].weight[2]
        model[1].weight[6] = factor * model[1].weight[2]
        model[1].bias[6] = factor * model[1].bias[2]
        model[0].weight[4] *= 0.01
    return model.eval()


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_of_two_equal_filters_one_goes_and_the_outputs_stay(factor: float) -> None:
    model, whole = copied(factor), Constraints(keep=["3"])
    wanted = model(IMAGES)
    given = {"budget": "flops=0.99", "constraints": whole, "restarts": 3}
    method = ForcedClusters(model, IMAGES[:2], **given, merge=True)
    method.collect(batches(), F.cross_entropy)
    assert np.linalg.norm(method._rows["0"][2] - method._rows["0"][6]) < 0.05
    assert method._labels["0"][2] == method._labels["0"][6]
    merged = method.finish().eval()
    plan = method.plan()
    (gone,) = np.flatnonzero(~plan.masks["0"])
    assert gone in (2, 6)
    assert plan.provenance["merged"] == {"0": [[gone], [8 - gone]]}
    assert torch.allclose(merged(IMAGES), wanted, atol=1e-5)
    assert method.result is not None
    assert method.result.verification is not None
    assert torch.equal(model(IMAGES), wanted)  # which keeps its weights

    alone = ForcedClusters(copied(factor), IMAGES[:2], **given)
    alone.collect(batches(), F.cross_entropy)
    assert "merged" not in alone.plan().provenance
    assert not torch.allclose(alone.finish().eval()(IMAGES), wanted, atol=1e-3)

    size = method_of("l1").factory(copied(factor), IMAGES[:2], budget="flops=0.99", constraints=whole)
    assert np.flatnonzero(~size.plan().masks["0"]).tolist() == [4]


def test_the_merged_channel_has_the_scale_of_its_map() -> None:
    model = copied(2.0)
    before = model[3].weight.detach().clone()
    found = likeness_of(model, ["0"])
    assert found.scales("3", "0", np.array([6, 2]), np.array([2, 6])) == pytest.approx([2.0, 0.5])
    graph = trace(model, IMAGES[:2])
    absorb(named_tensors(model), graph.groups[0], np.array([6]), np.array([2]), found)
    assert torch.allclose(model[3].weight[:, 2], before[:, 2] + 2 * before[:, 6], atol=1e-6)
    assert not model[3].weight[:, 6].any()
    others = [0, 1, 3, 4, 5, 7]
    assert torch.equal(model[3].weight[:, others], before[:, others])


# --------------------------------------------------------------------------------------------------- least squares


def test_the_scale_is_that_of_least_squares_whatever_the_batch() -> None:
    model = copied()
    maps = model[:3](IMAGES).detach().double().transpose(0, 1).flatten(1)  # [channels, samples · positions]
    gone, stays = np.array([0, 3, 5]), np.array([1, 1, 7])
    wanted = [float(torch.linalg.lstsq(maps[b][:, None], maps[a]).solution) for a, b in zip(gone, stays, strict=True)]
    for size in (1, 3, 16):
        assert likeness_of(model, ["0"], size).scales("3", "0", gone, stays) == pytest.approx(wanted, rel=1e-6)


def test_a_dead_map_takes_nothing() -> None:
    model = copied()
    with torch.no_grad():
        model[1].weight[1] = 0.0
    assert likeness_of(model, ["0"]).scales("3", "0", np.array([0, 1]), np.array([1, 0])).tolist() == [0.0, 0.0]


def test_memory_is_one_matrix_for_each_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = likeness_of(copied(), ["0", "3"])
    assert {key: tuple(value.shape) for key, value in wanted._upper.items()} == {("3", "0"): (1, 8, 8),
                                                                                ("7", "3"): (1, 12, 12)}  # fmt: skip
    monkeypatch.setattr("secateur.methods.functionality.merge.BLOCK", 40)  # blocks of five positions
    found = likeness_of(copied(), ["0", "3"])
    for key, value in wanted._upper.items():
        assert torch.allclose(found._upper[key], value, rtol=1e-9)


def test_the_heir_is_the_strongest_that_stays() -> None:
    labels, gamma = np.array([0, 1, 0, 1, 0, 0]), np.array([0.5, 0.1, 0.7, 0.9, 0.9, 0.2])
    kept = np.array([True, False, True, True, False, False])
    gone, stays = heirs(labels, gamma, kept)
    assert (gone.tolist(), stays.tolist()) == ([1, 4, 5], [3, 2, 2])  # 4 is stronger than 2, and goes


# --------------------------------------------------------------------------------------------------------- readers


def twins(model: nn.Module, name: str) -> tuple[nn.Module, Any]:
    """A network in which every second channel of a group is the one before it, and its trace."""
    model.eval()
    graph = trace(model, IMAGES[:2])
    group = next(g for g in graph.groups if g.name == name)
    with torch.no_grad():
        for member in group.producers():
            rows = named_tensors(model)[member.name].detach().movedim(member.dim, 0)
            if rows.is_floating_point():
                rows[member.index[1::2].ravel()] = rows[member.index[::2].ravel()]
    return model, graph


class Decoder(nn.Module):
    """Channels that are read twice by one transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(16, 6, 2, 2)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.down(x))
        result: torch.Tensor = self.head(F.relu(self.up(torch.cat([x, x], 1)))).mean((2, 3))
        return result


@pytest.mark.parametrize(
    ("make", "name", "readers"),
    [
        (Concatenation, "stem.0", ["first.0", "second.0", "head.fc"]),  # at another place in each
        (Concatenation, "first.0", ["second.0", "head.fc"]),
        (Depthwise, "body.0", ["body.6"]),
        (Depthwise, "stem.0", ["body.0", "head.fc"]),  # a sum of two layers
        (PreActivation, "stem", ["body.2", "head.fc"]),  # each behind a norm of its own
        (no_norm, "2", ["5"]),  # four columns a channel, behind a flattening
        (NETWORKS[5].build, "stem.0", ["first.0"]),  # a part of the channels for each group of a convolution
        (NETWORKS[3].build, "0.0", ["1.0"]),
        (Decoder, "down", ["up"]),
    ],
)
def test_nothing_is_lost_of_equal_channels(make: Any, name: str, readers: list[str]) -> None:
    torch.manual_seed(0)
    model, graph = twins(make(), name)
    wanted = model(IMAGES)
    group = next(g for g in graph.groups if g.name == name)
    found = likeness_of(model, [name])
    assert list(read_places(graph, [name])) == readers
    gone = np.arange(1, group.width, 2)
    absorb(named_tensors(model), group, gone, gone - 1, found)
    assert torch.allclose(model(IMAGES), wanted, atol=1e-5)
    masks = {g.name: np.ones(g.width, dtype=np.bool_) for g in graph.groups}
    masks[name][gone] = False
    made = secateur.apply(model, IMAGES[:2], secateur.Plan(masks))
    assert torch.allclose(made.model.eval()(IMAGES), wanted, atol=1e-5)


def test_every_reader_has_the_scale_of_what_it_reads() -> None:
    """In a stream, norms in front of the readers make another multiple of the same channel."""
    torch.manual_seed(0)
    model, graph = twins(PreActivation(), "stem")
    with torch.no_grad():
        for norm, factor in ((model.body[0], 3.0), (model.norm, 0.25)):
            norm.weight[1::2] *= factor
            norm.bias[1::2] *= factor
    wanted, gone, found = model(IMAGES), np.arange(1, 16, 2), likeness_of(model, ["stem"])
    assert found.scales("body.2", "stem", gone, gone - 1) == pytest.approx([3.0] * 8)
    assert found.scales("head.fc", "stem", gone, gone - 1) == pytest.approx([0.25] * 8)
    absorb(named_tensors(model), graph.groups[0], gone, gone - 1, found)
    assert graph.groups[0].name == "stem"
    assert torch.allclose(model(IMAGES), wanted, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_the_cut_computes_what_the_masked_and_merged_network_does(network: Any) -> None:
    method = Functionality(network.make(), network.inputs(), budget="flops=0.5", merge=True, ascent_steps=1, restarts=1)
    method.collect(network.batches(2), F.cross_entropy)
    small = method.finish().eval()
    plan, merged = method.plan(), method.plain().eval()
    method.repair(merged, plan)
    own = named_tensors(method.model)
    assert any(not torch.equal(own[name], tensor) for name, tensor in named_tensors(merged).items())
    masked = copy.deepcopy(merged)
    apply_masks(masked, alive(method.graph.slices(plan), dict(masked.named_parameters())))
    assert torch.allclose(small(IMAGES), masked(IMAGES), atol=1e-5)
    assert method.result is not None
    assert method.result.verification is not None


def test_merging_leaves_less_of_an_error_than_dropping() -> None:
    """Outputs of a layer whose inputs are nearly alike in pairs."""
    model, _ = twins(copied(), "0")
    with torch.no_grad():
        model[0].weight[1::2] += 0.02 * torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    wanted, errors = model(IMAGES).detach(), []
    for merge in (False, True):
        method = Functionality(model, IMAGES[:2], budget="flops=0.5", constraints=Constraints(keep=["3"]), merge=merge)
        method.collect(batches(), F.cross_entropy)
        errors.append(float((method.finish().eval()(IMAGES).detach() - wanted).norm()))
    assert errors[1] < 0.5 * errors[0]


# ------------------------------------------------------------------------------------------------- what is refused


def normed(groups: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.GroupNorm(groups, 8), nn.ReLU(), nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def test_groups_that_a_norm_looks_at_together_are_not_merged() -> None:
    model = normed(1)
    assert inexact(trace(model, IMAGES[:2]), ["0", "3"], 0) == ["0"]
    method = Functionality(model, IMAGES[:2], budget="flops=0.5", merge=True, ascent_steps=1, restarts=1)
    assert any("is not exact are not merged: 0." in note for note in method.notes)
    method.collect(batches(), F.cross_entropy)
    method.finish()
    plan = method.plan()
    assert not plan.masks["0"].all()
    assert list(plan.provenance["merged"]) == ["3"]


def test_a_network_in_which_nothing_can_be_merged_is_refused() -> None:
    whole = Constraints(keep=["3"])
    with pytest.raises(ConfigError, match="Merging equal channels changes what Sequential computes: set merge: false"):
        Functionality(normed(1), IMAGES[:2], budget="flops=0.9", constraints=whole, merge=True)


def test_repairs_that_would_undo_it_are_refused_and_others_are_not() -> None:
    method = Functionality(copied(), IMAGES[:2], budget="flops=0.6", merge=True, ascent_steps=1, restarts=1)
    with pytest.raises(ConfigError, match="'compensation' would overwrite what merge=true has added"):
        method.check_repairs(repairs("compensation"))
    method.collect(batches(), F.cross_entropy)
    method.finish(repairs("batchnorm"), list(batches()))
    Functionality(copied(), IMAGES[:2], budget="flops=0.6").check_repairs(repairs("compensation"))
