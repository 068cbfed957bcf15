"""When which share of the filters is pruned, by which factor, and how many of them for good: one row a member.

The numbers of epochs t = 0 ... T-1 are those behind which an event stands; see `method.py` for the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

MemberName = Literal["hfp", "sfp", "asfp", "srfp", "asrfp", "ghfp"]
RateName = Literal["constant", "exponential", "polynomial", "linear"]
HardName = Literal["cubic", "cosine", "linear"]
PhasesName = Literal["cifar", "imagenet", "pretrained"]


@dataclass(frozen=True)
class Member:
    """How the rate comes, whether the factor of soft filters decays (else it is 0), and the share of hard ones."""

    rate: RateName
    decays: bool
    hard: Literal["none", "all", "rising"]


#: The family.
MEMBERS: Mapping[MemberName, Member] = {
    "hfp": Member("constant", False, "all"),
    "sfp": Member("constant", False, "none"),
    "asfp": Member("exponential", False, "none"),
    "srfp": Member("constant", True, "none"),
    "asrfp": Member("exponential", True, "none"),
    "ghfp": Member("polynomial", True, "rising"),
}


@dataclass(frozen=True)
class Phases:
    """Shares of training from which on alpha = 0, P_t = P and lambda = 1."""

    factor: float
    rate: float
    hard: float


#: The last phases as the authors' scripts have them; each begins with the last epoch at the latest.
PHASES: Mapping[PhasesName, Phases] = {
    "cifar": Phases(0.9, 0.95, 1.0),
    "imagenet": Phases(0.8, 0.9, 0.9),
    "pretrained": Phases(0.8, 0.9, 0.8),
}


def _cubic(t: int, epochs: int) -> float:
    return 1 - (1 - (t + 1) / epochs) ** 3


def _linear(t: int, epochs: int) -> float:
    return (t + 1) / epochs


def _cosine(t: int, epochs: int) -> float:
    return 1 - (1 + math.cos(math.pi * t / (0.9 * epochs))) / 2 if t < 0.9 * epochs else 1.0


_RISES: Mapping[HardName, Callable[[int, int], float]] = {"cubic": _cubic, "cosine": _cosine, "linear": _linear}


@dataclass(frozen=True)
class Degrees:
    """What one event does: P_t / P, alpha_t and lambda_t."""

    rate: float
    factor: float
    hard: float


@dataclass(frozen=True)
class Schedule:
    """A member of the family with its constants.

    rate: how P_t comes; None: as the member has it. rise: how lambda_t rises, where it does. factor: alpha_0.
    sigma: what is left of it in the end. delay: D, the share of training after which 3/4 of P is reached with
    "exponential".
    """

    member: MemberName
    rate: RateName | None = None
    rise: HardName = "cubic"
    phases: PhasesName = "cifar"
    factor: float = 1.0
    sigma: float = 1e-5
    delay: float = 0.125

    def at(self, t: int, epochs: int) -> Degrees:
        """The event after epoch t (from 0) of so many."""
        row, phases = MEMBERS[self.member], PHASES[self.phases]

        def begun(share: float) -> bool:
            return t >= min(share * epochs - 1e-9, epochs - 1)

        rate = 1.0 if begun(phases.rate) else self._rate(t, epochs)
        factor = 0.0 if begun(phases.factor) or not row.decays else self._factor(t, epochs)
        hard = {"none": 0.0, "all": 1.0, "rising": 1.0 if begun(phases.hard) else _RISES[self.rise](t, epochs)}
        return Degrees(rate, factor, hard[row.hard])

    def _rate(self, t: int, epochs: int) -> float:
        kind = self.rate or MEMBERS[self.member].rate
        if kind == "exponential":  # P_t = P (1 - exp(-k t)), k = ln 4 / (D T)
            return 1 - math.exp(-math.log(4) / (self.delay * epochs) * t)
        if kind == "polynomial":  # P_t = P (1 - (1 - (t+1)/T)^3)
            return _cubic(t, epochs)
        return _linear(t, epochs) if kind == "linear" else 1.0

    def _factor(self, t: int, epochs: int) -> float:
        # alpha_t = alpha_0 exp(-kappa t), kappa = -ln(sigma / (alpha_0 + 0.01 sigma)) / T
        kappa = -math.log(self.sigma / (self.factor + 0.01 * self.sigma)) / epochs
        return self.factor * math.exp(-kappa * t)
