"""Results that are no longer what they were are listed with the reason."""

from __future__ import annotations

import same_results

BEFORE = {"cp {} residual seed 0": {"plan": "a", "notes": "b"}, "l1 {} residual seed 0": {"plan": "a", "notes": "b"}}


def test_what_differs_has_its_reason_beside_it() -> None:
    found = {**BEFORE, "cp {} residual seed 0": {"plan": "c", "notes": "b"}, "gdp {} residual seed 0": {"plan": "d"}}
    lines, unexplained = same_results.compared(BEFORE, found)
    assert lines[0] == "cp {} residual seed 0 plan"
    assert lines[1].startswith("cp: 71cc680: all images")
    assert lines[2:] == ["New since then: gdp.", "1 of 2 results are bit-identical"]
    assert not unexplained


def test_what_differs_without_a_reason_is_named() -> None:
    found = {**BEFORE, "l1 {} residual seed 0": {"plan": "a", "notes": "c"}}
    lines, unexplained = same_results.compared(BEFORE, found)
    assert lines[:2] == ["l1 {} residual seed 0 notes", "l1: no reason is known."]
    assert unexplained == ["l1"]
