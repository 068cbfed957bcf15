"""A swarm of width vectors around a first one, each drawn towards the best it has been at and the best of all.

With x the widths, v their velocities, p a particle's own best, g the best of all, in cycle t of T:

    x_ij = clamp(c_j + i s_ij, 1, U_j),  s_ij in {-1, 0, 1},  v_ij in (-2, 2)                              (begin)
    w_t  = 0.5 (T - t) / 20 + 0.4                                                                        (inertia)
    x_j <- clamp(trunc(x_j + 2 v_j), 1, U_j)                                         (with the velocity as it was)
    v_j <- clip(0.729 (w_t v_j + 2 R (p_j - x_j) + 2 R (g_j - x_j)), -2, 2)               (with x as it was)

for j in J alone, 8 dimensions drawn anew; R ~ U(0, 1) is one number for a particle and cycle. Source: Chang et al.
(arXiv:2101.06407) as in the authors' particle_cifar.py, with J as it is meant there: drawn without repetition from all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from secateur._protocols import FloatArray, IntArray

#: Largest velocity, what positions follow it by, constriction, pull towards either best, dimensions that move.
V_MAX, STRIDE, CONSTRICTION, PULL, MOVED = 2.0, 2.0, 0.729, 2.0, 8


def inertia(cycle: int, cycles: int) -> float:
    """w_t."""
    return 0.5 * (cycles - cycle) / 20 + 0.4


def begun(first: IntArray, most: IntArray, number: int, signs: IntArray) -> IntArray:
    """Where particle `number` begins: the first vector, moved by its number along signs [dimensions] of -1, 0, 1."""
    result: IntArray = np.clip(first + number * signs, 1, most)
    return result


def ahead(x: IntArray, v: FloatArray, most: IntArray) -> IntArray:
    """Position after one step, of the dimensions that move."""
    result: IntArray = np.clip(np.trunc(x + STRIDE * v), 1, most).astype(np.int64)
    return result


def pulled(x: IntArray, v: FloatArray, own: IntArray, best: IntArray, *, w: float, r: float) -> FloatArray:
    """Velocity after one step, of the dimensions that move; x: where it began. own, best: p and g there."""
    result: FloatArray = CONSTRICTION * (w * v + PULL * r * (own - x) + PULL * r * (best - x))
    return np.clip(result, -V_MAX, V_MAX)


@dataclass
class _Particle:
    x: IntArray
    v: FloatArray
    own: IntArray
    fitness: float = -np.inf


def fly(
    first: IntArray,
    most: IntArray,
    fitness: Callable[[list[IntArray]], list[float]],
    *,
    particles: int,
    cycles: int,
    seed: int,
) -> tuple[IntArray, list[float]]:
    """The best widths that a swarm finds, and the best fitness after the beginning and after each cycle.

    Args:
        first: widths [dimensions] of particle 0. most: largest widths; the least are 1.
        fitness: of the widths of all particles, higher is better; asked cycles + 1 times. Where particles go in a
            cycle follows from velocities of before it, so that none waits for what another one finds.
        seed: what is drawn follows from it, the particle and the cycle, and never from what is found.
    """
    swarm, best, top, tops = _begun(first, most, particles, seed), first, -np.inf, []
    for cycle in range(cycles + 1):
        steps = [_drawn(np.random.default_rng([seed, cycle, number]), len(first)) for number in range(particles)]
        places = [_placed(each, j, most) if cycle else each.x for each, (j, _) in zip(swarm, steps, strict=True)]
        for particle, (j, r), x, found in zip(swarm, steps, places, fitness(places), strict=True):
            if cycle:  # g is as the particles before this one have left it
                own = particle.own[j]
                particle.v[j] = pulled(particle.x[j], particle.v[j], own, best[j], w=inertia(cycle - 1, cycles), r=r)
            particle.x = x  # also where it is worse
            if found > particle.fitness:
                particle.own, particle.fitness = x, found
            if found > top:
                best, top = x, found
        tops.append(top)
    return best, tops


def _begun(first: IntArray, most: IntArray, particles: int, seed: int) -> list[_Particle]:
    swarm = []
    for number in range(particles):
        draw = np.random.default_rng([seed, 0, number])
        x = begun(first, most, number, draw.integers(-1, 2, len(first)))
        swarm.append(_Particle(x, draw.uniform(-V_MAX, V_MAX, len(first)), x))
    return swarm


def _drawn(draw: np.random.Generator, dimensions: int) -> tuple[IntArray, float]:
    """J and R of a particle and cycle."""
    return np.sort(draw.permutation(dimensions)[:MOVED]), float(draw.random())


def _placed(particle: _Particle, j: IntArray, most: IntArray) -> IntArray:
    x = particle.x.copy()
    x[j] = ahead(x[j], particle.v[j], most[j])
    return x
