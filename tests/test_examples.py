"""The programs in examples/ run as they stand, prune to half, keep most of the accuracy and leave a network on disk."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch

import secateur

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
NEEDS = {"lightning_callback": "lightning", "accelerate_loop": "accelerate"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path / "pruned")])
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # Lightning has advice about workers and logs
        runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr().out
    found = re.findall(r"(before|after): +accuracy ([\d.]+)%, ([\d,]+) MACs", said)
    (_, before, macs), (_, after, fewer) = found
    macs, fewer = (int(number.replace(",", "")) for number in (macs, fewer))
    assert 0.49 * macs <= fewer <= 0.5 * macs
    assert float(before) > 85
    assert float(after) > float(before) - 5
    saved = re.search(r"secateur.load\(.*\) has accuracy ([\d.]+)%", said)
    assert saved is not None
    assert saved[1] == after
    small = secateur.load(tmp_path / "pruned")
    assert type(small).__name__ == "ResNet"
    assert {file.name for file in tmp_path.iterdir()} <= {"pruned", "lightning_logs"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80


def test_there_is_one_for_each_loop() -> None:
    assert [path.stem for path in EXAMPLES] == ["accelerate_loop", "lightning_callback", "plain_pytorch"]
