"""The built-in tasks beside classification: losses and metrics worked out by hand, and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from secateur import tasks
from secateur.errors import DataError, ModelError
from secateur.tasks import TASKS


class Table(nn.Module):
    """Answers sample i with row i, whatever the mode."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer[x.long()]


def _found(name: str, answer: torch.Tensor, targets: torch.Tensor, **settings: Any) -> dict[str, float]:
    """Evaluated in two batches of unequal size."""
    rows = torch.arange(len(answer))
    task = tasks.create(name, **settings)
    return task.evaluate(Table(answer), [(rows[:2], targets[:2]), (rows[2:], targets[2:])])


def test_binary() -> None:
    found = _found("binary", torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([1, 0, 0]))
    losses = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log1p(math.exp(3))]
    assert found["loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["AUROC"] == pytest.approx(0.5)  # of the two negatives one is above the positive
    assert TASKS["binary"]().classes(torch.tensor([[1.0], [0.0]])).tolist() == [1, 0]  # type: ignore[union-attr]


def test_multilabel() -> None:
    answer = torch.tensor([[2.0, -1.0], [1.0, 2.0], [0.0, 1.0]])
    found = _found("multilabel", answer, torch.tensor([[1, 0], [0, 0], [1, 1]]))
    # label 0, best first: yes, no, yes: (1 + 2/3) / 2; label 1: no, yes, no: 1/2
    assert found["mAP"] == pytest.approx((5 / 6 + 1 / 2) / 2, rel=1e-5)


def test_regression() -> None:
    found = _found("regression", torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([1.0, 3.0, 3.0]))
    assert found["loss"] == pytest.approx(5 / 3)
    assert found["RMSE"] == pytest.approx(math.sqrt(5 / 3))
    assert found["MAE"] == pytest.approx(1.0)
    assert not tasks.create("regression").higher_is_better
    one = tasks.create("regression", loss="l1").loss(torch.tensor([[1.0], [5.0]]), torch.tensor([2.0, 2.0]))
    assert float(one) == 2.0


def test_segmentation_leaves_out_what_has_no_class() -> None:
    answer = torch.zeros(3, 2, 1, 4)
    answer[:, 1, :, :2] = 4.0  # the left half is of class 1
    masks = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 0, 255]], [[255, 255, 255, 255]]])
    found = _found("segmentation", answer, masks)
    # class 0: pixels 2 and 3 of the first, 2 of the second: 3 of 4; class 1: 3 right of 4
    assert found["mIoU"] == pytest.approx(3 / 4)
    assert found["pixel accuracy"] == pytest.approx(6 / 7)
    right, wrong, even = math.log1p(math.exp(-4)), math.log1p(math.exp(4)), math.log(2)
    first, second = (right + wrong + 2 * even) / 4, (2 * right + even) / 3
    assert found["loss"] == pytest.approx((first + second) / 3, rel=1e-5)
    with pytest.raises(DataError, match="ignore_index"):
        _found("segmentation", answer, masks, ignore_index=254)
    with pytest.raises(ModelError, match="at every pixel"):
        tasks.create("segmentation").check(torch.zeros(3, 2, 2, 2), masks)


