"""Networks as the command line and recipes name them: a reference, perhaps with weights and a plan, or the folder of a
run, or of a network that was saved, here or on the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur import references
from secateur.errors import ConfigError, WeightsError
from secateur.plan import Plan
from secateur.references import Loaded
from secateur.runtime.folder import PLAN, WEIGHTS, Folder, can_build
from secateur.runtime.hub import fetch, is_on_hub
from secateur.runtime.inputs import Signature
from secateur.runtime.loading import load
from secateur.runtime.stored import Stored
from secateur.runtime.weights import read_weights
from secateur.surgery import apply

_DENSE = "checkpoints/dense.safetensors"  # of a run; timing does without


@dataclass(frozen=True)
class Named(Loaded):
    """A network and what to call it; `origin` is the reference of the network it was cut from, with `arguments`.

    Where it was cut, `before` is the network it was. `trained` says whether its weights are of a file.
    """

    origin: str = ""
    before: Named | None = None
    trained: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wish:
    """What else the user said of a network: all but the name.

    ema: the moving average in the file of weights is meant. trust: the Python code that a folder names may be imported.
    """

    arguments: Sequence[str] | Mapping[str, Any] = ()
    input_size: str | None = None
    shapes: Sequence[str | Sequence[int]] = ()
    weights: Path | None = None
    plan: Path | None = None
    seed: int = 0
    ema: bool = False
    trust: bool = False
    inputs: Any = None  # example inputs that are known


def network(name: str, wish: Wish = Wish(), *, dense: str | None = None) -> Named:
    """The network of a name.

    Args:
        name: a reference (`secateur.references`), or a folder that `secateur run` or `save_model` wrote, or hf:org/name
            on the Hub; then it is its narrow network.
        dense: what the user calls its dense network; a folder whose reference is that very Python file is narrowed
            from it.

    Raises:
        SecateurError: one sentence; also where the wish does not fit a folder, which has all of that already.
    """
    path = Path(name)
    if is_on_hub(name):
        if wish.trust:
            raise ConfigError(f"--trust is for folders of your own, and {name} is on the Hub: leave it out.")
        return replace(_of_folder(str(fetch(name)), wish, None), reference=name)
    if name and path.is_dir():
        return _of_folder(name, wish, dense)
    if path.is_file() and path.suffix != ".py":
        raise ConfigError(
            f"{name!r} is a file: give the folder of the run it lies in, or the network's reference, such as "
            f"torchvision:resnet18 or net.py:factory, with --weights {name}."
        )
    if wish.ema and wish.weights is None:
        raise ConfigError(
            "The moving average is asked for, and there is no file of weights: name one, or leave it out."
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
    elif Path(subject.reference).is_dir():
        found = network(name, Wish(wish.arguments, shapes=subject.shapes, seed=wish.seed))
    else:
        found = network(name, Wish(wish.arguments, wish.input_size, seed=wish.seed))
    sizes = [[shape[1:] for shape in each.shapes] for each in (subject, found)]
    if sizes[0] != sizes[1]:
        said = [" and ".join("x".join(map(str, size)) for size in of) for of in sizes]
        raise ConfigError(
            f"{subject.reference} is called with {said[0]} and {found.reference} with {said[1]}: give both the same "
            "--input-size."
        )
    return found


def _of_folder(name: str, wish: Wish, dense: str | None) -> Named:
    given = {"--plan": wish.plan, "--input-size": wish.input_size, "--model-arg": wish.arguments or None}
    for option, value in given.items():
        if value is not None and (option != "--model-arg" or dense is None):
            raise ConfigError(f"{name!r} is a folder, which has all that is its network's: leave {option} out.")
    run = Folder.open(name)
    run.check_files([WEIGHTS, PLAN])
    saved, plan = run.saved()
    signature = _resized(saved.inputs, wish.shapes)
    inputs, shapes, before = signature.make(), signature.shapes, None
    if dense == saved.reference or can_build(saved.reference, trust=wish.trust):
        original = run.original(_called(saved, wish), trust=True)
        if run.has(_DENSE):
            read_weights(original, run.path / _DENSE)
        before = Named(saved.reference, original, inputs, shapes, saved.arguments, saved.reference)
        model = run.narrowed(original, saved, plan).model
    else:
        model = load(name)
    notes = read_weights(model, wish.weights, ema=wish.ema) if wish.weights is not None else ()
    return Named(name, model, inputs, shapes, saved.arguments, saved.reference, before, trained=True, notes=notes)


def _called(saved: Stored, wish: Wish) -> Stored:
    """With the arguments that the user gives the dense network's factory, if any."""
    if not wish.arguments:
        return saved
    return replace(saved, arguments=references.keywords_of(wish.arguments))


def _resized(signature: Signature, shapes: Sequence[str | Sequence[int]]) -> Signature:
    """For inputs of these shapes, where they are given and the network is called with as many tensors."""
    if len(shapes) != len(signature.shapes):
        return signature
    return replace(signature, shapes=tuple(tuple(references.shape_of(shape)) for shape in shapes))


def _of_reference(name: str, wish: Wish) -> Named:
    given = {"input_size": wish.input_size, "input_shapes": wish.shapes, "inputs": wish.inputs}
    loaded = references.load(name, arguments=wish.arguments, seed=wish.seed, **given)
    model, trained = loaded.model, wish.weights is not None
    dense = Named(name, model, loaded.inputs, loaded.shapes, loaded.arguments, name, trained=trained)
    if wish.plan is None:
        notes = read_weights(model, wish.weights, ema=wish.ema) if wish.weights is not None else ()
        return replace(dense, notes=notes)
    plan = Plan.load(wish.plan)
    misfit, notes = None, ()
    if wish.weights is not None:
        try:
            notes = read_weights(model, wish.weights, ema=wish.ema)
        except WeightsError as error:  # they may well be those of the narrow network
            misfit = error
    narrow = apply(model, loaded.inputs, plan, verify=False).model
    if misfit is not None and wish.weights is not None:
        try:
            notes = read_weights(narrow, wish.weights, ema=wish.ema)
        except WeightsError:
            raise misfit from None
    return replace(dense, reference=f"{name} cut by {wish.plan}", model=narrow, before=dense, notes=notes)
