"""Comparisons: many methods on the same network, data, budget and epochs, and one leaderboard of all that came out.

outcome = compare(Recipe.read("recipe.yaml"), Path("runs/compare"), methods=["bwcp", "l1", "scratch"], seeds=[0, 1, 2])
outcome.document["means"][0]["label"]

Every cell is an ordinary run (see `secateur.runs`); which sections of the recipe it has stands in `cells`.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur._files import read_json
from secateur._hints import install
from secateur.budget import Budget
from secateur.compare import bases, leaderboard, local, timing
from secateur.compare.cells import DENSE, Cell, Settings, arrange, base_recipe, check, check_settings
from secateur.compare.cluster import Cluster, connected
from secateur.compare.record import Comparison, working
from secateur.compare.tasks import Done, Engine, Task
from secateur.errors import BudgetError, ConfigError, ModelError, RunError
from secateur.methods import plug_in
from secateur.recipe import Recipe
from secateur.report.board_exports import flat, write_exports
from secateur.report.leaderboard import JSON, write_leaderboard
from secateur.runs.preparing import prepare
from secateur.tasks import shown
from secateur.training import Progress

__all__ = ["Cell", "Cluster", "Outcome", "compare", "read"]

Told = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What a call of `compare` left."""

    folder: Path
    document: dict[str, Any]  # leaderboard.json
    failed: tuple[str, ...]  # cells of this call that came to nothing, with the reason
    report: Path


