"""Latency: what is said follows from the times, and the measurement leaves no trace. No timing is asserted."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from _runs import Run, assert_sentence
from torch import nn

from secateur import models
from secateur.errors import ConfigError, RunError
from secateur.runtime import latency, measure
from secateur.runtime.engines import ENGINES, REST
from secateur.runtime.latency import compare, in_turns, measure_alone
from secateur.runtime.layers import kind_of

PRESENT = [name for name in ("pytorch", "onnxruntime", "openvino") if ENGINES[name].missing() is None]


@pytest.fixture(scope="module")
def document(run: Run) -> dict[str, Any]:
    return measure(
        run.fresh(), run.narrow, run.inputs, batch_size=2, repeats=4, warmup=1, runtimes=PRESENT, layers=True
    )


def test_the_document_is_whole_and_strict_json(document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (document["format"], document["version"]) == ("secateur.latency", 1)
    assert (document["batch_size"], document["threads"], document["repeats"]) == (2, 1, 4)
    assert [row["runtime"] for row in document["runtimes"]] == PRESENT
    assert document["skipped"] == []
    assert set(document["versions"]) == {"python", "torch", *PRESENT} - {"pytorch"}
    for row in document["runtimes"]:
        assert 0 < row["dense"]["p10_ms"] <= row["dense"]["median_ms"] <= row["dense"]["p90_ms"]
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        apart = row["pruned"]["p90_ms"] < row["dense"]["p10_ms"]
        assert row["speedup"] == (apart and row["ratio"]["low"] > 1)


def test_layers_stand_side_by_side(document: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in document["layers"]}
    assert rows["stem.0"]["kind"] == "conv2d 3x3"
    assert rows["depthwise.0"]["kind"] == "depthwise conv2d 3x3"
    assert rows["fc"]["kind"] == "linear"
    assert next(iter(rows)) == "stem.0"
    assert all(row["dense_ms"] > 0 and row["pruned_ms"] > 0 for row in rows.values())


def test_a_speed_up_needs_an_interval_above_one() -> None:
    noise = np.random.default_rng(0).normal(1, 0.01, size=(2, 30))
    faster = compare(2e-3 * noise[0], 1e-3 * noise[1])
    assert faster["speedup"] is True
    assert re.fullmatch(r"(1\.99|2\.00|2\.01)x faster \((1\.9|2\.0)\d to 2\.0\d\)", faster["said"])
    same = compare(1e-3 * noise[0], 1e-3 * noise[1])
    assert same["speedup"] is False
    assert same["said"].startswith("no speed-up: the interval of the ratio (")
    assert same["said"].endswith("contains 1")
    slower = compare(1e-3 * noise[0], 2e-3 * noise[1])
    assert slower["speedup"] is False
    assert re.match(r"no speed-up: (1\.99|2\.0\d)x slower \(", slower["said"])
    assert compare(2e-3 * noise[0], 1e-3 * noise[1]) == faster  # the draws come from the seed


def test_a_ratio_above_one_that_may_be_chance_is_no_speed_up() -> None:
    noise = np.random.default_rng(7).normal(1, 0.05, size=(2, 12))
    found = compare(1e-3 * noise[0], 1e-3 * noise[1])  # equally fast; this once the second has the better times
    assert found["ratio"]["low"] < 1 < found["ratio"]["median"]
    assert found["speedup"] is False
    assert found["said"].startswith("no speed-up: the interval of the ratio (")


def test_a_noisy_machine_is_called_noisy_and_the_paired_interval_decides() -> None:
    shared = np.linspace(1, 2, 31)  # what else the machine did hit both alike
    found = compare(1.8e-3 * shared, 1e-3 * shared)
    assert found["ratio"]["low"] > 1
    assert found["speedup"] is True
    assert found["noisy"] is True
    assert re.fullmatch(
        r"1\.80x faster \(1\.\d\d to \d\.\d\d\); the machine is noisy "
        r"\(middle 80% of the times: 1\.98 to 3\.42 ms and 1\.1 to 1\.9 ms\)",
        found["said"],
    )
    assert compare(2e-3 * np.ones(30), 1e-3 * np.ones(30))["noisy"] is False


def test_the_networks_take_turns_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ran = [0.0], []

    def call(name: str, seconds: float) -> None:
        ran.append(name)
        now[0] += seconds

    monkeypatch.setattr(latency, "_clock", lambda: now[0])
    times = in_turns([lambda: call("a", 0.05), lambda: call("b", 0.0005)], repeats=4, warmup=2)
    assert np.allclose(times, [[0.05] * 4, [0.0005] * 4])
    # a: 0.2 s of warming up and one to see how long it takes; b: the same, and four runs are one sample
    assert "".join(ran) == "a" * 5 + "b" * 401 + "abbbb" + "bbbba" + "abbbb" + "bbbba"


def test_one_network_alone(run: Run) -> None:
    document = measure_alone(run.narrow, run.inputs, repeats=2, warmup=1, runtimes=["pytorch"], layers=True)
    (row,) = document["runtimes"]
    assert set(row) == {"runtime", "alone", "layers"}
    assert 0 < row["alone"]["p10_ms"] <= row["alone"]["median_ms"] <= row["alone"]["p90_ms"]
    assert row["layers"][0]["name"] == "stem.0"
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize("name", PRESENT)
def test_every_runtime_times_the_layers_and_what_is_left(document: dict[str, Any], name: str) -> None:
    row = next(row for row in document["runtimes"] if row["runtime"] == name)
    rows = {layer["name"]: layer for layer in row["layers"]}
    kinds = {"stem.0": "conv2d 3x3", "depthwise.0": "depthwise conv2d 3x3", "fc": "linear"}
    assert {layer: rows[layer]["kind"] for layer in kinds} == kinds
    for network in ("dense_ms", "pruned_ms"):
        assert all(rows[layer][network] >= 0 for layer in kinds)  # a counter of whole microseconds may stand at none
        assert sum(layer[network] or 0 for layer in rows.values()) > 0
    assert list(rows)[-1] == REST
    assert rows[REST]["kind"] == ""
    assert {layer["name"] for layer in document["layers"]} >= set(rows) - {REST}


def test_a_runtime_that_does_not_tell_layers_apart_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = dataclasses.replace(ENGINES["pytorch"], name="compiled", watch=None)  # compiling would take a while
    monkeypatch.setitem(ENGINES, "compiled", silent)  # type: ignore[misc]
    row = measure_alone(run.narrow, run.inputs, repeats=1, warmup=1, runtimes=["compiled"], layers=True)["runtimes"][0]
    assert row["layers"] is None
    assert "several as one" in row["no_layers"]


def test_one_pair_of_times_has_an_interval_too() -> None:
    found = compare([2e-3], [1e-3])
    assert found["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_nothing_is_left_behind(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = run.fresh().train()
    threads, asked = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    measure(dense, run.narrow, run.inputs, repeats=1, threads=2, runtimes=["pytorch"])
    assert asked == [2, threads]
    assert dense.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in dense.modules())


def test_a_layer_that_is_gone_has_no_time() -> None:
    document = measure(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity()),
        torch.randn(1, 3, 8, 8), repeats=1, runtimes=["pytorch"],
    )  # fmt: skip
    assert [(row["name"], row["pruned_ms"] is None) for row in document["layers"]] == [("0", False), ("1", True)]


def test_what_onnx_cannot_express_is_skipped_with_the_reason() -> None:
    class Refuses(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if float(x.sum()) > 0 else x[:, :2]

    document = measure(Refuses(4, 2), Refuses(4, 2), torch.randn(1, 4), repeats=1)
    assert [row["runtime"] for row in document["runtimes"]] == ["pytorch"]
    assert document["skipped"][0]["runtime"] == "onnxruntime"
    assert "cannot be exported" in document["skipped"][0]["reason"]


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"repeats": -1}, {"threads": True}, {"threads": 1.5}, {"runtimes": ["onnxrumtime"]}],
)
def test_impossible_settings_are_one_sentence(run: Run, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        measure(run.narrow, run.narrow, run.inputs, **wrong)
    assert_sentence(caught.value)


def test_a_batch_size_the_network_does_not_run_with() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Unflatten(0, (2, 1)))
    with pytest.raises(RunError, match=r"latency\.batch_size") as caught:
        measure(model, model, torch.randn(2, 3, 8, 8), batch_size=3, repeats=1)
    assert_sentence(caught.value)


def test_kinds_of_layers() -> None:
    assert kind_of(nn.Conv2d(8, 8, (1, 7), groups=4)) == "grouped conv2d 1x7"
    assert kind_of(nn.ConvTranspose1d(4, 4, 3)) == "convtranspose1d 3"
    assert kind_of(models.create("tiny").stem[1]) == "batchnorm2d"


class Branching(nn.Module):
    """Works longer for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Conv2d(1, 2, 3), list[float]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(float(x.mean()))
        return self.layer(x)


