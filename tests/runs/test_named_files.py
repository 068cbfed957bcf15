"""Code and weights that a recipe names and that changed between two sessions of a run: said, with the file's name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from _small import recipe

from secateur.runs.documents import changes
from secateur.runs.named_files import named_files


@pytest.mark.parametrize(
    ("override", "file"),
    [
        ("model={{reference: '{}:Net'}}", "net.py"),
        ("model={{reference: zoo:tiny, weights: '{}'}}", "weights.pth"),
        ("plugins=['{}']", "mine.py"),
        ("task={{name: '{}:Task'}}", "task.py"),
        ("data={{name: digits, batch_size: 30, augment: ['{}:noise']}}", "augment.py"),
        ("model={{reference: '{}'}}", "run/model.safetensors"),
    ],
)
def test_every_file_that_a_recipe_names_is_watched(override: str, file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("first")
    named = path.parent if path.parent != tmp_path else path
    read = recipe(override.format(named))
    before = named_files(read)
    assert len(before) == 1
    path.write_text("second")
    after = named_files(read)
    assert before.keys() == after.keys()
    (said,) = changes([{"files": before}, {"files": before}, {"files": after}])
    assert str(named) in said
    assert "is another file than when the run was begun" in said
    assert not changes([{"files": after}, {}, {"files": after}])


def test_modules_are_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data_of_mine.py").write_text("def build(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    import own_data_of_mine  # type: ignore[import-not-found]  # noqa: F401

    read = recipe("data={name: 'own_data_of_mine:build', batch_size: 30}")
    assert list(named_files(read)) == ["own_data_of_mine:build"]
    del sys.modules["own_data_of_mine"]


def test_what_is_named_and_no_file_is_nothing(tmp_path: Path) -> None:
    assert named_files(recipe()) == {}
    found: Any = named_files(recipe(f"model={{reference: '{tmp_path / 'gone.py'}:Net'}}"))
    assert found == {}
    assert json.dumps(found)
