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


def moved(
    x: IntArray, v: FloatArray, own: IntArray, best: IntArray, most: IntArray, *, w: float, r: float
) -> tuple[IntArray, FloatArray]:
    """Position and velocity after one step, all of the dimensions that move; own, best: p and g there."""
    after = np.clip(np.trunc(x + STRIDE * v), 1, most).astype(np.int64)
    pulled = CONSTRICTION * (w * v + PULL * r * (own - x) + PULL * r * (best - x))
    return after, np.clip(pulled, -V_MAX, V_MAX)


@dataclass
class _Particle:
    x: IntArray
    v: FloatArray
    own: IntArray
    fitness: float


def fly(
    first: IntArray, most: IntArray, fitness: Callable[[IntArray], float], *, particles: int, cycles: int, seed: int
) -> tuple[IntArray, list[float]]:
    """The best widths that a swarm finds, and the best fitness after the beginning and after each cycle.

    Args:
        first: widths [dimensions] of particle 0. most: largest widths; the least are 1.
        fitness: higher is better; asked particles * (cycles + 1) times, particle by particle.
        seed: what is drawn follows from it, the particle and the cycle, and never from what is found.
    """
    swarm: list[_Particle] = []
    best, top = first, -np.inf
    for number in range(particles):
        draw = np.random.default_rng([seed, 0, number])
        x = begun(first, most, number, draw.integers(-1, 2, len(first)))
        swarm.append(_Particle(x, draw.uniform(-V_MAX, V_MAX, len(first)), x, fitness(x)))
        if swarm[-1].fitness > top:
            best, top = x, swarm[-1].fitness
    tops = [top]
    for cycle in range(cycles):
        for number, particle in enumerate(swarm):
            draw = np.random.default_rng([seed, 1 + cycle, number])
            j = np.sort(draw.permutation(len(first))[:MOVED])
            x, v = particle.x.copy(), particle.v.copy()
            x[j], v[j] = moved(x[j], v[j], particle.own[j], best[j], most[j], w=inertia(cycle, cycles), r=draw.random())
            particle.x, particle.v = x, v  # also where it is worse
            found = fitness(x)
            if found > particle.fitness:
                particle.own, particle.fitness = x, found
            if found > top:
                best, top = x, found
        tops.append(top)
    return best, tops
