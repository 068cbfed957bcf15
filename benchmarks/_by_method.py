"""What the result files say about each method: read by the page that helps to choose and by the pages of methods."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import _record
from _markdown import Row
from _one_shot_page import averages

HALF = "flops=0.5"
#: The comparison made anew for methods whose defaults or schedules have changed since the large one.
ANEW = "compare_anew"
CHANGED = ("nap", "cpmc", "dcpcac", "csgd", "cwb", "pfp", "group_fisher", "catro", "dcp", "functionality")
ONE_SHOT = "cifar10"


@dataclass
class Facts:
    """One method's results; what was not measured is empty."""

    means: dict[str, Row] = field(default_factory=dict)  # of a comparison, by budget
    compared: dict[str, Any] | None = None  # that comparison
    top1: dict[str, float] = field(default_factory=dict)  # straight after the cut, at half the FLOPs, by repair
    score_s: float | None = None  # to look, score and plan there
    networks: list[Row] = field(default_factory=list)
    passes: float | None = None  # time to look and score, in passes forward and back over the same images (ResNet-50)
    step: str = ""  # a training step, in plain ones
    board: list[float] = field(default_factory=list)  # final accuracies on the leaderboard's first network (`level`)
    speed: list[Row] = field(default_factory=list)  # how much faster it is there, by runtime, of every seed
    longer: list[Row] = field(default_factory=list)  # what more epochs change where it ends below random choice
    tried: list[Row] = field(default_factory=list)  # its settings, compared on data of no report

    def final(self, budget: str = HALF) -> float | None:
        """Mean accuracy in the end."""
        return self.means[budget]["values"]["accuracy.final"]["mean"] if budget in self.means else None

    def value(self, key: str, budget: str = HALF) -> float | None:
        """A mean of the comparison; None where there is none."""
        found = self.means[budget]["values"].get(key) if budget in self.means else None
        return found["mean"] if found else None

    def mended(self) -> tuple[str, float] | None:
        """The repair behind which most is left, and how much."""
        tried = {name: top1 for name, top1 in self.top1.items() if name != "none"}
        best = max(tried, key=lambda name: tried[name], default=None)
        return None if best is None else (best, tried[best])


@dataclass
class Measured:
    """All methods' results, and what they have in common."""

    facts: dict[str, Facts]
    compared: dict[str, Any] | None
    one_shot: dict[str, Any] | None
    networks: dict[str, Any] | None
    board: dict[str, Any] | None = None
    longer: dict[str, Any] | None = None
    tried: dict[str, Any] | None = None

    def of(self, name: str) -> Facts:
        """Of one method."""
        return self.facts.get(name, Facts())

    @property
    def dense(self) -> float:
        """Top-1 of the network that is cut and not trained on."""
        return statistics.mean(self.one_shot["dense"].values()) if self.one_shot else float("nan")

    @property
    def error(self) -> float:
        """How well a top-1 straight after the cut is known: one standard deviation of drawing the test images."""
        if not self.one_shot:
            return float("nan")
        return float((self.dense * (1 - self.dense) / self.one_shot["tested"]) ** 0.5)


def measured() -> Measured:
    """Whatever result files there are."""
    compared, one_shot, networks = (_found(n) for n in ("compare_short", f"one_shot_{ONE_SHOT}", "networks"))
    facts: dict[str, Facts] = {}

    def of(name: str) -> Facts:
        return facts.setdefault(name, Facts())

    anew = _found(ANEW)
    renewed = CHANGED if anew else ()
    for result, mean in [(each, mean) for each in (compared, anew) if each for mean in each["means"]]:
        label = mean["label"]
        if "+" not in label and (label in renewed) is (result is anew):  # a method with a repair is another rival
            of(label).means[mean["budget"]], of(label).compared = mean, result
    rows = one_shot["rows"] if one_shot else []
    for (name, repair, left), top1 in averages(rows).items():
        if left == 0.5:
            of(name).top1[repair] = top1
    for row in rows:
        if row["left"] == 0.5 and "score_s" in row:
            of(row["method"]).score_s = row["score_s"]
    for row in networks["rows"] if networks else ():
        of(row["method"]).networks.append(row)
    scores = _found("score_speed")
    for row in scores["rows"] if scores else ():
        of(row["method"]).passes = row["ratio"]
    for name, step in _steps().items():
        of(name).step = step
    board, longer, tried = _found("leaderboard/resnet20"), _found("below_random"), _found("method_defaults")
    for row in level(board["rows"]) if board else ():
        of(row["label"]).board.append(row["accuracy"]["final"])
        of(row["label"]).speed += [row["latency"]] if row["latency"] else []
    for row in longer["rows"] if longer else ():
        of(row["method"]).longer.append(row)
    for row in tried["rows"] if tried else ():
        of(row["method"]).tried.append(row)
    return Measured(facts, compared, one_shot, networks, board, longer, tried)


def level(rows: Sequence[Row]) -> list[Row]:
    """Those of the leaderboard at half the FLOPs, of the seeds that all methods have: others may be harder."""
    half = [row for row in rows if row["budget"] == HALF]
    seeds = [{row["seed"] for row in half if row["label"] == label} for label in {row["label"] for row in half}]
    shared = set.intersection(*seeds) if seeds else set()
    return [row for row in half if row["seed"] in shared]


@dataclass(frozen=True)
class Compared:
    """One comparison at half the FLOPs: by method, the mean accuracy in the end and straight after the cut."""

    accuracies: dict[str, tuple[float, float]]
    seeds: int
    result: dict[str, Any]


def among(method: str) -> Compared | None:
    """The comparison that has this method; None where none has."""
    for name in (*([ANEW] if method in CHANGED else []), "compare_short", "compare_new", "compare_manidp"):
        result = _found(name)
        rows = [row for row in result["rows"] if row["budget"] == HALF or row["label"] == "dense"] if result else []
        if result is None or all(row["label"] != method for row in rows):
            continue
        every: dict[str, list[dict[str, float]]] = {}
        for row in rows:
            every.setdefault(row["label"], []).append(row["accuracy"])
        means = {
            label: (statistics.mean(a["final"] for a in told), statistics.mean(a["pruned"] for a in told))
            for label, told in every.items()
        }
        return Compared(means, len(every[method]), result)
    return None


def kernels() -> dict[str, Any] | None:
    """Accuracies of DKP, which no comparison of channels has, and of other choices of kernels."""
    return _found("dkp_kernels")


def _found(name: str) -> dict[str, Any] | None:
    path = _record.RESULTS / f"{name}.json"
    return _record.read(path) if path.exists() else None


def _steps() -> dict[str, str]:
    steps = {}
    for name in ("bwcp", "csgd"):
        if found := _found(f"{name}_step"):
            steps[name] = f"{found['rows'][0][name]['ratio']:.2f}"
    if found := _found("dcpcac_steps"):
        first, *_, last = found["rows"]
        steps["dcpcac"] = f"{first['ratio']:.2f}, in the end {last['ratio']:.2f}"
    return steps
