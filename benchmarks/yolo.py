"""Every method on detectors of Ultralytics: YOLO11n, YOLOv8n, YOLO12n and RT-DETR-l from their yaml, random weights.

    python benchmarks/yolo.py                                   # all methods; what the result file has is kept
    python benchmarks/yolo.py --networks yolo11n --methods l1,cp --again

The package is no requirement of secateur's: get it with `pip install ultralytics`.

Accuracies would mean nothing here. What is shown is that a method comes through, or says in a sentence why it does not:
the cut is verified and the budget met, the forward pass in training runs afterwards, and so does one step of
Ultralytics' own loss. Methods that train get a few steps of that loss in a loop of one's own; those that look at images
get a few made ones, each with one object, whose class is the label of the image.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _record
import _shim
import torch
from torch import nn

import secateur
from secateur.errors import PlanError, SecateurError
from secateur.graph import SizeConflict
from secateur.methods import METHODS, MethodRow, method

NETWORKS = ("yolo11n", "yolov8n", "yolo12n", "rtdetr-l")
CLASSES = 80
#: Settings that make a method cheap where its default is for hours of training.
SMALL: dict[str, dict[str, Any]] = {
    "csgd": {"clustering": "even"},
    "functionality": {"ascent_steps": 2, "restarts": 1},
    "dcpcac": {"metric": "loss"},
    "dcp": {"per_column": 0, "head_epochs": 2, "rounds": 1},
    "dkp": {"per_column": 0, "head_epochs": 2, "rounds": 1},
    "prunenet": {"sweeps": 5, "rounds": 8},
}
#: Methods that are told, in place of the detector's output, class scores of the image: the best of all places.
BY_CLASS = ("dcpcac",)


def build(network: str, seed: int) -> nn.Module:
    """The detector with random weights, and the settings that its loss asks for."""
    from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel
    from ultralytics.utils import DEFAULT_CFG

    torch.manual_seed(seed)
    kind = RTDETRDetectionModel if network.startswith("rtdetr") else DetectionModel
    model: nn.Module = kind(f"{network}.yaml", verbose=False)
    model.args, model.nc = DEFAULT_CFG, CLASSES  # as a trainer of Ultralytics sets them
    return model.eval()


class OwnLoss:
    """Ultralytics' loss of an output, in training or not, and the classes of the images: one object in each."""

    def __init__(self, network: str, seed: int) -> None:
        self.judge: Any = build(network, seed).train()  # lends its loss only, and is never pruned

    def __call__(self, output: Any, classes: torch.Tensor) -> torch.Tensor:
        """Their sum; `output` as the network gives it."""
        if isinstance(output, tuple) and len(output) == 2:  # in evaluation: boxes, and what they were made of
            output = output[1]
        loss: torch.Tensor = self.judge.loss(objects(classes), output)[0].sum()
        return loss


def class_scores(output: Any) -> torch.Tensor:
    """Scores [N, classes] of an output in training: YOLO's are [N, classes, places], RT-DETR's those of queries."""
    scores: torch.Tensor = output["scores"].amax(2) if isinstance(output, dict) else output[1][-1].amax(1)
    return scores


def objects(classes: torch.Tensor, images: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """A batch as Ultralytics' data loaders make it, of one object an image, in the middle of it."""
    images = torch.zeros(len(classes), 3, 1, 1) if images is None else images
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.6]]).repeat(len(classes), 1)
    return {"img": images, "batch_idx": torch.arange(len(classes)), "cls": classes[:, None].float(), "bboxes": boxes}


def targets(classes: torch.Tensor) -> dict[str, Any]:
    """The same objects as RT-DETR's forward takes them in training, for its queries of denoising."""
    found = objects(classes)
    return {"cls": classes, "bboxes": found["bboxes"], "batch_idx": found["batch_idx"], "gt_groups": [1] * len(classes)}


