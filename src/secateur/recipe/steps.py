"""Optimisers and schedules by name: classes of PyTorch and of timm, found and tried out when a recipe is read."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, Field

from secateur._files import said
from secateur._hints import nearest
from secateur._settings import Section, shown

TIMM = "timm:"
#: What a recipe calls its own, whose arguments are keys of the stage.
OWN: Mapping[str, tuple[str, ...]] = {
    "optimiser": ("sgd", "adamw"),
    "schedule": ("cosine", "step", "constant", "onecycle"),
}
#: Schedules that are no function of the step, or need what a recipe cannot hold, and why.
_NONE: Mapping[str, str] = {
    "ReduceLROnPlateau": "follows a measure of the run",
    "PlateauLRScheduler": "follows a measure of the run",
    "LambdaLR": "needs a function",
    "MultiplicativeLR": "needs a function",
    "ChainedScheduler": "needs other schedules",
    "SequentialLR": "needs other schedules",
}
_WHOLE = ("T_max", "total_steps", "t_initial")  # arguments that are the length of the stage where nothing is said


class Chosen(Section):
    """A class by its name, and its arguments beside it."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(description="Of the class; its arguments stand beside it.")

    @property
    def arguments(self) -> dict[str, Any]:
        """What is given besides the name; YAML's lists as tuples."""
        given = (self.model_extra or {}).items()
        return {key: tuple(value) if isinstance(value, list) else value for key, value in given}


def reader(what: str, example: str) -> Callable[[Any], Any]:
    """What reads one of our `OWN` names, or the name of a class, alone or with arguments."""
    short = OWN[what]

    def read(value: Any) -> Any:
        if isinstance(value, Chosen) or (isinstance(value, str) and value in short):
            return value
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            raise ValueError(
                f"{shown(value)} is none: give one of {', '.join(short)}, or a class by its name with arguments, such "
                f"as {example}"
            )
        if set(given) == {"name"} and given["name"] in short:
            return given["name"]
        if given["name"].casefold() in short:  # the class has other defaults
            raise ValueError(
                f"{shown(given['name'])} is not understood: did you mean {given['name'].casefold()!r}? Its arguments "
                f"stand beside {what}, not in it"
            )
        return Chosen.model_validate(dict(given))

    return read


def optimiser(chosen: Chosen, groups: Iterable[Any], lr: float, weight_decay: float) -> Any:
    """The optimiser that a recipe names, for groups of parameters.

    Raises:
        ValueError: there is no such class, or it does not take these arguments; the end of a sentence.
    """
    import torch

    kind = _found(chosen.name, "optimiser", "optim", torch.optim, torch.optim.Optimizer)
    given = chosen.arguments
    for key in ("lr", "weight_decay"):
        if key in given:
            raise ValueError(f"{key} is a key of the stage: put it beside optimiser, not into it")
    if inspect.signature(kind.step).parameters["closure"].default is inspect.Parameter.empty:
        raise ValueError(
            f"optimiser {chosen.name} computes the loss several times in a step, which a stage does not: choose another"
        )
    own = {"lr": lr, "weight_decay": weight_decay}
    takes = arguments_of(kind, ("params", *own))
    refuse_unknown(chosen, given, takes, "optimiser")
    own = {key: value for key, value in own.items() if key in inspect.signature(kind).parameters}
    return instance(chosen, "optimiser", kind, list(groups), **own, **given)


def takes_decay(chosen: Chosen) -> bool:
    """Whether the optimiser of that name has a weight decay; ValueError as `optimiser`."""
    import torch

    kind = _found(chosen.name, "optimiser", "optim", torch.optim, torch.optim.Optimizer)
    return "weight_decay" in inspect.signature(kind).parameters


