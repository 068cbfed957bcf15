"""Settings and data in words: no brackets, no quotes, no Python."""

from __future__ import annotations

import re

from secateur.methods import method
from secateur.report.page import described
from secateur.report.page.results import MethodUsed

DIGITS = {
    "name": "digits", "classes": 10, "class_names": ["0", "1"], "input_size": [1, 8, 8], "train": 1167,
    "validation": 130, "test": 500, "split": "as they come", "augmentation": ["shift"], "notes": [],
    "normalisation": {"mean": [0.3053], "std": [0.376]},
    "files": [{"name": "load_digits", "bytes": 115008, "sha256": "0b7e9c3202d7bcd2"}, {"name": "b", "bytes": 7}],
}  # fmt: skip


def test_data_in_words() -> None:
    assert dict(described.data(DIGITS)) == {
        "Data set": "the scikit-learn digits",
        "Images": "1,167 for training, 130 for validation, 500 for testing",
        "Classes": "10",
        "Class names": "0, 1",
        "Image size": "1×8×8",
        "Split": "as they come",
        "Augmentation": "shift",
        "Normalisation": "mean 0.3053, std 0.376",
        "Files": "load_digits, 115.0 kB, SHA-256 0b7e9c3202d7; b, 7 bytes",
    }


def test_what_nobody_knows_is_still_words() -> None:
    found = dict(described.data({"own": {"a": [1, {"b": None}], "deep": {"c": {"d": {"e": {"f": 1}}}}}, "flag": True}))
    assert found["Flag"] == "yes"
    assert not re.search(r"[{}\[\]'\"]", found["Own"])
    assert "a 1; b none" in found["Own"]
    assert "more in results.json" in found["Own"]


def test_settings_with_their_meaning_and_what_is_not_the_default() -> None:
    defaults = method("bwcp").config().model_dump(mode="json")
    rows = described.settings(MethodUsed(name="bwcp", settings=defaults | {"delta": 0.2}))
    assert [row[0] for row in rows] == list(defaults)
    assert all(row[2] for row in rows)  # every meaning
    assert {row[0]: row[3] for row in rows if row[3]} == {"delta": "0.05"}
    found = {row[0]: row[1] for row in rows}
    assert (found["delta"], found["sharpness"], found["floor"]) == ("0.2", "10, 60", "by itself")


def test_settings_of_a_method_of_elsewhere() -> None:
    (row,) = described.settings(MethodUsed(name="mine", settings={"a": {"b": "x"}}))
    assert row == ("a.b", "x", "", "")
