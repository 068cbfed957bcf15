"""docs/one_shot.md and its charts: accuracy straight after the cut, by criterion, repair and budget."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _record
from _charts import GREY, prepare
from _markdown import Row, circumstances, folded, table

TITLES = {
    "cifar10": "## ResNet-20 on CIFAR-10",
    "vgg16_bn": "## VGG-16-BN, a network without residuals",
    "resnet20": "## ResNet-20 at 35% of the FLOPs",
    "photographs": "## MobileNetV2 on photographs",
    "mobilenet_v2": "## MobileNetV2, calibrated on 400 photographs",
    "efficientnet_lite0": "## EfficientNet-Lite0, calibrated on 400 photographs",
}
CIFAR = """\
ResNet-20, trained for 20 epochs (`recipes/cifar10-resnet20-hour.yaml`): {dense} of the images below. Scores and repairs
see {images:,} training images; tested on {tested:,} test images drawn with seed 0, so a figure is known to about
{error:.1f} points. Nothing is trained after the cut."""
VGG = """\
VGG-16-BN of a quarter of the width, trained for 8 epochs (`benchmarks/recipes/one-shot-vgg16_bn.yaml`): {dense} of the
images below. Scores and repairs see {images:,} training images; tested on {tested:,} test images drawn with seed 0, so
a figure is known to about {error:.1f} points. Nothing is trained after the cut."""
LOW = """\
The base network of the [leaderboard](leaderboard.md), {dense} of {tested:,} test images, so a figure is known to about
{error:.1f} points. No labels are looked at. `cp` and `least_squares` see 5,000 training images, which is their setting;
`distillation:steps=3500:batch=64:images=45000` sees all {images:,}, about five times: that is a training, though
without labels and with the statistics of norms as they were."""
PHOTOGRAPHS = """\
torchvision's MobileNetV2 with its ImageNet weights on {tested} photographs in two halves: one half is shown to
criteria and repairs, the other tested, and the other way round; {dense}. So few images tell a broken network from a
sound one, and no more: a figure is known to about {error:.0f} points."""

PRETRAINED = """\
ImageNet weights; {images} photographs of as many classes calibrate, {tested} of other classes are tested; {dense}. They
are very probably training images of the network, so that drops tell something and accuracies do not. A figure is known
to about {error:.0f} points, a difference of two networks on the same images better than that."""
ORDERS = """\
 Nor can norms tell which channels of a group go. `cap@measured` lets those go without which the layers that read the
