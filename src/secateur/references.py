"""Model references: from `zoo:NAME`, `torchvision:NAME`, `timm:NAME`, `path/to/file.py:factory` or
`package.module:factory` to a module."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from secateur._hints import install, nearest
from secateur.errors import ConfigError, InputError, ModelError, SecateurError
from secateur.models import MODELS, create

_FORMS = "zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:factory or package.module:factory"
_MOST_ELEMENTS = 1 << 30  # an example input beyond this is a slip of the keyboard, and would fill the memory
_VIDEO, _FLOW = (3, 16, 112, 112), (3, 128, 128)


@dataclass(frozen=True)
class Loaded:
    """A model, the inputs it is traced with, what it was called, and with which arguments its factory was."""

    reference: str
    model: nn.Module
    inputs: Any
    shapes: tuple[tuple[int, ...], ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)


def load(
    reference: str,
    *,
    arguments: Sequence[str] | Mapping[str, Any] = (),
    input_size: str | None = None,
    input_shapes: Sequence[str | Sequence[int]] = (),
    inputs: Any = None,
    seed: int = 0,
) -> Loaded:
    """Build the model a reference names, with random weights made from `seed`, and example inputs for it.

    Args:
        reference: see the module's title. arguments: for the factory, a mapping or texts "key=value".
        input_size: one image without its batch, "3x224x224". input_shapes: whole shapes, "1,3,224,224" or a list of
            numbers, one an input. inputs: example inputs that are known, in place of any of these.

    Raises:
        SecateurError: one sentence, also for whatever the user's own file raises.
    """
    if input_size is not None and input_shapes:
        raise ConfigError("--input-size and --input-shape are both given: use one of them.")
    shapes = _shapes(input_size, input_shapes)
    given = keywords_of(arguments)
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise ConfigError(f"The model {reference!r} is not understood: {_suggestion(reference)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source in _LIBRARIES:
            model, default = _LIBRARIES[source](name, given)
        elif source.endswith(".py"):
            model, default = _from_module(_of_file(Path(source)), Path(source), name, given)
        else:
            module = _of_package(source, reference)
            model, default = _from_module(module, Path(module.__file__ or source), name, given)
        if inputs is None:
            inputs = default() if shapes is None else _noise(shapes, model)
    return Loaded(reference, model, inputs, tuple(tuple(t.shape) for t in _tensors(inputs)), given)


Default = Callable[[], Any]


def _from_zoo(name: str, keywords: Mapping[str, Any]) -> tuple[nn.Module, Default]:
    known = inspect.signature(create).parameters
    _check_keywords(f"zoo:{name}", keywords, [k for k in known if k != "name"])
    model = create(name, **keywords)
    channels = int(keywords.get("in_channels", MODELS[name].input_size[0]))
    return model, lambda: _noise([(1, channels, *MODELS[name].input_size[1:])], model)


def _from_torchvision(name: str, keywords: Mapping[str, Any]) -> tuple[nn.Module, Default]:
    models = _library("torchvision.models")
    names = models.list_models()
    if name not in names:
        raise ConfigError(f"torchvision has no model named {name!r}: {_near(name, names)}")
    builder = models.get_model_builder(name)
    kind = builder.__module__.split(".")[2] if builder.__module__.count(".") > 2 else "classification"
    options: dict[str, Any] = {"weights": None}
    if kind in ("detection", "segmentation"):
        options["weights_backbone"] = None  # nothing is fetched from the network unless asked for
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # a truncated normal that takes ten seconds
    model = _build(f"torchvision:{name}", models.get_model, name, keywords={**options, **keywords})

    def default() -> Any:
        if kind == "detection":
            return ([torch.rand(3, 224, 224)],)
        if kind == "optical_flow":
            return _noise([(1, *_FLOW)] * 2, model)
        return _noise([(1, *_VIDEO) if kind == "video" else (1, 3, 224, 224)], model)

    return model, default


def _from_timm(name: str, keywords: Mapping[str, Any]) -> tuple[nn.Module, Default]:
    timm = _library("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(f"timm has no model named {name!r}: {_near(name, timm.list_models())}")
    model = _build(f"timm:{name}", timm.create_model, name, keywords={"pretrained": False, **keywords})
    channels, *space = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    size = keywords.get("img_size", space)
    space = [size, size] if isinstance(size, int) else list(size)
    return model, lambda: _noise([(1, int(keywords.get("in_chans", channels)), *space)], model)


_LIBRARIES: Mapping[str, Callable[[str, Mapping[str, Any]], tuple[nn.Module, Default]]] = {
    "zoo": _from_zoo,
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}


def _from_module(module: ModuleType, path: Path, name: str, keywords: Mapping[str, Any]) -> tuple[nn.Module, Default]:
    """What a module of the user calls `name`, also inside a class: a factory, a class of networks or a network."""
    reference = f"{path}:{name}"
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if value is None:
        raise ConfigError(f"{path} defines no {name!r}: {_near(name, _callables(module))}")
    if isinstance(value, nn.Module):
        model: Any = value
    elif callable(value):
        model = _build(reference, value, file=path, keywords=keywords)
    else:
        raise ConfigError(f"{reference} is a {type(value).__name__}, neither a function nor a module: name a factory.")
    if not isinstance(model, nn.Module):
        raise ModelError(f"{reference}() returned a {type(model).__name__}, not a torch.nn.Module: return the model.")

    def default() -> Any:
        maker = getattr(module, "example_inputs", None)
        if not callable(maker):
            raise InputError(
                f"The input of {reference} is not known: give --input-size, such as 3x224x224, or define "
                f"example_inputs() in {path.name}."
            )
        return _build(f"{path}:example_inputs", maker, keywords={}, file=path)

    return model, default


def _of_file(path: Path) -> ModuleType:
    """Run the file as a module of its own; files beside it can be imported as from a script.

    A file of a package is imported as its module, so that imports relative to the package work.
    """
    if not path.is_file():
        raise ConfigError(f"There is no file {str(path)!r}: give the path of a Python file, then ':' and a factory.")
    folder, parts = path.resolve().parent, [path.stem]
    while (folder / "__init__.py").is_file():
        folder, parts = folder.parent, [folder.name, *parts]
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    if len(parts) > 1:
        name = ".".join(parts[:-1] if path.stem == "__init__" else parts)
        module = _imported(lambda: importlib.import_module(name), path)
        if module.__file__ is None or Path(module.__file__).resolve() != path.resolve():
            raise ConfigError(f"{path} would be imported as {name}, which is {module.__file__}: rename its package.")
        return module
    spec = importlib.util.spec_from_file_location(f"_secateur_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported as Python: rename it to end in .py.")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[spec.name] = module  # dataclasses and deepcopy look their module up
    _imported(lambda: loader.exec_module(module), path)
    return module


def _of_package(source: str, reference: str) -> ModuleType:
    """Import a module by its name, as from a script in the current folder."""
    top = source.partition(".")[0]
    if not all(part.isidentifier() for part in source.split(".")):
        raise ConfigError(f"The model {reference!r} is not understood: {_suggestion(reference)}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    if importlib.util.find_spec(top) is None:
        raise ConfigError(
            f"The model {reference!r} is not understood (there is no module {top!r}): {_suggestion(reference)}"
        )
    return _imported(lambda: importlib.import_module(source), source)


T = TypeVar("T")


def _imported(work: Callable[[], T], what: Path | str) -> T:
    """Run somebody else's module; whatever goes wrong there becomes one sentence."""
    try:
        return work()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        file = what if isinstance(what, Path) else None
        raise ModelError(f"{what} failed while it was imported: {_said(error, file)}.") from error


