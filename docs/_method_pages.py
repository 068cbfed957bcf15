"""docs/methods/NAME.md, a page for every method: its note, row, use, settings and docstring, and what was measured."""

from __future__ import annotations

import inspect
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _by_method import Facts, Measured, among, kernels, measured
from _markdown import foot, percent
from _method_notes import note
from _one_shot_page import averages

from secateur._settings import settings
from secateur.methods import METHODS, MethodRow
from secateur.methods.baselines import CRITERIA

Table = Callable[[Iterable[str], Iterable[Iterable[str]]], str]

BEGINS = {"weights": "trained weights", "new": "new weights", "narrow": "new weights of the narrow network"}
NEEDS = {
    "nothing": "nothing but the network",
    "calibration": "batches of images (`data.calibration_images`)",
    "training": "training with the method at work",
}
#: What finish() gives, where that is not an ordinary network.
RESULTS = {
    "forms": "layers that compute only what is left of them ([forms](../adding-a-method.md))",
    "per input": "layers that compute what the image asks for ([forms](../adding-a-method.md)): costs are means",
}
#: Above its settings, compared.
SETTINGS_TRIED = (
    "Settings compared where nothing is reported: trained for 10 epochs on the last 10,000 training images of "
    "CIFAR-10, pruned to half the FLOPs and trained for 4 more, all from the same weights; told apart by 5,000 other "
    "training images (`python benchmarks/method_defaults.py`). A figure is known to about a point."
)


def pages(folder: Path, table: Table) -> dict[Path, str]:
    """Every method's page by path."""
    found = measured()
    return {folder / f"{row.name}.md": _page(row, found, table) for row in METHODS}


def _page(row: MethodRow, found: Measured, table: Table) -> str:
    about = note(row)
    facts = found.of(row.name)
    parts = [f"# {about.title}", f"`{row.name}`: {row.summary}.", about.idea, "## Algorithm", about.algorithm]
    parts += _figure(row.name, found)
    parts += ["## In short", table(("", ""), _row(row, about.reads)), "## Using it", *_use(row)]
    parts += ["## Settings", _settings(row, table)]
    if sources := prose(details(_docstring(row))):
        parts += ["## Sources, and differences from the paper", sources]
    parts += ["## Measured", *_results(row, facts, found, table)]
    used = (
        (facts.means, facts.compared), (facts.board, found.board), (facts.longer, found.longer),
        (facts.top1, found.one_shot), (facts.networks, found.networks), (facts.tried, found.tried),
    )  # fmt: skip
    dated = [result for figures, result in used if figures and result]
    if not has_figure(row.name, found) and (drawn := among(row.name)) and drawn.result not in dated:
        dated.append(drawn.result)
    if row.name == "dkp" and (result := kernels()):
        dated.append(result)
    return "\n\n".join([*parts, foot("docs/tables.py", dated)]) + "\n"


def _figure(name: str, found: Measured) -> list[str]:
    """The method's picture and what it shows: straight after the cut, among others, or of kernels."""
    picture = f"../figures/methods/{name}.svg"
    if has_figure(name, found):
        repaired = best_repair(name, averages(found.one_shot["rows"]) if found.one_shot is not None else {}) != "none"
        lines = "dotted as it is cut, solid with the repair that helps most" if repaired else "as it is cut"
        said = (
            f"Test accuracy of a ResNet-20 on CIFAR-10 straight after the cut, without training: {lines}. "
            "[All criteria](../one_shot.md)."
        )
        return [f"![Test accuracy straight after the cut]({picture})", f"*{said}*"]
    if compared := among(name):
        seeds = f"mean of {compared.seeds} seeds" if compared.seeds > 1 else "one seed, which cannot rank methods"
        said = (
            "Test accuracy of a ResNet-8 on a part of CIFAR-10 at half the FLOPs, all with equal epochs: straight "
            f"after the cut (ring) and in the end (dot); {seeds}. [Methods compared](../compare.md)."
        )
        return [f"![Test accuracy among other methods]({picture})", f"*{said}*"]
    if name == "dkp" and (result := kernels()):
        said = (
            f"Test accuracy of a ResNet-8 on the digits of scikit-learn, nothing trained after the choice "
            f"({'one network' if result['seeds'] == 1 else 'mean of ' + str(result['seeds']) + ' networks'}, "
            f"{result['tested']} test images): kernels chosen and fitted by `dkp` from "
            f"{result['images']} images, and as many of every layer by the L1 norm and at random, not fitted. Measured "
            f"with `{result['command']}`."
        )
        return [f"![Test accuracy by kernels removed]({picture})", f"*{said}*"]
    return []


