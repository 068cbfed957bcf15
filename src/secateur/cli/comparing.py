"""The command that compares methods on one recipe."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli._base import NOTHING_WRITTEN, AsJson, Plugin, Quiet, interruptible, plugged, show, tell, working
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.compare import Cluster, Outcome
    from secateur.training import Progress

FOLDER = "runs/compare"


def compare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file with train and finetune.")],
    methods: Annotated[
        list[str],
        typer.Option("--methods", metavar="A,B,C", help="Methods, or METHOD+REPAIR, by commas. Repeatable."),
    ],
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="How many seeds.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, max=2**32 - 1001, help="The first of them.")] = 0,
    budgets: Annotated[
        list[str],
        typer.Option("--budget", metavar="BOUNDS", help="Instead of the recipe's: flops=0.5. Repeatable."),
    ] = [],  # noqa: B006  # typer copies it
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the comparison; an earlier one is continued.")
    ] = Path(FOLDER),
    jobs: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Runs at a time: 1, or with ray all that fit.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of each run.")] = 1,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="Where runs are done: here, or on a cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(metavar="auto|local|HOST:PORT", help="Of the Ray cluster. Default: auto.")
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option("--gpus-per-run", min=0, max=64, help="Of each run on Ray. Default: 1 if there are any."),
    ] = None,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the recipe: train.epochs=20. Repeatable; the last of a key counts.",
        ),
    ] = [],  # noqa: B006
    given: Annotated[
        list[str],
        typer.Option(
            "--with",
            metavar="METHOD.KEY=VALUE",
            help="A method's or repair's setting. Repeatable; the last of a key counts.",
        ),
    ] = [],  # noqa: B006
    dense: Annotated[
        bool, typer.Option("--dense/--no-dense", help="The whole network as well, trained for as many epochs.")
    ] = True,
    plugin: Plugin = [],  # noqa: B006
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare pruning methods fairly: a leaderboard.

    All get the same network, data, budget and epochs, over several seeds. The same command again goes on where it
    was interrupted; with more methods, seeds or budgets it adds them to the leaderboard in DIR (JSON, Markdown,
    HTML, CSV, LaTeX, BibTeX, figures). A run that fails is a line in it, and the command ends with exit code 1.
    With --json the leaderboard comes on stdout, and what happens meanwhile as JSON lines on stderr.

    \b
    Examples:
      secateur compare recipe:cifar10-resnet8-short --methods bwcp,l1,random,scratch
      secateur compare recipe.yaml --methods l1,l1+batchnorm --budget flops=0.5 --budget flops=0.3 --seeds 1
      secateur compare recipe.yaml --methods nap,cpmc --jobs 2 --out runs/two --with nap.every=1
      secateur compare recipe.yaml --methods nap,cpmc,l1 --engine ray --threads 4 --out /shared/compare
    """
    from secateur.compare import compare as work
    from secateur.recipe import Recipe

    read = Recipe.read(recipe, [*overrides, *plugged(plugin)])
    bars = not (as_json or quiet) and sys.stderr.isatty()
    with interruptible(_advice(out)), working("Comparing", silent=True):
        outcome = work(
            read,
            out,
            methods=[name.strip() for each in methods for name in each.split(",") if name.strip()],
            seeds=range(first_seed, first_seed + seeds),
            budgets=budgets,
            settings=_settings(given),
            jobs=jobs,
            threads=threads,
            cluster=_cluster(engine, address, gpus),
            dense=dense,
            told=None if quiet else _json_line if as_json else _line,
            progress=_bars() if bars else None,
            command=shlex.join(["secateur", *sys.argv[1:]]),
        )
    _tell(outcome, as_json, quiet)
    if outcome.failed:
        raise typer.Exit(1)


def _bars() -> Progress:
    """A bar for the stage at work, without a line for every epoch of every run."""
    from secateur.training.progress import Bars, Row

    class Passing(Bars):
        def epoch(self, row: Row) -> None:
            """Say nothing."""

    return Passing(sys.stderr)


def _cluster(engine: str, address: str | None, gpus: float | None) -> Cluster | None:
    from secateur._hints import choose
    from secateur.compare import Cluster

    if choose(engine, ("local", "ray"), "engine of a comparison") == "ray":
        return Cluster(address or "auto", gpus)
    if address is not None or gpus is not None:
        option = "--address" if address is not None else "--gpus-per-run"
        raise ConfigError(f"{option} is of a Ray cluster, and the engine is local: give --engine ray too.")
    return None


def _settings(given: list[str]) -> dict[str, dict[str, Any]]:
    """ "bwcp.delta=0.1" by method and key; a key may have keys in it."""
    from secateur import _yaml

    found: dict[str, dict[str, Any]] = {}
    for each in given:
        path, sign, text = each.partition("=")
        name, *keys = [key.strip() for key in path.split(".")]
        if not sign or not keys or not all([name, *keys]):
            raise ConfigError(f"--with {each!r} is not understood: write METHOD.KEY=VALUE, such as bwcp.delta=0.1.")
        here = found.setdefault(name, {})
        for key in keys[:-1]:
            here = here.setdefault(key, {})
            if not isinstance(here, dict):
                raise ConfigError(f"--with {each!r} is not possible: {key} has a value already.")
        here[keys[-1]] = _yaml.parse(text, f"--with {each!r}")
    return found


def _line(event: Mapping[str, Any]) -> None:
    left = f"; {event['left']} left" if event["state"] in ("finished", "failed") else ""
    minutes, rest = divmod(round(event["seconds"]), 60)
    tell(f"[{minutes:d}:{rest:02d}{left}] {event['text']}")


def _json_line(event: Mapping[str, Any]) -> None:
    print(json.dumps(dict(event), allow_nan=False, ensure_ascii=False), file=sys.stderr, flush=True)


def _tell(outcome: Outcome, as_json: bool, quiet: bool) -> None:
    from rich.text import Text

    from secateur.report.board.said import absent
    from secateur.report.board.tables import budgets, mean_table
    from secateur.report.tables import fitting, listing

    if as_json:
        show(json.dumps(outcome.document, indent=2, allow_nan=False, ensure_ascii=False))
        return
    if quiet:
        show(str(outcome.report))
        return
    for budget in budgets(outcome.document):
        table = mean_table(outcome.document, budget)
        shown = fitting([table.head, *table.rows])
        show(budget)
        show(listing(table.head[:shown], [row[:shown] for row in table.rows], right=table.head[1:]))
    for line in absent(outcome.document):
        show(Text(line))
    show(f"Leaderboard: {outcome.report}", wrap=False)


def _advice(folder: Path) -> Callable[[], str]:
    def advice() -> str:
        if not (folder / "comparison.json").is_file():
            return NOTHING_WRITTEN
        return f"Interrupted: the same command continues from here, {shlex.join(['secateur', *sys.argv[1:]])}."

    return advice
