"""prune takes every method that needs no training loop by name, batches of any form, and says what else is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.errors import SecateurError
from secateur.graph import Graph
from secateur.methods import METHODS, Method, MethodRow

TRAINED = [row for row in METHODS if row.acts == "while training"]
ONE_CALL = [row for row in METHODS if row.acts != "while training"]
SMALL: dict[str, dict[str, Any]] = {"functionality": {"ascent_steps": 2, "restarts": 1, "size": 8}}

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(24) % 4
IMAGES = torch.randn(24, 3, 8, 8, generator=GENERATOR) + LABELS.view(-1, 1, 1, 1) / 2
PAIRS = [(IMAGES[:12], LABELS[:12]), (IMAGES[12:], LABELS[12:])]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 20, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4),
    )  # fmt: skip


def prune(**options: Any) -> secateur.Result:
    model = options.pop("model", None)
    return secateur.prune(
        network() if model is None else model, options.pop("inputs", IMAGES[:2]), **{"budget": "flops=0.5", **options}
    )


def budget_of(row: MethodRow) -> str:
    return "params=0.5" if row.granularity in ("kernel", "weight") else "flops=0.5"


# ------------------------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("row", ONE_CALL, ids=lambda row: row.name)
def test_every_method_that_needs_no_loop(row: MethodRow) -> None:
    data = PAIRS if row.needs == "calibration" else None
    result = prune(method=row.name, data=data, budget=budget_of(row), seed=3, **SMALL.get(row.name, {}))
    assert result.plan.provenance["method"] == row.name
    assert result.plan.provenance["seed"] == 3
    assert result.verification is not None
    assert result.verification.passed
    if row.granularity.startswith("channel"):
        assert 0.4 <= result.after.macs / result.before.macs <= 0.5


@pytest.mark.parametrize("row", TRAINED, ids=lambda row: row.name)
def test_a_method_that_trains_says_how_it_is_driven(row: MethodRow) -> None:
    with pytest.raises(SecateurError, match=rf'secateur\.methods\.create\("{row.name}".*secateur run\.$'):
        prune(method=row.name, data=PAIRS)
    pruner = secateur.methods.create(row.name, network(), IMAGES[:2], budget="flops=0.5", steps=4)
    assert isinstance(pruner, Method)


def test_a_function_a_class_and_a_row_are_methods() -> None:
    def last_first(graph: Graph) -> dict[str, Any]:
        return {group.name: np.arange(group.width) for group in graph.groups}

    class Last(Method):
        name = "last"

        def score(self) -> dict[str, Any]:
            return last_first(self.graph)

    plans = [prune(method=each, normalise="max").plan for each in (last_first, Last, MethodRow("x", Last, "last"))]
    assert plans[0] == plans[1] == plans[2]
    assert [plan.provenance["method"] for plan in plans] == ["last_first", "last", "last"]
    for mask in plans[0].masks.values():
        assert not mask[: np.argmax(mask)].any()
        assert mask[np.argmax(mask) :].all()


def test_settings_reach_the_method() -> None:
    method = secateur.methods.method("l1").factory(network(), IMAGES[:2], budget="flops=0.5", reduce="max")
    assert prune(method="l1", reduce="max").plan == method.plan()
    assert prune(method="cp", data=PAIRS, ridge=0.5).plan.provenance["settings"]["ridge"] == 0.5


@pytest.mark.parametrize("method", ["l1", "cp"])
def test_in_place_is_the_same_network(method: str) -> None:
    model = network()
    result = prune(model=model, method=method, data=PAIRS, repair="batchnorm", inplace=True)
    assert result.model is model
    other = prune(method=method, data=PAIRS, repair="batchnorm").model
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_what_is_not_looked_at_is_said() -> None:
    assert any("data were not used" in note for note in prune(data=PAIRS).notes)
    for needed in ({"method": "cp"}, {"repair": "batchnorm"}):
        assert not any("data were not used" in note for note in prune(data=PAIRS, **needed).notes)


def test_without_verification_nothing_is_compared() -> None:
    assert prune(method="cp", data=PAIRS, verify=False).verification is None


CREATED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no budget": ("bwcp", {"budget": None}, "needs a budget"),
    "no name": (None, {}, "is no method"),
    "limits in a dict": ("bwcp", {"constraints": {"align": 8}}, r"secateur\.Constraints\(align=8\)"),
    "limits twice": ("bwcp", {"constraints": secateur.Constraints(align=8), "align": 4}, "the same twice"),
    "a seed of text": ("bwcp", {"seed": "a"}, "whole number from 0"),
    "an impossible limit": ("bwcp", {"min_channels": "2"}, "min_channels='2'"),
}


@pytest.mark.parametrize("case", CREATED)
def test_a_wrong_call_of_create_is_one_sentence(case: str) -> None:
    name, options, words = CREATED[case]
    with pytest.raises(SecateurError, match=words):
        secateur.methods.create(name, network(), IMAGES[:2], **{"budget": "flops=0.5", **options})


@pytest.mark.parametrize("limits", [{"align": 4}, {"ignore": "3"}, {"min_channels": 7, "max_ratio": 0.6}], ids=str)
def test_create_takes_what_prune_takes(limits: dict[str, Any]) -> None:
    made = secateur.methods.create("l1", network(), IMAGES[:2], budget="flops=0.6", **limits)
    assert made.plan() == prune(budget="flops=0.6", **limits).plan


def test_create_takes_a_class_and_a_row() -> None:
    row = secateur.methods.method("csgd")
    for given in (row, row.factory):
        assert secateur.methods.create(given, network(), IMAGES[:2], budget="flops=0.5").name == "csgd"


def test_a_class_without_a_name_has_its_own() -> None:
    class First(Method):
        def score(self) -> dict[str, Any]:
            return {group.name: np.arange(group.width) for group in self.graph.groups}

    class Second(First):
        pass

    assert [prune(method=each).plan.provenance["method"] for each in (First, Second)] == ["first", "second"]


@pytest.mark.parametrize("given", ["batchnorm", ["batchnorm"], {"name": "batchnorm"}, secateur.repair.Repair], ids=str)
def test_names_are_no_repairs_at_the_end_of_a_loop(given: Any) -> None:
    made = secateur.methods.create("l1", network(), IMAGES[:2], budget="flops=0.5")
    with pytest.raises(SecateurError, match=r"are no repairs: .* secateur\.repair\.repairs\('batchnorm'\)\.$"):
        made.finish(given, PAIRS)
    found = made.finish(secateur.repair.repairs("batchnorm"), PAIRS).state_dict()
    wanted = prune(data=PAIRS, repair="batchnorm").model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


# ---------------------------------------------------------------------------------------------------------------- data


def _generated() -> Iterator[Any]:
    yield from PAIRS


FORMS: dict[str, Any] = {
    "pairs": PAIRS,
    "lists": [list(pair) for pair in PAIRS],
    "one-tuples": [(images,) for images, _ in PAIRS],
    "bare": [images for images, _ in PAIRS],
    "dicts": [{"image": images, "label": labels} for images, labels in PAIRS],
    "three": [(images, labels, ["name"] * 12) for images, labels in PAIRS],
    "generator": _generated,
    "loader": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=12),
    "loader of images": DataLoader(IMAGES, batch_size=12),
}
UNLABELLED = ("one-tuples", "bare", "loader of images")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["cp", "taylor"])
def test_batches_of_every_form(method: str, form: str) -> None:
    data = FORMS[form]() if callable(FORMS[form]) and not isinstance(FORMS[form], DataLoader) else FORMS[form]
    if method == "taylor" and form in UNLABELLED:
        with pytest.raises(SecateurError, match=r"taylor.*looks at (targets|labels).*\.$"):
            prune(method=method, data=data)
        return
    found = prune(method=method, data=data, repair="least_squares")
    wanted = prune(method=method, data=PAIRS, repair="least_squares")
    assert found.plan == wanted.plan
    tensors = wanted.model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.model.state_dict().items())


class Two(nn.Module):
    """Two images, one of them by keyword."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = network()[:9]
        self.fc = nn.Linear(20, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.fc((self.body(left) + self.body(right)).flatten(1))


@pytest.mark.parametrize(
    ("inputs", "data"),
    [
        ((IMAGES[:2], IMAGES[2:4]), [((IMAGES[:12], IMAGES[12:]), LABELS[:12])]),
        ((IMAGES[:2], IMAGES[2:4]), [(IMAGES[:12], IMAGES[12:], LABELS[:12])]),
        ({"left": IMAGES[:2], "right": IMAGES[2:4]}, [{"left": IMAGES[:12], "right": IMAGES[12:]}]),
    ],
)
def test_batches_for_two_inputs(inputs: Any, data: Any) -> None:
    found = prune(model=Two(), inputs=inputs, method="cp", data=data)
    wanted = prune(
        model=Two(), inputs=(IMAGES[:2], IMAGES[2:4]), method="cp", data=[((IMAGES[:12], IMAGES[12:]), LABELS[:12])]
    )
    assert found.plan == wanted.plan


@pytest.mark.parametrize("named", ["l2", "fpgm", secateur.methods.method("random")], ids=str)
def test_the_former_name_of_method(named: Any) -> None:
    with pytest.warns(FutureWarning, match="criterion= is now called method=") as told:
        found = secateur.prune(network(), IMAGES[:2], budget="flops=0.6", criterion=named)
    assert told[0].filename == __file__
    wanted = secateur.prune(network(), IMAGES[:2], budget="flops=0.6", method=named)
    assert found.plan == wanted.plan


# ---------------------------------------------------------------------------------------------------------- wrong calls

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown method": ({"method": "l11"}, "did you mean 'l1'"),
    "a method of no kind": ({"method": 3}, "is no method"),
    "both names of the method": ({"criterion": "l2", "method": "fpgm"}, "method='l2', and not method='fpgm' as well"),
    "an unknown method by the former name": ({"criterion": "l11"}, "did you mean 'l1'"),
    "no budget": ({"budget": None}, "budget"),
    "no budget for a method": ({"budget": None, "method": "cp", "data": PAIRS}, "needs a budget|finds its widths"),
    "ratios for a method": ({"method": "cp", "data": PAIRS, "ratios": {"0": 0.5}}, "takes no ratios"),
    "no data": ({"method": "cp"}, r"learns from images and none are given.*data="),
    "no labels": ({"method": "catro", "data": [IMAGES]}, "targets|labels"),
    "no data for a repair": ({"repair": "batchnorm"}, "learns from data and none are given"),
    "a path as data": ({"method": "cp", "data": "photos"}, "give batches"),
    "a dict as data": ({"method": "cp", "data": {"image": IMAGES}}, "give batches"),
    "a number as data": ({"method": "cp", "data": 7}, "give batches"),
    "empty data": ({"method": "cp", "data": []}, "at least one"),
    "samples instead of batches": ({"method": "cp", "data": TensorDataset(IMAGES, LABELS)}, "DataLoader"),
    "batches of text": ({"method": "cp", "data": ["photo.jpg"]}, "A batch is"),
    "an unknown setting": ({"method": "cp", "data": PAIRS, "rigde": 1.0}, "did you mean 'method.ridge'"),
    "an impossible setting": ({"method": "cp", "data": PAIRS, "ridge": "much"}, "ridge is 'much'"),
    "a setting of another method": ({"method": "l1", "ridge": 1.0}, "Unknown key 'method.ridge'"),
    "an unknown repair": ({"repair": "least_square"}, "did you mean 'least_squares'"),
    "an unknown allocator": ({"allocator": "globl"}, "did you mean 'global'"),
    "regression without a loss": ({"method": "taylor", "data": [(IMAGES, LABELS.float())]}, "pass loss="),
    "a method at work": (
        {"method": secateur.methods.create("l1", network(), IMAGES[:2], budget="flops=0.5")},
        "at work on a model already",
    ),
    "the base of all methods": ({"method": Method}, "derived from"),
    "a layer as method": ({"method": nn.ReLU()}, "is no method"),
    "a repair as method": ({"method": "batchnorm"}, "repair='batchnorm'"),
    "a file as method": ({"method": "mine.py:scores"}, "plug_in"),
    "a module and name as method": ({"method": "mine.scores:score"}, "plug_in"),
    "a function of nothing": ({"method": lambda: {}}, "with a graph alone"),
    "a function of two": ({"method": lambda graph, more: {}}, "with a graph alone"),
    "no scores": ({"method": lambda graph: None}, "Scores are a NoneType"),
    "scores without names": ({"method": lambda graph: [np.ones(g.width) for g in graph.groups]}, "Scores are a list"),
    "scores of text": ({"method": lambda graph: {g.name: ["a"] * g.width for g in graph.groups}}, "are no numbers"),
    "ragged scores": ({"method": lambda graph: {g.name: [[1], [1, 2]] for g in graph.groups}}, "are no numbers"),
    "complex scores": (
        {"method": lambda graph: {g.name: 1j * np.ones(g.width) for g in graph.groups}},
        "are no numbers",
    ),
    "complex tensors": (
        {"method": lambda graph: {g.name: torch.ones(g.width) * 1j for g in graph.groups}},
        "are no numbers",
    ),
    "a loss by name": ({"method": "taylor", "data": PAIRS, "loss": "mse"}, "'mse' is no loss"),
    "a class of losses": (
        {"method": "taylor", "data": PAIRS, "loss": nn.MSELoss},
        r"give an object of it, MSELoss\(\)",
    ),
    "a loss of the output alone": (
        {"method": "taylor", "data": PAIRS, "loss": lambda output: output.sum()},
        "is no loss",
    ),
    "a loss that does not fit": (
        {"method": "taylor", "data": PAIRS, "loss": nn.MSELoss()},
        r"output of shape \(12, 4\) and a target of shape \(12,\)",
    ),
    "a seed of text": ({"seed": "a"}, "whole number from 0"),
    "a seed below 0": ({"seed": -1}, "whole number from 0"),
    "a seed of 70 bits": ({"seed": 1 << 70}, "whole number from 0"),
    "a number to ignore": ({"ignore": 3}, "not a list of patterns"),
    "ratios in a list": ({"ratios": [0.5]}, "not understood"),
    "ratios in text": ({"ratios": "0=0.5"}, "not understood"),
    "a loss of no number": ({"method": "taylor", "data": PAIRS, "loss": lambda output, target: output}, "loss"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_one_sentence(case: str) -> None:
    options, words = WRONG[case]
    model = network()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SecateurError, match=words) as caught:
        prune(model=model, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