def rates(chosen: Chosen, lr: float, epochs: int, steps: int) -> tuple[tuple[float, ...], int]:
    """The learning rates of a stage under the schedule that a recipe names, and for how many steps each holds.

    Args:
        chosen: `per`: step, or epoch if it is not there, is how often the schedule goes on.
        lr: the highest rate. epochs: of the stage. steps: of the optimiser in each.

    Raises:
        ValueError: there is no such class, it does not take these arguments, or gives no rate; the end of a sentence.
    """
    import torch

    given = chosen.arguments
    per = given.pop("per", "epoch")
    if per not in ("epoch", "step"):
        raise ValueError(f"per {shown(per)} of schedule {chosen.name} is neither epoch nor step")
    if chosen.name.removeprefix(TIMM) in _NONE:
        why = _NONE[chosen.name.removeprefix(TIMM)]
        raise ValueError(f"schedule {chosen.name} {why}, which a recipe cannot give: choose another")
    kind = _found(chosen.name, "schedule", "scheduler", torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)
    units = epochs if per == "epoch" else epochs * steps
    takes = arguments_of(kind, ("optimizer", "last_epoch", "verbose", "initialize", "cycle_momentum", "t_in_epochs"))
    refuse_unknown(chosen, given, takes, "schedule")
    usual = dict.fromkeys(_WHOLE, units) | {"max_lr": lr}
    usual = {key: value for key, value in usual.items() if key in takes and key not in given}
    fixed = {"cycle_momentum": False, "t_in_epochs": per == "epoch"}  # only the rate follows a schedule
    fixed = {key: value for key, value in fixed.items() if key in inspect.signature(kind).parameters}
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = instance(chosen, "schedule", kind, dummy, **fixed, **usual, **given)
    of_timm = kind.__module__.startswith("timm.")
    advance = (scheduler.step if per == "epoch" else scheduler.step_update) if of_timm else None
    found = []
    for unit in range(units):
        found.append(float(dummy.param_groups[0]["lr"]))
        if not 0 <= found[-1] < math.inf:
            raise ValueError(f"{chosen.name} gives the rate {found[-1]:g} in {per} {unit + 1}: change its arguments")
        if unit + 1 < units:
            dummy.step()  # of nothing; the scheduler asks for it
            try:
                scheduler.step() if advance is None else advance(unit + 1)
            except Exception as error:
                raise ValueError(f"{chosen.name} ends after {per} {unit + 1} of {units} ({said(error)})") from error
    return tuple(found), steps if per == "epoch" else 1


# ------------------------------------------------------------------------------------------------------------- finding


def _found(name: str, what: str, room: str, torch_room: Any, base: type) -> Any:
    """The class of that name: PyTorch's, or timm's where PyTorch has none or `timm:` is before it."""
    own = name.removeprefix(TIMM)
    known = _classes(torch_room, base)
    if name == own and own in known:
        return known[own]
    try:
        others = _classes(importlib.import_module(f"timm.{room}"), None)
        missing = ""
    except (ImportError, RuntimeError) as error:  # the second: compiled parts that do not load
        others, missing = {}, f" (timm cannot be imported: {said(error)})"
    if own in others:
        return others[own]
    names = [*OWN[what], *known, *(n for n in others if n not in known)]
    close = nearest(own, names)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(names))}"
    raise ValueError(f"{shown(name)} is no {what} of PyTorch or timm{missing}: {hint}")


def _classes(room: Any, base: type | None) -> dict[str, Any]:
    """Those of a library's module that are made from parameters, or from an optimiser."""
    found = {}
    for name, value in vars(room).items():
        own = inspect.isclass(value) and value.__module__.split(".")[0] == room.__name__.split(".")[0]
        if not own or name.startswith("_") or name in _NONE or (base is not None and not issubclass(value, base)):
            continue
        first = next(iter(inspect.signature(value).parameters), "")
        if first in ("params", "optimizer") and value is not base:
            found[name] = value
    return found


def arguments_of(kind: Any, without: tuple[str, ...]) -> list[str]:
    usual = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [n for n, p in inspect.signature(kind).parameters.items() if p.kind in usual and n not in without]


def refuse_unknown(chosen: Chosen, given: Mapping[str, Any], takes: list[str], what: str) -> None:
    for key in given:
        if key not in takes:
            close = nearest(key, takes)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"{what} {chosen.name} takes no argument {key!r}: {hint}It takes {', '.join(takes)}")


def instance(chosen: Chosen, what: str, kind: Any, *first: Any, **arguments: Any) -> Any:
    try:
        return kind(*first, **arguments)
    except Exception as error:  # whatever a class of somebody else says of its arguments
        reason = said(error).replace(f"{kind.__name__}.__init__() ", "")
        raise ValueError(f"{what} {chosen.name} cannot be made so ({reason}): change its arguments") from error
