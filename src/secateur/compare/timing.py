"""Latencies of finished runs: after all training, every network in turns with the others and one dense network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from secateur import runtime
from secateur._files import read_json
from secateur.compare.cells import Cell
from secateur.compare.record import Comparison
from secateur.data import open_data
from secateur.errors import SecateurError
from secateur.runs.calibration import single_images
from secateur.runs.stages import DENSE
from secateur.runtime.deploying import RUN_BY, placed
from secateur.runtime.named import Named, Wish, network
from secateur.tasks import create

Say = Callable[[str, str, str], None]


def measure_all(comparison: Comparison, say: Say) -> None:
    """Time all finished runs in one session if one of them has not been; none if the recipe's `latency` is null."""
    recipe = comparison.recipe
    if recipe.latency is None:
        return
    finished = [cell for cell in comparison.cells if comparison.finished(cell)]
    if not finished or all(comparison.latency(cell) is not None for cell in finished):
        return
    those = "1 network" if len(finished) == 1 else f"{len(finished)} networks"
    say("timing", finished[0].name, f"Timing {those} and the dense one, all of them in turns.")
    dense = _network(comparison, finished[0])
    runtime.read_weights(dense.model, comparison.run(finished[0]) / DENSE)
    found = {cell: _narrow(comparison, cell) for cell in finished}
    narrow = {cell.name: model for cell, model in found.items() if isinstance(model, nn.Module)}
    said = {cell.name: {"said": why} for cell, why in found.items() if isinstance(why, str)}
    images = _images(comparison) if any(cell.row.result == "per input" for cell in finished) else None
    cells = {cell.name: cell for cell in finished}

    def on(engine: str, name: str, model: nn.Module) -> nn.Module:
        known = _forms(comparison, cells[name], engine) if name in cells else None
        return placed(model, dense.inputs, engine, images=images, known=known)

    try:
        measured = runtime.measure_each(
            dense.model.eval(),
            narrow,
            dense.inputs,
            batch_size=recipe.latency.batch_size,
            repeats=recipe.latency.repeats,
            threads=recipe.latency.threads,
            runtimes=recipe.latency.names(onnx=recipe.export.onnx),
            images=images,
            placed=on,
        )
    except SecateurError as error:
        measured = {name: {"said": str(error)} for name in narrow}
    for cell in finished:  # why one was not timed is told in the leaderboard; a run is no worse for it
        comparison.timed(cell, (measured | said)[cell.name])


def _forms(comparison: Comparison, cell: Cell, engine: str) -> list[dict[str, Any]] | None:
    """How the layers of a cell's network that are computed another way did in this runtime, if it was exported."""
    checks = read_json(comparison.run(cell) / "verification.json", what="The verification")
    file = next((form for form, by in RUN_BY.items() if by == engine), "")
    found: list[dict[str, Any]] | None = checks.get(file, {}).get("forms")
    return found


def _images(comparison: Comparison) -> list[Any]:
    """Test images, one at a time: the work of some networks depends on them."""
    recipe = comparison.recipe
    task = create(recipe.task.name, **recipe.task.settings)
    return single_images(open_data(recipe.data, recipe.seed, task).test)


def _narrow(comparison: Comparison, cell: Cell) -> nn.Module | str:
    """The network that a cell saved, or why it cannot be read."""
    try:
        return runtime.load(comparison.run(cell), _network(comparison, cell).model).eval()
    except SecateurError as error:
        return str(error)


def _network(comparison: Comparison, cell: Cell) -> Named:
    results = comparison.results(cell)
    wish = Wish(results["arguments"], shapes=results["inputs"], trust=comparison.recipe.model.trust)
    return network(results["model"], wish)
