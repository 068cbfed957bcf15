"""How a search's time is divided, in worked numbers."""

from __future__ import annotations

import pytest

from secateur.compress.ground import timed, untimed


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
