"""Make the benchmark pages of the documentation from the results; no figure in them is typed by hand.

python benchmarks/tables.py            # writes the pages in docs/ for the results there are
python benchmarks/tables.py --check    # fails when a page is not what the results say
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _choosing_page
import _compare_page
import _compress_page
import _exports_page
import _latency_page
import _leaderboard_page
import _macs_page
import _networks_page
import _one_shot_page
import _record
import _speed_page
import _yolo_page
from _markdown import Row, circumstances, folded, foot, percent, quantile, table

from secateur.compare.paired import differences

DOCS = Path(__file__).parent.parent / "docs"
CUT = ("exact", "inexact")  # verified; "differs", "error" and "timeout" are not
NORMALISES = re.compile(r"norm|mean|var|std")  # in a reason: statistics over channels, by which masking is not removing

#: The results that each page is made from.
FROM = {
    "bwcp": ("bwcp_step", "bwcp_quality", "bwcp_defaults"),
    "census": ("census",),
    "choosing": ("compare_short", "compare_anew", "one_shot_cifar10", "networks"),
    "compare": ("compare_short", "compare_anew", *_compare_page.LATER, "below_random", "widths"),
    "compress_bench": (*(f"compress_bench_{name}" for name in _compress_page.NETWORKS), "stranger"),
    "exports": ("exports",),
    "graph_speed": ("graph_speed", "graph_growth", "large_networks"),
    "latency": ("latency_budget", "staircase"),
    "leaderboard": tuple(f"leaderboard/{setup}" for setup in _leaderboard_page.SETUPS),
    "macs": ("macs",),
    "networks": ("networks",),
    "one_shot": tuple(f"one_shot_{setup}" for setup in _one_shot_page.TITLES),
    "speed": tuple(_speed_page.SECTIONS),
    "yolo": ("yolo",),
}

LARGE = """\
From a network with random weights to half of the channels of every group by L1, cut and verified, images of
{size}x{size}: an earlier commit (9fdf074) and this one in processes of their own, by turns; CPU seconds, and the peak
of memory over what the process held with the network. The bar is {bar} times before. What is left are the forward
passes of verification, in which such a network spends most of the time, and its copies."""

SCHEDULES = """\
On images, seeds and a network of no report: ResNet-8 with zero-padded shortcuts, the last 10,000 training images of
CIFAR-10, seeds {seeds}, 10 epochs, half of the FLOPs; accuracy on the 5,000 training images before these. The
[leaderboard](leaderboard.md) has BWCP's row with these defaults on another network, other images and seeds."""

CENSUS = """\
Half of the channels of every group, drawn at random, were removed from each network, and the cut network compared
with the masked original. *Exact*: both compute the same. *Inexact*: some groups pass an operation over channels (a
normalisation, a softmax), so that removal changes the other channels by nature; the cut was verified structurally.
*Whole*: at least {share:.0f}% of the MACs of convolutions and linear layers lie in layers whose inputs or outputs
can be made fewer; "by outputs" counts those whose outputs can. Random seeded weights; the outputs of each network
stay."""

SPEED = """\
Seconds, median of {repeats} (Torch-Pruning: {peer_repeats}), alternating in one process, images of {size}x{size}.
Verification, which Torch-Pruning has no counterpart of, is left out."""

STEP = """\
One training step of {model} with {batch} images, median of {repeats}, the sides taking turns in one run. *Bwcp* is BWCP
while its gates are random and the penalty acts, *settled* once its masks stand, which is most of a training. *As
written* is BWCP with batch norm, covariance, inverse root and product computed one after the other, as in the paper,
whose own implementation needed 3.3 times a plain step (the paper's figure, ResNet-50 on a GPU). Images lie in memory
with their channels together, as the engine trains on a CPU, and apart. The ratio is the median over turns, in brackets
the smallest and largest; the bar is {bar}. After folding, inference is that of a plain network of the same widths."""

