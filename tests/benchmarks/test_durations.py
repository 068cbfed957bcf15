"""Durations: what pytest says is read, and what shows the whole is kept."""

from __future__ import annotations

from durations import LIST, slow

SAID = """
12.40s call     tests/runs/test_runs.py::test_a_network_from_a_file
3.00s setup    tests/runs/test_runs.py::test_the_folder_of_a_run
1.50s call     tests/graph/test_cost.py::test_costs[a b: 2]
0.90s call     tests/test_plan.py::test_quick
2.00s teardown tests/test_plan.py::test_ends
"""


def test_what_takes_long_is_read() -> None:
    assert slow(SAID, 1.0) == {
        "runs/test_runs.py::test_a_network_from_a_file",
        "graph/test_cost.py::test_costs[a b: 2]",
    }


def test_the_list_is_in_order_and_names_each_once() -> None:
    names = LIST.read_text(encoding="utf-8").splitlines()
    assert names == sorted(set(names))
