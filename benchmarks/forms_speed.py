"""What stripes save: a network computed stripe by stripe, beside the dense one and one of fewer channels.

    python benchmarks/forms_speed.py                       # resnet56 and vgg16_bn, PyTorch and ONNX Runtime, batch 1
    python benchmarks/forms_speed.py --models vgg16_bn --share 0.5 --repeats 30

The skeleton is drawn, not trained: times depend on which stripes stay, not on their values. Stripes of one layer share
a random scale, so that layers keep different shares. The sides take turns in one run: dense, the form everywhere, the
network deployed on that runtime (a layer keeps its form where it is faster there), and that of L1 with as many
multiply-accumulates.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import _record
import torch
from torch import nn

import secateur
from secateur.methods.swp import SWP
from secateur.runtime import deployed
from secateur.runtime.engines import engines_of, threads_set
from secateur.runtime.latency import compare, in_turns

RUNTIMES = ("pytorch", "onnxruntime")


def striped(name: str, x: torch.Tensor, share: float) -> secateur.Result:
    """A network of which stripes with so much of the multiply-accumulates are left."""
    pruner = SWP(secateur.models.create(name).eval(), x, budget=f"flops={share}", steps=1)
    generator = torch.Generator().manual_seed(0)
    for skeleton in pruner.skeletons:
        values: torch.Tensor = skeleton.get_parameter("values").data
        scale = 0.5 + torch.rand(1, generator=generator)
        values.copy_(torch.rand(values.shape, generator=generator) * scale + 0.02)
    pruner.finish()
    assert pruner.result is not None
    return pruner.result


def rows_of(name: str, share: float, runtimes: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """A row for each runtime: medians of all sides, and what every one says against dense."""
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    dense = secateur.models.create(name).eval()
    result = striped(name, x, share)
    channels = secateur.prune(dense, x, method="l1", budget=f"flops={share}", verify=False)
    found = []
    for engine in engines_of(runtimes):
        chosen, layers = deployed(result.model.eval(), x, runtime=engine.name, repeats=repeats)
        sides: dict[str, nn.Module] = {
            "dense": dense, "stripes everywhere": result.model, "deployed": chosen, "channels": channels.model,
        }  # fmt: skip
        with threads_set(1):
            times = in_turns([engine.prepare(side.eval(), x, 1) for side in sides.values()], repeats, 3)
        against = {side: compare(times[0], own) for side, own in zip(sides, times, strict=True)}
        found.append(
            {
                "model": name,
                "runtime": engine.name,
                "macs": {"stripes": result.reached("flops"), "channels": channels.reached("flops")},
                "median_ms": {side: said["pruned"]["median_ms"] for side, said in against.items()},
                "said": {side: said["said"] for side, said in against.items() if side != "dense"},
                "kept": [row["name"] for row in layers if row["kept"]],
                "of": len(layers),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet56", "vgg16_bn"])
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES))
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dry", action="store_true", help="print only, and write no result")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        rows += rows_of(name, arguments.share, arguments.runtimes, arguments.repeats)
    for entry in rows:
        print(entry["model"], entry["runtime"], entry["median_ms"], f"{len(entry['kept'])} of {entry['of']} kept")
        print("   ", entry["said"])
    if not arguments.dry:
        _record.save(_record.RESULTS / "forms_speed.json", {**_record.environment(), "rows": rows})


if __name__ == "__main__":
    main()
