"""What layers that are computed another way save: stripes of filters, and channels that a gate shuts for the image.

    python benchmarks/forms_speed.py                        # both, PyTorch and ONNX Runtime, batch 1
    python benchmarks/forms_speed.py --only gates --images 50 --repeats 3 --active 0.3

Skeletons and gates are drawn, not trained: times depend on which stripes stay and which channels open, not on values.
The sides take turns in one run.

Stripes (SWP): dense, the form everywhere, the network deployed on that runtime (a layer keeps its form where it is
faster there), and that of L1 with as many multiply-accumulates. Stripes of one layer share a random scale, so that
layers keep different shares.

Gates (ManiDP): mean time of one image over distinct ones, alone: dense, all channels computed and masked, skipping
everywhere, and deployed; twenty images are one sample. Every gate's threshold is the quantile at which the share of
channels asked for is active, on average over images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import Any

import _record
import _shim
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur.forms import formed
from secateur.forms.gated import saliency
from secateur.methods.manidp import ManiDP
from secateur.methods.swp import SWP
from secateur.runtime import deployed
from secateur.runtime.deploying import all_plain
from secateur.runtime.engines import Engine, engines_of, threads_set
from secateur.runtime.latency import compare, in_turns

RUNTIMES = ("pytorch", "onnxruntime")
#: Images that are timed as one.
_PART = 20


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


def original(name: str) -> tuple[nn.Module, int]:
    """A network of the zoo for 32x32 pixels, or of torchvision for 224x224, in evaluation, and that size."""
    if name in secateur.models.MODELS:
        return secateur.models.create(name).eval(), 32
    _shim.install()
    import torchvision

    network: nn.Module = getattr(torchvision.models, name)(weights=None)
    return network.eval(), 224


def gated(dense: nn.Module, images: torch.Tensor, share: float) -> nn.Module:
    """The network with gates of which this share of channels is active on average over images."""
    torch.manual_seed(0)
    pruner = ManiDP(dense, images[:1], budget="flops=1e15", steps=1)
    for gate in pruner.gates:
        gate.get_parameter("expand").data.normal_(0, 0.05)
        gate.get_parameter("shift").data.uniform_(0.8, 1.2)
    pruner.collect([(images[:4], None)], None)  # type: ignore[arg-type]  # all open
    pruner.verify_cut = False
    network = pruner.finish().eval()
    handles = [layer.register_forward_pre_hook(partial(_set, share)) for _, _, layer in formed(network)]
    with torch.no_grad():
        network(images[:32])
    for handle in handles:
        handle.remove()
    return network


def _set(share: float, layer: Any, args: tuple[torch.Tensor]) -> None:
    """Put a gate's threshold where this share of what it gives is above it."""
    pi = saliency(args[0], layer.reduce, layer.expand, layer.shift)
    layer.threshold = float(pi.flatten().quantile(1 - share))


def gate_rows(name: str, shares: Sequence[float], runtimes: Sequence[str], count: int, repeats: int) -> list[Any]:
    """A row for each share and runtime: mean times of one image of all sides, and what they say against dense."""
    dense, size = original(name)
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    single, found = list(images.split(1)), []
    for share in shares:
        network = gated(original(name)[0], images, share)
        for engine in engines_of(runtimes):
            chosen, layers = deployed(network, single[0], runtime=engine.name, images=single[:8], repeats=5 * repeats)
            sides = {"dense": dense, "masked": all_plain(network), "skipping": network, "deployed": chosen}
            times = in_parts(engine, [side.eval() for side in sides.values()], single, repeats)
            against = {side: compare(times[0], own) for side, own in zip(sides, times, strict=True)}
            found.append(
                {
                    "model": name,
                    "runtime": engine.name,
                    "active": share,
                    "macs": macs_share(network, dense, single[:32]),
                    "images": count,
                    "mean_ms": {side: round(1e3 * fmean(own), 4) for side, own in zip(sides, times, strict=True)},
                    "said": {side: said["said"] for side, said in against.items() if side != "dense"},
                    "kept": [row["name"] for row in layers if row["kept"]],
                    "of": len(layers),
                }
            )
            print(found[-1], flush=True)
    return found


def in_parts(engine: Engine, sides: list[nn.Module], images: Sequence[Any], repeats: int) -> list[list[float]]:
    """Seconds of one image, on the mean over twenty at a time, of every side; the sides take turns part by part."""
    times: list[list[float]] = [[] for _ in sides]
    with threads_set(1):
        for start in range(0, len(images), _PART):
            part = images[start : start + _PART]
            calls = [engine.prepared(side, part, 1) for side in sides]
            for call in calls:
                call()
            for turn in range(repeats):
                order = range(len(calls))
                for which in order if (turn + start // _PART) % 2 == 0 else reversed(order):
                    began = time.perf_counter()
                    calls[which]()
                    times[which].append((time.perf_counter() - began) / len(part))
    return times


@torch.no_grad()
def macs_share(network: nn.Module, dense: nn.Module, images: Sequence[torch.Tensor]) -> float:
    """What PyTorch counts of single images in both, as a share."""
    counted = []
    for model in (network, dense):
        with FlopCounterMode(display=False) as counter:
            for image in images:
                model(image)
        counted.append(counter.get_total_flops())
    return round(counted[0] / counted[1], 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["stripes", "gates"])
    parser.add_argument("--models", nargs="+", default=["resnet56", "vgg16_bn"], help="with stripes")
    parser.add_argument("--gated", nargs="+", default=["vgg16_bn", "resnet18"], help="with gates")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES))
    parser.add_argument("--share", type=float, default=0.3, help="of multiply-accumulates that stripes leave")
    parser.add_argument("--active", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="shares of channels")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=15, help="of stripes; of gates a fifth")
    parser.add_argument("--dry", action="store_true", help="print only, and write no result")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {"stripes": [], "gates": []}

    def keep() -> None:
        if not arguments.dry:
            _record.save(_record.RESULTS / "forms_speed.json", {**_record.environment(), **rows})

    for name in arguments.models if arguments.only != "gates" else []:
        rows["stripes"] += rows_of(name, arguments.share, arguments.runtimes, arguments.repeats)
        keep()
    for entry in rows["stripes"]:
        print(entry["model"], entry["runtime"], entry["median_ms"], f"{len(entry['kept'])} of {entry['of']} kept")
        print("   ", entry["said"])
    for name in arguments.gated if arguments.only != "stripes" else []:
        given = (arguments.active, arguments.runtimes, arguments.images, max(arguments.repeats // 5, 1))
        rows["gates"] += gate_rows(name, *given)
        keep()


if __name__ == "__main__":
    main()
