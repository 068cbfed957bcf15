"""The path of images to the network: those of an earlier commit and of now, by turns, in images per CPU second.

    mkdir ../before && git archive 1fbb64f src | tar x -C ../before
    python benchmarks/data_path.py --before ../before/src

CIFAR-10 lies in memory (.data/cifar10.npz; 20,000 of its images, batches of 128, crop and flip); the folder of JPEGs is
made on the spot (400 of 256x192 pixels, seed 0; decoded, resized_crop to 128x128, flip). Every side is a process, and a
turn times the older, the newer, the newer and the older. `ratio` is the median over turns of now over before; an
epoch's first batch must hold the same bits on both sides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
TURNS, JPEGS, SIDE = 5, 400, 128


def side(folder: str) -> None:
    """One side: for every line on standard input, a set's images per CPU second and the digest of its first batch."""
    import torch

    from secateur.data import open_data
    from secateur.recipe import DataConfig

    torch.set_num_threads(1)
    options = {"size": SIDE, "check": 0}
    sets = {
        "cifar10": open_data(DataConfig(name="cifar10", validation=0.0, train_images=20_000), 0),
        "folder": open_data(DataConfig(name="folder", path=folder, validation=0.0, options=options), 0),
    }
    print("ready", flush=True)
    for line in sys.stdin:
        split, images, digest = sets[line.strip()].train, 0, ""
        begun = time.process_time()
        for pixels, _ in split.batches(128, shuffle=True, augment=True, seed=0):
            images += len(pixels)
            digest = digest or hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        print(json.dumps({"speed": images / (time.process_time() - begun), "first_batch": digest}), flush=True)


def folder_of_jpegs(root: Path) -> None:
    """Noise coarse and fine, so that decoding costs what it does on photographs."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for part, count in (("train", JPEGS), ("test", 2)):
        for number in range(count):
            small = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            fine = draw.integers(-20, 21, (192, 256, 3))
            pixels = np.asarray(small.resize((256, 192), Image.Resampling.BICUBIC)).astype(int) + fine
            place = root / part / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number:04}.jpg", quality=90)


def measured(before: Path, turns: int) -> dict[str, Any]:
    """Both sides on both sets, in turns."""
    import _record

    with tempfile.TemporaryDirectory() as temporary:
        folder_of_jpegs(Path(temporary))
        sides = {
            name: _started(source, temporary) for name, source in (("before", before), ("now", HERE.parent / "src"))
        }
        found: dict[str, Any] = {}
        for name in ("cifar10", "folder"):
            speeds: dict[str, list[float]] = {"before": [], "now": []}
            digests = set()
            for turn in range(turns + 1):  # the first warms up
                for which in ("before", "now", "now", "before"):
                    told = _asked(sides[which], name)
                    digests.add(told["first_batch"])
                    if turn:
                        speeds[which].append(told["speed"])
            if len(digests) > 1:
                raise SystemExit(f"{name}: the first batch holds other bits than it did before.")
            pairs = zip(*(zip(s[::2], s[1::2], strict=True) for s in (speeds["now"], speeds["before"])), strict=True)
            ratios = [sum(now) / sum(then) for now, then in pairs]
            found[name] = {
                "images_per_cpu_second": {key: round(statistics.median(s), 1) for key, s in speeds.items()},
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
            }
        for process in sides.values():
            process.stdin.close()
            process.wait()
    return {"environment": _record.environment(), "before": before.parent.name, "seed": 0, "sets": found}


def _started(source: Path, folder: str) -> Any:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), "--side", folder],
        env={**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{source} cannot open the data sets: see above.")
    return process


def _asked(process: Any, name: str) -> dict[str, Any]:
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--before", type=Path, help="the src folder of the earlier commit, in a folder named after it")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "data_path.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        side(asked.side)
        return
    if asked.before is None:
        parser.error("--before is missing: the src folder of an earlier commit")
    result = measured(asked.before, asked.turns)
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, row in result["sets"].items():
        print(name, row["images_per_cpu_second"], "ratio", row["ratio"])


if __name__ == "__main__":
    main()
