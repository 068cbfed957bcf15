"""Latency of the dense and the pruned network, measured side by side in one process, with the uncertainty of the ratio.

The two take turns, and who goes first alternates (A B B A ...), so that what else the machine does hits both alike.

A difference counts where the interval of the ratio of the medians, a paired bootstrap's at 95%, does not contain 1: the
runs of a pair meet the same machine, so the interval holds on a noisy one, too. Where the middle 80% of a network's
times span more than a quarter of their median, the sentence adds that the machine is noisy, with both ranges.
"""

from __future__ import annotations

import datetime
import gc
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from secateur._protocols import FloatArray
from secateur.errors import ConfigError, RunError
from secateur.runtime.engines import Call, Engine, copied, device_of, engines_of, pytorch, threads_set
from secateur.runtime.inputs import with_batch
from secateur.runtime.layers import layer_times

RUNTIMES = ("pytorch", "onnxruntime")  # of a recipe that names none; see `engines.ENGINES` for all
_SAMPLE = 2e-3  # seconds; a shorter run is repeated within one sample, or the clock would be measured
_MOST_INNER = 200
_WARM = 0.2  # seconds of warming up at least
_RESAMPLES = 2000
_LEVEL = (2.5, 97.5)
_NOISY = 0.25  # of the median; the middle 80% of times on a quiet machine span less
_MOST_PROFILED = 10
_clock = time.perf_counter

#: Of the name of a runtime, the name of a network, and the network: what runs there in its place.
Placed: TypeAlias = Callable[[str, str, nn.Module], nn.Module]
FUSED = "it does not tell the times of single layers, because it computes several as one"


def measure(
    dense: nn.Module,
    pruned: nn.Module,
    example_inputs: Any,
    *,
    batch_size: int = 1,
    repeats: int = 30,
    threads: int = 1,
    runtimes: Sequence[str] | str = RUNTIMES,
    warmup: int = 3,
    seed: int = 0,
    layers: bool = False,
    images: Sequence[Any] | None = None,
    placed: Placed | None = None,
) -> dict[str, Any]:
    """Time both networks and return the content of `latency.json`.

    PyTorch runs them where their parameters are, the other runtimes on the CPU. A runtime that cannot run these
    networks is listed under "skipped" with the reason. The number of threads is set for the measurement alone.

    Args:
        dense, pruned: the two networks; they stay as they are. example_inputs: what both run with.
        batch_size: samples of these at a time. repeats: timed runs of each. threads: of the CPU.
        runtimes: names of `engines.ENGINES`, or one. warmup: runs of each network before the first is timed; more, if
            they are done in less than 0.2 seconds. seed: of the draws behind the ratio's interval.
        layers: every runtime's times by layer as well, in its row; those of PyTorch are there in any case.
        images: inputs to run in place of these, each as it is, where what a network computes depends on them. Times
            are then means over them, and those by layer of the first.
        placed: what runs on a runtime in place of a network, which is called "dense" or "pruned", if not itself.

    Raises:
        ConfigError: a setting is impossible, or a runtime is not installed. RunError: the networks do not run.
    """
    session = _Session(
        {"dense": dense, "pruned": pruned}, example_inputs, batch_size, repeats, threads, warmup, images, placed
    )
    with threads_set(threads):
        document = session.measured(
            runtimes, lambda times: compare(times["dense"], times["pruned"], seed=seed), layers=layers
        )
        there = (row["layers"] for row in document["runtimes"] if layers and row["runtime"] == "pytorch")
        rows = next(there, None) or session.layer_times(pytorch.ENGINE)
    return {**document, "layers": rows[:-1]}  # without the rest, of which the report has its own idea


def measure_alone(
    model: nn.Module,
    example_inputs: Any,
    *,
    batch_size: int = 1,
    repeats: int = 30,
    threads: int = 1,
    runtimes: Sequence[str] | str = RUNTIMES,
    warmup: int = 3,
    layers: bool = False,
) -> dict[str, Any]:
    """Time one network; as `measure`, with the spread under "alone" in the row of each runtime, and no comparison."""
    session = _Session({"alone": model}, example_inputs, batch_size, repeats, threads, warmup)
    with threads_set(threads):
        return session.measured(runtimes, lambda times: {"alone": _spread(np.array(times["alone"]))}, layers=layers)


