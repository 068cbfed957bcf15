"""Lightning with the callback trains as a plain loop does, bit for bit, and refuses what it cannot serve."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ConfigError
from secateur.methods import METHODS, Method, MethodRow
from secateur.methods.bwcp import BWCP
from secateur.testing import NETWORKS

lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from secateur.integrations.lightning import PruningCallback  # noqa: E402

NETWORK = NETWORKS[1]
EPOCHS, BATCHES = 2, 4


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pruner(seed: int = 0, steps: int = EPOCHS * BATCHES) -> BWCP:
    return BWCP(NETWORK.make(seed), NETWORK.inputs(), budget="flops=0.5", steps=steps)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(NETWORK.batches(BATCHES))


class Classifier(lightning.LightningModule):
    """Ordinary; `gives` says in what form training_step returns its loss."""

    def __init__(self, network: nn.Module, gives: str = "tensor") -> None:
        super().__init__()
        self.network, self.gives = network, gives

    def training_step(self, batch: Any, index: int) -> Any:
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        return {"loss": loss, "more": 1} if self.gives == "dict" else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def fit(
    module: Any, epochs: int = EPOCHS, *, ckpt_path: str | None = None, data: Any = None, target: Any = None,
    **options: Any,
) -> PruningCallback:  # fmt: skip
    callback = PruningCallback(target=target)
    settings = {
        "max_epochs": epochs, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = lightning.Trainer(**settings | options, callbacks=[callback])
    trainer.fit(module, torch.utils.data.DataLoader(data or batches(), batch_size=None), ckpt_path=ckpt_path)
    callback.trainer = trainer
    return callback


def plain(method: Method, epochs: int = EPOCHS, accumulate: int = 1) -> nn.Module:
    optimiser = torch.optim.SGD(method.parameters(), 0.05, momentum=0.9)
    method.train()
    for _ in range(epochs):
        for number, (images, labels) in enumerate(batches(), 1):
            method.before_forward(labels)
            output = method(images)
            method.after_forward(output, labels)
            loss = F.cross_entropy(output, labels) + method.loss()
            (loss / accumulate).backward()
            method.after_backward()
            if number % accumulate == 0:
                optimiser.step()
                optimiser.zero_grad()
                method.after_step()
        method.after_epoch()
    return method.finish()


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("gives", ["tensor", "dict"])
def test_it_trains_as_the_plain_loop(gives: str) -> None:
    mine, theirs = pruner(), pruner()
    small = plain(mine)
    module = Classifier(theirs, gives)
    callback = fit(module)
    assert theirs.step == mine.step == EPOCHS * BATCHES
    assert_equal(mine, theirs)
    assert callback.network is not None
    assert_equal(small, callback.network)
    assert theirs.result is not None
    assert 0.4 < theirs.result.reached("flops") <= 0.5
    assert module.network is theirs
    assert "training_step" not in vars(module)
    logged = callback.trainer.callback_metrics
    assert {name: float(logged[f"pruning/{name}"]) for name in theirs.metrics()} == pytest.approx(theirs.metrics())


class Scaled(MixedPrecision):
    """Losses are scaled for the backward pass as in half precision, and computed in single precision."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))

    def forward_context(self) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.mark.parametrize("name", ["group_fisher", "dcpcac"])
def test_a_scale_of_the_loss_is_taken_out_of_what_methods_learn(name: str) -> None:
    """Bit for bit, for a power of two: 1024 would make Fisher information a million times as large."""
    row = next(row for row in METHODS if row.name == name)
    made = []
    for options in ({}, {"plugins": [Scaled()]}):
        method = row.factory(NETWORK.make(0), NETWORK.inputs(), budget="flops=0.5", steps=EPOCHS * BATCHES)
        fit(Classifier(method), **options)
        made.append(method)
    assert made[1].loss_scale == 1024.0
    assert_equal(*made)
    assert made[0].state() == made[1].state()


#: Methods whose search comes after the training, `collect`, are the loop's business.
TRAINED = [row for row in METHODS if row.acts == "while training" and not row.collects]


@pytest.mark.parametrize("row", TRAINED, ids=lambda row: row.name)
def test_every_method_that_acts_while_training(row: MethodRow) -> None:
    mine, theirs = (row.factory(NETWORK.make(), NETWORK.inputs(), budget="flops=0.5", steps=8) for _ in range(2))
    small = plain(mine)
    callback = fit(Classifier(theirs))
    assert_equal(mine, theirs)
    assert callback.network is not None
    assert_equal(small, callback.network)
    assert mine.state() == theirs.state()


