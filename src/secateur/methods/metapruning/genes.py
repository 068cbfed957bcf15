"""Genes: a whole number for every width, and the evolution of vectors of them.

Gene i of 0 .. 30 stands for the share (10 + 3 i) / 100 of a width's channels. Of parents, the best so far, come

    mutants     each gene, with probability p: (gene + u) mod 31, u in 1 .. 30
    crossovers  each gene from either of two parents

and of a generation only what is feasible and was never tested is. Source: Liu et al. (arXiv:1903.10258) as in the
authors' searching code, where an infeasible limit would go on for ever: here genes are lowered until they are feasible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

#: Values of a gene; the largest is the whole width.
OPTIONS = 31
WHOLE = OPTIONS - 1

Genes = tuple[int, ...]
#: Proposals for every mutant and crossover that is wanted.
_TRIED = 10


def width_of(channels: int, gene: int) -> int:
    """Channels at a gene, at least 1; in whole numbers, where the authors' code truncates a product of floats."""
    return max(channels * (10 + 3 * gene) // 100, 1)


def mutated(parent: Genes, moves: Genes) -> Genes:
    """The parent with genes moved; moves: 0 where a gene stays, else 1 .. 30."""
    return tuple((gene + move) % OPTIONS for gene, move in zip(parent, moves, strict=True))


def crossed(one: Genes, other: Genes, which: np.ndarray) -> Genes:
    """Each gene from `other` where `which` says so."""
    return tuple(b if take else a for a, b, take in zip(one, other, which, strict=True))


@dataclass(frozen=True)
class Evolution:
    """An evolution of vectors of `length` genes.

    feasible: whether a vector may be tested. population, mutants, crossovers, parents: of every generation.
    probability: of a gene to mutate. seed: with the generation's number, of all that is drawn.
    """

    length: int
    feasible: Callable[[Genes], bool]
    population: int
    mutants: int
    crossovers: int
    parents: int
    probability: float
    seed: int

    def run(self, generations: int, errors: Callable[[list[Genes]], list[float]]) -> tuple[Genes, list[float]]:
        """The best vector, and the least error after each generation, all of which is asked at once, and once."""
        known: dict[Genes, float] = {}
        tops: list[float] = []
        for number in range(generations):
            draw = np.random.default_rng([self.seed, number])
            best = sorted(known, key=lambda genes: (known[genes], genes))[: self.parents]
            tested = self._generation(best, known, draw)
            known |= zip(tested, errors(tested), strict=True)
            tops.append(min(known.values()))
        return min(known, key=lambda genes: (known[genes], genes)), tops

    def _generation(self, parents: list[Genes], known: dict[Genes, float], draw: np.random.Generator) -> list[Genes]:
        """What is tested next: mutants, crossovers, and random vectors up to the population."""
        found: dict[Genes, None] = {}

        def take(proposals: Iterator[Genes], wanted: int) -> None:
            most = min(len(found) + wanted, self.population)
            for _ in range(_TRIED * wanted):
                if len(found) >= most:
                    return
                genes = next(proposals)
                if genes not in known and genes not in found and self.feasible(genes):
                    found[genes] = None

        if parents:
            take(self._mutants(parents, draw), self.mutants)
            take(self._crossovers(parents, draw), self.crossovers)
        take(self._random(draw), self.population - len(found))
        if not known and not found:  # nothing feasible: whoever asked scales what comes out
            found[(0,) * self.length] = None
        return list(found)

    def _mutants(self, parents: list[Genes], draw: np.random.Generator) -> Iterator[Genes]:
        while True:
            parent = parents[int(draw.integers(len(parents)))]
            moves = draw.integers(1, OPTIONS, self.length) * (draw.random(self.length) < self.probability)
            yield mutated(parent, tuple(moves.tolist()))

    def _crossovers(self, parents: list[Genes], draw: np.random.Generator) -> Iterator[Genes]:
        while True:
            one, other = (parents[int(k)] for k in draw.integers(len(parents), size=2))
            yield crossed(one, other, draw.random(self.length) < 0.5)

    def _random(self, draw: np.random.Generator) -> Iterator[Genes]:
        """Uniform vectors, lowered gene by gene until they are feasible."""
        while True:
            genes = draw.integers(0, OPTIONS, self.length)
            while not self.feasible(tuple(genes.tolist())) and genes.any():
                k = draw.choice(np.flatnonzero(genes))
                genes[k] = draw.integers(genes[k])
            yield tuple(genes.tolist())