def test_times_are_means_over_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "in_turns", lambda calls, *_: [[6.0] * 5 for call in calls if call() is not None])
    images = [torch.full((1, 1, 4, 4), value) for value in (1.0, 2.0, 3.0)]
    net, other = Branching(), Branching()
    placed: list[tuple[str, str]] = []

    def on(runtime: str, name: str, model: nn.Module) -> nn.Module:
        placed.append((runtime, name))
        return other if name == "pruned" else model

    found = measure(net, net, images[0], repeats=5, runtimes=["pytorch"], images=images, placed=on)
    assert found["images"] == 3
    assert found["runtimes"][0]["dense"]["median_ms"] == 2000
    assert placed == [("pytorch", "dense"), ("pytorch", "pruned")]
    assert other.seen == [1, 2, 3, 1, 2, 3]  # prepared, and called once
    assert "images" not in measure(net, net, images[0], repeats=5, runtimes=["pytorch"])
    with pytest.raises(ConfigError, match="no images"):
        measure(net, net, images[0], runtimes=["pytorch"], images=[])


@pytest.mark.parametrize("name", PRESENT)
def test_engines_run_several_images(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval()
    images = [torch.randn(1, 1, 4, 4) for _ in range(3)]
    found = ENGINES[name].prepared(net, images, 1)()
    assert isinstance(found, list)
    for x, out in zip(images, found, strict=True):
        first = out if isinstance(out, torch.Tensor) else out[0]
        assert np.allclose(np.asarray(first).reshape(-1), net(x).detach().numpy().reshape(-1), atol=1e-5)


def test_an_engine_that_runs_one_image_alone_says_so() -> None:
    one = dataclasses.replace(ENGINES["pytorch"], prepare_each=None)
    with pytest.raises(RunError, match="is timed with one input"):
        one.prepared(nn.Identity(), [torch.ones(1), torch.zeros(1)], 1)
    assert torch.equal(one.prepared(nn.Identity(), [torch.ones(1)], 1)(), torch.ones(1))
