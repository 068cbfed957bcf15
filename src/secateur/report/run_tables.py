"""A run in the terminal: what will be done, before it, and the headline, after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur._hints import readable
from secateur.report.page.headline import headline
from secateur.report.page.inputs import read_run

if TYPE_CHECKING:
    from secateur.recipe import Recipe, Training


class Prepared(Protocol):
    """What is asked of a run that is about to begin; `secateur.runs.Prepared` is one."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def data(self) -> Any: ...
    @property
    def task(self) -> Any: ...
    @property
    def row(self) -> Any: ...
    @property
    def dense(self) -> Any: ...
    @property
    def stages(self) -> tuple[str, ...]: ...


def plan_table(prepared: Prepared, folder: Path) -> RenderableType:
    """Model, data, method, budget and stages of a run that is about to begin."""
    recipe, data, row = prepared.recipe, prepared.data, prepared.row
    size, cost = "x".join(map(str, data.input_size)), prepared.dense
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for what, said in (
        ("model", f"{recipe.model.reference}: {readable(cost.macs)} MACs, {readable(cost.params)} parameters"),
        (
            "data",
            f"{data.name}: {len(data.train):,} images for training, {len(data.validation):,} for validation, "
            f"{len(data.test):,} for testing; {size}" + (f", {data.classes} classes" if data.classes else ""),
        ),
        ("task", f"{prepared.task.name}, by its {prepared.task.headline}"),
        ("method", f"{row.name}: {row.summary}"),
        ("budget", recipe.budget),
        ("stages", ", ".join(_stages(prepared))),
        ("folder", str(folder)),
    ):
        table.add_row(what, Text(said))
    return Group(Text(recipe.name, "bold"), table)


def _stages(prepared: Prepared) -> Iterator[str]:
    from secateur.recipe import TRAINING

    acts = prepared.row.acts == "while training"
    for stage in prepared.stages:
        training: Training | None = getattr(prepared.recipe, stage) if stage in TRAINING else None
        if training is not None:
            with_method = f" with {prepared.row.name}" if stage == "train" and acts else ""
            yield f"{stage}{with_method} ({training.epochs} {'epoch' if training.epochs == 1 else 'epochs'})"
        elif stage == "prune":
            yield "prune and verify"
        elif stage == "longer":
            yield "dense as long"
        else:
            yield stage


def headline_table(folder: Path) -> RenderableType:
    """What was gained and lost; what is not beyond chance is dim."""
    told = headline(read_run(folder))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    table.add_column("", overflow="fold")
    for column in ("dense", "pruned", "change", "95% interval"):
        table.add_column(column, justify="right", overflow="fold")
    for row in told.rows:
        cells = (row.what, row.before, row.after, row.change, row.between.removesuffix(" points"))
        table.add_row(*(Text(cell) for cell in cells), style="" if row.sure else "dim")
    return Group(Text(told.title, "bold"), table, *(Text(note, "dim") for note in told.notes))
