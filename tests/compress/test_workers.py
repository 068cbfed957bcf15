"""Candidates that several workers try at a time: the trials and the network of a search that tries one at a time."""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from _quarters import QUICK
from torch import nn

import secateur
from secateur.compress import Compressed, entry, workers
from secateur.compress.making import Maker, Outcome
from secateur.compress.record import Record
from secateur.compress.workers import Attempt, ClusterHands, OwnHands

SEARCH: dict[str, Any] = {**QUICK, "epochs": 1, "trials": 7, "methods": ("l1", "fpgm", "cp"), "flops": 0.5}


class Stop(BaseException):
    """As if the process ended."""


class Several(OwnHands):
    """As workers: several at a time; the end of the process comes after `last` outcomes."""

    def __init__(self, maker: Maker, count: int, last: int = 10**6) -> None:
        super().__init__(maker)
        self.count, self.batches, self._left = count, list[int](), last

    def tried(self, attempts: Sequence[Attempt]) -> Iterator[Outcome]:
        self.batches.append(len(attempts))
        for outcome in reversed([self._maker.tried(*attempt) for attempt in reversed(attempts)]):
            if not self._left:
                raise Stop
            self._left -= 1
            yield outcome


def _with(monkeypatch: pytest.MonkeyPatch, count: int, last: int = 10**6) -> list[Several]:
    made: list[Several] = []

    @contextlib.contextmanager
    def several(maker: Maker, *_: Any) -> Iterator[Several]:
        made.append(Several(maker, count, last))
        yield made[-1]

    monkeypatch.setattr(entry, "hands", several)
    return made


def _trials(found: Compressed) -> list[tuple[Any, ...]]:
    return [(t.stage, t.number, t.what, t.figure, t.cost, t.rounds) for t in found.tried]


@pytest.fixture(scope="module")
def alone(trained: nn.Module, request: pytest.FixtureRequest) -> Compressed:
    from _quarters import images
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(*images(240)), batch_size=40, shuffle=True)
    return secateur.compress(copy.deepcopy(trained), loader, **SEARCH)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_how_many_at_a_time_changes_nothing(
    model: nn.Module, loader: Any, alone: Compressed, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    made = _with(monkeypatch, count)
    found = secateur.compress(model, loader, **SEARCH)
    assert _trials(found) == _trials(alone)
    assert max(made[0].batches) == min(count, 4)  # candidates are proposed four together
    assert len({each.what for each in found.tried if each.stage == "race"}) == 7
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)


def test_proposals_know_what_is_before_their_four(
    model: nn.Module, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, imagined = list[tuple[int, int]](), Record.imagined

    def noted(self: Record, study: str, number: int, known: Any, ask: Any) -> Any:
        seen.append((number, len(known)))
        return imagined(self, study, number, known, ask)

    monkeypatch.setattr(Record, "imagined", noted)
    secateur.compress(model, loader, **{**SEARCH, "epochs": 0})
    assert seen == [(number, number - number % 4) for number in range(7 - len(seen), 7)]
    assert len(seen) >= 3


def test_killed_among_several_and_resumed_alone(
    model: nn.Module, loader: Any, alone: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once where some of a batch have answered, once among the levels of the front."""
    for last in (5, 3):
        _with(monkeypatch, 3, last)
        with pytest.raises(Stop):
            secateur.compress(model, loader, out=tmp_path, **SEARCH)
    monkeypatch.undo()
    assert _trials(secateur.compress(model, loader, out=tmp_path, **SEARCH)) == _trials(alone)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_no_number_of_workers(model: nn.Module, loader: Any, count: Any) -> None:
    with pytest.raises(secateur.ConfigError, match=r"workers is .*: give a whole number of at least 1"):
        secateur.compress(model, loader, flops=0.5, workers=count)


def test_several_machines(model: nn.Module, loader: Any, tmp_path: Path) -> None:
    with pytest.raises(secateur.ConfigError, match="need out="):
        secateur.compress(model, loader, flops=0.5, workers=2, address="auto", time=None)
    maker: Any = SimpleNamespace(request=SimpleNamespace(key="latency"))
    with pytest.raises(secateur.ConfigError, match="Layers are timed on this machine"):
        workers.hands(maker, 2, "10.0.0.1:6379", tmp_path, print).__enter__()


class Failed(Exception):
    """As of Ray, with the error of the worker."""

    def __init__(self, said: str, cause: Exception | None = None) -> None:
        super().__init__(said)
        self.cause = cause


class Lost(Exception):
    """As of Ray."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Failed("no memory\nat all"), "A worker of the search failed"),
        (Failed("long", secateur.RunError("Its own sentence.")), "^Its own sentence.$"),
        (Lost("its node is gone"), "A worker of the search was lost .*: the same call"),
    ],
)
def test_a_worker_that_fails(error: Exception, said: str) -> None:
    def get(reference: Any) -> Any:
        raise error

    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayTaskError=Failed, RayError=Lost))
    hand = SimpleNamespace(tried=SimpleNamespace(remote=lambda *attempt: attempt))
    with pytest.raises(secateur.RunError, match=said):
        list(ClusterHands(ray, [hand]).tried([(None, 1.0)]))  # type: ignore[list-item]


def test_code_of_a_file_goes_with_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no other process can import by name is sent by value; what it can is not."""
    pytest.importorskip("ray")
    module = ModuleType("_secateur_model_mine")
    exec("from torch import nn\nclass Mine(nn.Linear):\n    factor = 3\n", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    mine: Any = module.__dict__["Mine"](2, 2)
    found = workers._unknown(nn.Sequential(mine, nn.ReLU()))
    assert module in found
    assert all(each.__name__.startswith(("_secateur_model_", "secateur_plugin_")) for each in found)
    nothing: Any = None
    content = workers._pickled(Maker(mine, nothing, nothing, nothing, nothing, nothing, {"watch": print}))
    monkeypatch.delitem(sys.modules, module.__name__)
    there = pickle.loads(content)
    assert there.model.factor == 3
    assert there.options == {"watch": None}
    with pytest.raises(secateur.ConfigError, match="cannot be sent to workers"):
        workers._pickled(Maker(nn.ReLU(), threading.Lock(), nothing, nothing, nothing, nothing, {}))


@pytest.mark.long
def test_two_workers_of_ray(model: nn.Module, loader: Any, alone: Compressed, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    found = secateur.compress(model, loader, workers=2, out=tmp_path / "c", **SEARCH)
    assert _trials(found) == _trials(alone)
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
