"""Faults put into a copy of the source: caught, survived, out of date; and the source stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import mutate
import pytest

pytestmark = pytest.mark.long  # `make long` runs it

SOURCE = "def double(x):\n    return 2 * x\n"
TEST = "from pack import double\n\n\ndef test_double():\n    assert double(2) == 4\n"
CAUGHT = {"old": "2 * x", "new": "3 * x", "says": "three times instead of twice"}
SURVIVED = {"old": "2 * x", "new": "x ** 2", "says": "squared, which two does not tell from doubled"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project of one function with one test."""
    for folder in ("src", "tests", "benchmarks/mutations"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "src" / "pack.py").write_text(SOURCE)
    (tmp_path / "tests" / "test_pack.py").write_text(TEST)
    return tmp_path


def listed(root: Path, name: str, *rows: dict[str, str]) -> None:
    """Write a list of faults."""
    defaults = {"file": "src/pack.py", "tests": "tests/test_pack.py"}
    text = json.dumps([{**defaults, **row} for row in rows])
    (root / "benchmarks" / "mutations" / f"{name}.json").write_text(text)


def test_a_fault_that_survives_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed(root, "twice", CAUGHT, SURVIVED)
    assert mutate.main([], root) == 1
    assert capsys.readouterr().out.splitlines() == [
        "twice: caught: three times instead of twice",
        "twice: survived: squared, which two does not tell from doubled",
        "twice: 1 of 2 caught",
        "1 of 2 caught",
    ]
    assert (root / "src" / "pack.py").read_text() == SOURCE
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == ["pack.py", "test_pack.py", "twice.json"]


def codes(monkeypatch: pytest.MonkeyPatch, *given: int | None) -> None:
    """Let pytest end so, one call after the other; None: it runs past the limit."""
    left = iter(given)
    monkeypatch.setattr(mutate.Bench, "_pytest", lambda _self, _tests: next(left))


def test_all_caught_is_well(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed(root, "other", SURVIVED)
    listed(root, "twice", CAUGHT, SURVIVED, CAUGHT)
    codes(monkeypatch, 0, 1, 2, None)  # without a fault; failed, broken, without an end
    assert mutate.main(["twice"], root) == 0
    assert "\n3 of 3 caught\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({**CAUGHT, "old": "4 * x"}, 0, "src/pack.py has its text 0 times, not once"),
        ({**CAUGHT, "old": "x"}, 0, "src/pack.py has its text 2 times, not once"),
        ({**CAUGHT, "file": "src/gone.py"}, 0, "src/gone.py has its text 0 times, not once"),
        (CAUGHT, 4, "pytest tests/test_pack.py -k 'a or b' names no test"),
        (CAUGHT, 5, "pytest tests/test_pack.py -k 'a or b' names no test"),
        (CAUGHT, 1, "pytest tests/test_pack.py -k 'a or b' fails without a fault"),
        (CAUGHT, None, "pytest tests/test_pack.py -k 'a or b' takes too long"),
    ],
)
def test_a_list_out_of_date_is_no_success(
    root: Path,
    row: dict[str, str],
    code: int | None,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed(root, "twice", {**row, "tests": "tests/test_pack.py -k 'a or b'"})
    codes(monkeypatch, code)
    assert mutate.main(["twice"], root) == 1
    assert f"twice: out of date: {words}: three" in capsys.readouterr().out


def test_an_unknown_method_is_one_sentence(root: Path) -> None:
    listed(root, "twice", CAUGHT)
    with pytest.raises(SystemExit, match=r"no mutations of 'thrice'; there are those of twice\.$"):
        mutate.main(["thrice"], root)


LISTS = sorted((mutate.ROOT / "benchmarks" / "mutations").glob("*.json"))


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_every_list_fits_the_source(path: Path) -> None:
    """Each fault's text stands in its file once, and its tests are there; whether they notice is `make mutate`'s."""
    for mutation in mutate.mutations(mutate.ROOT, [path.stem]):
        assert (mutate.ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1, mutation.says
        assert mutation.old != mutation.new
        assert (mutate.ROOT / mutation.tests[0].partition("::")[0]).exists(), mutation.tests
