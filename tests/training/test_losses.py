"""Losses against their definitions, mixup's determinism, weight decay, the moving average."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from _toy import toy_net
from torch import nn
from torch.nn import functional as F

from secateur import tasks
from secateur.errors import ConfigError, ModelError
from secateur.recipe import Distil, Training
from secateur.training.averages import Average
from secateur.training.losses import Targets, TaskLoss, blended, cut, mix, mixing
from secateur.training.optimisers import make_optimiser

TASK = tasks.create("classification")


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 4, generator=generator)
    return scores, torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])


def test_sum_of_cross_entropies(batch: tuple[torch.Tensor, ...]) -> None:
    scores, _, labels = batch
    by_hand = -(0.9 * scores.log_softmax(1)[range(6), labels] + 0.1 * scores.log_softmax(1).mean(1)).sum()
    assert TaskLoss(TASK, Training(label_smoothing=0.1))(scores, Targets(labels), 6) == pytest.approx(float(by_hand))


def test_distillation_is_the_scaled_divergence(batch: tuple[torch.Tensor, ...]) -> None:
    scores, taught, labels = batch
    p, q = (taught / 3).softmax(1), (scores / 3).softmax(1)
    divergence = 9 * (p * (p / q).log()).sum()
    assert TASK.distilled(scores, taught, 3.0) == pytest.approx(float(divergence) / 6, rel=1e-5)
    loss = TaskLoss(TASK, Training(distill=Distil(weight=0.3, temperature=3.0)))
    wanted = 0.7 * F.cross_entropy(scores, labels, reduction="sum") + 0.3 * divergence
    assert loss(scores, Targets(labels), 6, taught) == pytest.approx(float(wanted), rel=1e-5)
    assert TASK.distilled(scores, scores, 2.0) == pytest.approx(0.0, abs=1e-6)


def test_mixup_blends_images_and_losses(batch: tuple[torch.Tensor, ...]) -> None:
    scores, _, labels = batch
    images = torch.arange(6.0).view(6, 1, 1, 1)
    partner = torch.tensor([5, 4, 3, 2, 1, 0])
    mixed, targets = mix(images, labels, 0.25, partner)
    assert torch.allclose(mixed, 0.25 * images + 0.75 * images[partner])
    one, other = (F.cross_entropy(scores, y, reduction="sum") for y in (labels, labels[partner]))
    loss = TaskLoss(TASK, Training())
    assert loss(scores, targets, 6) == pytest.approx(float(0.25 * one + 0.75 * other))
    right = scores.argmax(1)
    wanted = 0.25 * (right == labels).sum() + 0.75 * (right == labels[partner]).sum()
    found = loss.headline(scores, targets)
    assert found is not None
    assert float(found) == pytest.approx(float(wanted))
    parts = targets.split(6, 4)
    assert [len(part.own) for part in parts] == [2, 2, 1, 1]
    assert torch.equal(torch.cat([part.others for part in parts]), labels[partner])


def test_mixup_is_a_function_of_seed_epoch_and_batch() -> None:
    share, partner = mixing(8, 0.4, seed=1, epoch=2, batch=3)
    again = mixing(8, 0.4, seed=1, epoch=2, batch=3)
    assert share == again[0]
    assert torch.equal(partner, again[1])
    assert len({mixing(8, 0.4, seed=s, epoch=e, batch=b)[0] for s in (1, 2) for e in (0, 1) for b in (0, 1)}) == 8


def test_cutmix_is_torchvisions_and_a_function_of_seed_epoch_and_batch() -> None:
    pytest.importorskip("torchvision.transforms.v2")
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 16, 16).contiguous()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    mixed, targets = cut(images, labels, 1.0, seed=1, epoch=2, batch=3)
    assert torch.rand(()) == expected  # nobody else's numbers were drawn
    own = (mixed == images).float().mean((1, 2, 3))
    assert torch.allclose(own, torch.full((6,), targets.share), atol=1e-6)
    assert 0 < targets.share < 1
    assert torch.equal(torch.where(mixed == images, images, images.roll(1, 0)), mixed)
    assert torch.equal(targets.others, labels.roll(1))
    again, _ = cut(images, labels, 1.0, seed=1, epoch=2, batch=3)
    assert torch.equal(mixed, again)
    places = [(s, e, b) for s in (1, 2) for e in (0, 1) for b in (0, 1)]
    shares = {cut(images, labels, 1.0, seed=s, epoch=e, batch=b)[1].share for s, e, b in places}
    assert len(shares) > 5
    alone, target = cut(images[:1], labels[:1], 1.0, seed=1, epoch=2, batch=3)
    assert torch.equal(alone, images[:1])
    assert target.others is None


def test_mixup_and_cutmix_share_the_batches() -> None:
    pytest.importorskip("torchvision.transforms.v2")
    images, labels = torch.rand(6, 3, 16, 16), torch.arange(6)
    both = Training(mixup=0.4, cutmix=1.0)
    kinds = set()
    for batch in range(12):
        mixed, _ = blended(images, labels, both, seed=1, epoch=0, batch=batch)
        kinds.add(bool((mixed == images).float().mean() > 0.01))  # mixup leaves no pixel as it was
    assert kinds == {True, False}
    for training in (Training(cutmix=1.0), Training(mixup=0.4)):
        mixed, _ = blended(images, labels, training, seed=1, epoch=0, batch=1)
        assert bool((mixed == images).float().mean() > 0.01) == (training.cutmix > 0)


def test_cutmix_is_refused_where_it_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("detection", "segmentation", "super_resolution"):
        with pytest.raises(ConfigError, match=f"cutmix means nothing for the task {name}"):
            TaskLoss(tasks.create(name), Training(cutmix=1.0))
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(ConfigError, match="cutmix is torchvision's, which cannot be imported"):
        TaskLoss(TASK, Training(cutmix=1.0))


def test_a_process_without_samples_adds_nothing() -> None:
    scores = torch.zeros(0, 4, requires_grad=True)
    loss = TaskLoss(TASK, Training())(scores, Targets(torch.zeros(0, dtype=torch.int64)), 0)
    loss.backward()
    assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"mixup": 0.2}, {"distill": Distil(weight=0.5)}])
def test_what_a_task_has_not_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="detection"):
        TaskLoss(tasks.create("detection"), Training(**options))


def test_decay_of_norms_is_an_option() -> None:
    net = toy_net()
    groups = make_optimiser(net, Training(weight_decay=0.01)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(5, 0.01)]
    settings = Training(weight_decay=0.01, optimiser="adamw", decay_norm=False)
    groups = make_optimiser(net, settings).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0.01), (3, 0.0)]
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelError, match="no parameters to train"):
        make_optimiser(net, Training())


def test_the_average_follows_weights_and_buffers() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Average(net, 0.8)
    wanted = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for step in range(40):
        with torch.no_grad():
            for tensor in net.state_dict().values():
                tensor += 1
        average.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        for name, tensor in net.state_dict().items():
            wanted[name] = decay * wanted[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor.clone()
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, wanted[name], msg=name)
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with average.in_place():
        assert torch.equal(net.state_dict()["0.weight"], average.tensors["0.weight"])
    assert all(torch.equal(tensor, own[name]) for name, tensor in net.state_dict().items())
