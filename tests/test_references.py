"""An own network by file, by module, from inside a package, as a class, inside a class, or as it is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from secateur import references
from secateur.errors import ConfigError, ModelError, SecateurError

BLOCKS = "from torch import nn\n\n\ndef block(n):\n    return nn.Sequential(nn.Conv2d(3, n, 3), nn.ReLU())\n"
NETS = """
import torch
from torch import nn

from .parts.blocks import block


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body, self.head = block(width), nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

    @classmethod
    def small(cls):
        return cls(4)


def build(width=8):
    return Net(width)


def example_inputs():
    return torch.zeros(1, 3, 16, 16)


ready = build()
number = 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a package that imports relatively, in a src layout too, and a file on its own."""
    for top in ("ownnets", "src/ownother"):
        parts = tmp_path / top / "parts"
        parts.mkdir(parents=True)
        (parts / "__init__.py").write_text("")
        (parts / "blocks.py").write_text(BLOCKS)
        (tmp_path / top / "__init__.py").write_text("from .nets import build\n")
        (tmp_path / top / "nets.py").write_text(NETS)
    (tmp_path / "alone.py").write_text(BLOCKS + NETS.replace("from .parts.blocks import block", ""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] in ("ownnets", "ownother", "alone")]:
        del sys.modules[name]


WAYS = [
    "alone.py:build", "ownnets/nets.py:build", "src/ownother/nets.py:build", "ownnets.nets:build", "alone:build",
    "ownnets.nets:Net", "ownnets.nets:Net.small", "ownnets/nets.py:ready",
]  # fmt: skip


@pytest.mark.parametrize("reference", WAYS)
def test_ways_of_naming_an_own_network(place: Path, reference: str) -> None:
    loaded = references.load(reference)
    assert isinstance(loaded.model, nn.Module)
    assert loaded.model.head.in_features == (4 if reference.endswith("small") else 8)
    assert loaded.shapes == ((1, 3, 16, 16),)


def test_the_face_of_a_package_and_arguments(place: Path) -> None:
    loaded = references.load("ownnets:build", arguments=["width=6"], input_size="3x8x8")
    assert loaded.model.head.in_features == 6
    assert loaded.arguments == {"width": 6}


def test_refusals(place: Path) -> None:
    (place / "ownnets" / "broken.py").write_text("import torch\nfrom .parts import nothing\n")
    cases = {
        "nowhere.nets:build": "there is no module 'nowhere'",
        "ownnets.nett:build": "ownnets.nett failed while it was imported: ModuleNotFoundError",
        "ownnets.nets:bild": "did you mean 'build'",
        "ownnets.nets:number": "neither a function nor a module",
        "ownnets/broken.py:build": "failed while it was imported: ImportError: .* in line 2",
        "own nets:build": "is not understood",
        "zooo:resnet8": "did you mean 'zoo:resnet8'",
    }
    for reference, part in cases.items():
        with pytest.raises((ConfigError, ModelError), match=part):
            references.load(reference)


def test_a_package_of_the_same_name_elsewhere_is_not_taken_for_it(place: Path) -> None:
    references.load("ownnets.nets:build")
    again = place / "copy" / "ownnets"
    again.mkdir(parents=True)
    (again / "__init__.py").write_text("")
    (again / "nets.py").write_text(NETS)
    with pytest.raises(SecateurError, match="rename its package"):
        references.load("copy/ownnets/nets.py:build")
