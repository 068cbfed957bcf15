"""Fill the tables in the documentation from the code they document, write a page for every method, and draw pictures.

python docs/tables.py            # writes every block between <!-- table NAME --> and <!-- end table -->, and methods/
python docs/tables.py --check    # fails when one is not what the code says
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from secateur._settings import section, settings
from secateur.methods import METHODS, MethodRow
from secateur.recipe import Recipe, Training
from secateur.repair import METHOD_OF, REPAIRS
from secateur.tasks import TASKS, create

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]
import _by_method  # noqa: E402
import _diagrams  # noqa: E402
import _front_page  # noqa: E402
import _latency_page  # noqa: E402
import _method_pages  # noqa: E402
import _shown  # noqa: E402

_BLOCK = re.compile(r"<!-- table ([\w ]+) -->\n.*?<!-- end table -->", re.DOTALL)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def keys(name: str) -> str:
    """The keys of one section of a recipe; `recipe` are those at the top, `training` those of every stage."""
    kind = {"recipe": Recipe, "training": Training}.get(name) or section(Recipe.model_fields[name].annotation)
    if kind is None:
        raise SystemExit(f"docs/tables.py: a recipe has no section {name!r}")
    prefix = "" if name in ("recipe", "training") else f"{name}."
    inside = [row for row in settings(kind) if name != "recipe" or "." not in row.path]
    rows = [
        (f"`{prefix}{row.path}`", row.allowed, f"`{row.default}`" if row.default else "", row.meaning) for row in inside
    ]
    return table(("key", "may be", "default", "meaning"), rows)


def every_method(_name: str) -> str:
    """One row a method: what helps to pick one."""
    return table(
        ("method", "paper", "needs", "acts", "removes"),
        (
            (
                f"[`{row.name}`](methods/{row.name}.md)",
                f"{_paper(row)}, {row.year}",
                row.needs,
                row.acts,
                row.removes,
            )
            for row in METHODS
        ),
    )


def fidelity(_name: str) -> str:
    """How close each method is to its paper."""
    return table(("method", "fidelity"), ((f"[`{row.name}`](methods/{row.name}.md)", row.fidelity) for row in METHODS))


def _paper(row: MethodRow) -> str:
    return f"[{row.paper}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else row.paper


def tasks(_name: str) -> str:
    """One row a task."""
    rows = []
    for name, kind in TASKS.items():
        what = (kind.__doc__ or "").splitlines()[0].rstrip(".")
        given = ", ".join(f"`{row.path}` {row.default}" for row in settings(kind.Config)) or "-"
        rows.append((f"`{name}`", what, f"{kind.headline}, {'higher' if kind.higher_is_better else 'lower'}", given))
    return table(("task", "answers, targets, metric", "headline, better", "settings"), rows)


def served(_name: str) -> str:
    """Methods by task."""
    every = {name: create(name) for name in TASKS}
    rows = [(f"`{row.name}`", *("-" if row.refusal(task) else "serves" for task in every.values())) for row in METHODS]
    return table(("method", *(name.replace("_", " ") for name in every)), rows)


def refusals(_name: str) -> str:
    """What is said where a method does not serve a task."""
    every = [create(name) for name in TASKS]
    said = [(row.name, task.name, row.refusal(task)) for row in METHODS for task in every]
    by_sentence: dict[tuple[str, str], list[str]] = {}
    for method, task, sentence in said:
        if sentence is not None:
            why = sentence.removeprefix(f"The method {method} ").partition(":")[0]
            by_sentence.setdefault((task, why), []).append(f"`{method}`")
    rows = [(task.replace("_", " "), ", ".join(names), why) for (task, why), names in by_sentence.items()]
    return table(("task", "refused by", "because it"), rows)


def repairs(_name: str) -> str:
    """One row a repair."""
    rows = []
    for row in REPAIRS:
        link = f" ([{row.arxiv}](https://arxiv.org/abs/{row.arxiv}))" if row.arxiv else ""
        also = ", ".join(f"`{alias}`" for alias, name in METHOD_OF.items() if name == row.name)
        paper = f"{row.paper}, {row.year}{link}"
        rows.append((f"[`{row.name}`](#{row.name})", also, row.summary, paper, row.needs, row.fidelity))
    return table(("repair", "also called", "what it does", "paper", "needs", "fidelity"), rows)


def repair_settings(_name: str) -> str:
    """The settings of every repair, each under its name."""
    parts = []
    for row in REPAIRS:
        rows = [(f"`{s.path}`", s.allowed, f"`{s.default}`", s.meaning) for s in settings(row.factory.Config)]
        parts.append(f"### {row.name}\n")
        parts.append(table(("setting", "may be", "default", "meaning"), rows) if rows else "It has no settings.")
        parts.append("")
    return "\n".join(parts)


def faster(_name: str) -> str:
    """How much faster the networks of the comparison are at half the MACs, by method and runtime."""
    found = _by_method.measured()
    timed = [(row.name, found.of(row.name).means.get(_by_method.HALF)) for row in METHODS]
    rows = []
    for name, mean in timed:
        if mean is not None and mean["latency"]:
            ratios = [mean["latency"].get(runtime) for runtime in ("pytorch", "onnxruntime")]
            left = f"{100 * mean['values']['macs.share']['mean']:.1f}%"
            rows.append((f"[`{name}`](methods/{name}.md)", left, *(_times(ratio) for ratio in ratios)))
    return table(("method", "MACs left", "times faster, PyTorch", "times faster, ONNX Runtime"), rows)


def aligned(_name: str) -> str:
    """ResNet-50 at half the MACs: unaligned, aligned, and by latency."""
    return _latency_page.side_by_side()


def demo(_name: str) -> str:
    """What `make demo` takes, and what it gains."""
    return _shown.demo()


def ultralytics(_name: str) -> str:
    """A YOLO between two trainings by its own trainer."""
    return _shown.ultralytics()


def _times(latency: Mapping[str, Mapping[str, float | None]] | None) -> str:
    if not latency:
        return "–"
    mean, spread = latency["ratio"]["mean"], latency["ratio"]["sd"]
    return f"{mean:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def example(name: str) -> str:
    """A program of examples/."""
    path = HERE.parent / "examples" / f"{name.removeprefix('example ')}.py"
    return f"```python\n{path.read_text(encoding='utf-8')}```"


def numbers(_name: str) -> str:
    """The figures of the front page."""
    return _front_page.numbers(table)


TABLES: Mapping[str, Callable[[str], str]] = {
    "every method": every_method,
    "fidelity": fidelity,
    "tasks": tasks,
    "served": served,
    "refusals": refusals,
    "repairs": repairs,
    "repair settings": repair_settings,
    "faster": faster,
    "numbers": numbers,
    "aligned": aligned,
    "demo": demo,
    "ultralytics": ultralytics,
    "example plain_pytorch": example,
    "example lightning_callback": example,
    "example accelerate_loop": example,
}


def filled(page: str) -> str:
    """A page with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- table {name} -->\n{TABLES.get(name, keys)(name)}\n<!-- end table -->"

    return _BLOCK.sub(block, page)


