"""What the report reads: the files of a run's folder, checked, so that the rest of the page need not doubt its types.

Only results.json must be there. What else is missing is None here and said to be missing on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from secateur._files import parse_json, read_json, said, shown
from secateur.errors import RunError
from secateur.report.page.fields import Document
from secateur.report.page.measured import Checks, Epoch, Latency
from secateur.report.page.results import Proof, Results

_REMEDY = "finish the run with `secateur run --resume`, or run it again"


@dataclass(frozen=True)
class Run:
    """A run's folder, as far as the report wants it."""

    folder: Path
    results: Results
    metrics: list[Epoch] | None
    latency: Latency | None
    checks: Checks | None
    recipe: str | None

    @property
    def proof(self) -> Proof | None:
        """The verification of the cut, from its own file or from the results."""
        own = self.checks.verification if self.checks else None
        return own or self.results.verification


def read_run(folder: Path) -> Run:
    """Read a run's folder; RunError when it is none, or when a file in it is damaged."""
    results = read_results(folder)
    latency = _object(folder / "latency.json")
    checks = _object(folder / "verification.json")
    if checks is not None and "exact" in checks:
        checks = {**checks, "verification": checks}
    return Run(
        folder,
        results,
        _metrics(folder / "metrics.jsonl"),
        None if latency is None else _check(Latency, latency, "latency.json"),
        None if checks is None else _check(Checks, checks, "verification.json"),
        _text(folder / "recipe.yaml"),
    )


def read_results(folder: Path) -> Results:
    """Read results.json alone."""
    content = _object(folder / "results.json")
    if content is None:
        raise RunError(
            f"{str(folder)!r} is not the folder of a finished run, for it has no results.json; "
            f"finish the run with `secateur run --resume`, or give another folder."
        )
    return _check(Results, content, "results.json")


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None when there is no such file."""
    if not path.exists():
        return None
    try:
        content = read_json(path, what=f"{path.name} of the run")
    except RunError as error:
        raise RunError(f"{str(error).rstrip('.')}: remove it, and {_REMEDY}.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path.name} of the run {str(path.parent)!r} is no JSON object: {_REMEDY}.")
    return content


def _text(path: Path) -> str | None:
    """A text file whole, None when there is none."""
    if not path.exists():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:
        raise RunError(f"{str(path)!r} cannot be read: {said(problem)}.") from problem


def _metrics(path: Path) -> list[Epoch] | None:
    """The lines of metrics.jsonl; the last line of an epoch is the one that counts."""
    text = _text(path)
    if text is None:
        return None
    rows: dict[tuple[str, int], Epoch] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"metrics.jsonl, line {number}"
        try:
            row = _check(Epoch, parse_json(line), where)
        except (ValueError, RecursionError) as problem:
            raise RunError(f"{where} is not valid JSON ({said(problem)}): {_REMEDY}.") from problem
        rows[row.stage, row.epoch] = row
    return list(rows.values())


D = TypeVar("D", bound=Document)


def _check(document: type[D], content: Any, name: str) -> D:
    """The content as a document; the first thing wrong with it as one sentence."""
    if isinstance(content, Mapping) and document.wanted is not None:
        if content.get("format") != document.wanted:
            raise RunError(f"{name} is not a run's: its 'format' is not {document.wanted!r}; give a run's folder.")
        if content.get("version") != 1 or content["version"] is True:
            raise RunError(f"{name} has version {shown(content.get('version'))}: this release reads version 1.")
    try:
        return document.model_validate(content)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        wrong = first["msg"].removeprefix("Value error, ")
        raise RunError(
            f"{name} is damaged or was edited{f', at {shown(where)}' if where else ''} ({wrong}): {_REMEDY}."
        ) from problem