def compare(
    recipe: Recipe,
    folder: Path,
    *,
    methods: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    budgets: Sequence[str] = (),
    settings: Settings | None = None,
    jobs: int | None = None,
    threads: int = 1,
    cluster: Cluster | None = None,
    dense: bool = True,
    told: Told | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> Outcome:
    """Train, prune and fine-tune with every method, seed and budget, and write the leaderboard.

    What is finished in `folder` is taken as it is, what was begun goes on, what is new is added.

    Args:
        recipe: network, data and schedules of all; its method, seed and budget are those of one run, see below.
        folder: of the comparison. seeds: of the runs of every method.
        methods: names, or METHOD+REPAIR. budgets: none: the recipe's. settings: of methods and repairs, by name; the
            recipe's `method` counts for that method.
        jobs: processes at work, 1 unless given; more than 1 start others, so the calling script needs
            `if __name__ == "__main__"`. On a cluster: runs at a time; None: as many as it can hold.
        threads: of each process, also of one. cluster: the Ray that does the runs; None: this machine.
        dense: the whole network as well, trained for as many epochs with each seed.
        told: what happens, as mappings with "event", "state" and "text".
        progress: told of the training, where it is in this process. command: how this was called, for the documents.

    Raises:
        SecateurError: one sentence, before anything is written. What cannot be run, as its method refuses the network
            or the budget, is told before the work, and is one failed cell, as is what goes wrong later in one run.
        KeyboardInterrupt: after Ctrl-C; the same call goes on from there.
    """
    for plugin in recipe.plugins:
        plug_in(plugin)
    cells = _cells(recipe, [*methods, *([DENSE] if dense and methods else [])], seeds, budgets)
    given = _settings(recipe, cells, settings or {})
    check(recipe, [cell.row for cell in cells])
    check_settings(cells, given)
    comparison = Comparison.open(folder, recipe, given)
    for cell in cells:
        arrange(recipe, cell, comparison.settings, _weights(comparison, cell))
    whole = prepare(base_recipe(recipe, cells[0].seed)).dense  # data, network, device
    with working(folder):
        with _engine(recipe, folder, jobs, threads, cluster, command, progress) as engine:
            comparison = Comparison.open(folder, recipe, given)  # as it is now that nobody else works on it
            comparison.begin(cells, whole.as_dict(), {"command": command, "jobs": engine.jobs, "threads": threads})
            teller = _Teller(told or (lambda _: None), comparison, cells)
            refused = _refused(comparison, recipe, cells)
            for cell, why in refused.items():
                teller.refused(cell, why)
            able = [cell for cell in cells if cell not in refused]
            with closing(engine.run(_tasks(comparison, recipe, able), teller.begun)) as doing:
                for done in doing:
                    teller.over(done)
                    write_leaderboard(folder, leaderboard.document(comparison))
        timing.measure_all(comparison, teller.say)
        document = leaderboard.document(comparison)
        page = write_leaderboard(folder, document)
        write_exports(folder, document)
        return Outcome(folder, document, tuple(teller.failed), page)


def read(folder: Path | str) -> Any:
    """Every finished run of a comparison as a pandas DataFrame, a row each, with columns such as "accuracy.final".

    Where the task is another one, these columns hold its headline, such as PSNR.

    Raises:
        ConfigError: pandas is not installed. RunError: the folder holds no leaderboard.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError(
            f"read gives a pandas DataFrame, and pandas is not installed: {install('compare')}."
        ) from error
    file = Path(folder) / JSON
    found = read_json(file, what="The leaderboard") if file.is_file() else None
    if not isinstance(found, dict) or found.get("format") != leaderboard.FORMAT:
        raise RunError(f"{str(folder)!r} holds no leaderboard: give the folder of a comparison.")
    return pandas.DataFrame(flat(found["rows"]))


@contextmanager
def _engine(
    recipe: Recipe,
    folder: Path,
    jobs: int | None,
    threads: int,
    cluster: Cluster | None,
    command: str,
    progress: Progress | None,
) -> Iterator[Engine]:
    """Who does the runs."""
    if cluster is not None:
        device = recipe.engine.device
        with connected(cluster, device=device, jobs=jobs, threads=threads, folder=folder, command=command) as engine:
            yield engine
        return
    options = {"jobs": jobs or 1, "threads": threads, "folder": folder, "command": command, "progress": progress}
    yield Engine(jobs or 1, functools.partial(local.run, **options))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- what is asked for


def _cells(recipe: Recipe, methods: Sequence[str], seeds: Sequence[int], budgets: Sequence[str]) -> list[Cell]:
    """Every method, seed and budget once: by seeds, so that each adds a whole comparison."""
    if not methods:
        raise ConfigError("No method is named: give some, such as --methods l1,random,scratch.")
    if not seeds:
        raise ConfigError("No seed is given: compare with one at least.")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ConfigError(f"The seed {seed} is out of range: seeds are from 0 to {2**32 - 1}.")
    bounds = [str(Budget.parse(budget)) for budget in budgets] or [recipe.budget]
    every = itertools.product(seeds, bounds, methods)
    return list(dict.fromkeys(Cell.parse(label, seed, budget) for seed, budget, label in every))


def _settings(recipe: Recipe, cells: Sequence[Cell], given: Settings) -> dict[str, dict[str, Any]]:
    """What is given, over what the recipe's own method has, if that takes part."""
    found = {name: dict(values) for name, values in given.items()}
    own = recipe.method
    if own.settings and any(cell.method == own.name for cell in cells):
        found[own.name] = {**own.settings, **found.get(own.name, {})}
    return found


def _refused(comparison: Comparison, recipe: Recipe, cells: Sequence[Cell]) -> dict[Cell, str]:
    """Cells that cannot be run, and why: every method is tried on the network as it is, before anything is trained.

    What a bound on the latency allows is not known before times are measured.
    """
    said: dict[tuple[str, str], str | None] = {}
    found = {}
    for cell in cells:
        if comparison.finished(cell) or Budget.parse(cell.budget).target is not None:
            continue
        kind = (cell.label, cell.budget)
        if kind not in said:
            said[kind] = _refusal(recipe, cell, comparison.settings)
        if (why := said[kind]) is not None:
            found[cell] = why
    return found


def _refusal(recipe: Recipe, cell: Cell, settings: Settings) -> str | None:
    if cell.row.begins == "weights":  # they will be there
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"trained": True})})
    try:
        prepare(arrange(recipe, cell, settings, None))
    except (BudgetError, ConfigError, ModelError) as error:
        return str(error)
    except Exception:  # a file that is yet to be written, or a defect: the run itself meets it, and says so
        return None
    return None


