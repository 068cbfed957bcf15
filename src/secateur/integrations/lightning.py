"""Lightning: any LightningModule whose network is wrapped by a pruner is trained with the method at work.

pruner = secateur.methods.create("bwcp", network, images, budget="flops=0.5", steps=epochs * len(loader))
pruning = PruningCallback()
Trainer(max_epochs=epochs, callbacks=[pruning]).fit(MyLightningModule(pruner), loader)
small = pruning.network
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any

import torch
from torch import nn

from secateur._hints import install
from secateur.errors import ConfigError
from secateur.integrations._pruners import added, pruner_in
from secateur.methods import Method

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _lightning() -> Any:
    """Whichever of Lightning's two packages is in use, or else is installed."""
    for name in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        with suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ConfigError(f"lightning is not installed: {install('lightning')}.")


_Callback: Any = _lightning().Callback


class PruningCallback(_Callback):  # type: ignore[misc]
    """Adds the pruner's loss to that of `training_step`, follows every backward pass, step and epoch, and cuts.

    The pruner is found in the LightningModule, which uses it where it would use the network. What it watches is logged
    as pruning/NAME, and its state is kept in Lightning's checkpoints. After fit, `network` is the narrow network and
    `method.result` the proof; the LightningModule keeps the one that was trained.

    target: where a batch has what the network should answer, for methods that want to know; by default a batch is a
        pair of inputs and target.
    """

    def __init__(self, *, target: Callable[[Any], Any] | None = None) -> None:
        self.target = target
        self.method: Method | None = None
        self.network: nn.Module | None = None
        self._undo: Callable[[], None] = _nothing
        self._layers: list[nn.Module] = []
        self._steps = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find the pruner and take its place in `training_step`."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ConfigError(
                f"{type(pl_module).__name__} optimises by itself (automatic_optimization is False): call the pruner's "
                "loss(), after_backward() and after_step() in its training_step, and finish() at the end."
            )
        method = self.method = pruner_in(pl_module, "PruningCallback")
        self._layers = list(method.model.modules())
        pl_module.training_step = _with_loss(pl_module.training_step, method, self.target or _second)
        self._undo = lambda: pl_module.__dict__.pop("training_step", None)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count optimiser steps, wherever a checkpoint left them."""
        self._steps = trainer.global_step
        method = self._at_work
        if [id(layer) for layer in method.model.modules()] != [id(layer) for layer in self._layers]:
            raise ConfigError(
                "Lightning has replaced layers that the pruner had prepared: leave sync_batchnorm and the like off."
            )

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Gradients of one batch are there; in half precision of a scaled loss."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._at_work.loss_scale = 1.0 if scaler is None else scaler.get_scale()
        self._at_work.after_backward()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Follow an optimiser step, of which there is one for several batches with accumulate_grad_batches."""
        for _step in range(trainer.global_step - self._steps):
            self._at_work.after_step()
        self._steps = trainer.global_step

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Follow an epoch."""
        method = self._at_work
        method.after_epoch()
        pl_module.log_dict({f"pruning/{name}": value for name, value in method.metrics().items()})

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Cut and verify."""
        self.network = self._at_work.finish()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give `training_step` back."""
        self._restore()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give `training_step` back."""
        self._restore()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints; tensors are among the LightningModule's."""
        return {"method": self.method.state()} if self.method is not None else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from there."""
        if "method" in state_dict:
            self._at_work.load_state(state_dict["method"])

    @property
    def _at_work(self) -> Method:
        if self.method is None:
            raise ConfigError("PruningCallback has seen no LightningModule yet: give it to a Trainer and call fit.")
        return self.method

    def _restore(self) -> None:
        self._undo()
        self._undo = _nothing


def _nothing() -> None:
    pass


def _with_loss(training_step: Callable[..., Any], method: Method, target: Callable[[Any], Any]) -> Callable[..., Any]:
    """`training_step` whose loss has the method's added; before Lightning divides, scales and shares it out."""
    told = type(method).before_forward is not Method.before_forward
    watches = type(method).after_forward is not Method.after_forward

    @wraps(training_step)
    def step(*args: Any, **keywords: Any) -> Any:
        answers: list[Any] = []
        if told:
            method.before_forward(target(args[0]))
        hook = method.register_forward_hook(lambda _module, _args, output: answers.append(output))
        try:
            output = training_step(*args, **keywords)
        finally:
            hook.remove()
        if watches and answers:
            method.after_forward(answers[-1], target(args[0]))
        if isinstance(output, torch.Tensor):
            return output + added(method)
        if isinstance(output, Mapping) and isinstance(output.get("loss"), torch.Tensor):
            return {**output, "loss": output["loss"] + added(method)}
        return output  # a step that is left out, or one that Lightning refuses

    return step


def _second(batch: Any) -> Any:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[1]
    raise ConfigError(
        f"The method learns from targets, and a batch is {type(batch).__name__} and not a pair of inputs and target: "
        "say where they are with PruningCallback(target=...), a function of the batch."
    )
