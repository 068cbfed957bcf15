"""Why it is or is not faster: every rule fires when its condition holds, with the right figures, and not otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _folder import documents, write

from secateur.report.page.inputs import read_run
from secateur.report.page.layers import facts, lines
from secateur.report.page.speed import RULES, remarks


def said(folder: Path, content: dict[str, Any]) -> dict[str, str]:
    return {remark.title: remark.text for remark in remarks(facts(read_run(write(folder, content))))}


def two_layers(**changes: Any) -> dict[str, Any]:
    """A network of two convolutions: a well-behaved cut to half, all widths in eights, time as the MACs."""
    content = documents()
    layer = {"kind": "conv2d 3x3", "macs_before": 4_000_000, "macs_after": 1_000_000}
    channels = {"in_before": 32, "in_after": 16, "out_before": 32, "out_after": 16}
    content["results"]["layers"] = [{"name": name, **layer, **channels} for name in ("a", "b")]
    content["results"]["before"] = {"macs": 8_000_000, "activations": 1000}
    content["results"]["after"] = {"macs": 2_000_000, "activations": 250}
    content["latency"]["layers"] = [
        {"name": name, "kind": "conv2d 3x3", "dense_ms": 2.0, "pruned_ms": 0.5} for name in ("a", "b")
    ]
    ratio = {"median": 4.0, "low": 3.9, "high": 4.1}
    content["latency"]["runtimes"] = [
        {"runtime": "pytorch", "dense": {"median_ms": 4.1}, "pruned": {"median_ms": 1.05}, "ratio": ratio}
    ]
    content["results"]["layers"][1].update(changes.get("counts", {}))
    content["latency"]["layers"][1].update(changes.get("times", {}))
    return content


def test_a_good_cut_gets_two_remarks_alone(tmp_path: Path) -> None:
    assert said(tmp_path, two_layers()) == {
        "Arithmetic and time": "75.0% of the MACs are gone. PyTorch: 75.0% of the time saved, as the MACs promise.",
        "Alignment": "All 2 narrowed layers kept widths that are multiples of 8.",
    }


def test_widths_that_are_no_multiple_of_eight(tmp_path: Path) -> None:
    content = two_layers(counts={"out_after": 13}, times={"pruned_ms": 1.5})
    text = said(tmp_path, content)["Alignment"]
    assert text.startswith("1 of 2 narrowed layers has a width that is no multiple of 8: b (16→13).")
    assert "They keep 25.0% of their MACs and 75.0% of their time, and take 75.0% of the pruned network's." in text
    assert "The other narrowed layers keep 25.0% of their MACs and 25.0% of their time." in text
    assert "`--set constraints.align=8`" in text  # which the page shows as code


def test_an_odd_width_that_was_there_before_is_not_blamed(tmp_path: Path) -> None:
    content = two_layers(counts={"in_before": 3, "in_after": 3})
    assert said(tmp_path, content)["Alignment"].startswith("All 2")


def test_alignment_from_the_groups_when_no_layers_are_listed(tmp_path: Path) -> None:
    content = documents()
    content["results"]["layers"] = None
    content["latency"] = None
    text = said(tmp_path, content)["Alignment"]
    assert text.startswith("16 of 21 narrowed groups have a width that is no multiple of 8: conv1 (14), ")


def test_layers_that_became_less_efficient(tmp_path: Path) -> None:
    text = said(tmp_path, two_layers(times={"pruned_ms": 1.5}))["Fewer MACs a second"]
    assert "computed 2G a second before pruning and 1G after it (50.0%)" in text


def test_layers_without_macs(tmp_path: Path) -> None:
    content = two_layers()
    content["latency"]["layers"].append({"name": "bn", "kind": "batchnorm2d", "dense_ms": 1.0, "pruned_ms": 0.5})
    text = said(tmp_path, content)["Layers that do not multiply"]
    assert "1 layer without MACs (batchnorm2d) took 20.0% of the dense time and takes 33.3% of the pruned" in text


def test_layers_that_are_gone(tmp_path: Path) -> None:
    content = two_layers()
    content["latency"]["layers"].append({"name": "bn", "kind": "batchnorm2d", "dense_ms": 1.0, "pruned_ms": None})
    found = said(tmp_path, content)
    assert "Layers that do not multiply" not in found
    assert "(batchnorm2d) is gone, and with them 20.0% of its time" in found["Layers folded away"]
    found_lines = lines(facts(read_run(tmp_path)))
    assert [line.layer.times for line in found_lines if line.layer.name == "bn"] == ["1 ms → gone"]


def test_a_kind_that_moves_memory(tmp_path: Path) -> None:
    content = two_layers(counts={"macs_before": 100_000, "macs_after": 25_000})
    content["latency"]["layers"][1]["kind"] = "depthwise conv2d 3x3"
    text = said(tmp_path, content)["Bound by memory"]
    assert "depthwise conv2d 3x3 layers hold 2.4% of the MACs and take 50.0% of the time" in text


def test_activations_that_shrink_less(tmp_path: Path) -> None:
    content = two_layers()
    content["results"]["after"]["activations"] = 600
    assert "60.0% of the activations remain, but 25.0% of the MACs" in said(tmp_path, content)["Traffic to memory"]


def test_layers_that_stayed_whole(tmp_path: Path) -> None:
    counts = {"macs_after": 4_000_000, "in_after": 32, "out_after": 32}
    text = said(tmp_path, two_layers(counts=counts, times={"pruned_ms": 2.0}))["Layers that stayed whole"]
    assert text == "b was not narrowed: 80.0% of the pruned network's time."


def test_small_layers(tmp_path: Path) -> None:
    content = two_layers()
    for row in content["latency"]["layers"]:
        row.update(dense_ms=0.08, pruned_ms=0.02)
    text = said(tmp_path, content)["Small layers"]
    assert text.startswith("2 layers with MACs take less than 0.05 ms each, 100.0% of the pruned network's time")


def test_layers_that_take_longer_though_narrower(tmp_path: Path) -> None:
    text = said(tmp_path, two_layers(times={"pruned_ms": 2.5}))["Slower though narrower"]
    assert text == "1 layer with fewer MACs took longer: b (2 ms to 2.50 ms)."


def test_time_between_the_layers(tmp_path: Path) -> None:
    content = two_layers()
    content["latency"]["runtimes"][0]["pruned"]["median_ms"] = 2.0
    assert "account for 1 ms of its 2 ms" in said(tmp_path, content)["Between the layers"]


def test_no_speed_up_is_said(tmp_path: Path) -> None:
    content = two_layers()
    content["latency"]["runtimes"][0]["ratio"] = {"median": 1.02, "low": 0.97, "high": 1.06}
    text = said(tmp_path, content)["Arithmetic and time"]
    assert "PyTorch: no significant change (0.97× to 1.06×)." in text


def test_the_interval_alone_decides(tmp_path: Path) -> None:
    content = two_layers()
    content["latency"]["runtimes"][0] |= {"ratio": {"median": 1.74, "low": 1.56, "high": 2.27}, "speedup": False}
    text = said(tmp_path, content)["Arithmetic and time"]
    assert "PyTorch: 42.5% of the time saved, less than the MACs promise." in text


def test_times_that_vary_too_much_are_to_be_measured_again(tmp_path: Path) -> None:
    content = two_layers()
    content["latency"]["runtimes"][0]["ratio"] = {"median": 1.6, "low": 0.7, "high": 5.4}
    text = said(tmp_path, content)["Arithmetic and time"]
    assert "(0.70× to 5.40×; the times vary too much, measure again on a quiet machine)" in text


def test_a_runtime_that_was_skipped_is_named(tmp_path: Path) -> None:
    from secateur.report import write_report

    content = two_layers()
    content["latency"]["skipped"] = [{"runtime": "onnxruntime", "reason": "No ONNX operator for <b>this</b>."}]
    page = write_report(write(tmp_path, content)).read_text(encoding="utf-8")
    assert "onnxruntime was left out: No ONNX operator for &lt;b&gt;this&lt;/b&gt;." in page
    assert "Latency, ONNX Runtime" in page


def test_nothing_measured_gives_no_remark(tmp_path: Path) -> None:
    content = documents()
    content["latency"] = None
    content["results"].update(layers=[], groups=[], before={}, after={})
    assert said(tmp_path, content) == {}


def test_every_rule_says_when_it_holds() -> None:
    for rule in RULES:
        assert rule.__doc__
        assert rule.__doc__.startswith(("When", "Whenever")), rule.__name__
