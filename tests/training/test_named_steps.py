"""Optimisers and schedules by name in training: PyTorch's steps and rates, the same bits after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _toy import CPU, make_engine, short, toy_net
from torch.optim import lr_scheduler

from secateur.errors import ConfigError
from secateur.recipe import Training
from secateur.training import learning_rate
from secateur.training.optimisers import check_optimiser, make_optimiser
from secateur.training.stage import Stage

STEPS = 7
OPTIMISERS: dict[str, Any] = {
    "rmsprop": {"name": "RMSprop", "alpha": 0.9, "momentum": 0.5},
    "nadam": {"name": "NAdam", "betas": [0.8, 0.9]},
    "adafactor": "Adafactor",
    "asgd": {"name": "ASGD", "t0": 2},
    "lion": "timm:Lion",
}
SCHEDULES: dict[str, tuple[dict[str, Any] | str, Any, int]] = {
    "restarts": (
        {"name": "CosineAnnealingWarmRestarts", "T_0": 3},
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        STEPS,
    ),
    "cosine": ("CosineAnnealingLR", lambda o: lr_scheduler.CosineAnnealingLR(o, 8), STEPS),
    "polynomial by step": (
        {"name": "PolynomialLR", "total_iters": 40, "power": 2, "per": "step"},
        lambda o: lr_scheduler.PolynomialLR(o, 40, power=2),
        1,
    ),
    "one cycle by step": (
        {"name": "OneCycleLR", "per": "step", "pct_start": 0.4},
        lambda o: lr_scheduler.OneCycleLR(o, 0.4, 8 * STEPS, pct_start=0.4, cycle_momentum=False),
        1,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_pytorchs(name: str) -> None:
    given, make, each = SCHEDULES[name]
    training = Training(epochs=8, lr=0.4, schedule=given)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler, expected = make(optimiser), []
    for step in range(8 * STEPS):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if (step + 1) % each == 0:
            scheduler.step()
    assert [learning_rate(training, step, STEPS) for step in range(8 * STEPS)] == expected
    warm = training.model_copy(update={"warmup": 2.0})
    assert learning_rate(warm, 3, STEPS) == pytest.approx(expected[3] * 4 / 14)
    assert learning_rate(warm, 14, STEPS) == expected[14]


def test_timms_rates_go_on_by_epoch_or_by_step() -> None:
    scheduler = pytest.importorskip("timm.scheduler")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    one = scheduler.CosineLRScheduler(optimiser, t_initial=8, warmup_t=2, warmup_lr_init=0.01)
    expected = [optimiser.param_groups[0]["lr"]]
    for epoch in range(1, 8):
        one.step(epoch)
        expected.append(optimiser.param_groups[0]["lr"])
    given = {"name": "CosineLRScheduler", "warmup_t": 2, "warmup_lr_init": 0.01}
    training = Training(epochs=8, lr=0.4, schedule=given)
    assert [learning_rate(training, epoch * STEPS + 3, STEPS) for epoch in range(8)] == expected
    by_step = Training(epochs=1, lr=0.4, schedule={**given, "per": "step"})
    assert [learning_rate(by_step, step, 8) for step in range(8)] == expected


def test_a_schedule_that_is_too_short_is_refused_before_training() -> None:
    training = Training(epochs=60, lr=0.4, schedule={"name": "OneCycleLR", "per": "step", "total_steps": 100})
    with pytest.raises(ConfigError, match="60 epochs of 5 steps: OneCycleLR ends after step 101 of 300"):
        make_engine().fit("train", toy_net(), training)


def test_steps_are_pytorchs() -> None:
    net = toy_net()
    training = Training(lr=0.02, weight_decay=0.01, decay_norm=False, optimiser=OPTIMISERS["rmsprop"])
    made = make_optimiser(net, training)
    assert type(made) is torch.optim.RMSprop
    assert [(g["lr"], g["alpha"], g["momentum"], g["weight_decay"]) for g in made.param_groups] == [
        (0.02, 0.9, 0.5, 0.01),
        (0.02, 0.9, 0.5, 0.0),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "SparseAdam",
            "train.optimiser SparseAdam takes no step in a stage (SparseAdam does not",
        ),
        ("timm:Adahessian", "takes no step in a stage"),
        (
            "timm:AdafactorBigVision",
            "A checkpoint cannot hold optimiser.param_groups.0.momentum_dtype",
        ),
    ],
)
def test_what_could_not_go_on_is_refused(given: str, said: str) -> None:
    if given.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ConfigError) as refusal:
        check_optimiser(Training(optimiser=given), "train")
    assert said in str(refusal.value)


def test_state_outside_the_state_dict_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(torch.optim.SGD):
        """Steps become larger, and nothing in its state says how large they are."""

        taken = 0

        def step(self, closure: Any = None) -> None:
            self.taken += 1
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.sub_(parameter.grad, alpha=0.01 * self.taken)

    Counting.__module__ = "torch.optim.counting"
    monkeypatch.setattr(torch.optim, "Counting", Counting, raising=False)
    with pytest.raises(ConfigError, match="does not go on as it was from a checkpoint"):
        check_optimiser(Training(optimiser="Counting"), "train")


@pytest.mark.parametrize(
    ("optimiser", "schedule"),
    [("rmsprop", "restarts"), ("nadam", "polynomial by step"), ("adafactor", "one cycle by step"), ("asgd", "cosine")],
)
def test_the_same_bits_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimiser: str, schedule: str
) -> None:
    blends = {"mixup": 0.3, "cutmix": 1.0} if optimiser == "nadam" else {}
    training = short(epochs=3, lr=0.01, optimiser=OPTIMISERS[optimiser], schedule=SCHEDULES[schedule][0], **blends)

    def trained(folder: Path) -> list[torch.Tensor]:
        net = toy_net()
        make_engine(folder, CPU.model_copy(update={"checkpoint_minutes": 1e-9})).fit("train", net, training)
        return list(net.state_dict().values())

    whole = trained(tmp_path / "whole")
    ordinary, taken = Stage._step, 0

    def dying(self: Stage, inputs: Any, targets: Any) -> float:
        nonlocal taken
        taken += 1
        if taken in (4, 11):
            raise OSError("killed")
        return ordinary(self, inputs, targets)

    monkeypatch.setattr(Stage, "_step", dying)
    for _ in range(2):
        with pytest.raises(OSError, match="killed"):
            trained(tmp_path / "part")
    assert taken == 11
    resumed = trained(tmp_path / "part")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
