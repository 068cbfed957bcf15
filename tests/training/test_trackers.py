"""Trackers get every row, over the steps of all stages; what fails in one does not end the training."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from _toy import ToyMethod, make_engine, short, toy_net
from typer.testing import CliRunner

from secateur.cli import app
from secateur.errors import ConfigError
from secateur.recipe import EngineConfig, Recipe
from secateur.training.trackers import check_trackers

OWN = """
import json
from pathlib import Path
from accelerate.tracking import GeneralTracker

class Lines(GeneralTracker):
    name, requires_logging_directory, tracker = "lines", True, None
    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.file = Path(logging_dir) / "lines.jsonl"
        self.run_name = run_name
    def _write(self, *what):
        with self.file.open("a") as file:
            file.write(json.dumps(what) + "\\n")
    def start(self):
        self._write("start", self.run_name)
    def store_init_configuration(self, values):
        self._write("configuration", values)
    def log(self, values, step=None, **more):
        self._write("log", step, values)
    def finish(self):
        self._write("finish")

class Broken(Lines):
    name = "broken"
    def log(self, values, step=None, **more):
        raise ConnectionError("no route to host")

class Nothing:
    pass
"""
RECIPE = "name: a\nmodel: zoo:tiny\ndata: digits\nmethod: l1\nbudget: flops=0.5\ntrain: {epochs: 1}\nengine: %s\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "mine.py")


def _config(*names: str) -> EngineConfig:
    return EngineConfig(device="cpu", precision="fp32", trackers=names)


def test_every_row_over_the_steps_of_all_stages(own: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    about = {"name": "a", "train": {"lr": 0.1, "clip": None, "milestones": (0.5, 0.75)}}
    engine = make_engine(folder, _config(f"{own}:Lines"), about=about)
    engine.fit("pretrain", toy_net(), short(epochs=1))
    method = ToyMethod(toy_net())
    engine.fit("train", method, short(epochs=2), method=method)
    engine.close()
    lines = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    assert lines[0] == ["start", "run"]
    assert lines[1] == ["configuration", {"name": "a", "train.lr": 0.1, "train.milestones": "(0.5, 0.75)"}]
    assert [line[1] for line in lines[2:-1]] == [5, 10, 15]
    assert {"train/train_loss", "train/validation_accuracy", "train/strength"} <= set(lines[-2][2])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line[2][f"{row['stage']}/train_loss"] for line, row in zip(lines[2:-1], rows, strict=True)] == [
        row["train_loss"] for row in rows
    ]
    assert lines[-1] == ["finish"]
    again = make_engine(folder, _config(f"{own}:Lines"))  # goes on, and counts the stages before
    again.fit("pretrain", toy_net(), short(epochs=1))
    again.fit("finetune", toy_net(), short(epochs=1))
    assert json.loads((folder / "lines.jsonl").read_text().splitlines()[-1])[1] == 20


def test_a_tracker_that_fails_is_left_out_and_said_once(own: str, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "run", _config(f"{own}:Broken", f"{own}:Lines"))
    engine.fit("train", toy_net(), short(epochs=3))
    assert engine.notes == [
        "The tracker broken fails and is left out from here on (ConnectionError: no route to host)."
    ]
    lines = (tmp_path / "run" / "lines.jsonl").read_text()
    assert lines.count('"log"') == 3


def test_tracking_changes_no_weight(own: str, tmp_path: Path) -> None:
    plain, tracked = toy_net(), toy_net()
    make_engine(tmp_path / "a", _config()).fit("train", plain, short())
    make_engine(tmp_path / "b", _config(f"{own}:Lines")).fit("train", tracked, short())
    assert all(bool((a == b).all()) for a, b in zip(plain.parameters(), tracked.parameters(), strict=True))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs TensorBoard")
def test_tensorboard_writes_into_the_folder(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    engine = make_engine(tmp_path / "run", _config("tensorboard"), about={"seed": 3})
    engine.fit("train", toy_net(), short(epochs=2))
    engine.close()
    assert engine.notes == []
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("train/train_loss")] == [5, 10]


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("{trackers: [tensorbord]}", "'tensorbord' is no tracker: did you mean 'tensorboard'?"),
        ("{trackers: [wandb, wandb]}", "name each tracker once"),
        ("{tensorboard: 1}", "Unknown key 'engine.tensorboard'"),
    ],
)
def test_recipes_that_are_refused(engine: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Recipe.parse(RECIPE % engine)
    assert said in str(refusal.value)


def test_the_command_line_has_a_short_form() -> None:
    for words, said in (
        (["--track", "tensorbord"], "did you mean 'tensorboard'?"),
        (["--track", "wandb", "--set", "engine.trackers=[mlflow]"], "--track and --set engine.trackers=... are both"),
    ):
        found = CliRunner().invoke(app, ["run", "recipe:digits-bwcp", *words])
        assert found.exit_code == 2
        assert said in " ".join(found.output.split())


def test_recipes_of_earlier_releases() -> None:
    assert Recipe.parse(RECIPE % "{tensorboard: true}").engine.trackers == ("tensorboard",)
    assert Recipe.parse(RECIPE % "{tensorboard: false}").engine.trackers == ()
    assert Recipe.parse(RECIPE % "{trackers: wandb}").engine.trackers == ("wandb",)


def test_what_is_missing_is_said_with_its_installation(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="comet-ml is not installed: pip install comet-ml, or leave it out"):
        check_trackers(["comet_ml"])
    with pytest.raises(ConfigError, match=r"no subclass of accelerate\.tracking\.GeneralTracker"):
        check_trackers([f"{own}:Nothing"])
    with pytest.raises(ConfigError, match="there is none: leave them out"):
        make_engine(config=_config("wandb"))


def test_names_are_accelerates() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from secateur.recipe import TRACKERS

    assert set(TRACKERS) == set(LOGGER_TYPE_TO_CLASS)
