"""Run by `accelerate launch` in test_run_processes.py: one start of two processes for several runs, the last of them
killed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

if importlib.util.find_spec("torchvision"):
    from _shim import install

    install()

from secateur.cli import app


def run(name: str) -> int:
    try:
        app(["run", f"{name}.yaml", "--out", name, "-q"])
    except SystemExit as ended:
        return int(ended.code or 0)
    raise AssertionError("a command ends by exiting")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(f"{name}.begun").touch()
        code = run(name)
        if code:
            sys.exit(code)