def measure_each(
    dense: nn.Module,
    pruned: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    batch_size: int = 1,
    repeats: int = 30,
    threads: int = 1,
    runtimes: Sequence[str] | str = RUNTIMES,
    warmup: int = 3,
    seed: int = 0,
    images: Sequence[Any] | None = None,
    placed: Placed | None = None,
) -> dict[str, dict[str, Any]]:
    """Time many networks against one dense network, all in turns in one session: a document as `measure`'s for each.

    A network that a runtime cannot run is left out there, and its document says so; the others are timed.

    Args:
        dense, example_inputs, batch_size, repeats, threads, runtimes, warmup, seed, images: as in `measure`.
        pruned: the networks by name. placed: as in `measure`; the dense network's name is empty.

    Raises:
        ConfigError: a setting is impossible, or a runtime is not installed. RunError: a network does not run at all.
    """
    models = {"": dense, **pruned}
    session = _Session(models, example_inputs, batch_size, repeats, threads, warmup, images, placed)

    def each(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        return {"of": {name: compare(times[""], times[name], seed=seed) for name in pruned if name in times}}

    with threads_set(threads):
        document = session.measured(runtimes, each, layers=False)
    rows = document.pop("runtimes")
    return {
        name: {
            **document,
            "runtimes": [{"runtime": row["runtime"], **row["of"][name]} for row in rows if name in row["of"]],
            "skipped": [row for who, row in session.left_out if who in ("", name)],
        }
        for name in pruned
    }


def compare(dense: Sequence[float], pruned: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """What the times of paired runs (seconds) say: medians and spreads, the ratio with its interval, and a sentence."""
    pairs = np.array([dense, pruned], dtype=np.float64)
    draws = np.random.default_rng(seed).integers(pairs.shape[1], size=(_RESAMPLES, pairs.shape[1]))
    medians = np.median(pairs[:, draws], axis=2)
    low, high = np.percentile(medians[0] / medians[1], _LEVEL)
    ratio = float(np.median(pairs[0]) / np.median(pairs[1]))
    low, high = min(float(low), ratio), max(float(high), ratio)
    before, after = _spread(pairs[0]), _spread(pairs[1])
    noisy = any(times["p90_ms"] - times["p10_ms"] > _NOISY * times["median_ms"] for times in (before, after))
    return {
        "dense": before,
        "pruned": after,
        "ratio": {"median": _digits(ratio), "low": _digits(low), "high": _digits(high)},
        "speedup": low > 1,
        "noisy": noisy,
        "said": _said(ratio, low, high) + (_noise(before, after) if noisy else ""),
    }


def _said(ratio: float, low: float, high: float) -> str:
    if low <= 1 <= high:
        return f"no speed-up: the interval of the ratio ({low:.2f} to {high:.2f}) contains 1"
    if low > 1:
        return f"{ratio:.2f}x faster ({low:.2f} to {high:.2f})"
    return f"no speed-up: {1 / ratio:.2f}x slower ({1 / high:.2f} to {1 / low:.2f})"


def _noise(*spreads: Mapping[str, float]) -> str:
    ranges = " and ".join(f"{times['p10_ms']:.4g} to {times['p90_ms']:.4g} ms" for times in spreads)
    return f"; the machine is noisy (middle 80% of the times: {ranges})"


class _Session:
    """The networks of one measurement, as copies, with the inputs of its batch size."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        inputs: Any,
        batch_size: int,
        repeats: int,
        threads: int,
        warmup: int,
        images: Sequence[Any] | None = None,
        placed: Placed | None = None,
    ) -> None:
        for what, number in {"batch_size": batch_size, "repeats": repeats, "threads": threads}.items():
            if type(number) is not int or number < 1:
                raise ConfigError(f"{what} {number!r} of the latency is impossible: give a whole number from 1.")
        self.models = {key: copied(model) for key, model in models.items()}
        self.several = [with_batch(inputs, batch_size)] if images is None else list(images)
        if not self.several:
            raise ConfigError("There are no images to time the networks with: give at least one.")
        self.images, self._placed = images is not None, placed
        self.inputs = self.several[0]
        self.batch_size, self.repeats, self.threads, self.warmup = batch_size, repeats, threads, warmup
        self.left_out: list[tuple[str, dict[str, str]]] = []  # networks that a runtime cannot run, with its row

    def measured(
        self,
        names: Sequence[str] | str,
        say: Callable[[Mapping[str, Sequence[float]]], dict[str, Any]],
        *,
        layers: bool,
    ) -> dict[str, Any]:
        """A document with a row for each runtime; what stands in it of the times, `say` makes of them.

        Within `threads_set`, as whatever engines do.
        """
        engines = engines_of(names)
        rows, skipped = [], []
        for model in self.models.values():
            pytorch.ENGINE.prepare(model, self.inputs, self.threads)  # what does not run at all is nobody's skip
        for engine in engines:
            tried = {name: self._prepared(engine, name) for name in self.models}
            calls = {name: call for name, call in tried.items() if not isinstance(call, str)}
            left = [
                (name, {"runtime": engine.name, "reason": why}) for name, why in tried.items() if isinstance(why, str)
            ]
            self.left_out += left
            # the first is the one that all others are compared with
            if next(iter(tried)) not in calls or len(calls) < min(2, len(tried)):
                skipped.append(left[0][1])
                continue
            spent = in_turns([*calls.values()], self.repeats, self.warmup)
            times = {name: [each / len(self.several) for each in own] for name, own in zip(calls, spent, strict=True)}
            rows.append({"runtime": engine.name, **say(times), **(self._layers(engine) if layers else {})})
        return {
            "format": "secateur.latency",
            "version": 1,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "repeats": self.repeats,
            **({"images": len(self.several)} if self.images else {}),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "device": _device_name(next(iter(self.models.values()))),
            "versions": _versions(engines),
            "runtimes": rows,
            "skipped": skipped,
        }

    def _prepared(self, engine: Engine, name: str) -> Call | str:
        """The network as a runtime runs it, or why it does not."""
        model = self.models[name]
        try:
            if self._placed is not None:
                model = self._placed(engine.name, name, model)
            return engine.prepared(model, self.several, self.threads)
        except RunError as error:
            return str(error)

    def layer_times(self, engine: Engine) -> list[dict[str, Any]]:
        """Rows of `layer_times`, by an engine that has a watch."""
        assert engine.watch is not None
        repeats = max(3, min(self.repeats, _MOST_PROFILED))
        watches = {key: (m, engine.watch(m, self.inputs, self.threads)) for key, m in self.models.items()}
        return layer_times(watches, repeats)

    def _layers(self, engine: Engine) -> dict[str, Any]:
        """Times by layer, or why there are none."""
        if engine.watch is None:
            return {"layers": None, "no_layers": FUSED}
        try:
            return {"layers": self.layer_times(engine)}
        except RunError as error:
            return {"layers": None, "no_layers": str(error)}


def in_turns(calls: Sequence[Call], repeats: int, warmup: int) -> list[list[float]]:
    """Seconds of each call, one list a call: A B B A A B B A ...; a short call is the mean of several in a row."""
    inner = [_warmed(call, warmup) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats):
            order = range(len(calls))
            for which in order if turn % 2 == 0 else reversed(order):
                times[which].append(_timed(calls[which], inner[which]))
    finally:
        if collects:
            gc.enable()
    return times


def _warmed(call: Call, warmup: int) -> int:
    """Run it until it is warm; how often it is run within one sample."""
    start, runs = _clock(), 0
    while runs < warmup or _clock() - start < _WARM:
        call()
        runs += 1
    return min(_MOST_INNER, max(1, round(_SAMPLE / max(_timed(call, 1), 1e-9))))


def _timed(call: Call, times: int) -> float:
    start = _clock()
    for _ in range(times):
        call()
    return (_clock() - start) / times


def _spread(times: FloatArray) -> dict[str, float]:
    p10, median, p90 = np.percentile(times * 1e3, (10, 50, 90))
    return {"median_ms": _digits(float(median)), "p10_ms": _digits(float(p10)), "p90_ms": _digits(float(p90))}


def _digits(number: float) -> float:
    return float(f"{number:.5g}")


def _device_name(model: nn.Module) -> str:
    device = device_of(model)
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.processor() or platform.machine()})"


def _versions(engines: Sequence[Engine]) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for engine in engines:
        found |= engine.versions()
    return found
