"""`write_report`: a run's folder as one self-contained HTML page for a colleague.

All strings out of the files are foreign: the template escapes them, and what could turn text around or is no character
is taken out of the finished page. The same folder gives the same bytes.
"""

from __future__ import annotations

import base64
import functools
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from secateur._files import write_text
from secateur._hints import install
from secateur.errors import ConfigError, RunError
from secateur.report.page import curves, described, headline, hero, layers, network, pictures, proof, speed, words
from secateur.report.page.inputs import Run, read_results, read_run
from secateur.report.page.results import GroupRow, MethodUsed, Results

if TYPE_CHECKING:
    from jinja2 import Environment

NAME = "report.html"
# control characters, halves of surrogate pairs, and marks that turn the direction of text around
_FOREIGN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_ARXIV = re.compile(r"\d{4}\.\d{4,5}(v\d{1,2})?|[a-z-]{2,20}(\.[A-Z]{2})?/\d{7}(v\d{1,2})?")
_COMMAND = re.compile(r"`([^`]{1,40})`")


@dataclass(frozen=True)
class Stage:
    """One row of the table of stages."""

    name: str
    epochs: str
    seconds: str
    rate: str


def write_report(folder: str | os.PathLike[str], others: Iterable[str | os.PathLike[str]] = ()) -> Path:
    """Write report.html into a run's folder from the files that are there, and return its path.

    Args:
        folder: what `secateur run` left. others: folders of runs whose end points join the picture of accuracy
            against MACs.

    Raises:
        RunError: this is not a finished run's folder, or a file in it is damaged.
        ConfigError: jinja2 is not installed.
    """
    _environment()  # a missing package is missed before anything is read
    root = Path(folder)
    try:
        run = read_run(root)
        apart = [Path(other) for other in others if Path(other).resolve() != root.resolve()]
        beside = [(other, read_results(other)) for other in apart]
        page = render("report.html.jinja", _content(run, beside))
    except RecursionError as problem:
        raise RunError(f"A file of the run {str(root)!r} is nested too deeply to be shown: run it again.") from problem
    target = root / NAME
    write_text(target, page, what="The report")
    return target


