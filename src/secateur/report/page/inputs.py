"""What the report reads: the files of a run's folder, checked, so that the rest of the page need not doubt its types.

Only results.json must be there. What else is missing is None here and said to be missing on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from secateur._files import parse_json, read_json, said, shown
from secateur.errors import RunError
from secateur.report.page import words
from secateur.tasks import shown as shown_as

Count = Annotated[int, Field(ge=0, le=1 << 62)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]


def _empty_list(value: object) -> object:
    return [] if value is None else value


def _empty_dict(value: object) -> object:
    return {} if value is None else value


_REMEDY = "finish the run with `secateur run --resume`, or run it again"

T = TypeVar("T")
Rows = Annotated[list[T], BeforeValidator(_empty_list)]
Table = Annotated[dict[str, T], BeforeValidator(_empty_dict)]


class _Document(BaseModel):
    """What a file says; keys this report does not know are another reader's."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)
    wanted: ClassVar[str | None] = None  # what its 'format' must be


class Costs(_Document):
    """MACs, parameters and activations of one network, and its latency where that was predicted."""

    macs: Count | None = None
    params: Count | None = None
    activations: Count | None = None
    peak_activations: Count | None = None
    latency: Count | None = None  # microseconds


class TaskUsed(_Document):
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


class Quality(_Document):
    """The task's headline, each measured once at the end of its stage."""

    dense: float | None = None
    soft: float | None = None
    hard: float | None = None
    pruned: float | None = None
    finetuned: float | None = None
    final: float | None = None
    split: str | None = None
    images: Count | None = None


class GroupRow(_Document):
    """One width of the network, before and after."""

    name: str
    width: Count
    kept: Count

    @model_validator(mode="after")
    def _fits(self) -> GroupRow:
        if self.kept > self.width:
            raise ValueError("keeps more channels than there are")
        return self


class FrozenRow(_Document):
    """One width that could not be pruned."""

    name: str
    width: Count | None = None
    reason: str | None = None


class UnsupportedRow(_Document):
    """An operator without a rule: what it touches is frozen."""

    operator: str
    module: str | None = None


class RepairRow(_Document):
    """A size in a module's attribute that had to follow the cut."""

    module: str
    attribute: str
    old: Any = None
    new: Any = None


class Proof(_Document):
    """The verification of the cut."""

    exact: bool
    max_relative_error: float | None = None
    structural_error: float | None = None
    tolerance: float | None = None
    reasons: Rows[str] = []
    outputs: Count | None = None


class MethodUsed(_Document):
    """The method, as its registry row and its settings say it."""

    name: str
    summary: str | None = None
    paper: str | None = None
    year: Any = None
    arxiv: str | None = None
    fidelity: str | None = None
    settings: Table[Any] = {}
    notes: Rows[str] = []


class FileRow(_Document):
    """One file of the folder."""

    bytes: Count | None = None
    sha256: str | None = None


class LayerRow(_Document):
    """MACs and channels of one layer, before and after."""

    name: str
    kind: str | None = None
    macs_before: Count | None = None
    macs_after: Count | None = None
    in_before: Count | None = None
    in_after: Count | None = None
    out_before: Count | None = None
    out_after: Count | None = None


class Sparse(_Document):
    """Single weights set to zero in a network that keeps its shape."""

    weights: Count
    nonzero: Count


class Int8Row(_Document):
    """The network in 8 bits, by one quantiser."""

    quality: float
    float_quality: float | None = None
    images: Count | None = None
    calibration_images: Count | None = None
    bytes: Count | None = None


