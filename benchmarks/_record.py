"""What every benchmark result says about itself (command line, versions, date, commit, device), and writing it.

The commit is that of the code that was measured; results of before 2026-11-29 name the one that stored them.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("secateur", "torch", "torchvision", "timm", "torch-pruning", "numpy", "scipy")


def environment() -> dict[str, Any]:
    """The circumstances of a run, to be stored beside its figures."""
    return {
        "command": " ".join(["python", _script(), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": f"cpu: {_processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def _script() -> str:
    """What runs, as it is called at the root of the repository."""
    path = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[1]
    return str(path.relative_to(root)) if path.is_relative_to(root) else os.path.relpath(path)


def _commit() -> str:
    """Of the code that runs, with a `+` where files differ from it; empty outside a clone."""
    call = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=8", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def save(path: Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all; rows one a line, so that versions compare well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {key: value for key, value in result.items() if key != "rows"}
    rows = ",\n".join("  " + json.dumps(row) for row in result.get("rows", []))
    text = json.dumps({**head, "rows": "ROWS"}, indent=1).replace('"ROWS"', f"[\n{rows}\n ]")
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    return result