def batches(count: int, arguments: argparse.Namespace) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Made images and the class of the object in each."""
    generator = torch.Generator().manual_seed(arguments.seed)
    for _ in range(count):
        images = torch.rand(arguments.batch, 3, arguments.size, arguments.size, generator=generator)
        yield images, torch.randint(CLASSES, (arguments.batch,), generator=generator)


def pruned(row: MethodRow, network: str, budget: str, arguments: argparse.Namespace) -> secateur.Result:
    """The detector, pruned as the front door says: in a loop of one's own, or in one call."""
    model, loss = build(network, arguments.seed), OwnLoss(network, arguments.seed)
    image = torch.rand(1, 3, arguments.size, arguments.size, generator=torch.Generator().manual_seed(1))
    images: Any = image
    if network.startswith("rtdetr"):
        images = secateur.Inputs(image).in_training(image, batch=targets(torch.tensor([1])))
    settings = SMALL.get(row.name, {})
    if row.acts != "while training":
        data = [*batches(arguments.steps, arguments)]
        given = {"data": data, "loss": loss} if row.needs == "calibration" else {}
        return secateur.prune(model, images, method=row.name, budget=budget, seed=arguments.seed, **given, **settings)
    pruner = secateur.methods.create(
        row.name, model, images, budget=budget, steps=arguments.steps, seed=arguments.seed, **settings
    )
    optimiser = torch.optim.SGD(pruner.parameter_groups(1e-4), lr=0.001, momentum=0.9)
    pruner.train()
    for inputs, classes in batches(arguments.steps, arguments):
        optimiser.zero_grad()
        pruner.before_forward(classes)
        output = pruner(inputs)
        pruner.after_forward(class_scores(output) if row.name in BY_CLASS else output, classes)
        (loss(output, classes) + pruner.loss()).backward()
        pruner.after_backward()
        optimiser.step()
        pruner.after_step()
    pruner.after_epoch()
    if pruner.searches():
        pruner.collect([*batches(arguments.steps, arguments)], loss)
    pruner.finish()
    result: secateur.Result = pruner.result
    return result


def trained_on(model: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Ultralytics' own loss of the narrow detector before one step of it and after."""
    images, classes = next(batches(1, arguments))
    batch = objects(classes, images)
    optimiser = torch.optim.SGD(model.train().parameters(), lr=0.001)
    model(images)  # the forward pass in training
    before = model.loss(batch)[0].sum()
    before.backward()
    optimiser.step()
    found = {"loss_before": float(before.detach()), "loss_after": float(model.loss(batch)[0].sum().detach())}
    if not all(map(math.isfinite, found.values())):
        raise ArithmeticError(f"the loss of the narrow network is not finite: {found}")
    return found


def _left(result: secateur.Result, metric: str) -> float:
    """The share of a budget's measure that is left: of weights other than zero, where a method sets some to zero."""
    zeros = result.plan.provenance.get("sparse")
    return float(zeros["nonzero"] / zeros["weights"]) if zeros else result.reached(metric)


def measured(network: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One method on one network, as far as it got: the figures, `refused` with its sentence, or a `fault` of ours."""
    row, began = method(name), time.perf_counter()
    metric = row.example_budget.partition("=")[0]
    start = {"network": network, "method": name, "acts": row.acts, "budget": f"{metric}={arguments.share}"}
    try:
        result = pruned(row, network, start["budget"], arguments)
        seconds = round(time.perf_counter() - began, 1)
        assert result.verification is not None
        return {
            **start,
            "left": round(_left(result, metric), 4),
            "params": round(result.reached("params"), 4),
            "passed": result.verification.passed,
            "exact": result.verification.exact,
            "max_relative_error": result.verification.max_relative_error,
            **trained_on(result.model, arguments),
            "unspent": result.plan.provenance.get("unspent", ""),
            "settled": len(result.plan.provenance.get("settled", ())),
            "seconds": seconds,
        }
    except (SizeConflict, PlanError) as error:  # no method may let one out
        return {**start, "fault": f"{type(error).__name__}: {error}"}
    except SecateurError as error:
        return {**start, "refused": str(error), "seconds": round(time.perf_counter() - began, 1)}
    except Exception as error:
        traceback.print_exc()
        return {**start, "fault": f"{type(error).__name__}: {error}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default=",".join(row.name for row in METHODS))
    parser.add_argument("--share", type=float, default=0.6, help="of the MACs, or of the weights, that may remain")
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="of training, or batches to look at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure what the result file has already")
    parser.add_argument("--output", type=Path, default=_record.RESULTS / "yolo.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _shim.install()
    own = {key: getattr(arguments, key) for key in ("size", "batch", "steps", "seed", "share")}
    old = _record.read(arguments.output) if arguments.output.exists() else {"rows": []}
    if old["rows"] and any(old[key] != value for key, value in own.items()):
        parser.error(f"{arguments.output} was measured otherwise: give another --output, or delete it")
    rows = {(row["network"], row["method"]): row for row in old["rows"]}
    for network in arguments.networks.split(","):
        for name in arguments.methods.split(","):
            if (network, name) in rows and not arguments.again:
                continue
            rows[network, name] = found = measured(network, name, arguments)
            print(found, flush=True)
            circumstances = _record.environment()
            circumstances["versions"]["ultralytics"] = importlib.metadata.version("ultralytics")
            _record.save(arguments.output, {**circumstances, **own, "rows": list(rows.values())})


if __name__ == "__main__":
    main()
