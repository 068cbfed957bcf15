"""One cell of a comparison, and the rules by which it becomes a recipe: same epochs and same schedules for all.

Let E1 be the epochs of the recipe's `train` and E2 those of its `finetune`. Every cell has E1 + E2 of them:

    acts after training            the base network of its seed (`train`), pruned, then `finetune`, also where the paper
                                   trains no more: what such a method leaves without that stands beside it
    while training, from weights   the base network, a part of `finetune` with the method at work, the rest of it after
                                   the cut
    while training, from new       a part of E1 + E2 with the method at work and the schedule of `train`, then the rest,
                                   with that schedule anew
    before training                `train` with E1 + E2 epochs, of the narrow network
    `dense`                        the base network, whole, then `finetune`: what the epochs alone are worth

The part is the share that the method's paper has (`MethodRow.acting`), rounded, at least one epoch and not all of
them; where a method has no training after the cut, everything. Where it is not known, two thirds of `finetune` (rounded
up), or `train`, with `finetune` after it. Papers with a constant learning rate while the method acts (`acting_rate`)
have it as that share of `train`'s; without `train`, whose rate it refers to, the schedule of `finetune`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from secateur._settings import validated
from secateur.errors import ConfigError
from secateur.methods import MethodRow, method
from secateur.recipe import Distil, Recipe, Training
from secateur.repair import METHOD_OF, repair

Settings = Mapping[str, Mapping[str, Any]]  # of methods and repairs, by name

#: What a comparison decides for each of its cells, and a recipe of its own does not.
DECIDED = ("seed", "method", "budget", "repair")
#: The whole network, trained for as many epochs as any method's; and the budget it keeps.
DENSE, WHOLE = "dense", "flops=1.0"
#: Scores of a plan that keeps every channel.
_NOTHING = "random"


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    method: str
    repair: tuple[str, ...]
    seed: int
    budget: str

    @property
    def label(self) -> str:
        """METHOD, or METHOD+REPAIR: what is compared."""
        return "+".join((self.method, *self.repair))

    @property
    def name(self) -> str:
        """Of its folder."""
        return re.sub(r"[^A-Za-z0-9._+=-]", "_", f"{self.label}-{self.seed}-{self.budget}")

    @property
    def row(self) -> MethodRow:
        """Its method's row."""
        return _dense() if self.method == DENSE else method(self.method)

    @property
    def said(self) -> str:
        """For people."""
        return f"{self.label}, seed {self.seed}, {self.budget}"

    @classmethod
    def parse(cls, label: str, seed: int, budget: str) -> Cell:
        """A cell from a label; ConfigError with the nearest name for a method or repair nobody knows."""
        name, *others = (part.strip() for part in label.split("+"))
        if name == DENSE:
            if others:
                raise ConfigError(f"{label} repairs a network from which nothing is cut: give dense alone.")
            return cls(DENSE, (), seed, WHOLE)
        mended = tuple(METHOD_OF.get(other, other) for other in others)
        for each in mended:
            repair(each)
        return cls(method(name).name, mended, seed, budget)


def _dense() -> MethodRow:
    """The row of the whole network."""
    summary = "the whole network, trained for as many epochs"
    return replace(method(_NOTHING), name=DENSE, summary=summary, paper="none", fidelity="a baseline")


def arrange(recipe: Recipe, cell: Cell, settings: Settings, base: str | None) -> Recipe:
    """The recipe of one cell.

    Args:
        recipe: what is compared on. settings: of methods and repairs. base: file of the base network of the cell's
            seed; None: the recipe's own weights.

    Raises:
        ConfigError: one sentence; the recipe does not go together with this method.
    """
    row = cell.row
    check(recipe, [row])
    sections = _sections(recipe, row)
    values = recipe.to_dict() | {key: part and part.model_dump(mode="python") for key, part in sections.items()}
    if row.begins == "weights":
        values["model"] = values["model"] | {"weights": base or recipe.model.weights}
    return validated(
        Recipe,
        values
        | {
            "seed": cell.seed,
            "budget": cell.budget,
            "method": {"name": _NOTHING if cell.method == DENSE else cell.method, **settings.get(cell.method, {})},
            "repair": tuple({"name": name, **settings.get(name, {})} for name in cell.repair),
            "export": {"onnx": False, "pt2": False},
            "latency": None,  # measured by the comparison itself, with nothing running beside it
        },
    )


