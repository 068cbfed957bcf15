"""Optimisers and schedules by name: what is found, what is refused and in which words."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from secateur.errors import ConfigError
from secateur.recipe import Recipe

RECIPE = "name: a\nmodel: zoo:tiny\ndata: digits\nmethod: l1\nbudget: flops=0.5\ntrain: {epochs: 10, lr: 0.1, %s}\n"


def _train(text: str) -> Any:
    return Recipe.parse(RECIPE % text).train


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimiser: RMSPop", "train: 'RMSPop' is no optimiser of PyTorch or timm: did you mean 'RMSprop'?"),
        ("optimiser: zzzz", "choose one of ASGD"),
        ("optimiser: {name: RMSprop, alhpa: 0.9}", "RMSprop takes no argument 'alhpa': did you mean 'alpha'? It takes"),
        ("optimiser: {name: RMSprop, alpha: -1}", "optimiser RMSprop cannot be made so (Invalid alpha value: -1)"),
        ("optimiser: {name: RMSprop, lr: 0.1}", "lr is a key of the stage: put it beside optimiser"),
        ("optimiser: {name: Adam, weight_decay: 0.1}", "weight_decay is a key of the stage"),
        ("optimiser: {name: SGD, momentum: 0.1}", "did you mean 'sgd'? Its arguments stand beside optimiser"),
        ("optimiser: {alpha: 1}", "give one of sgd, adamw, or a class by its name"),
        ("optimiser: 3", "train.optimiser: 3 is none"),
        ("optimiser: LBFGS", "optimiser LBFGS computes the loss several times in a step"),
        ("optimiser: Muon", "Muon only supports 2D parameters"),
        ("optimiser: Rprop, weight_decay: 0.1", "weight_decay does nothing with optimiser Rprop"),
        ("optimiser: Adam, momentum: 0.8", "momentum does nothing with optimiser Adam"),
        ("schedule: StepLRR", "'StepLRR' is no schedule of PyTorch or timm: did you mean 'StepLR'?"),
        ("schedule: StepLR", "missing 1 required positional argument: 'step_size'"),
        ("schedule: {name: StepLR, stepsize: 3}", "takes no argument 'stepsize': did you mean 'step_size'?"),
        (
            "schedule: {name: StepLR, step_size: 3, per: week}",
            "per 'week' of schedule StepLR is neither epoch nor step",
        ),
        ("schedule: {name: ExponentialLR, gamma: -1.0}", "gives the rate -0.1 in epoch 2"),
        ("schedule: {name: OneCycleLR, total_steps: 5}", "ends after epoch 6 of 10"),
        ("schedule: {name: OneCycleLR, cycle_momentum: true}", "takes no argument 'cycle_momentum'"),
        ("schedule: ReduceLROnPlateau", "follows a measure of the run"),
        ("schedule: {name: LambdaLR, lr_lambda: x}", "needs a function"),
        ("schedule: SequentialLR", "needs other schedules"),
        ("schedule: {name: StepLR, step_size: 3}, gamma: 0.5", "gamma does nothing with schedule StepLR"),
    ],
)
def test_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        _train(text)
    sentence = str(refusal.value)
    assert said in sentence
    assert sentence.startswith("train")
    assert "\n" not in sentence


def test_what_is_named_is_written_and_read_back() -> None:
    text = "optimiser: {name: NAdam, betas: [0.8, 0.9]}, schedule: {name: StepLR, step_size: 4, per: step}"
    recipe = Recipe.parse(RECIPE % text)
    assert Recipe.parse(recipe.to_yaml()) == recipe
    assert recipe != Recipe.parse(RECIPE % text.replace("0.9", "0.95"))
    assert recipe.changed(["train.optimiser=sgd"]).train.optimiser == "sgd"
    assert _train("optimiser: {name: adamw}").optimiser == "adamw"  # today's spelling, however it is written
    assert recipe.changed(["train.optimiser.name=RAdam"]).train.optimiser.name == "RAdam"


def test_timms_are_found_where_timm_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    assert _train("optimiser: Lamb, schedule: {name: CosineLRScheduler, warmup_t: 2}").optimiser.name == "Lamb"
    assert _train("optimiser: timm:Adafactor").optimiser.name == "timm:Adafactor"
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(ConfigError, match=r"'Lamb' is no optimiser of PyTorch or timm \(timm cannot be imported"):
        _train("optimiser: Lamb")


def test_a_recipe_without_them_imports_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.lr_scheduler, "StepLR", None)
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    assert _train("optimiser: sgd, schedule: cosine").optimiser == "sgd"