def best_repair(name: str, means: Mapping[tuple[str, str, float], float]) -> str:
    """The repair, or "none", with which the accuracies after the method are highest on the whole."""
    lefts = {left for method, _, left in means if method == name}
    repairs = {repair for method, repair, _ in means if method == name}
    return max(repairs, key=lambda repair: sum(means.get((name, repair, left), 0.0) for left in lefts), default="none")


def has_figure(name: str, found: Measured) -> bool:
    """Whether there are accuracies straight after the cut to be drawn."""
    return found.one_shot is not None and any(row["method"] == name and "top1" in row for row in found.one_shot["rows"])


def _row(row: MethodRow, reads: Iterable[str]) -> list[tuple[str, str]]:
    link = f", [arXiv:{row.arxiv}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else ""
    source = f"src/{row.factory.__module__.replace('.', '/')}.py"
    criterion = next((each.function for each in CRITERIA if each.name == row.name), None)
    if criterion is not None:
        source = f"src/{criterion.__module__.replace('.', '/')}.py"
    return [
        ("paper", f"{row.paper}, {row.year}{link}"),
        ("source", f"[`{source.removeprefix('src/secateur/methods/')}`](../../{source})"),
        ("needs", NEEDS[row.needs]),
        ("reads", ", ".join(reads)),
        ("acts", row.acts),
        ("begins with", BEGINS[row.begins]),
        ("removes", row.removes),
        ("fine-tuning after the cut", "yes" if row.finetunes else "none"),
        *([("result", RESULTS[row.result])] if row.result in RESULTS else []),
        ("fidelity", row.fidelity),
    ]


def _docstring(row: MethodRow) -> str:
    """Of the method's file; of its function, where one file holds several."""
    found: object = next((each.function for each in CRITERIA if each.name == row.name), None)
    return inspect.cleandoc((found or sys.modules[row.factory.__module__]).__doc__ or "")


def _settings(row: MethodRow, table: Table) -> str:
    rows = [(f"`{s.path}`", s.allowed, f"`{s.default}`", s.meaning) for s in settings(row.config)]
    return table(("setting", "may be", "default", "meaning"), rows) if rows else "It has none."


def _use(row: MethodRow) -> list[str]:
    recipe = f"secateur run recipe.yaml --set method={row.name}"
    lines = [recipe, f"secateur methods {row.name}  # its settings"]
    if row.acts != "while training":
        data = " --data imagefolder:photos" if row.needs == "calibration" else ""
        lines.insert(0, f"secateur prune zoo:resnet20 --budget {row.example_budget} --method {row.name}{data}")
    shell = "```bash\n" + "\n".join(lines) + "\n```"
    code = _LOOP if row.acts == "while training" else _CALL
    given = ", data=batches" if row.needs == "calibration" else ""
    asks = "    pruner.before_forward(labels)\n" if row.name == "cwb" else ""
    search = "pruner.collect(batches, torch.nn.functional.cross_entropy)\n" if row.collects else ""
    python = code.format(name=row.name, budget=row.example_budget, given=given, asks=asks, search=search)
    if not given and row.acts != "while training":
        python = python.replace(_BATCHES, "")
    return [
        shell,
        f"```python\n{python}```",
        "Other settings are further arguments in Python, keys of `method:` in a recipe.",
    ]


