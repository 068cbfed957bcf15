"""The leaderboard: every method of the registry on the whole of CIFAR-10, with the same total epochs, in pieces.

    make leaderboard                                   # ResNet-20, on and on until all is measured
    make leaderboard SETUP=vgg16_bn DEVICE=cuda MINUTES=7 JOBS=2    # a piece of seven minutes; again for the next

    python benchmarks/leaderboard.py --setup resnet20 --minutes 7 --budget flops=0.5 --budget params=0.5
    python benchmarks/leaderboard.py --setup densenet40 --tiny --methods l1,bwcp     # a rehearsal on few images

Needs .data/cifar10.npz. One seed of every method comes first, then three of those whose place is in question, then the
other budgets. What is finished stands in results/leaderboard/SETUP.json and is not measured again, wherever the next
piece runs; what was begun goes on from its checkpoint, where --folder still has it. docs/leaderboard.md says what is
missing. A rehearsal leaves its result beside its runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _record
import numpy as np
from _leaderboard_page import SETUPS
from compare_results import essential

from secateur.compare.leaderboard import means, paired
from secateur.methods import known

HERE = Path(__file__).parent
#: With three seeds in any case: what the paper calls its own, and what all are held against.
THREE = ("bwcp", "dcpcac", "nap", "csgd", "cpmc", "dense", "scratch", "random", "l1")
SEEDS = (0, 1, 2)
BEST = 3  # of the others, by their first seed, that get three seeds too
STOPPING_S = 45.0  # a piece is told to stop so long before its end: checkpoints are written, then the result
_LEAST_S = 20.0  # a comparison is not begun for less
IMAGES = {"train": 96, "test": 50}  # of a rehearsal
Cell = tuple[str, int, str]  # label, seed, budget
Row = dict[str, Any]


@dataclass(frozen=True)
class Round:
    """One call of `secateur compare`: some methods with one seed at one budget."""

    seed: int
    budget: str
    labels: tuple[str, ...]


def rounds(labels: Sequence[str], budgets: Sequence[str], rows: Sequence[Row], *, every: bool) -> list[Round]:
    """All that shall be measured, in order, as far as the results so far say.

    labels: methods. rows: what is finished. every: three seeds for all.
    """
    first = budgets[0]
    found = [Round(SEEDS[0], first, tuple(labels))]
    seen = {row["label"]: row["accuracy"]["final"] for row in rows if (row["seed"], row["budget"]) == (SEEDS[0], first)}
    others = sorted((label for label in labels if label in seen and label not in THREE), key=lambda label: -seen[label])
    chosen = set(labels) if every else {*THREE, *others[:BEST]}
    again = tuple(label for label in labels if label in chosen)
    found += [Round(seed, first, again) for seed in SEEDS[1:]]
    found += [Round(SEEDS[0], budget, tuple(x for x in labels if x != "dense")) for budget in budgets[1:]]
    return found


def open_cells(planned: Sequence[Round], result: Row, again: Set[Cell] = frozenset()) -> Iterator[Round]:
    """Of each round what neither is finished nor has failed, but for what is tried `again`."""
    over = {key(row) for row in result.get("rows", ())} | ({key(row) for row in result.get("failed", ())} - again)
    for each in planned:
        left = tuple(x for x in each.labels if (x, each.seed, _budget(x, each.budget)) not in over)
        if left:
            yield Round(each.seed, each.budget, left)


def _untimed(arguments: argparse.Namespace) -> Round | None:
    """A round that lacks nothing but latencies: given again, only they are measured, of all runs of the folder."""
    source = arguments.folder / "leaderboard.json"
    rows = _record.read(source)["rows"] if source.is_file() else []
    left = next((row for row in rows if row["latency"] is None and row["untimed"] is None), None)
    return left and Round(left["seed"], left["budget"], (left["label"],))


def key(row: Row) -> Cell:
    """Which cell a row is of."""
    return row["label"], row["seed"], _budget(row["label"], row["budget"])


def _budget(label: str, budget: str) -> str:
    return "flops=1.0" if label == "dense" else budget


def piece(arguments: argparse.Namespace, wanted: Round, seconds: float | None) -> bool:
    """Measure one round for so long at most; whether it came to its end. What it had begun goes on the next time."""
    call = [sys.executable, "-m", "secateur", "compare", str(_recipe(arguments)), "--no-dense"]
    call += ["--methods", ",".join(wanted.labels), "--seeds", "1", "--first-seed", str(wanted.seed)]
    call += ["--budget", wanted.budget, "--out", str(arguments.folder), "--jobs", str(arguments.jobs)]
    for change in (f"engine.device={arguments.device}", *_tiny(arguments)):
        call += ["--set", change]
    running = subprocess.Popen(call, start_new_session=True)
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGINT)  # as Ctrl-C: checkpoints are written
        try:
            running.wait(STOPPING_S * 2 / 3)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        return False
    except KeyboardInterrupt:
        running.send_signal(signal.SIGINT)
        running.wait()
        raise
    if running.returncode not in (0, 1):  # 1: a run failed, which stands in the result
        sys.exit(f"secateur compare ended with {running.returncode}: the message is above")
    return True


def keep(arguments: argparse.Namespace) -> Row:
    """The result so far, with what the folder has now; rows of pieces that ran elsewhere stay."""
    before: Row = _record.read(arguments.result) if arguments.result.is_file() else {}
    source = arguments.folder / "leaderboard.json"
    document = _record.read(source) if source.is_file() else {}
    result = _joined(before, document, arguments.setup) if document.get("rows") or document.get("failed") else before
    if not result:
        return {}
    missing = open_cells(_planned(arguments, result), result)
    result["missing"] = [
        {"label": x, "method": x, "repair": [], "seed": each.seed, "budget": _budget(x, each.budget)}
        for each in missing
        for x in each.labels
    ]
    _record.save(arguments.result, result)
    return result


def _joined(before: Row, document: Row, setup: str) -> Row:
    """What was known, and over it what the folder has."""
    new, here = essential(document), _record.environment()
    rows = {key(row): row for row in (*before.get("rows", ()), *new["rows"])}
    failed = {key(row): row for row in (*before.get("failed", ()), *new["failed"]) if key(row) not in rows}
    return {
        **new,
        "command": f"make leaderboard SETUP={setup}",
        "commit": here["commit"],
        "versions": here["versions"],
        "machine": here["device"],
        "load": max(before.get("load", 0.0), here["load"]),
        "bases": _union(before, new, "bases", "seed"),
        "methods": _union(before, new, "methods", "label"),
        "calls": _union(before, new, "calls", "date"),
        **{name: list(dict.fromkeys([*before.get(name, ()), *new[name]])) for name in ("device", "threads", "torch")},
        "means": means(list(rows.values())),
        "paired": paired(list(rows.values())),
        "failed": list(failed.values()),
        "rows": list(rows.values()),
    }


def _union(before: Row, new: Row, name: str, by: str) -> list[Any]:
    return list({row[by]: row for row in (*before.get(name, ()), *new[name])}.values())


def _planned(arguments: argparse.Namespace, result: Row) -> list[Round]:
    return rounds(arguments.methods, arguments.budget, result.get("rows", ()), every=arguments.every)


def _recipe(arguments: argparse.Namespace) -> Path:
    return Path(os.path.relpath(HERE)) / "recipes" / f"leaderboard-{arguments.setup}.yaml"


def _tiny(arguments: argparse.Namespace) -> list[str]:
    """Few images and epochs, for a rehearsal: the first of CIFAR-10, in a file of their own."""
    if not arguments.tiny:
        return []
    path = arguments.folder.parent / "tiny.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with np.load(arguments.data) as whole:
            few = {name: whole[name][: IMAGES["test" if "test" in name else "train"]] for name in whole.files}
        np.savez(path, **few)
    return [f"data.path={path}", "data.batch_size=32", "train.epochs=2", "finetune.epochs=2", "latency.repeats=5"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=SETUPS, default="resnet20")
    parser.add_argument("--minutes", type=float, help="end this piece before so many; none: go on until the end")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--methods", help="by commas; none: all, and the whole network")
    parser.add_argument("--budget", action="append", help="repeatable; the first is measured with three seeds")
    parser.add_argument("--every", action="store_true", help="three seeds for every method")
    parser.add_argument("--retry", action="store_true", help="what failed is tried once more")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: few images, four epochs")
    parser.add_argument("--folder", type=Path, help="of the runs; none: runs/leaderboard/SETUP")
    parser.add_argument("--data", type=Path, default=Path(".data/cifar10.npz"), help="of which a rehearsal takes few")
    found = parser.parse_args()
    room = "leaderboard-tiny" if found.tiny else "leaderboard"
    found.folder = found.folder or Path("runs") / room / found.setup
    kept = found.folder.parent if found.tiny else _record.RESULTS / "leaderboard"
    found.result = kept / f"{found.setup}.json"
    names = found.methods.split(",") if found.methods else [*(row.name for row in known()), "dense"]
    found.methods, found.budget = names, found.budget or ["flops=0.5"]
    return found


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would a run
    end = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes - STOPPING_S
    result = keep(arguments)
    again = {key(row) for row in result.get("failed", ())} if arguments.retry else set[Cell]()
    timed = False
    while wanted := next(
        open_cells(_planned(arguments, result), result, again), None if timed else _untimed(arguments)
    ):
        left = None if end is None else end - time.monotonic()
        if left is not None and left < _LEAST_S:
            break
        timed = not next(open_cells([wanted], result, again), None)
        again -= {(label, wanted.seed, _budget(label, wanted.budget)) for label in wanted.labels}
        ended = piece(arguments, wanted, left)
        before, result = len(result.get("rows", ())), keep(arguments)
        if not ended:
            break
        if not timed and len(result.get("rows", ())) == before and not result.get("failed"):
            sys.exit("secateur compare ended, and nothing is finished: its message is above")
    rows, missing = len(result.get("rows", ())), len(result.get("missing", ()))
    print(f"{arguments.setup}: {rows} runs finished, {len(result.get('failed', ()))} failed, {missing} to do")


if __name__ == "__main__":
    main()
