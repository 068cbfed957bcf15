"""Trials of a run on a Ray cluster: networks are cut here, and trained and measured by workers as the run would.

What a worker finds depends on the network and the number of the trial alone, so that a search with workers is answered
as one without them, and one may go on where the other was interrupted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._cluster import Need, answer, gpus_of, joined, look_at_all, silent
from secateur.data import open_data
from secateur.data._files import data_folder
from secateur.errors import ConfigError
from secateur.methods import Method, plug_in
from secateur.recipe import Recipe
from secateur.runs.preparing import Prepared, network_of
from secateur.runs.trials import Bench, RunTrials
from secateur.tasks import create
from secateur.training import Engine, Silent


@contextlib.contextmanager
def trials(prepared: Prepared, method: Method, engine: Engine, folder: Path) -> Iterator[RunTrials]:
    """Trials as `search.workers` of the recipe has them.

    Args:
        method: who searches, as it is when it begins. engine: of the run. folder: of the run.

    Raises:
        ConfigError: no images can be held out; or workers are asked for and Ray is missing, or the run itself has
            several processes. RunError: the cluster cannot be joined, or has no room.
    """
    recipe = prepared.recipe
    workers, address = recipe.search.workers, recipe.search.address
    if workers == 1:
        yield RunTrials(recipe, prepared.data, method, engine, folder)
        return
    if engine.accelerator.num_processes > 1:
        raise ConfigError(
            f"search.workers is {workers}, and this run has {engine.accelerator.num_processes} processes, which train "
            "each network together: start it without a launcher, or set search.workers: 1."
        )
    threads, size = torch.get_num_threads(), sum(t.nbytes for t in method.model.state_dict().values())
    with joined(address, threads * workers, store=4 * workers * size) as ray, silent(ray):
        need = Need(threads, gpus_of(ray, recipe.engine.device), folder.absolute())
        look_at_all(ray, need)
        count = min(workers, max(need.slots(ray), 1))
        if count < workers:
            engine.say(f"The cluster has resources for {count} of {workers} workers of the search.")
        made = ray.remote(num_cpus=need.cpus, num_gpus=need.gpus)(Worker)
        place = (str(Path.cwd()), str(data_folder()), threads)
        hands = [made.remote(place, recipe.model_dump_json(), dict(prepared.arguments)) for _ in range(count)]
        try:
            yield ClusterTrials(ray, hands, prepared, method, engine, folder)
        finally:
            for hand in hands:
                ray.kill(hand)


class ClusterTrials(RunTrials):
    """Trials that are given to workers, as many at a time as there are."""

    def __init__(
        self, ray: Any, hands: list[Any], prepared: Prepared, method: Method, engine: Engine, folder: Path
    ) -> None:
        """hands: the workers. Others: see `trials`."""
        super().__init__(prepared.recipe, prepared.data, method, engine, folder)
        self._ray, self._idle = ray, hands
        self._busy: dict[Any, tuple[int, Any]] = {}

    def _try(self, number: int) -> None:
        if not self._idle:
            self._take()
        asked, hand = self._asked[number], self._idle.pop()
        self._busy[hand.found.remote(asked.make().cpu(), asked.epochs, number)] = (number, hand)

    def _wait(self) -> None:
        while self._busy:
            self._take()

    def _take(self) -> None:
        """Wait for the first of those at work."""
        (ready, *_), _ = self._ray.wait(list(self._busy), num_returns=1)
        number, hand = self._busy.pop(ready)
        found, said = answer(self._ray, ready, "resume the run, which asks for nothing twice")
        self._idle.append(hand)
        for sentence in said:
            self._engine.say(sentence)
        self._answered(number, found)
        self._tell()


class Worker:
    """A process that trains and measures networks of a run."""

    def __init__(self, place: tuple[str, str, int], recipe: str, arguments: Mapping[str, Any]) -> None:
        """place: working folder, folder of data sets, threads. recipe: as JSON. arguments: of the model's factory."""
        here, data, threads = place
        os.chdir(here)
        os.environ["SECATEUR_DATA"] = data
        torch.set_num_threads(threads)
        self._said = _Said()
        read = Recipe.model_validate_json(recipe)
        for plugin in read.plugins:
            plug_in(plugin)
        task = create(read.task.name, **read.task.settings)
        found = open_data(read.data, read.seed, task)
        network_of(read, arguments, found)  # so that the code is there of which networks that come are made
        self._engine = Engine(
            found, read.engine, seed=read.seed, batch_size=read.data.batch_size, progress=self._said, task=task
        )
        self._bench = Bench(read, found, self._engine)

    def found(self, network: nn.Module, epochs: int, number: int) -> tuple[float, list[str]]:
        """The figure of a network after so many epochs, and what was said meanwhile."""
        self._said.sentences.clear()
        network.to(self._engine.device)
        if epochs:
            self._bench.train(network, epochs, number)
        return self._bench.measure(network), list(self._said.sentences)


class _Said(Silent):
    """Keeps sentences, for who asked."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, sentence: str) -> None:
        """Keep it."""
        self.sentences.append(sentence)