_BATCHES = """\
images, labels = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))  # yours
batches = [(images, labels)] * 4
"""
_CALL = f"""\
import torch
import secateur

model = secateur.models.create("tiny")  # or any module of yours, trained
{_BATCHES}image = torch.randn(1, 3, 32, 32)
result = secateur.prune(model, image, method="{{name}}", budget="{{budget}}"{{given}})
print(result.before.macs, result.after.macs, result.verification.exact)
"""
_LOOP = f"""\
import torch
import secateur

model = secateur.models.create("tiny")  # or any module of yours
{_BATCHES}steps = len(batches)  # of the whole training
pruner = secateur.methods.create("{{name}}", model, images, budget="{{budget}}", steps=steps)
optimizer = torch.optim.SGD(pruner.parameters(), lr=0.05, momentum=0.9)
for images, labels in batches:
{{asks}}    output = pruner(images)
    pruner.after_forward(output, labels)
    loss = torch.nn.functional.cross_entropy(output, labels) + pruner.loss()
    optimizer.zero_grad()
    loss.backward()
    pruner.after_backward()
    optimizer.step()
    pruner.after_step()
pruner.after_epoch()
{{search}}small = pruner.finish()  # cut and verified: an ordinary module
"""


# ------------------------------------------------------------------------------------------------ docstrings


#: How the part of a docstring begins that says what was read, and where the code differs.
_DIFFERS = re.compile(r"(Where |What is |Only |Sources|Read were|Of the paper|The published|With an optimiser)")


def details(docstring: str) -> str:
    """What a docstring says beyond its note: from its sources on; behind the first paragraph where it names none."""
    parts = docstring.strip("\n").split("\n\n")
    first = next((number for number, part in enumerate(parts) if number and _DIFFERS.match(part)), 1)
    return "\n\n".join(parts[first:])


def prose(docstring: str) -> str:
    """A docstring as Markdown: its first line as a sentence, equations as code, hanging lines as a list."""
    parts = []
    for paragraph in docstring.strip("\n").split("\n\n"):
        lines = [line.rstrip() for line in paragraph.splitlines() if line.strip()]
        plain = next((number for number, line in enumerate(lines) if _indent(line)), len(lines))
        head, rest = lines[:plain], lines[plain:]
        if head:
            parts.append(_escaped("\n".join(line.strip() for line in head)))
        if rest and not head:
            least = min(_indent(line) for line in rest)
            parts.append("```text\n" + "\n".join(line[least:] for line in rest) + "\n```")
        elif rest:
            parts.append(_listed(rest))
    return "\n\n".join(parts)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _listed(lines: list[str]) -> str:
    """Lines under a heading: points with hanging lines, or one paragraph where nothing hangs."""
    least = min(_indent(line) for line in lines)
    hangs = any(_indent(line) > least for line in lines)
    points: list[str] = []
    for line in lines:
        if points and (_indent(line) > least or not hangs):
            points[-1] += f"\n  {line.strip()}"
        else:
            points.append(f"- {line.strip()}")
    if not hangs:
        return _escaped("\n".join(line.strip() for line in lines))
    return _escaped("\n".join(points))


def _escaped(text: str) -> str:
    """What is no code shows as it is written; a list keeps its dashes."""
    parts = re.split(r"(``?[^`]+``?)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_\[\]])", r"\\\1", p).replace("<", "&lt;") for p in parts)


# ------------------------------------------------------------------------------------------------ results


def _results(row: MethodRow, facts: Facts, found: Measured, table: Table) -> list[str]:
    parts = []
    if facts.means:
        parts.append("A ResNet-8 on a part of CIFAR-10, equal epochs for all ([methods compared](../compare.md)):")
        parts.append(
            table(("budget", "dense", "cut", "final", "parameters left", "seconds", "seeds"), _compared(facts))
        )
    if facts.board:
        parts.append(_board(row.name, found))
    parts += [
        f"In the short setting it ended below random choice, at {_p(each['compared']['final'])}; with "
        f"`{each['change']}` it reaches {_p(each['changed']['final'])} ([one seed](../compare.md))."
        for each in facts.longer
    ]
    if facts.tried:
        parts += [SETTINGS_TRIED, table(("network", "settings", "cut", "final", "`l1`", "`random`"), _tried(facts))]
    if facts.top1:
        parts.append(
            "Straight after the cut, at half the FLOPs: a ResNet-20 on CIFAR-10, dense "
            f"{_p(found.dense)}, nothing trained ([all](../one_shot.md)):"
        )
        parts.append(table(("repair", "top-1"), [(_repair(name), _p(top1)) for name, top1 in facts.top1.items()]))
        if facts.score_s is not None and found.one_shot:
            images = found.one_shot["images"]
            parts.append(f"To look at {images:,} images, score and plan took {facts.score_s:g} s.")
    if facts.networks:
        parts.append("On other networks, far too briefly for accuracies ([all](../networks.md)):")
        parts.append(table(("network", "MACs left", "parameters left", "proof", "run, s"), _networks(facts)))
    if row.name == "dkp" and (result := kernels()):
        parts += [
            f"On the digits, by kernels removed (see above; not pruned {_p(result['dense'])}):",
            table(*_by_kernels(result)),
        ]
    if facts.step:
        parts.append(f"A training step takes {facts.step} times a plain one ([costs](../speed.md)).")
    if facts.passes is not None:
        parts.append(
            f"To look at images and score a ResNet-50 takes {facts.passes:.1f} passes forward and back over them "
            "([costs](../speed.md))."
        )
    return parts or ["Nothing yet."]


