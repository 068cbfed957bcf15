"""How a search's time is divided, in worked numbers."""

from __future__ import annotations

from typing import Any

import pytest
from _quarters import QUICK
from torch import nn

import secateur
from secateur.compress import ground
from secateur.compress.ground import timed, untimed
from secateur.compress.judging import Judge


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
