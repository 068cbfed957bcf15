"""The table is measured once, kept with its conditions, and never trusted blindly."""

from __future__ import annotations

import json
from pathlib import Path

import _made_up
import numpy as np
import pytest

from secateur.budget import Target
from secateur.errors import ConfigError
from secateur.graph.forms import Form
from secateur.latency import Table, table
from secateur.latency.benches import BENCHES, timed

CONV = Form("conv", 1, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1))
LAYERS = [(CONV, 8, 4), (CONV, 8, 8), (Form("linear", 1, (1,)), 10, 16)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []

    def count(runtime: str, layers: list[table.Layer], threads: int) -> np.ndarray:
        counts.append(len(layers))
        return _made_up.timed(runtime, layers, threads)

    monkeypatch.setattr(table, "timed", count)
    return counts


def test_what_is_known_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    counts, seen = counted(monkeypatch), []
    first = Table(Target("pytorch"))
    first.measure([*LAYERS, LAYERS[0]], lambda *told: seen.append(told))
    first.measure(LAYERS, lambda *told: seen.append(told))
    assert counts == [3]
    assert seen == [(0, 3, "pytorch"), (3, 3, "pytorch")]  # and nothing where nothing lacks
    again = Table(Target("pytorch"))
    assert again.times.keys() == first.times.keys()
    again.measure([*LAYERS, (CONV, 16, 8)])
    assert counts == [3, 1]
    assert len(list(own_cache.iterdir())) == 1
    assert not Table(Target("pytorch", threads=2)).times  # other conditions, another table
    assert not Table(Target("onnxruntime")).times


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"conv"', '"con"'),
        lambda text: text.replace('"version": 2', '"version": 1'),
        lambda text: text.replace('"threads": 1', '"threads": 4'),
        lambda text: json.dumps({**json.loads(text), "layers": [["conv", 1, [6]]]}),
        lambda text: json.dumps({**json.loads(text), "layers": 3}),
        lambda text: "[]",
    ],
)
def test_a_file_that_is_not_ours_is_made_again(monkeypatch: pytest.MonkeyPatch, damage: object) -> None:
    counts = counted(monkeypatch)
    made = Table(Target("pytorch"))
    made.measure(LAYERS)
    made.file.write_text(damage(made.file.read_text()))  # type: ignore[operator]
    again = Table(Target("pytorch"))
    assert not again.times
    again.measure(LAYERS)
    assert counts == [3, 3]
    assert Table(Target("pytorch")).times == pytest.approx(made.times, abs=0.01)


def test_a_folder_that_cannot_be_written_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counted(monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "file"))
    made = Table(Target("pytorch"))
    made.measure(LAYERS)
    assert len(made.times) == 3
    assert "could not be kept" in made.note


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'onnxruntime'"):
        Table(Target("onnxruntim"))


FORMS = [
    (CONV, 8, 5),
    (Form("conv", 2, (6, 6), (1, 1), (2, 2), (0, 0), (1, 1)), 7, 8),
    (Form("conv", 1, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1), groups=2), 8, 4),
    (Form("depthwise", 1, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1), groups=0), 8, 1),
    (Form("transposed", 1, (3, 3), (2, 2), (2, 2), (0, 0), (1, 1)), 4, 8),
    (Form("linear", 1, (3,)), 10, 16),
]


@pytest.mark.parametrize("runtime", BENCHES)
def test_every_form_is_timed_on_every_runtime(runtime: str) -> None:
    found = timed(runtime, FORMS, 1)
    assert found.shape == (len(FORMS),)
    assert (found > 0).all()
    assert np.isfinite(found).all()
