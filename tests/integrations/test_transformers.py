"""The Trainer of transformers with the callback trains as a plain loop does, and refuses what it cannot serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ConfigError
from secateur.methods.bwcp import BWCP
from secateur.testing import NETWORKS

transformers = pytest.importorskip("transformers")

from secateur.integrations.transformers import PruningTrainerCallback  # noqa: E402

NETWORK, EPOCHS, BATCHES = NETWORKS[1], 2, 4


class Classifier(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.network(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class InOrder(transformers.Trainer):
    """The images in their order."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def pruner() -> BWCP:
    return BWCP(NETWORK.make(0), NETWORK.inputs(), budget="flops=0.5", steps=EPOCHS * BATCHES)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(NETWORK.batches(BATCHES))


def train(
    model: nn.Module, folder: Path, callback: PruningTrainerCallback, *, resume: str | None = None, stop: int = -1
) -> None:
    data = [
        {"pixel_values": x, "labels": y} for images, labels in batches() for x, y in zip(images, labels, strict=True)
    ]
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=len(batches()[0][0]),
        max_grad_norm=0.0, report_to=[], save_strategy="epoch", use_cpu=True, disable_tqdm=True, max_steps=stop,
        logging_strategy="no",
    )  # fmt: skip
    InOrder(model, arguments, train_dataset=data, callbacks=[callback], optimizers=(optimiser, schedule)).train(
        resume_from_checkpoint=resume
    )


def plain() -> nn.Module:
    method = pruner()
    optimiser = torch.optim.SGD(method.parameters(), 0.05, momentum=0.9)
    method.train()
    for _ in range(EPOCHS):
        for images, labels in batches():
            method.before_forward(labels)
            output = method(images)
            method.after_forward(output, labels)
            (F.cross_entropy(output, labels) + method.loss()).backward()
            method.after_backward()
            optimiser.step()
            method.after_step()
            optimiser.zero_grad()
        method.after_epoch()
    return method.finish()


def same(a: nn.Module | None, b: nn.Module) -> bool:
    assert a is not None
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_trainer_trains_as_a_plain_loop_does_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    wanted = plain()
    callback = PruningTrainerCallback()
    model = Classifier(pruner())
    train(model, tmp_path, callback)
    assert callback.method is not None
    assert callback.method.result is not None
    assert callback.method.result.verification is not None
    assert same(callback.network, wanted)
    assert "forward" not in model.__dict__
    resumed = PruningTrainerCallback()
    train(Classifier(pruner()), tmp_path, resumed, resume=str(tmp_path / f"checkpoint-{BATCHES}"))
    assert same(resumed.network, wanted)


def test_what_it_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no pruner, and PruningTrainerCallback serves one"):
        train(Classifier(NETWORK.make(0)), tmp_path, PruningTrainerCallback())
    with pytest.raises(ConfigError, match="called without 'target'"):
        train(Classifier(pruner()), tmp_path, PruningTrainerCallback(labels="target"))
