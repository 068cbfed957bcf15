"""`make demo` in fresh clones, set-up of the environment included: how long it takes, and what its networks are.

    python benchmarks/demo.py                 # three times
    python benchmarks/demo.py --runs 1

Every run begins with nothing: a clone of the last commit in a temporary folder, in which make creates its environment.
Seconds are the clock's, and those of the processor, which what else the machine does hardly moves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import _record

ROOT = Path(__file__).parents[1]


def one(place: Path) -> dict[str, Any]:
    """Clone, set up, run: what that took, and what the run says of itself."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MAKEFLAGS")}
    load, setup = round(os.getloadavg()[0], 2), _timed(["make", ".venv-demo/.installed"], place, clean)
    demo = _timed(["make", "demo"], place, clean)
    results = json.loads((place / "runs/demo/results.json").read_text())
    latency = json.loads((place / "runs/demo/latency.json").read_text())
    return {
        "load": load,
        "threads": latency["threads"],
        "setup": setup,
        "demo": demo,
        "seconds": round(setup["seconds"] + demo["seconds"], 1),
        "cpu_seconds": round(setup["cpu_seconds"] + demo["cpu_seconds"], 1),
        "remaining": results["remaining"],
        "accuracy": {key: results["accuracy"][key] for key in ("dense", "longer", "final", "images")},
        "faster": {
            row["runtime"]: {key: row["ratio"][key] for key in ("median", "low", "high")} for row in latency["runtimes"]
        },
    }


def _timed(command: list[str], place: Path, environment: dict[str, str]) -> dict[str, float]:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=place, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(cpu, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=_record.RESULTS / "demo.json")
    arguments = parser.parse_args()
    rows = []
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one(Path(folder) / "clone"))
            print(json.dumps(rows[-1]), flush=True)
    own = {"threads": rows[0]["threads"]}  # the demo's
    _record.save(arguments.out, {"format": "secateur.demo", **_record.environment(), **own, "rows": rows})


if __name__ == "__main__":
    main()
