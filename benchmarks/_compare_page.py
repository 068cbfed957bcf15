"""docs/compare.md and its figure: the methods compared on real images, made as a comparison makes its leaderboard."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import _record
from _by_method import ANEW, CHANGED, HALF
from _markdown import circumstances, folded, table

from secateur.compare.leaderboard import paired
from secateur.report.board.pictures import curves, rivals
from secateur.report.board.said import absent, ranking
from secateur.report.board.tables import Table, budgets, mean_table, means_at, percents, run_table, time_table
from secateur.report.page.fairness import fairness
from secateur.report.page.rivals import key

FIGURE = "compare.svg"
COLOURS = "0a63b0 b84a00 007a5e 8a3ab9 a08000 c02050 3a7d9a 6b6b00 7a4a2a 566273".split()
STYLE = """
text{font:11.7px system-ui,sans-serif;fill:#566273} .name{fill:#1b2330} .grid{stroke:#dbe1e8}
.run,.error{fill:none;stroke-width:1.6;stroke:var(--of)} .mark,.seed{fill:var(--of)} .error{opacity:.75}
"""
ROW, COLUMNS, WIDTH = 18, 2, 380

FACTS = """\
The recipe `recipes/cifar10-resnet8-short.yaml`: {model}, {images:,} training images of CIFAR-10 ({validation:.0%} of
them held out), {epochs} epochs in all for every method, batch {batch}, SGD, cosine schedule; accuracy on all {tested:,}
test images. A small and short setting: it says how methods compare when time is scarce, not what they reach in their
papers' schedules, and some of them are made for far longer trainings. Every method had its default settings of then.
Defaults of `bwcp`, and today's of `nap` and `dcpcac`, were chosen in this setting, on some of these seeds and by test
accuracy, so nothing should be concluded from a small lead of theirs. How a comparison is made: [comparing
methods](comparing.md)."""

COLUMNS_SAID = """\
*Final* is the test accuracy of the resulting network, *cut* that straight after the cut, before fine-tuning, and
*dense* that of the network that was pruned, where the method began with a trained one: percent, mean and standard
deviation over seeds. *Bound used*: the budget is kept, and used up to a hundredth. *Faster*: time of the dense network
over that of the pruned one, batch 1, mean over seeds; below 1 the pruned network is slower."""

WHOLE = """\
The dense network, trained for as many epochs in all, reached {final}% in a later run of one seed
([below](#methods-that-came-later)): differences of a point or two from it say nothing."""

#: Comparisons of one seed, of methods that came after the one above was made.
LATER = ("compare_new", "compare_as_published", "compare_manidp")
LATER_SAID = """\
Methods that came later, in the same setting with one seed: differences of a point or two say nothing. *Cut* is straight
after the cut. Where a method works while the network is trained and has no fine-tuning of its own, all its epochs are
those; where it begins with new weights (`swp`), all {epochs}. Seconds are beside other work.

The second table has `swp`, `ghfp` and `gdp` with the schedules of their papers, which are made for a hundred epochs and
more, in place of what they do in a short training by default ([SWP](methods/swp.md), [GHFP](methods/ghfp.md),
[GDP](methods/gdp.md)). `manidp` has three epochs in place of 400."""

ANEW_SAID = """\
Since {date}, when the table above was measured, defaults or schedules of {changed} have changed: [each method's
page](methods.md) says what. The same setting with the code of today, {seeds}; `l1` and `random`, which have not
changed, show how much of a difference is chance. Percent, of the seeds that were measured anew."""

BELOW = """\
Below random choice ({random}) end three of them here. What more epochs change, from the same trained network and with
nothing else changed, is an experiment on one seed; `random` has three epochs of fine-tuning."""

WIDTHS = """\
Where a method ends below random choice, are its widths at fault, or the channels it kept and the epochs it spent? At
{budget}, seed {seed}, a new network with the widths each method chose, trained from new weights for all {epochs} epochs
(the method `scratch`, given the plan). Where the new network does as well as those of other widths, the widths are not
the cause of the loss."""


def pages(docs: Path) -> dict[Path, str]:
    """The page and its figure, if there is a result."""
    path = _record.RESULTS / "compare_short.json"
    if not path.exists():
        return {}
    result = _record.read(path)
    found = {docs / "compare.md": page(result)}
    figure = _figure(result)
    return found | ({docs / "figures" / FIGURE: figure} if figure else {})


def page(result: dict[str, Any]) -> str:
    """docs/compare.md."""
    result = {**result, "paired": result.get("paired") or paired(result["rows"])}  # older results have none
    recipe = result["recipe"]
    facts = FACTS.format(
        model=recipe["model"]["reference"],
        images=recipe["data"]["train_images"],
        validation=recipe["data"]["validation"],
        epochs=recipe["train"]["epochs"] + recipe["finetune"]["epochs"],
        batch=recipe["data"]["batch_size"],
        tested=result["images"],
    )
    alone = {"device": result["machine"], "threads": result["threads"][0], "python": ", ".join(result["python"])}
    every = budgets(result)
    main = every[0]
    parts = ["# Methods compared", facts, f"## {main}", _said(result, main), _grid(_decisive(mean_table(result, main)))]
    parts += [*_whole(), COLUMNS_SAID, folded(f"All columns at {main}", _grid(_shown(mean_table(result, main))))]
    if len(every) > 1:
        parts += ["## Accuracy by budget", _by_budget(result, every)]
    for budget in every[1:]:
        parts.append(
            folded(f"All columns at {budget}", _said(result, budget), _grid(_shown(mean_table(result, budget))))
        )
    if _figure(result):
        parts += ["## Accuracy against FLOPs", f"![Accuracy against the MACs that remain](figures/{FIGURE})"]
    parts += _anew(result)
    parts += _later(recipe["train"]["epochs"] + recipe["finetune"]["epochs"])
    parts += _widths()
    missing = absent(result)
    if missing:
        parts += ["## Runs that failed or are missing", "\n".join(f"- {line}" for line in missing)]
    parts += ["## How it was measured", circumstances({**result, **alone})]
    parts.append(folded("What is held equal", "\n".join(f"- {line}" for line in fairness(result))))
    parts.append(folded("The commands", _calls(result)))
    parts.append(folded("Seconds of each method", _grid(time_table(result))))
    parts.append(folded(f"All {len(result['rows'])} runs", _grid(run_table(result))))
    return "\n\n".join(parts) + "\n"


def _whole() -> list[str]:
    """What the dense network reaches in as many epochs, where a later comparison has it."""
    for path in (_record.RESULTS / f"{name}.json" for name in LATER):
        for row in _record.read(path)["rows"] if path.exists() else ():
            if row["method"] == "dense":
                return [WHOLE.format(final=percents({"mean": row["accuracy"]["final"], "sd": None}))]
    return []


def _decisive(given: Table) -> Table:
    """The columns that are looked for: accuracy, and speed where it was measured."""
    at = [k for k, name in enumerate(given.head) if name in ("method", "final") or name.startswith("faster")]
    head, *rows = (tuple(row[k] for k in at) for row in (given.head, *given.rows))
    return Table(head, tuple(rows))


def _by_budget(result: dict[str, Any], every: list[str]) -> str:
    """One line a method, its accuracies at all budgets side by side."""
    found: dict[str, dict[str, str]] = {}
    for budget in every:
        for mean in means_at(result, budget):
            final = mean["values"]["accuracy.final"]["mean"]
            found.setdefault(mean["label"], {})[budget] = percents({"mean": final, "sd": None})
    ordered = sorted(every, key=lambda budget: float(budget.rpartition("=")[2]), reverse=True)
    seeds = {budget: max(len(m["seeds"]) for m in result["means"] if m["budget"] == budget) for budget in ordered}
    few = [budget for budget in ordered if seeds[budget] == 1]
    said = f"Final accuracy in percent. {' and '.join(few)}: one seed, which cannot rank methods.\n\n" if few else ""
    rows = [[label, *(values.get(budget, "–") for budget in ordered)] for label, values in found.items()]
    return (
        said
        + table(["method", *ordered], rows)
        + "".join(f"\n\n{told}" for each in ordered if (told := _behind(result, each)))
    )


def _behind(result: dict[str, Any], budget: str) -> str:
    """Which methods end below random choice at a budget."""
    finals = {m["label"]: m["values"]["accuracy.final"]["mean"] for m in means_at(result, budget)}
    chance = finals.get("random")
    behind = [label for label, final in finals.items() if chance is not None and final < chance]
    named = ", ".join(f"`{label}` ({percents({'mean': finals[label], 'sd': None})})" for label in behind)
    return f"Below `random` ({percents({'mean': chance, 'sd': None})}) at {budget}: {named}." if behind else ""


def _later(epochs: int) -> list[str]:
    """One seed each of the methods that came later."""
    parts = []
    for name in LATER:
        path = _record.RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = _record.read(path)
        lines = []
        for row in sorted(result["rows"], key=lambda row: -row["accuracy"]["final"]):
            cut, final = (percents({"mean": row["accuracy"][k], "sd": None}) for k in ("pruned", "final"))
            shares = (f"{row[key]['share']:.1%}" for key in ("macs", "params"))
            ours = sum(row["seconds"][key] or 0 for key in ("acting", "prune", "train", "finetune"))
            lines.append([f"`{row['label']}`", cut, final, *shares, round(ours)])
        alone = {"device": result["machine"], "threads": result["threads"][0], "python": ", ".join(result["python"])}
        head = ["method", "cut", "final", "MACs left", "params left", "prune and train, s"]
        parts += [circumstances({**result, **alone}), table(head, lines)]
    return ["## Methods that came later", LATER_SAID.format(epochs=epochs), *parts, *_below()] if parts else []


def _anew(before: dict[str, Any]) -> list[str]:
    """What methods reach whose defaults have changed, beside what they reached."""
    path = _record.RESULTS / f"{ANEW}.json"
    if not path.exists():
        return []
    result = _record.read(path)

    def finals(document: dict[str, Any], label: str, key: str = "final") -> dict[int, float]:
        rows = (row for row in document["rows"] if (row["label"], row["budget"]) == (label, HALF))
        return {row["seed"]: row["accuracy"][key] for row in rows if row["accuracy"][key] is not None}

    now = {row["label"]: finals(result, row["label"]) for row in result["rows"] if row["budget"] == HALF}
    lines = []
    for label in sorted(now, key=lambda label: -statistics.mean(now[label].values())):
        old = [value for seed, value in finals(before, label).items() if seed in now[label]]
        row = [row for row in result["rows"] if row["label"] == label]
        share = statistics.mean(each["params"]["share"] for each in row)
        told = (
            f"{100 * statistics.mean(values):.2f}" if values else "–"
            for values in (old, [*finals(result, label, "pruned").values()], [*now[label].values()])
        )
        lines.append([f"`{label}`", *told, f"{share:.1%}", len(now[label])])
    counts = {len(values) for values in now.values()}
    known = " to ".join(map(str, sorted({min(counts), max(counts)})))
    seeds = "one seed, which cannot rank methods" if counts == {1} else f"{known} seeds"
    changed = ", ".join(f"`{label}`" for label in CHANGED)
    about = ANEW_SAID.format(date=before["date"][:10], changed=changed, seeds=seeds)
    alone = {"device": result["machine"], "threads": result["threads"][0], "python": ", ".join(result["python"])}
    head = ["method", "final before", "cut", "final", "params left", "seeds"]
    return ["## Measured anew", about, circumstances({**result, **alone}), table(head, lines)]


def _below() -> list[str]:
    """What those that end below random choice reach with more epochs."""
    path = _record.RESULTS / "below_random.json"
    if not path.exists():
        return []
    result = _record.read(path)
    lines = []
    for row in result["rows"]:
        finals = (percents({"mean": row[side]["final"], "sd": None}) for side in ("compared", "changed"))
        lines.append([f"`{row['method']}`", f"`{row['change']}`", *finals])
    about = BELOW.format(random=percents({"mean": result["random"], "sd": None}))
    return [about, circumstances(result), table(["method", "change", "final, as compared", "final, changed"], lines)]


def _widths() -> list[str]:
    """What becomes of the widths that methods chose, with new weights in them."""
    path = _record.RESULTS / "widths.json"
    if not path.exists():
        return []
    result = _record.read(path)
    chance = next(row for row in result["rows"] if row["method"] == "random")
    lines, told = [], []
    for row in sorted(result["rows"], key=lambda row: -row["final"]):
        kept = " ".join(f"{kept}/{full}" for kept, full in zip(row["widths"], row["full"], strict=True))
        lines.append(
            [f"`{row['method']}`", kept, *(percents({"mean": row[k], "sd": None}) for k in ("cut", "final", "new"))]
        )
        if row["final"] < chance["final"]:
            worse = 100 * (chance["new"] - row["new"])
            part = (
                f"of the {100 * (chance['final'] - row['final']):.1f} points `{row['method']}` is below chance here, "
            )
            told.append(
                part
                + (f"its widths cost {worse:.1f}" if worse > 0 else "a new network of its widths is behind by none")
            )
    about = WIDTHS.format(budget=result["budget"], seed=result["seed"], epochs=result["rows"][0]["epochs"])
    head = ["method", "channels kept, group by group", "cut", "final", "new network of these widths"]
    said = f"{'; '.join(told).capitalize()}." if told else ""
    shown = folded("Widths and accuracies, method by method", table(head, lines))
    return ["## Widths or channels?", about, circumstances(result), *([said] if said else []), shown]


def _grid(given: Table) -> str:
    return table(list(given.head), given.rows)


def _calls(result: dict[str, Any]) -> str:
    commands = list(dict.fromkeys(call["command"] for call in result["calls"]))
    jobs = max(call["jobs"] for call in result["calls"])
    beside = f", up to {jobs} runs at a time, beside other work" if jobs > 1 else ""
    listed = "\n".join(f"    {command}" for command in commands)
    return f"The calls{beside}; latencies were measured after all training, one run after another:\n\n{listed}"


def _said(result: dict[str, Any], budget: str) -> str:
    """The best mean and who is not told apart from it, and how far apart seeds are."""
    spread = [m["values"]["accuracy.final"]["sd"] for m in result["means"] if m["budget"] == budget]
    known = [100 * sd for sd in spread if sd is not None]
    apart = f" Standard deviations over seeds are {min(known):.1f} to {max(known):.1f} points." if known else ""
    return ranking(result, budget) + apart


def _shown(given: Table) -> Table:
    """Without the column of proofs, which are alike: they stand with every run."""
    at = given.head.index("proof")
    head, *rows = (row[:at] + row[at + 1 :] for row in (given.head, *given.rows))
    return Table(head, tuple(rows))


def _figure(result: dict[str, Any]) -> str | None:
    """The curves with their legend, as a picture that stands alone."""
    drawn = curves(result)
    if drawn is None:
        return None
    height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', drawn)[1])  # type: ignore[index]
    every = rivals(result)
    whole = height + ROW * -(-len(every) // COLUMNS) + 8
    legend = []
    for number, rival in enumerate(every):
        x, y = 20 + number % COLUMNS * (WIDTH - 20) / COLUMNS, height + 4 + ROW * (number // COLUMNS)
        mark = key(rival).replace('class="swatch"', f'x="{x:g}" y="{y:g}" width="22" height="12"')
        legend.append(f'{mark}<text class="name" x="{x + 27:g}" y="{y + 10:g}">{rival.name}</text>')
    colours = " ".join(f".c{number}{{--of:#{colour}}}" for number, colour in enumerate(COLOURS))
    inner = drawn.replace("<svg ", f'<svg width="{WIDTH}" height="{height:g}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole:g}" width="{1.6 * WIDTH:g}">\n'
        f"<style>{STYLE}{colours}</style>\n"
        f'<rect width="{WIDTH}" height="{whole:g}" fill="#fff"/>\n{inner}\n{"".join(legend)}\n</svg>\n'
    )