def _tried(facts: Facts) -> list[tuple[str, ...]]:
    """Every setting, and what all are held against."""
    return [
        (
            f"`{row['network']}`{_several(row['seeds'])}",
            row["name"],
            _p(statistics.mean(row["pruned"])),
            *(_p(row[key]) for key in ("mean", "l1", "random")),
        )
        for row in facts.tried
    ]


def _several(seeds: Sequence[int]) -> str:
    return f", {len(seeds)} seeds" if len(seeds) > 1 else ", one seed"


def _board(name: str, found: Measured) -> str:
    """Its place on the leaderboard, beside the two that every method is held against."""
    finals, yard = found.of(name).board, found.of("random").board
    beside = [f"`{other}` {_p(statistics.mean(found.of(other).board))}" for other in ("l1", "random") if other != name]
    seeds = "one seed" if len(finals) == 1 else f"mean of {len(finals)} seeds"
    below = ", **below random choice**" if statistics.mean(finals) < statistics.mean(yard) else ""
    return (
        "ResNet-20 on all of CIFAR-10 at half the FLOPs, equal epochs for all "
        f"([leaderboard](../leaderboard.md)): {_p(statistics.mean(finals))}{below} ({seeds}; {', '.join(beside)})."
    )


def _compared(facts: Facts) -> list[tuple[str, ...]]:
    rows = []
    for budget, mean in facts.means.items():
        values = mean["values"]
        shown = [_mean(values[f"accuracy.{key}"]) for key in ("dense", "pruned", "final")]
        share, seconds = (values.get(key) for key in ("params.share", "seconds.total"))
        left = percent(share["mean"], 1) if share else "–"
        took = f"{seconds['mean']:.0f}" if seconds else "–"
        rows.append((f"`{budget}`", *shown, left, took, str(len(mean["seeds"]))))
    return rows


def _by_kernels(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Mean accuracies, a line for each choice of kernels."""
    lefts = sorted({row["left"] for row in result["rows"]}, reverse=True)
    names = list(dict.fromkeys(row["kernels"] for row in result["rows"]))

    def mean(name: str, left: float) -> str:
        return _p(statistics.mean(r["top1"] for r in result["rows"] if (r["kernels"], r["left"]) == (name, left)))

    head = ["kernels by", *(f"{100 * (1 - left):.0f}%" for left in lefts)]
    return head, [[name, *(mean(name, left) for left in lefts)] for name in names]


def _networks(facts: Facts) -> list[tuple[str, ...]]:
    rows = []
    for row in facts.networks:
        if "error" in row:
            rows.append((f"`{row['network']}`", "–", "–", row["error"], "–"))
        else:
            proof = f"{'exact' if row['exact'] else 'structural'}, {row['max_relative_error']:.0e}"
            left, params = percent(row["left"], 1), percent(row["params"], 1)
            rows.append((f"`{row['network']}`", left, params, proof, f"{row['total_s']:.0f}"))
    return rows


def _mean(value: dict[str, float | None] | None) -> str:
    if value is None or value["mean"] is None:
        return "–"
    return f"{100 * value['mean']:.1f}" + (f" ± {100 * value['sd']:.1f}" if value["sd"] else "")


def _repair(name: str) -> str:
    return "none" if name == "none" else f"[`{name}`](../repairs.md#{name})"


def _p(share: float) -> str:
    return f"{100 * share:.1f}%"
