"""Every network of the zoo and twenty of torchvision and timm, pruned to half their FLOPs, in every format there is.

    python benchmarks/exports.py                                       # all of them in every installed format
    python benchmarks/exports.py --only 'timm:*' --formats onnx,pt2    # some; rows in --rows are kept and not repeated
    python benchmarks/exports.py --int8 runs/hour                      # accuracy in 8 bits of a finished run's network
    python benchmarks/exports.py --kept                                # write the result file of the rows there are

Weights are random, so the norms' statistics are measured anew, before the cut and after it, on noise: with those of a
new network signals grow or vanish over the layers, and a relative error would say little. Inputs are smaller than usual
where the architecture allows, to save time; the graph that is exported is the same.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import _record
import _shim
import torch
from torch import nn

import secateur
from secateur import references
from secateur.models import MODELS
from secateur.recipe import Recipe
from secateur.runs import prepare
from secateur.runs.calibration import Calibration
from secateur.runtime import EXPORTERS, QUANTISERS, open_exported, read_weights
from secateur.runtime.export import Subject, export_subject
from secateur.runtime.int8 import quantise_subject
from secateur.training.randomness import derive

#: Pixels, and arguments of the factory.
LIBRARIES: dict[str, tuple[int, dict[str, Any]]] = {
    "torchvision:resnet50": (64, {}),
    "torchvision:mobilenet_v2": (64, {}),
    "torchvision:mobilenet_v3_large": (64, {}),
    "torchvision:efficientnet_b0": (64, {}),
    "torchvision:densenet121": (64, {}),
    "torchvision:vgg16_bn": (224, {}),  # its pooling to 7x7 is exported where it divides
    "torchvision:regnet_y_400mf": (64, {}),
    "torchvision:shufflenet_v2_x1_0": (64, {}),
    "torchvision:mnasnet1_0": (64, {}),
    "torchvision:convnext_tiny": (64, {}),
    "torchvision:googlenet": (96, {"init_weights": False}),
    "torchvision:squeezenet1_1": (96, {}),
    "timm:ghostnet_100": (64, {}),
    "timm:res2net50_26w_4s": (64, {}),
    "timm:hrnet_w18_small": (64, {}),
    "timm:repvgg_a0": (64, {}),
    "timm:dla34": (64, {}),
    "timm:mobilenetv4_conv_small": (64, {}),
    "timm:vovnet39a": (64, {}),
    "timm:xception41": (96, {}),
}
KEPT = (
    "max_relative_error", "tolerance", "opset", "dynamic_batch", "reason", "bytes", "loads", "not_loaded",
    "largest_batch", "delegates", "operators",
)  # fmt: skip
LEFT = (1.0, 0.7, 0.5)  # of the FLOPs of the network whose accuracy in 8 bits is measured
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def networks() -> list[str]:
    """All of them."""
    return [*(f"zoo:{name}" for name in MODELS), *LIBRARIES]


def pruned(name: str) -> tuple[secateur.Result, torch.Tensor]:
    """A network with half its FLOPs, and an input."""
    if name in LIBRARIES:
        size, arguments = LIBRARIES[name]
        texts = [f"{key}={json.dumps(value)}" for key, value in arguments.items()]
        loaded = references.load(name, arguments=texts, input_shapes=[f"1,3,{size},{size}"], seed=0)
    else:
        loaded = references.load(name, seed=0)
    measure_norms(loaded.model, loaded.inputs)
    result = secateur.prune(loaded.model, loaded.inputs, budget="flops=0.5", method="l1", verify=False)
    measure_norms(result.model, loaded.inputs)
    return result, loaded.inputs


@torch.no_grad()
def measure_norms(model: nn.Module, inputs: torch.Tensor) -> None:
    """Statistics of batch norms as noise has them; the network is for inference then."""
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    generator = torch.Generator().manual_seed(0)
    model(torch.randn(16, *inputs.shape[1:], generator=generator))
    model.eval()


def exported(name: str, formats: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each format."""
    about: dict[str, Any] = {"network": name}
    try:
        result, inputs = pruned(name)
    except Exception as error:  # a row, and on to the next network
        yield from ({**about, "format": each, "error": f"{type(error).__name__}: {error}"} for each in formats)
        return
    about |= {"input": list(inputs.shape), "flops": round(result.reached("flops"), 4), "params": result.after.params}
    began = time.perf_counter()
    subject = Subject.of(result.model, inputs)
    try:
        subject.graph()  # which all formats begin with
    except Exception as error:
        yield from ({**about, "format": each, "error": f"{type(error).__name__}: {error}"} for each in formats)
        return
    about["graph_s"] = round(time.perf_counter() - began, 2)
    with tempfile.TemporaryDirectory() as folder:
        for each in formats:
            began = time.perf_counter()
            row = {**about, "format": each}
            try:
                found = export_subject(each, subject, Path(folder) / EXPORTERS[each].file)
                kept = (
                    "max_relative_error",
                    "tolerance",
                    "opset",
                    "dynamic_batch",
                    "reason",
                    "bytes",
                    "loads",
                    "not_loaded",
                )
                row |= {key: found[key] for key in (*kept, "largest_batch", "delegates", "operators") if key in found}
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"
            yield {**row, "seconds": round(time.perf_counter() - began, 2)}


