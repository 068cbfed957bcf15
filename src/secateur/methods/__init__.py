"""Pruning methods: a room each, behind one contract, and the registry from which lists, docs and tests are made."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import ModuleType
from typing import Any

from torch import nn

from secateur._defaults import own_defaults
from secateur._hints import choose
from secateur._importing import imported
from secateur.allocate import Constraints
from secateur.errors import BudgetError, ConfigError
from secateur.latency import align_of
from secateur.methods import (
    acp,
    adapruner,
    aofp,
    baselines,
    bwcp,
    cap,
    catro,
    cp,
    cpmc,
    csgd,
    cwb,
    dcp,
    dcpcac,
    feature_relevance,
    functionality,
    gdp,
    ghfp,
    group_fisher,
    itpruner,
    manidp,
    metapruning,
    nap,
    pfp,
    plugins,
    prunenet,
    swp,
)
from secateur.methods.baselines import accumulate_gradients, score, scoring
from secateur.methods.contract import Method, Settings
from secateur.methods.kit.scores import Scores
from secateur.methods.row import MethodRow
from secateur.repair import REPAIRS

__all__ = [
    "METHODS", "Method", "MethodRow", "Scores", "Settings", "accumulate_gradients", "create", "known", "method",
    "plug_in", "register", "row_of", "score", "unloadable",
]  # fmt: skip

_ROOMS = (
    acp, adapruner, aofp, bwcp, cap, catro, cp, cpmc, csgd, cwb, dcp, dcpcac, feature_relevance, functionality, gdp,
    ghfp, group_fisher, itpruner, manidp, metapruning, nap, pfp, prunenet, swp, baselines,
)  # fmt: skip

#: One frozen row for each of Secateur's own methods: lists, documentation and the test matrix are made from these.
METHODS: tuple[MethodRow, ...] = tuple(row for room in _ROOMS for row in getattr(room, "ROWS", None) or (room.ROW,))

_OWN = {row.name: row for row in METHODS}
_REGISTERED: dict[str, MethodRow] = {}
#: What `create` passes on to `Constraints`.
_LIMITS = {"align", "ignore", "min_channels", "max_ratio"}


@own_defaults
def create(name: str | MethodRow | type[Method], model: nn.Module, example_inputs: Any, **options: Any) -> Method:
    """The method of this name at work on `model`, for a training loop of one's own.

    Args:
        name: of `secateur methods`, or anything else that `secateur.prune` takes as method.
        model: any `torch.nn.Module`, which is trained in place. example_inputs: what it runs with.
        options: `budget`, `steps`, the method's settings, all else that the constructor of `Method` takes, and, as with
            `secateur.prune`, `align`, `ignore`, `min_channels` and `max_ratio`.

    Raises:
        ConfigError: there is no such method; the nearest name is said.
    """
    row = method(name) if isinstance(name, str) else row_of(name)
    if options.get("budget") is None:
        raise BudgetError(f'The method {row.name!r} needs a budget: give one such as budget="flops=0.5".')
    limits = {key: options.pop(key) for key in _LIMITS & options.keys() - row.config.model_fields.keys()}
    if limits and options.get("constraints") is not None:
        raise ConfigError(f"{min(limits)}= and constraints= say the same twice: give one of them.")
    if limits:
        options["constraints"] = Constraints(**limits | {"align": align_of(limits.get("align", 1))})
    return row.factory(model, example_inputs, **options)


def method(name: str) -> MethodRow:
    """The row of a method; ConfigError with the nearest name for an unknown one."""
    found = _OWN.get(name) or _REGISTERED.get(name)
    if found is None and name in plugins.installed():
        register(plugins.loaded(plugins.installed()[name]), name=name)
        found = _REGISTERED[name]
    if found is None:
        _misplaced(name)
        choose(name, [*_OWN, *sorted({*_REGISTERED, *plugins.installed()})], "method")
    assert found is not None
    return found


def _misplaced(name: Any) -> None:
    """ConfigError for what is no unknown name of a method, but something else in its place."""
    if not isinstance(name, str):
        return
    if ":" in name or name.endswith(".py"):
        raise ConfigError(
            f"The method {name!r} says where it stands: bring it in first, with --plugin {name} on the command line, "
            "`plugins` in a recipe or secateur.methods.plug_in, and then give its name alone."
        )
    if name in {row.name for row in REPAIRS}:
        raise ConfigError(f"{name!r} is a repair and no method: write --repair {name}, or repair={name!r}.")


def known() -> tuple[MethodRow, ...]:
    """All methods there are: Secateur's own, those registered, those of installed packages that can be loaded."""
    others = {*_REGISTERED, *plugins.installed()} - _OWN.keys() - unloadable().keys()
    return (*METHODS, *(method(name) for name in sorted(others)))


