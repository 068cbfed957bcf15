"""Which tests take so long that `make test` leaves them to `make long`: writes tests/long.txt.

    python benchmarks/durations.py                  # runs all that `make test` does: many minutes
    python benchmarks/durations.py --above 0.8      # a stricter bar

What stands in the list stays in it; a test is taken out by hand. Those in KEPT show a whole way and are never listed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).parents[1] / "tests" / "long.txt"
#: What shows that the whole works, however long it takes.
KEPT = (
    "test_cli.py::test_the_demo_in_a_process_of_its_own", "runs/test_runs.py::test_the_folder_of_a_run",
    "compare/test_compare.py::test_every_cell_is_an_ordinary_run", "compress/test_search.py::test_the_best_network",
    "runs/test_run_kills.py::test_ctrl_c_says", "graph/test_fuzz.py", "graph/test_structures.py",
    "methods/test_contract.py::test_contract[",
)  # fmt: skip
_ROW = re.compile(r"^\s*([\d.]+)s (?:call|setup)\s+tests/(.+?)\s*$")


def slow(report: str, above: float) -> set[str]:
    """Names of the tests that took longer, from what pytest says of its durations."""
    rows = [match.groups() for match in map(_ROW.match, report.splitlines()) if match]
    return {name for seconds, name in rows if float(seconds) > above and not name.startswith(KEPT)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--above", type=float, default=1.0, help="seconds")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-m", "not long", "-q"]
    said = subprocess.run(
        [*command, "--durations=0", "--durations-min=0.2"], capture_output=True, text=True, check=False
    ).stdout
    names = slow(said, arguments.above) | set(LIST.read_text(encoding="utf-8").splitlines())
    LIST.write_text("\n".join(sorted(names)) + "\n", encoding="utf-8")
    print(f"{LIST}: {len(names)} tests; {said.splitlines()[-1] if said else 'pytest said nothing'}")


if __name__ == "__main__":
    main()
