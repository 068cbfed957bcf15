"""docs/leaderboard.md: every method on the whole of CIFAR-10, network by network, and what is still to be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _record
from _markdown import circumstances, table

from secateur.report.board.said import summary
from secateur.report.board.tables import TIMES, Table, kinds, legend, mean_table, time_table
from secateur.report.page import words
from secateur.report.page.fairness import fairness

YARDSTICK = "random"
SETUPS = ("resnet20", "resnet56", "vgg16_bn", "densenet40")

INTRODUCTION = """\
Every method of the registry on all training images of CIFAR-10: one base network a seed, trained with a one-cycle
schedule, and as many more epochs for every method, as [comparing methods](comparing.md) says; the whole network,
`dense`, is trained for as long. Settings of methods are their defaults; BWCP's were chosen on another network, other
images and seeds ([where they come from](bwcp.md#where-the-default-schedule-comes-from)). The first rows of `cpmc` and
`acp` here were the reason to look for other defaults; these were chosen by held-out training images and another seed
([their](methods/cpmc.md#measured) [pages](methods/acp.md#measured)), and their rows measured anew. Accuracies are of
all 10,000 test images. One seed of every method comes first, three of those whose place is in question follow.
Measure it with `make leaderboard SETUP=resnet20`, in pieces with `MINUTES=7`."""

FACTS = """\
{model}: {macs} MACs, {params} parameters. {base} epochs of base training and {more} more, batches of {batch};
{validation:.0%} of the training images are held out and not used."""


def pages(docs: Path) -> dict[Path, str]:
    """The page, also while little or nothing is measured."""
    parts = ["# Leaderboard", INTRODUCTION]
    for setup in SETUPS:
        path = _record.RESULTS / "leaderboard" / f"{setup}.json"
        name = words.network(f"zoo:{setup}")
        if path.is_file():
            parts += [f"## {name}", *section(_record.read(path))]
        else:
            parts += [f"## {name}", f"Nothing is measured yet: `make leaderboard SETUP={setup}`."]
    return {docs / "leaderboard.md": "\n\n".join(parts) + "\n"}


def section(result: dict[str, Any]) -> list[str]:
    """What is known of one network."""
    recipe = result["recipe"]
    facts = FACTS.format(
        model=words.network(recipe["model"]["reference"]),
        macs=words.count(result["dense"]["macs"]),
        params=words.count(result["dense"]["params"]),
        base=recipe["train"]["epochs"],
        more=recipe["finetune"]["epochs"],
        batch=recipe["data"]["batch_size"],
        validation=recipe["data"]["validation"],
    )
    alone = {"device": result["machine"], "threads": max(result["threads"], default=1), "python": result["python"][0]}
    parts = [f"{facts} {_bases(result)}", circumstances({**result, **alone})]
    if result["rows"]:
        told = [*summary(result), *_below(result), *_precisions(result), *_sessions(result)]
        parts += ["\n".join(f"- {line}" for line in told)]
        for kind, budgets in kinds(result).items():
            for budget in budgets:
                parts += [f"### {kind}: {budget}", _grid(_without(mean_table(result, budget), "proof"))]
        parts += [legend(result), "### Seconds", _grid(time_table(result)), TIMES]
        parts += ["### What is held equal", "\n".join(f"- {line}" for line in fairness(result))]
    missing = _missing(result)
    return [*parts, "### What is missing", "\n".join(f"- {line}" for line in missing)] if missing else parts


def _below(result: dict[str, Any]) -> list[str]:
    """Which methods end below random channels, at every budget that has these, by the seeds that both have."""
    said = []
    for budget in dict.fromkeys(row["budget"] for row in result["rows"]):
        finals: dict[str, dict[int, float]] = {}
        for row in result["rows"]:
            if row["budget"] == budget:
                finals.setdefault(row["label"], {})[row["seed"]] = row["accuracy"]["final"]
        yard = finals.pop(YARDSTICK, {})
        behind = []
        for label, own in finals.items():
            both = own.keys() & yard.keys()
            mean, chance = (sum(of[seed] for seed in both) / max(len(both), 1) for of in (own, yard))
            behind += [(mean - chance, label, mean, chance)] if mean < chance else []
        named = (
            f"[{label}](methods/{label}.md) {100 * mean:.2f}% (random {100 * chance:.2f}%)"
            for _, label, mean, chance in sorted(behind, reverse=True)
        )
        # at most that of accuracies on different images: on the same ones they rise and fall together
        error = max((100 * (2 * each[3] * (1 - each[3]) / result["images"]) ** 0.5 for each in behind), default=0.0)
        if behind:
            said.append(
                f"Below random channels at {budget}, by the seeds that both have: {', '.join(named)}. The test images "
                f"alone leave a difference a standard error of up to {error:.1f} points."
            )
    return said


def _precisions(result: dict[str, Any]) -> list[str]:
    """Which runs were computed otherwise than most; the engine takes the precision in which a machine trains faster."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        runs.setdefault(row["device"], []).append(row)
    most, *others = sorted(runs, key=lambda device: -len(runs[device]))
    return [f"Trained on {device}: {_named(runs[device])}; all others on {most}." for device in others]


def _sessions(result: dict[str, Any]) -> list[str]:
    """Which networks were timed together: ratios of different sessions are of different minutes of the machine."""
    together: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        if row["latency"]:
            dense = str({engine: timed["dense_ms"] for engine, timed in row["latency"].items()})
            together.setdefault(dense, []).append(row)
    others = sorted(together.values(), key=lambda runs: -len(runs))[1:]
    if not others:
        return []
    return [
        f"Latencies are of {len(together)} sessions, in each of which all networks and the dense one took turns: "
        f"{'; '.join(map(_named, others))}; and all others."
    ]


def _named(runs: list[dict[str, Any]]) -> str:
    """All of these runs, by their seeds."""
    seeds = dict.fromkeys(row["seed"] for row in runs)
    parts = ((", ".join(row["label"] for row in runs if row["seed"] == seed), seed) for seed in seeds)
    return ", ".join(f"{labels} (seed {seed})" for labels, seed in parts)


def _bases(result: dict[str, Any]) -> str:
    """How good the networks are that are pruned."""
    told = [f"{100 * base['accuracy']:.2f}% (seed {base['seed']})" for base in result["bases"]]
    return f"Base networks: {words.several(told)}." if told else "No base network is trained yet."


def _missing(result: dict[str, Any]) -> list[str]:
    """What is still to do, a line for every seed and budget, and what failed, with its reason."""
    rounds: dict[tuple[str, int], list[str]] = {}
    for row in result["missing"]:
        rounds.setdefault((row["budget"], row["seed"]), []).append(row["label"])
    to_do = [f"{budget}, seed {seed}: {', '.join(labels)}" for (budget, seed), labels in rounds.items()]
    failed = [f"{row['label']}, seed {row['seed']}, {row['budget']} failed: {row['said']}" for row in result["failed"]]
    return [*to_do, *failed]


def _grid(given: Table) -> str:
    return table(list(given.head), given.rows)


def _without(given: Table, column: str) -> Table:
    at = given.head.index(column)
    head, *rows = (row[:at] + row[at + 1 :] for row in (given.head, *given.rows))
    return Table(head, tuple(rows))