def render(template: str, content: Mapping[str, Any]) -> str:
    """A page of ours: everything in `content` is escaped, and what no page should hold is taken out.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    script = _script()
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template).render(content, script=script, digest=digest)
    return _FOREIGN.sub("\N{REPLACEMENT CHARACTER}", page)


@functools.cache
def _script() -> str:
    """What sorts and filters the tables: the one script that the page allows itself, by its hash."""
    return files("secateur.report").joinpath("templates", "page.js").read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as problem:
        raise ConfigError(f"The report needs jinja2: {install('train')}.") from problem
    found = Environment(
        loader=PackageLoader("secateur.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(
        plain=words.plain,
        percent=words.percent,
        moment=words.moment,
        brief=words.brief,
        name=words.shortened,
        coded=_coded,
        typed=_typed,
        milliseconds=words.milliseconds,
    )
    return found


def _coded(text: str) -> str:
    """Text in which commands stand between backticks: escaped, and they as code that no line breaks."""
    return _COMMAND.sub(r'<code class="w">\1</code>', escape(text))


def _typed(command: str) -> str:
    """A command, escaped, with an option a line, as a shell reads it; a long list may break behind a comma."""
    return escape(command).replace(" --", " \\\n    --").replace(",", ",<wbr>")


def _content(run: Run, others: Sequence[tuple[Path, Results]]) -> dict[str, Any]:
    """Everything the template names. Pictures are markup made here; all else is text."""
    results, known = run.results, layers.facts(run)
    lines = layers.lines(known)
    longest = max((max(line.layer.dense_ms, line.layer.pruned_ms) for line in lines), default=0.0)
    head = headline.headline(run)
    drawn = [(line, pictures.paired(line.layer.dense_ms, line.layer.pruned_ms, longest)) for line in lines]
    return {
        "head": head,
        "cards": hero.cards(run),
        "quality": results.task.title,
        "rows": [(row, _share_bar(row.share)) for row in head.rows],
        "run": run,
        "results": results,
        "network": network.network(results),
        "groups": _groups(results.groups),
        "widths": _widths(results.groups),
        "curves": curves.curves(run),
        "known": curves.known_points(run, others),
        "statements": proof.statements(run),
        "files": proof.files(results),
        "frozen": proof.frozen(results),
        "unsupported": proof.unsupported(results),
        "remarks": speed.remarks(known),
        "layers": drawn[: layers.SHOWN],
        "every_layer": drawn if len(drawn) > layers.SHOWN else [],
        "odd": any(line.layer.misaligned for line in lines),
        "kinds": layers.kinds(known),
        "measured": _measured(run),
        "method": results.method,
        "arxiv": _arxiv(results.method),
        "settings": described.settings(results.method) if results.method else (),
        "data": described.data(results.data),
        "command": _command(results.command),
        "origin": _origin(results),
        "stages": _stages(run),
    }


def _share_bar(share: float | None) -> str:
    return "" if share is None else pictures.overlaid(1.0, share, max(1.0, share))


def _groups(groups: Sequence[GroupRow]) -> tuple[tuple[GroupRow, float, str], ...]:
    """Every group with the share that remains and a bar."""
    most = max((group.width for group in groups), default=0)
    return tuple((g, g.kept / g.width if g.width else 1.0, pictures.overlaid(g.width, g.kept, most)) for g in groups)


def _widths(groups: Sequence[GroupRow]) -> str:
    """The sums of the groups in a sentence."""
    whole, left = sum(group.width for group in groups), sum(group.kept for group in groups)
    same = sum(group.width == group.kept for group in groups)
    stayed = f"; {words.number_of(same, 'group')} stayed whole" if same else ""
    said = f"{words.number_of(len(groups), 'group')}, {whole:,} channels before and {left:,} after"
    return f"{said} ({words.percent(left / whole if whole else 1.0)} remain){stayed}"


def _measured(run: Run) -> str:
    """How the latency was measured, in a line."""
    known = run.latency
    if known is None:
        return "Latency was not measured in this run (no latency.json)."
    said = [
        f"{what} {words.plain(value)}"
        for what, value in (
            ("batch size", known.batch_size),
            ("threads", known.threads),
            ("repeats", known.repeats),
            ("on", known.device),
            ("with", _versions(known.versions)),
            ("on", None if known.date is None else words.moment(known.date)),
        )
        if value is not None
    ]
    skipped = [f" {row.runtime} was left out: {row.reason or 'no reason was given'}" for row in known.skipped]
    return f"Dense and pruned timed in turn: {'; '.join(said) or 'no conditions are given'}.{''.join(skipped)}"


def _versions(known: Any) -> Any:
    """ "PyTorch 2.13.0, ONNX Runtime 1.31": packages by the names that people know."""
    if not isinstance(known, dict):
        return known
    names = {"python": "Python", "torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    return ", ".join(f"{names.get(name, name)} {words.plain(version)}" for name, version in known.items()) or None


def _arxiv(method: MethodUsed | None) -> str | None:
    """The paper's number, if it is one and not some other text."""
    number = (method.arxiv or "").removeprefix("arXiv:") if method else ""
    return number if _ARXIV.fullmatch(number) else None


def _command(given: Any) -> str:
    """What was typed."""
    if isinstance(given, list):
        return shlex.join(str(part) for part in given)
    return given if isinstance(given, str) and given.strip() else "The command is not recorded."


def _origin(results: Results) -> tuple[tuple[str, str], ...]:
    """Where and with what the run was made."""
    named = (
        ("Date", None if results.date is None else words.moment(results.date)),
        ("Device", results.device),
        ("Threads", results.threads),
        ("Processes", results.processes),
        ("Seed", results.seed),
        ("Secateur", results.secateur),
        ("PyTorch", results.torch),
        ("Python", results.python),
        ("Network", results.model),
        ("Its arguments", results.arguments),
        ("Class", results.kind),
        ("Sessions", len(results.sessions) or None),
        ("Inputs", ["×".join(map(words.plain, shape)) for shape in _shapes(results.inputs)]),
    )
    return tuple((name, words.plain(value) if value not in (None, [], {}) else "not recorded") for name, value in named)


def _shapes(inputs: Any) -> list[list[Any]]:
    return [shape for shape in inputs if isinstance(shape, list)] if isinstance(inputs, list) else []


def _stages(run: Run) -> tuple[Stage, ...]:
    """Epochs, time and throughput of every stage, in the order of the results; the total last."""
    names = list(dict.fromkeys([*run.results.seconds, *run.results.epochs]))
    names.sort(key=lambda name: name == "total")
    rates: dict[str, list[float]] = {}
    for row in run.metrics or ():
        if row.images_per_second is not None:
            rates.setdefault(row.stage, []).append(row.images_per_second)
    return tuple(
        Stage(
            name,
            words.exactly(run.results.epochs.get(name)),
            words.seconds(spent) if (spent := run.results.seconds.get(name)) is not None else "",
            f"{median(rates[name]):,.0f}" if name in rates else "",
        )
        for name in names
        if run.results.seconds.get(name) is not None or run.results.epochs.get(name)
    )
