"""A search whose networks are tried by several workers: the answers, the plan and the bits of one without them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from _small import recipe

from secateur import runs
from secateur.errors import ConfigError, RunError
from secateur.methods.trials import Asked
from secateur.runs import workers
from secateur.training import Engine, Silent

ACP = (
    "method=acp", "method.particles=6", "method.cycles=3", "budget=flops=0.8", "train.epochs=1", "finetune=null",
    "search={images: 100, batch: 32, lr: 0.02}",
)  # fmt: skip
META = ("method=metapruning", "method.population=4", "method.iterations=2", "train.epochs=1", *ACP[5:])


class Failed(Exception):
    """As of Ray, with the error of the worker."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Lost(Exception):
    """As of Ray."""


class Hand:
    """A worker in this process, which answers when it is waited for."""

    def __init__(self, worker: Any) -> None:
        self.found = SimpleNamespace(remote=lambda *given: lambda: worker.found(*given))


#: Ray as far as trials use it; the last one given is the first to be ready.
RAY = SimpleNamespace(
    wait=lambda references, num_returns: (references[-num_returns:], references[:-num_returns]),
    get=lambda reference: reference(),
    exceptions=SimpleNamespace(RayTaskError=Failed, RayError=Lost),
)


class Scale:
    """A "worker" that measures what a network is multiplied by."""

    def found(self, network: nn.Module, epochs: int, number: int) -> tuple[float, list[str]]:
        factor = float(network.factor)  # type: ignore[arg-type]
        if factor == 7:
            raise Lost("its node is gone")
        if factor == 8:
            raise Failed(ConfigError("Eight is too much."))
        if factor == 9:
            raise Failed(ValueError("nine\nand more"))
        return factor + epochs, [f"said of {number}"] if factor == 2 else []


class Watched(Silent):
    def __init__(self) -> None:
        self.trials: list[int] = []
        self.said: list[str] = []

    def trial(self, done: int, total: int | None, best: str) -> None:
        self.trials.append(done)

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Any, Watched, list[int]]:
    """Trials with two stand-ins for workers; what is tried; and the numbers at which networks were made."""
    prepared, watched = runs.prepare(recipe(*ACP)), Watched()
    method = prepared.method(prepared.network())
    engine = Engine(prepared.data, prepared.recipe.engine, seed=0, batch_size=32, progress=watched, task=prepared.task)
    made: list[int] = []
    return workers.ClusterTrials(RAY, [Hand(Scale()), Hand(Scale())], prepared, method, engine, tmp_path), watched, made


def question(factor: int, made: list[int], epochs: int = 0) -> Asked:
    def make() -> nn.Module:
        made.append(factor)
        network = nn.Identity()
        network.factor = factor  # type: ignore[assignment]
        return network

    return Asked(make, {"factor": factor}, epochs)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()[1:]]
    return sorted(lines, key=lambda row: row["trial"])


def test_answers_come_in_any_order_and_are_given_in_that_of_the_questions(opened: Any, tmp_path: Path) -> None:
    trials, watched, made = opened
    numbers: list[int] = []

    def asked() -> Iterator[Asked]:
        for factor in (3, 1, 2, 5, 4):
            numbers.append(trials.number)
            yield question(factor, made, epochs=factor)

    assert trials.accuracies(asked()) == [6, 2, 4, 10, 8]
    assert numbers == [0, 1, 2, 3, 4]
    assert made == [3, 1, 2, 5, 4]
    assert [row["accuracy"] for row in rows(tmp_path)] == [6, 2, 4, 10, 8]
    assert "said of 2" in watched.said
    assert trials.best == 10
    kept = (tmp_path / "search.jsonl").read_text().splitlines()[1:]
    assert [json.loads(row)["trial"] for row in kept] != [0, 1, 2, 3, 4]  # as they came
    again = type(trials)(RAY, [], runs.prepare(recipe(*ACP)), prepared_method(), trials._engine, tmp_path)
    assert again.accuracies(asked_again := [question(k, made, epochs=k) for k in (3, 1, 2, 5, 4)]) == [6, 2, 4, 10, 8]
    assert len(asked_again) == 5
    assert len(made) == 5  # from memory


def prepared_method() -> Any:
    prepared = runs.prepare(recipe(*ACP))
    return prepared.method(prepared.network())


@pytest.mark.parametrize(
    ("factor", "error", "sentence"),
    [
        (7, RunError, r"A worker of the search was lost \(Lost: its node is gone\): resume the run, which asks for"),
        (8, ConfigError, r"^Eight is too much\.$"),
        (9, RunError, r"^A worker of the search failed \(Failed: nine\)\.$"),
    ],
)
def test_what_happens_to_a_worker_is_one_sentence(
    opened: Any, factor: int, error: type[Exception], sentence: str
) -> None:
    trials, _, made = opened
    with pytest.raises(error, match=sentence):
        trials.accuracies([question(1, made), question(factor, made)])


def test_without_ray_workers_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    found = runs.preparing.importlib.util.find_spec
    monkeypatch.setattr(runs.preparing.importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    with pytest.raises(ConfigError, match=r'ray is not installed: pip install "secateur\[ray\]" .*, or set search'):
        runs.prepare(recipe(*ACP, "search.workers=2"))


def test_a_run_of_several_processes_has_no_workers(opened: Any, tmp_path: Path) -> None:
    prepared = runs.prepare(recipe(*ACP, "search.workers=2"))
    engine: Any = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2))
    with (
        pytest.raises(ConfigError, match=r"search\.workers is 2, and this run has 2 processes, which train each"),
        workers.trials(prepared, prepared.method(prepared.network()), engine, tmp_path),
    ):
        pass


def test_a_worker_finds_what_the_run_finds() -> None:
    prepared = runs.prepare(recipe(*ACP))
    said = Watched()
    engine = Engine(
        prepared.data, prepared.recipe.engine, seed=prepared.recipe.seed, batch_size=prepared.recipe.data.batch_size,
        progress=said, task=prepared.task,
    )  # fmt: skip
    bench = workers.Bench(prepared.recipe, prepared.data, engine)
    before = (str(Path.cwd()), str(workers.data_folder()), torch.get_num_threads())
    worker = workers.Worker(before, prepared.recipe.model_dump_json(), dict(prepared.arguments))
    ours, theirs = prepared.network().model, prepared.network().model
    bench.train(ours, 1, 3)
    found, _ = worker.found(theirs, 1, 3)
    assert found == bench.measure(ours)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert worker.found(prepared.network().model, 1, 4)[0] != pytest.approx(-1)


@pytest.mark.parametrize("options", [ACP, META], ids=["acp", "metapruning"])
def test_two_workers_of_ray_find_what_one_process_finds(options: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='Ray is not installed: pip install "secateur[ray]"')
    alone, both = tmp_path / "alone", tmp_path / "both"
    runs.start(recipe(*options), alone)
    runs.start(recipe(*options, "search.workers=2"), both)
    assert rows(alone) == rows(both)
    assert len(rows(alone)) > 1  # so that there was something to share
    for name in ("plan.json", "model.safetensors"):
        assert (alone / name).read_bytes() == (both / name).read_bytes()
