"""kill -9 at any moment of a run, then `secateur run --resume`: what it leaves is what an uninterrupted run leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from _small import CHAINS, outcome, recipe

from secateur.runs import resume, start

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")


@pytest.fixture(scope="module")
def chains() -> dict[str, Any]:
    driver = str(Path(__file__).with_name("_killed_runs.py"))
    done = subprocess.run([sys.executable, driver], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", CHAINS)
def test_killed_again_and_again_is_as_if_never_killed(chains: dict[str, Any], name: str) -> None:
    found = chains[name]
    whole, *killed, last = found["status"]
    assert (whole, last) == (0, 0)
    assert set(killed) == {-signal.SIGKILL}
    assert len(killed) >= 5  # at so many different moments
    assert found["resumed"] == found["whole"]
    assert found["left"] == []


def _secateur(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "secateur", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def test_ctrl_c_says_how_to_go_on_and_the_result_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe("train.epochs=6", "finetune=null").to_yaml())
    folder, whole = tmp_path / "a folder", tmp_path / "whole"
    first = _secateur("run", str(tmp_path / "recipe.yaml"), "--out", str(folder))
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.is_file() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 130, said
    assert said.splitlines()[-1] == f"error: Interrupted: continue with secateur run --resume '{folder}'."
    assert "Traceback" not in said
    assert not (folder / "results.json").exists()
    resume(folder)
    start(recipe("train.epochs=6", "finetune=null"), whole)
    assert outcome(folder) == outcome(whole)
