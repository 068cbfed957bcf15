"""A trace sees its own network alone: not other threads, autocast, inference mode or compiled calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import secateur
from secateur import Graph

pytestmark = pytest.mark.long  # `make long` runs it

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def taps(graph: Graph) -> list[tuple[str, int, int]]:
    return [(tap.module, tap.position, tap.dim) for tap in graph.recording.taps]


@contextmanager
def busy(count: int = 2) -> Iterator[None]:
    """Other threads run a network of other names all the time."""
    other, stop = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(5))), threading.Event()

    def run() -> None:
        while not stop.is_set():
            other(IMAGE)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_traces_agree_whatever_other_threads_run() -> None:
    want = taps(secateur.trace(Small(), IMAGE))
    with busy():
        assert all(taps(secateur.trace(Small(), IMAGE)) == want for _ in range(60))


def test_four_prunes_at_once_do_as_one_alone() -> None:
    alone = secateur.prune(Small(), IMAGE, budget="flops=0.5")
    fast = torch.backends.mha.get_fastpath_enabled()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(secateur.prune, Small(), IMAGE, budget="flops=0.5") for _ in range(4)]
        results = [job.result() for job in jobs]
    for result in results:
        assert result.plan.widths == alone.plan.widths
        assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), alone.model.parameters(), strict=True))
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_a_trace_leaves_no_hook_behind() -> None:
    model = Small()
    graph = secateur.trace(model, IMAGE)
    assert not torch.nn.modules.module._global_forward_hooks
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert graph.model is model


class Inside(Small):
    """It enters autocast itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_autocast_outside_or_inside_makes_no_cut_inexact() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        outside = secateur.prune(Small(), IMAGE, budget="flops=0.5")
        assert torch.is_autocast_enabled("cpu")
    for result in (outside, secateur.prune(Inside(), IMAGE, budget="flops=0.5")):
        assert result.verification is not None
        assert result.verification.exact
        assert result.verification.reasons == ()


class Inferring(Small):
    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class Normed(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return super().forward(x)


def test_a_forward_in_inference_mode_is_traced_as_any_other() -> None:
    want = secateur.prune(Small(), IMAGE, budget="flops=0.5")
    result = secateur.prune(Inferring(), IMAGE, budget="flops=0.5")
    assert result.after == want.after
    normed = Normed(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    assert [g.name for g in secateur.trace(normed, IMAGE).groups] == ["0"]


def compiled(how: str) -> Small:
    model = Small()
    if how == "whole":
        model.compile(backend="eager")
    elif how == "a layer":
        model.b.compile(backend="eager")
    elif how == "a wrapped layer":
        model.b = torch.compile(model.b, backend="eager")  # type: ignore[assignment]
    else:
        model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("how", ["whole", "a layer", "a wrapped layer", "its forward"])
def test_compiled_layers_are_traced_as_plain_ones(how: str) -> None:
    want = secateur.prune(Small(), IMAGE, budget="flops=0.5")
    result = secateur.prune(compiled(how), IMAGE, budget="flops=0.5")
    assert result.after == want.after
    assert torch.equal(result.model(IMAGE), want.model(IMAGE))
    assert any("Compiled in place" in note for note in result.notes) == (how != "a wrapped layer")
