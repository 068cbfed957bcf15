"""Time and memory that large networks take: an earlier commit and now, by turns, each in a process of its own.

    mkdir ../before && git archive 9fdf074 src | tar x -C ../before
    python benchmarks/large_networks.py --before ../before/src
    python benchmarks/large_networks.py --networks timm:vit_large_patch16_224     # now alone, and nothing is written

A network with random weights loses half of the channels of every group by L1, from a fresh copy to the cut and verified
result, on one thread. Seconds are the process's CPU time; *more memory* is its peak over what it held before, in GB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NETWORKS = ("timm:tf_efficientnetv2_xl", "torchvision:convnext_large", "timm:vit_large_patch16_224")
SIZE = 224
BAR = 0.5


def network(name: str) -> Any:
    """A network of torchvision or timm, in evaluation mode."""
    import _shim

    _shim.install()
    library, _, short = name.partition(":")
    if library == "timm":
        import timm

        return timm.create_model(short, pretrained=False).eval()
    import torchvision

    return torchvision.models.get_model(short, weights=None).eval()


def peak() -> float:
    """The most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def side_at_work(name: str) -> None:
    """One network, once: a line of JSON."""
    import torch

    from secateur import prune  # its parts are loaded before the time begins

    torch.set_num_threads(1)
    model, image = network(name), torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    held, began = peak(), time.process_time()
    result = prune(model, image, allocator="ratios", ratios={"*": 0.5})
    seconds = time.process_time() - began
    print(
        json.dumps(
            {
                "cpu_s": round(seconds, 2),
                "more_gb": round(peak() - held, 3),
                "network_gb": round(sum(t.nbytes for t in model.state_dict().values()) / 1024**3, 3),
                "parameters": sum(p.numel() for p in model.parameters()),
                "left": sum(p.numel() for p in result.model.parameters()),
            }
        )
    )


def turn(name: str, source: Path) -> dict[str, Any]:
    """One network by the code of one side."""
    environment = os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--side", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"The side {name!r} ended: its message is above.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="SRC", help="The `src` of an earlier commit.")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.side:
        return side_at_work(a.side)
    sources = {"before": Path(a.before)} if a.before else {}
    sources["now"] = HERE.parent / "src"
    rows = []
    for name in a.networks.split(","):
        found: dict[str, Any] = {"network": name, **{side: turn(name, source) for side, source in sources.items()}}
        if a.before:
            for key in ("cpu_s", "more_gb"):
                found[f"{key}_ratio"] = round(found["now"][key] / found["before"][key], 3)
        print(json.dumps(found), flush=True)
        rows.append(found)
    if a.before:
        import _record

        result = {**_record.environment(), "bar": BAR, "size": SIZE, "rows": rows}
        result["command"] = re.sub(r"(--before[ =])\S+", r"\1../before/src", result["command"])  # wherever it lay
        _record.save(_record.RESULTS / "large_networks.json", result)


if __name__ == "__main__":
    main()
