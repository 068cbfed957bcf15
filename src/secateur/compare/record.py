"""The folder of a comparison: comparison.json says what is compared; one folder a run, one a base network.

comparison.json     recipe, settings, cells, who was called when        leaderboard.json, .md, .html
bases/SEED/         base networks                                       runs/METHOD-SEED-BUDGET/   ordinary runs
failed/NAME.json    why a run could not be finished                     latency/NAME.json          of finished runs
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur import _files
from secateur._settings import shown, validated
from secateur.compare.cells import DECIDED, Cell, Settings
from secateur.errors import RunError, SecateurError
from secateur.recipe import Recipe
from secateur.runs.documents import now
from secateur.runs.folder import LOCK, RESULTS, STATE, Folder, locked

FILE, BASES, RUNS, FAILED, LATENCIES = "comparison.json", "bases", "runs", "failed", "latency"
_FORMAT, _VERSION = "secateur.comparison", 1
_STAND_IN = {"seed": 0, "method": {"name": "random"}, "budget": "flops=1.0", "repair": ()}


class Comparison:
    """An open comparison."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path, self._state = path, state

    @classmethod
    def open(cls, path: Path, recipe: Recipe, settings: Settings) -> Comparison:
        """Go on with the comparison in `path`, or begin one there; nothing is written yet.

        Raises:
            RunError: the folder holds something else, or a comparison of another recipe or with other settings.
        """
        wanted = common(recipe)
        if not (path / FILE).is_file():
            if _taken(path):
                raise RunError(f"{str(path)!r} is there and is no comparison: give another --out.")
            plain = {name: dict(given) for name, given in settings.items()}
            head = {"format": _FORMAT, "version": _VERSION}
            return cls(path, {**head, "recipe": wanted, "settings": plain, "dense": {}, "cells": [], "calls": []})
        found = cls(path, _read(path))
        found._same(wanted)
        found._join(settings)
        return found

    def begin(self, cells: Iterable[Cell], dense: Mapping[str, int], call: Mapping[str, Any]) -> None:
        """Note which cells there shall be, what the network costs, and the call."""
        known = dict.fromkeys([*self.cells, *cells])
        self._state["cells"] = [
            {"method": c.method, "repair": list(c.repair), "seed": c.seed, "budget": c.budget} for c in known
        ]
        self._state["dense"] = dict(dense)
        self._state["calls"].append({"date": now(), **call})
        _files.write_json(self.path / FILE, self._state, what="The comparison")

    # ------------------------------------------------------------------------------------------------- what is in it

    @property
    def recipe(self) -> Recipe:
        """What is compared on; its method, seed, budget and repairs mean nothing."""
        return validated(Recipe, {**_STAND_IN, **self._state["recipe"]})

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Of methods and repairs."""
        return dict(self._state["settings"])

    @property
    def cells(self) -> list[Cell]:
        """All there shall be, in the order they were asked for."""
        return [Cell(c["method"], tuple(c["repair"]), c["seed"], c["budget"]) for c in self._state["cells"]]

    @property
    def dense(self) -> dict[str, int]:
        """What the recipe's own network costs; a method may begin with another one."""
        return dict(self._state["dense"])

    @property
    def calls(self) -> list[dict[str, Any]]:
        """When it was begun and continued, and how."""
        return list(self._state["calls"])

    def run(self, cell: Cell) -> Path:
        """The folder of a cell's run."""
        return self.path / RUNS / cell.name

    def base(self, seed: int) -> Path:
        """The folder of a seed's base network."""
        return self.path / BASES / str(seed)

    def finished(self, cell: Cell) -> bool:
        """Whether a cell's run has nothing left to do; one that cannot be read has, and will say why."""
        where = self.run(cell)
        try:
            return (where / STATE).is_file() and Folder.open(where).finished
        except RunError:
            return False

    def results(self, cell: Cell) -> dict[str, Any]:
        """results.json of a finished cell."""
        found = _files.read_json(self.run(cell) / RESULTS, what="The results")
        if not isinstance(found, dict) or found.get("format") != "secateur.run":
            raise RunError(f"{str(self.run(cell) / RESULTS)!r} is damaged: remove it, and compare again.")
        return found

    # ------------------------------------------------------------------------------------------------ beside the runs

    def failure(self, cell: Cell) -> dict[str, Any] | None:
        """Why the last attempt at a cell came to nothing."""
        return _beside(self.path / FAILED / f"{cell.name}.json")

    def failed(self, cell: Cell, sentence: str, details: str = "") -> None:
        """Note that an attempt came to nothing."""
        self._write(FAILED, cell, {"said": sentence, "details": details, "date": now()})

    def forget(self, cell: Cell) -> None:
        """An earlier failure is over."""
        (self.path / FAILED / f"{cell.name}.json").unlink(missing_ok=True)

    def latency(self, cell: Cell) -> dict[str, Any] | None:
        """What was measured of a finished cell, or why nothing could be: {"said": sentence}."""
        found = _beside(self.path / LATENCIES / f"{cell.name}.json")
        # a run that was removed and made anew may have another network
        return found if found is not None and found.get("plan") == self.results(cell)["plan"] else None

    def timed(self, cell: Cell, measured: Mapping[str, Any]) -> None:
        """Keep a cell's latencies."""
        self._write(LATENCIES, cell, {"plan": self.results(cell)["plan"], **measured})

    def _write(self, room: str, cell: Cell, document: Mapping[str, Any]) -> None:
        _files.make_folder(self.path / room)
        _files.write_json(self.path / room / f"{cell.name}.json", dict(document), what="The comparison")

    # ------------------------------------------------------------------------------------------------- going on with it

    def _same(self, wanted: Mapping[str, Any]) -> None:
        was = common(self.recipe)  # keys that have come since stand in it with their defaults
        if was == wanted:
            return
        old, new = dict(_leaves(was)), dict(_leaves(wanted))
        key = next(key for key in (*old, *new) if key not in old or key not in new or old[key] != new[key])
        raise RunError(
            f"The comparison in {str(self.path)!r} is of a recipe in which {key} is {shown(old.get(key))}, and here it "
            f"is {shown(new.get(key))}: give another --out."
        )

    def _join(self, settings: Settings) -> None:
        """What is new is added; what was said before holds, and may be said again."""
        names = {name for cell in self.cells for name in (cell.method, *cell.repair)}
        for name, given in settings.items():
            before = self._state["settings"].get(name, {})
            if name in names and dict(given) != before:
                raise RunError(
                    f"The comparison in {str(self.path)!r} has runs of {name} with the settings {shown(before)}, not "
                    f"{shown(dict(given))}: give another --out."
                )
            self._state["settings"][name] = dict(given)


