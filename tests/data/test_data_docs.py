"""The tables of docs/data.md are what the registry says; run this file to write them anew."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from secateur.data import AUGMENTATIONS, DATASETS
from secateur.data.options import ImageOptions, Options

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def numbers(values: Sequence[float] | None) -> str:
    return "measured" if values is None else " ".join(f"{value:g}" for value in values)


def data_sets() -> str:
    rows = (
        (f"`{r.name}`", r.summary, ", ".join(r.augment) or "none", numbers(r.mean), numbers(r.std))
        for r in DATASETS.values()
    )
    return table(["name", "images", "augmented by", "mean", "std"], rows)


def getting() -> str:
    return table(["name", "how to get it"], ((f"`{row.name}`", row.get) for row in DATASETS.values()))


def augmentations() -> str:
    return table(["name", "each image"], ((f"`{row.name}`", row.summary) for row in AUGMENTATIONS.values()))


def options() -> str:
    rows = []
    users: dict[tuple[str, str, str], list[str]] = {}
    for row in DATASETS.values():
        for name, field in row.options.model_fields.items():
            default = "null" if field.default is None else str(field.default)
            users.setdefault((name, default, field.description or ""), []).append(row.name)
    for (name, default, description), sets in users.items():
        if name in Options.model_fields:
            whom = "all"
        elif name in ImageOptions.model_fields:
            whom = "those read from files"
        else:
            whom = ", ".join(f"`{user}`" for user in sets)
        rows.append((f"`{name}`", whom, default, description))
    return table(["option", "sets", "default", "meaning"], rows)


TABLES = {"sets": data_sets, "getting": getting, "augmentations": augmentations, "options": options}


def written(page: str, name: str, content: str) -> str:
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    assert page.count(start) == page.count(end) == 1, name
    return re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{content}\n{end}", page, flags=re.DOTALL)


@pytest.mark.parametrize("name", TABLES)
def test_the_page_says_what_the_registry_says(name):
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page, name, TABLES[name]()), f"run: python {Path(__file__).name}"


@pytest.mark.parametrize("row", DATASETS.values(), ids=lambda row: row.name)
def test_rows_are_complete(row):
    assert row.summary
    assert row.get
    assert set(row.augment) <= set(AUGMENTATIONS)
    assert (row.mean is None) == (row.std is None)
    assert row.mean is None or len(row.mean) == len(row.std)
    assert all(field.description for field in row.options.model_fields.values())
    assert not {"\n", "."} & set(row.summary[-1] + row.get[-1])  # both are parts of sentences


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        page = written(page, name, make())
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
