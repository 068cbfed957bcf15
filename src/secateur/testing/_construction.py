"""What holds from the moment a method is made: its row, the model it is given, what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy

from secateur.errors import SecateurError
from secateur.methods.contract import Method, Settings
from secateur.methods.row import Acts, MethodRow, Needs, Outcome
from secateur.testing._promises import Broken, refuses, require, require_finite
from secateur.testing._snapshots import Snapshot
from secateur.testing._subject import Subject

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ARXIV = re.compile(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}")

# ------------------------------------------------------------------------------------------------------------- the row


def row_is_complete(row: MethodRow) -> None:
    """The registry row says everything about the method that lists and documents need"""
    for field in ("name", "summary", "granularity", "fidelity", *(["paper"] if row.year or row.arxiv else [])):
        value = getattr(row, field)
        require(isinstance(value, str) and value.strip(), f"the row's {field} is empty")
        require("\n" not in value, f"the row's {field} is more than one line")
    for field in ("summary", "fidelity"):
        require(not getattr(row, field).endswith("."), f"the row's {field} ends with a full stop, and lists add one")
    require(_NAME.fullmatch(row.name), f"the row's name {row.name!r} is not made of small letters, digits and _")
    if row.paper:
        require(isinstance(row.year, int) and 1980 <= row.year <= 2100, f"the row's year is {row.year!r}")
    require(not row.arxiv or _ARXIV.fullmatch(row.arxiv), f"the row's arxiv {row.arxiv!r} is no number of a preprint")
    require(row.needs in get_args(Needs), f"the row's needs {row.needs!r} is none of {', '.join(get_args(Needs))}")
    require(row.acts in get_args(Acts), f"the row's acts {row.acts!r} is none of {', '.join(get_args(Acts))}")
    outcomes = get_args(Outcome)
    require(row.result in outcomes, f"the row's result {row.result!r} is none of {', '.join(outcomes)}")
    factory: Any = row.factory
    if isinstance(factory, type) and issubclass(factory, Method):
        require(factory.name == row.name, f"the row's name {row.name!r} is not that of its class, {factory.name!r}")
        require(factory.Config is row.config, "the row's settings are not the Config of its class")
    share = row.acting
    require(share is None or 0 < share <= 1, f"the row's acting is {share!r} and no share of the epochs")
    require(share is None or row.acts == "while training", f"the row has acting, and the method acts {row.acts}")
    for variant in row.variants:
        unknown = variant.keys() - row.config.model_fields.keys() - {"budget"}
        require(not unknown, f"the row's variants name {min(unknown, default='')!r}, which is none of its settings")


def settings_are_data(settings: type[Settings]) -> None:
    """Settings are a strict section in which every key has a default and a meaning"""
    require(
        isinstance(settings, type) and issubclass(settings, Settings),
        "its settings are no subclass of secateur.methods.Settings",
    )
    for name, field in settings.model_fields.items():
        require(not field.is_required(), f"the setting {name!r} has no default")
        require(field.description, f"the setting {name!r} has no description")
    config = settings.model_config
    require(
        config.get("extra") == "forbid" and config.get("frozen") and config.get("strict"),
        "its settings are not strict: they must forbid unknown keys, be frozen and convert nothing",
    )
    default = settings()
    try:
        again = settings.model_validate_json(default.model_dump_json())
    except ValidationError as error:
        raise Broken("its default settings, written as JSON, are refused when they are read") from error
    require(again == default, "its default settings, written as JSON, are others when they are read")


# ----------------------------------------------------------------------------------------------------------- the model


def model_keeps_its_parameters(subject: Subject) -> None:
    """The model's parameters keep their names and stay the same objects, from the constructor to the end of training"""
    model = subject.network.make()
    before = Snapshot.of(model)
    method = subject.make(model)
    require(method.model is model, "its `model` is not the module it was given")
    difference = before.other_parameters(model)
    require(difference is None, f"after the constructor {difference}: optimisers made before would be lost")
    owned = {id(p) for p in method.parameters()}
    lost = [name for name, p in model.named_parameters() if id(p) not in owned]
    require(not lost, f"its parameters() lack the model's {lost[0] if lost else ''}")
    free = {id(p) for p in method.undecayed()}
    require(free <= owned, "undecayed() gives parameters that are not among its parameters()")
    require(
        not free & {id(p) for p in model.parameters()},
        "undecayed() gives parameters of the model, which are not its own",
    )
    name = getattr(method, "name", None)
    require(isinstance(name, str) and name, "its class has no `name`")
    trained = subject.trained.model
    shapes = {name: tuple(before.tensors[name].shape) for name in before.identities}
    found = {name: tuple(p.shape) for name, p in trained.named_parameters(remove_duplicate=False)}
    if type(method).narrows:
        wider = [n for n, shape in found.items() if any(a > b for a, b in zip(shape, shapes.get(n, ()), strict=False))]
        require(found.keys() == shapes.keys(), "names of the model's parameters are others after training")
        require(not wider, f"{wider[0] if wider else ''} is wider after training")
        return
    require(found == shapes, "names or shapes of the model's parameters are others after training")


