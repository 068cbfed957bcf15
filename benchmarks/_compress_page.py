"""docs/compress_bench.md: `compress` beside single methods with their defaults, in the same time."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import _record
from _markdown import Row, circumstances, folded, percent, table

from secateur.compare.paired import differences

#: The networks, as their result files are named, with what is said of each.
NETWORKS = {
    "resnet20": ("ResNet-20 on CIFAR-10", "The base of the [leaderboard](leaderboard.md), and its training images."),
    "vgg16_bn": (
        "VGG-16-BN on CIFAR-10",
        "A quarter of the usual width, as this was measured on one core, 8 epochs. At first it ended 2.3 points "
        "below LAMP, for there was time for one candidate alone; since then there are two, LAMP the second.",
    ),
    "photographs": (
        "MobileNetV2 on photographs",
        "torchvision's ImageNet weights; 400 photographs to learn from, 200 others to test on.",
    ),
    "segmenter": (
        "A segmenter",
        "A small encoder and decoder for discs and squares in noise: 2,000 images of 48 x 48 pixels to learn from, "
        "1,000 others to test on. It knows its training images better than new ones, as nothing is augmented. "
        "An earlier `compress` was 1.5 points below the best method here, so that its use of the time was looked into; "
        "what it is now was chosen on other networks.",
    ),
}
INTRODUCTION = """\
Each has the same network, training images and seconds. A single method prunes with its defaults and then trains (SGD,
rate 0.01, a cosine) for the rest of the time; [`compress`](compress.md) searches, and trains for what is left. Both see
the same images, a part of which is held out; test images are looked at once, in the end. What changed in `compress`
because of earlier figures of these networks is said with each; else nothing was chosen by them. Differences are
`compress` less the method, in points, with their 95% interval over seeds (paired t); the best single method is the one
with the best mean, known only afterwards."""
LOSS = 1.0  # points that it may be worse by


STRANGER = """\
What somebody has who has read nothing but the README: `net.py`, weights from a loop of their own, and {images:,} images
of CIFAR-10 in a folder for each class, of which every fifth is kept for testing. Three commands:"""


def pages(docs: Path) -> dict[Path, str]:
    """The page, if there are results."""
    found = {name: _record.read(path) for name in NETWORKS if (path := _path(name)).exists()}
    if not found:
        return {}
    parts = ["# `compress` in the time of a single method", INTRODUCTION, _summary(found)]
    for name, result in found.items():
        parts += _section(name, result)
    if (own := _record.RESULTS / "stranger.json").exists():
        parts += _stranger(_record.read(own))
    return {docs / "compress_bench.md": "\n\n".join(parts) + "\n"}


def _path(name: str) -> Path:
    return _record.RESULTS / f"compress_bench_{name}.json"


def finals(result: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Figures in points, by method and seed."""
    found: dict[str, dict[int, float]] = {}
    for row in result["rows"]:
        found.setdefault(row["name"], {})[row["seed"]] = 100 * row["figure"]
    return found


def lead(result: dict[str, Any]) -> tuple[str, float]:
    """The best single method, and by how many points the mean of `compress` is above its."""
    means = {name: statistics.mean(figures.values()) for name, figures in finals(result).items()}
    own = means.pop("compress")
    best = max(means, key=lambda name: means[name])
    return best, own - means[best]


def _summary(found: dict[str, dict[str, Any]]) -> str:
    leads = {name: lead(result) for name, result in found.items()}
    good = sum(gap >= 0 for _, gap in leads.values())
    worst = min(leads, key=lambda name: leads[name][1])
    pairs = [differences(finals(found[name]), "compress")[best] for name, (best, _) in leads.items()]
    tested = [pair for pair in pairs if pair["high"] is not None]
    below = sum(pair["high"] < 0 for pair in tested)
    missing = [NETWORKS[name][0] for name in NETWORKS if name not in found]
    said = (
        f"In {good} of {len(leads)} it is at least as good as the best single method; it is "
        + (
            f"nowhere more than {LOSS:g} point worse."
            if leads[worst][1] >= -LOSS
            else f"**{-leads[worst][1]:.1f} points worse on {NETWORKS[worst][0]}**."
        )
        + f" Of the {len(tested)} differences with several seeds {below or 'none'} is below zero by more than chance."
        + (f" Not measured: {', '.join(missing)}." if missing else "")
    )
    rows = [
        [NETWORKS[name][0], f"`{best}`", f"{gap:+.1f}", *_interval(found[name], best)]
        for name, (best, gap) in leads.items()
    ]
    return said + "\n\n" + table(["network", "best single method", "`compress`, points above it", "95% interval"], rows)


def _interval(result: dict[str, Any], name: str) -> list[str]:
    pair = differences(finals(result), "compress")[name]
    return ["one seed" if pair["low"] is None else f"{pair['low']:+.1f} to {pair['high']:+.1f}"]


def _section(name: str, result: dict[str, Any]) -> list[str]:
    title, about = NETWORKS[name]
    figures, rows = finals(result), result["rows"]
    means = {each: statistics.mean(own.values()) for each, own in figures.items()}
    budgets = sorted({f"{row['budget']}, {row['time']:.0f} s each" for row in rows})
    listed = [
        [
            f"`{each}`", f"{means[each]:.2f}", " ".join(f"{figures[each][seed]:.1f}" for seed in sorted(figures[each])),
            "" if each == "compress" else f"{means['compress'] - means[each]:+.2f}",
            *([""] if each == "compress" else _interval(result, each)),
            percent(statistics.mean(row["flops"] for row in rows if row["name"] == each), 1),
            f"{statistics.mean(row['took'] for row in rows if row['name'] == each):.0f}",
        ]
        for each in sorted(means, key=lambda each: -means[each])
    ]  # fmt: skip
    head = ["", f"{result['headline']} %", "by seed", "`compress` above it", "95% interval", "MACs left", "seconds"]
    return [
        f"## {title}",
        f"{about} Budget {'; '.join(budgets)}. The original has {100 * result['original']:.1f}%.",
        circumstances(result),
        table(head, listed),
        folded("What compress said", *_said(rows)),
    ]


def _said(rows: list[Row]) -> list[str]:
    return [
        f"Seed {row['seed']}: " + " ".join(line for line in row["said"] if not line.startswith("MIoU before"))
        for row in rows
        if row["name"] == "compress"
    ]


def _stranger(result: dict[str, Any]) -> list[str]:
    accuracy, told = result["accuracy"], result["compress"]
    lines = [[f"`{row['command']}`", f"{row['seconds']:.0f}"] for row in result["rows"]]
    speed = next(line for line in told["said"] if line.startswith("Measured on"))
    before, after = (f"{100 * accuracy[when]:.1f}%" for when in ("before", "after"))
    return [
        "## From a clone to a faster network",
        STRANGER.format(**result),
        circumstances(result),
        table(["command", "seconds"], lines),
        f"On {result['tested']:,} test images that neither the loop nor Secateur was given: {before} before, {after} "
        f"after. {speed}",
    ]
