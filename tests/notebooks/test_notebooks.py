"""The notebooks of the documentation run from their first cell to the last, each in a kernel of its own."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import secateur

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_whole(path: Path) -> None:
    """It parses, calls nothing of Secateur that is not there, has run in order, and is small."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    programs = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in programs] == list(range(1, len(programs) + 1))
    assert not [output for cell in programs for output in cell["outputs"] if output["output_type"] == "error"]
    assert path.stat().st_size < 150_000
    for cell in programs:
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Attribute) and (names := _names(node))[0] == "secateur":
                found: Any = secateur
                for name in names[1:]:
                    found = getattr(found, name)


def _names(node: ast.expr) -> list[str]:
    """`a.b.c` as its names; an empty one first for anything else."""
    if isinstance(node, ast.Attribute):
        return [*_names(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises CellExecutionError with the cell and its traceback


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3