def _tasks(comparison: Comparison, recipe: Recipe, cells: Sequence[Cell]) -> list[Task]:
    """What is not finished: every base network before the runs that begin with it."""
    tasks: dict[str, Task] = {}
    for cell in cells:
        if comparison.finished(cell):
            comparison.forget(cell)
            continue
        needs, weights = None, _weights(comparison, cell)
        if weights is not None:
            where, base = comparison.base(cell.seed), f"base {cell.seed}"
            if base in tasks or bases.find(where) is None:
                tasks.setdefault(base, Task(base, recipe, cell.seed, where, base=True))
                needs = base
        own = arrange(recipe, cell, comparison.settings, weights)
        tasks[cell.name] = Task(cell.name, own, cell.seed, comparison.run(cell), needs=needs)
    return list(tasks.values())


def _weights(comparison: Comparison, cell: Cell) -> str | None:
    """Where the base network of a cell is or will be; None if it begins with none of ours."""
    if comparison.recipe.train is None or cell.row.begins != "weights":
        return None
    return str(comparison.base(cell.seed) / bases.WEIGHTS)


# --------------------------------------------------------------------------------------------------------- what happens


class _Teller:
    """Follows the tasks: says what happens, and notes what fails."""

    def __init__(self, told: Told, comparison: Comparison, cells: Sequence[Cell]) -> None:
        self._told, self._comparison = told, comparison
        self._cells = {cell.name: cell for cell in cells}
        self._left = {name for name, cell in self._cells.items() if not comparison.finished(cell)}
        self._began = time.monotonic()
        self.failed: list[str] = []
        ready = len(cells) - len(self._left)
        self.say("plan", "", f"{len(cells)} runs: {ready} finished before, {len(self._left)} to do.")

    def begun(self, task: Task, again: str = "") -> None:
        self.say("begun", task.name, f"{self._said(task)}: begun{f' again, {again}' if again else ''}.")

    def refused(self, cell: Cell, why: str) -> None:
        """It will not be run."""
        self._left.discard(cell.name)
        self._note(cell, why)
        self.say("failed", cell.name, f"{cell.said}: cannot be run: {why.rstrip('.')}.")

    def _note(self, cell: Cell, why: str, details: str = "") -> None:
        self._comparison.failed(cell, why, details)
        self.failed.append(f"{cell.said}: {why}")

    def over(self, done: Done) -> None:
        task, cell = done.task, self._cells.get(done.task.name)
        self._left.discard(task.name)
        state = "finished" if done.said is None else "failed"
        if cell is None:
            said = "trained" if done.said is None else done.said
            self.say(state, task.name, f"{self._said(task)}: {said} ({done.seconds:.0f} s).")
            return
        if done.said is None:
            self._comparison.forget(cell)
            results = self._comparison.results(cell)
            headline, unit = results["task"]["headline"], results["task"]["unit"]
            said = f"{headline} {shown(results[headline]['final'], unit)}"
        else:
            self._note(cell, done.said, done.details)
            said = f"failed: {done.said.rstrip('.')}"
        self.say(state, task.name, f"{cell.said}: {said} ({done.seconds:.0f} s).")

    def say(self, state: str, name: str, text: str) -> None:
        """One line, with the time since the beginning and how many runs are left."""
        elapsed = time.monotonic() - self._began
        self._told(
            {
                "event": "cell",
                "state": state,
                "cell": name,
                "left": len(self._left),
                "seconds": round(elapsed, 1),
                "text": text,
            }
        )

    def _said(self, task: Task) -> str:
        cell = self._cells.get(task.name)
        return cell.said if cell is not None else f"base network, seed {task.seed}"
