"""Pages of the documentation are what the code says; their programs run."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur import methods
from secateur.methods import METHODS
from secateur.recipe import Recipe
from secateur.repair import REPAIRS, repairs

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS.parent / "examples"


def test_generated_tables_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    stale = runpy.run_path(str(DOCS / "tables.py"))["main"](["--check"])
    assert not stale, f"{capsys.readouterr().out.strip()}: run python docs/tables.py"


def test_every_method_has_its_row_and_its_section() -> None:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    for row in METHODS:
        assert f"| [`{row.name}`](#{row.name}) | {row.paper} | {row.year} |" in page
        assert f"\n## {row.name}\n" in page


def test_every_example_is_on_the_page_of_loops() -> None:
    page = (DOCS / "own-loop.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert path.read_text(encoding="utf-8") in page


def test_the_page_of_loops_runs() -> None:
    page = (DOCS / "own-loop.md").read_text(encoding="utf-8")
    programs = {path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if block not in programs]
    assert len(blocks) == 2
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "own-loop.md", "exec"), names)
    assert callable(names["test_strides"])


def test_the_page_of_adding_a_method_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "adding-a-method.md").read_text(encoding="utf-8")
    whole, *blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(whole.splitlines()) < 60
    assert len(blocks) == 4
    (tmp_path / "running_sensitivity.py").write_text(whole)
    name = "secateur.methods.running_sensitivity"
    spec = importlib.util.spec_from_file_location(name, tmp_path / "running_sensitivity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # as if the file lay where the page says
    spec.loader.exec_module(module)
    monkeypatch.setattr(methods, "METHODS", METHODS)  # the page adds its row, and the tests of others should not see it
    monkeypatch.chdir(tmp_path)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "sensitivity.yaml").write_text(recipe)
    names: dict[str, Any] = {"__name__": "page"}
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            exec(compile(block, "adding-a-method.md", "exec"), names)
            for test in [names.pop(name) for name in list(names) if name.startswith("test_")]:
                test()
    assert (tmp_path / "runs" / "sensitivity" / "report.html").is_file()


def test_every_repair_is_on_its_page() -> None:
    page = (DOCS / "repairs.md").read_text(encoding="utf-8")
    for row in REPAIRS:
        assert f"| [`{row.name}`](#{row.name}) |" in page
        assert f"\n### {row.name}\n" in page
        assert f"- **`{row.name}`** " in page  # when to use it


def test_the_page_of_repairs_runs(tmp_path: Path) -> None:
    page = (DOCS / "repairs.md").read_text(encoding="utf-8")
    (given,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    needed = "name: x\nmodel: zoo:tiny\ndata: digits\nmethod: l1\nbudget: flops=0.5\ntrain: {epochs: 1}\n"
    assert len(repairs([each.model_dump() for each in Recipe.parse(needed + given).repair])) == 2
    names: dict[str, Any] = {"__name__": "page"}
    with torch.random.fork_rng(devices=[]):
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(compile(block, "repairs.md", "exec"), names)
    assert "notes" not in names["result"].plan.provenance  # every reader has a place for a constant
    assert [each["name"] for each in names["result"].plan.provenance["repairs"]] == ["bias_correction"]
    assert [each["name"] for each in names["pruner"].result.plan.provenance["repairs"]] == ["compensation", "batchnorm"]
