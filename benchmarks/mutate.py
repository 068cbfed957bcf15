"""Whether the tests of a method notice when its code is wrong: small faults, put into a copy of the source one by one.

python benchmarks/mutate.py             # every method that has a list in benchmarks/mutations/
python benchmarks/mutate.py cp dcp      # these (also `make mutate METHOD=cp`)

A list is JSON: {file, old, new, tests, says} each, where `old` stands once in `file`, `tests` are arguments of pytest
(one text, or a list) and `says` is what the fault amounts to. The tests must pass without a fault, and fail with each;
a test that runs past the limit has noticed. The working tree is never changed. Exit code 1 if a fault survives, or a
list is out of date.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: How pytest ends when it found no test at all, or could not read its arguments.
_NO_TESTS = (4, 5)


@dataclass(frozen=True)
class Mutation:
    """One fault: in `file` (from the root of the repository) `old` becomes `new`; `tests` should notice."""

    method: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    says: str


def mutations(root: Path, names: Sequence[str]) -> list[Mutation]:
    """The faults of these methods, of all without a name; SystemExit for a method without a list."""
    folder = root / "benchmarks" / "mutations"
    there = sorted(path.stem for path in folder.glob("*.json"))
    missing = [name for name in names if name not in there]
    if missing:
        raise SystemExit(f"mutate.py: there are no mutations of {missing[0]!r}; there are those of {', '.join(there)}.")
    found = []
    for name in names or there:
        rows = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        found += [Mutation(name, **{**row, "tests": _arguments(row["tests"])}) for row in rows]
    return found


def _arguments(tests: str | list[str]) -> tuple[str, ...]:
    return tuple(shlex.split(tests)) if isinstance(tests, str) else tuple(tests)


class Bench:
    """A copy of the source into which faults are put, and the tests of the working tree that look at it."""

    def __init__(self, root: Path, folder: Path, limit: float) -> None:
        """root: the working tree, which is only read. folder: an empty one. limit: seconds for the tests of a fault."""
        self.root, self.folder, self.limit = root, folder, limit
        shutil.copytree(root / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        self._sound: dict[tuple[str, ...], str] = {}

    def outcome(self, mutation: Mutation) -> str:
        """ "caught" or "survived", or why neither can be said."""
        path = self.folder / mutation.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text.count(mutation.old) != 1:
            return f"out of date: {mutation.file} has its text {text.count(mutation.old)} times, not once"
        wrong = self._without(mutation.tests)
        if wrong:
            return wrong
        path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        try:
            return "survived" if self._pytest(mutation.tests) == 0 else "caught"
        finally:
            path.write_text(text, encoding="utf-8")

    def _without(self, tests: tuple[str, ...]) -> str:
        """What is wrong with the tests where there is no fault; nothing if they pass. Asked once."""
        if tests not in self._sound:
            code = self._pytest(tests)
            why = "fails without a fault" if code is not None else "takes too long"
            if code in _NO_TESTS:
                why = "names no test"
            self._sound[tests] = f"out of date: pytest {shlex.join(tests)} {why}" if code != 0 else ""
        return self._sound[tests]

    def _pytest(self, tests: tuple[str, ...]) -> int | None:
        """The exit code of the tests on the copy; None past the limit. No traces are left beside the tests."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",  # a fault of the same length, within a second, would not be read anew
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self.folder / "hypothesis"),
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            return subprocess.run(
                command, cwd=self.root, env=environment, capture_output=True, timeout=self.limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def outcomes(root: Path, found: Sequence[Mutation], limit: float) -> Iterator[tuple[Mutation, str]]:
    """Every fault with what became of it, as soon as that is known."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        bench = Bench(root, Path(folder), limit)
        for mutation in found:
            yield mutation, bench.outcome(mutation)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Print a line for every fault and how many of each method were caught; 1 unless all were."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="names of lists; all without one")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="for the tests of one fault")
    options = parser.parse_args(arguments)
    told: dict[str, list[str]] = {}
    for mutation, outcome in outcomes(root, mutations(root, options.methods), options.limit):
        print(f"{mutation.method}: {outcome}: {mutation.says}", flush=True)
        told.setdefault(mutation.method, []).append(outcome)
    for name, all_of_it in told.items():
        print(f"{name}: {all_of_it.count('caught')} of {len(all_of_it)} caught")
    caught = sum(each.count("caught") for each in told.values())
    total = sum(map(len, told.values()))
    print(f"{caught} of {total} caught")
    return int(caught < total)


if __name__ == "__main__":
    sys.exit(main())