# --------------------------------------------------------------------------------------------------------------- 8 bits


def quantised(arguments: argparse.Namespace, done: set[Any]) -> Iterator[dict[str, Any]]:
    """A row for each quantiser and network: the dense one of a finished run, and what is left of it after pruning."""
    recipe = Recipe.read(arguments.int8 / "recipe.yaml")
    prepared = prepare(recipe)
    config, seed = recipe.data, derive(recipe.seed, "calibration")
    calibration = Calibration(prepared.data, arguments.images, config.batch_size, seed, torch.device("cpu"))
    test, seen = [], 0
    for x, y in prepared.data.test.batches(250, shuffle=True, seed=0):
        if seen < arguments.test:
            test.append((x[: arguments.test - seen], y[: arguments.test - seen]))
            seen += len(test[-1][0])
    inputs = torch.zeros(1, *prepared.data.input_size)
    for left in LEFT:
        if all((left, name) in done for name in QUANTISERS):
            continue
        model = prepared.network().model
        read_weights(model, arguments.int8 / "checkpoints" / "dense.safetensors")
        about: dict[str, Any] = {"network": recipe.model.reference, "run": recipe.name, "left": left, "repair": None}
        if left < 1:
            about["repair"] = "least_squares"
            result = secateur.prune(
                model, inputs, budget=f"flops={left}", method="l1", data=calibration, repair="least_squares"
            )
            model = result.model
        about["float"] = accuracy(model.eval(), test)
        subject = Subject.of(model, inputs)
        for name, row in QUANTISERS.items():
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / row.file
                found = quantise_subject(name, subject, file, (x for x, _ in calibration))
                seconds = round(time.perf_counter() - began, 2)
                int8 = accuracy(open_exported(file), test)
            kept = {key: found[key] for key in ("calibration_images", "relative_difference", "bytes")}
            yield {**about, "int8": int8, "quantiser": name, **kept, "tested": seen, "seconds": seconds}


@torch.inference_mode()
def accuracy(model: nn.Module, batches: Batches) -> float:
    """Top-1."""
    right = [(model(x).argmax(1) == y).float() for x, y in batches]
    return round(float(torch.cat(right).mean()), 5)


# ---------------------------------------------------------------------------------------------------------- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="patterns of networks, separated by commas")
    installed = ",".join(name for name, row in EXPORTERS.items() if row.missing is None)
    parser.add_argument("--formats", default=installed)
    parser.add_argument("--int8", type=Path, metavar="RUN", help="measure accuracy in 8 bits instead, of this run")
    parser.add_argument("--images", type=int, default=1024, help="calibration images of the run's training set")
    parser.add_argument("--test", type=int, default=2000, help="test images, drawn with seed 0")
    parser.add_argument("--rows", type=Path, default=Path("runs/exports.jsonl"), help="where rows are kept")
    parser.add_argument(
        "--kept", action="store_true", help="measure nothing, write the result file of the rows there are"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept: Path = arguments.rows
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []

    def keep(found: Iterable[dict[str, Any]]) -> None:
        for row in found:
            rows.append(row)
            print(row, flush=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")

    if arguments.int8 is not None:
        keep(quantised(arguments, {(row["left"], row["quantiser"]) for row in rows if "quantiser" in row}))
    elif not arguments.kept:
        _shim.install()
        done = {(row["network"], row.get("format")) for row in rows}
        for name in networks():
            if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.only.split(",")):
                missing = [each for each in arguments.formats.split(",") if (name, each) not in done]
                keep(exported(name, missing) if missing else ())
    circumstances = _record.environment()
    circumstances["command"] = circumstances["command"].removesuffix(" --kept")
    circumstances["versions"] |= {
        name: _record._version(name) for name in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "executorch")
    }
    order = {name: number for number, name in enumerate(networks())}
    rows.sort(key=lambda row: ("quantiser" in row, order.get(row["network"], 0)))
    _record.save(_record.RESULTS / "exports.json", {**circumstances, "rows": rows})


if __name__ == "__main__":
    main()