def test_the_penalty_is_felt() -> None:
    with_penalty, without = pruner(), pruner()
    without.loss = lambda: 0 * type(without).loss(without)  # type: ignore[method-assign]
    for method in (with_penalty, without):
        method.strength = 1.0
        fit(Classifier(method))
    assert any(not torch.equal(a, b) for a, b in zip(with_penalty.parameters(), without.parameters(), strict=True))


def test_accumulated_gradients() -> None:
    mine, theirs = pruner(steps=4), pruner(steps=4)
    small = plain(mine, accumulate=2)
    callback = fit(Classifier(theirs), accumulate_grad_batches=2)
    assert theirs.step == mine.step == 4
    assert_equal(mine, theirs)
    assert callback.network is not None
    assert_equal(small, callback.network)


def test_mixed_precision() -> None:
    method = pruner()
    callback = fit(Classifier(method), precision="bf16-mixed")
    assert callback.network is not None
    assert all(torch.isfinite(tensor).all() for tensor in callback.network.state_dict().values())


def test_every_method_can_be_trained_with() -> None:
    row = next(row for row in METHODS if row.name == "l1")
    method = row.factory(NETWORK.make(), NETWORK.inputs(), budget="flops=0.5")
    callback = fit(Classifier(method), epochs=1)
    assert callback.network is not None
    assert callback.method is method


def test_methods_that_want_to_know_the_target() -> None:
    class Watching(BWCP):
        def after_forward(self, output: Any, target: Any) -> None:
            assert output.requires_grad
            seen.append((output.shape, target))

        def before_forward(self, target: Any) -> None:
            assert len(told) == len(seen)  # before the forward pass whose answers are seen
            told.append(target)

    class InDicts(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            return super().training_step((batch["x"], batch["y"]), index)

    seen: list[Any] = []
    told: list[Any] = []
    fit(Classifier(Watching(NETWORK.make(), NETWORK.inputs(), budget="flops=0.5", steps=4)), epochs=1)
    assert [shape for shape, _ in seen] == [(8, 5)] * BATCHES
    assert all(torch.equal(target, labels) for (_, target), (_, labels) in zip(seen, batches(), strict=True))

    assert all(torch.equal(target, labels) for target, (_, labels) in zip(told, batches(), strict=True))

    seen.clear()
    told.clear()
    named = [{"x": images, "y": labels} for images, labels in batches()]
    module = InDicts(Watching(NETWORK.make(), NETWORK.inputs(), budget="flops=0.5", steps=4))
    with pytest.raises(ConfigError, match="a batch is dict and not a pair of inputs and target: say where they are"):
        fit(module, epochs=1, data=named)
    fit(module, epochs=1, data=named, target=lambda batch: batch["y"])
    assert all(torch.equal(target, labels) for (_, target), (_, labels) in zip(seen, batches(), strict=True))


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole, first, second = pruner(), pruner(), pruner(seed=9)
    fit(Classifier(whole))
    path = str(tmp_path / "half.ckpt")
    fit(Classifier(first), epochs=1).trainer.save_checkpoint(path)
    callback = fit(Classifier(second), ckpt_path=path)
    assert second.step == whole.step
    assert_equal(whole, second)
    assert whole.state() == second.state()
    assert callback.network is not None


def test_an_error_in_training_leaves_the_module_as_it_was() -> None:
    class Failing(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            raise RuntimeError("on purpose")

    module = Failing(pruner())
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(module)
    assert "training_step" not in vars(module)


def test_a_step_left_out() -> None:
    class Skipping(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            return None if index == 1 else super().training_step(batch, index)

    method = pruner()
    assert fit(Skipping(method)).network is not None


def test_no_pruner_and_two_pruners() -> None:
    with pytest.raises(ConfigError, match="Classifier holds no pruner, and PruningCallback serves one: give it, such"):
        fit(Classifier(NETWORK.make()))
    with pytest.raises(ConfigError, match="holds 2 pruners"):
        fit(Classifier(nn.Sequential(pruner(), pruner())))
    with pytest.raises(ConfigError, match="has seen no LightningModule yet"):
        PruningCallback().on_fit_end(None, None)


def test_manual_optimisation_is_refused() -> None:
    module = Classifier(pruner())
    module.automatic_optimization = False
    with pytest.raises(ConfigError, match="Classifier optimises by itself"):
        fit(module)


def test_layers_that_were_replaced_are_noticed() -> None:
    class Replaced(Classifier):
        def on_fit_start(self) -> None:
            self.network.model.stem[1] = nn.BatchNorm2d(16)

    with pytest.raises(ConfigError, match="Lightning has replaced layers"):
        fit(Replaced(pruner()))


def test_without_lightning_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from secateur.integrations import lightning as adapter

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"lightning is not installed: pip install \"secateur\[lightning\]\""):
        adapter._lightning()
