"""How a search's time is divided, in worked numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from _quarters import QUICK
from torch import nn

import secateur
from secateur.compress import ground, race
from secateur.compress.candidates import Candidate
from secateur.compress.ground import RACE_SHARE, Ground, fitting, timed, untimed
from secateur.compress.judging import Judge
from secateur.compress.race import _last
from secateur.compress.record import Record


@pytest.mark.parametrize(
    ("seconds", "epochs", "step", "judging", "wanted"),
    [
        (1800, None, 1.0, 6.0, (25, 40, 1, 1)),  # 1170 s for rounds of 40 + 6; three short ones take 138 s of 360
        (1800, 4, 1.0, 6.0, (4, 40, 1, 1)),
        (7200, None, 1.0, 6.0, (80, 40, 5, 1)),  # 3 x 5 x 46 = 690 s of 1440
        (90, None, 1.0, 6.0, (2, 14, 1, 0)),  # three short trainings of 20 s would take the 58 s that there are
        (10, None, 30.0, 6.0, (0, 1, 0, 0)),  # not even a step
    ],
)
def test_what_fits_into_the_time(
    seconds: float, epochs: int | None, step: float, judging: float, wanted: tuple[int, ...]
) -> None:
    found = timed(seconds, epochs, 40, step, judging)
    assert tuple(found[name] for name in ("rounds", "steps", "short", "finalists")) == wanted


@pytest.mark.parametrize(
    ("left", "epochs", "step", "wanted"),
    [
        (60, None, 1.0, (4, 10)),  # of 10 + 5 seconds
        (66, None, 1.0, (4, 11)),  # what is over makes them longer
        (12, None, 1.0, (1, 7)),  # less than a round is a shorter one
        (5, None, 1.0, (0, 10)),
        (-3, None, 1.0, (0, 10)),
        (1000, 2, 1.0, (2, 40)),  # as many as are asked for, of an epoch each at most
        (3000, None, 0.1, (80, 40)),
    ],
)
def test_the_last_training_fills_what_is_left(
    left: float, epochs: int | None, step: float, wanted: tuple[int, int]
) -> None:
    assert fitting(left, epochs, 10, 40, step, 5.0) == wanted


def test_without_a_time_all_that_is_asked_for_is_done() -> None:
    assert untimed(8, 40) == {"rounds": 8, "steps": 40, "short": 2, "finalists": 1}
    assert untimed(2, 40)["short"] == 1


def test_no_network_is_judged_twice(model: nn.Module, loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    judge = Judge.__call__

    def counted(self: Judge, network: nn.Module) -> float:
        tensors = network.state_dict().values()
        seen.append(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors))
        return judge(self, network)

    monkeypatch.setattr(Judge, "__call__", counted)
    found = secateur.compress(model, loader, flops=0.4, **{**QUICK, "trials": 2, "epochs": 4})
    assert found.met
    assert {each.stage for each in found.tried} >= {"race", "finalists"}
    assert len(set(seen)) == len(seen)


def test_a_time_without_room_for_finalists_is_told(
    model: nn.Module, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ground, "timed", lambda *_: {"rounds": 1, "steps": 2, "short": 1, "finalists": 0})
    found = secateur.compress(model, loader, flops=0.4, **{**QUICK, "trials": 1, "epochs": None, "time": 600})
    assert not any(each.stage == "finalists" for each in found.tried)
    assert any("would have taken too much of the time" in sentence for sentence in found.said)


class Known(Ground):
    """A search that takes 2 seconds for 100 held-out images, of a network with 10 groups."""

    def __init__(self, seconds: float | None, epochs: int | None) -> None:
        self.judging, self.groups = 2.0, 10
        self.request = cast(Any, SimpleNamespace(seconds=seconds, epochs=epochs))
        self.source = cast(Any, SimpleNamespace(held_count=100, count=900, shown=list))


@pytest.mark.parametrize(
    ("seconds", "epochs", "shown"),
    [
        (None, None, 1024),
        (600, None, 450),  # 0.06 x 600 s for four passes, at 0.02 s an image
        (30, None, 64),
        (30, 0, 1024),  # nothing is trained: the time is for repairs
        (6000, None, 1024),
    ],
)
def test_a_repair_leaves_the_time_to_training(seconds: float | None, epochs: int | None, shown: int) -> None:
    assert Known(seconds, epochs)._shown() == shown


@pytest.mark.parametrize(
    ("seconds", "epochs", "wanted"),  # 10 groups x 6 shares x 64 images x 0.02 s = 77 s
    [(None, None, True), (760, None, False), (780, None, True), (400, 0, True), (380, 0, False)],
)
def test_groups_are_measured_where_there_is_time(seconds: float | None, epochs: int | None, wanted: bool) -> None:
    assert Known(seconds, epochs)._measuring() is wanted


def test_the_network_that_is_proved_is_not_made_again(
    model: nn.Module, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    pruned = Candidate.pruned

    def counted(self: Candidate, *args: Any, **options: Any) -> Any:
        made.append(str(self))
        return pruned(self, *args, **options)

    monkeypatch.setattr(Candidate, "pruned", counted)
    found = secateur.compress(model, loader, flops=0.4, **{**QUICK, "trials": 3, "epochs": 0})
    assert found.verification is not None
    assert found.verification.passed
    assert len(made) == 3 + 3  # candidates, and levels of the best


def test_a_trial_that_would_not_fit_is_not_begun() -> None:
    trials: Any = [SimpleNamespace(user_attrs={"seconds": 30.0})]
    known: Any = SimpleNamespace(request=SimpleNamespace(seconds=100.0), record=SimpleNamespace(spent=lambda: 10.0))
    assert not Ground.late(known, RACE_SHARE)
    assert Ground.late(known, RACE_SHARE, _last(trials))


@pytest.mark.parametrize(
    ("seconds", "drop", "images"),
    [(None, None, 4000), (600, None, 1200), (60, None, 500), (9000, None, 18_000), (60, 1.0, 4000)],
)
def test_a_look_at_held_out_images_leaves_the_time_to_training(
    seconds: float | None, drop: float | None, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known(seconds, None)
    known.model, known.request = nn.Identity(), cast(Any, SimpleNamespace(seconds=seconds, max_drop=drop))
    source: Any = SimpleNamespace(held_count=4000, held=lambda: [(torch.zeros(8, 1), None)])
    monkeypatch.setattr(ground, "_seconds", lambda model, inputs: 0.08)  # 0.01 for each: 0.02 x 600 / 0.01
    assert known._judged(source) == images


@pytest.mark.parametrize(
    ("shown", "held", "said"),
    [
        (1024, 500, ""),
        (405, 500, "For want of time methods and repairs see about 405 images."),
        (1024, 404, "For want of time networks are compared on 404 of 500 held-out images."),
        (405, 404, "see about 405 images and networks are compared on 404 of 500 held-out images."),
    ],
)
def test_what_was_looked_at_less_is_told(shown: int, held: int, said: str) -> None:
    record = SimpleNamespace(decision={"shown": shown}.get)
    known: Any = SimpleNamespace(record=record, source=SimpleNamespace(held_count=held, count=4500), held_out=500)
    told = Ground._fewer(known)
    assert told.endswith(said)
    assert bool(told) == bool(said)


@pytest.mark.parametrize(("spent", "tried"), [(0.2, 2), (0.38, 1), (0.5, 1)])  # of the time, each a tenth
def test_a_second_candidate_is_tried_where_there_is_time(
    model: nn.Module, loader: Any, spent: float, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "_last", lambda trials: 60.0)
    monkeypatch.setattr(Record, "spent", lambda record: spent * 600)
    options = {**QUICK, "trials": 3, "epochs": 1, "time": 600}
    found = secateur.compress(model, loader, flops=0.4, **options)
    assert len([each for each in found.tried if each.stage == "race"]) == tried


def test_where_nothing_compared_the_two_no_teacher_slows_the_training(
    model: nn.Module, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ground, "timed", lambda *_: {"rounds": 1, "steps": 2, "short": 1, "finalists": 0})
    found = secateur.compress(model, loader, flops=0.4, **{**QUICK, "trials": 1, "epochs": 1, "time": 600})
    assert "without a teacher" in " ".join(found.said)