def _build(
    what: str, factory: Callable[..., Any], *positional: Any, keywords: Mapping[str, Any], file: Path | None = None
) -> Any:
    """Call somebody else's function; whatever goes wrong there becomes one sentence."""
    try:
        return factory(*positional, **keywords)
    except (KeyboardInterrupt, SecateurError):
        raise
    except BaseException as error:
        given = f" with {', '.join(keywords)}" if keywords else ""
        raise ModelError(f"{what} failed{given}: {_said(error, file)}.") from error


def _library(name: str) -> Any:
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == package:
            raise ConfigError(f"{package} is not installed: {install('vision')}") from error
        raise ConfigError(f"{package} cannot be imported because {error.name} is missing: install it.") from error
    except Exception as error:
        raise ConfigError(
            f"{package} is installed but cannot be imported ({_said(error)}): install the build that fits "
            f"torch {torch.__version__}."
        ) from error


# ------------------------------------------------------------------------------------------------------- arguments


def keywords_of(arguments: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """A factory's arguments from texts "key=value"; a mapping is taken as it is."""
    if isinstance(arguments, Mapping):
        return dict(arguments)
    result: dict[str, Any] = {}
    for text in arguments:
        key, sign, value = text.partition("=")
        if not sign or not key.strip().isidentifier():
            raise ConfigError(f"--model-arg {text!r} is not understood: write key=value, such as num_classes=10.")
        if key.strip() in result:
            raise ConfigError(f"--model-arg {key.strip()!r} is given twice: give it once.")
        result[key.strip()] = _value(value.strip())
    return result


def _value(text: str) -> Any:
    """A number, a list, true, false or none; anything else is text."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.casefold() in words:
        return words[text.casefold()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _check_keywords(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} takes no argument {key!r}: it takes {', '.join(known)}.")


def _shapes(size: str | None, shapes: Sequence[str | Sequence[int]]) -> list[tuple[int, ...]] | None:
    if size is not None:
        return [(1, *_numbers(size, "x", "--input-size", "3x224x224"))]
    return [shape_of(shape) for shape in shapes] or None


def shape_of(given: str | Sequence[int]) -> tuple[int, ...]:
    """A whole shape from "1,3,224,224" or numbers."""
    text = given if isinstance(given, str) else ",".join(map(str, given))
    return _numbers(text, ",", "--input-shape", "1,3,224,224")


def _numbers(text: str, separator: str, option: str, example: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.strip().casefold().split(separator)]
    if not all(part.isascii() and part.isdigit() and 0 < len(part) < 10 and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} {text!r} is not a size: write positive whole numbers, such as {example}.")
    numbers = tuple(int(part) for part in parts)
    if math.prod(numbers) > _MOST_ELEMENTS:
        raise ConfigError(f"{option} {text!r} asks for {math.prod(numbers):.1e} elements: give a smaller example.")
    return numbers


def _noise(shapes: Sequence[tuple[int, ...]], model: nn.Module) -> Any:
    """Normal noise in the model's floating type and on its device; one tensor, or a tuple of them."""
    kind = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    made = [torch.randn(shape).to(kind.dtype) for shape in shapes]
    if kind.device.type not in ("cpu", "meta"):
        made = [tensor.to(kind.device) for tensor in made]
    return made[0] if len(made) == 1 else tuple(made)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return _tensors(list(value.values()))
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []


# ------------------------------------------------------------------------------------------------------------ words


def _suggestion(reference: str) -> str:
    name = reference.rpartition(":")[2]
    if reference.endswith(".py"):
        return f"name the factory too, such as {reference}:model."
    close = nearest(name, MODELS) if name else []
    hint = f"did you mean 'zoo:{close[0]}'? " if close else ""
    return f"{hint}Write {_FORMS}."


def _near(name: str, known: Sequence[str]) -> str:
    close = nearest(name, known, count=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"it has {', '.join(map(repr, list(known)[:3]))} and others." if known else "it defines nothing of the kind."


def _callables(module: ModuleType) -> list[str]:
    return [n for n, v in vars(module).items() if callable(v) and not n.startswith("_") and _is_from(v, module)]


def _is_from(value: Any, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__


def _said(error: BaseException, path: Path | None = None) -> str:
    """An exception on one line, with the line of the user's file where it came up."""
    text = " ".join(str(error).split()).rstrip(".")[:300]
    where = ""
    trace = error.__traceback__
    while trace is not None:
        if path is not None and Path(trace.tb_frame.f_code.co_filename).resolve() == path.resolve():
            where = f" in line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}{': ' + text if text else ''}{where}"
