"""Files whole or not at all; JSON without freedom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur import _files
from secateur.errors import ConfigError, RunError


def test_a_document_comes_back(tmp_path: Path) -> None:
    document = {"a": [1, 2.5, None, True], "ü": "→"}
    _files.write_json(tmp_path / "a.json", document)
    assert _files.read_json(tmp_path / "a.json") == document
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("document", [{"a": float("nan")}, {"a": object()}, {"a": "\ud800"}])
def test_what_is_not_json_is_not_written_and_leaves_the_old_file(tmp_path: Path, document: object) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    with pytest.raises(RunError, match="cannot be written"):
        _files.write_json(path, document)
    assert path.read_text() == "{}"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}', "[" * 100_000, "1" * 5000, "", "{", "\ufeff{}"],
)
def test_loose_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^The recipe .* is not valid JSON: .*\.$"):
        _files.read_json(path, what="The recipe", error=ConfigError)


def test_a_large_a_missing_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_text(json.dumps("x" * 100))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("large", "missing", "binary"):
        with pytest.raises(RunError, match="cannot be read"):
            _files.read_json(tmp_path / name, most=50)


@pytest.mark.parametrize("where", ["missing/a", ".", ""])
def test_an_impossible_place_is_one_sentence(tmp_path: Path, where: str) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        _files.write_bytes(tmp_path / where if where else Path(), b"x")
    assert not list(tmp_path.iterdir())
