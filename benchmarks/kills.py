"""Runs of three recipes, each killed with SIGKILL at twenty moments of its life and resumed: are the bits the same?

    python benchmarks/kills.py                                       # the three, 20 kills each
    python benchmarks/kills.py shapes-unet --kills 4 --set train.epochs=2

A run is first left alone, and every write and every training step of it noted with its time. Then it is begun again
in a folder of its own, killed at the first moment, resumed, killed at the second, and so on. Half of the moments lie
evenly in that time, half evenly among what was noted; each is found as so many milliseconds after what was noted last
before it, so that it may lie in the middle of a step, of a write or of the surgery. `same` compares what both left:
weights, plan, recipe, every epoch's line, results, and the names of all files. Processes are forks, so that PyTorch is
imported once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _forked import forked

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tests" / "runs"))
RECIPES = ("shapes-unet", "shapes-detector", "gratings-espcn")
QUIET = ("engine.device=cpu", "latency=null")
LATE = ("onnx", "onnxscript", "onnxruntime", "torchmetrics")  # imported by a run when it needs them
Heard = Callable[[str], None]


def told(heard: Heard) -> Any:
    """A progress that names every step, and every write to a disk from now on."""
    from secateur.training import Silent

    class Told(Silent):
        stage = ""

        def start_stage(self, name: str, epochs: int, steps: int, done: int = 0) -> None:
            self.stage = name
            heard(f"stage {name}")

        def step(self, loss: float, headline: str, images_per_second: float, extra: Mapping[str, Any]) -> None:
            heard(f"{self.stage} step {extra['step']}")

    def followed(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            result = original(*args, **keywords)
            heard(f"write {Path(args[-1]).name}")
            return result

        return call

    os.replace, os.rename = followed(os.replace), followed(os.rename)  # type: ignore[assignment]
    return Told()


def begun(recipe: Any, folder: Path, heard: Heard) -> None:
    """Start a run, or go on with it."""
    from secateur import runs

    progress = told(heard)
    heard("begin")
    if (folder / "state.json").is_file():
        runs.resume(folder, progress=progress)
    else:
        runs.start(recipe, folder, progress=progress)


def undisturbed(recipe: Any, folder: Path, notes: Path) -> tuple[list[tuple[float, str]], float]:
    """What a run left alone comes to and when, each once, and how long it takes. SystemExit where it fails."""
    with notes.open("w", encoding="utf-8") as file:
        at = time.perf_counter()

        def heard(what: str) -> None:
            file.write(json.dumps([time.perf_counter() - at, what]) + "\n")
            file.flush()

        if forked(lambda: begun(recipe, folder, heard)):
            raise SystemExit(f"The recipe {recipe.name} fails without being killed: see above.")
        whole = time.perf_counter() - at
    found: dict[str, float] = {}
    often = set[str]()
    for seconds, what in map(json.loads, notes.read_text(encoding="utf-8").splitlines()):
        if what in found:
            often.add(what)
        found[what] = seconds
    return sorted((seconds, what) for what, seconds in found.items() if what not in often), whole


def killed(recipe: Any, folder: Path, order: Mapping[str, int], anchor: str, delay: float) -> int:
    """One process that is killed so many seconds after it came to `anchor`, or past it; its exit status."""
    armed = False

    def heard(what: str) -> None:
        nonlocal armed
        if not armed and order.get(what, -1) >= order[anchor]:
            armed = True
            late = delay if what == anchor else 0.0
            threading.Timer(late, os.kill, (os.getpid(), signal.SIGKILL)).start()

    return forked(lambda: begun(recipe, folder, heard))


def tried(name: str, overrides: list[str], kills: int, place: Path) -> dict[str, Any]:
    """One recipe left alone, and killed again and again: a row of the result."""
    from _small import outcome

    from secateur import runs
    from secateur.recipe import Recipe

    file = Path(name) if Path(name).is_file() else ROOT / "recipes" / f"{name}.yaml"
    recipe = Recipe.parse(file.read_text(encoding="utf-8"), (*QUIET, *overrides))
    runs.prepare(recipe)
    found, whole = undisturbed(recipe, place / "whole", place / "notes")
    order = {what: number for number, (_, what) in enumerate(found)}
    half = kills // 2
    noted = [found[len(found) * number // (kills - half + 1)][0] for number in range(1, kills - half + 1)]
    moments, status = [], []
    for moment in sorted([*(whole * number / (half + 1) for number in range(1, half + 1)), *noted]):
        seconds, anchor = max(each for each in found if each[0] <= moment)
        status.append(killed(recipe, place / "killed", order, anchor, moment - seconds))
        moments.append(f"{moment:.2f} s: {1000 * (moment - seconds):.0f} ms after {anchor}")
    last = forked(lambda: begun(recipe, place / "killed", lambda _: None))
    left, resumed = outcome(place / "whole"), outcome(place / "killed")
    return {
        "recipe": recipe.name,
        "seconds": round(whole, 1),
        "killed": status.count(-signal.SIGKILL),
        "exits": [*status, last],
        "sessions": len(json.loads((place / "killed" / "results.json").read_text(encoding="utf-8"))["sessions"]),
        "same": {key: left[key] == resumed[key] for key in left},
        "moments": moments,
    }


def main() -> None:
    import _record
    import _shim

    _shim.install()
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="names in recipes/, or files")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every recipe")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "kills.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for late in LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(late)  # before the first fork, so that the moments are those of the run's own work
    os.chdir(ROOT)
    rows = []
    for name in asked.recipes:
        with tempfile.TemporaryDirectory() as temporary:
            rows.append(tried(name, asked.set, asked.kills, Path(temporary)))
        row = rows[-1]
        print(f"{row['recipe']}: killed {row['killed']} times in {row['sessions']} sessions,", row["same"], flush=True)
    _record.save(asked.out, {"environment": _record.environment(), "kills": asked.kills, "rows": rows})
    wrong = [r["recipe"] for r in rows if not all(r["same"].values()) or r["exits"][-1] or r["killed"] < asked.kills]
    if wrong:
        raise SystemExit(f"Not as if never killed: {', '.join(wrong)}.")


if __name__ == "__main__":
    main()
