"""Budgets: what is read, what is refused, and in which words."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.budget import Budget
from secateur.errors import BudgetError


@dataclass(frozen=True)
class Original:
    macs: int = 4000
    params: int = 1000
    activations: int = 500
    peak_activations: int = 100


@pytest.mark.parametrize(
    ("spec", "limits"),
    [
        ("flops=0.5", {"macs": 2000}),
        (" flops = 0.5 , params=2e2 ", {"macs": 2000, "params": 200}),
        ("flops=2K", {"macs": 2000}),
        ("flops=1.5m", {"macs": 1.5e6}),
        ("params=2 G", {"params": 2e9}),
        ("flops=1", {"macs": 4000}),
        ("peak=.25,activations=0.1", {"peak_activations": 25, "activations": 50}),
        ({"flops": 0.5}, {"macs": 2000}),
        ({"flops": "3K", "params": 7}, {"macs": 3000, "params": 7}),
        (Budget((("params", 0.5),)), {"params": 500}),
    ],
)
def test_reads(spec: object, limits: dict[str, float]) -> None:
    assert Budget.parse(spec).limits(Original()) == limits  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", ["empty", "flops=0.5"]),
        ({}, ["empty"]),
        ("flops", ["'flops'", "key=value"]),
        ("flops=0.5,", ["''", "key=value"]),
        ("flops=0", ["flops=0 ", "positive", "(0, 1]"]),
        ("flops=-0.5", ["flops=-0.5", "positive"]),
        ("flops=nan", ["flops=nan", "not a number"]),
        ("flops=inf", ["flops=inf", "not a number"]),
        ("flops=1e999", ["flops=1e999", "finite"]),
        ("flops=half", ["flops=half", "(0, 1]"]),
        ("flops=50%", ["flops=50%", "0.5"]),
        ("flops=", ["flops=", "0.5"]),
        ("flop=0.5", ["'flop'", "did you mean 'flops'", "params", "peak"]),
        ("macs=0.5", ["did you mean 'flops'"]),
        ("latency=5ms", ["latency=5ms", "names no runtime", "latency=0.6@onnxruntime"]),
        ("latency=5@onnxruntime", ["latency=5@onnxruntime", "no unit", "5ms"]),
        ("latency=0.1us@onnxruntime", ["less than any network takes"]),
        ("latency=fast@onnxruntime", ["not understood", "latency=0.6@onnxruntime"]),
        ("latency=5ms@onnxruntime:batch=0", ["batch=0", "batch=1"]),
        ("latency=5ms@onnxruntime:images=2", ["images=2"]),
        ("latency=5ms@:batch=2", ["that of a runtime"]),
        ({"latency": 0.6}, ["names no runtime"]),
        ("speedup=2", ["names no runtime", "speedup=2@onnxruntime"]),
        ("speedup=0.5@pytorch", ["not a number above 1"]),
        ("speedup=fast@pytorch", ["not a number above 1"]),
        ("size=4", ["no unit", "4MB"]),
        ("size=1B", ["holds no network"]),
        ("size=4MB,params=2M", ["bounds params twice"]),
        ("speed=2", ["did you mean 'latency'"]),
        ("flops=0.5,flops=0.4", ["twice", "flops"]),
        ({"flops": True}, ["flops=True"]),
        ({"flops": None}, ["flops=None"]),
        ({"flops": math.nan}, ["flops=nan", "finite"]),
        ({"flops": 10**400}, ["finite"]),
        ({3: 0.5}, ["Unknown budget key 3"]),
        (0.5, ["0.5", "flops=0.5"]),
        (None, ["None"]),
    ],
)
def test_refuses(spec: object, words: list[str]) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(spec)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("words", "bounds"),
    [
        ("speedup=2@onnxruntime", "latency=0.5@onnxruntime"),
        ("speedup=4x@openvino:batch=8,flops=0.5", "latency=0.25@openvino:batch=8,flops=0.5"),
        ("size=4MB", "params=1M"),  # of four bytes each
        ("size=4MiB", "params=1048576"),
        ("size=2.5kB", "params=625"),
        ("size=0.5", "params=0.5"),
    ],
)
def test_words_people_use(words: str, bounds: str) -> None:
    assert Budget.parse(words) == Budget.parse(bounds)
    assert Budget.parse(str(Budget.parse(words))) == Budget.parse(bounds)


@given(st.dictionaries(st.sampled_from(["flops", "params", "activations", "peak"]), st.floats(1e-9, 1e15), min_size=1))
def test_text_round_trip(bounds: dict[str, float]) -> None:
    budget = Budget.parse(bounds)
    assert Budget.parse(str(budget)) == budget
    assert Budget.parse(budget.as_dict()) == budget


@given(st.text(max_size=30) | st.text("flops=0.e5KMG,-params", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BudgetError):
        budget = Budget.parse(text)
        assert all(0 < value < math.inf for value in budget.limits(Original()).values())