group lose least, once the others have taken over by the same least squares that follow; FPGM looks at the filters that
make a channel, and one that is far from all others may make what the others can rebuild."""
TEXTS = {"cifar10": CIFAR, "vgg16_bn": VGG, "resnet20": LOW, "photographs": PHOTOGRAPHS}


def pages(docs: Path) -> dict[Path, str]:
    """The page, of the results there are; the charts are written by `draw`."""
    parts = ["# Straight after the cut"]
    found = False
    for setup, title in TITLES.items():
        path = _record.RESULTS / f"one_shot_{setup}.json"
        if path.exists():
            found = True
            parts += [title, *_section(setup, _record.read(path))]
    return {docs / "one_shot.md": "\n\n".join(parts) + "\n"} if found else {}


def _section(setup: str, result: dict[str, Any]) -> list[str]:
    dense = statistics.mean(result["dense"].values())
    error = 100 * (dense * (1 - dense) / result["tested"]) ** 0.5
    about = TEXTS.get(setup, PRETRAINED).format(
        dense=f"dense {100 * dense:.1f}%", images=result["images"], tested=result["tested"], error=error
    )
    failed = {(r["method"], r["error"]) for r in result["rows"] if "error" in r}
    budgets = budgets_of(result)
    means = averages(result["rows"])
    parts = [about, circumstances(result)]
    if len(budgets) == 1:
        parts.append(_at_one(means, budgets[0]))
        return [*parts, *_halves(result["rows"]), *_failed(failed)]
    parts.append(f"![Top-1 against FLOPs removed](figures/one_shot_{setup}.svg)")
    best = _best_repair(means)
    for repair in dict.fromkeys(row["repair"] for row in result["rows"]):
        order = sorted(
            {method for method, mended, _ in means if mended == repair}, key=lambda m: (_rank(means, m, repair), m)
        )
        lines = [[f"`{name}`", *(_percent(means.get((name, repair, left))) for left in budgets)] for name in order]
        title = "Without repair" if repair == "none" else f"With the repair {repair}"
        title += ": top-1 in percent, by FLOPs removed"
        rows = table(["criterion", *(f"{100 * (1 - left):.0f}%" for left in budgets)], lines)
        parts += [f"### {title}", rows] if repair in ("none", best) else [folded(title, rows)]
    parts += [*_halves(result["rows"]), *_failed(failed)]
    seconds = {(r["method"], r["left"]): r["score_s"] for r in result["rows"] if "score_s" in r}
    half = [[f"`{name}`", time] for (name, left), time in sorted(seconds.items(), key=lambda i: i[1]) if left == 0.5]
    if half:
        parts.append(
            folded("Seconds to gather statistics, score and plan, at half the FLOPs", table(["criterion", "s"], half))
        )
    return parts


def budgets_of(result: Mapping[str, Any]) -> list[float]:
    """The shares left that were measured, the largest first."""
    return sorted({row["left"] for row in result["rows"]}, reverse=True)


def _at_one(means: Mapping[tuple[str, str, float], float], left: float) -> str:
    """A line for every criterion and repair at the only budget, the best first."""
    order = sorted(means, key=lambda key: (-means[key], key))
    lines = [[f"`{name}`", f"`{repair}`", _percent(means[name, repair, left])] for name, repair, _ in order]
    return table(["criterion", "repair", f"without {100 * (1 - left):.0f}% of the FLOPs"], lines)


def _failed(failed: set[tuple[str, str]]) -> list[str]:
    rows = sorted([f"`{name}`", error] for name, error in failed)
    return ["### Not possible", table(["method", "why"], rows)] if rows else []


def _best_repair(means: Mapping[tuple[str, str, float], float]) -> str:
    """The repair with the highest mean top-1 over methods and budgets."""
    found: dict[str, list[float]] = {}
    for (_, repair, _), top1 in means.items():
        found.setdefault(repair, []).append(top1)
    return max(found, key=lambda repair: statistics.mean(found[repair]), default="none")


def _halves(rows: list[Row]) -> list[str]:
    """What the allocator `measured` has seen with each order of channels, and what it and one threshold leave."""
    measured = {row["method"]: row for row in rows if "half" in row}
    if not measured:
        return []
    best = max(measured, key=lambda name: max(r.get("top1", 0.0) for r in rows if r["method"] == name))
    about = measured[best]
    names = [best, *(name for name in measured if name != best)]
    level = next((r for r in rows if "@" not in r["method"] and r["left"] == about["left"] and "kept" in r), None)
    groups = sorted(about["half"], key=lambda name: -about["half"][name])
    lines = [
        [f"`{group}`"]
        + [f"{measured[name]['half'][group]:.3f}" for name in names]
        + [f"{100 * row['kept'][group]:.0f}%" for row in (about, level) if row]
        for group in groups
    ]
    head = ["group", *(f"change with `{name}`" for name in names)]
    head += [f"`{row['method']}` keeps" for row in (about, level) if row]
    factor = about["half"][groups[0]] / max(about["half"][groups[-1]], 1e-6)
    text = (
        f"How much the answers change, as a share of their energy, when one group alone loses half its channels and "
        f"what reads it is compensated, and what is kept at {100 * about['left']:.0f}% of the FLOPs. Groups differ "
        f"by a factor of {factor:.0f}; one threshold over norms of weights cannot know."
    )
    return ["### Why measuring helps", text + (ORDERS if "cap@measured" in measured else ""), table(head, lines)]


def averages(rows: list[Row]) -> dict[tuple[str, str, float], float]:
    """Mean top-1 over the folds of a set-up, by method, repair and share left."""
    found: dict[tuple[str, str, float], list[float]] = {}
    for row in rows:
        if "top1" in row:
            found.setdefault((row["method"], row["repair"], row["left"]), []).append(row["top1"])
    return {key: statistics.mean(values) for key, values in found.items()}


def _rank(means: Mapping[tuple[str, str, float], float], method: str, repair: str) -> float:
    """Less is better: minus the mean top-1 over the budgets that all methods have."""
    names = {name for name, _, _ in means}
    common = {left for _, _, left in means if all((name, repair, left) in means for name in names)}
    values = [v for (n, r, left), v in means.items() if (n, r) == (method, repair) and left in (common or {left})]
    return -statistics.mean(values)


def _percent(top1: float | None) -> str:
    return "-" if top1 is None else f"{100 * top1:.1f}"


def draw(setup: str, result: dict[str, Any], path: Path) -> None:
    """One panel a repair, one line a criterion; the same order of colours in all."""
    plt = prepare()
    means = averages(result["rows"])
    repairs = list(dict.fromkeys(row["repair"] for row in result["rows"]))
    names = sorted({name for name, _, _ in means}, key=lambda name: (_rank(means, name, repairs[0]), name))
    plt.rcParams["font.size"] = 11.5  # on a phone, where the picture has 360 points, letters stay readable
    figure, axes = plt.subplots(
        len(repairs), figsize=(5, 2.6 * len(repairs) + 1.8), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    colours = plt.get_cmap("tab20")
    for panel, repair in zip(axes.flat, repairs, strict=True):
        for number, name in enumerate(names):
            points = sorted(
                (100 * (1 - left), 100 * v) for (n, r, left), v in means.items() if (n, r) == (name, repair)
            )
            if points:
                x, y = zip((0.0, 100 * statistics.mean(result["dense"].values())), *points, strict=True)
                style: dict[str, Any] = {"color": GREY, "linestyle": "--"} if name == "random" else {}
                panel.plot(x, y, label=name, linewidth=1.3, **{"color": colours(number % 20), **style})
        panel.set(title="no repair" if repair == "none" else repair.replace("_", " "), xlim=(0, None), ylim=(0, 100))
        panel.spines[["top", "right"]].set_visible(False)
    axes.flat[-1].set_xlabel("FLOPs removed, %")
    figure.supylabel("top-1 straight after the cut, %", fontsize=11.5)
    handles = axes.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", frameon=False, ncols=2, handlelength=1.4, columnspacing=1.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