class Results(_Document):
    """results.json."""

    wanted: ClassVar[str | None] = "secateur.run"
    secateur: Any = None
    torch: Any = None
    python: Any = None
    date: Any = None
    command: Any = None
    sessions: Rows[Any] = []
    device: Any = None
    threads: Any = None
    seed: Any = None
    processes: Any = None
    recipe_name: str | None = None
    model: str | None = None
    arguments: Any = None
    kind: str | None = Field(None, alias="class")
    inputs: Any = None
    data: Table[Any] = {}
    method: MethodUsed | None = None
    budget: Any = None
    before: Costs = Costs()
    after: Costs = Costs()
    task: TaskUsed = TaskUsed()
    quality: Quality = Quality()
    int8: Table[Int8Row] = {}
    not_exported: Table[str] = {}
    groups: Rows[GroupRow] = []
    frozen: list[FrozenRow] | None = None
    unsupported: Rows[UnsupportedRow] = []
    settled: Rows[str] = []
    repairs: Rows[RepairRow] = []
    verification: Proof | None = None
    seconds: Table[Annotated[float, Field(ge=0)] | None] = {}
    epochs: Table[Count | None] = {}
    files: Table[FileRow] = {}
    dense_bytes: Count | None = None
    sparse: Sparse | None = None
    layers: Rows[LayerRow] = []

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


class Epoch(_Document):
    """One line of metrics.jsonl."""

    stage: str
    epoch: Count
    seconds: float | None = None
    train_loss: float | None = None
    train_quality: float | None = None
    validation_loss: float | None = None
    validation_quality: float | None = None
    learning_rate: float | None = None
    images_per_second: float | None = None
    method: Table[float | None] = {}

    @model_validator(mode="before")
    @classmethod
    def _by_task(cls, value: Any) -> Any:
        """The headline goes by its own name in the file."""
        if not isinstance(value, Mapping):
            return value
        name = value.get("headline", "accuracy")
        return {**value, **{f"{part}_quality": value.get(f"{part}_{name}") for part in ("train", "validation")}}


class Times(_Document):
    """Spread of one network's latency."""

    median_ms: Milliseconds | None = None
    p10_ms: Milliseconds | None = None
    p90_ms: Milliseconds | None = None


class SkippedRow(_Document):
    """A runtime that could not run the networks."""

    runtime: str
    reason: str | None = None


class Interval(_Document):
    """Dense time over pruned time, paired."""

    median: Annotated[float, Field(gt=0)]
    low: Annotated[float, Field(gt=0)] | None = None
    high: Annotated[float, Field(gt=0)] | None = None


class RuntimeRow(_Document):
    """Latency on one runtime."""

    runtime: str
    dense: Times | None = None
    pruned: Times | None = None
    ratio: Interval | None = None
    speedup: bool | None = None
    said: str | None = None

    @property
    def apart(self) -> bool:
        """Whether the times differ by more than chance: the ratio's interval leaves 1 out, and no judgement stands."""
        if self.ratio is None:
            return False
        low, high = self.ratio.low or self.ratio.median, self.ratio.high or self.ratio.median
        return high < 1 or (low > 1 and self.speedup is not False)


class LayerTimes(_Document):
    """Time of one layer, dense and pruned."""

    name: str
    kind: str | None = None
    dense_ms: Milliseconds | None = None
    pruned_ms: Milliseconds | None = None


class Latency(_Document):
    """latency.json."""

    wanted: ClassVar[str | None] = "secateur.latency"
    batch_size: Any = None
    threads: Any = None
    repeats: Any = None
    date: Any = None
    device: Any = None
    versions: Any = None
    runtimes: Rows[RuntimeRow] = []
    skipped: Rows[SkippedRow] = []
    layers: Rows[LayerTimes] = []


class Exported(_Document):
    """Agreement of an exported file with the network."""

    max_relative_error: float | None = None
    tolerance: float | None = None
    dynamic_batch: bool | None = None
    reason: str | None = None  # why not dynamic


class Checks(_Document):
    """verification.json, apart from the proof of the cut, which may stand in it directly or under "verification"."""

    verification: Proof | None = None
    onnx: Exported | None = None
    pt2: Exported | None = None
    openvino: Exported | None = None
    executorch: Exported | None = None


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
    content = read_json(path, what=f"{path.name} of the run")
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


D = TypeVar("D", bound=_Document)


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
