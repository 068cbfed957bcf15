"""The notes that lie beside the methods, src/secateur/methods/ROOM/NAME.md: title, equations, algorithm.

A note begins with what the method reads, between two lines of dashes, and its title:

    ---
    reads: weights, maps, gradients
    ---

    # The method's full name (ABBREVIATION)

What follows is Markdown, mathematics between dollar signs, up to the heading `## Algorithm` with its numbered steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import secateur.methods
from secateur.methods import MethodRow

ROOMS = Path(secateur.methods.__file__).parent
#: What a method may read of a network while it decides.
READS = ("nothing", "weights", "maps", "gradients", "gates", "labels")
_NOTE = re.compile(r"---\nreads: ([a-z, ]+)\n---\n\n# ([^\n]+)\n\n(.+\n)## Algorithm\n\n(1\. .+)", re.DOTALL)


@dataclass(frozen=True)
class Note:
    """One note: what the method reads, its full name, what it computes, and its steps."""

    reads: tuple[str, ...]
    title: str
    idea: str
    algorithm: str


def note(row: MethodRow) -> Note:
    """The note of a method; SystemExit with what is to be done where there is none, or not of this form."""
    room = row.factory.__module__.split(".")[2]
    path = ROOMS / room / f"{row.name}.md"
    where = f"src/secateur/methods/{room}/{row.name}.md"
    if not path.exists():
        raise SystemExit(f"The method {row.name} has no note: write {where}, as docs/_method_notes.py says.")
    found = _NOTE.fullmatch(path.read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"{where} is no note: it needs `reads:`, a title and `## Algorithm` (docs/_method_notes.py).")
    reads = tuple(found[1].split(", "))
    if wrong := set(reads) - set(READS):
        raise SystemExit(f"{where} reads {', '.join(sorted(wrong))}: choose from {', '.join(READS)}.")
    if "$" not in found[3]:
        raise SystemExit(f"{where} has no equation before `## Algorithm`.")
    return Note(reads, found[2].strip(), found[3].strip(), found[4].strip())
