"""Run by test_kills.py in a process of its own: trains, is killed by SIGKILL at a chosen point, resumes, compares.

Each training run is a fork, so that PyTorch is imported once. Prints one JSON object a scenario.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

torch.set_num_threads(1)

from _forked import forked  # noqa: E402
from _toy import Narrower, ToyMethod, make_engine, short, toy_net  # noqa: E402

from secateur.recipe import Distil, EngineConfig  # noqa: E402
from secateur.training import checkpoints, metrics, stage  # noqa: E402

ALWAYS = 1e-9  # minutes between checkpoints: one after every step
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"training": {}, "engine": {}},
    "every step": {"training": {"select": "best"}, "engine": {"checkpoint_minutes": ALWAYS}},
    "everything": {
        "training": {
            "optimiser": "adamw",
            "lr": 0.01,
            "ema": 0.9,
            "mixup": 0.3,
            "warmup": 0.5,
            "label_smoothing": 0.1,
            "clip": 1.0,
            "select": "best",
            "distill": Distil(weight=0.3),
        },
        "engine": {"checkpoint_minutes": ALWAYS, "accumulate": 2, "keep_checkpoints": 1},
        "method": ToyMethod,
    },
    "everything, by epoch": {
        "training": {"nesterov": True, "ema": 0.9, "mixup": 0.3, "schedule": "onecycle"},
        "engine": {"accumulate": 3},
        "method": ToyMethod,
    },
    "in bf16, channels last": {
        "training": {"nesterov": True, "ema": 0.9, "clip": 1.0},
        "engine": {"checkpoint_minutes": ALWAYS, "precision": "bf16", "memory_format": "channels_last"},
        "method": ToyMethod,
    },
    "by name": {
        "training": {
            "optimiser": {"name": "NAdam", "betas": [0.8, 0.9]},
            "schedule": {"name": "OneCycleLR", "per": "step"},
            "lr": 0.01,
        },
        "engine": {"checkpoint_minutes": ALWAYS},
        "method": ToyMethod,
    },
    "narrowing": {
        "training": {"optimiser": "adamw", "lr": 0.01, "ema": 0.9},
        "engine": {"checkpoint_minutes": ALWAYS},
        "method": Narrower,
    },
}


def train(variant: dict[str, Any], folder: Path) -> None:
    """One call of a run: two stages, of which the first may have ended before."""
    config = EngineConfig(device="cpu", **{"checkpoint_minutes": 1000.0, "precision": "fp32", **variant["engine"]})
    engine = make_engine(folder, config)
    net = toy_net()
    engine.fit("pretrain", net, short(epochs=1))
    method = variant["method"](net) if "method" in variant else None
    engine.fit("train", method or net, short(**variant["training"]), method=method, teacher=toy_net())
    state = {name: value.tolist() for name, value in (method or net).state_dict().items()}
    result = {"weights": state, "state": method.state() if method else None}
    (folder / "result.json").write_text(json.dumps(result, sort_keys=True))


def kill_at(where: str, number: int, how: str) -> None:
    """Arrange for this process to die at call `number` of one of the places where something is written or done."""
    owner, name = {
        "tensors": (checkpoints, "save_file"),
        "state": (checkpoints, "_write_json"),
        "rename": (checkpoints.Store, "_rename"),
        "tidy": (checkpoints.Store, "_remove"),
        "metrics": (metrics.Metrics, "append"),
        "step": (stage.Stage, "_step"),
    }[where]
    original, calls = getattr(owner, name), 0

    def dying(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < number:
            return original(*args, **keywords)
        if how != "before":
            original(*args, **keywords)
        if how == "torn":  # only a part has reached the disk
            path = Path(args[1] if where == "tensors" else args[0] if where == "state" else args[0].path)
            os.truncate(path, path.stat().st_size * 2 // 3)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)


def outcome(folder: Path) -> dict[str, Any]:
    """What must not depend on interruptions."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"], row["images_per_second"]
    leftovers = sorted(path.name for path in (folder / "checkpoints").glob(".*"))
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    weights = sha256((folder / "result.json").read_bytes()).hexdigest()
    return {"weights": weights, "rows": rows, "leftovers": leftovers, "names": names}


def main(scenarios: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        train(
            VARIANTS["everything"], Path(temporary) / "warm-up"
        )  # what is imported late is there before the first fork
        whole = {}
        for name, variant in VARIANTS.items():
            folder = Path(temporary) / f"whole {name}"
            assert forked(lambda v=variant, f=folder: train(v, f)) == 0
            whole[name] = outcome(folder)
        for number, scenario in enumerate(scenarios):
            variant, folder = VARIANTS[scenario["variant"]], Path(temporary) / str(number)
            kills = scenario["kills"]
            status = [forked(lambda k=kill, v=variant, f=folder: (kill_at(*k), train(v, f))) for kill in kills]
            status.append(forked(lambda v=variant, f=folder: train(v, f)))
            found = outcome(folder) if status[-1] == 0 else None
            print(json.dumps({"status": status, "same": found == whole[scenario["variant"]], "found": found}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