QUALITY = """\
The recipe `recipes/cifar10-resnet8-short.yaml`: {model}, {images:,} training images of CIFAR-10 ({validation:.0%} of
them held out), {epochs} epochs in all for every method, batch {batch}, SGD, cosine schedule, FLOPs budget {budget};
{seeds} seeds; accuracy on all {tested:,} test images, measured once at the end of each stage. This is a small, short
setting: the accuracies say how methods compare when time is scarce, not what they reach in the papers' schedules. L1
and random prune the network that was trained plainly for {train} epochs and fine-tune it for the rest; BWCP, as in its
paper, is not fine-tuned; scratch trains the widths BWCP found with the same seed from the start. By default BWCP's
masks settle early, so that soft and hard gates are one network at the end; with *bwcp-random* they stay random, as in
the paper. BWCP's default schedule was tuned in this setting, on some of these seeds and looking at test accuracy, so
nothing should be concluded from a small lead. *Cut* is straight after the cut, before fine-tuning. The seconds are
those of runs that shared the machine with other work."""

GROWTH = """\
A DenseNet (k=12) in which every layer reads all layers before it, median of {repeats}. A line through the total has
{ms_per_layer:.2f} ms a layer and explains {r_squared:.1%} of the variance; the best power law has the exponent
{exponent:.2f}. The network itself grows faster than its depth: the channels that all layers read, which is what the
couplings consist of (and, times 9 x 12, the weights that are scored and cut), follow a power law of exponent
{read:.2f}."""


def _summary(name: str, rows: list[Row]) -> list[Any]:
    cut = [row for row in rows if row["status"] in CUT]
    exact = [row for row in cut if row["status"] == "exact"]
    whole = [row for row in cut if not row["partial"]]
    seconds = [row["total_s"] for row in rows if "total_s" in row]
    shares = [row["prunable_macs"] for row in cut]
    return [
        name,
        len(rows),
        len(cut),
        len(exact),
        len(cut) - len(exact),
        len(rows) - len(cut),
        len(whole),
        percent(sum(shares), len(shares)),
        percent(sum(row["prunable_output_macs"] for row in cut), len(cut)),
        f"{quantile(seconds, 0.5):.2f}",
        f"{max(seconds, default=float('nan')):.1f}",
    ]


SUMMARY = [
    "set",
    "models",
    "cut and verified",
    "exact",
    "inexact, with reason",
    "failed",
    "whole",
    "MACs prunable",
    "by outputs",
    "median s",
    "slowest s",
]


