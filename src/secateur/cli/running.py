"""Commands that train: run a recipe, continue a run, and the demo."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli._base import AsJson, Plugin, Quiet, free, interruptible, plugged, resuming, show, working
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.runs import Outcome, Prepared

FOLDER = "runs"
DEMO = "recipe:demo"
Folder = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run, new. Default: runs/NAME-SEED.")
]


def run(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="A YAML file, or recipe:NAME of the package; see docs/recipes.md."),
    ] = None,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the recipe: train.epochs=20. Repeatable; the last of a key counts.",
        ),
    ] = [],  # noqa: B006  # typer copies it
    out: Folder = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Continue the run in this folder; no RECIPE then.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, cuda or auto: short for --set engine.device=NAME.")
    ] = None,
    repair: Annotated[
        list[str],
        typer.Option(
            "--repair", metavar="NAME", help="Of secateur repairs: short for --set repair=[NAME]. Repeatable."
        ),
    ] = [],  # noqa: B006  # typer copies it
    track: Annotated[
        list[str],
        typer.Option(
            "--track", metavar="NAME", help="tensorboard, wandb, mlflow, ...: short for engine.trackers. Repeatable."
        ),
    ] = [],  # noqa: B006  # typer copies it
    plugin: Plugin = [],  # noqa: B006
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train, prune, verify and explain a network: a whole recipe.

    It is also fine-tuned, exported and timed beside the dense network, as the recipe says.
    Ctrl-C stops after the current step; --resume goes on from there, also after a crash, with the same result. With it,
    --set may change what does not touch training: export, latency and a few keys of the engine.
    With --json the results come on stdout, and what happens meanwhile as JSON lines on stderr.

    \b
    Examples:
      secateur run recipe:digits-bwcp
      secateur run recipe:cifar10-resnet56-bwcp --set budget=flops=0.4 --out runs/a
      secateur run recipe:digits-bwcp --set method=taylor --set pretrain=null --repair batchnorm --track tensorboard
      secateur run --resume runs/a
      secateur run --resume runs/a --set export.onnx=false
    """
    from secateur import runs
    from secateur.recipe import Recipe

    if resume is not None:
        given = {"RECIPE": recipe, "--out": out, "--device": device, "--repair": repair, "--plugin": plugin}
        overrides = [*overrides, *_short_forms(overrides, None, [], track)]
        for name, value in given.items():
            if value:
                raise ConfigError(f"--resume and {name} are both given, and a run keeps to the recipe it began with.")
        where = resume
        _work(lambda **told: runs.resume(where, overrides, **told), where, as_json, quiet)
        return
    if recipe is None:
        raise ConfigError("Neither a recipe nor --resume is given: write secateur run RECIPE, or --resume DIR.")
    read = Recipe.read(recipe, [*overrides, *_short_forms(overrides, device, repair, track), *plugged(plugin)])
    where = out if out is not None else Path(FOLDER) / f"{_short(read.name)}-{read.seed}"
    _work(lambda **told: runs.start(read, where, **told), where, as_json, quiet)


def demo(out: Folder = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Make a small network for handwritten digits faster.

    From the first epoch to the report in about a minute. The data are inside scikit-learn: nothing is fetched. The
    recipe is an ordinary one, saved with the run.

    \b
    Examples:
      secateur demo
      secateur demo --out runs/first
      secateur demo --json -q
    """
    from secateur import runs
    from secateur.recipe import Recipe

    recipe = Recipe.read(DEMO)
    where = out if out is not None else free(Path(FOLDER) / "demo")
    _work(lambda **told: runs.start(recipe, where, **told), where, as_json, quiet)


# --------------------------------------------------------------------------------------------------------- what is said


def _work(what: Callable[..., Outcome], folder: Path, as_json: bool, quiet: bool) -> None:
    """Do it, and say in the wanted form what is being done and what came out."""
    from secateur.training import make_progress

    stdout = sys.stdout

    def opened(prepared: Prepared) -> None:
        from secateur.report.run_tables import plan_table

        if not (as_json or quiet):
            with contextlib.redirect_stdout(stdout):
                show(plan_table(prepared, folder))

    progress = make_progress(quiet=quiet, json=as_json and not quiet, stream=sys.stderr)
    with interruptible(resuming("run", folder, "state.json")), working("Running", silent=True):
        outcome = what(progress=progress, command=shlex.join(["secateur", *sys.argv[1:]]), opened=opened)
    if outcome.results:  # the first of several processes
        _tell(outcome, as_json, quiet)


def _tell(outcome: Outcome, as_json: bool, quiet: bool) -> None:
    from secateur.report.run_tables import headline_table

    if as_json:
        show(json.dumps(outcome.results, indent=2, allow_nan=False, ensure_ascii=False))
        return
    if outcome.already and not quiet:
        from rich.text import Text

        show(Text(f"The run in {outcome.folder} is finished; nothing was left to do."))
    if quiet:
        show(str(outcome.report))
        return
    show(headline_table(outcome.folder))
    show(f"Report: {outcome.report}", wrap=False)


def _short_forms(overrides: list[str], device: str | None, repair: list[str], track: list[str]) -> list[str]:
    """What --device, --repair and --track are short for; ConfigError where --set says the same key."""
    forms = {
        "--device": ("engine.device", device),
        "--repair": ("repair", json.dumps(repair) if repair else None),
        "--track": ("engine.trackers", json.dumps(track) if track else None),
    }
    for option, (key, value) in forms.items():
        if value is not None and any(each.partition("=")[0].strip() == key for each in overrides):
            raise ConfigError(f"{option} and --set {key}=... are both given, and mean the same key: give one of them.")
    return [f"{key}={value}" for key, value in forms.values() if value is not None]


def _short(name: str) -> str:
    """A recipe's name as a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "run"
