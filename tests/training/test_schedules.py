"""The learning rate of every step, against PyTorch's schedulers and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from secateur.recipe import Training
from secateur.training import learning_rate

STEPS = 7


def rates(training: Training) -> list[float]:
    return [learning_rate(training, step, STEPS) for step in range(training.epochs * STEPS)]


def pytorch(make: Callable[[torch.optim.Optimizer], Any], total: int) -> list[float]:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler, found = make(optimiser), []
    for _ in range(total):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"schedule": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, 10 * STEPS)),
        ({"schedule": "constant"}, lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0)),
        (
            {"schedule": "step", "milestones": (0.3, 0.8), "gamma": 0.2},
            lambda o: lr_scheduler.MultiStepLR(o, [3 * STEPS, 8 * STEPS], 0.2),
        ),
        ({"schedule": "onecycle"}, lambda o: lr_scheduler.OneCycleLR(o, 0.4, 10 * STEPS, cycle_momentum=False)),
        (
            {"schedule": "onecycle", "warmup": 2.5},
            lambda o: lr_scheduler.OneCycleLR(o, 0.4, 10 * STEPS, pct_start=0.25, cycle_momentum=False),
        ),
    ],
)
def test_as_pytorch(options: dict[str, Any], make: Callable[[torch.optim.Optimizer], Any]) -> None:
    training = Training(epochs=10, lr=0.4, **options)
    assert rates(training) == pytest.approx(pytorch(make, 10 * STEPS), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("warmup", [0.5, 1.0, 2.3])
def test_warm_up_rises_by_the_step(schedule: str, warmup: float) -> None:
    training = Training(epochs=8, lr=0.3, schedule=schedule, warmup=warmup)
    found, rise = rates(training), warmup * STEPS
    for step in range(int(rise) - 1):
        assert found[step] == pytest.approx(0.3 * (step + 1) / rise)
    assert max(found) == pytest.approx(0.3, rel=0.01)
    assert found.index(max(found)) in (int(rise) - 1, int(rise))


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["cosine", "step", "constant", "onecycle"])
def test_the_shortest_stages_have_finite_rates(schedule: str, steps: int, epochs: int) -> None:
    training = Training(epochs=epochs, lr=0.1, schedule=schedule, warmup=0.5)
    assert all(0 <= learning_rate(training, step, steps) <= 0.1 for step in range(epochs * steps))
