"""A search in a run: answers in search.jsonl, an interruption costs nothing but the trial it fell into."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))

import _searching
from _small import recipe

from secateur import methods, runs
from secateur.errors import ConfigError
from secateur.runs.trials import Part, held_out
from secateur.training import Silent

OVERRIDES = ("method=tiny_search", "train.epochs=1", "finetune=null", "search={images: 100, batch: 32, lr: 0.02}")


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    methods.register(_searching.ROW)
    yield
    methods._REGISTERED.pop("tiny_search")


class Watched(Silent):
    """Remembers trials and sentences; the process "dies" at a trial."""

    def __init__(self, dies: int = 0) -> None:
        self.trials: list[tuple[int, int | None, str]] = []
        self.said: list[str] = []
        self.dies = dies

    def trial(self, done: int, total: int | None, best: str) -> None:
        self.trials.append((done, total, best))
        if done == self.dies:
            raise KeyboardInterrupt

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]


def outcome(folder: Path) -> tuple[bytes, bytes, bytes]:
    first, second, third = ((folder / n).read_bytes() for n in ("search.jsonl", "plan.json", "model.safetensors"))
    return first, second, third


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "whole"
    methods.register(_searching.ROW)
    watched = Watched()
    runs.start(recipe(*OVERRIDES), folder, progress=watched)
    assert [(done, total) for done, total, _ in watched.trials] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert watched.trials[-1][2] == f"{max(row['accuracy'] for row in lines(folder)[1:]):.1%}"
    return folder


def test_the_answers_are_in_the_folder(whole: Path) -> None:
    head, *answers = lines(whole)
    assert head["format"] == "secateur.search"
    assert [row["trial"] for row in answers] == [0, 1, 2, 3]
    assert all(row["about"] == {"draw": k} and row["epochs"] == 1 for k, row in enumerate(answers))
    assert "search.jsonl" in json.loads((whole / "results.json").read_text())["files"]


@pytest.mark.parametrize("dies", [1, 3])
def test_an_interrupted_search_asks_nothing_twice_and_ends_alike(whole: Path, tmp_path: Path, dies: int) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        runs.start(recipe(*OVERRIDES), folder, progress=Watched(dies))
    there = (folder / "search.jsonl").read_bytes()
    assert len(lines(folder)) == 1 + dies
    with (folder / "search.jsonl").open("ab") as file:  # and a line of which only a part has reached the disk
        file.write(b'{"trial": ')
    made = _searching.Tiny.cut
    cuts: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_searching.Tiny, "cut", lambda self, plan: cuts.append(plan) or made(self, plan))
        runs.resume(folder)
    assert outcome(folder) == outcome(whole)
    assert (folder / "search.jsonl").read_bytes().startswith(there)
    best = max(lines(folder)[1:], key=lambda row: row["accuracy"])["trial"]
    assert len(cuts) == 4 - dies + (best < dies)  # the best one is trained once more, for its weights


def test_answers_about_another_network_are_forgotten(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        runs.start(recipe(*OVERRIDES), folder, progress=Watched(2))
    head, *answers = lines(folder)
    rows = [{**head, "of": "other"}, *({**row, "accuracy": 1.0} for row in answers)]
    (folder / "search.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    watched = Watched()
    runs.resume(folder, progress=watched)
    assert any("another network or another way to try it" in said for said in watched.said)
    assert outcome(folder) == outcome(whole)


def test_a_search_needs_images_held_out(tmp_path: Path) -> None:
    watched = Watched(1)
    with pytest.raises(KeyboardInterrupt):
        runs.start(recipe(*OVERRIDES, "data.validation=0"), tmp_path / "run", progress=watched)
    assert "data.validation is 0, so the search measures on one training image in eight." in watched.said
    data = runs.prepare(recipe(*OVERRIDES, "data.validation=0")).data
    train, held = held_out(data)
    assert (len(train), len(held)) == (263, 37)
    assert not set(train.indices) & set(held.indices)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"of digits none are: set data\.validation, such as 0\.1\."):
        held_out(replace(data, train=Part(data.train, None, 8)))  # type: ignore[arg-type]


def test_a_training_that_diverges_is_measured_and_said(tmp_path: Path) -> None:
    watched = Watched(2)
    with pytest.raises(KeyboardInterrupt):
        runs.start(recipe(*OVERRIDES, "search.lr=1e30"), tmp_path / "run", progress=watched)
    assert any(said.startswith("Trial 1 is measured as it was left: in stage search") for said in watched.said)
    assert len(lines(tmp_path / "run")) == 3


def test_a_part_of_a_split_gives_the_first_batches() -> None:
    split = runs.prepare(recipe()).data.train
    part = Part(split, 100, 32)
    assert (len(part), part.batch_count(32)) == (96, 3)
    given = list(part.batches(32, shuffle=True, seed=4, epoch=1))
    wanted = list(split.batches(32, shuffle=True, seed=4, epoch=1))[:3]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(given, wanted, strict=True))
    assert [len(y) for _, y in part.batches(32, start=2)] == [32]
    assert len(Part(split, None, 32)) == len(split)
    assert Part(split, 5, 32).batch_count(32) == 1


#: Searches that are killed by the system: the fast one always, those of the methods there are by `make long`.
SEARCHES = {
    "tiny_search": ("method=tiny_search",),
    "acp": ("method={name: acp, particles: 3, cycles: 1}", "model=zoo:resnet8"),
    "metapruning": (
        "method={name: metapruning, hidden: 2, population: 3, mutants: 2, crossovers: 1, iterations: 2, images: 64}",
        "model=zoo:resnet8",
    ),
}


class Killed(Silent):
    """Kills its process at the second trial."""

    def trial(self, done: int, total: int | None, best: str) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
@pytest.mark.parametrize(
    "name", ["tiny_search", *(pytest.param(name, marks=pytest.mark.long) for name in ("acp", "metapruning"))]
)
def test_kill_minus_nine_during_the_search(tmp_path: Path, name: str) -> None:
    given = recipe(*OVERRIDES, *SEARCHES[name])
    runs.start(given, tmp_path / "whole")
    folder = tmp_path / "run"
    pid = os.fork()
    if pid == 0:
        runs.start(given, folder, progress=Killed())
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert len(lines(folder)) == 3
    runs.resume(folder)
    assert outcome(folder) == outcome(tmp_path / "whole")
    asked = [json.dumps(row["about"]) for row in lines(folder)[1:]]
    assert len(asked) == len(set(asked)) > 2
