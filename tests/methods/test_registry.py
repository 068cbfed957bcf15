"""Methods of others: registered, from a file, by an import path, from a package's entry point; and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur import methods
from secateur.errors import ConfigError
from secateur.methods import METHODS, Method, MethodRow, plugins
from secateur.recipe import Recipe
from secateur.runs.preparing import prepare
from secateur.testing import check_method

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

PLUGIN = '''
import secateur

@secateur.methods.register
def steps_down(graph):
    """The first channels are kept."""
    return {g.name: range(g.width, 0, -1) for g in graph.groups}

@secateur.methods.register(name="steps_up", summary="the last channels are kept")
class Up(secateur.methods.Method):
    name = "steps_up"

    def score(self):
        return {g.name: list(range(g.width)) for g in self.graph.groups}
'''

RECIPE = """
name: plugged
model: {reference: zoo:resnet8, arguments: {width: 0.25}}
data: {name: digits, train_images: 64, batch_size: 16}
method: steps_down
budget: flops=0.6
train: {epochs: 1}
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)
    )


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(methods, "_REGISTERED", {})
    modules = set(sys.modules)
    plugins.installed.cache_clear()
    yield
    plugins.installed.cache_clear()
    for name in set(sys.modules) - modules:
        if name.startswith(("secateur_plugin", "pruners")):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with entry points; the last of them is broken."""
    (tmp_path / "pruners.py").write_text("class Up:\n    pass\n" + PLUGIN.replace("@secateur.methods.register\n", ""))
    info = tmp_path / "pruners-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pruners\nVersion: 1.0\n")
    points = "[secateur.methods]\ndown = pruners:steps_down\nbroken = pruners:missing\nl1 = pruners:steps_down\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def widths(**options: Any) -> list[list[int]]:
    plan = secateur.prune(network(), IMAGES, budget="flops=0.5", normalise="max", **options).plan
    return [mask.nonzero()[0].tolist() for mask in plan.masks.values()]


def test_three_fields_make_a_row() -> None:
    class Mine(Method):
        name = "mine"

        def score(self) -> dict[str, Any]:
            return secateur.score("l1", self.graph)

    row = MethodRow(name="mine", factory=Mine, summary="as l1")
    assert (row.needs, row.acts, row.granularity) == ("nothing", "after training", "channel")
    assert methods.register(row) is row
    assert widths(method="mine") == widths(method="l1")
    check_method(row, networks=secateur.testing.NETWORKS[:1])


def test_a_file_brings_methods(file: Path) -> None:
    assert methods.plug_in(str(file)) == ["steps_down", "steps_up"]
    assert methods.plug_in(str(file)) == ["steps_down", "steps_up"]  # again, from memory
    assert [row.name for row in methods.known()] == [*(row.name for row in METHODS), "steps_down", "steps_up"]
    assert methods.method("steps_down").summary == "The first channels are kept"
    assert all(kept[0] == 0 for kept in widths(method="steps_down"))
    assert all(kept[-1] == 15 for kept in widths(method="steps_up"))


def test_one_thing_of_a_file_or_module(file: Path, package: Path) -> None:
    (package / "plain.py").write_text(PLUGIN.replace("@secateur.methods.register\n", "").replace("steps_up", "mine_up"))
    assert methods.plug_in(f"{package / 'plain.py'}:steps_down") == ["steps_down"]
    assert methods.plug_in(f"{package / 'plain.py'}:steps_down") == ["steps_down"]  # again
    with pytest.raises(ConfigError, match="a method named 'steps_down' already"):
        methods.plug_in("pruners:steps_down")


def test_an_entry_point_is_a_method(package: Path) -> None:
    assert widths(method="down") == widths(method="down")
    assert methods.method("down").summary == "The first channels are kept"
    assert isinstance(methods.create("down", network(), IMAGES, budget="flops=0.5"), Method)


def test_a_broken_entry_point_is_one_sentence(package: Path) -> None:
    with pytest.raises(ConfigError, match=r"'broken' of the package pruners cannot be loaded .*\.$"):
        methods.method("broken")
    with pytest.raises(ConfigError, match="did you mean 'broken'"):
        methods.method("broke")
    assert [row.name for row in methods.known()] == [*(row.name for row in METHODS), "down", "steps_up"]  # the others
    assert list(methods.unloadable()) == ["broken", "l1"]
    assert methods.unloadable()["l1"].endswith("is not used: there is one of Secateur's own.")
    assert methods.method("l1") in METHODS


def test_a_recipe_names_plugins(file: Path) -> None:
    recipe = Recipe.parse(RECIPE, [f"plugins={file}"])
    assert Recipe.parse(recipe.to_yaml()) == recipe
    assert prepare(recipe).row.name == "steps_down"


REFUSED = {
    "no file": ("nowhere.py", "is not there"),
    "no module": ("no_such_module", "cannot be imported"),
    "no name": ("secateur.methods:Missing", "has no 'Missing'"),
    "nothing registered": ("json", "registers no method"),
    "no method": ("json:dumps.__name__", "is no method"),
    "nothing": (":Name", "is not understood"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plugin_is_refused(case: str) -> None:
    reference, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words) as caught:
        methods.plug_in(reference)
    assert "\n" not in str(caught.value)


def test_a_file_that_fails_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import secateur\nraise RuntimeError('first line\\nsecond line')\n")
    with pytest.raises(ConfigError, match=r"cannot be imported \(RuntimeError: first line second line\)"):
        methods.plug_in(str(path))


@pytest.mark.parametrize("name", ["l1", "bwcp"])
def test_names_that_are_taken(name: str) -> None:
    with pytest.raises(ConfigError, match=f"a method named '{name}' already"):
        methods.register(lambda graph: {}, name=name)


def test_a_setting_named_like_an_argument_is_refused() -> None:
    class Settings(methods.Settings):
        steps: int = 3

    with pytest.raises(ConfigError, match="The setting 'steps' of Bad is named like an argument"):
        type("Bad", (Method,), {"name": "bad", "Config": Settings})
