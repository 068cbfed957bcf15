"""The table of layer times of this machine and runtime: measured once, kept in a file with its conditions.

The file is a cache, and nothing but one: where it is missing, damaged or of other conditions, it is made again.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from secateur._files import read_json, said, write_json
from secateur._hints import choose
from secateur.allocate.presets import PRESETS, this_machine
from secateur.budget import Target
from secateur.errors import SecateurError
from secateur.graph.forms import Form, Kind
from secateur.latency.benches import BENCHES, Layer, timed

#: How a network's own times fit the table: three factors, and of every trial its layers, elements and microseconds.
Fit = tuple[tuple[float, float, float], tuple[tuple[float, float, float], ...]]

#: Told how many of how many layer shapes have been measured, and on which runtime.
Watcher = Callable[[int, int, str], None]

_FORMAT, _VERSION = "secateur.layer-times", 2
_AT_ONCE = 64  # shapes between two calls of the watcher
_NUMBERS = ("size", "kernel", "stride", "padding", "dilation")


class Table:
    """Microseconds of layers on one runtime, by form and the two widths; and what whole networks were found to take.

    Both are kept, so that a network has the same latencies in every stage of a run, and when it goes on.
    """

    def __init__(self, target: Target, file: Path | None = None) -> None:
        """Read what is known of this machine.

        Args:
            target: its runtime and threads; its batch size is in the forms. file: None: in the cache folder.

        Raises:
            ConfigError: there is no such runtime, or it is not installed.
        """
        from secateur.runtime.engines import ENGINES

        choose(target.runtime, list(BENCHES), "runtime of a latency")
        ENGINES[target.runtime].require()
        self.runtime, self.threads = target.runtime, target.threads
        self.conditions = conditions(target)
        name = hashlib.sha256(repr(sorted(self.conditions.items())).encode()).hexdigest()[:16]
        self.file = file or cache_folder() / f"{target.runtime}-{name}.json"
        content = _read(self.file, self.conditions)
        self.times: dict[Layer, float] = _times(content)
        self.fits: dict[str, Fit] = _fits(content) if self.times else {}
        self.note = ""  # a sentence for the report

    @property
    def step(self) -> int:
        """The width of the staircase that is supposed here."""
        return PRESETS[this_machine()]

    def measure(self, layers: Iterable[Layer], watch: Watcher | None = None) -> None:
        """Time the layers that are not in the table yet, and keep the file.

        layers: with their two widths. watch: told at the beginning and from time to time; not if nothing is lacking.
        """
        lacking = sorted(set(layers) - self.times.keys())
        if lacking and watch is not None:
            watch(0, len(lacking), self.runtime)
        for begin in range(0, len(lacking), _AT_ONCE):
            part = lacking[begin : begin + _AT_ONCE]
            times = np.round(timed(self.runtime, part, self.threads), 2)  # as the file has them
            self.times.update(zip(part, times.tolist(), strict=True))
            if watch is not None:
                watch(begin + len(part), len(lacking), self.runtime)
        if lacking:
            self._write()

    def keep(self, network: str, fit: Fit) -> None:
        """Remember how a network fits, under a name that is its own."""
        self.fits[network] = fit
        self._write()

    def _write(self) -> None:
        """Keep the table; a folder that cannot be written costs the next run the same minute again, which is noted."""
        rows = [[*_form_row(form), out, into, time] for (form, out, into), time in sorted(self.times.items())]
        about = {"format": _FORMAT, "version": _VERSION, "conditions": self.conditions}
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            document = {**about, "date": date, "layers": rows, "networks": self.fits}
            write_json(self.file, document, what="The table of layer times")
        except (OSError, SecateurError) as error:
            self.note = f"The table of layer times could not be kept and will be measured again: {said(error)}"


def conditions(target: Target) -> dict[str, Any]:
    """What the times depend on: processor, threads, versions."""
    from secateur.runtime.engines import ENGINES

    return {
        "runtime": target.runtime,
        "threads": target.threads,
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        **ENGINES[target.runtime].versions(),
    }


def processor() -> str:
    """Its name, as the system has it, and the vector instructions PyTorch uses."""
    name = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        name = found[1].strip() if found else name
    except (OSError, ValueError):  # another system than Linux
        pass
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def cache_folder() -> Path:
    """Where tables are kept: what SECATEUR_CACHE names, or the user's cache folder."""
    named = os.environ.get("SECATEUR_CACHE")
    if named:
        return Path(named) / "latency"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "secateur" / "latency"


def _form_row(form: Form) -> list[Any]:
    row = asdict(form)
    return [row["kind"], row["batch"], *(list(row[name]) for name in _NUMBERS), row["groups"]]


def _read(file: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A file that was made under these conditions; nothing of any other."""
    try:
        content = read_json(file)
    except SecateurError:
        return {}
    sound = isinstance(content, dict) and content.get("format") == _FORMAT and content.get("version") == _VERSION
    return content if sound and content.get("conditions") == dict(wanted) else {}


def _times(content: Mapping[str, Any]) -> dict[Layer, float]:
    """The layers of a file, all or none."""
    given = content.get("layers")
    rows = [_layer(row) for row in given] if isinstance(given, list) else []
    return dict(row for row in rows if row is not None) if None not in rows else {}


def _fits(content: Mapping[str, Any]) -> dict[str, Fit]:
    """The networks of a file that can be understood."""
    given = content.get("networks")
    found = {}
    for name, fit in given.items() if isinstance(given, dict) else ():
        match fit:
            case [[_, _, _] as factors, [_, *_] as trials] if all(map(_three, [factors, *trials])):
                found[name] = cast(Fit, (tuple(factors), tuple(map(tuple, trials))))
    return found


def _three(row: Any) -> bool:
    numbers = isinstance(row, list) and len(row) == 3
    return numbers and all(isinstance(n, float | int) and not isinstance(n, bool) and 0 <= n < 1e15 for n in row)


def _layer(row: Any) -> tuple[Layer, float] | None:
    """One row, trusting nothing; None for what `_write` cannot have written."""
    if not isinstance(row, list) or len(row) != 11 or row[0] not in get_args(Kind):
        return None
    kind, batch, *numbers, groups, out, into, time = row
    plain = all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in numbers)
    whole = all(type(n) is int and n > 0 for n in (batch, out, into)) and type(groups) is int and groups >= 0
    if not plain or not whole or not isinstance(time, float | int) or not 0 < time < 1e12:
        return None
    size, kernel, stride, padding, dilation = (tuple(part) for part in numbers)
    form = Form(cast(Kind, kind), batch, size, kernel, stride, padding, dilation, groups)
    return (form, out, into), float(time)
