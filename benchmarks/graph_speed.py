"""Trace, group, L1 and cut to half: secateur and Torch-Pruning side by side, alternating, one thread.

    python benchmarks/graph_speed.py                # median of 5; the peer needs about a minute for a DenseNet-201
    python benchmarks/graph_speed.py --only resnet50 --repeats 3 --peer-repeats 1

Both start from the same fresh copy of a network with random weights and end with a network of half the channels in
every group; the copy is not timed, and neither is our verification, which the peer has no counterpart of.
Afterwards both results run forward, untimed, and their remaining MACs are recorded, so that nobody is fast by
cutting less.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _macs
import _record
import _shim
import torch
from torch import nn

_shim.install()

import torchvision  # noqa: E402  # only imports once the shim is installed

MODELS = (
    "resnet50",
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
    "regnet_y_400mf",
    "densenet121",
    "densenet169",
    "densenet201",
)
Side = Callable[[nn.Module, torch.Tensor], nn.Module]  # cuts a network, given an image
CLASSES = 13  # the classifier's outputs stay: both sides must know which layer that is


def ours(model: nn.Module, image: torch.Tensor) -> nn.Module:
    """Half of the channels of every group by L1 norm; the one place that knows secateur's interface."""
    from secateur.allocate import allocate
    from secateur.graph import SizeConflict, trace
    from secateur.methods import score

    graph = trace(model, (image,))
    while True:
        plan = allocate(score("l1", graph), graph, None, allocator="ratios", ratios={"*": 0.5})
        try:
            return graph.cut(plan, inplace=True).model
        except SizeConflict as conflict:
            graph.settle(conflict)


def peer(model: nn.Module, image: torch.Tensor) -> nn.Module:
    """The same by Torch-Pruning, with its own recipe for torchvision's ViT."""
    import torch_pruning

    kept = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES]
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    pruner = torch_pruning.pruner.BasePruner(
        model,
        image,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        global_pruning=False,
        ignored_layers=kept,
        in_channel_groups={},  # its defaults are shared between calls
        out_channel_groups=heads,  # passed as num_heads instead, the embedding width stays whole
    )
    pruner.step()
    if isinstance(model, torchvision.models.VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels  # its forward reads this number
    return model


def timed(side: Side, model: nn.Module, image: torch.Tensor) -> tuple[float, nn.Module]:
    fresh = copy.deepcopy(model)
    gc.collect()
    start = time.perf_counter()
    cut = side(fresh, image)
    return time.perf_counter() - start, cut


def compare(name: str, repeats: int, peer_repeats: int, sides: dict[str, Side]) -> dict[str, Any]:
    """Alternating runs of both sides on one network."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES).eval()
    image = torch.randn(1, 3, 224, 224)
    limits = {"secateur": repeats, "torch_pruning": peer_repeats}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    row: dict[str, Any] = {"name": name, "macs": _macs.count(model, (image,))}
    for turn in range(max(limits[side] for side in sides)):
        for side, function in sides.items():
            if turn < limits[side] and f"{side}_error" not in row:
                try:
                    taken, cut = timed(function, model, image)
                    seconds[side].append(taken)
                    if turn == 0:
                        row[f"{side}_macs_after"] = _macs.count(cut, (image,))
                except Exception as error:
                    row[f"{side}_error"] = f"{type(error).__name__}: {error}"[:300]
    for side, values in seconds.items():
        if values:
            row[f"{side}_s"] = round(statistics.median(values), 4)
            row[f"{side}_all_s"] = [round(value, 4) for value in values]
    if {"secateur_s", "torch_pruning_s"} <= row.keys():
        row["times_faster"] = round(row["torch_pruning_s"] / row["secateur_s"], 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=MODELS, help="may be repeated")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-repeats", type=int, help="fewer runs of the peer (default: as --repeats)")
    parser.add_argument("--side", choices=("both", "secateur", "torch_pruning"), default="both")
    parser.add_argument("--out", type=Path, default=_record.RESULTS / "graph_speed.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sides: dict[str, Side] = {"secateur": ours, "torch_pruning": peer}
    if arguments.side != "both":
        sides = {arguments.side: sides[arguments.side]}
    peer_repeats = arguments.repeats if arguments.peer_repeats is None else arguments.peer_repeats
    head = {
        **_record.environment(),
        "image": [1, 3, 224, 224],
        "repeats": arguments.repeats,
        "peer_repeats": peer_repeats,
    }
    rows = []
    compare("resnet18", 1, 1, sides)  # the first use of either library is not measured
    for name in arguments.only or MODELS:
        rows.append(compare(name, arguments.repeats, peer_repeats, sides))
        print({key: value for key, value in rows[-1].items() if not key.endswith("_all_s")}, flush=True)
        _record.save(arguments.out, {**head, "rows": rows})


if __name__ == "__main__":
    main()
