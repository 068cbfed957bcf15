"""kill -9 at any moment, then the same call again: the weights are those of a run that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# pretrain: 5 steps; train: 3 epochs of 5. "every step" and "everything" write a checkpoint after each step.
SCENARIOS: list[tuple[str, list[tuple[str, int, str]]]] = [
    ("plain", [("step", 2, "after")]),  # before there is any checkpoint
    ("plain", [("step", 9, "before")]),
    ("plain", [("metrics", 2, "torn")]),
    ("plain", [("metrics", 3, "after")]),  # the row is there, its checkpoint is not
    ("plain", [("tensors", 4, "torn")]),
    ("plain", [("state", 4, "before")]),  # between the two files
    ("plain", [("state", 4, "torn")]),
    ("plain", [("rename", 4, "before")]),
    ("plain", [("rename", 4, "after")]),
    ("plain", [("state", 2, "before"), ("step", 3, "after"), ("rename", 3, "before"), ("metrics", 1, "after")]),
    ("every step", [("step", 8, "after")]),
    ("every step", [("tensors", 9, "torn")]),
    ("every step", [("rename", 8, "before"), ("rename", 3, "after"), ("step", 1, "after")]),
    ("everything", [("step", 7, "after")]),
    ("everything", [("step", 10, "after")]),  # the last of an epoch
    ("everything", [("tensors", 12, "torn"), ("tidy", 2, "after"), ("metrics", 1, "before")]),
    ("everything", [("rename", 22, "before")]),  # at the very end
    ("everything, by epoch", [("step", 13, "after")]),
    ("everything, by epoch", [("rename", 4, "before"), ("rename", 2, "before")]),
    ("in bf16, channels last", [("step", 8, "after")]),
    ("in bf16, channels last", [("tensors", 13, "torn"), ("step", 2, "before")]),
    ("in bf16, channels last", [("rename", 12, "after"), ("metrics", 1, "torn"), ("state", 3, "before")]),
    ("by name", [("step", 8, "after")]),
    ("by name", [("step", 10, "before"), ("tensors", 6, "torn"), ("step", 2, "after")]),
    ("narrowing", [("step", 9, "after")]),  # the network is narrowed in steps 9 and 16, the first 5 being pretraining
    ("narrowing", [("step", 11, "before"), ("tensors", 7, "torn"), ("step", 2, "after")]),
]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_and_resumed_is_as_if_never_killed() -> None:
    """One test, as the process that trains costs more to start than the scenarios do to run."""
    scenarios = [{"variant": variant, "kills": kills} for variant, kills in SCENARIOS]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("_kills.py")), json.dumps(scenarios)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    for (variant, kills), found in zip(SCENARIOS, outcomes, strict=True):
        assert found["status"] == [-signal.SIGKILL] * len(kills) + [0], (variant, kills)  # every kill took place
        assert found["same"], (variant, kills, found["found"])
        assert found["found"]["leftovers"] == [], (variant, kills)
