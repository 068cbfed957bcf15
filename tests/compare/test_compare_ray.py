"""A comparison on a Ray cluster: the same result files as here; Ctrl-C, lost workers and other machines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from _contest import contest, outcome, recipe

from secateur import _cluster
from secateur.cli import app
from secateur.compare import Cluster, cluster
from secateur.errors import ConfigError, RunError

METHODS = ("bwcp", "l1")
LONG = ("train.epochs=25",)  # so that there is time to kill it
KILLED = "bwcp-0-flops=0.6"


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of two workers on this machine, which every comparison of this process then uses."""
    found = pytest.importorskip("ray", reason='Ray is not installed: pip install "secateur[ray]"')
    before = dict(os.environ)
    os.environ["ACCELERATE_USE_CPU"] = "1"
    _cluster._join(_cluster.package(), _cluster.LOCAL, 2, _cluster._STORE)
    yield found
    found.shutdown()
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same comparison on this machine."""
    return contest(tmp_path_factory.mktemp("here"), *METHODS, overrides=LONG)


def kill(run: Path, epochs: int, killed: list[int]) -> None:
    """End the process that works on a run once so many of its epochs are over."""
    metrics = run / "metrics.jsonl"
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < epochs:
        time.sleep(0.02)
    for place in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if place.readlink() == run / ".lock":  # it holds the lock of the run
                killed.append(int(place.parts[2]))
                os.kill(killed[-1], signal.SIGKILL)
                return


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker by its open files, as Linux shows them")
def test_a_cluster_leaves_what_one_process_leaves_also_after_a_worker_was_killed(
    ray: Any, here: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[Mapping[str, Any]] = []
    killed: list[int] = []
    threading.Thread(target=kill, args=(tmp_path / "a" / "runs" / KILLED, 5, killed), daemon=True).start()
    found = contest(tmp_path / "a", *METHODS, overrides=LONG, cluster=Cluster(), told=events.append)
    assert killed
    assert not found.failed
    assert capfd.readouterr().out == ""  # Ray itself would tell at length of the lost worker
    again = [event["text"] for event in events if "begun again" in event["text"]]
    assert len(again) == 1
    assert again[0].startswith("bwcp, seed 0, flops=0.6: begun again, as its worker was lost (WorkerCrashedError")
    assert outcome(tmp_path / "a") == outcome(here.folder)
    sessions = json.loads((tmp_path / "a" / "runs" / KILLED / "results.json").read_text())["sessions"]
    assert len(sessions) == 2  # it went on from its checkpoint
    theirs, mine = (json.loads((f / "comparison.json").read_text()) for f in (here.folder, tmp_path / "a"))
    assert {key: theirs[key] for key in theirs if key != "calls"} == {key: mine[key] for key in mine if key != "calls"}
    assert [(call["jobs"], call["threads"]) for call in mine["calls"]] == [(2, 1)]
    assert rows(found) == rows(here)
    assert not list((tmp_path / "a").glob(".token*"))
    assert list((tmp_path / "a").glob("processes-*.log"))


def rows(found: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "date")} for row in found.document["rows"]]


@pytest.mark.long
@pytest.mark.slow
def test_ctrl_c_lets_all_write_a_checkpoint_and_costs_nothing(ray: Any, here: Any, tmp_path: Path) -> None:
    run = tmp_path / "a" / "runs" / KILLED

    def interrupt() -> None:
        while not (run / "metrics.jsonl").is_file():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        contest(tmp_path / "a", *METHODS, overrides=LONG, cluster=Cluster())
    assert "train" not in json.loads((run / "state.json").read_text())["stages"]
    steps = [int(path.name.partition("-")[2]) for path in (run / "checkpoints").glob("train-*")]
    assert steps
    contest(tmp_path / "a", *METHODS, overrides=LONG, cluster=Cluster())
    assert outcome(tmp_path / "a") == outcome(here.folder)


#: Ends every process that makes it but the first.
DEADLY = """
import os, signal
from secateur.models import create