def _sets(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    vision = [row for row in rows if row["name"].startswith("torchvision:")]
    timm = [row for row in rows if row["name"].startswith("timm:")]
    kinds = ("classification", "segmentation", "detection", "video", "optical_flow")
    sets = [
        ("torchvision", vision),
        *((f"- {kind.replace('_', ' ')}", [row for row in vision if row["kind"] == kind]) for kind in kinds),
        ("timm", timm),
        ("- convolutional", [row for row in timm if row["class"] == "conv"]),
        ("- attention, MLP, hybrid", [row for row in timm if row["class"] == "other"]),
        ("all", rows),
    ]
    return [(name, members) for name, members in sets if members]


def _bars(rows: list[Row], bar_s: float, whole_share: float) -> str:
    sets = dict(_sets(rows))
    vision, conv, other = (
        sets.get("torchvision", []),
        sets.get("- convolutional", []),
        sets.get("- attention, MLP, hybrid", []),
    )
    free = [row for row in conv if not any(NORMALISES.search(reason) for reason in row.get("reasons", ()))]
    lines = []

    def bar(text: str, members: list[Row], holds: Callable[[Row], bool], needed: float) -> None:
        met = sum(map(holds, members))
        verdict = "met" if members and met >= needed * len(members) else "**not met**"
        lines.append([text, f"{met} of {len(members)}", percent(met, len(members)), f"{100 * needed:.0f}%", verdict])

    bar("torchvision: cut and verified", vision, lambda row: row["status"] in CUT, 1.0)
    bar("timm convolutional: cut and verified", conv, lambda row: row["status"] in CUT, 1.0)
    bar("timm convolutional, no normalisation over channels: exact", free, lambda row: row["status"] == "exact", 0.98)
    bar(
        f"timm convolutional: at least {100 * whole_share:.0f}% of the MACs in prunable layers",
        conv,
        lambda row: row["status"] in CUT and row["prunable_macs"] >= whole_share,
        0.98,
    )
    bar("timm attention, MLP, hybrid: cut and verified", other, lambda row: row["status"] in CUT, 0.95)
    bar(f"all: no longer than {bar_s:.0f} s", rows, lambda row: row.get("total_s", float("inf")) <= bar_s, 1.0)
    return table(["bar", "models", "share", "asked", ""], lines)


def _reason(row: Row, whole_share: float, bar_s: float) -> str:
    parts = []
    if row["status"] not in CUT:
        parts.append(row.get("error") or f"relative error {row['max_relative_error']:.1e}")
    if row.get("prunable_macs", 1.0) < whole_share:
        parts.append(f"{100 * row['prunable_macs']:.1f}% of the MACs in prunable layers")
        parts += [f"`{item['name']}` ({item['width']}): {item['reason']}" for item in row["frozen"][:2]]
        if row["unsupported"]:
            parts.append("unsupported: " + ", ".join(f"`{name}`" for name in row["unsupported"]))
    if row.get("total_s", 0) > bar_s:
        parts.append(f"{row['total_s']:.0f} s")
    return "; ".join(parts)


def census(result: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """docs/census.md. before: an earlier census, whose networks are compared."""
    rows, bar_s, whole_share = result["rows"], result["bar_s"], result["whole_share"]
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row["name"].split(":")[0] + ": " + row["family"], []).append(row)
    reasons: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "inexact":
            for reason in row["reasons"]:
                reasons.setdefault(reason, []).append(row)
    shortfalls = [(row, _reason(row, whole_share, bar_s)) for row in rows]
    shortfalls = [(row, reason) for row, reason in shortfalls if reason]
    part = "" if len(rows) >= result["listed"] else f" **A part only: {len(rows)} of {result['listed']} models.**"
    slowest = sorted(rows, key=lambda row: -row.get("total_s", 0))[:10]
    phases = ("trace_s", "solve_s", "cut_s", "verify_s", "total_s")
    return (
        "\n\n".join(
            [
                "# The census: which networks can be pruned",
                CENSUS.format(share=100 * whole_share),
                circumstances(result) + part,
                "## Bars",
                _bars(rows, bar_s, whole_share),
                "## Summary",
                table(SUMMARY, [_summary(name, members) for name, members in _sets(rows)]),
                *(_changes(rows, before) if before else ()),
                "## Shortfalls",
                folded(
                    f"All {len(shortfalls)} of them",
                    table(
                        ["model", "class", "status", "reason"],
                        [[row["name"], row["class"], row["status"], text] for row, text in shortfalls],
                    ),
                )
                if shortfalls
                else "None.",
                "## Why cuts are inexact",
                table(
                    ["reason", "models", "for example"],
                    [[reason, len(m), m[0]["name"]] for reason, m in sorted(reasons.items(), key=lambda i: -len(i[1]))],
                ),
                "## Slowest",
                table(
                    ["model", "parameters", *phases],
                    [[r["name"], f"{r['params'] / 1e6:.1f} M", *(r.get(p, "-") for p in phases)] for r in slowest],
                ),
                "## Families",
                folded(
                    f"All {len(families)} families",
                    table(
                        ["family", *SUMMARY[1:]],
                        [_summary(name, members) for name, members in sorted(families.items())],
                    ),
                ),
            ]
        )
        + "\n"
    )


def _changes(rows: list[Row], before: dict[str, Any]) -> list[str]:
    """What became of the networks of an earlier census: those whose prunable share or status is another one."""
    earlier = {row["name"]: row for row in before["rows"]}
    both = [(earlier[row["name"]], row) for row in rows if row["name"] in earlier]

    def told(row: Row) -> tuple[str, str]:
        return f"{100 * row['prunable_macs']:.1f}%" if "prunable_macs" in row else "-", row["status"]

    lines = [
        [
            new["name"],
            told(old)[0],
            told(new)[0],
            *(percent(r["macs_after"], new["macs"]) for r in (old, new)),
            new["status"],
        ]
        for old, new in both
        if told(old) != told(new)
    ]
    lost = sum(new.get("prunable_macs", 0.0) < old["prunable_macs"] - 5e-4 for old, new in both)
    text = (
        f"Against the census of {before['date'][:10]} (commit `{before['commit']}`): of {len(both)} networks in both, "
        f"{len(both) - len(lines)} have the same share of prunable MACs and the same status; in {lost} the share fell."
    )
    head = ["model", "MACs prunable before", "now", "MACs left of half the channels before", "now", "status"]
    return ["## Changes", text, table(head, lines)]


def graph_speed(speed: dict[str, Any] | None, growth: dict[str, Any] | None, large: dict[str, Any] | None) -> str:
    """docs/graph_speed.md."""
    parts = ["# How fast the graph is"]
    if speed:
        rows = [
            [
                row["name"],
                f"{row['times_faster']:.1f}" if "times_faster" in row else "-",
                row.get("secateur_s", row.get("secateur_error", "-")),
                row.get("torch_pruning_s", row.get("torch_pruning_error", "-")),
                percent(row["secateur_macs_after"], row["macs"]) if "secateur_macs_after" in row else "-",
                percent(row["torch_pruning_macs_after"], row["macs"]) if "torch_pruning_macs_after" in row else "-",
            ]
            for row in speed["rows"]
        ]
        parts += [
            "## Trace, group, L1 and cut to half",
            SPEED.format(**speed, size=speed["image"][-1]),
            circumstances(speed),
            table(["network", "times faster", "secateur", "Torch-Pruning", "MACs left", "MACs left (TP)"], rows),
        ]
    if growth:
        parts += [
            "## Growth with depth",
            GROWTH.format(repeats=growth["repeats"], **growth["fits"]["total_s"], read=_exponent(growth["rows"])),
            circumstances(growth),
            "![Seconds against layers](figures/graph_growth.svg)",
            table(
                ["layers", "channels read by all layers", "trace and group, s", "trace, group, L1, cut, s"],
                [[row["depth"], row["channels_read"], row["trace_s"], row["total_s"]] for row in growth["rows"]],
            ),
        ]
    if large:
        parts += [
            "## Large networks",
            LARGE.format(**large),
            circumstances(large),
            table(
                [
                    "network",
                    "parameters",
                    "before, s",
                    "now, s",
                    "time over before",
                    "before, GB",
                    "now, GB",
                    "memory over before",
                ],
                [
                    [f"`{row['network']}`", f"{row['now']['parameters'] / 1e6:.0f}M"]
                    + [cell for key in ("cpu_s", "more_gb") for cell in _both(row, key, large["bar"])]
                    for row in large["rows"]
                ],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _both(row: Row, key: str, bar: float) -> list[str]:
    """Before, now, and their ratio beside its bar."""
    ratio = row[f"{key}_ratio"]
    return [str(row["before"][key]), str(row["now"][key]), f"{ratio:.2f}" + ("" if ratio <= bar else ", **not met**")]


def bwcp(step: dict[str, Any] | None, quality: dict[str, Any] | None, defaults: dict[str, Any] | None) -> str:
    """docs/bwcp.md."""
    parts = ["# BWCP, measured"]
    if quality:
        parts += _quality(quality)
    if defaults:
        parts += _schedules(defaults)
    if step:
        parts += ["## Cost of a training step", STEP.format(**step), circumstances(step)]
        for row in step["rows"]:
            sides = [(name, value) for name, value in row.items() if isinstance(value, dict)]
            parts.append(
                table(
                    [row["what"], "seconds", f"times {row['against']}"],
                    [
                        [
                            name.replace("_", " "),
                            f"{side['median_s']:.4f}",
                            f"{side['ratio']:.2f} ({side['ratio_low']:.2f} to {side['ratio_high']:.2f})",
                        ]
                        for name, side in sides
                    ],
                )
            )
    return "\n\n".join(parts) + "\n"


def _schedules(result: dict[str, Any]) -> list[str]:
    """Schedules beside the default one, where no report looks."""
    rows = sorted(result["rows"], key=lambda row: -row["mean"])
    mean = {row["schedule"]: row["mean"] for row in rows}
    best = rows[0]["schedule"]
    apart = 100 * max(max(row["held_out"]) - min(row["held_out"]) for row in rows)
    behind = 100 * (mean[best] - mean["default"])
    said = "The default has the highest mean" if best == "default" else f"*{best}* has the highest mean"
    lead = "" if best == "default" else f", {behind:.1f} points above the default's"
    changed = [", ".join(f"`{k}: {v}`" for k, v in row["changed"].items()) or "–" for row in rows]
    return [
        "## Where the default schedule comes from",
        SCHEDULES.format(seeds=" and ".join(map(str, result["seeds"]))),
        circumstances(result),
        f"{said}{lead}; the two seeds of one schedule are up to {apart:.1f} points apart: smaller differences say "
        "nothing.",
        table(
            ["schedule", "in place of the defaults", *(f"seed {seed}" for seed in result["seeds"]), "mean"],
            [
                [row["schedule"], what, *(percent(one, 1) for one in row["held_out"]), percent(row["mean"], 1)]
                for row, what in zip(rows, changed, strict=True)
            ],
        ),
    ]


def _quality(result: dict[str, Any]) -> list[str]:
    recipe, rows = result["recipe"], result["rows"]
    methods = {
        name: [row for row in rows if row["method"] == name] for name in dict.fromkeys(r["method"] for r in rows)
    }
    final = {name: statistics.mean(_accuracies(members, "final")) for name, members in methods.items()}
    best = max(final, key=lambda name: final[name])
    spread = {name: _deviation(_accuracies(members, "final")) for name, members in methods.items()}
    told = ", ".join(f"{name} {final[name]:.1f}%" for name in sorted(final, key=lambda name: -final[name]))
    gaps = {name: _gap(members) for name, members in methods.items() if members[0]["accuracy"]["soft"] is not None}
    facts = QUALITY.format(
        model=recipe["model"]["reference"],
        images=recipe["data"]["train_images"],
        validation=recipe["data"]["validation"],
        epochs=max(sum(row["epochs"].values()) for row in rows),
        batch=recipe["data"]["batch_size"],
        budget=recipe["budget"],
        seeds=result["seeds"],
        tested=rows[0]["images"],
        train=recipe["train"]["epochs"],
    )
    apart = ", ".join(f"{gap:.2f} points ({name})" for name, gap in gaps.items())
    low, high = (pick(row["flops"] for row in rows) for pick in (min, max))
    worst = max(row["max_relative_error"] for row in rows)
    return [
        "## Against its baselines on real images",
        facts,
        circumstances(result),
        f"In this setting {best} has the highest mean: {told}. {_apart(methods, best)} Standard deviations over seeds "
        f"are {min(spread.values()):.1f} to {max(spread.values()):.1f} points. The largest difference between soft and "
        f"hard gates at the end of training is {apart}; the cost is {low:.4f} to {high:.4f} of the original in all "
        f"runs; every cut is verified, with a relative error of at most {worst:.0e}.",
        table(
            ["method", "dense", "cut", "after fine-tuning", "FLOPs left", "parameters left", "seconds"],
            [
                [
                    name,
                    *(_mean_and_deviation(members, key) for key in ("dense", "pruned", "final")),
                    percent(statistics.mean(row["flops"] for row in members), 1),
                    percent(statistics.mean(row["params"] for row in members), 1),
                    f"{statistics.mean(row['seconds']['total'] for row in members):.0f}",
                ]
                for name, members in methods.items()
            ],
        ),
    ]


def _apart(methods: dict[str, list[Row]], best: str) -> str:
    """Which methods are beyond chance below the best, paired over seeds."""
    finals = {name: {row["seed"]: row["accuracy"]["final"] for row in rows} for name, rows in methods.items()}
    found = differences(finals, best)
    tests = " and ".join(sorted({row["test"] for row in found.values()}))
    pairs = " or ".join(sorted({str(row["n"]) for row in found.values()}))
    below = [name for name, row in found.items() if row["significant"]]
    tied = [name for name in found if name not in below]
    said = [f"significantly below it: {', '.join(below)}"] if below else []
    said += [f"not significantly different from it: {', '.join(tied)}"] if tied else []
    return f"{'; '.join(said).capitalize()} ({tests}, n = {pairs}, Holm over {len(found)} methods, 5%)."


def _gap(rows: list[Row]) -> float:
    """Points between soft and hard gates, the largest of all seeds."""
    return max(100 * abs(row["accuracy"]["soft"] - row["accuracy"]["hard"]) for row in rows)


def _accuracies(rows: list[Row], key: str) -> list[float]:
    return [100 * row["accuracy"][key] for row in rows if row["accuracy"][key] is not None]


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _mean_and_deviation(rows: list[Row], key: str) -> str:
    values = _accuracies(rows, key)
    return f"{statistics.mean(values):.2f} ± {_deviation(values):.2f}" if values else "-"


def _exponent(rows: list[Row]) -> float:
    """Of the best power law of channels read over depth."""
    depth, read = ([math.log(row[key]) for row in rows] for key in ("depth", "channels_read"))
    return statistics.linear_regression(depth, read).slope


def pages() -> dict[Path, str]:
    found = {
        name: _record.read(path)
        for name in ("census", "census_before", *FROM["graph_speed"], *FROM["bwcp"])
        if (path := _record.RESULTS / f"{name}.json").exists()
    }
    made = {}
    if "census" in found:
        made[DOCS / "census.md"] = census(found["census"], found.get("census_before"))
    if found.keys() & {*FROM["graph_speed"]}:
        made[DOCS / "graph_speed.md"] = graph_speed(*(found.get(name) for name in FROM["graph_speed"]))
    if found.keys() & {*FROM["bwcp"]}:
        made[DOCS / "bwcp.md"] = bwcp(*(found.get(name) for name in FROM["bwcp"]))
    for page in (
        _speed_page,
        _networks_page,
        _one_shot_page,
        _compare_page,
        _leaderboard_page,
        _choosing_page,
        _latency_page,
        _exports_page,
        _yolo_page,
        _macs_page,
        _compress_page,
    ):
        made |= page.pages(DOCS)
    return {path: _footed(path, text) for path, text in made.items()}


def _footed(path: Path, text: str) -> str:
    """A page with the line at its foot; pictures have none."""
    if path.suffix != ".md":
        return text
    if path.stem not in FROM:
        raise SystemExit(f"benchmarks/tables.py: FROM must say which results docs/{path.name} is made from")
    files = [file for file in (_record.RESULTS / f"{name}.json" for name in FROM[path.stem]) if file.exists()]
    part = "The part under *Measured*" if path.stem == "exports" else "This page"
    return f"{text}\n{foot('benchmarks/tables.py', map(_record.read, files), part=part)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a page is stale")
    arguments = parser.parse_args()
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if arguments.check:
        if stale:
            sys.exit("stale, run python benchmarks/tables.py: " + ", ".join(str(path) for path in stale))
        return
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(pages()[path])
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
