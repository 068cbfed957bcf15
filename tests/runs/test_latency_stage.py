"""Where a run's latency is measured: on the runtimes its recipe names, and on nothing that is missed too late."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from _small import recipe

from secateur import runs
from secateur.errors import ConfigError
from secateur.runtime.engines import ENGINES, Engine

SMALL = ("train.epochs=1", "latency.repeats=3")


def test_the_recipe_names_the_runtimes(tmp_path: Path) -> None:
    if (sentence := ENGINES["openvino"].missing()) is not None:
        pytest.skip(sentence)
    done = runs.start(recipe(*SMALL, "latency.runtimes=[openvino]"), tmp_path / "run")
    found = json.loads((done.folder / "latency.json").read_text())
    assert [row["runtime"] for row in found["runtimes"]] == ["openvino"]
    assert found["layers"]
    assert "OpenVINO" in (done.folder / "report.html").read_text()


def test_a_runtime_that_is_missing_is_missed_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "missing", lambda self: f"x is not installed: {self.install}")
    with pytest.raises(ConfigError, match=r"or leave openvino out of latency\.runtimes"):
        runs.start(recipe(*SMALL, "latency.runtimes=[openvino]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
