"""Tables in a folder of the test's own, and a runtime whose times are known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import _made_up

from secateur import latency
from secateur.allocate import presets
from secateur.latency import prediction, table


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "latency"


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are known, on a processor that computes four channels at a time."""
    monkeypatch.setattr(table, "timed", _made_up.timed)
    monkeypatch.setattr(prediction, "times_of", _made_up.times_of)
    small = {**presets.PRESETS, "x86-avx2": _made_up.STEP, "x86-avx512": _made_up.STEP, "arm": _made_up.STEP}
    for module in (presets, table, latency):
        monkeypatch.setattr(module, "PRESETS", small)