def outputs_keep_their_shape(subject: Subject) -> None:
    """The outputs keep their shape and type, in training and in evaluation"""
    require_outputs(subject, subject.make(), "after the constructor")


def require_outputs(subject: Subject, method: Method, when: str) -> None:
    """Require outputs as the plain network has them."""
    (images, _), plain = next(subject.network.batches(1)), subject.network.make()
    for mode in (True, False):
        wanted = plain.train(mode)(images)
        given = method.train(mode)(images)
        where = f"{when}, in {'training' if mode else 'evaluation'}, the output"
        require(isinstance(given, torch.Tensor), f"{where} is {type(given).__name__}, and the model's is a tensor")
        require(given.shape == wanted.shape, f"{where} is {_size(given)}, and the model's {_size(wanted)}")
        require(given.dtype == wanted.dtype, f"{where} is {given.dtype}, and the model's {wanted.dtype}")
        require_finite(where, given)


def model_is_left_alone(subject: Subject) -> None:
    """A method that does not act while training leaves the model it was given as it was"""
    if subject.trains:
        return
    model = subject.network.make()
    before = Snapshot.of(model)
    generator = torch.get_rng_state()
    method = subject.make(model)
    _untouched(before, model, "the constructor")
    subject.collect(method)
    _untouched(before, model, "collect()")
    method.plan()
    _untouched(before, model, "plan()")
    method.finish()
    _untouched(before, model, "finish()")
    require(bool((torch.get_rng_state() == generator).all()), "it draws from PyTorch's own generator")


def _untouched(before: Snapshot, model: nn.Module, what: str) -> None:
    difference = before.difference(model)
    require(difference is None, f"it acts outside training, but {what} leaves a trace in the model: {difference}")


# ------------------------------------------------------------------------------------------------------------ bad input


def _poisoned(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    return model


#: Options that no method takes: what they are, and the word that the message must contain.
BAD_OPTIONS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("a budget without a number", {"budget": "flops"}, "flops"),
    ("a budget of nothing", {"budget": "flops=0"}, "flops"),
    ("a negative budget", {"budget": {"flops": -0.5}}, "flops"),
    ("a budget that is not a number", {"budget": "flops=nan"}, "nan"),
    ("a budget of an unknown cost", {"budget": "colour=0.5"}, "colour"),
    ("an empty budget", {"budget": ""}, "budget"),
    ("a budget of no known kind", {"budget": 0.5}, "0.5"),
    ("a budget out of reach", {"budget": "flops=1e-7"}, "flops"),
    ("a plan of no steps", {"steps": 0}, "steps"),
    ("a plan of half a step", {"steps": 0.5}, "steps"),
    ("an unknown allocator", {"allocator": "no_such"}, "no_such"),
    ("an unknown normalisation", {"normalise": "no_such"}, "no_such"),
    ("an unknown setting", {"no_such_setting": 1}, "no_such_setting"),
    ("inputs of another shape", {"example_inputs": torch.zeros(2, 7)}, ""),
)

#: Models that no method takes.
BAD_MODELS: tuple[tuple[str, Callable[[Subject], Any]], ...] = (
    ("something that is no module", lambda subject: "a model"),
    ("a model without weights", lambda subject: nn.Flatten()),
    ("a model whose weights are not numbers", lambda subject: _poisoned(subject.network.make())),
)


def bad_input_is_refused(subject: Subject) -> None:
    """What makes no sense is refused with a SecateurError of one sentence, and leaves the model as it was"""
    for what, options, word in BAD_OPTIONS:
        _refused(subject, what, options, word)
    method = subject.make()
    for name in type(method.settings).model_fields:
        _refused(subject, f"the setting {name} with a value of no known kind", {name: object()}, name)
    for what, build in BAD_MODELS:
        model = build(subject)
        refuses(what, lambda model=model: subject.make(model))  # type: ignore[misc]


def _refused(subject: Subject, what: str, options: dict[str, Any], word: str) -> None:
    model = subject.network.make()
    before = Snapshot.of(model)
    refuses(what, lambda: subject.make(model, **options), word)
    difference = before.difference(model)
    require(difference is None, f"{what} is refused, but leaves a trace in the model: {difference}")


def data_are_asked_for(subject: Subject) -> None:
    """A method that needs calibration says so when it has had none, and takes batches that can be read once"""
    method = subject.make()
    if subject.row is None or not subject.needs_data(method):
        return
    refuses("a result without the data it needs", method.finish)

    def without_batches() -> None:
        method.collect(iter(()), cross_entropy)
        method.finish()

    refuses("calibration without a single batch", without_batches)
    subject.collect(method)
    try:
        method.plan()
    except SecateurError as error:
        raise Broken(f"it makes no plan from two batches: {error}") from error


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
