"""Two runs, made once for all tests of this room."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import torch
from _runs import DIGIT, Run, make_run

import secateur
from secateur.models import create


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs") / "a", seed=1, onnx=True)


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Another network of the same shapes."""
    return make_run(tmp_path_factory.mktemp("runs") / "b", seed=2, onnx=False)


@pytest.fixture(scope="module")
def pruned() -> secateur.Result:
    """The tiny network for digits, cut."""
    torch.manual_seed(3)
    result = secateur.prune(create("tiny", in_channels=1).eval(), DIGIT, budget="flops=0.6")
    result.model.eval()
    return result


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Callable[..., Path]:
    """A function that gives fresh copies of the run's folder."""

    def copy(source: Path | None = None) -> Path:
        target = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source or run.folder, target)
        return target

    return copy
