"""Tasks: what they make of a batch, their loss and their metrics, with numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur import tasks
from secateur.errors import ConfigError, DataError, InputError, ModelError
from secateur.tasks import Task

SCORES = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
LABELS = torch.tensor([0, 1, 1])


class Says(nn.Module):
    """Answers whatever it is asked with the same rows."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer, self.scale = answer, nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer[x.flatten().long()] * self.scale


def _batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = torch.arange(3.0)
    return [(rows[:2, None], LABELS[:2]), (rows[2:, None], LABELS[2:])]


def test_classification_by_hand() -> None:
    task = tasks.create("classification")
    model = Says(SCORES)
    found = task.evaluate(model, _batches())
    loss = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 3
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert task.headline == "accuracy"
    assert task.better(0.9, 0.8)
    assert model.training  # as it was
    assert torch.equal(task.classes(LABELS), LABELS)


def test_a_smoothed_loss_is_of_training_alone() -> None:
    task = tasks.create("classification").smoothed(0.5)
    assert float(task.loss(SCORES[:1], LABELS[:1])) == pytest.approx(math.log(1 + math.exp(-2)) + 0.25 * 2, rel=1e-6)
    assert task.evaluate(Says(SCORES), _batches())["loss"] == pytest.approx(1.162926, rel=1e-5)


@pytest.mark.parametrize(
    ("answer", "labels", "error"),
    [
        (torch.zeros(3, 2, 4), LABELS, ModelError),
        (torch.zeros(2, 2), LABELS, ModelError),
        ({"out": SCORES}, LABELS, ModelError),
        (SCORES, torch.tensor([0, 1, 2]), DataError),
        (SCORES, torch.tensor([0, -1, 1]), DataError),
    ],
)
def test_what_is_no_class_scores_is_refused(answer: object, labels: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        tasks.create("classification").check(answer, labels)


def test_batches_of_usual_forms() -> None:
    task = tasks.create("classification")
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    for batch in ((x, y), [x, y], (x, y, ["names"]), {"image": x, "label": y}, {"pixel_values": x, "y": y}):
        inputs, targets = task.batch(batch)
        assert inputs is x
        assert targets is y
    for batch in (x, (x,), {"image": x}, {"what": x}):
        with pytest.raises(InputError, match="pairs"):
            task.batch(batch)


OWN = """
from secateur.tasks import Task

class Half(Task):
    name = "half"

    def loss(self, answer, targets):
        return (answer - targets).abs().mean()

def made(scale=1.0):
    return Half()

what = 3
"""


def test_tasks_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tasks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    for reference in ("own_tasks.py:Half", "own_tasks:Half", "own_tasks:made"):
        task = tasks.create(reference)
        assert task.name == "half"
        x = torch.arange(3.0)[:, None]
        found = task.evaluate(Says(torch.zeros(3, 1)), [(x, x)])
        assert found == {"loss": 1.0}  # which is its headline
    assert tasks.create(task) is task
    assert tasks.create("own_tasks:made", scale=2.0).name == "half"
    for reference, settings in (("own_tasks:what", {}), ("own_tasks:made", {"way": 1}), ("own_tasks:gone", {})):
        with pytest.raises(ConfigError, match=r"task"):
            tasks.create(reference, **settings)
    with pytest.raises(ConfigError, match="object already"):
        tasks.create(task, way=1)


def test_a_wrong_name_or_setting_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="did you mean 'classification'"):
        tasks.create("clasification")
    with pytest.raises(ConfigError, match=r"task\.smoothing"):
        tasks.create("classification", smoothing=0.1)
    with pytest.raises(ConfigError, match="no data"):
        tasks.create("classification").evaluate(Says(SCORES), [])


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [("share", 0.9412, "94.1%"), ("dB", 31.204, "31.20 dB"), ("number", 0.0123456, "0.01235"), ("share", None, "-")],
)
def test_a_headline_as_people_read_it(unit: str, value: float | None, text: str) -> None:
    assert tasks.shown(value, unit) == text


def test_another_task_refuses_what_is_of_classes() -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        Task().smoothed(0.1)
    with pytest.raises(ConfigError, match="teacher"):
        Task().distilled(SCORES, SCORES, 4.0)
