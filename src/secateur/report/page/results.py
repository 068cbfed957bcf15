"""results.json as the report reads it: costs, the task's headline at every point, groups, layers, proof and files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from secateur.report.page import words
from secateur.report.page.fields import Count, Document, Rows, Table
from secateur.tasks import shown as shown_as


class Costs(Document):
    """MACs, parameters and activations of one network, and its latency where that was predicted."""

    macs: Count | None = None
    params: Count | None = None
    activations: Count | None = None
    peak_activations: Count | None = None
    latency: Count | None = None  # microseconds


class TaskUsed(Document):
    """What the network is for, and how its headline reads; runs of before had classification alone."""

    name: str = "classification"
    headline: str = "accuracy"
    higher_is_better: bool = True
    unit: Literal["share", "number", "dB"] = "share"

    @property
    def title(self) -> str:
        """The headline at the beginning of a sentence."""
        return self.headline[:1].upper() + self.headline[1:] if self.headline.islower() else self.headline

    @property
    def scale(self) -> float:
        """What a hundredth is a hundredth of: a share of 1, or ten decibels."""
        return 10.0 if self.unit == "dB" else 1.0

    def shown(self, value: float | None, digits: int = 1) -> str:
        """A headline as people read it."""
        if value is None or self.unit != "share":
            return words.UNKNOWN if value is None else shown_as(value, self.unit)
        return words.percent(value, digits)

    def difference(self, value: float, digits: int = 2) -> str:
        """A difference of two headlines, signed."""
        if self.unit == "share":
            return words.points(value, digits)
        said = shown_as(abs(value), self.unit)
        return f"{'+' if value > 0 else words.MINUS if value < 0 else words.PLUS_MINUS}{said}"


class Quality(Document):
    """The task's headline, each measured once at the end of its stage."""

    dense: float | None = None
    longer: float | None = None  # the dense network, trained as long as the narrow one
    soft: float | None = None
    hard: float | None = None
    pruned: float | None = None
    finetuned: float | None = None
    final: float | None = None
    split: str | None = None
    images: Count | None = None


class GroupRow(Document):
    """One width of the network, before and after."""

    name: str
    width: Count
    kept: Count

    @model_validator(mode="after")
    def _fits(self) -> GroupRow:
        if self.kept > self.width:
            raise ValueError("keeps more channels than there are")
        return self


class FrozenRow(Document):
    """One width that could not be pruned."""

    name: str
    width: Count | None = None
    reason: str | None = None


class UnsupportedRow(Document):
    """An operator without a rule: what it touches is frozen."""

    operator: str
    module: str | None = None


class RepairRow(Document):
    """A size in a module's attribute that had to follow the cut."""

    module: str
    attribute: str
    old: Any = None
    new: Any = None


class Proof(Document):
    """The verification of the cut."""

    exact: bool
    max_relative_error: float | None = None
    structural_error: float | None = None
    tolerance: float | None = None
    reasons: Rows[str] = Field(default_factory=list)
    outputs: Count | None = None


class MethodUsed(Document):
    """The method, as its registry row and its settings say it."""

    name: str
    summary: str | None = None
    paper: str | None = None
    year: Any = None
    arxiv: str | None = None
    acts: str | None = None
    fidelity: str | None = None
    settings: Table[Any] = Field(default_factory=dict)
    notes: Rows[str] = Field(default_factory=list)


class FileRow(Document):
    """One file of the folder."""

    bytes: Count | None = None
    sha256: str | None = None


class LayerRow(Document):
    """MACs and channels of one layer, before and after."""

    name: str
    kind: str | None = None
    macs_before: Count | None = None
    macs_after: Count | None = None
    in_before: Count | None = None
    in_after: Count | None = None
    out_before: Count | None = None
    out_after: Count | None = None


class Sparse(Document):
    """Single weights set to zero in a network that keeps its shape."""

    weights: Count
    nonzero: Count


class Averaged(Document):
    """Of how many images the MACs after the cut are the mean, where they depend on the image."""

    macs: Count
    spread: Count
    images: Count
    most: Count


class Int8Row(Document):
    """The network in 8 bits, by one quantiser."""

    quality: float
    float_quality: float | None = None
    images: Count | None = None
    calibration_images: Count | None = None
    bytes: Count | None = None


class Results(Document):
    """results.json."""

    wanted: ClassVar[str | None] = "secateur.run"
    secateur: Any = None
    torch: Any = None
    python: Any = None
    date: Any = None
    command: Any = None
    sessions: Rows[Any] = Field(default_factory=list)
    device: Any = None
    threads: Any = None
    seed: Any = None
    processes: Any = None
    recipe_name: str | None = None
    model: str | None = None
    arguments: Any = None
    kind: str | None = Field(None, alias="class")
    inputs: Any = None
    data: Table[Any] = Field(default_factory=dict)
    method: MethodUsed | None = None
    budget: Any = None
    before: Costs = Costs()
    after: Costs = Costs()
    task: TaskUsed = TaskUsed()
    quality: Quality = Quality()
    int8: Table[Int8Row] = Field(default_factory=dict)
    not_exported: Table[str] = Field(default_factory=dict)
    groups: Rows[GroupRow] = Field(default_factory=list)
    frozen: list[FrozenRow] | None = None
    unsupported: Rows[UnsupportedRow] = Field(default_factory=list)
    settled: Rows[str] = Field(default_factory=list)
    repairs: Rows[RepairRow] = Field(default_factory=list)
    verification: Proof | None = None
    seconds: Table[Annotated[float, Field(ge=0)] | None] = Field(default_factory=dict)
    epochs: Table[Count | None] = Field(default_factory=dict)
    files: Table[FileRow] = Field(default_factory=dict)
    dense_bytes: Count | None = None
    sparse: Sparse | None = None
    expected: Averaged | None = None
    layers: Rows[LayerRow] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _by_task(cls, value: Any) -> Any:
        """The headline goes by its own name in the file: accuracy, mIoU, PSNR."""
        if not isinstance(value, Mapping):
            return value
        task = value.get("task")
        name = task.get("headline") if isinstance(task, Mapping) else None
        name = name if isinstance(name, str) else "accuracy"
        found = dict(value) | {"quality": value.get(name, {})}
        if isinstance(rows := value.get("int8"), Mapping):
            found["int8"] = {key: _renamed(row, name) for key, row in rows.items()}
        return found

    @model_validator(mode="after")
    def _shares(self) -> Results:
        """A share lies between 0 and 1."""
        if self.task.unit == "share":
            for key, value in self.quality:
                if isinstance(value, float) and not 0 <= value <= 1:
                    raise ValueError(f"{self.task.headline}.{key} is {value:g}, and a share is from 0 to 1")
        return self

    @property
    def data_name(self) -> str | None:
        """The data set's name, if it says one."""
        name = self.data.get("name")
        return name if isinstance(name, str) else None

    def remaining(self, key: str) -> float | None:
        """The fraction of a cost that is left, from the two counts themselves."""
        whole, left = getattr(self.before, key), getattr(self.after, key)
        return left / whole if whole and left is not None else None


def _renamed(row: Any, name: str) -> Any:
    if not isinstance(row, Mapping) or name not in row:
        return row
    return {**row, "quality": row[name], "float_quality": row.get(f"float_{name}")}