def net():
    if os.getpid() != {pid}:
        os.kill(os.getpid(), signal.SIGKILL)
    return create("tiny", in_channels=1)
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_run_whose_workers_die_again_and_again_is_a_failed_one(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "RETRIES", 1)
    (tmp_path / "net.py").write_text(DEADLY.format(pid=os.getpid()))
    found = contest(
        tmp_path / "a", "scratch", overrides=(f"model={tmp_path / 'net.py'}:net",), cluster=Cluster(), jobs=1
    )
    (failed,) = found.document["failed"]
    assert failed["said"].startswith("Its worker was lost 2 times, the last time so: WorkerCrashedError")
    assert failed["said"].endswith("start the same comparison again to continue.")


@pytest.mark.slow
def test_a_cluster_that_cannot_do_it_is_told_before_anything_is_written(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, part in (
        ({"threads": 3}, "No node of the Ray cluster has 3 CPUs for a run: lower --threads, or add"),
        ({"cluster": Cluster(gpus=1)}, "--gpus-per-run is 1, but engine.device is cpu"),
        ({"cluster": Cluster(gpus=1), "overrides": ("engine.device=auto",)}, "has 1 CPUs and 1 GPUs for a run"),
    ):
        with pytest.raises((RunError, ConfigError)) as caught:
            contest(tmp_path / "a", "l1", **{"cluster": Cluster(), **options})  # type: ignore[arg-type]
        assert part in str(caught.value)
    monkeypatch.setattr(_cluster, "__version__", "99.0")
    with pytest.raises(RunError, match=r"The node .* has secateur .*, and here it is 99\.0: install the same on all"):
        contest(tmp_path / "a", "l1", cluster=Cluster())
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".lock"]


FOUND = {
    "secateur": _cluster.__version__,
    "torch": str(_cluster.torch.__version__),
    "word": "x",
    "here": True,
    "problem": "",
}


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        ({"torch": "1.0"}, "The node n has torch 1.0, and here it is"),
        ({"secateur": None}, "The node n has no secateur"),
        (
            {"word": None, "problem": "no such file"},
            "'/there/c' is not the same on the node n: give an --out on storage",
        ),
        ({"word": "of another folder"}, "'/there/c' is not the same on the node n"),
        ({"here": False}, "The folder '/home/me', in which this was called, is not there on the node n"),
        ({"problem": "read-only"}, "The node n cannot write into the folder: read-only."),
    ],
)
def test_what_a_node_lacks_is_one_sentence(harm: dict[str, Any], part: str) -> None:
    found = {**FOUND, "token": "/there/c/.token", **harm}
    with pytest.raises(RunError) as caught:
        _cluster._check("n", found, "x", "/home/me")
    assert part in str(caught.value)


def test_a_ray_that_comes_up_slowly_is_given_three_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def slow(**_: Any) -> None:
        tried.append(1)
        if len(tried) != 3:
            raise Exception("The current node timed out during startup.")

    busy = SimpleNamespace(init=slow, shutdown=lambda: None)
    _cluster._join(busy, _cluster.LOCAL, 2, 0)
    with pytest.raises(RunError, match=r"Ray cannot be started on this machine \(The current node timed out during st"):
        _cluster._join(busy, _cluster.LOCAL, 2, 0)
    assert len(tried) == 6


def test_without_ray_or_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(_cluster, "_CURRENT", tmp_path / "none")
    absent = SimpleNamespace(is_initialized=lambda: False, init=refused, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", absent)
    with pytest.raises(
        RunError, match=r"The Ray cluster 'auto' cannot be joined \(Could not .*: start it on this node"
    ):
        contest(tmp_path / "a", "l1", cluster=Cluster())
    with pytest.raises(RunError, match=r"The Ray cluster '127\.0\.0\.1:9' cannot be joined \(.*refused\): start it on"):
        contest(tmp_path / "a", "l1", cluster=Cluster("127.0.0.1:9"))  # without asking Ray
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'ray is not installed: pip install "secateur\[ray\]"'):
        contest(tmp_path / "a", "l1", cluster=Cluster())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--engine", "rai"], "did you mean 'ray'?"),
        (["--address", "auto"], "--address is of a Ray cluster, and the engine is local: give --engine ray too."),
        (["--gpus-per-run", "1"], "--gpus-per-run is of a Ray cluster"),
    ],
)
def test_options_that_say_nothing_are_refused(options: list[str], part: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe().to_yaml())
    said = CliRunner().invoke(app, ["compare", str(tmp_path / "recipe.yaml"), "--methods", "l1", *options])
    assert said.exit_code == 2
    assert part in said.stderr
