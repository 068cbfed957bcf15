"""Which task a method serves: its scores are not constant and follow the loss it is given; the others it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur import tasks
from secateur.errors import ConfigError
from secateur.methods import METHODS, MethodRow
from secateur.tasks import TASKS, Task

SAMPLES = 16


class Detecting(nn.Module):
    """Losses in training, boxes in evaluation, of one tensor of images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor, targets: Any = None) -> Any:
        found = self.net(images).flatten(2).mean(2)
        if targets is None or not self.training:
            return [{"boxes": row[None, :4].abs(), "scores": row[:1], "labels": row[:1].long()} for row in found]
        wanted = torch.stack([target["boxes"][0] for target in targets])
        return {"boxes": (found[:, :4] - wanted).square().mean()}


def _net(head: nn.Module) -> nn.Sequential:
    body = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)]
    return nn.Sequential(*body, nn.BatchNorm2d(6), nn.ReLU(), head)


def _pooled(outputs: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, outputs))


def _draw(kind: str, other: bool, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape) + 10 * other)
    if kind == "numbers":
        return torch.randn(shape, generator=generator)
    return torch.randint(0, 2 if kind == "bits" else 3, shape, generator=generator)


def _boxes(other: bool) -> list[dict[str, torch.Tensor]]:
    rows = _draw("numbers", other, SAMPLES, 1, 4)
    return [{"boxes": row, "labels": torch.zeros(1)} for row in rows]


def _masks(other: bool) -> torch.Tensor:
    masks = _draw("classes", other, SAMPLES, 6, 6)
    masks[:, :2] = 255  # pixels of no class
    return masks


#: By task: the end of a network, and targets, or others.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[bool], Any]]] = {
    "classification": (lambda: _pooled(3), lambda other: _draw("classes", other, SAMPLES)),
    "multilabel": (lambda: _pooled(3), lambda other: _draw("bits", other, SAMPLES, 3)),
    "binary": (lambda: _pooled(1), lambda other: _draw("bits", other, SAMPLES)),
    "regression": (lambda: _pooled(1), lambda other: _draw("numbers", other, SAMPLES)),
    "segmentation": (lambda: nn.Conv2d(6, 3, 1), _masks),
    "detection": (lambda: nn.Conv2d(6, 5, 1), _boxes),
    "super_resolution": (
        lambda: nn.Sequential(nn.Conv2d(6, 4, 1), nn.PixelShuffle(2)),
        lambda other: _draw("numbers", other, SAMPLES, 1, 12, 12),
    ),
    "metric_learning": (lambda: _pooled(4), lambda other: _draw("classes", other, SAMPLES)),
}


def _case(name: str, other: bool) -> tuple[Task, nn.Module, torch.Tensor, Any]:
    torch.manual_seed(0)
    head, targets = CASES[name]
    net: nn.Module = _net(head())
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    images = torch.randn(SAMPLES, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    return tasks.create(name), Detecting(net) if name == "detection" else net, images, targets(other)


def _scores(row: MethodRow, name: str, other: bool = False) -> tuple[np.ndarray[Any, Any], Any]:
    """What a method thinks of every channel after a few steps or a look at the data, and on what ground.

    Scores, and what a search measured; of a method that has none what stays, and the weights it leaves.
    """
    task, net, images, targets = _case(name, other)
    made = row.factory(net, images[:2], budget=row.example_budget.replace("0.5", "0.6"), steps=6)
    if row.needs == "training":
        _train(made, task, images, targets)
    if row.collects:
        told = task.classes(targets) if row.asks == "classes" else targets
        made.collect([(images[:12], told[:12]), (images[12:], told[12:])], task.loss)
    judged = repr(getattr(made, "judged", None))
    try:
        found = made.score()
    except ConfigError:
        weights = np.concatenate([p.detach().flatten().double().numpy() for p in made.finish().parameters()])
        kept = np.concatenate([mask.astype(np.float64) for mask in made.result.plan.masks.values()])
        thinned = bool((weights == 0).any() or made.result.plan.forms)
        searched = [made.result.plan.provenance.get(key) for key in ("errors", "accuracy")]
        return np.append(kept, 0.0 if thinned else 1.0), (weights.tolist(), searched, judged)
    rows = np.concatenate([np.asarray(found[group.name], dtype=np.float64) for group in made.graph.groups])
    return rows, (rows.tolist(), getattr(found, "provenance", {}).get("search"))


def _train(made: Any, task: Task, images: torch.Tensor, targets: Any) -> None:
    made.train()
    optimiser = torch.optim.SGD(made.parameters(), 0.05)
    for _ in range(3):
        optimiser.zero_grad()
        made.before_forward(targets)
        answer = task.answer(made, images, targets)
        made.after_forward(answer, targets)
        (task.loss(answer, targets) + made.loss()).backward()
        made.after_backward()
        optimiser.step()
        made.after_step()


#: Methods that act in training and yet score by the weights they begin with.
BLIND = ("csgd",)
#: Every task of every method is tried by `make long`; of those that look at data, two are always.
_ALWAYS = ("regression", "segmentation")


def _pairs(serves: bool) -> list[Any]:
    found = []
    for row in METHODS:
        for name in TASKS:
            if (row.refusal(tasks.create(name)) is None) == serves:
                quick = name == _ALWAYS[0] or (name in _ALWAYS and row.needs != "nothing")
                marks = () if quick or not serves else pytest.mark.long
                found.append(pytest.param(row, name, marks=marks, id=f"{row.name}-{name}"))
    return found


@pytest.mark.parametrize(("row", "name"), _pairs(True))
def test_scores_differ_and_follow_the_loss(row: MethodRow, name: str) -> None:
    found, ground = _scores(row, name)
    assert np.isfinite(found).all()
    assert np.ptp(found) > 1e-9 * np.abs(found).max()
    if (row.needs == "training" or row.labels) and row.name not in BLIND:
        assert ground != _scores(row, name, other=True)[1]


@pytest.mark.parametrize(("row", "name"), _pairs(False))
def test_a_task_that_is_not_served_is_refused_in_a_sentence(row: MethodRow, name: str) -> None:
    with pytest.raises(ConfigError, match=f"The method {row.name} .*{name}.*: choose another"):
        row.check_task(tasks.create(name))


def test_prune_gives_methods_the_loss_of_the_task() -> None:
    task, net, images, targets = _case("regression", False)
    told = {"example_inputs": images[:1], "budget": "flops=0.6", "data": [(images, targets)]}
    result = secateur.prune(net, method="taylor", task=task, **told)
    assert result.plan == secateur.prune(net, method="taylor", loss=task.loss, **told).plan
    with pytest.raises(ConfigError, match="class of every sample"):
        secateur.prune(net, method="catro", task="regression", **told)


def test_a_list_of_images_is_refused_where_samples_are_followed() -> None:
    row = next(row for row in METHODS if row.name == "cp")
    assert row.refusal(tasks.create("detection"), torch.zeros(1, 3, 8, 8)) is None
    assert "list of tensors" in str(row.refusal(tasks.create("detection"), ([torch.zeros(3, 8, 8)],)))