@contextlib.contextmanager
def working(path: Path) -> Iterator[None]:
    """Make the folder, and keep a second process from working on the same comparison.

    What a disk refuses meanwhile ends in a sentence that says how to go on.
    """
    _files.make_folder(path)
    with locked(path, "comparison"), _on_disk(path):
        yield


@contextlib.contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # who was told has left
        raise
    except (OSError, SecateurError) as error:
        if not path.is_dir():
            raise RunError(
                f"The folder {str(path)!r} was moved or removed while the comparison was at work: put it back and "
                "ask for the same again, or give another --out."
            ) from error
        if not _files.by_system(error):
            raise
        raise RunError(
            f"The comparison in {str(path)!r} cannot continue ({_files.said(error)}): remove the cause and "
            "start the same again, which continues from there."
        ) from error


def _taken(path: Path) -> bool:
    """Whether something is in the way of a new comparison."""
    try:
        return path.exists() and (not path.is_dir() or any(p.name != LOCK for p in path.iterdir()))
    except OSError as error:
        raise RunError(
            f"The folder {str(path)!r} cannot be read ({_files.said(error)}): give another --out."
        ) from error


def common(recipe: Recipe) -> dict[str, Any]:
    """What all cells have in common, as JSON holds it."""
    values = recipe.model_dump(mode="json")
    plain: dict[str, Any] = json.loads(json.dumps({k: v for k, v in values.items() if k not in DECIDED}))
    return plain


def _leaves(value: Any, path: str = "") -> Sequence[tuple[str, Any]]:
    """Every value with its key, in order."""
    if not isinstance(value, dict) or not value:
        return [(path, value)]
    return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}" if path else key)]


def _read(path: Path) -> dict[str, Any]:
    state = _files.read_json(path / FILE, what="The comparison")
    kinds = {"recipe": dict, "settings": dict, "dense": dict, "cells": list, "calls": list}
    ours = isinstance(state, dict) and state.get("format") == _FORMAT
    if ours and state.get("version") != _VERSION:
        raise RunError(
            f"The comparison in {str(path)!r} is of version {state.get('version')!r}, and this Secateur reads "
            f"{_VERSION}: continue it with the Secateur that began it."
        )
    if not ours or not all(isinstance(state.get(key), kind) for key, kind in kinds.items()):
        raise RunError(f"{FILE} in {str(path)!r} is damaged: begin another comparison.")
    return dict(state)


def _beside(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    found = _files.read_json(file, what="The comparison's file")
    return found if isinstance(found, dict) else None
