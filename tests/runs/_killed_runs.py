"""Run by test_run_kills.py in a process of its own: `secateur run` killed by SIGKILL again and again, and resumed.

Every command is a fork, so that PyTorch is imported once. A process dies at its n-th durable write: just before what it
wrote is made durable, or just after it was given its name. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

torch.set_num_threads(1)

from _forked import forked  # noqa: E402
from _small import CHAINS, outcome, recipe  # noqa: E402

from secateur import cli, runs  # noqa: E402

MOST = 60  # commands in a chain; a run that makes no progress would go on for ever


def die_at(number: int) -> None:
    """Arrange for this process to be killed at its `number`-th durable write."""
    events = 0

    def counted(original: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal events
            events += 1
            if events == number and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **keywords)
            if events == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os.fsync = counted(os.fsync, before=True)
    os.replace = counted(os.replace, before=False)
    os.rename = counted(os.rename, before=False)


def command(arguments: list[str], number: int) -> int:
    """`secateur ARGUMENTS` in a child that dies at write `number` (0: never); its exit status."""

    def work() -> None:
        if number:
            die_at(number)
        sys.argv = ["secateur", *arguments]
        cli.main()

    return forked(work)


def chain(folder: Path, file: Path, intervals: list[int]) -> list[int]:
    """Begin a run and resume it until it is finished, killed after so many writes each time."""
    status: list[int] = []
    for turn in range(MOST):
        begun = (folder / "state.json").is_file()
        arguments = ["run", "--resume", str(folder)] if begun else ["run", str(file), "--out", str(folder)]
        status.append(command([*arguments, "-q"], intervals[turn % len(intervals)]))
        if status[-1] != -signal.SIGKILL:
            break
    return status


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        runs.prepare(recipe("export.pt2=true"))  # what is imported late is there before the first fork
        for name, (overrides, intervals) in CHAINS.items():
            file = place / f"{name}.yaml"
            file.write_text(recipe(*overrides).to_yaml())
            status = [command(["run", str(file), "--out", str(place / f"{name} whole"), "-q"], 0)]
            status += chain(place / name, file, intervals)
            results = [outcome(place / f) for f in (f"{name} whole", name)]
            left = [p.name for p in (place / name).rglob("*.tmp")]
            found[name] = {"status": status, "whole": results[0], "resumed": results[1], "left": left}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