def base_recipe(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of a seed's base network; its method and budget choose nothing, as nothing is pruned."""
    decided = {"seed": seed, "method": {"name": _NOTHING}, "budget": WHOLE, "repair": ()}
    without = {"finetune": None, "latency": None, "export": {"onnx": False, "pt2": False}}
    return validated(Recipe, recipe.to_dict() | decided | without)


def check(recipe: Recipe, rows: Iterable[MethodRow]) -> None:
    """ConfigError unless the recipe can be the same for all these methods."""
    if recipe.finetune is None:
        raise ConfigError("finetune is missing, and a comparison fine-tunes: give it, such as finetune: {epochs: 3}.")
    if recipe.pretrain is not None:
        raise ConfigError(
            "pretrain is given, but in a comparison train makes the base network of all methods: put its epochs there."
        )
    if recipe.longer:
        raise ConfigError("longer is given, but in a comparison the row dense is trained as long: leave longer out.")
    if recipe.repair:
        raise ConfigError("repair is given, but in a comparison it is named with a method, such as l1+batchnorm.")
    for row in rows:
        if recipe.train is None and row.begins != "weights":
            raise ConfigError(
                f"train is missing, and {row.name} does not begin with trained weights: give train, or leave "
                f"{row.name} out."
            )
        if recipe.finetune.distill.weight and row.acts != "after training":
            raise ConfigError(
                f"finetune.distill would teach other methods more than {row.name}, which acts {row.acts}: set its "
                f"weight to 0, or leave {row.name} out."
            )


def check_settings(cells: Sequence[Cell], settings: Settings) -> None:
    """ConfigError for a setting that is unknown, impossible or of nothing that is compared."""
    used = {name for cell in cells for name in (cell.method, *cell.repair)}
    for name, given in settings.items():
        if name not in used:
            raise ConfigError(
                f"A setting of {name} is given, which is not compared: name it in --methods, or leave it."
            )
        if any(cell.method == name for cell in cells):
            validated(method(name).config, given, name)
        else:
            repair(name, **given)


def _sections(recipe: Recipe, row: MethodRow) -> dict[str, Training | None]:
    """What is trained, and how long."""
    train, finetune = recipe.train, recipe.finetune
    assert finetune is not None
    if row.acts == "after training":
        return {"train": None}
    if row.begins == "weights":
        acting, rest = split(row, 0, finetune.epochs)
        after = _lasting(finetune, rest) if rest else None
        return {"train": _at_work(row, train, finetune, acting), "finetune": after}
    assert train is not None
    acting, rest = split(row, train.epochs, finetune.epochs)
    after = (_lasting(train, rest) if row.acting else finetune) if rest else None
    return {"train": _at_work(row, train, train, acting), "finetune": after}


def split(row: MethodRow, first: int, last: int) -> tuple[int, int]:
    """Epochs with the method at work, and after the cut, of a method that trains: together `first` + `last`.

    first: of `train`, 0 for a method that begins with weights. last: of `finetune`.
    """
    total = first + last
    if not row.finetunes or row.acts == "before training":
        acting = total
    elif row.acting is not None:
        acting = max(1, min(round(row.acting * total), total - 1))
    else:
        acting = first or -(-2 * last // 3)
    return acting, total - acting


def _at_work(row: MethodRow, train: Training | None, stage: Training, epochs: int) -> Training:
    """The stage with the method at work: its own schedule, or the constant rate of the method's paper."""
    found = _lasting(stage, epochs).model_copy(update={"distill": Distil()})
    if row.acting_rate is None or train is None:
        return found
    plain = {key: Training.model_fields[key].default for key in ("milestones", "gamma", "warmup")}
    return found.model_copy(update={"schedule": "constant", "lr": row.acting_rate * train.lr} | plain)


def _lasting(training: Training, epochs: int) -> Training:
    """The same schedule over so many epochs, without a warm-up that does not fit."""
    warmup = training.warmup if training.warmup < epochs else 0.0
    return training.model_copy(update={"epochs": epochs, "warmup": warmup})
