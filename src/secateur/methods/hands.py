"""Whose hands a model is in, what an own loop has called, which parameters weight decay leaves alone.

Below the contract, which every method keeps through these.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from secateur.batches import Batches
from secateur.errors import ConfigError, InputError, ModelError
from secateur.graph.modules import output_tensors, unwrap

Loss = Callable[[Any, Any], torch.Tensor]

#: Models into which a method has inserted something, with the method.
_HANDS: WeakKeyDictionary[nn.Module, ref[Any]] = WeakKeyDictionary()


def require_free(model: nn.Module, name: str) -> None:
    """ModelError for a model that another method has inserted something into."""
    other = _HANDS[model]() if model in _HANDS else None
    if other is not None:
        raise ModelError(
            f"The model is already in use by {other.name!r}, so that {name!r} cannot use it: give it the narrow "
            "network of finish(), or plain(), an ordinary copy of the model as it stands."
        )


def take(model: nn.Module, method: Any) -> None:
    """Note that the model is in the hands of this method, as long as there is one."""
    _HANDS[model] = ref(method)


def inserted(model: nn.Module) -> list[tuple[Any, ...]]:
    """What a method changes when it inserts something: modules, their classes, attributes, hooks and tensors."""
    return [
        (name, type(m), *vars(m), len(m._forward_hooks), len(m._forward_pre_hooks), *m._parameters, *m._buffers)
        for name, m in model.named_modules()
    ]


def reduced(model: nn.Module) -> bool:
    """Whether DistributedDataParallel, which averages gradients over processes, is around a model."""
    wrapper: Any = model
    while not isinstance(wrapper, DistributedDataParallel):
        inner = getattr(wrapper, "_orig_mod", getattr(wrapper, "module", None))
        if unwrap(wrapper) is wrapper or not isinstance(inner, nn.Module):
            return False
        wrapper = inner
    return True


def require_reducer(name: str, *, narrows: bool) -> None:
    """ModelError unless a forward pass in training is one of DistributedDataParallel around the method."""
    if DistributedDataParallel._active_ddp_module is None:
        remedy = "after backward() let every process do all_reduce(p.grad) for its parameters p"
        raise ModelError(
            f"{name} trains the network itself, without the DistributedDataParallel around it, so that every process "
            "would train a network of its own: give the network as it is, and "
            f"{remedy if narrows else f'put DistributedDataParallel(..., find_unused_parameters=True) around {name}'}."
        )


def counting(loss: Callable[[Any], torch.Tensor]) -> Callable[[Any], torch.Tensor]:
    """A method's loss() that counts how often it is asked for."""

    @functools.wraps(loss)
    def counted(self: Any) -> torch.Tensor:
        self._losses += 1
        return loss(self)

    return counted


def checked_steps(steps: Any) -> int:
    """A number of optimiser steps; ConfigError for what is none."""
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ConfigError(f"steps={steps!r} is not a positive whole number: give the number of optimiser steps.")
    return int(steps)


def check_loop(method: Any, *, adds: bool) -> None:
    """ConfigError where a training loop of one's own has left out a call that the method waits for.

    adds: whether the method adds to the loss.
    """
    if method._forwards and not method.step:
        raise ConfigError(
            f"{method.name} saw {method._forwards} forward passes in training and not one step, so that its schedule "
            "never moved: call after_step() after every optimizer.step()."
        )
    if method._steps_seen and not method._forwards:
        raise ConfigError(
            f"{method.name} saw {method._steps_seen} steps and no forward pass in training: call the pruner, "
            "pruner(x), where the loop calls the model, and pruner.train() before it."
        )
    if adds and method._forwards and not method._losses:
        raise ConfigError(
            f"{method.name} adds to the loss, and its loss() was never asked for: train with "
            "criterion(output, target) + pruner.loss()."
        )


def accepts(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments, as far as its signature tells."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # built in, without a signature
        return True
    return True


def check_loss(loss: Any, what: str = "loss") -> None:
    """ConfigError for what is no function of output and target."""
    if isinstance(loss, type):
        raise ConfigError(f"The {what} {loss.__name__} is a class: give an object of it, {loss.__name__}().")
    if not callable(loss) or not accepts(loss, 2):
        usual = ", such as torch.nn.functional.cross_entropy" if what == "loss" else ""
        raise ConfigError(f"{loss!r:.60} is no {what}: give a function of output and target{usual}.")


def computed(loss: Loss, output: Any, target: Any) -> Any:
    """What a loss gives; ConfigError in a sentence where it cannot take such outputs and targets."""
    try:
        return loss(output, target)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The loss cannot be computed of an output {_shaped(output)} and a target {_shaped(target)} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): give one that takes them."
        ) from error


def _shaped(value: Any) -> str:
    """A tensor by its shape, anything else by its kind."""
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"that is a {type(value).__name__}"


def reading(collect: Callable[[Any, Any, Loss], None]) -> Callable[[Any, Any, Loss], None]:
    """A method's collect() that takes batches in any usual form, and asks for labels only when the loss does."""

    @functools.wraps(collect)
    def read(self: Any, batches: Iterable[Any], loss: Loss) -> None:
        def asked(output: Any, target: Any) -> torch.Tensor:
            if target is None:
                raise InputError(
                    f"The method {self.name!r} looks at targets and a batch has none: give pairs (inputs, target)."
                )
            check_loss(loss)
            value: torch.Tensor = computed(loss, output, target)
            if torch.is_grad_enabled():
                _check_value(value, output)
            return value

        shown = Batches(batches, self.example_inputs, keep=False)
        collect(self, iter(shown) if isinstance(batches, Iterator) else shown, asked)

    return read


def restoring(load_state: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """A method's load_state() that refuses what is no state of it."""

    @functools.wraps(load_state)
    def restored(self: Any, state: Any) -> None:
        try:
            load_state(self, state)
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(
                f"This is no state of the method {self.name!r} ({type(error).__name__}: {error}): give what state() of "
                "the same method gave."
            ) from error

    return restored


def _check_value(value: Any, output: Any) -> None:
    """ConfigError where a loss gives nothing that a backward pass could begin at."""
    asks = all(tensor.requires_grad for tensor in output_tensors(output))  # else it may look at what does not
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or (asks and not value.requires_grad):
        raise ConfigError(
            "The loss does not give one number that depends on the model's output: return a scalar tensor."
        )


def without_decay(undecayed: Iterable[nn.Parameter], groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups of an optimiser with these parameters in one of their own, without weight decay.

    groups: as PyTorch's optimisers take them; empty ones are left out.
    """
    apart = {id(parameter) for parameter in undecayed}
    found = [{**group, "params": [p for p in group["params"] if id(p) not in apart]} for group in groups]
    free = [p for group in groups for p in group["params"] if id(p) in apart]
    return [group for group in found if group["params"]] + ([{"params": free, "weight_decay": 0.0}] if free else [])
