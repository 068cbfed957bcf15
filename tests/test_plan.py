"""Plans: files are written whole, read strictly, and refused with a sentence."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _fake_graph import FakeConv, build, small
from hypothesis import given
from hypothesis import strategies as st

import secateur
import secateur.plan as plan_module
from secateur.errors import PlanError
from secateur.plan import Plan, fingerprint
from secateur.runtime import save_weights


def half(seed: int = 0) -> Plan:
    """A plan for the small graph that keeps a random half."""
    rng = np.random.default_rng(seed)
    plan = Plan.full(small())
    plan.provenance = {"criterion": "l1", "seed": seed, "share": 0.5, "note": None}
    for mask in plan.masks.values():
        mask[rng.permutation(len(mask))[: len(mask) // 2]] = False
    return plan


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    half().save(tmp_path / "plan.json")
    result: dict[str, Any] = json.loads((tmp_path / "plan.json").read_text())
    return result


@lru_cache
def saved() -> bytes:
    """The file of a plan, written once: making every example durable would take most of the tests' time."""
    with tempfile.TemporaryDirectory() as folder:
        half().save(Path(folder) / "plan.json")
        return (Path(folder) / "plan.json").read_bytes()


def load(content: object, folder: Path) -> Plan:
    path = folder / "edited.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Plan.load(path)


def test_full_and_widths() -> None:
    plan = Plan.full(small())
    assert plan.widths == {"stem": 16, "layer1.0.conv1": 12, "layer1.1.conv1": 24, "layer2.conv": 31}
    plan.check(small())


def test_round_trip(tmp_path: Path) -> None:
    plan = half()
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.provenance == plan.provenance
    assert loaded.architecture == plan.architecture
    assert list(loaded.masks) == list(plan.masks)
    loaded.check(small(seed=9))  # other weights, same architecture
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@given(masks=st.dictionaries(st.text(), st.lists(st.booleans(), min_size=1, max_size=40).filter(any), max_size=4))
def test_round_trip_of_any_masks(masks: dict[str, list[bool]], tmp_path_factory: pytest.TempPathFactory) -> None:
    plan = Plan({name: np.array(mask) for name, mask in masks.items()})
    path = tmp_path_factory.getbasetemp() / "any.json"
    plan.save(path)
    assert Plan.load(path) == plan


def test_equality() -> None:
    assert half(1) == half(1)
    assert half(1) != half(2)
    assert half(1) != "plan"


