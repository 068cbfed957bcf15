"""Every Python block of the documentation runs: those of one page in order, in one namespace, in an empty folder."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from _blocks import DOCS, PAGES, ROOT, Block, alike, blocks

from secateur import methods, repair
from secateur.graph.rules.registry import RULES
from secateur.recipe import Recipe

#: Blocks that cannot run here, by page; a new one is added on purpose, with its reason on the page.
NOT_RUN: dict[str, int] = {"docs/exports.md": 1, "docs/integrations.md": 1}
#: What a comment before a block may say; the last ones begin or end a table that a program fills in.
MARKS = re.compile(r"not run|file|module|output|example|hidden|table .+|end .+|sets|getting|options|augmentations")
WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; what pages register is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["page"])
    monkeypatch.setattr(methods, "_REGISTERED", {})
    monkeypatch.setattr(repair, "REPAIRS", repair.REPAIRS)
    rules, modules = dict(RULES), set(sys.modules)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield tmp_path
    RULES.clear()
    RULES.update(rules)
    for name in set(sys.modules) - modules:
        made = sys.modules[name]
        if getattr(made, "_of_a_page", False) or str(tmp_path) in str(getattr(made, "__file__", "")):
            del sys.modules[name]


#: Pages whose blocks train, export or prune a detector for longer than `make test` has.
LONG = tuple(f"docs/{name}.md" for name in ("detector", "adding-a-method", "own-loop", "exports", "integrations"))


def _param(page: Path) -> Any:
    return pytest.param(page, id=_name(page), marks=[pytest.mark.long] if _name(page) in LONG else [])


@pytest.mark.parametrize("page", [_param(each) for each in WITH_CODE])
def test_page_runs(page: Path, untouched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if "file" in block.marks:
            (untouched / block.marks["file"]).write_text(block.code, encoding="utf-8")
        elif "module" in block.marks:
            _as_module(block)
        elif "output" in block.marks:
            said = capsys.readouterr().out
            for line in block.code.splitlines():
                assert any(alike(line, each) for each in said.splitlines()), f"{block.place}: {line!r} is not in {said}"
            said = ""
        elif block.language == "python" and not {"not run", "example"} & set(block.marks):
            _run(block, names)


def _run(block: Block, names: dict[str, Any]) -> None:
    """Run it, and the tests it defines; a parametrised one is pytest's business."""
    before = dict(names)
    program = "\n" * (block.line - 1) + block.code  # so that a traceback has the page's line
    exec(compile(program, str(block.page), "exec"), names)
    for name, test in list(names.items()):
        if name.startswith("test_") and before.get(name) is not test and not inspect.signature(test).parameters:
            test()


def _as_module(block: Block) -> None:
    """As if the block lay where the page says."""
    module = types.ModuleType(block.marks["module"])
    module._of_a_page = True  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    exec(compile(block.code, str(block.page), "exec"), module.__dict__)


def test_every_mark_is_known() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert all(MARKS.fullmatch(mark) for mark in block.marks), block.place


def test_what_is_not_run_says_why_and_is_counted() -> None:
    found: dict[str, int] = {}
    for page in PAGES:
        for block in blocks(page):
            if "not run" in block.marks:
                assert len(block.marks["not run"].split()) > 2, f"{block.place}: say why it is not run"
                found[_name(page)] = found.get(_name(page), 0) + 1
    assert found == NOT_RUN, "blocks that are not run are listed in NOT_RUN"


def test_every_example_is_on_the_page_of_loops() -> None:
    shown = {block.marks["example"]: block.code for block in blocks(DOCS / "own-loop.md") if "example" in block.marks}
    programs = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")}
    assert shown == programs  # tests/test_examples.py runs them
    assert not [b.place for p in PAGES if p.name != "own-loop.md" for b in blocks(p) if "example" in b.marks]


def test_recipes_on_pages_are_read() -> None:
    """A whole recipe as it stands, a part of one within the rest."""
    rest = "name: x\nmodel: zoo:tiny\ndata: digits\nmethod: l1\nbudget: flops=0.5\ntrain: {epochs: 1}\n"
    count = 0
    for page in PAGES:
        for block in blocks(page):
            if block.language == "yaml" and "not run" not in block.marks:
                given = yaml.safe_load(block.code)
                if "running_sensitivity" not in block.code:  # a method of the page's own, which is run there
                    Recipe.parse(block.code if "name" in given else yaml.safe_dump({**yaml.safe_load(rest), **given}))
                count += 1
    assert count >= 3


def test_the_whole_method_of_the_page_is_short() -> None:
    whole = next(block for block in blocks(DOCS / "adding-a-method.md") if "module" in block.marks)
    assert len(whole.code.splitlines()) < 60
