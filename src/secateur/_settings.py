"""Pydantic models as people meet them: a wrong value is one sentence, a right one a row of the documentation."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from secateur._hints import nearest
from secateur.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A part of a recipe: frozen, every key known, no value converted in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Setting:
    """One key: its full path, what it may be, its default as text ("" where it must be given), what it means."""

    path: str
    allowed: str
    default: str
    meaning: str


def validated(kind: type[Model], data: Mapping[str, Any], where: str = "") -> Model:
    """Return a `kind` made of `data`; ConfigError in one sentence if it cannot be.

    where: path of the section that `data` is, such as "method".
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_sentence(kind, error, where)) from None


def settings(kind: type[BaseModel], where: str = "") -> Iterator[Setting]:
    """Yield one row for every key of `kind` and of the sections in it, in their order."""
    for name, field in kind.model_fields.items():
        path = f"{where}.{name}" if where else name
        inner = section(field.annotation)
        default = "" if field.is_required() else shown(field.get_default(call_default_factory=True))
        if inner is not None and isinstance(field.default, BaseModel):
            default = "(see below)"
        yield Setting(path, allowed(field), default, field.description or "")
        if inner is not None:
            yield from settings(inner, path)


def allowed(field: FieldInfo) -> str:
    """Say what a field may be: 'a number above 0, at most 1', 'one of last, best', 'a whole number or null'."""
    found = {}
    for constraint in field.metadata:
        for attribute in ("gt", "ge", "lt", "le"):
            value = getattr(constraint, attribute, None)
            if value is not None:
                found[attribute] = shown(value)
    return _kind(field.annotation, _bounds(found))


def _bounds(found: Mapping[str, str]) -> str:
    upper = f"below {found['lt']}" if "lt" in found else f"at most {found['le']}" if "le" in found else ""
    if "ge" in found and upper:
        return f"from {found['ge']} to {upper.removeprefix('at most ')}"
    lower = f"of at least {found['ge']}" if "ge" in found else f"above {found['gt']}" if "gt" in found else ""
    return ", ".join(part for part in (lower, upper) if part)


def section(annotation: Any) -> type[BaseModel] | None:
    """The model class an annotation holds, through Optional."""
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def shown(value: Any) -> str:
    """A value as a recipe would write it, cut short if long."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case int():
            text = str(value) if abs(value) < 1 << 64 else "a huge number"  # Python refuses to print the hugest
        case list() | tuple():
            text = f"[{', '.join(map(shown, value[:20]))}]"
        case Mapping():
            text = f"{{{', '.join(f'{key}: {shown(inner)}' for key, inner in list(value.items())[:20])}}}"
        case float() | str():
            text = repr(value)
        case _:
            text = type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


# ---------------------------------------------------------------------------------------------------------- sentences


def _sentence(kind: type[BaseModel], failed: ValidationError, where: str) -> str:
    errors = failed.errors(include_url=False)
    # a misspelt key explains why another is missing, so it is told first
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = [part for part in error["loc"] if isinstance(part, str)]
    owner, field = _find(kind, location)
    path = ".".join([*([where] if where else []), *location])
    given = error["input"]
    if error["type"] == "extra_forbidden":
        return _unknown(owner, path)
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        meaning = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
        return f"The key {path!r} is missing: give {allowed(field) if field is not None else 'it'}{meaning}."
    if error["type"] in ("value_error", "assertion_error"):
        said = str(error.get("ctx", {}).get("error", "")) or error["msg"]
        end = "" if said.endswith("?") else "."
        return f"{path + ': ' if path else ''}{said.rstrip('.')}{end}"
    if field is None:
        return f"{path or 'The recipe'} is {shown(given)}, but must be a section of keys and values."
    choices = [c for part in _parts(field.annotation) if get_origin(part) is Literal for c in get_args(part)]
    close = nearest(given, [c for c in choices if isinstance(c, str)]) if isinstance(given, str) else []
    hint = f"; did you mean {close[0]!r}?" if close else "."
    holds = "is" if len(location) == len(error["loc"]) else "holds"
    return f"{path} {holds} {shown(given)}, but must be {allowed(field)}{hint}"


def _unknown(owner: type[BaseModel], path: str) -> str:
    above, _, key = path.rpartition(".")
    close = nearest(key, owner.model_fields)
    hint = f"did you mean {(above + '.' if above else '') + close[0]!r}? " if close else ""
    names = ", ".join(owner.model_fields)
    there = f"The keys of {above} are {names}." if above else f"The keys of a recipe are {names}."
    return f"Unknown key {path!r}: {hint}{there if names else f'{above} has no settings.'}"


def _find(kind: type[BaseModel], location: list[str]) -> tuple[type[BaseModel], FieldInfo | None]:
    """The class that holds the last name of `location`, and the field of that name if there is one."""
    owner, field = kind, None
    for depth, name in enumerate(location):
        field = owner.model_fields.get(name)
        inner = _held(field.annotation) if field is not None else None
        if depth + 1 < len(location) and inner is not None:
            owner = inner
    return owner, field


def _held(annotation: Any) -> type[BaseModel] | None:
    """The model class that an annotation holds, alone or in a list."""
    lists = [part for part in _parts(annotation) if get_origin(part) in (list, tuple)]
    found = (section(inner) for part in (annotation, *lists) for inner in (part, *get_args(part)))
    return next((each for each in found if each is not None), None)


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, types.UnionType):
        return (annotation,)
    return tuple(part for argument in get_args(annotation) for part in _parts(argument))


def _inside(origin: Any, arguments: tuple[Any, ...]) -> str:
    """What a list holds: 'words', '3 whole numbers', or the values themselves where there are but some."""
    if arguments and get_origin(arguments[0]) is Literal:
        return ", ".join(map(str, get_args(arguments[0])))
    count = "" if origin is list or Ellipsis in arguments else f"{len(arguments)} "
    return count + (_MANY.get(arguments[0], "values") if arguments else "values")


_SIMPLE: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_MANY: Mapping[Any, str] = {int: "whole numbers", float: "numbers", str: "words"}


def _kind(annotation: Any, bounds: str = "") -> str:
    parts = _parts(annotation)
    words = []
    for part in parts:
        origin, arguments = get_origin(part) or part, get_args(part)
        if part is type(None):
            continue
        if origin is Literal:
            words.append(f"one of {', '.join(map(str, arguments))}")
        elif origin in (list, tuple):
            words.append(f"a list of {_inside(origin, arguments)}")
        elif part in _SIMPLE:
            words.append(f"{_SIMPLE[part]} {bounds}".rstrip())
        else:
            words.append("a section of keys and values")
    return " or ".join([*words, *(["null"] if type(None) in parts else [])])