def written() -> dict[Path, str]:
    """Every page and picture that is not as the code says, as it should be."""
    pages = [HERE.parent / "README.md", *sorted(HERE.glob("*.md"))]
    made = {page: filled(page.read_text(encoding="utf-8")) for page in pages}
    made[HERE.parent / "README.md"] = _from_above(made[HERE.parent / "README.md"])
    made |= _method_pages.pages(HERE / "methods", table)
    made |= _diagrams.pictures(HERE / "figures", _by_method.measured())
    return {page: text for page, text in made.items() if not page.exists() or page.read_text(encoding="utf-8") != text}


def _from_above(readme: str) -> str:
    """README.md lies above the pages: links of its tables lead into docs/."""
    return _BLOCK.sub(lambda block: re.sub(r"\]\((?=[\w-]+\.md)", "](docs/", block[0]), readme)


def gone() -> list[Path]:
    """Pages and pictures of methods that there are no more."""
    made = [*(HERE / "methods").glob("*.md"), *(HERE / "figures" / "methods").glob("*.svg")]
    return [page for page in made if page.stem not in {row.name for row in METHODS}]


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    stale, old = written(), gone()
    if "--check" not in arguments:
        for page, text in stale.items():
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
        for page in old:
            page.unlink()
    names = [page.relative_to(HERE.parent).as_posix() for page in [*stale, *old]]
    if names:
        print(("stale: " if "--check" in arguments else "wrote: ") + ", ".join(names))
    return 1 if names and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
