"""A callback for the Trainer of Hugging Face transformers, with which a method that acts while training does so there.

    class Classifier(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, pixel_values, labels=None):
            logits = self.network(pixel_values)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    pruner = secateur.methods.create("bwcp", network, inputs, budget="flops=0.5", steps=steps)
    callback = PruningTrainerCallback()
    Trainer(Classifier(pruner), arguments, train_dataset=data, callbacks=[callback]).train()
    callback.network

The Trainer clips gradients before the method sees them, unless max_grad_norm is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from secateur._files import read_json, write_json
from secateur.errors import ConfigError
from secateur.integrations._pruners import added, pruner_in
from secateur.methods import Method

_STATE = "secateur.json"  # beside what the Trainer keeps in a checkpoint


class PruningTrainerCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Calls a pruner where a training loop would, keeps its state in checkpoints, and cuts the network at the end.

    The pruner stands in the model in place of the network. After `train`, `network` is the narrow network and
    `method.result` the proof.

    labels: the argument of the model's forward that holds the target.
    """

    def __init__(self, *, labels: str = "labels") -> None:
        self.labels = labels
        self.method: Method | None = None
        self.network: nn.Module | None = None
        self._model: nn.Module | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Find the pruner, take its place in the model's forward, and go on from a checkpoint."""
        model: nn.Module = keywords["model"]
        method = self.method = pruner_in(model, "PruningTrainerCallback")
        if state.global_step:
            noted = read_json(self._place(args, state), what="The pruner's state", error=ConfigError)
            method.load_state(noted)
        self._model = model
        model.__dict__["forward"] = _with_loss(model.forward, method, self.labels)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Gradients of one of several batches of a step are there."""
        self._at_work.after_backward()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Gradients of the last batch of a step are there."""
        self._at_work.after_backward()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Follow an optimiser step."""
        self._at_work.after_step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Follow an epoch."""
        self._at_work.after_epoch()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep what is not a tensor of the model."""
        if state.is_world_process_zero:
            write_json(self._place(args, state), self._at_work.state(), what="The pruner's state")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the model's forward back, cut and verify."""
        assert self._model is not None
        self._model.__dict__.pop("forward", None)
        self.network = self._at_work.finish()

    def _place(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / _STATE

    @property
    def _at_work(self) -> Method:
        if self.method is None:
            raise ConfigError("PruningTrainerCallback has seen no model yet: give it to a Trainer and call train.")
        return self.method


def _with_loss(forward: Callable[..., Any], method: Method, labels: str) -> Callable[..., Any]:
    """`forward` that tells the method of targets and answers, and whose loss has the method's added, in training."""

    @wraps(forward)
    def told(*args: Any, **keywords: Any) -> Any:
        if not method.training:
            return forward(*args, **keywords)
        if labels not in keywords:
            raise ConfigError(
                f"The model is called without {labels!r}, which the method may learn from: name the argument that "
                "holds the target with PruningTrainerCallback(labels=...)."
            )
        answers: list[Any] = []
        method.before_forward(keywords[labels])
        hook = method.register_forward_hook(lambda _module, _args, output: answers.append(output))
        try:
            output = forward(*args, **keywords)
        finally:
            hook.remove()
        if answers:
            method.after_forward(answers[-1], keywords[labels])
        if not isinstance(output, Mapping) or not isinstance(output.get("loss"), torch.Tensor):
            raise ConfigError("The model's forward returns no dict with a loss, to which the method's could be added.")
        output["loss"] = output["loss"] + added(method)  # type: ignore[index]
        return output

    return told
