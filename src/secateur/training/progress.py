"""What a person, or a program, sees of a training run while it lasts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TextIO

from secateur.tasks import shown
from secateur.training.metrics import strict

Row = Mapping[str, Any]
_MEASURING = "measuring layer shapes"
_ROOMY = 100  # columns of a terminal in which a bar may be as long as it likes


class Progress(Protocol):
    """Told by the engine what happens; `steps` are those of one epoch, `done` those of the stage taken before."""

    def start_stage(self, name: str, epochs: int, steps: int, done: int = 0) -> None: ...

    def step(self, loss: float, headline: str, images_per_second: float, extra: Mapping[str, Any]) -> None:
        """Follow one optimiser step: averages of the epoch so far, the task's headline in words ("accuracy 94.1%", or
        nothing where it is measured after an epoch only); `extra` has "step" (of the stage), "epoch" and whatever the
        method says of itself."""

    def epoch(self, row: Row) -> None:
        """Follow one epoch; `row` is its line of metrics.jsonl."""

    def say(self, sentence: str) -> None: ...

    def measured(self, done: int, total: int, runtime: str) -> None:
        """Follow layer shapes that are timed for a latency budget; no stage is under way."""

    def trial(self, done: int, total: int | None, best: str) -> None:
        """Follow one network that a search has tried; `total`: how many there will be at most, where that is known;
        `best`: the best so far, in words ("71.2%")."""

    def end_stage(self) -> None:
        """Nothing is under way any longer, whether a stage has begun or not."""


def make_progress(*, quiet: bool = False, json: bool = False, stream: TextIO | None = None) -> Progress:
    """Bars where a person looks on, one line an epoch where not, JSON lines or nothing on request.

    quiet: nothing. json: a JSON line for every event.
    stream: standard error unless given; for JSON lines standard output.
    """
    if json:
        return JsonLines(stream or sys.stdout)
    if quiet:
        return Silent()
    stream = stream or sys.stderr
    return Bars(stream) if stream.isatty() else Lines(stream)


class Silent:
    """Says nothing."""

    def start_stage(self, name: str, epochs: int, steps: int, done: int = 0) -> None:
        """Say nothing."""

    def step(self, loss: float, headline: str, images_per_second: float, extra: Mapping[str, Any]) -> None:
        """Say nothing."""

    def epoch(self, row: Row) -> None:
        """Say nothing."""

    def say(self, sentence: str) -> None:
        """Say nothing."""

    def measured(self, done: int, total: int, runtime: str) -> None:
        """Say nothing."""

    def trial(self, done: int, total: int | None, best: str) -> None:
        """Say nothing."""

    def end_stage(self) -> None:
        """Say nothing."""


class Lines(Silent):
    """One plain line an epoch, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._epochs = stream, 0

    def start_stage(self, name: str, epochs: int, steps: int, done: int = 0) -> None:
        self._epochs = epochs

    def epoch(self, row: Row) -> None:
        self.say(describe(row, self._epochs))

    def measured(self, done: int, total: int, runtime: str) -> None:
        self.say(f"{_MEASURING} {done} of {total} on {runtime}")

    def trial(self, done: int, total: int | None, best: str) -> None:
        self.say(_tried(done, total, best))

    def say(self, sentence: str) -> None:
        print(sentence, file=self._stream, flush=True)


