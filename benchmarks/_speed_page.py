"""docs/speed.md: what methods cost beside a plain pass over the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _record
from _markdown import Row, circumstances, table

FACTORS = """\
Kronecker factors of all layers of a ResNet-50 at {size} pixels, batch {batch}, beside one pass forward and back
(cross-entropy, gradients of all weights). *Sampled* looks at up to {positions} positions of each image (`positions` of
`nap`). Medians of {repeats}, by turns; in brackets the smallest and largest ratio."""

SCORES = """\
The time a method takes to look at images ({size} pixels, batch {batch}) and to score every channel of a ResNet-50,
divided by the time of one pass forward and back over the same images, timed before and after on one batch in
{share}."""

STEPS = """\
A training step of `dcpcac` on {model} (batch {batch}) beside one of the plain network, as it narrows: {events} events
down to {budget}. By turns, medians of {repeats}."""

CSGD = """\
A training step of {model} (batch {batch}) with Centripetal SGD beside a plain one, median of {repeats}; *own part* is
the time inside its hooks alone."""

RECONSTRUCTION = """\
Everything a method that reconstructs does on a VGG-16-BN at 32 pixels: {images} images shown, channels chosen, weights
of all layers solved for, cut, verified."""

TURNS = """\
A ResNet-18 (3x3 stem, random weights, images of 32 pixels) loses half of its MACs, by the code of an earlier commit
(*before*, 9fdf074) and by this one, each in a process of its own that begins anew, by turns. CPU seconds from images to
the cut and verified network; *solves* are factorisations, the LASSO and forward selection; *passes* is all the rest
over one forward pass of the whole network over the images shown, by CPU seconds; *error* is |y' - y|² over
|y - mean y|² of the outputs on images that nobody has seen; *alike* is the share of kept channels that both sides
keep."""

ENGINE = """\
Images a second of training {model} (batch {batch}, one thread on a CPU) with the engine, with that of an earlier commit
(*before*, 9fdf074), and with a loop written by hand of the same settings, each in a process of its own, by turns. Times
are the ratio of images a second, median over {repeats} turns of {steps} batches, in brackets the smallest and largest.
bf16 is there where the processor computes in it."""

QUADRATIC = """\
DCP on {model}, trained on scikit-learn's digits ({size} pixels, {images} images shown, budget {budget}): asking its
classifiers by passes as in the paper and by default (`exact: true`), by a quadratic form (`exact: false`), and not at
all (`weight: 0`). CPU seconds with cut and proof, and accuracy straight after the cut, for {samples} samples of images;
the whole network has {dense_accuracy:.1%}."""


FORMS = """\
Batch 1, one thread: single kernel positions of filters ([SWP](methods/swp.md)) and channels that a gate skips for the
image ([ManiDP](methods/manidp.md)). Skeletons and gates are drawn, not trained. *Deployed* keeps the form of a layer
where it was measured to be faster there; how many it kept stands in the last column. *Channels* is the network that L1
prunes to as many MACs. What is said of each side is the paired interval against the dense network, in one run by
turns; the machine was busy with other work."""

GATES = "Mean time of one image over {images} distinct ones, each alone, at three shares of active channels:"


CLIMBS = """\
Images of `functionality` on torchvision's MobileNetV2 with ImageNet's weights at 224 pixels, by the code of an earlier
commit (*before*, 9fdf074: its default of {before_steps} steps of one length) and by this one in several numbers of
steps, each in a process of its own. CPU seconds of all {groups} groups that may be cut, from {channels} channels of
each, without the clusters; *as high* is how many groups have at least the objective of before (the mean of a channel's
map, summed over channels), *height* the median over groups of now over before. The bar is for the first number of steps
whose height is 1 or more."""


def _ratio(side: Row) -> str:
    return f"{side['ratio']:.2f} ({side['ratio_low']:.2f} to {side['ratio_high']:.2f})"


def _verdict(value: float, bar: float | None) -> str:
    return "-" if bar is None else f"{bar:g}: {'met' if value <= bar else '**not met**'}"


def _factors(result: dict[str, Any]) -> list[str]:
    cost, *agreement = result["rows"]
    sides = [(name, side) for name, side in cost.items() if isinstance(side, dict)]
    times = [[n, f"{s['median_s']:.2f}", _ratio(s), _verdict(s["ratio"], s.get("bar"))] for n, s in sides]
    alike = [
        [row["what"], row["all"], row["median_layer"], row["lowest_layer"], f"{row['bar']}: {_at_least(row)}"]
        for row in agreement
    ]
    return [
        "## NAP: factors of a ResNet-50",
        FACTORS.format(**result),
        circumstances(result),
        table(["side", "seconds", "times plain", "bar"], times),
        "Sampled against exact factors, by what they are for:",
        table(["", "all together", "median layer", "lowest layer", "bar, all together"], alike),
    ]


def _at_least(row: Row) -> str:
    return "met" if row["all"] >= row["bar"] else "**not met**"


def _scores(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"`{r['method']}`",
            r["images"],
            r["plain_s"],
            r["collect_s"],
            r["score_s"],
            r["ratio"],
            _verdict(r["ratio"], r["bar"]),
        ]
        for r in result["rows"]
    ]
    head = ["method", "images", "forward and back, s", "look, s", "score, s", "times", "bar"]
    return ["## Scoring a ResNet-50", SCORES.format(**result), circumstances(result), table(head, rows)]


def _steps(result: dict[str, Any]) -> list[str]:
    rows = [
        [f"{100 * r['flops']:.1f}%", f"{r['step_s']:.3f}", f"{r['plain_s']:.3f}", _ratio(r)] for r in result["rows"]
    ]
    head = ["MACs left", "step, s", "plain step, s", "times"]
    return [
        "## DCP-CAC: steps get cheaper",
        STEPS.format(**result),
        circumstances(result),
        table(head, rows),
    ]


def _csgd(result: dict[str, Any]) -> list[str]:
    sides = [(name, side) for name, side in result["rows"][0].items() if isinstance(side, dict)]
    rows = [[name, f"{side['median_s']:.4f}", _ratio(side)] for name, side in sides]
    bar = f"The bar is {result['bar']} times a plain step."
    return [
        "## Centripetal SGD: a step",
        CSGD.format(**result),
        circumstances(result) + " " + bar,
        table(["side", "seconds", "times plain"], rows),
    ]


def _reconstruction(result: dict[str, Any]) -> list[str]:
    rows = [
        [f"`{r['method']}`", r["collect_s"], r["finish_s"], r["total_s"], _verdict(r["total_s"], r["bar_s"])]
        for r in result["rows"]
    ]
    return [
        "## Reconstructing a VGG-16",
        RECONSTRUCTION.format(**result["rows"][0]),
        circumstances(result),
        table(["method", "look, s", "choose, solve, cut, verify, s", "together, s", "bar, s"], rows),
    ]


def _turns(result: dict[str, Any]) -> list[str]:
    rows = []
    for r in result["rows"]:
        before, now, passes = r["before"], r["now"], result["bar_passes"]
        rows.append([
            f"`{r['method']}`", r["images"], before["cpu_s"], now["cpu_s"],
            f"{r['times_faster']:.2f}", f"{r['bar']:g}: {'met' if r['times_faster'] >= r['bar'] else '**not met**'}",
            now["solves_s"], f"{now['passes']:.1f}", _verdict(now["passes"], passes),
            f"{before['error']:.3f}, {now['error']:.3f}", f"{r['same_channels']:.1%}",
        ])  # fmt: skip
    head = [
        "method", "images", "before, s", "now, s", "times faster", "bar",
        "solves now, s", "passes now", "bar", "error before, now", "alike",
    ]  # fmt: skip
    return ["## Methods that reconstruct", TURNS, circumstances(result), table(head, rows)]


def _engine(result: dict[str, Any]) -> list[str]:
    rows = []
    for row in result["rows"]:
        held = row["times"] or {None: None}
        for other, side in held.items():
            bar = "-" if not side or side["bar"] is None else f"{side['bar']:g}: {_reached(side)}"
            rows.append([row["side"], row["images_per_second"], other or "-", _ratio(side) if side else "-", bar])
    return [
        "## The training engine",
        ENGINE.format(**result),
        circumstances(result),
        table(["side", "images a second", "against", "times", "bar"], rows),
    ]


def _reached(side: Row) -> str:
    return "met" if side["ratio"] >= side["bar"] else "**not met**"


def _quadratic(result: dict[str, Any]) -> list[str]:
    rows = []
    for r in result["rows"]:
        seconds, accuracy = (
            ", ".join(map(form.format, r[k])) for k, form in (("seconds", "{:.1f}"), ("accuracy", "{:.1%}"))
        )
        bar = f"{result['bar']}: {'met' if r['times_faster'] >= result['bar'] else '**not met**'}"
        rows.append([r["side"], seconds, accuracy, f"{r['times_faster']:.2f}", bar if r["side"] == "moments" else "-"])
    return [
        "## DCP: moments for passes",
        QUADRATIC.format(**result),
        circumstances(result),
        table(["side", "CPU seconds", "accuracy", "times faster", "bar"], rows),
    ]


def _forms(result: dict[str, Any]) -> list[str]:
    stripes, gates = [], []
    for r in result["stripes"]:
        for side, ms in r["median_ms"].items():
            left = r["macs"].get("channels" if side == "channels" else "stripes") if side != "dense" else 1.0
            kept = f"{len(r['kept'])} of {r['of']}" if side == "deployed" else "-"
            stripes.append([f"{r['model']}, {r['runtime']}", side, f"{left:.1%}", f"{ms:.2f}", _claim(r, side), kept])
    for r in result["gates"]:
        for side, ms in r["mean_ms"].items():
            kept = f"{len(r['kept'])} of {r['of']}" if side == "deployed" else "-"
            where = f"{r['model']}, {r['runtime']}, {r['active']:.0%} active"
            gates.append([where, side, f"{ms:.2f}", _claim(r, side), kept])
    parts = ["## Layers computed another way", FORMS, circumstances(result)]
    if stripes:
        parts.append(table(["network", "side", "MACs", "ms", "against dense", "forms kept"], stripes))
    if gates:
        images = result["gates"][0]["images"]
        head = ["network", "side", "ms", "against dense", "forms kept"]
        parts += [GATES.format(images=images), table(head, gates)]
    return parts


def _claim(row: Row, side: str) -> str:
    return str(row["said"][side]).partition(";")[0] if side in row["said"] else "-"


def _climbs(result: dict[str, Any]) -> list[str]:
    first = next((r for r in result["rows"] if r["height"] >= 1), None)
    rows = []
    for r in result["rows"]:
        held = f"{result['bar']:g}: {'met' if r['climb_times_faster'] >= result['bar'] else '**not met**'}"
        before, now = r["climb_s"]
        rows.append([
            r["steps"], before, now, f"{r['as_high']} of {r['groups']}", f"{r['height']:.2f}",
            f"{r['climb_times_faster']:.1f}", held if r is first else "-",
        ])  # fmt: skip
    return [
        "## Functionality: images that climb",
        CLIMBS.format(**result | {"groups": len(result["groups"])}),
        circumstances(result),
        table(["steps now", "before, s", "now, s", "as high", "height", "times faster", "bar"], rows),
    ]


SECTIONS = {
    "engine_speed": _engine,
    "score_speed": _scores,
    "reconstruct_speed": _reconstruction,
    "reconstruction": _turns,
    "nap_factors": _factors,
    "csgd_step": _csgd,
    "dcpcac_steps": _steps,
    "dcp_speed": _quadratic,
    "functionality_speed": _climbs,
    "forms_speed": _forms,
}


def pages(docs: Path) -> dict[Path, str]:
    """The page, of the results there are."""
    parts = []
    for name, section in SECTIONS.items():
        path = _record.RESULTS / f"{name}.json"
        if path.exists():
            parts += section(_record.read(path))
    if not parts:
        return {}
    head = ["# What methods cost"]
    return {docs / "speed.md": "\n\n".join([*head, *parts]) + "\n"}
