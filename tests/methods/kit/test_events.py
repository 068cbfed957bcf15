"""Events of short trainings: when they stand, and that trainings with epochs enough have none."""

from __future__ import annotations

import pytest

from secateur.methods.kit.events import ShortEvents


def seen(least: int, steps: int, ends: tuple[int, ...] = ()) -> list[int]:
    """The steps behind which events stand, in a training whose epochs end behind the steps `ends`."""
    events, epochs, found = ShortEvents(least, steps), 0, list[int]()
    for step in range(1, steps + 1):
        if events.due(step, epochs):
            found.append(step)
        epochs += step in ends
    assert events.over == len(found)
    return found


def test_evenly_within_three_quarters() -> None:
    assert seen(4, 80) == [21, 30, 45, 60]  # the first as soon as an epoch of four would be over
    assert seen(12, 48) == [5, *range(6, 37, 3)]
    assert seen(12, 8) == [2, 3, 4, 5, 6, 7]  # as many as there are steps for


@pytest.mark.parametrize(("least", "ends"), [(12, (4, 8)), (12, (3,)), (4, (12,)), (0, ())])
def test_none_where_epochs_are_enough_or_none_are_asked_for(least: int, ends: tuple[int, ...]) -> None:
    assert seen(least, 48, ends) == []


def test_a_training_too_short_for_any() -> None:
    assert seen(12, 1) == []
