"""Shares of the layers' widths under a budget, from the layers' importance: the published program, and what it became.

    max sum_l alpha_l p_l     such that F(p) <= T,  r_l <= p_l <= 1

F, the cost at shares p of all widths, is a sum of products of neighbouring shares: the program is not convex, though it
is called so in the abstract. Released settings make alpha 1e-8 or less, far below the solver's tolerance, so that it
takes steps of least norm from p = 1 onto the surface F = T and the published widths do not depend on alpha at all; with
alpha of order 1 it drives whole layers to nothing. `project` takes such steps on purpose, in a metric in which
importance counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import optimize

from secateur._protocols import FloatArray

#: Difference of shares in gradients; costs are at most quadratic in each share, and so is what is exact there.
_STEP = 2.0**-10
#: How far above a bound the projection may end, as a share of the bound.
_TOLERANCE = 1e-6
#: Steps of the projection at most; 4 to 30 are usual.
_MOST = 1000
#: Random starts of the published program.
_STARTS = 8


@dataclass(frozen=True)
class Program:
    """One problem: alpha and least shares r [layers]; cost [n, bounds] of shares [n, layers]; limits T [bounds]."""

    alpha: FloatArray
    least: FloatArray
    cost: Callable[[FloatArray], FloatArray]
    limits: FloatArray

    def excess(self, p: FloatArray) -> FloatArray:
        """F(p) / T - 1 of every bound."""
        return np.asarray(self.cost(p[None])[0] / self.limits - 1.0)

    def gradient(self, p: FloatArray) -> FloatArray:
        """dF/dp [bounds, layers], by differences in the middle, all layers at once."""
        steps = np.eye(len(p)) * _STEP
        both = self.cost(np.concatenate([p + steps, p - steps]))
        return np.asarray((both[: len(p)] - both[len(p) :]).T / (2 * _STEP))

    @cached_property
    def mean_one(self) -> FloatArray:
        """alpha over its mean; ones where it is nothing."""
        mean = float(self.alpha.mean())
        return self.alpha / mean if mean > 0 else np.ones_like(self.alpha)


def project(program: Program) -> FloatArray:
    """Steps from p = 1 onto the budget, each the smallest in the metric D = diag(alpha / mean alpha).

        p <- clip(p - D⁻¹ g (F - T) / (gᵀ D⁻¹ g), r, 1),   g = dF/dp,   until F <= T (1 + 1e-6)

    What is at its least share stays there. Of several bounds the one that is exceeded most decides each step. With
    equal alpha this gives the published widths of VGG-16 to within one channel.
    """
    p, inverse = np.ones_like(program.least), 1.0 / np.maximum(program.mean_one, np.finfo(np.float64).tiny)
    for _ in range(_MOST):
        excess = program.excess(p)
        worst = int(excess.argmax())
        free = p > program.least
        if excess[worst] <= _TOLERANCE or not free.any():
            break
        g = np.where(free, program.gradient(p)[worst], 0.0)
        curved = float(g @ (inverse * g))
        if curved <= 0:
            break
        p = np.clip(p - inverse * g * (excess[worst] * program.limits[worst] / curved), program.least, 1.0)
    return p


def solve_program(program: Program, seed: int = 0) -> FloatArray:
    """The program with alpha of mean 1, from several starts: whole, projected, random; the best that is feasible."""
    rng = np.random.default_rng(seed)
    starts = [np.ones_like(program.least), project(program)]
    starts += [rng.uniform(program.least, 1.0) for _ in range(_STARTS)]
    found = [_slsqp(program, program.mean_one, start, program.least, scaled=True) for start in starts]
    feasible = [p for p in [*found, starts[1]] if program.excess(p).max() <= 1e-4]
    return max(feasible or starts[1:2], key=lambda p: float(program.mean_one @ p))


def as_published(program: Program) -> FloatArray:
    """The program as the authors' code runs it: SLSQP from p = 1, which is not feasible, shares down to 0.

    Gradient of the objective given, of the constraint numeric, costs in multiply-accumulates, default tolerance.
    """
    return _slsqp(program, program.alpha, np.ones_like(program.least), np.zeros_like(program.least), scaled=False)


def _slsqp(program: Program, alpha: FloatArray, start: FloatArray, least: FloatArray, *, scaled: bool) -> FloatArray:
    rule: dict[str, Any] = {"type": "ineq", "fun": lambda p: program.limits - program.cost(np.asarray(p)[None])[0]}
    if scaled:
        rule = {
            "type": "ineq",
            "fun": lambda p: -program.excess(np.asarray(p)),
            "jac": lambda p: -program.gradient(np.asarray(p)) / program.limits[:, None],
        }
    minimise: Any = optimize.minimize
    answer = minimise(
        lambda p: -float(alpha @ p),
        x0=start,
        jac=lambda p: -alpha,
        method="SLSQP",
        bounds=list(zip(least.tolist(), np.ones_like(least).tolist(), strict=True)),
        constraints=(rule,),
    )
    return np.clip(np.asarray(answer.x, dtype=np.float64), least, 1.0)


def scale(program: Program) -> FloatArray:
    """p = clip(tau alpha / max alpha, r, 1) with the largest tau within the budget: in proportion to importance."""
    top = float(program.alpha.max())
    direction = program.alpha / top if top > 0 else np.ones_like(program.alpha)

    def at(tau: float) -> FloatArray:
        return np.clip(tau * direction, program.least, 1.0)

    low, high = 0.0, 1.0 / max(float(direction.min()), 1e-9)  # nothing more is gained beyond
    if program.excess(at(high)).max() <= 0:
        return at(high)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if program.excess(at(middle)).max() <= 0 else (low, middle)
    return at(low)


#: Name of a solver -> shares [layers] of a program and a seed.
SOLVERS: Mapping[str, Callable[[Program, int], FloatArray]] = {
    "projection": lambda program, seed: project(program),
    "linear": solve_program,
    "official": lambda program, seed: as_published(program),
    "scaled": lambda program, seed: scale(program),
}
