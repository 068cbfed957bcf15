"""Other threads run networks while one is traced, and several are pruned at once: everybody gets what was asked for."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from _judge import TOLERANCE, error, image, relu_conv, right_or_refused, unique
from torch import nn

import secateur
from secateur import SecateurError


class Net(nn.Module):
    def __init__(self, width: int = 12, blocks: int = 3) -> None:
        super().__init__()
        self.stem = relu_conv(3, 16)
        self.blocks = nn.ModuleList(nn.Sequential(relu_conv(16, width), relu_conv(width, 16)) for _ in range(blocks))
        self.out = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x.mean((2, 3)))


@pytest.fixture(autouse=True)
def hasty() -> Iterator[None]:
    """Threads take turns often, so that what can go wrong between them does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[list[BaseException]]:
    """Another thread that does the same again and again meanwhile; its errors."""
    over, failures = threading.Event(), []

    def again() -> None:
        try:
            while not over.is_set():
                work()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        yield failures
    finally:
        over.set()
        thread.join(30)


def seen(model: nn.Module) -> list[Any]:
    graph = secateur.trace(model, image())
    taps = [[(t.module, t.dim, t.position, t.index.tolist()) for t in graph.taps(g)] for g in graph.groups]
    return [{g.name: g.width for g in graph.groups}, [f.name for f in graph.frozen], taps, graph.cost()]


def running(other: nn.Module) -> Callable[[], None]:
    def work() -> None:
        with torch.no_grad():
            other(image())

    return work


def training(other: nn.Module) -> Callable[[], None]:
    return lambda: other(image()).sum().backward()


def hooked(other: nn.Module) -> Callable[[], None]:
    def work() -> None:
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        try:
            other(image())
        finally:
            handle.remove()

    return work


@pytest.mark.parametrize("other", ["same class", "other class", "same model"])
@pytest.mark.parametrize("how", [running, training, hooked], ids=lambda h: h.__name__)
def test_a_trace_sees_its_own_network_alone(how: Callable[[nn.Module], Callable[[], None]], other: str) -> None:
    model = unique(Net()).eval()
    wanted = seen(model)
    beside_it = {
        "same class": unique(Net(8)), "same model": model,
        "other class": nn.Sequential(*(relu_conv(3, 3) for _ in range(4))),
    }[other]  # fmt: skip
    with beside(how(beside_it)) as failures:
        for _ in range(4):
            assert seen(model) == wanted
    assert not failures


def test_networks_pruned_at_once_come_out_as_one_after_the_other() -> None:
    models = [unique(Net(8 + 2 * k, 2), seed=k).eval() for k in range(4)]

    def work(model: nn.Module) -> Any:
        return right_or_refused(lambda: secateur.prune(model, image(), budget="flops=0.5"), "thread")

    one_by_one = [work(copy.deepcopy(m)) for m in models]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(work, models))
    for model, wanted, got in zip(models, one_by_one, at_once, strict=True):
        if got is not None:
            assert got.plan == wanted.plan
            assert got.verification.exact
            assert error(model, got.model, image()) <= TOLERANCE


def test_a_network_pruned_beside_one_that_trains() -> None:
    model, other = unique(Net()).eval(), unique(Net(8)).train()
    wanted = secateur.prune(model, image(), budget="flops=0.5").plan
    with beside(training(other)) as failures:
        for _ in range(3):
            result = secateur.prune(model, image(), budget="flops=0.5")
            assert result.plan == wanted
            assert error(model, result.model, image()) <= TOLERANCE
    assert not failures
    assert all(p.grad is not None for p in other.parameters())  # its graph was recorded as ever


def test_a_trace_leaves_no_hook_behind() -> None:
    registered = nn.modules.module
    before = [len(getattr(registered, n)) for n in ("_global_forward_hooks", "_global_forward_pre_hooks")]
    model = unique(Net()).eval()
    secateur.trace(model, image())
    with pytest.raises(SecateurError):
        secateur.trace(model, torch.zeros(1, 7, 8, 8))
    assert [len(getattr(registered, n)) for n in ("_global_forward_hooks", "_global_forward_pre_hooks")] == before
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("method", ["taylor", "cp", "l1"])
def test_one_network_is_pruned_by_several_threads_at_once(method: str) -> None:
    """Gradients are taken of it, and hooks read what its layers read: one thread at a time."""
    torch.manual_seed(0)
    model = Net(8, 2).eval()
    data = [(torch.randn(4, 3, 8, 8), torch.randint(0, 5, (4,)))]

    def pruned(number: int) -> list[torch.Tensor]:
        given = nn.DataParallel(model) if number % 2 else model  # the same network, wrapped
        found = secateur.prune(given, image(), method=method, budget="flops=0.6", data=data, repair="least_squares")
        return [*found.model.state_dict().values()]

    alone = pruned(0)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(pruned, range(8)):
            assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
