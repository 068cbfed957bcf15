"""What one opens to follow a method, counted in a made-up house, old and new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import house
import pytest

CLASS = 'class Fast(Method):\n    name = "fast"\n'
NEW = {
    "__init__.py": "",
    "methods/__init__.py": "from secateur.methods.fast import Fast\n",
    "methods/contract.py": "from secateur.allocate import allocate\n\nclass Method:\n    name: str\n",
    "methods/fast/__init__.py": "from secateur.methods.fast.method import Fast\n",
    "methods/fast/method.py": "from secateur.methods.contract import Method\nfrom secateur.methods.fast import sums\n"
    "from secateur.statistics import gather\nfrom secateur.graph import trace\n\n" + CLASS,
    "methods/fast/sums.py": "def later():\n    from secateur.allocate import allocate, share\n",
    "statistics/__init__.py": "from secateur.statistics.gather import gather\n"
    "from secateur.statistics.other import x\n",
    "statistics/gather.py": "def gather(): ...\n",
    "statistics/other.py": "x = 1\n",
    "allocate/__init__.py": "from secateur.allocate.rules import allocate\n"
    "from secateur.allocate.shares import share\n",
    "allocate/rules.py": "def allocate(): ...\n",
    "allocate/shares.py": "def share(): ...\n",
    "graph.py": "from secateur.statistics import other\n",
}
OLD = {
    "methods/base.py": "class Method:\n    name: str\n",
    "methods/fast.py": "from secateur.methods import sums\nfrom secateur.methods.base import Method\n\n\n" + CLASS,
    "methods/sums.py": "x = 1\n",
}


def built(folder: Path, files: dict[str, str]) -> str:
    """A folder `src` with such modules."""
    for name, text in files.items():
        path = folder / "secateur" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


def test_names_lead_to_where_they_are_defined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    house.main([built(tmp_path, NEW), "fast"])
    said = capsys.readouterr().out.splitlines()
    assert said[2] == "| `fast` | 4 | 11 | 2 | 9 | allocate.shares, statistics.gather |"
    assert said[-1] == "23 lines in all: 15 in methods, 4 in statistics, 4 in allocate"


def test_an_older_house_is_counted_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    house.main([built(tmp_path, OLD)])
    assert "| `fast` | 2 | 7 | 1 | 6 | methods.sums |" in capsys.readouterr().out


def test_rooms_are_counted_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(house, "HERE", Path(built(tmp_path / "new", NEW)))
    house.main(["--rooms", built(tmp_path / "old", OLD)])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| outside | 0 | 1 | +1 |",
        "| `allocate/` | 0 | 4 | +4 |",
        "| `methods/` | 9 | 15 | +6 |",
        "| `statistics/` | 0 | 4 | +4 |",
        "| all | 9 | 24 | +15 |",
    ]
    with pytest.raises(SystemExit, match="give the src of the checkout to compare with"):
        house.main(["--rooms"])


def test_methods_are_followed_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(house, "HERE", Path(built(tmp_path / "new", NEW)))
    old = built(tmp_path / "old", OLD)
    for names in ([], ["fast"]):
        house.main(["--both", old, *names])
        assert capsys.readouterr().out.splitlines()[2:] == ["| `fast` | 2 | 1 | 7 | 6 | 4 | 2 | 11 | 9 |"]
    with pytest.raises(SystemExit, match="no method 'slow' with a module"):
        house.main(["--both", old, "slow"])


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no folder secateur in .*: give the src of a checkout\.$"):
        house.main([str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no method 'slow' with a module: name fast\.$"):
        house.main([built(tmp_path, OLD), "slow"])
