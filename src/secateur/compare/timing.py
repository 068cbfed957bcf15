"""Latencies of finished runs: after all training, one run after another, so that nothing of ours runs beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secateur import runtime
from secateur.compare.cells import Cell
from secateur.compare.record import Comparison
from secateur.errors import SecateurError
from secateur.runs.stages import DENSE
from secateur.runtime.named import Wish, network

Say = Callable[[str, str, str], None]


def measure_all(comparison: Comparison, say: Say) -> None:
    """Time every finished run that has not been timed; none if the recipe's `latency` is null."""
    if comparison.recipe.latency is None:
        return
    left = [cell for cell in comparison.cells if comparison.finished(cell) and comparison.latency(cell) is None]
    for number, cell in enumerate(left):
        say("timing", cell.name, f"{cell.said}: timing dense and pruned network, {len(left) - number} to do.")
        try:
            measured = _measure(comparison, cell)
        except SecateurError as error:
            measured = {"said": str(error)}  # told in the leaderboard; a run is no worse for it
        comparison.timed(cell, measured)


def _measure(comparison: Comparison, cell: Cell) -> dict[str, Any]:
    recipe, results, folder = comparison.recipe, comparison.results(cell), comparison.run(cell)
    assert recipe.latency is not None
    wish = Wish(results["arguments"], shapes=results["inputs"], trust=recipe.model.trust)
    dense = network(results["model"], wish)
    runtime.read_weights(dense.model, folder / DENSE)
    narrow = runtime.load(folder, network(results["model"], wish).model)
    return runtime.measure(
        dense.model.eval(),
        narrow.eval(),
        dense.inputs,
        batch_size=recipe.latency.batch_size,
        repeats=recipe.latency.repeats,
        threads=recipe.latency.threads,
        runtimes=recipe.latency.names(onnx=recipe.export.onnx),
    )
