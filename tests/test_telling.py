"""How far work is: said not too often, with an estimate, and nothing where nobody listens."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import secateur
from secateur._progress import follow, listening


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_an_estimate_is_said_not_too_often(clock: list[float]) -> None:
    said: list[str] = []
    with listening(said.append, every=15):
        for _ in follow("layers", list(range(10))):
            clock[0] += 10
    assert said == [
        "layers: 2 of 10, about 80 s left", "layers: 4 of 10, about 60 s left", "layers: 6 of 10, about 40 s left",
        "layers: 8 of 10, about 20 s left", "layers: 10 done",
    ]  # fmt: skip


@pytest.mark.parametrize(("seconds", "said"), [(60, "9 min"), (3600, "9.0 h")])
def test_long_times_are_in_larger_units(clock: list[float], seconds: int, said: str) -> None:
    heard: list[str] = []
    with listening(heard.append):
        parts = follow("batches", iter(()), total=10)
        assert list(parts) == []
        for _ in follow("batches", range(10)):
            clock[0] += seconds
    assert heard[0] == f"batches: 1 of 10, about {said} left"


def test_parts_that_nobody_counted_are_counted(clock: list[float]) -> None:
    said: list[str] = []
    with listening(said.append):
        for _ in follow("batches", (k for k in range(2))):
            clock[0] += 20
    assert said == ["batches: 1 done", "batches: 2 done"]


def test_nobody_hears_after_the_end(clock: list[float]) -> None:
    said: list[str] = []
    with listening(said.append):
        pass
    for _ in follow("layers", [1, 2]):
        clock[0] += 100
    assert said == []


@pytest.mark.parametrize(("method", "repair", "what"), [("cp", (), "layers"), ("l1", "least_squares", "layers"),
                                                        ("l1", "compensation", "batches")])  # fmt: skip
def test_methods_and_repairs_tell(method: str, repair: str, what: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4)).eval()
    x = torch.randn(8, 3, 6, 6)
    said: list[str] = []
    with listening(said.append, every=0):
        secateur.prune(net, x[:1], method=method, budget="flops=0.5", data=list(x.split(4)), repair=repair)
    assert any(sentence.startswith(f"{what}: ") and " left" in sentence for sentence in said), said