EDITS: dict[str, tuple[Any, list[str]]] = {
    "foreign": (lambda c: c.update(format="other"), ["not a plan"]),
    "newer": (lambda c: c.update(version=3), ["version 3", "reads 1 and 2"]),
    "version as bool": (lambda c: c.update(version=True), ["version True"]),
    "key too many": (lambda c: c.update(extra=1), ["unknown key 'extra'"]),
    "key missing": (lambda c: c.pop("architecture"), ["lacks 'architecture'"]),
    "architecture": (lambda c: c.update(architecture=3), ["'architecture'"]),
    "groups": (lambda c: c.update(groups=[]), ["'groups'"]),
    "provenance": (lambda c: c.update(provenance=[]), ["'provenance'"]),
    "row": (lambda c: c["groups"].update(stem=[1]), ["'stem'", "not an object"]),
    "row key": (lambda c: c["groups"]["stem"].update(keep=[1]), ["'stem'", "'keep'"]),
    "row lacks": (lambda c: c["groups"]["stem"].pop("width"), ["'stem'", "'width'"]),
    "width type": (lambda c: c["groups"]["stem"].update(width=16.0), ["'stem'", "16.0"]),
    "width zero": (lambda c: c["groups"]["stem"].update(width=0), ["'stem'", "width 0"]),
    "width huge": (lambda c: c["groups"]["stem"].update(width=10**30), ["'stem'", "huge"]),
    "width large": (lambda c: c["groups"]["stem"].update(width=1 << 30), ["'stem'", "positive integer"]),
    "kept type": (lambda c: c["groups"]["stem"].update(kept="all"), ["'stem'", "integers"]),
    "kept bool": (lambda c: c["groups"]["stem"].update(kept=[True]), ["'stem'", "integers"]),
    "kept float": (lambda c: c["groups"]["stem"].update(kept=[0, 1.5]), ["'stem'", "integers"]),
    "kept empty": (lambda c: c["groups"]["stem"].update(kept=[]), ["'stem'", "keeps no channel"]),
    "kept twice": (lambda c: c["groups"]["stem"].update(kept=[1, 1]), ["'stem'", "twice"]),
    "kept unsorted": (lambda c: c["groups"]["stem"].update(kept=[2, 1]), ["'stem'", "order"]),
    "kept negative": (lambda c: c["groups"]["stem"].update(kept=[-1, 1]), ["'stem'", "0 to 15"]),
    "kept beyond": (lambda c: c["groups"]["stem"].update(kept=[16]), ["'stem'", "0 to 15"]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_refuses_edited_files(edit: str, content: dict[str, Any], tmp_path: Path) -> None:
    change, words = EDITS[edit]
    change(content)
    with pytest.raises(PlanError) as caught:
        load(content, tmp_path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "[" * 100_000,
        '{"a": 1, "a": 2}',
        '{"format": NaN}',
        '{"format": Infinity}',
        '{"format": 1e999}',
        '{"version": ' + "9" * 5000 + "}",
    ],
)
def test_refuses_other_json(text: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError):
        load(text, tmp_path)


def test_refuses_many_wide_groups(content: dict[str, Any], tmp_path: Path) -> None:
    for number in range(3):
        content["groups"][f"wide{number}"] = {"width": 1 << 23, "kept": [0]}
    with pytest.raises(PlanError, match="claims more than"):
        load(content, tmp_path)


def test_refuses_unreadable_paths(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.json", tmp_path, tmp_path / "bytes.json", "nul\0byte"):
        with pytest.raises(PlanError, match="cannot be read"):
            Plan.load(path)


@given(data=st.data())
def test_damaged_files_give_plan_errors_only(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    raw = bytearray(saved())
    kind = data.draw(st.sampled_from(["truncate", "flip", "insert", "delete"]))
    place = data.draw(st.integers(0, len(raw) - 1))
    if kind == "truncate":
        del raw[place:]
    elif kind == "flip":
        raw[place] = data.draw(st.integers(0, 255))
    elif kind == "insert":
        raw[place:place] = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"9" * 30, b"NaN", b"-1,"]))
    else:
        del raw[place : place + data.draw(st.integers(1, 20))]
    path.write_bytes(bytes(raw))
    with contextlib.suppress(PlanError):
        assert Plan.load(path).widths


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@given(data=st.data())
def test_tampered_values_give_plan_errors_only(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = json.loads(saved())
    spot, keys = content, list(content)
    for _ in range(data.draw(st.integers(0, 2))):
        key = data.draw(st.sampled_from(keys))
        if not isinstance(spot[key], dict) or not spot[key]:
            break
        spot, keys = spot[key], list(spot[key])
    spot[data.draw(st.sampled_from(keys))] = data.draw(JSON)
    with contextlib.suppress(PlanError):
        load(content, folder)


def test_check_names_the_group() -> None:
    plan = half()
    plan.masks["layer9"] = np.ones(3, dtype=bool)
    with pytest.raises(PlanError, match="'layer9'"):
        plan.check(small())
    plan = half()
    plan.masks["stem"] = np.ones(17, dtype=bool)
    with pytest.raises(PlanError, match=r"17 channels in group 'stem', this network has 16"):
        plan.check(small())
    plan = half()
    del plan.masks["stem"]
    with pytest.raises(PlanError, match="'stem'"):
        plan.check(small())


@pytest.mark.parametrize("mask", [np.ones(16), np.ones((4, 4), dtype=bool), [True] * 16, np.zeros(16, dtype=bool)])
def test_bad_masks_are_refused(mask: Any, tmp_path: Path) -> None:
    plan = half()
    plan.masks["stem"] = mask
    with pytest.raises(PlanError, match="'stem'"):
        plan.check(small())
    with pytest.raises(PlanError, match="'stem'"):
        plan.save(tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


def test_another_architecture_is_refused() -> None:
    def graph(kernel: int) -> Any:
        return build((8,), (FakeConv("a", (), 0, frozen_in=3, kernel=kernel), FakeConv("b", (0,), None, frozen_out=2)))

    plan = Plan.full(graph(3))
    plan.check(graph(3))
    with pytest.raises(PlanError, match="another architecture"):
        plan.check(graph(5))
    assert fingerprint(graph(3)).startswith("sha256:")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, np.int64(3), b"x"])
def test_provenance_must_be_json(value: object, tmp_path: Path) -> None:
    plan = half()
    plan.provenance["value"] = value
    with pytest.raises(PlanError, match="provenance"):
        plan.save(tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    half(1).save(path)

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(plan_module.os, "fsync", fail)
    with pytest.raises(PlanError, match="disk full"):
        half(2).save(path)
    assert Plan.load(path) == half(1)
    assert os.listdir(tmp_path) == ["plan.json"]  # noqa: PTH208


def test_unwritable_paths_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "plan.json", tmp_path, "nul\0byte", "/"):
        with pytest.raises(PlanError, match="cannot be written"):
            half().save(path)


def test_networks_and_results_are_no_graphs(tmp_path: Path) -> None:
    model = secateur.models.create("tiny")
    result = secateur.prune(model, torch.zeros(1, 3, 16, 16), budget="flops=0.5")
    for other in (model, result):
        said = rf"takes a traced network, not a {type(other).__name__}: give secateur\.trace"
        with pytest.raises(secateur.ConfigError, match=f"score {said}"):
            secateur.score("l1", other)  # type: ignore[arg-type]
        with pytest.raises(secateur.ConfigError, match=f"allocate {said}"):
            secateur.allocate({}, other, "flops=0.5")  # type: ignore[arg-type]
    with pytest.raises(secateur.ModelError, match=r"needed, not Result; pass its \.model"):
        save_weights(result, tmp_path / "w.safetensors", {})  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["plan.json", 3, {"a": [True]}])
def test_what_is_no_plan_is_not_applied(what: Any) -> None:
    with pytest.raises(PlanError, match=r"is no plan: give one, such as secateur\.Plan\.load\('plan\.json'\)"):
        secateur.apply(secateur.models.create("tiny"), torch.zeros(1, 3, 16, 16), what)
