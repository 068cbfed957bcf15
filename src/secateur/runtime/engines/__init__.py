"""Engines: what runs a network. A file each, found by name in `ENGINES`; their packages are imported when used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secateur._hints import choose
from secateur.errors import ConfigError
from secateur.runtime.engines import compiled, executorch, onnx_runtime, openvino, pytorch
from secateur.runtime.engines.base import REST, Call, Engine, Seconds, Watch, copied, device_of, threads_set

__all__ = [
    "ENGINES", "REST", "Call", "Engine", "Seconds", "Watch", "copied", "device_of", "engines_of", "threads_set",
]  # fmt: skip

ENGINES: Mapping[str, Engine] = {
    row.name: row for row in (pytorch.ENGINE, compiled.ENGINE, onnx_runtime.ENGINE, openvino.ENGINE, executorch.ENGINE)
}


def engines_of(names: Sequence[str] | str) -> list[Engine]:
    """The engines of these names, or of one; ConfigError for one unknown or repeated, or where a package is missing."""
    names = [names] if isinstance(names, str) else names
    rows = [ENGINES[choose(name, ENGINES, "runtime")] for name in names]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"The list of runtimes ({', '.join(names)}) is empty or repeats a name: give each once.")
    for row in rows:
        row.require()
    return rows
