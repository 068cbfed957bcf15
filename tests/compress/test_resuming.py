"""A search that is interrupted anywhere ends with the trials and the network of one that was not."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from _quarters import QUICK, images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.compress import Compressed

SEARCH: dict[str, Any] = {**QUICK, "epochs": 2, "trials": 2, "max_drop": 3}


class Stop(BaseException):
    """The end of a process, as near as one can come to it within one."""


def _search(model: nn.Module, loader: Any, folder: Path | None, stop: str = "") -> Compressed:
    def say(text: str) -> None:
        if stop and text.startswith(stop):
            raise Stop

    return secateur.compress(model, loader, out=folder, say=say, **SEARCH)


def _same(one: Compressed, other: Compressed) -> None:
    trials = [[(t.stage, t.number, t.what, t.figure, t.cost, t.rounds) for t in found.tried] for found in (one, other)]
    assert trials[0] == trials[1]
    weights = one.model.state_dict(), other.model.state_dict()
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.fixture(scope="module")
def whole(trained: nn.Module) -> Compressed:
    """In memory, and never interrupted."""
    loader = DataLoader(TensorDataset(*images(240)), batch_size=40, shuffle=True)
    return _search(copy.deepcopy(trained), loader, None)


@pytest.mark.long
def test_interrupted_in_every_stage(model: nn.Module, loader: Any, whole: Compressed, tmp_path: Path) -> None:
    """One folder, stopped in the middle of trials of each stage one after the other."""
    for stop in ("trial 2", "training 2", "level", "round 2"):
        with pytest.raises(Stop):
            _search(model, loader, tmp_path, stop)
    found = _search(model, loader, tmp_path)
    _same(found, whole)


def test_a_search_is_not_continued_on_something_else(model: nn.Module, loader: Any, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        _search(model, loader, tmp_path, "trial 1")
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    with pytest.raises(secateur.RunError, match="another network, other data or another task"):
        _search(model, loader, tmp_path)


def test_a_damaged_record_is_a_sentence(model: nn.Module, loader: Any, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(secateur.RunError, match="cannot be opened"):
        _search(model, loader, tmp_path)


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from _quarters import QUICK, images, network
from torch.utils.data import DataLoader, TensorDataset
import secateur
torch.set_num_threads(1)
model = network()
model.load_state_dict(torch.load(sys.argv[2], weights_only=True))
loader = DataLoader(TensorDataset(*images(240)), batch_size=40, shuffle=True)
options = {**QUICK, "epochs": 2, "trials": 2, "max_drop": 3}
secateur.compress(model.eval(), loader, out=sys.argv[3], say=lambda text: print(text, flush=True), **options)
"""


@pytest.mark.long
def test_killed_at_five_points(model: nn.Module, loader: Any, whole: Compressed, tmp_path: Path) -> None:
    """kill -9 a little after each of five messages, wherever that is; then the search goes on to the same end."""
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(Path(__file__).parent),
        str(tmp_path / "weights.pt"),
        str(tmp_path / "c"),
    ]
    for number, stop in enumerate(("trial 2", "trial 4", "training 2", "level", "training the best")):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert any(line.startswith(stop) for line in process.stdout)
            time.sleep(0.02 * number)
            process.send_signal(signal.SIGKILL)
    _same(_search(model, loader, tmp_path / "c"), whole)
