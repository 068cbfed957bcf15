"""The schedules of GHFP's family: the worked numbers of a training of 200 epochs, and the last phases."""

from __future__ import annotations

import math

import pytest

from secateur.methods.ghfp.schedule import MEMBERS, Schedule


def shares(schedule: Schedule, epochs: int, what: str) -> list[float]:
    return [getattr(schedule.at(t, epochs), what) for t in range(epochs)]


def test_an_exponential_rate_is_at_three_quarters_after_an_eighth() -> None:
    rate = shares(Schedule("asfp"), 200, "rate")
    assert [0.4 * rate[t] for t in (0, 1, 25, 100)] == pytest.approx([0, 0.02158, 0.3, 0.39844], abs=5e-6)
    assert 0.4 * Schedule("asfp", delay=0.25).at(50, 200).rate == pytest.approx(0.3)


def test_the_factor_decays_to_sigma() -> None:
    factor = shares(Schedule("srfp"), 200, "factor")
    assert [factor[t] for t in (0, 50, 100)] == pytest.approx([1, 0.05623, 0.003162], rel=1e-4)
    # from half of it, alpha_0 = 0.5: alpha_T would be sigma but for the hundredth of it in kappa
    assert Schedule("srfp", factor=0.5, sigma=1e-3).at(100, 200).factor == pytest.approx(
        0.5 * math.sqrt(1e-3 / 0.50001)
    )
    assert Schedule("srfp", factor=0.0).at(3, 200).factor == 0


def test_the_share_of_hard_filters_rises_by_a_cube_or_a_cosine() -> None:
    hard = shares(Schedule("ghfp"), 200, "hard")
    assert [hard[t] for t in (0, 99, 199)] == pytest.approx([0.014925, 0.875, 1], abs=1e-6)
    cosine = shares(Schedule("ghfp", rise="cosine"), 200, "hard")
    assert [cosine[t] for t in (0, 45, 90, 180, 199)] == pytest.approx([0, 0.5 - math.sqrt(0.125), 0.5, 1, 1])
    assert Schedule("ghfp", rise="linear").at(49, 200).hard == 0.25


def test_a_polynomial_rate_and_a_linear_one() -> None:
    assert 0.4 * Schedule("ghfp").at(99, 200).rate == pytest.approx(0.35)
    assert Schedule("ghfp", rate="linear").at(49, 200).rate == 0.25
    assert Schedule("ghfp", rate="exponential").at(25, 200).rate == pytest.approx(0.75)


def first(schedule: Schedule, what: str, value: float) -> int:
    return shares(schedule, 20, what).index(value)


@pytest.mark.parametrize(
    ("phases", "factor", "rate", "hard"), [("cifar", 18, 19, 19), ("imagenet", 16, 18, 18), ("pretrained", 16, 18, 16)]
)
def test_last_phases_of_twenty_epochs(phases: str, factor: int, rate: int, hard: int) -> None:
    schedule = Schedule("ghfp", rate="exponential", phases=phases)  # type: ignore[arg-type]
    assert first(schedule, "factor", 0.0) == factor
    assert first(schedule, "rate", 1.0) == rate
    assert first(schedule, "hard", 1.0) == hard
    before = [(1 - 4 ** (-8 * t / 20), 1e-5 ** (t / 20), 1 - (1 - (t + 1) / 20) ** 3) for t in range(20)]
    assert shares(schedule, 20, "rate")[:rate] == pytest.approx([row[0] for row in before[:rate]])
    assert shares(schedule, 20, "factor")[:factor] == pytest.approx([row[1] for row in before[:factor]], rel=1e-6)
    assert shares(schedule, 20, "hard")[:hard] == pytest.approx([row[2] for row in before[:hard]])


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_the_last_epoch_prunes_all_however_few_there_are(member: str, epochs: int) -> None:
    last = Schedule(member).at(epochs - 1, epochs)  # type: ignore[arg-type]
    assert (last.rate, last.factor) == (1.0, 0.0)
    assert last.hard == (0.0 if MEMBERS[member].hard == "none" else 1.0)  # type: ignore[index]
