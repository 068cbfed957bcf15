"""Two processes under `accelerate launch` leave what one leaves; one that is killed ends the run with a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from _small import GATED, recipe

from secateur.recipe import Recipe
from secateur.runs import resume, start
from secateur.runtime import check_folder

#: By folder: a method with gates at work, one that learns from data, a repair and a method that squares gradients.
RUNS = {
    "gated": (*GATED, "latency.repeats=3"),
    "cp": ("method=cp", "data.calibration_images=130", "finetune=null", "repair=batchnorm"),
    "fisher": ("method=group_fisher", "train.epochs=4", "pretrain.epochs=1"),
    "killed": ("train.epochs=40", "train.lr=0.005", "finetune=null"),
}
ROOT = Path(__file__).parents[2]
TASKS = {"shapes-unet": "mIoU", "shapes-detector": "mAP", "gratings-espcn": "PSNR"}
SHORT = (
    "data.options={images: 24}", "data.batch_size=8", "data.validation=0.25", "engine.device=cpu", "latency=null",
    "engine.precision=fp32", "export={onnx: false, pt2: true}",
)  # fmt: skip
#: With channels together in memory half a batch is summed in another order than a whole one; training enlarges that.
APART = ("engine.memory_format=contiguous",)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a process by its environment, as Linux shows it")
def test_two_processes_leave_what_one_leaves(tmp_path: Path) -> None:
    """One test, as starting two processes costs more than all they do."""
    for name, overrides in RUNS.items():
        (tmp_path / f"{name}.yaml").write_text(recipe(*overrides, *APART).to_yaml())
    process = launched(tmp_path, list(RUNS))
    kill_the_second(process, tmp_path / "killed" / "metrics.jsonl")
    said, problems = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said == "".join(f"{name}/report.html\n" for name in list(RUNS)[:-1])  # the first process speaks for both
    assert "error: Another process of this run has ended" in problems or "error: Interrupted: continue" in problems
    for name in ("gated", "cp", "fisher"):
        the_same(tmp_path / name, start(recipe(*RUNS[name], *APART), tmp_path / f"{name}-alone").folder, slack=1)
    stage = json.loads((tmp_path / "killed" / "state.json").read_text())["stages"]
    assert "train" not in stage
    resume(tmp_path / "killed")  # and one process alone goes on
    the_same(tmp_path / "killed", start(recipe(*RUNS["killed"], *APART), tmp_path / "killed-alone").folder, slack=5)
    notes = json.loads((tmp_path / "killed" / "results.json").read_text())["method"]["notes"]
    assert any("2 processes" in note for note in notes)


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_leave_what_one_leaves_of_other_tasks(tmp_path: Path) -> None:
    """A mean over pixels that have a class, a list of boxes an image, and an answer larger than its input."""
    for name in TASKS:
        text = (ROOT / "recipes" / f"{name}.yaml").read_text()
        stages = [f"{stage}.epochs=2" for stage in ("pretrain", "train", "finetune") if f"\n{stage}:" in text]
        (tmp_path / f"{name}.yaml").write_text(Recipe.parse(text, (*SHORT, *APART, *stages)).to_yaml())
    process = launched(tmp_path, list(TASKS))
    _, problems = process.communicate(timeout=600)
    assert process.returncode == 0, problems
    for name, headline in TASKS.items():
        alone = start(Recipe.parse((tmp_path / f"{name}.yaml").read_text()), tmp_path / f"{name}-alone").folder
        the_same(tmp_path / name, alone, slack=1)
        finals = [json.loads((f / "results.json").read_text())[headline]["final"] for f in (tmp_path / name, alone)]
        assert finals[0] == pytest.approx(finals[1], rel=1e-3, abs=1e-4)


def launched(folder: Path, names: list[str]) -> subprocess.Popen[str]:
    """Two processes that do one run after the other."""
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    more = ["--dynamo_backend", "no", "--main_process_port", "0", str(Path(__file__).with_name("_launched.py")), *names]
    return subprocess.Popen(
        [sys.executable, *launch.split(), *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
    )


def kill_the_second(process: subprocess.Popen[str], file: Path) -> None:
    """Once some epochs of the run are over."""
    deadline = time.monotonic() + 480  # four starts on a busy machine
    while not file.is_file() or len(file.read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    pids = [int(word) for word in listed.stdout.split()]
    (second,) = [pid for pid in pids if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    os.kill(second, signal.SIGKILL)


def the_same(two: Path, one: Path, slack: float) -> None:
    """Plan, weights and the curves of training."""
    assert (two / "plan.json").read_bytes() == (one / "plan.json").read_bytes()
    weights, wanted = load_file(two / "model.safetensors"), load_file(one / "model.safetensors")
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3 * slack, atol=1e-3 * slack)
    assert check_folder(two)["cut"]["exact"]
    losses = [[row["train_loss"] for row in map(json.loads, (f / "metrics.jsonl").open())] for f in (two, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 * slack, abs=1e-4 * slack)
    assert two.name == "killed" or json.loads((two / "results.json").read_text())["processes"] == 2
