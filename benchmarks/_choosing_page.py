"""docs/choosing.md: which method for whom, from what was measured; every figure and every judgement is computed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from _by_method import HALF, Facts, Measured, kernels, measured
from _markdown import circumstances, folded, percent, table

from secateur.methods import METHODS, MethodRow
from secateur.report.page.headline import RUNTIMES

YARDSTICK = "random"
PLAIN = "l1"
#: From here on a method is said to be a poor choice for somebody.
SLOW_SCORES_S = 10.0
SLOW_RUN = 1.25
KEEPS_PARAMETERS = 0.65
BROKEN = 0.5

INTRODUCTION = """\
No method is best for all. It depends on what you have: images, labels, time to train. Look up your case in the first
table. If you would rather not choose, [`compress`](compress.md) tries several and takes the best.

All figures here are ours, of two small networks on CIFAR-10 and short trainings. Before a long training of your own,
compare on a shortened recipe: `secateur compare recipe.yaml --methods l1,bwcp,scratch --seeds 3` ([comparing
methods](comparing.md))."""

LEGEND = """\
*Cut*, *repaired*: test accuracy of a ResNet-20 on CIFAR-10 at half the FLOPs, without any training after the cut (dense
{dense:.1f}%; the standard error is about {error:.1f} points), before and after the best repair of those tried
([straight after the cut](one_shot.md)). *Plan*: seconds to look at {images:,} images, score and plan there. *Trained*:
test accuracy of a ResNet-8 at half the FLOPs after {epochs} epochs in all, mean and standard deviation over seeds
([methods compared](compare.md)); *parameters* left and seconds of the *run* are of the same runs, which shared the
machine. {board}What a training step costs: [what methods cost](speed.md). – is not measured."""

BOARD = """\
*ResNet-20*: that network on all of CIFAR-10, at half the FLOPs after {epochs} epochs in all, of one seed unless it says
more ([leaderboard](leaderboard.md)); the test images alone leave a standard error of {error:.1f} points. """

ADVICE = """\
- Decide on the budget first, and on what it is of: [budgets and alignment](budgets.md); what a budget of FLOPs does
  not buy: [why it is or is not faster](why-faster.md).
- Straight after the cut most networks are unusable. Repair the network ([repairs](repairs.md)), fine-tune it, or
  both. Repairs need some images, but no labels.
- A narrow network trained from new weights (`scratch`) is the baseline wherever there is time for a whole
  training. Pruning pays where trained weights are there already, or where the data are not.
