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


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, str(Path(__file__).with_name("_two.py")), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert (folder / "survived0").exists(), done.stdout + done.stderr
    assert (folder / "survived1").exists(), done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    for work in (_two.digits, _two.whitened, _two.mixed, _two.small):
        work(folder)
    return folder


@pytest.mark.parametrize("name", ["digits", "whitened", "mixed", "small"])
def test_weights_and_curves_agree(one: Path, two: Path, name: str) -> None:
    mine, true = load_file(two / f"{name}.safetensors"), load_file(one / f"{name}.safetensors")
    assert mine.keys() == true.keys()
    for key, value in true.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    rows, expected = curve(two / name), curve(one / name)
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["digits", "whitened"])
def test_the_plan_is_the_same(one: Path, two: Path, name: str) -> None:
    mine, true = (json.loads((folder / f"{name}.json").read_text()) for folder in (two, one))
    assert mine["masks"] == true["masks"]


def test_evaluation_is_shared(one: Path, two: Path) -> None:
    mine, true = (json.loads((folder / "digits.json").read_text()) for folder in (two, one))
    assert mine["images"] == true["images"] == 500
    assert mine["loss"] == pytest.approx(true["loss"], rel=1e-3)
    assert mine["accuracy"] == pytest.approx(true["accuracy"], abs=0.004)


def test_a_killed_process_ends_the_run_with_a_sentence(two: Path) -> None:
    assert "Another process of this run has ended" in (two / "dies.txt").read_text()
    engine = make_engine(two / "dies")
    fitted = engine.fit("train", toy_net(dropout=0.0), short())  # and one process alone can go on
    assert fitted.resumed == 5
    assert any("2 processes" in note for note in fitted.notes)


def curve(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("epoch", "step", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "learning_rate")
    return [{key: row[key] for key in kept} for row in rows]
