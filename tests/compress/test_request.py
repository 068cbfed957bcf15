"""What people ask for, in their words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import secateur
from secateur.budget import Budget
from secateur.compress.candidates import Space
from secateur.compress.request import request, scaled, seconds_of, shares_of
from secateur.errors import ConfigError
from secateur.graph import Cost


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), (2.5, 2.5), ("1.5h", 5400), (np.int64(5), 5)]
)
def test_times(text: Any, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5s", "5 parsecs", 0, -1, float("nan"), True])
def test_no_times(text: Any) -> None:
    with pytest.raises(secateur.ConfigError, match="such as 30m"):
        seconds_of(text)


def test_a_speed_up_is_on_the_runtime_that_is_named() -> None:
    asked = request(bounds={"speedup": 2}, runtime="pytorch")
    assert str(asked.budget) == "latency=0.5@pytorch"
    assert asked.fixed
    assert asked.key == "latency"
    assert asked.aligns == (1,)  # the budget's own block


def test_a_latency_may_name_its_runtime_itself() -> None:
    assert str(request(bounds={"latency": "5ms@openvino"}).budget) == "latency=5ms@openvino"
    assert str(request(budget="speedup=4,params=0.5", runtime="pytorch").budget) == "latency=0.25@pytorch,params=0.5"


def test_a_drop_alone_begins_at_half() -> None:
    asked = request(max_drop=1)
    assert str(asked.budget) == "flops=0.5"
    assert not asked.fixed


def test_the_request_is_plain_values() -> None:
    assert request(bounds={"size": "4MB"}).as_json()["budget"] == "params=1000000.0"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "Nothing says how small"),
        ({"bounds": {"flops": 0.5}, "budget": "params=0.5"}, "both given"),
        ({"max_drop": -1}, "points of the metric"),
        ({"bounds": {"flops": 0.5}, "trials": 0}, "trials is 0"),
        ({"bounds": {"flops": 0.5}, "epochs": -1}, "epochs is -1"),
        ({"bounds": {"flops": 0.5}, "methods": ["bwcp"]}, "acts while the network is trained"),
        ({"bounds": {"flops": 0.5}, "methods": ["l3"]}, "did you mean"),
        ({"bounds": {"flops": 0.5}, "repairs": ["least_square"]}, "did you mean"),
        ({"bounds": {"flops": 0.5}, "runtime": "onnx"}, "did you mean"),
        ({"bounds": {"flops": 0.5}, "methods": []}, "methods names none: give one"),
        ({"bounds": {"flops": 0.5}, "repairs": ()}, "repairs names none: give one"),
        ({"bounds": {"flops": 0.5}, "allocators": iter(())}, "allocators names none: give one"),
        ({"bounds": {"flops": 0.5}, "methods": 3}, "methods=3 are no names"),
        ({"bounds": {"flops": 0.5}, "methods": [3]}, r"methods=\[3\] are no names"),
        ({"bounds": {"flops": 0.5}, "align": 0}, "align=0 is not a positive integer"),
        ({"bounds": {"flops": 0.5}, "align": [8]}, r"align=\[8\] is not a positive integer"),
        ({"bounds": {"flops": 0.5}, "align": "eight"}, "Unknown alignment 'eight'"),
        ({"bounds": {"flops": 0.5}, "seed": -1}, "seed=-1 is no seed"),
        ({"bounds": {"flops": 0.5}, "time": [1]}, "such as 30m"),
        ({"bounds": {"flops": 0.5}, "trials": True}, "trials is True"),
        ({"max_drop": True}, "points of the metric"),
    ],
)
def test_what_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(secateur.SecateurError, match=said):
        request(**given)


def test_one_name_needs_no_list() -> None:
    asked = request(bounds={"flops": 0.5}, methods="l1, fpgm", repairs="least_squares+batchnorm", allocators="global")
    assert (asked.methods, asked.repairs) == (("l1", "fpgm"), ("least_squares+batchnorm",))
    assert asked.allocators == ("global",)
    assert request(bounds={"flops": 0.5}, align="8").aligns == (8,)


def test_levels_lie_between_the_whole_network_and_the_budget() -> None:
    budget = Budget.parse("flops=0.4,params=50")
    shares = shares_of(budget, Cost(macs=1000, params=200, activations=1, peak_activations=1))
    assert shares == {"flops": 0.4, "params": 0.25}
    # share = 1 - level (1 - share of the budget)
    half = dict(scaled(budget, shares, 0.5).bounds)
    assert half == pytest.approx({"flops": 0.7, "params": 0.625})
    beyond = dict(scaled(budget, shares, 1.5).bounds)
    assert beyond == pytest.approx({"flops": 0.1, "params": 0.001})  # never nothing


def test_what_takes_the_place_of_training_is_tried_where_nothing_is_trained() -> None:
    without, trained = (request(bounds={"flops": 0.5}, epochs=epochs) for epochs in (0, 2))
    for labels in (True, False):  # what is measured needs none
        first = [str(each) for each in Space(without, data=True, labels=labels).starts()]
        assert first[:5] == [
            "fpgm with least_squares, global", "lamp with least_squares, global", "fpgm with least_squares, measured",
            "fpgm with least_squares and distillation, measured", "cap with least_squares, measured",
        ]  # fmt: skip
    assert not any("distillation" in repair for repair in trained.repairs)
    assert request(bounds={"flops": 0.5}, epochs=0, repairs=["none"]).repairs == ("none",)


@pytest.mark.parametrize(("data", "measuring"), [(False, True), (True, False), (False, False)])
def test_groups_are_measured_only_where_there_are_images_and_time(data: bool, measuring: bool) -> None:
    usual = Space(request(bounds={"flops": 0.5}), data=data, labels=data, measuring=measuring)
    assert "measured" not in usual.allocators
    assert {each.allocator for each in usual.all()} <= {"", "global", "uniform", "per_cost"}
    assert "cap" not in (*usual.methods, *usual.left_out)  # whose own search takes long: no want of images or labels
    named = request(bounds={"flops": 0.5}, methods=["cap", "l1"])
    if data:
        assert "cap" in Space(named, data=data, labels=data, measuring=measuring).methods
    alone = request(bounds={"flops": 0.5}, allocators=["measured"])
    with pytest.raises(ConfigError, match="needs images and time"):
        Space(alone, data=data, labels=data, measuring=measuring)