- Differences of one or two points are within the standard deviation over seeds here.
- Most of the papers train for a hundred epochs and more, we for {epochs:.0f}. What a method gains in a long training is
  not measured here; nor are large networks and images."""


def pages(docs: Path) -> dict[Path, str]:
    """The page, of the results there are."""
    found = measured()
    if not found.compared or not found.one_shot:
        return {}
    epochs = max(m["values"]["epochs.total"]["mean"] for m in found.compared["means"])
    images = found.one_shot["images"]
    known = {"dense": 100 * found.dense, "error": 100 * found.error, "images": images, "epochs": f"{epochs:.0f}"}
    legend = LEGEND.format(**known, board=_board(found))
    parts = ["# Choosing a method", INTRODUCTION]
    parts += ["## By what you have", table(["you have", "take", "why"], situations(found), words=True)]
    parts += ["## By method", legend, *by_method(found)]
    parts += ["## Poor choices", POOR, folded("Where each method is a poor choice", _poor_table(found))]
    parts += ["## What no table says", ADVICE.format(epochs=epochs)]
    parts += [f"Straight after the cut: {circumstances(found.one_shot)}"]
    return {docs / "choosing.md": "\n\n".join(parts) + "\n"}


# ------------------------------------------------------------------------------------------------ by what you have


def situations(found: Measured) -> list[list[str]]:
    """Rows of the first table: what one has, what to take, and by which figures."""
    rows = []
    weights = _top(found, lambda row, facts: {"none": facts.top1.get("none")} if row.needs == "nothing" else {})
    if weights:
        (name, _), top1 = weights[0]
        verdict = "**unusable as it is**: fine-tune it" if top1 < BROKEN * found.dense else "usable"
        rows.append(
            [
                "trained weights, nothing else",
                f"{_link(name)}, and train on",
                f"{_p(top1)} straight after the cut, {verdict}",
            ]
        )
    images = _top(found, lambda row, facts: facts.top1 if row.needs != "training" or facts.top1 else {})
    if images and found.one_shot:
        rows.append([f"{found.one_shot['images']:,} images of the task, no training", *_best(images, found.error)])
        quick = [each for each in images if (found.of(each[0][0]).score_s or 99) < 1]
        if quick:
            rows.append(["the same, and a plan within a second (a repair comes on top)", *_best(quick, found.error)])
    for title, wanted in TRAINED.items():
        ranked = _compared(found, wanted)
        if ranked:
            name, why = _first(ranked)
            rows.append([title, name, "; ".join([why, *_board_says(found, wanted, ranked[0][0])])])
    return rows


TRAINED = {
    "trained weights and a short fine-tuning": lambda row: row.acts == "after training",
    "trained weights, and the method may act in fine-tuning": lambda row: (
        row.acts == "while training" and row.begins == "weights"
    ),
    "time for a whole training": lambda row: row.begins != "weights",
}


def _top(found: Measured, of) -> list[tuple[tuple[str, str], float]]:  # type: ignore[no-untyped-def]
    """((method, repair), top-1) of what a situation admits, best first."""
    listed = [
        ((row.name, repair), top1)
        for row in METHODS
        for repair, top1 in of(row, found.of(row.name)).items()
        if top1 is not None
    ]
    return sorted(listed, key=lambda each: (-each[1], each[0]))


def _best(ranked: list[tuple[tuple[str, str], float]], error: float) -> list[str]:
    """The first, and those that cannot be told from it (within two standard deviations)."""
    (first, top1), *others = ranked
    alike = [_pair(*names) for names, value in others if value >= top1 - 2 * error]
    also = f"; not significantly worse: {', '.join(alike[:5])}" if alike else ""
    return [_pair(*first), f"{_p(top1)} straight after the cut{also}"]


def _compared(found: Measured, wanted) -> list[tuple[MethodRow, float, float]]:  # type: ignore[no-untyped-def]
    """(method, mean, deviation) of the comparison at half the FLOPs, best first."""
    rows = [row for row in METHODS if wanted(row) and found.of(row.name).final() is not None]
    listed = [(row, found.of(row.name).final() or 0.0, _deviation(found.of(row.name))) for row in rows]
    return sorted(listed, key=lambda each: (-each[1], each[0].name))


def _first(ranked: list[tuple[MethodRow, float, float]]) -> list[str]:
    (row, mean, sd), *others = ranked
    alike = [_link(other.name) for other, value, apart in others if value + 2 * max(sd, apart) >= mean]
    also = f"; within two standard deviations: {', '.join(alike)}" if alike else ""
    return [_link(row.name), f"{_p(mean)} with equal epochs{also}"]


def _board_says(found: Measured, wanted, chosen: MethodRow) -> Iterable[str]:  # type: ignore[no-untyped-def]
    """Who is first on the leaderboard among these, and where the one that is named above stands there."""
    ranked = sorted(
        (row for row in METHODS if wanted(row) and found.of(row.name).board),
        key=lambda row: (-_on_board(found.of(row.name)), row.name),
    )
    if ranked:
        named = dict.fromkeys([*ranked[:3], *(row for row in ranked if row is chosen)])
        told = ", ".join(f"{_link(row.name)} {_standing(found.of(row.name))}" for row in named)
        yield f"on the [leaderboard](leaderboard.md), of {len(ranked)} measured: {told}"


# ------------------------------------------------------------------------------------------------ by method

HEAD = "method,cut,repaired,trained,ResNet-20,parameters,plan (s),run (s),needs,acts".split(",")


def _board(found: Measured) -> str:
    if not found.board:
        return ""
    recipe, plain = found.board["recipe"], statistics.mean(found.of(PLAIN).board)
    error = 100 * (plain * (1 - plain) / found.board["images"]) ** 0.5
    return BOARD.format(epochs=recipe["train"]["epochs"] + recipe["finetune"]["epochs"], error=error)


def by_method(found: Measured) -> list[str]:
    """A row for every method that was measured, those that end best when trained above; the names of the others."""
    ranked = sorted(
        (row for row in METHODS if _figures(found.of(row.name))), key=lambda row: _order(found.of(row.name))
    )
    others = [_link(row.name) for row in METHODS if row not in ranked]
    shown = [row for row in ranked if _in_full(found.of(row.name))]
    alone = [row for row in ranked if row not in shown]
    parts = [table(HEAD, [_row(row, found) for row in shown])]
    if alone:
        told = [[_link(row.name), _standing(found.of(row.name)), row.needs, row.acts] for row in alone]
        parts += ["On the leaderboard alone:", table(["method", "ResNet-20", "needs", "acts"], told)]
    return [*parts, *([f"Not in these measurements: {', '.join(others)}."] if others else [])]


def _figures(facts: Facts) -> bool:
    return bool(facts.board) or _in_full(facts)


def _in_full(facts: Facts) -> bool:
    return bool(facts.top1) or facts.final() is not None


def _standing(facts: Facts) -> str:
    return _p(_on_board(facts) or None) + (f" ({len(facts.board)} seeds)" if len(facts.board) > 1 else "")


def _order(facts: Facts) -> tuple[float, float, float]:
    return -(facts.final() or 0.0), -_on_board(facts), -max(facts.top1.values(), default=0.0)


def _on_board(facts: Facts) -> float:
    return statistics.mean(facts.board) if facts.board else 0.0


def _row(row: MethodRow, found: Measured) -> list[str]:
    facts = found.of(row.name)
    mended = facts.mended()
    final = facts.final()
    share, total = facts.value("params.share"), facts.value("seconds.total")
    return [
        _link(row.name),
        _p(facts.top1.get("none")),
        "–" if mended is None else f"{_p(mended[1])} `{mended[0]}`",
        "–" if final is None else f"{100 * final:.1f}{_apart(facts)}",
        _standing(facts),
        "–" if share is None else percent(share, 1),
        "–" if facts.score_s is None else f"{facts.score_s:.1f}",
        "–" if total is None else f"{total:.0f}",
        row.needs,
        row.acts,
    ]


def _apart(facts: Facts) -> str:
    return f" ± {100 * _deviation(facts):.1f}" if len(facts.means[HALF]["seeds"]) > 1 else " (one seed)"


# ------------------------------------------------------------------------------------------------ poor choices

POOR = f"""\
Every clause is a rule applied to what a method needs and to the figures: plans slower than {SLOW_SCORES_S:.0f} s for a
ResNet-20; a run {SLOW_RUN:g} times as long as that of `{PLAIN}`; more than {KEEPS_PARAMETERS:.0%} of the parameters
left at half the FLOPs; less than {BROKEN:.0%} of the dense accuracy straight after the cut; not significantly better
than random channels (`{YARDSTICK}`); not significantly faster than the dense network."""


def _poor_table(found: Measured) -> str:
    rows = [[_link(row.name), "; ".join(poor(row, found)) or "nothing measured speaks against it"] for row in METHODS]
    return table(["method", "a poor choice where"], rows, words=True)


def poor(row: MethodRow, found: Measured) -> Iterable[str]:
    """Where a method is a poor choice, by what it needs and by what was measured."""
    facts, chance, plain = (found.of(name) for name in (row.name, YARDSTICK, PLAIN))
    if row.acts == "while training":
        start = "from new weights" if row.begins == "new" else "on trained weights"
        once = "; it can also score a trained network once" if facts.top1 else ""
        yield f"there is no time to train with the method at work ({start}{once})"
    elif row.acts == "before training":
        yield "weights are there already: it throws them away"
    elif row.needs == "calibration":
        yield "there are no images of the task"
    if row.name == YARDSTICK:
        yield "anything better is known: it is the baseline"
        return
    alone, mended = facts.top1.get("none"), facts.mended()
    if alone is not None and alone < BROKEN * found.dense:
        yield f"nothing follows the cut ({_p(alone)} straight after it)"
    by_chance = chance.top1.get(mended[0]) if mended else None
    if mended and by_chance is not None and mended[1] <= by_chance + 2 * found.error:
        told = f"({_p(mended[1])} against {_p(by_chance)})"
        yield f"only a repair follows: with `{mended[0]}` random channels do as well {told}"
    final, yard = facts.final(), chance.final()
    if final is not None and yard is not None and final <= yard + max(_deviation(facts), _deviation(chance)):
        yield f"the training is as short as ours: {_p(final)}, random channels {_p(yard)}"
    if facts.board and chance.board and _on_board(facts) <= _on_board(chance):
        told = f"{_p(_on_board(facts))}, random channels {_p(_on_board(chance))}"
        yield f"a network like ResNet-20 is trained as on the leaderboard: {told}{_seeds(facts)}"
    timed = [each for by_runtime in facts.speed for each in by_runtime.values()]
    if timed and all(each["low"] <= 1 for each in timed):
        told = ", ".join(f"{each['ratio']:.2f} on {RUNTIMES.get(name, name)}" for name, each in facts.speed[0].items())
        yield f"speed counts: at half the FLOPs it is not significantly faster on any runtime ({told})"
    share = facts.value("params.share")
    if share is not None and share > KEEPS_PARAMETERS:
        yield f"size counts: {percent(share, 1)} of the parameters stay"
    if facts.score_s is not None and facts.score_s > SLOW_SCORES_S:
        yield f"plans are wanted in seconds ({facts.score_s:.0f} s)"
    total, usual = facts.value("seconds.total"), plain.value("seconds.total")
    if total and usual and total > SLOW_RUN * usual:
        yield f"time is short: {total / usual:.1f} times the seconds of `{PLAIN}`"
    yield from _on_networks(facts, plain)
    if not (_figures(facts) or facts.networks or (row.name == "dkp" and kernels())):
        yield "figures are wanted: none have been measured yet"


def _seeds(facts: Facts) -> str:
    return " (one seed)" if len(facts.board) == 1 else ""


def _on_networks(facts: Facts, plain: Facts) -> Iterable[str]:
    usual = {row["network"]: row.get("total_s") for row in plain.networks}
    for row in facts.networks:
        name = row["network"].rpartition(":")[2]
        if "error" in row:
            yield f"the network is like {name}: it failed"
        elif usual.get(row["network"]) and row["total_s"] > 5 * usual[row["network"]]:
            yield f"the network is like {name}: {row['total_s']:.0f} s where `{PLAIN}` took {usual[row['network']]:.0f}"


# ------------------------------------------------------------------------------------------------ words


def _deviation(facts: Facts) -> float:
    """Over seeds; where there is one, that of the others (their mean) would be a guess: nothing."""
    found = facts.means[HALF]["values"]["accuracy.final"]["sd"] if HALF in facts.means else None
    return found or 0.0


def _p(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _link(name: str) -> str:
    return f"[`{name}`](methods/{name}.md)"


def _pair(name: str, repair: str) -> str:
    return _link(name) if repair == "none" else f"{_link(name)} with [`{repair}`](repairs.md#{repair})"
