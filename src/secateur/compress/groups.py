"""Accuracy against the share removed, one group at a time: which widths a network can spare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur._files import make_folder, write_bytes, write_json
from secateur._summary import Summary
from secateur.allocate.patterns import matched, parse_patterns
from secateur.compress.held_out import Source
from secateur.compress.judging import Judge
from secateur.compress.result import svg
from secateur.errors import ConfigError, SecateurError
from secateur.graph import Graph, trace
from secateur.methods import method as row_of
from secateur.methods.baselines import OneShot
from secateur.prune import prune
from secateur.tasks import shown

_DRAWN = 10  # lines of the picture: those that suffer most


@dataclass(frozen=True)
class Sensitivity:
    """Figures on held-out images with one group narrowed, the others whole.

    unit: of the figures; scale: how they are written. original: of the whole network. shares: that are removed.
    widths: of the groups.
    figures: for each group, one for each share; None where it could not be cut so. reasons: why, by group.
    """

    unit: str
    scale: str
    original: float
    shares: tuple[float, ...]
    widths: Mapping[str, int]
    figures: Mapping[str, tuple[float | None, ...]]
    reasons: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def ratios(self, drop: float) -> dict[str, float]:
        """The largest share of each group whose removal alone costs at most `drop` points: for `prune(ratios=...)`.

        drop: points of the metric (hundredths). Together they cost more than each alone.
        """
        if not 0 <= drop < 100:
            raise ConfigError(f"drop is {drop!r}: give points of the metric, such as 1 for one percent.")
        least = self.original - (drop / 100 if self.scale == "share" else drop) - 1e-9
        found: dict[str, float] = {}
        for name, figures in self.figures.items():
            good = 0.0
            for share, figure in zip(self.shares, figures, strict=True):
                if figure is None or figure < least:
                    break
                good = share
            found[name] = good
        return found

    def document(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        groups = [
            {"group": name, "width": self.widths[name], "figures": list(figures), "reason": self.reasons.get(name)}
            for name, figures in self.figures.items()
        ]
        return {
            "format": "secateur.sensitivity", "version": 1, "unit": self.unit, "original": self.original,
            "shares": list(self.shares), "groups": groups, "notes": list(self.notes),
        }  # fmt: skip

    def write(self, folder: str | Path) -> None:
        """sensitivity.json into a folder, which is made, and sensitivity.svg where matplotlib is installed."""
        place = Path(folder)
        make_folder(place)
        write_json(place / "sensitivity.json", self.document(), what="The sensitivities")
        picture = self.picture()
        if picture is not None:
            write_bytes(place / "sensitivity.svg", picture, what="The picture")

    def picture(self) -> bytes | None:
        """The groups that suffer most, as SVG; None without matplotlib."""

        def paint(axes: Any) -> None:
            for name in self._ordered()[:_DRAWN]:
                points = [(s, f) for s, f in zip(self.shares, self.figures[name], strict=True) if f is not None]
                axes.plot(
                    [0, *(s for s, _ in points)], [self.original, *(f for _, f in points)], marker="o", label=name
                )
            axes.set_xlabel("share of the group's channels removed")
            axes.set_ylabel(f"{self.unit} on held-out images")
            axes.legend(fontsize="x-small")

        return svg(paint)

    def _ordered(self) -> list[str]:
        """Those that suffer most first."""

        def suffering(name: str) -> float:
            return sum(self.original - figure for figure in self.figures[name] if figure is not None)

        return sorted(self.figures, key=suffering, reverse=True)

    def __str__(self) -> str:
        """As a table, what suffers most first."""
        return self._summary().text()

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return self._summary().html()

    def _summary(self) -> Summary:
        rows = [
            (name, str(self.widths[name]), *(shown(f, self.scale) for f in self.figures[name]))
            for name in self._ordered()
        ]
        whole = shown(self.original, self.scale)
        head = (f"{self.unit[0].upper()}{self.unit[1:]} with one group narrowed; of the whole network {whole}",)
        return Summary(
            head, ("group", "width", *(f"-{share:.0%}" for share in self.shares)), tuple(rows),
            (*self.notes, *(f"{name}: {why}" for name, why in self.reasons.items())), ": .figures has them all",
        )  # fmt: skip


def sensitivities(
    model: nn.Module, example_inputs: Any, source: Source, judge: Judge, shares: Sequence[float], *,
    method: str, repair: Iterable[str] | str, ignore: Iterable[str] | str, seed: int, say: Callable[[str], None],
) -> Sensitivity:  # fmt: skip
    """Prune each group alone to each share, and ask the judge; arguments as for `secateur.sensitivity`."""
    wanted = tuple(sorted(set(shares)))
    if not wanted or not all(isinstance(s, int | float) and 0 < s < 1 for s in wanted):
        raise ConfigError(f"The shares {list(shares)} are to be between 0 and 1, such as 0.25, 0.5, 0.75.")
    row = row_of(method)
    factory: Any = row.factory
    if not (isinstance(factory, type) and issubclass(factory, OneShot)):
        raise ConfigError(
            f"The method {method!r} does more than score, and a sensitivity needs scores: take such as l1."
        )
    mending = [repair] if isinstance(repair, str) else list(repair)
    images = list(source.shown()) if source.shown is not None and (mending or row.needs == "calibration") else None
    graph = trace(model, example_inputs)
    names = _free(graph, ignore)
    notes = (*source.notes, *((judge.note,) if judge.note else ()))
    for line in notes:
        say(line)
    figures: dict[str, tuple[float | None, ...]] = {}
    reasons: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        found: list[float | None] = []
        for share in wanted:
            say(f"group {number} of {len(names)}: {name}, {share:.0%} removed")
            try:
                result = prune(
                    model, example_inputs, method=method, ratios={name: share}, data=images, repair=mending,
                    loss=judge.task.loss if row.labels else None, ignore=ignore, verify=False, seed=seed,
                )  # fmt: skip
                found.append(judge(result.model))
            except SecateurError as error:
                reasons[name] = str(error)
                found.append(None)
        figures[name] = tuple(found)
    widths = {group.name: group.width for group in graph.groups}
    scale = "share" if judge.percent else judge.task.unit
    return Sensitivity(judge.unit, scale, judge(model), wanted, {n: widths[n] for n in names}, figures, reasons, notes)


def _free(graph: Graph, ignore: Iterable[str] | str) -> list[str]:
    """Groups that may be narrowed."""
    patterns = parse_patterns(graph, [ignore] if isinstance(ignore, str) else ignore, "ignore")
    return [group.name for group in graph.groups if not any(matched(each, group.members) for each in patterns)]
