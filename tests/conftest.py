"""Shared by all tests: torchvision made importable, one thread, hypothesis profiles."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # the torchvision shim lives beside the benchmarks

if importlib.util.find_spec("torchvision"):
    from _shim import install

    install()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, which Ctrl-C would not reach
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # two test processes on two cores


#: Tests that `make test` leaves to `make long`, because each took over a second; `make durations` writes the list anew.
LONG = frozenset((Path(__file__).parent / "long.txt").read_text(encoding="utf-8").splitlines())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in the list as long."""
    for item in items:
        if item.nodeid.removeprefix("tests/") in LONG:
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Tests send themselves Ctrl-C, which must find Python's own handler, whatever a library did to it before."""
    before = signal.getsignal(signal.SIGINT)
    yield
    if signal.getsignal(signal.SIGINT) != before:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("test", max_examples=50, derandomize=True, **_COMMON)  # the same examples in every run
settings.register_profile("fuzz", max_examples=2_500, print_blob=True, **_COMMON)  # in each of four families
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))
