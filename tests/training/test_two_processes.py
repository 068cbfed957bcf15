"""Two processes under `accelerate launch` are one process with the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import _two
import pytest
import torch
from _toy import make_engine, short, toy_net
from safetensors.torch import load_file

WORKS = ("digits", "whitened", "mixed", "small")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """One test, as starting two processes costs more than all they do."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    launch(two)
    for name in WORKS:
        getattr(_two, name)(one)
        slack = 10 if name == "whitened" else 1  # its sharp gates make 1e-3 of a change of 1e-7 in the first weights
        weights_agree(load_file(two / f"{name}.safetensors"), load_file(one / f"{name}.safetensors"), slack)
        for row, wanted in zip(curve(two / name), curve(one / name), strict=True):
            assert row == pytest.approx(wanted, rel=1e-3 * slack, abs=1e-4 * slack)
        mine, true = (json.loads((folder / f"{name}.json").read_text()) for folder in (two, one))
        assert mine.keys() == true.keys()
        assert mine.get("masks") == true.get("masks")  # the plan
        for key in {"loss", "accuracy", "images"} & mine.keys():
            assert mine[key] == pytest.approx(true[key], rel=1e-3)
    _two.gathered(one)  # what methods learn from data is the same to the last digits
    sums, wanted = load_file(two / "gathered.safetensors"), load_file(one / "gathered.safetensors")
    assert sums.keys() == wanted.keys()
    for key, value in wanted.items():
        exact = 1e-12 if value.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(sums[key], value, rtol=exact, atol=exact * float(value.abs().max()), msg=key)
    a_killed_process_ended_the_run_with_a_sentence(two)


def launch(folder: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("_two.py")), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    for rank in range(2):
        assert (folder / f"survived{rank}").exists(), done.stdout + done.stderr


def weights_agree(mine: dict[str, torch.Tensor], true: dict[str, torch.Tensor], slack: float) -> None:
    assert mine.keys() == true.keys()
    for key, value in true.items():
        message = f"{key}: {{}}".format
        torch.testing.assert_close(mine[key], value, rtol=1e-3 * slack, atol=2e-4 * slack, msg=message)


def a_killed_process_ended_the_run_with_a_sentence(folder: Path) -> None:
    assert "Another process of this run has ended" in (folder / "dies.txt").read_text()
    engine = make_engine(folder / "dies")
    fitted = engine.fit("train", toy_net(dropout=0.0), short())  # and one process alone can go on
    assert fitted.resumed == 5
    assert any("2 processes" in note for note in fitted.notes)


def curve(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("epoch", "step", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "learning_rate")
    return [{key: row[key] for key in kept} for row in rows]
