"""A run of two processes under `accelerate launch` leaves what a run of one leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from _small import GATED, recipe

from secateur.runs import start
from secateur.runtime import check_folder


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(tmp_path: Path) -> None:
    small = recipe(*GATED, "latency.repeats=3")
    (tmp_path / "recipe.yaml").write_text(small.to_yaml())
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    more = "--dynamo_backend no --main_process_port 0 -m secateur.cli run recipe.yaml --out two -q"
    done = subprocess.run(
        [sys.executable, *launch.split(), *more.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "two/report.html\n"  # the first process speaks for both
    one = start(small, tmp_path / "one").folder
    two = tmp_path / "two"
    assert (two / "plan.json").read_bytes() == (one / "plan.json").read_bytes()
    weights, wanted = load_file(two / "model.safetensors"), load_file(one / "model.safetensors")
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-3)
    assert check_folder(two)["cut"]["exact"]
    assert json.loads((two / "results.json").read_text())["processes"] == 2