class JsonLines(Silent):
    """One JSON object a line: {"event": "stage" | "epoch" | "measured" | "trial" | "note" | "end", ...}."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._stage = stream, ""

    def start_stage(self, name: str, epochs: int, steps: int, done: int = 0) -> None:
        self._stage = name
        self._write("stage", {"stage": name, "epochs": epochs, "steps": steps, "done": done})

    def epoch(self, row: Row) -> None:
        self._write("epoch", row)

    def say(self, sentence: str) -> None:
        self._write("note", {"text": sentence})

    def measured(self, done: int, total: int, runtime: str) -> None:
        self._write("measured", {"done": done, "total": total, "runtime": runtime})

    def trial(self, done: int, total: int | None, best: str) -> None:
        self._write("trial", {"done": done, "total": total, "best": best})

    def end_stage(self) -> None:
        if self._stage:
            self._write("end", {"stage": self._stage})
        self._stage = ""

    def _write(self, event: str, values: Mapping[str, Any]) -> None:
        line = json.dumps({"event": event, **strict(values)}, allow_nan=False, ensure_ascii=False)
        print(line, file=self._stream, flush=True)


class Bars:
    """A bar for the stage with epoch, loss, headline, what the method says of itself, throughput and time left."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        self._console = Console(file=stream)
        self._columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24 if self._console.width >= _ROOMY else 10),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._rich = Rich
        self._bars: Any = None
        self._task: Any = None
        self._steps = self._epochs = 0
        self._name = ""
        self._shown = 0.0

    def start_stage(self, name: str, epochs: int, steps: int, done: int = 0) -> None:
        self.end_stage()
        self._name, self._epochs, self._steps = name, epochs, epochs * steps
        self._bars = self._rich(*self._columns, console=self._console, refresh_per_second=4)
        self._task = self._bars.add_task(name, total=self._steps, completed=done, said="")
        self._bars.start()

    def step(self, loss: float, headline: str, images_per_second: float, extra: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if self._bars is None or (now - self._shown < 0.2 and extra.get("step") != self._steps):
            return
        self._shown = now
        known = {k: v for k, v in extra.items() if k not in ("step", "epoch")}
        parts = [f"loss {loss:.3f}", *filter(None, [headline]), *_said(known), f"{images_per_second:,.0f} images/s"]
        where = f"{self._name} {extra.get('epoch', 0)}/{self._epochs}"
        self._bars.update(
            self._task,
            completed=extra.get("step", 0),
            description=where,
            said=_fitting(parts, self._room() - len(where), "  "),
        )

    def _room(self) -> int:
        """Columns beside the bar, its share, its two times and the spaces between them all."""
        columns = self._console.width
        return columns - (24 if columns >= _ROOMY else 10) - len("100%0:00:00left0:00:00") - len(self._columns)

    def epoch(self, row: Row) -> None:
        self.say(describe(row, self._epochs, self._console.width))

    def measured(self, done: int, total: int, runtime: str) -> None:
        if done == 0 or self._bars is None:
            self.end_stage()
            # nothing that turns by itself: it would take time from what is timed
            self._bars = self._rich(*self._columns[:2], self._columns[3], console=self._console, auto_refresh=False)
            self._task = self._bars.add_task(_MEASURING, total=total, said="")
            self._bars.start()
        self._bars.update(self._task, completed=done, said=f"{done} of {total} on {runtime}", refresh=True)
        if done == total:
            self.end_stage()

    def trial(self, done: int, total: int | None, best: str) -> None:
        if self._bars is None:
            self._bars = self._rich(*self._columns, console=self._console, refresh_per_second=4)
            self._task = self._bars.add_task("search", total=total, said="")
            self._bars.start()
        self._bars.update(self._task, completed=done, total=total, said=_tried(done, total, best))

    def say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False, highlight=False)

    def end_stage(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def _tried(done: int, total: int | None, best: str) -> str:
    return f"trial {done}{'' if total is None else f' of {total}'}, best {best}"


def describe(row: Row, epochs: int, columns: int | None = None) -> str:
    """One epoch in a line for people; where it must fit into `columns`, what a method says of itself is left out first.

    All of it stands in metrics.jsonl.
    """
    name, unit = row.get("headline", "accuracy"), row.get("unit", "share")
    trained, watched = row.get(f"train_{name}"), row.get(f"validation_{name}")
    more = f", {name} {shown(trained, unit)}" if trained is not None and name != "loss" else ""
    parts = [f"loss {row['train_loss']:.4f}{more}"]
    if watched is not None:
        said = f", {'' if more else f'{name} '}{shown(watched, unit)}" if name != "loss" else ""
        parts.append(f"validation {row['validation_loss']:.4f}{said}")
    parts += [*_said(row.get("method", {})), f"{row['images_per_second']:,.0f} images/s"]
    begin = f"{row['stage']} {row['epoch']}/{epochs}: "
    return begin + (_fitting(parts, columns - len(begin), "; ") if columns else "; ".join(parts))


def _fitting(parts: Sequence[str], columns: int, between: str) -> str:
    """As many parts as fit: of more than three the last but one goes first, so that loss, headline and speed stay."""
    kept = list(parts)
    while len(kept) > 1 and len(between.join(kept)) > columns:
        del kept[-2 if len(kept) > 3 else -1]
    return between.join(kept)


def _said(values: Mapping[str, Any]) -> list[str]:
    """What a method says of itself: shares as percentages, counts as they are."""
    found = []
    for name, value in values.items():
        if isinstance(value, int | float):
            share = name == "flops" or name.endswith("accuracy")
            text = f"{value:.1%}" if share and 0 <= value <= 1.5 else f"{value:,.4g}"
            found.append(f"{name.replace('_', ' ')} {text}")
    return found
