"""From what is asked to what is found: the stages in order, and the folder they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from secateur.compress.ground import Ground
from secateur.compress.groups import Sensitivity, sensitivities
from secateur.compress.held_out import source_of
from secateur.compress.judging import Judge
from secateur.compress.race import Race
from secateur.compress.record import Record
from secateur.compress.refining import Refining
from secateur.compress.request import Request
from secateur.compress.result import Compressed
from secateur.compress.story import Story
from secateur.compress.workers import hands
from secateur.errors import ConfigError, SecateurError
from secateur.graph.modules import unwrap
from secateur.runtime import save_model
from secateur.tasks import Task


def found(
    model: nn.Module, data: Any, example_inputs: Any, request: Request, task: Task, *,
    held_out: Any, folder: Path | None, options: Mapping[str, Any], workers: int, address: str,
    say: Callable[[str], None],
) -> Compressed:  # fmt: skip
    """The search for a request, from its beginning or from where the folder says it is; see `secateur.compress`."""
    inner = unwrap(model)
    source = source_of(data, example_inputs, request.seed, held_out)
    record = Record(folder, request.seed)
    try:
        ground = Ground(inner, example_inputs, request, source, task, record, options=options, say=say)
    except SecateurError:
        record.forget()
        raise
    for line in ground.known():
        say(line)
    with record.at_work():
        with hands(ground.maker, workers, address, folder, say) as trying:
            ranked = Race(ground, trying).run()
        refining = Refining(ground)
        choice = refining.finalists(ranked)
        if request.max_drop is not None:
            choice = refining.smallest(choice)
        result, figure, rounds, steps = refining.final(choice)
        made = Story(ground, ranked, choice, result, figure, rounds, steps).told()
        if folder is not None:
            kind = type(inner)
            reference = f"{kind.__module__}:{kind.__qualname__}"
            save_model(folder, made.model, reference=reference, inputs=example_inputs, plan=made.plan)
            made.write(folder)
    return made


def measured(
    model: nn.Module, data: Any, example_inputs: Any, shares: Sequence[float], task: Task, *,
    method: str, repair: Iterable[str] | str, held_out: Any, ignore: Iterable[str] | str, seed: int,
    say: Callable[[str], None],
) -> Sensitivity:  # fmt: skip
    """The sensitivities of a network; see `secateur.sensitivity`."""
    if data is None:
        raise ConfigError("A sensitivity is measured on images: give training data.")
    inner = unwrap(model)
    source = source_of(data, example_inputs, seed, held_out)
    judge = Judge(source, task, inner)
    return sensitivities(
        inner, example_inputs, source, judge, shares, method=method, repair=repair, ignore=ignore, seed=seed, say=say
    )
