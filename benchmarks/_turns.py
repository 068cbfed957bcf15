"""Timing several sides in one run, by turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def timed(
    sides: dict[str, Callable[[], None]],
    repeats: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every side, alternating, after one untimed turn. clock: `process_time` counts what others take out."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, take in sides.items():
            if device == "cuda":
                torch.cuda.synchronize()
            started = clock()
            take()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - started)
    return seconds


def row(what: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and ratios to the first side taken turn by turn."""
    first = next(iter(seconds))
    result: dict[str, Any] = {"what": what, "against": first}
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[first], strict=True)]
        result[name] = {
            "median_s": round(statistics.median(values), 5),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_low": round(min(ratios), 3),
            "ratio_high": round(max(ratios), 3),
        }
    return result
