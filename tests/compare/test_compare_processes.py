"""A comparison in several processes: the same result files; Ctrl-C, a kill and a process that dies cost nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from _contest import contest, outcome, recipe

from secateur.compare import local

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
METHODS = ("bwcp", "l1")
LONG = ("train.epochs=12",)  # so that there is time to kill it

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals as Unix has them")


@pytest.mark.long
def test_several_processes_leave_what_one_leaves_also_after_ctrl_c(tmp_path: Path) -> None:
    def told(event: Mapping[str, Any]) -> None:
        states.append(event["state"])
        if event["state"] == "finished" and event["left"] < 3:  # a run is finished, others are at work
            os.kill(os.getpid(), signal.SIGINT)

    states: list[str] = []
    several, one = {"seeds": [0, 1], "overrides": ("train.epochs=6",)}, tmp_path / "one"
    with pytest.raises(KeyboardInterrupt):
        contest(tmp_path / "two", "bwcp", "l1", jobs=2, told=told, **several)
    assert states[0] == "plan"
    assert states.count("begun") > states.count("finished")
    finished = list((tmp_path / "two" / "runs").glob("*/results.json"))
    assert 1 <= len(finished) < 4
    found = contest(tmp_path / "two", "bwcp", "l1", **several)
    contest(one, "bwcp", "l1", **several)
    assert outcome(tmp_path / "two") == outcome(one)
    assert [call["jobs"] for call in found.document["calls"]] == [2, 1]
    assert found.document["threads"] == [1]


#: Ends the first process but the main one that makes it.
DYING = """
import contextlib, multiprocessing, os, pathlib
from secateur.models import create

def net():
    if multiprocessing.parent_process() is not None:
        with contextlib.suppress(FileNotFoundError):
            pathlib.Path(__file__).with_name("deadly").unlink()
            print("these are my last words", flush=True)
            os._exit(7)
    return create("tiny", in_channels=1)
"""


@pytest.mark.long
def test_a_process_that_dies_is_a_failed_run_that_can_go_on(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(DYING)
    (tmp_path / "deadly").touch()
    overrides = (f"model={tmp_path / 'net.py'}:net",)
    first = contest(tmp_path / "a", "scratch", seeds=[0, 1, 2], overrides=overrides, jobs=2)
    assert len(first.document["rows"]) == 2  # another process took the place of the dead one
    assert [row["said"] for row in first.document["failed"]] == [
        "Its process ended before its time, with exit status 7: start the same comparison again to continue."
    ]
    assert "these are my last words" in (tmp_path / "a" / local.LOG).read_text()
    second = contest(tmp_path / "a", "scratch", seeds=[0, 1, 2], overrides=overrides)
    assert len(second.document["rows"]) == 3
    assert not second.document["failed"]


def begin(folder: Path, file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "secateur", "compare", str(file), "--methods", ",".join(METHODS)]
    command += ["--seeds", "1", "--jobs", "2", "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def at_work(process: subprocess.Popen[str], *files: Path) -> None:
    """Wait until these files are there."""
    deadline = time.monotonic() + 120
    while not all(file.is_file() for file in files):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0]
    return False


@pytest.mark.long
def test_a_kill_ends_all_processes_and_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe(*LONG).to_yaml())
    folder = tmp_path / "a folder"
    process = begin(folder, tmp_path / "recipe.yaml")
    at_work(process, folder / "runs" / "bwcp-0-flops=0.6" / "metrics.jsonl")
    workers = children(process.pid)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not any(map(alive, workers))  # nobody goes on in secret
    contest(folder, *METHODS, overrides=LONG)
    contest(tmp_path / "whole", *METHODS, overrides=LONG)
    assert outcome(folder) == outcome(tmp_path / "whole")
