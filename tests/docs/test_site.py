"""The documentation site is built with warnings as errors, holds every public name, and fetches nothing."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from _blocks import ROOT
from pydantic import BaseModel

import secateur

pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
#: Packages that are no Python interface: the command line has a page of its own.
NOT_API = {"secateur.cli"}


def _public() -> Iterator[tuple[str, str, Any]]:
    """(package, name, object) of everything in `__all__` of secateur and its packages."""
    packages = ["secateur"]
    packages += [f"secateur.{m.name}" for m in pkgutil.iter_modules(secateur.__path__) if not m.name.startswith("_")]
    for package in packages:
        importlib.import_module(package)
        module = sys.modules[package]  # `secateur.prune` is also a function
        if package in NOT_API or (not hasattr(module, "__path__") and package != "secateur"):
            continue
        for name in getattr(module, "__all__", ()):
            if not name.startswith("__"):
                yield package, name, getattr(module, name)


PUBLIC = [(package, name, found) for package, name, found in _public() if not inspect.ismodule(found)]
IDS = [f"{package}.{name}" for package, name, _ in PUBLIC]
#: Where it is defined: a function that is called like its module is on its page under this name.
CANONICAL = [f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}" for _, _, found in PUBLIC]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"mkdocs build --strict:\n{done.stdout}{done.stderr}"
    return folder


@pytest.mark.long
def test_every_public_name_is_on_the_site(site: Path) -> None:
    *_, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    shown = {line.split(" ", 1)[0] for line in zlib.decompress(packed).decode().splitlines()}
    missing = [place for place, canonical in zip(IDS, CANONICAL, strict=True) if not {place, canonical} & shown]
    assert not missing, f"add a page docs/api/PACKAGE.md that says `::: PACKAGE`, for {missing}"
    assert len(IDS) > 100


@pytest.mark.parametrize(("package", "name", "found"), PUBLIC, ids=IDS)
def test_public_names_say_what_they_are(package: str, name: str, found: Any) -> None:
    problem = _undocumented(name, found)
    assert not problem, f"{package}.{name} {problem}"


def test_names_that_do_not_are_noticed() -> None:
    def bare(model):  # type: ignore[no-untyped-def]
        pass

    def half(model, depth):  # type: ignore[no-untyped-def]
        """Uses the model."""

    class Wide:
        """Something."""

        def __init__(self, width: int) -> None:
            """With a width."""

    class Long:
        """Something."""

        def __init__(self, length: int) -> None:
            self.length = length

    assert _undocumented("bare", bare) == "has no docstring"
    assert _undocumented("half", half) == "does not say what depth is"
    assert _undocumented("NOWHERE_TO_BE_FOUND", 3) == "needs a comment `#:` above it"
    assert not _undocumented("Wide", Wide)
    assert _undocumented("Long", Long) == "does not say what length is"


def _undocumented(name: str, found: Any) -> str:
    """What is wrong: a docstring must be there, of a function or a class also with its arguments, by name."""
    if isinstance(found, type) and issubclass(found, Exception):
        return "" if inspect.getdoc(found) else "has no docstring"
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        above = re.search(rf"^#: .+\n(?:#: .+\n)*{name}\b", _sources(), re.MULTILINE)
        return "" if above else "needs a comment `#:` above it"
    text = inspect.getdoc(found) or ""
    if not text:
        return "has no docstring"
    if inspect.isclass(found):
        text += "".join(f"{inspect.getdoc(each)} {inspect.getdoc(each.__init__)}" for each in found.__mro__[:-1])
    missing = [argument for argument in _arguments(found) if not re.search(rf"\b{argument}\b", text)]
    return f"does not say what {', '.join(missing)} is" if missing else ""


def _arguments(found: Any) -> list[str]:
    """Those that a caller gives; records (data classes, protocols) are made by Secateur, and their fields are shown."""
    if inspect.isclass(found) and (dataclasses.is_dataclass(found) or getattr(found, "_is_protocol", False)):
        return []
    if inspect.isclass(found) and issubclass(found, BaseModel):  # sections of a recipe: a field says it itself
        return [name for name, field in found.model_fields.items() if not field.description]
    return [name for name in inspect.signature(found).parameters if name not in ("self", "args", "kwargs")]


@functools.cache
def _sources() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src" / "secateur").rglob("*.py")))


def test_nothing_is_fetched(site: Path) -> None:
    """No font, script, style or picture from elsewhere."""
    fetched = re.compile(r"<(?:script|img|iframe|source)[^>]+src=\"?(?:https?:)?//|<link[^>]+href=\"?(?:https?:)?//")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        found = [hit for hit in fetched.findall(page.read_text(encoding="utf-8")) if "canonical" not in hit]
        assert not found, f"{page.name} fetches {found[0]}"


def test_search_and_mathematics_come_with_the_site(site: Path) -> None:
    """The search index as a script, which a page read from disk may load; KaTeX with its licence and all its fonts."""
    assert (site / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = ")
    page = (site / "index.html").read_text(encoding="utf-8")
    for file in ("assets/iframe-worker/shim.js", "assets/katex/katex.min.js", "assets/katex/katex.min.css"):
        assert file in page
        assert (site / file).is_file()
        assert (site / file).with_name("LICENSE").is_file()
    style = (site / "assets" / "katex" / "katex.min.css").read_text(encoding="utf-8")
    fonts = set(re.findall(r"url\(([^)]+)\)", style))
    assert len(fonts) > 15
    assert all((site / "assets" / "katex" / font).is_file() for font in fonts)


def test_every_page_is_once_in_the_menu() -> None:
    pytest.importorskip("griffe")
    sys.path.insert(0, str(ROOT / "docs"))
    import _site

    text = re.sub(r"!!?[\w/:.]+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    nav = _site._expanded(yaml.safe_load(text)["nav"], ROOT / "docs", set(_site._named(yaml.safe_load(text)["nav"])))
    named = list(_site._named(nav))
    files = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    pages = [page.relative_to(ROOT / "docs").with_suffix(".md").as_posix() for page in files]
    assert sorted(named) == sorted(pages)


def test_nothing_but_pages_and_pictures(site: Path) -> None:
    assert not list(site.rglob("*.py"))
    assert (site / "figures" / "compare.svg").is_file()


#: Characters of code beside the two menus of a page that is 1280 pixels wide.
CODE = 102


def test_code_of_the_front_page_and_of_method_pages_fits() -> None:
    """What is longer goes on in the next line, which is no way to show a program."""
    pages = [ROOT / "docs" / "index.md", *(ROOT / "docs" / "methods").glob("*.md")]
    wide = [
        f"{page.name}: {line}"
        for page in pages
        for block in re.findall(r"^(?:    .*|```\w*\n(?:.*\n)*?```)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        for line in block.splitlines()
        if len(line) > CODE
    ]
    assert not wide
