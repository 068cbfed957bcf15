"""What `secateur latency` says in the terminal: medians with their spread, a sentence a runtime, layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from secateur.report.page.headline import RUNTIMES
from secateur.report.tables import ROWS, fitting, listing

_Row = Mapping[str, Any]


def latency_tables(document: _Row, *, every: bool = False) -> RenderableType:
    """Of a document of `measure` or `measure_alone` that says what was timed.

    every: all layers, however many.
    """
    networks = ("alone",) if document["against"] is None else ("dense", "pruned")
    names = {"alone": document["model"], "dense": document["against"], "pruned": document["model"]}
    short = {"alone": "time", "dense": "against", "pruned": "model"}
    faster = ("faster (95% interval)",) if document["against"] is not None else ()
    said = [(_name(row), *(_faster(row) for _ in faster)) for row in document["runtimes"]]
    heads = (*faster, *(f"{short[key]}, ms" for key in networks))
    rows = [
        (*first, *(f"{row[key]['median_ms']:.3g}" for key in networks))
        for first, row in zip(said, document["runtimes"], strict=True)
    ]
    wide = (*faster, *(f"{short[key]}, ms (10% to 90%)" for key in networks))
    spread = [
        (*first, *(_spread(row[key]) for key in networks))
        for first, row in zip(said, document["runtimes"], strict=True)
    ]
    if spread and fitting([("runtime", *wide), *spread]) > len(wide):
        heads, rows = wide, spread
    parts: list[RenderableType] = [Text(names[networks[-1]], "bold")]
    if document["against"] is not None:
        parts.append(Text(f"against {document['against']}", "bold"))
    if rows:
        parts.append(listing(("runtime", *heads), rows, right=heads))
    parts += [Text(f"{_name(row)}: {row['said']}.") for row in document["runtimes"] if "said" in row]
    parts += [Text(f"{_name(row)} was left out. {row['reason']}", "yellow") for row in document["skipped"]]
    for row in document["runtimes"]:
        parts += _layers(row, networks, every=every)
    return Group(*parts, Text(_conditions(document), "dim"))


def _faster(row: _Row) -> str:
    """How many times faster; nothing but the interval where it contains 1."""
    ratio = row["ratio"]
    between = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
    if ratio["low"] <= 1 <= ratio["high"]:
        return f"not significant ({between})"
    return f"{ratio['median']:.2f}x ({between})"


def _layers(row: _Row, networks: Sequence[str], *, every: bool) -> Iterator[RenderableType]:
    if "layers" not in row:
        return
    if row["layers"] is None:
        yield Text(f"\n{_name(row)}, layer by layer: {row['no_layers'].rstrip('.')}.")
        return
    heads = ["ms"] if len(networks) == 1 else ["against, ms", "model, ms"]
    *layers, rest = row["layers"]
    shown = layers if every else layers[:ROWS]
    hidden = layers[len(shown) :]
    lines = [(each["name"], each["kind"], *(_ms(each[f"{key}_ms"]) for key in networks)) for each in shown]
    if hidden:
        lines.append((f"{len(hidden)} more (--all)", "", *(_ms(_sum(hidden, key)) for key in networks)))
    lines.append((rest["name"], "", *(_ms(rest[f"{key}_ms"]) for key in networks)))
    lines.append(("in all", "", *(_ms(_sum(row["layers"], key)) for key in networks)))
    yield Text(f"\n{_name(row)}, layer by layer", "bold")
    yield listing(("layer", "kind", *heads), lines, right=heads)


def _sum(layers: Sequence[_Row], network: str) -> float:
    return float(sum(each[f"{network}_ms"] or 0.0 for each in layers))


def _ms(value: float | None) -> str:
    return "gone" if value is None else f"{value:.3f}"


def _spread(times: _Row) -> str:
    return f"{times['median_ms']:.3g} ({times['p10_ms']:.3g} to {times['p90_ms']:.3g})"


def _name(row: _Row) -> str:
    return RUNTIMES.get(row["runtime"], row["runtime"])


def _conditions(document: _Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    threads = "1 thread" if document["threads"] == 1 else f"{document['threads']} threads"
    turns = "" if document["against"] is None else " in turns"
    return (
        f"\nBatch of {document['batch_size']}, {threads}, {document['repeats']} times{turns} after warming up, on "
        f"{document['device']}; {versions}."
    )


def stairs_tables(document: _Row) -> RenderableType:
    """Of a document of `secateur latency --staircase`: a table a runtime, widths downwards."""
    parts: list[RenderableType] = [Text(document["model"], "bold")]
    for row in document["runtimes"]:
        sides = row["sides"]
        widths = sorted({width for said in sides.values() for width in said["widths"]}, reverse=True)
        times = [dict(zip(said["widths"], said["us"], strict=True)) for said in sides.values()]
        lines = [(str(n), *(f"{each[n]:.1f}" if n in each else "" for each in times)) for n in widths]
        heads = ["channels", *(f"{side}, us" for side in sides)]
        what = f"{row['layer']}: {row['form']}, {row['outputs']} outputs of {row['inputs']} inputs"
        parts.append(Text(f"\n{_name({'runtime': row['target'].partition(':')[0]})}, {what}", "bold"))
        parts.append(listing(heads, lines, right=heads))
        parts += [Text(f"{side.capitalize()}: {_steps(said)}.") for side, said in sides.items()]
    parts += [Text(f"{_name(row)} was left out. {row['reason']}", "yellow") for row in document["skipped"]]
    return Group(*parts)


def _steps(said: _Row) -> str:
    widths, times, step = said["widths"], said["us"], said["step"]
    fall = 100 * (1 - times[0] / times[-1])
    how = f"steps of {step} fit best, so --align {step} or a multiple of it" if step > 1 else "no steps"
    saved = f"save {fall:.0f}% of the time" if fall > 0 else "save no time"
    return f"{how}; {widths[0]} instead of {widths[-1]} channels {saved}"
