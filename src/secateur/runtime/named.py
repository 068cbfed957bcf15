"""Networks as the command line names them: a reference, perhaps with weights and a plan, or the folder of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur import references
from secateur.errors import ConfigError, WeightsError
from secateur.plan import Plan
from secateur.runtime.folder import PLAN, WEIGHTS, Folder, is_library, load
from secateur.runtime.weights import read_weights
from secateur.surgery import apply

_DENSE = "checkpoints/dense.safetensors"  # of a run; timing does without


@dataclass(frozen=True)
class Named:
    """A network, what it is called with, and what to call it; where it was cut, `before` is the network it was."""

    name: str
    model: nn.Module
    inputs: Any
    shapes: tuple[tuple[int, ...], ...]
    before: Named | None = None


@dataclass(frozen=True)
class Wish:
    """What else the user said of a network: all but the name."""

    arguments: Sequence[str] = ()
    input_size: str | None = None
    shapes: Sequence[Sequence[int]] = ()
    weights: Path | None = None
    plan: Path | None = None
    seed: int = 0


def network(name: str, wish: Wish = Wish(), *, dense: str | None = None) -> Named:
    """The network of a name.

    Args:
        name: a reference (`secateur.references`), or a folder that `secateur run` or `save_model` wrote; then it is its
            narrow network. dense: what the user calls its dense network; a folder whose reference is that very Python
            file is narrowed from it.

    Raises:
        SecateurError: one sentence; also where the wish does not fit a folder, which has all of that already.
    """
    path = Path(name)
    if path.is_dir():
        return _of_folder(name, wish, dense)
    if path.is_file():
        raise ConfigError(
            f"{name!r} is a file: give the folder of the run it lies in, or the network's reference with --weights "
            "and --plan."
        )
    return _of_reference(name, wish)


def opponent(name: str, subject: Named, wish: Wish) -> Named:
    """The network to compare `subject` with, called as it is.

    Args:
        wish: what was said of `subject`; arguments and sizes hold for both, but a folder knows its own.

    Raises:
        SecateurError: as `network`; ConfigError if the two are called with inputs of other sizes, but for the batch.
    """
    if Path(name).is_dir():
        found = network(name, Wish(seed=wish.seed))
    elif Path(subject.name).is_dir():
        found = network(name, Wish(wish.arguments, shapes=subject.shapes, seed=wish.seed))
    else:
        found = network(name, Wish(wish.arguments, wish.input_size, seed=wish.seed))
    sizes = [[shape[1:] for shape in each.shapes] for each in (subject, found)]
    if sizes[0] != sizes[1]:
        said = [" and ".join("x".join(map(str, size)) for size in of) for of in sizes]
        raise ConfigError(
            f"{subject.name} is called with {said[0]} and {found.name} with {said[1]}: give both the same --input-size."
        )
    return found


def _of_folder(name: str, wish: Wish, dense: str | None) -> Named:
    given = {"--weights": wish.weights, "--plan": wish.plan, "--input-size": wish.input_size}
    for option, value in {**given, "--model-arg": wish.arguments or None}.items():
        if value is not None and (option != "--model-arg" or dense is None):
            raise ConfigError(f"{name!r} is a folder, which has all that is its network's: leave {option} out.")
    run = Folder.open(name)
    run.check_files([WEIGHTS, PLAN])
    saved, plan = run.saved()
    inputs, shapes = saved.inputs.make(), saved.inputs.shapes
    if is_library(saved.reference):
        original = run.original(saved)
        if run.has(_DENSE):
            read_weights(original, run.path / _DENSE)
        before = Named(saved.reference, original, inputs, shapes)
        return Named(name, run.narrowed(original, saved, plan).model, inputs, shapes, before)
    if dense == saved.reference:
        original = references.load(dense, arguments=wish.arguments, input_shapes=shapes).model
        return Named(name, run.narrowed(original, saved, plan).model, inputs, shapes)
    return Named(name, load(name), inputs, shapes)


def _of_reference(name: str, wish: Wish) -> Named:
    loaded = references.load(
        name, arguments=wish.arguments, input_size=wish.input_size, input_shapes=wish.shapes, seed=wish.seed
    )
    dense = Named(name, loaded.model, loaded.inputs, loaded.shapes)
    if wish.plan is None:
        if wish.weights is not None:
            read_weights(loaded.model, wish.weights)
        return dense
    plan = Plan.load(wish.plan)
    misfit = None
    if wish.weights is not None:
        try:
            read_weights(loaded.model, wish.weights)
        except WeightsError as error:  # they may well be those of the narrow network
            misfit = error
    narrow = apply(loaded.model, loaded.inputs, plan, verify=False).model
    if misfit is not None and wish.weights is not None:
        try:
            read_weights(narrow, wish.weights)
        except WeightsError:
            raise misfit from None
    return Named(f"{name} cut by {wish.plan}", narrow, loaded.inputs, loaded.shapes, dense)
