"""What is installed: extras hold what is imported and nothing else, recipes are in the package, versions are one."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import secateur
from secateur import recipes
from secateur._hints import install
from secateur.errors import ConfigError
from secateur.recipe import Recipe
from secateur.runtime.engines import ENGINES
from secateur.runtime.export import EXPORTERS
from secateur.runtime.int8 import QUANTISERS

tomllib = pytest.importorskip("tomllib", reason="tomllib is in Python 3.11")

ROOT = Path(__file__).parents[1]
PACKAGE = Path(secateur.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
#: Names of packages on an index, where they differ from what is imported.
MODULES = {"pyyaml": "yaml", "pillow": "PIL", "scikit-learn": "sklearn", "faster-coco-eval": "faster_coco_eval"}
#: Extras of people who work on Secateur, not of the package.
OURS = {"dev", "docs"}
#: What another package brings, or a user on his own: where torch has it, and one of two packages for one purpose.
UNDECLARED = {"tensorboard", "pycocotools", "pytorch_lightning"}
_CALLS = {"import_module", "find_spec", "needed", "extra", "_library"}


def _module(requirement: str) -> str:
    name = re.split(r"[<>=\[; ]", requirement)[0].lower()
    return MODULES.get(name, name)


def _named(tree: ast.Module) -> Iterator[str]:
    """What a module imports, by statement or by the name it gives to a function that imports or looks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if called in _CALLS and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value
            elif called in _CALLS and isinstance(first, ast.JoinedStr) and isinstance(first.values[0], ast.Constant):
                yield str(first.values[0].value)


def _imported() -> set[str]:
    """The packages of others that the package uses."""
    found = {name for path in PACKAGE.rglob("*.py") for name in _named(ast.parse(path.read_text(encoding="utf-8")))}
    found |= {name for rows in (ENGINES, EXPORTERS, QUANTISERS) for row in rows.values() for name in row.packages}
    found |= set(_values(PACKAGE / "tasks/detection.py", "_BACKENDS"))
    found |= set(_values(PACKAGE / "integrations/lightning.py", "_PACKAGES"))
    return {name.partition(".")[0] for name in found} - {*sys.stdlib_module_names, "secateur"}


def _values(path: Path, name: str) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            value = ast.literal_eval(node.value)
            yield from value.values() if isinstance(value, dict) else value


def test_what_is_declared_is_imported_and_what_is_imported_is_declared() -> None:
    extras = [each for name, needs in EXTRAS.items() if name not in OURS for each in needs]
    declared = {_module(each) for each in [*PROJECT["dependencies"], *extras]}
    assert declared == _imported() - UNDECLARED


def test_extras_that_messages_name_exist() -> None:
    named = {
        node.args[0].value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "install"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    named |= {row.extra for rows in (EXPORTERS, QUANTISERS) for row in rows.values() if row.extra}
    assert len(named) > 8
    assert named <= set(EXTRAS)
    assert install("hub") == 'pip install "secateur[hub]" (in a clone: pip install -e ".[hub]")'


def test_every_extra_is_named_where_people_install() -> None:
    install_section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Install")[2].partition("\n## ")[0]
    table = [line for line in install_section.splitlines() if line.startswith("|")]
    assert set(re.findall(r"`([\w]+)`", "\n".join(table))) == set(EXTRAS)


def test_recipes_are_found_by_name_and_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(recipes.names()) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    monkeypatch.chdir(ROOT)
    assert Recipe.read("recipe:digits-swp") == Recipe.read("recipes/digits-swp.yaml")
    with pytest.raises(ConfigError, match=r"^Unknown recipe of the package 'digit-swp': did you mean 'digits-swp'\? "):
        Recipe.read("recipe:digit-swp")


def test_a_packaged_recipe_needs_no_file_of_the_clone() -> None:
    for name in recipes.names():
        read = Recipe.read(f"recipe:{name}")
        for reference in (read.model.reference, read.data.name):
            place = reference.partition(":")[0]
            assert not place.endswith(".py")
            assert "." not in place or place.startswith("secateur.examples.")


def test_the_version_is_that_of_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    source = (PACKAGE / "_version.py").read_text(encoding="utf-8")
    for found, wanted in ((lambda name: {"secateur": "9.1"}[name], "9.1"), (absent, "0+unknown")):
        monkeypatch.setattr(metadata, "version", found)
        space: dict[str, str] = {}
        exec(source, space)
        assert space["__version__"] == wanted


def test_the_readme_of_an_index_has_no_relative_link() -> None:
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["metadata"]["hooks"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = re.findall(r'\]\((?!https?:|#)([^)#]+)|(?:src|srcset)="(?!https?:)([^"]+)"', text)
    assert relative
    assert all((ROOT / "".join(found)).exists() for found in relative)  # in a clone they lead somewhere
    for each in hooks["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    links = re.findall(r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', text)
    assert len(links) >= len(relative)
    assert all("".join(link).startswith(("https://", "#")) for link in links)
    assert f"]({PROJECT['urls']['Repository']}/blob/main/docs/methods.md)" in text
