"""Code blocks of the documentation, with what comments before them say.

A comment straight before a block, which readers of the page do not see, may say:

    <!-- not run: REASON -->    it is not run, and test_blocks.py counts it
    <!-- file: NAME -->         it is written to that file
    <!-- module: NAME -->       it is run as if it were that module
    <!-- output -->             the blocks before it have printed that, but for a few percent of each number
    <!-- table example NAME --> it is a program of examples/, which is run there

and anywhere `<!-- hidden` on a line of its own begins a program that is run in its turn, up to `-->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
SHELL = ("bash", "sh", "shell", "console")
_COMMENT = re.compile(r"<!-- ([\w ]+?)(?:: (.+?))? -->")
_FENCE = re.compile(r"( *)(```+|~~~+)\s*([\w+-]*).*")


@dataclass
class Block:
    """One block: its language ("" for an indented one), its text, and its marks."""

    page: Path
    line: int
    language: str
    code: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Page and line of the first line of code."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All blocks of a page in order; hidden programs are Python."""
    return list(_read(page, page.read_text(encoding="utf-8").splitlines()))


def _read(page: Path, lines: list[str]) -> Iterator[Block]:
    marks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line, start = lines[number], number + 1
        fence = _FENCE.fullmatch(line)
        if line.strip() == "<!-- hidden":
            number = _end(page, lines, start, lambda text: text.strip() == "-->")
            yield Block(page, start + 1, "python", "\n".join(lines[start:number]), {"hidden": ""})
        elif fence is not None:
            number = _end(page, lines, start, lambda text, mark=fence[2]: text.strip() == mark)
            inner = [text.removeprefix(fence[1]) for text in lines[start:number]]
            yield Block(page, start + 1, fence[3], "\n".join(inner) + "\n", marks)
            marks = {}
        elif line.startswith("    ") and (not number or not lines[number - 1].strip()):
            inner = []
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                inner.append(lines[number][4:])
                number += 1
            number -= 1
            yield Block(page, start, "", "\n".join(inner) + "\n", marks)
            marks = {}
        elif comment := _COMMENT.fullmatch(line.strip()):
            name, text = comment[1], comment[2] or ""
            if name.startswith("table example "):
                name, text = "example", name.removeprefix("table example ")
            marks = {**marks, name: text}
        elif line.strip():
            marks = {}
        number += 1


def _end(page: Path, lines: list[str], start: int, closes) -> int:  # type: ignore[no-untyped-def]
    for number in range(start, len(lines)):
        if closes(lines[number]):
            return number
    raise AssertionError(f"{page.name}:{start}: the block is never closed")


def alike(shown: str, said: str) -> bool:
    """The same words; numbers may differ by a few percent, as machines do."""
    number = r"\d[\d,]*(?:\.\d+)?"
    if re.sub(number, "0", shown) != re.sub(number, "0", said):
        return False
    here, there = ([float(found.replace(",", "")) for found in re.findall(number, text)] for text in (shown, said))
    return all(abs(a - b) <= 0.05 * max(a, b) for a, b in zip(here, there, strict=True))
