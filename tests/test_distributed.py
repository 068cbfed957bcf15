"""Sums over processes: where they are taken. What they come to, two processes show (training/test_two_processes.py)."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from secateur import _distributed


@pytest.mark.parametrize(("backend", "wanted"), [("gloo", "cpu"), ("nccl", "cuda:1")])
def test_what_lies_on_the_cpu_meets_on_a_gpu_where_processes_know_nothing_else(
    backend: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert str(_distributed.meeting(torch.device("cpu"))) == wanted
    assert str(_distributed.meeting(torch.device("cuda", 0))) == "cuda:0"
