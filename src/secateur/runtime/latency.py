"""Latency of the dense and the pruned network, measured side by side in one process, with the uncertainty of the ratio.

The two take turns, and who goes first alternates, so that what else the machine does hits both alike. A speed-up whose
interval contains 1 is none.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._hints import choose
from secateur._protocols import FloatArray
from secateur.errors import ConfigError, RunError
from secateur.graph.modules import as_call, clone_module, unwrap
from secateur.runtime.export import Subject, needed, onnx_feed, onnx_model, onnx_session, told
from secateur.runtime.inputs import to_device, with_batch
from secateur.runtime.layers import layer_times

RUNTIMES = ("pytorch", "onnxruntime")
_SAMPLE = 2e-3  # seconds; a shorter run is repeated within one sample, or the clock would be measured
_MOST_INNER = 200
_RESAMPLES = 2000
_LEVEL = (2.5, 97.5)

Call = Callable[[], object]


def measure(
    dense: nn.Module,
    pruned: nn.Module,
    example_inputs: Any,
    *,
    batch_size: int = 1,
    repeats: int = 30,
    threads: int = 1,
    runtimes: Sequence[str] = RUNTIMES,
    warmup: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Time both networks and return the content of `latency.json`.

    PyTorch runs them where their parameters are, ONNX Runtime on the CPU. The interval of the ratio of medians is a
    paired bootstrap's (95%), whose draws come from `seed`. A runtime that cannot run these networks is listed under
    "skipped" with the reason. The number of threads is set for the measurement alone.

    Raises:
        ConfigError: a setting is impossible, or a runtime is not installed. RunError: the networks do not run.
    """
    for name in runtimes:
        choose(name, RUNTIMES, "runtime")
    for what, number in {"batch_size": batch_size, "repeats": repeats, "threads": threads}.items():
        if type(number) is not int or number < 1:
            raise ConfigError(f"{what} {number!r} of the latency is impossible: give a whole number from 1.")
    if "onnxruntime" in runtimes:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            needed(package)
    pair = (_twin(dense), _twin(pruned))
    inputs = with_batch(example_inputs, batch_size)
    rows, skipped = [], []
    with _threads(threads), torch.no_grad():
        for name in runtimes:
            calls = _RUNTIMES[name](pair, inputs, threads)
            if isinstance(calls, str):
                skipped.append({"runtime": name, "reason": calls})
            else:
                rows.append({"runtime": name, **_compared(calls, repeats, warmup, seed)})
        layers = layer_times(*pair, as_call(_placed(pair[0], inputs)), max(3, min(repeats, 10)))
    return {
        "format": "secateur.latency",
        "version": 1,
        "batch_size": batch_size,
        "threads": threads,
        "repeats": repeats,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": _device_name(pair[0]),
        "versions": _versions(runtimes),
        "runtimes": rows,
        "skipped": skipped,
        "layers": layers,
    }


def compare(dense: Sequence[float], pruned: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """What the times of paired runs (seconds) say: medians and spreads, the ratio with its interval, and a sentence."""
    pairs = np.array([dense, pruned], dtype=np.float64)
    draws = np.random.default_rng(seed).integers(pairs.shape[1], size=(_RESAMPLES, pairs.shape[1]))
    medians = np.median(pairs[:, draws], axis=2)
    low, high = np.percentile(medians[0] / medians[1], _LEVEL)
    ratio = float(np.median(pairs[0]) / np.median(pairs[1]))
    low, high = min(float(low), ratio), max(float(high), ratio)
    return {
        "dense": _spread(pairs[0]),
        "pruned": _spread(pairs[1]),
        "ratio": {"median": _digits(ratio), "low": _digits(low), "high": _digits(high)},
        "speedup": low > 1,
        "said": _said(ratio, low, high),
    }


def _said(ratio: float, low: float, high: float) -> str:
    if low > 1:
        return f"{ratio:.2f}x faster ({low:.2f} to {high:.2f})"
    if high < 1:
        return f"no speed-up: {1 / ratio:.2f}x slower ({1 / high:.2f} to {1 / low:.2f})"
    return f"no speed-up: the interval of the ratio ({low:.2f} to {high:.2f}) contains 1"


def _compared(calls: tuple[Call, Call], repeats: int, warmup: int, seed: int) -> dict[str, Any]:
    inner = []
    for call in calls:
        for _ in range(warmup):
            call()
        inner.append(min(_MOST_INNER, max(1, round(_SAMPLE / max(_timed(call, 1), 1e-9)))))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            times[which].append(_timed(calls[which], inner[which]))
    return compare(*times, seed=seed)


def _timed(call: Call, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def _spread(times: FloatArray) -> dict[str, float]:
    p10, median, p90 = np.percentile(times * 1e3, (10, 50, 90))
    return {"median_ms": _digits(float(median)), "p10_ms": _digits(float(p10)), "p90_ms": _digits(float(p90))}


def _digits(number: float) -> float:
    return float(f"{number:.5g}")


# ------------------------------------------------------------------------------------------------------------ runtimes


def _pytorch(pair: tuple[nn.Module, nn.Module], inputs: Any, threads: int) -> tuple[Call, Call]:
    made = []
    for model in pair:
        args, kwargs = as_call(_placed(model, inputs))
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise RunError(
                f"{type(model).__name__} cannot be timed with this batch size ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}): set latency.batch_size to one it runs with."
            ) from error
        made.append(_call(model, args, kwargs, cuda=_device(model).type == "cuda"))
    return made[0], made[1]


def _call(model: nn.Module, args: Any, kwargs: Any, *, cuda: bool) -> Call:
    def call() -> object:
        output = model(*args, **kwargs)
        if cuda:
            torch.cuda.synchronize(_device(model))
        return output

    return call


def _onnxruntime(pair: tuple[nn.Module, nn.Module], inputs: Any, threads: int) -> tuple[Call, Call] | str:
    """Both networks as ONNX, or why that cannot be."""
    try:
        return _onnx_call(pair[0], inputs, threads), _onnx_call(pair[1], inputs, threads)
    except RunError as error:
        return str(error)


def _onnx_call(model: nn.Module, inputs: Any, threads: int) -> Call:
    subject = Subject.of(model, inputs, fixed="the batch size is the measurement's")
    data, _ = onnx_model(subject)
    with told("ONNX Runtime cannot run the exported network", "leave it out"):
        session = onnx_session(data, threads)
        call: Call = partial(session.run, None, onnx_feed(session, subject.inputs))
        call()
    return call


_RUNTIMES: dict[str, Callable[[tuple[nn.Module, nn.Module], Any, int], tuple[Call, Call] | str]] = {
    "pytorch": _pytorch,
    "onnxruntime": _onnxruntime,
}


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _twin(model: nn.Module) -> nn.Module:
    """A copy for inference where the model is; the hooks and the mode of the original stay as they are."""
    return clone_module(unwrap(model), lambda tensor: tensor.detach().clone()).eval()


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def _placed(model: nn.Module, inputs: Any) -> Any:
    return to_device(inputs, _device(model))


def _device_name(model: nn.Module) -> str:
    device = _device(model)
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.processor() or platform.machine()})"


def _versions(runtimes: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    if "onnxruntime" in runtimes:
        found["onnxruntime"] = importlib.metadata.version("onnxruntime")
    return found