def unloadable() -> dict[str, str]:
    """Methods of installed packages that cannot be loaded, by name, with the reason in a sentence."""
    found = {}
    for name in sorted(plugins.installed().keys() - _REGISTERED.keys()):
        if name in _OWN:
            package = plugins.package(plugins.installed()[name])
            found[name] = f"The method {name!r} of the package {package} is not used: there is one of Secateur's own."
            continue
        try:
            method(name)
        except ConfigError as error:
            found[name] = str(error)
    return found


def register(what: Any = None, *, name: str | None = None, summary: str | None = None) -> Any:
    """Make a method of one's own known by name, to `prune`, recipes, `compare` and the command line.

    Args:
        what: a MethodRow, a subclass of Method, or a function from the graph to scores {group: [width]}. Without it
            this is a decorator: `@secateur.methods.register(name="mine")`.
        name, summary: in place of the class's or function's own name and of the first line of its docstring.

    Returns:
        what it was given, as decorators do.

    Raises:
        ConfigError: it is nothing of these, or the name is taken.
    """
    if what is None:
        return lambda given: register(given, name=name, summary=summary)
    row = row_of(what, name=name, summary=summary)
    taken = _OWN.get(row.name) or _REGISTERED.get(row.name)
    if taken is not None and _maker(taken) is not _maker(row):
        raise ConfigError(f"There is a method named {row.name!r} already: register this one under another name.")
    _REGISTERED[row.name] = row
    return what


def row_of(what: Any, *, name: str | None = None, summary: str | None = None) -> MethodRow:
    """The row of a method in any form.

    Args:
        what: a row, a subclass of Method or a function from the graph to scores.
        name, summary: in place of its own; a row keeps its summary.

    Raises:
        ConfigError: it is nothing of these.
    """
    if isinstance(what, MethodRow):
        return what if name in (None, what.name) else replace(what, name=str(name))
    if isinstance(what, Method):
        raise ConfigError(f"This {what.name!r} is at work on a model already: call its finish(), or give its name.")
    if what is Method:
        raise ConfigError("Method is what methods are derived from: give one of them.")
    doc = next(iter((inspect.getdoc(what) or "").splitlines()), "").rstrip(".")
    if isinstance(what, type) and issubclass(what, Method):
        own = name or str(getattr(what, "name", "") or what.__name__.lower())
        collects = what.looks()
        trains = what.loss is not Method.loss or what.after_step is not Method.after_step
        return MethodRow(
            name=own,
            factory=what,
            summary=summary or doc or own,
            needs="training" if trains else "calibration" if collects else "nothing",
            acts="while training" if trains else "after training",
            labels=collects,
        )
    if callable(what) and not isinstance(what, type | nn.Module):
        own = name or str(getattr(what, "__name__", type(what).__name__)).strip("<>")
        return scoring(own, what, summary or doc or own)
    raise ConfigError(
        f"{what!r:.80} is no method: give a MethodRow, a subclass of secateur.methods.Method, or a function from the "
        "graph to scores."
    )


def plug_in(reference: str) -> list[str]:
    """Import what registers methods: a file or module whose code calls `register`, or names one in `file.py:Name`.

    Args:
        reference: `path/to/file.py`, `file.py:Name`, `package.module` or `package.module:Name`. Its code is run.

    Returns:
        the names of the methods it brought, also if it was imported before.

    Raises:
        ConfigError: it cannot be imported, or brings no method; one sentence.
    """
    before = set(_REGISTERED)
    found = imported(reference)
    if not isinstance(found, ModuleType):
        row = row_of(found)
        register(row)
        return [row.name]
    source = found.__name__
    own = [row.name for row in _REGISTERED.values() if getattr(_maker(row), "__module__", None) == source]
    names = sorted({*own, *(set(_REGISTERED) - before)})
    if not names:
        raise ConfigError(
            f"The plug-in {reference!r} registers no method: put @secateur.methods.register above its class or "
            "function, or name it, as in file.py:Name."
        )
    return names


def _maker(row: MethodRow) -> Any:
    """The class or function of one's own behind a row."""
    return getattr(row.factory, "function", None) or row.factory