def test_parts_of_a_batch_add_up() -> None:
    """The mean over samples, so that micro-batches and processes give the gradient of the whole batch."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (4, 5, 5), generator=generator)
    masks[0, :4] = 255
    cases = {
        "segmentation": (torch.randn(4, 3, 5, 5, generator=generator), masks),
        "regression": (torch.randn(4, 2, generator=generator), torch.randn(4, 2, generator=generator)),
        "multilabel": (torch.randn(4, 3, generator=generator), torch.randint(0, 2, (4, 3), generator=generator)),
    }
    for name, (answer, targets) in cases.items():
        task = tasks.create(name)
        assert task.adds_up
        whole = task.loss(answer, targets)
        parts = (task.loss(answer[:1], targets[:1]) + 3 * task.loss(answer[1:], targets[1:])) / 4
        torch.testing.assert_close(parts, whole)


def test_super_resolution() -> None:
    targets = torch.zeros(3, 1, 8, 8)
    answer = targets + torch.tensor([0.1, 0.1, 0.01])[:, None, None, None]
    found = _found("super_resolution", answer, targets)
    assert found["PSNR"] == pytest.approx((20 + 20 + 40) / 3, rel=1e-4)  # a mean over images
    assert found["loss"] == pytest.approx(0.07, rel=1e-5)
    assert tasks.create("super_resolution").shown(31.0) == "31.00 dB"


def test_metric_learning() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.3]])
    classes = torch.tensor([0, 0, 1, 1, 1])
    found = _found("metric_learning", rows, classes)
    assert found["recall@1"] == pytest.approx(4 / 5)  # the last lies with the others' class
    task = tasks.create("metric_learning", temperature=1.0)
    pair = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # two friends at cosine 1 beside one at 0, and one alone
    expected = 2 * (math.log(math.e + 1) - 1) / 3
    assert float(task.loss(pair, torch.tensor([0, 0, 1]))) == pytest.approx(expected, rel=1e-6)
    assert not task.adds_up


class Boxes(nn.Module):
    """A detector that finds the same box everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: list[torch.Tensor], targets: Any = None) -> Any:
        seen = self.norm(torch.stack(images))
        if self.training:
            return {"boxes": self.scale * 2, "classes": self.scale + 0 * seen.sum()}
        box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        return [{"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.9])} for _ in images]


def test_detection() -> None:
    pytest.importorskip("faster_coco_eval")
    task, model = tasks.create("detection"), Boxes()
    images = [torch.rand(3, 8, 8), torch.rand(3, 8, 8)]
    there = {"boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0]]), "labels": torch.tensor([1])}
    apart = {"boxes": torch.tensor([[4.0, 4.0, 8.0, 8.0]]), "labels": torch.tensor([1])}
    inputs, targets = task.batch((images, (there, there)))
    assert float(task.loss(task.answer(model, inputs, targets), targets)) == 3.0
    before = model.norm.running_mean.clone()  # type: ignore[union-attr]
    found = task.evaluate(model, [(images, (there, there))])
    assert found["loss"] == 3.0
    assert task.headline == "mAP"
    assert found["mAP"] == pytest.approx(1.0)
    assert task.evaluate(model, [(images, (apart, apart))])["mAP"] == 0.0
    assert torch.equal(before, model.norm.running_mean)  # type: ignore[arg-type]
    assert model.training
    with pytest.raises(ModelError, match="dict of losses"):
        task.loss({"boxes": torch.zeros(2)}, targets)


def test_detection_without_its_package_goes_by_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    task = tasks.create("detection")
    assert (task.headline, task.higher_is_better) == ("loss", False)
    assert "faster-coco-eval" in task.notes[0]


@pytest.mark.parametrize("name", ["binary", "multilabel", "regression", "super_resolution"])
def test_more_targets_than_answers_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="as many targets"):
        tasks.create(name).check(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("name", ["binary", "multilabel"])
def test_targets_beyond_yes_and_no_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="0 for no"):
        tasks.create(name).check(torch.zeros(2, 3), torch.full((2, 3), 2))


@pytest.mark.parametrize("name", ["segmentation", "binary", "regression", "super_resolution", "metric_learning"])
def test_a_teacher_is_followed(name: str) -> None:
    """The loss falls towards the teacher's answer."""
    generator = torch.Generator().manual_seed(0)
    taught, other = torch.randn(2, 2, 3, 4, 4, generator=generator)
    if name == "metric_learning":
        taught, other = taught.flatten(1), other.flatten(1)
    task = tasks.create(name)
    assert float(task.distilled(taught, taught, 2.0)) < float(task.distilled(other, taught, 2.0))
