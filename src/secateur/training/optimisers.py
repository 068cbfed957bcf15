"""From a stage's settings to PyTorch's optimiser."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from secateur._files import said
from secateur.errors import ConfigError, ModelError, RunError
from secateur.methods.contract import Method
from secateur.methods.hands import without_decay
from secateur.recipe import Training, steps
from secateur.training.packing import pack, unpack


def make_optimiser(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """SGD, AdamW or a class of PyTorch's or timm's over all parameters that are trained.

    Weight decay pulls on every parameter, those of norms and the biases too, as in the papers' code: methods that read
    the scales of batch norm count on it. With `decay_norm: false` parameters of one dimension are left out, and always
    those that a method calls `undecayed`.

    Raises:
        ModelError: there is nothing to train. ConfigError: the class does not take such parameters.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError("The model has no parameters to train: set requires_grad on those that are to be trained.")
    if training.decay_norm:
        groups: list[dict[str, Any]] = [{"params": parameters}]
    else:
        kinds = ([p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1])
        decays = (training.weight_decay, 0.0)
        groups = [{"params": kind, "weight_decay": d} for kind, d in zip(kinds, decays, strict=True) if kind]
    undecayed = [p for part in module.modules() if isinstance(part, Method) for p in part.undecayed()]
    groups = without_decay(undecayed, groups)
    if isinstance(training.optimiser, steps.Chosen):
        try:
            return _of(training, groups)
        except ValueError as error:
            raise ConfigError(f"The model cannot be trained so: {error}.") from error
    if training.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=training.lr, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def check_optimiser(training: Training, stage: str) -> None:
    """See that an optimiser that was brought back from a checkpoint goes on as the one that was saved, bit by bit.

    Raises:
        ConfigError: it does not, or cannot take a step; a run with it could not be resumed.
    """
    if not isinstance(training.optimiser, steps.Chosen):
        return
    name = training.optimiser.name
    with torch.random.fork_rng(devices=[]):
        try:
            kept, whole = _toy(), _toy()
            first = _of(training, whole)
            _steps(first, whole, range(3))
            tensors: dict[str, torch.Tensor] = {}
            state = pack(first.state_dict(), "optimiser", tensors)
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
            _assign(kept, whole)
            second = _of(training, kept)
            second.load_state_dict(unpack(state, tensors))
            _steps(first, whole, range(3, 6))
            _steps(second, kept, range(3, 6))
        except RunError as error:
            raise ConfigError(f"{stage}.optimiser {name} cannot be resumed: {error}") from error
        except Exception as error:  # whatever a class of somebody else raises
            raise ConfigError(
                f"{stage}.optimiser {name} takes no step in a stage ({said(error)}): choose another."
            ) from error
    if not all(torch.equal(a, b) for a, b in zip(kept, whole, strict=True)):
        raise ConfigError(
            f"{stage}.optimiser {name} does not go on as it was from a checkpoint, so that a run with it could not be "
            "resumed: choose another, or other arguments."
        )


def _of(training: Training, groups: list[Any]) -> torch.optim.Optimizer:
    assert isinstance(training.optimiser, steps.Chosen)
    made: torch.optim.Optimizer = steps.optimiser(training.optimiser, groups, training.lr, training.weight_decay)
    return made


def _toy() -> list[torch.nn.Parameter]:
    shapes = ((4, 2, 3, 3), (4,))
    return [nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).reshape(shape)) for shape in shapes]


def _steps(optimiser: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], numbers: range) -> None:
    """Steps with gradients, and a random generator, that depend on their number."""
    for number in numbers:
        torch.manual_seed(number)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape) + parameter.detach()
        optimiser.step()


@torch.no_grad()
def _assign(to: list[torch.nn.Parameter], of: list[torch.nn.Parameter]) -> None:
    for one, other in zip(to, of, strict=True):
        one.copy_(other)
