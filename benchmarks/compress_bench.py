"""`compress` beside single methods with their defaults, at equal time, on networks that its defaults were not tuned on.

    python benchmarks/compress_bench.py --setup cifar10 --run runs/hour                # a finished run's network
    python benchmarks/compress_bench.py --setup photographs --weights FILE --photographs FOLDER
    python benchmarks/compress_bench.py --setup segmenter
    python benchmarks/compress_bench.py --quick                                        # digits, a rehearsal of seconds

A single method prunes with its defaults and then trains (SGD, lr 0.01, a cosine) for the rest of the time that
`compress` is given. All see the same training data; test images are looked at once, in the end. Measurements that are
in --rows already are kept, so an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _record
import _shim
import one_shot
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.compress.ground import fitting
from secateur.compress.held_out import source_of
from secateur.compress.judging import Judge, moved
from secateur.compress.record import Record
from secateur.compress.training import Plan, Tuner
from secateur.recipe import Recipe
from secateur.runs import prepare
from secateur.runtime import read_weights
from secateur.tasks import Evaluator, Task, create

SINGLE = ("fpgm", "lamp", "cp", "l1", "taylor", "bn_scale")
_ROUNDS = 8  # of a single method's training, or more where that is more than so many epochs


@dataclass(frozen=True)
class Setup:
    """A trained network, its training data, and test batches that only the last measurement sees."""

    network: nn.Module
    train: Any
    test: Iterable[tuple[Any, Any]]
    inputs: torch.Tensor
    task: Task


def cifar10(arguments: argparse.Namespace) -> Setup:
    """The dense network of a finished run on CIFAR-10, such as a ResNet-20's or a VGG-16's."""
    recipe = Recipe.read(arguments.run / "recipe.yaml")
    prepared = prepare(recipe)
    model = prepared.network().model
    read_weights(model, arguments.run / "checkpoints" / "dense.safetensors")
    data = prepared.data
    return Setup(
        model.eval(),
        data.train,
        list(data.test.batches(250)),
        torch.zeros(1, *data.input_size),
        create("classification"),
    )


def photographs(arguments: argparse.Namespace) -> Setup:
    """torchvision's MobileNetV2 with its ImageNet weights: half of the photographs to learn from, half to test on."""
    setup = next(iter(one_shot.photographs(arguments)))
    return Setup(setup.network(), list(setup.calibration), list(setup.test), setup.inputs, create("classification"))


def segmenter(arguments: argparse.Namespace) -> Setup:
    """A small encoder and decoder that finds discs and squares in noise, trained here."""
    torch.manual_seed(1)

    def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    model = nn.Sequential(
        block(1, 24), block(24, 48, 2), block(48, 96, 2), block(96, 96), nn.Upsample(scale_factor=2), block(96, 48),
        nn.Upsample(scale_factor=2), block(48, 24), nn.Conv2d(24, 3, 1),
    )  # fmt: skip
    train, test = (shapes(count, seed) for count, seed in ((2000, 1), (1000, 2)))
    task = create("segmentation")
    fit(model, train, task, epochs=8)
    return Setup(model, batched(train), batched(test), train[0][:1], task)


def digits(arguments: argparse.Namespace) -> Setup:
    """A small network on scikit-learn's digits, for the rehearsal."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(found.target)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip
    task = create("classification")
    fit(model, (x[:1200], y[:1200]), task, epochs=8)
    return Setup(model, batched((x[:1200], y[:1200])), batched((x[1200:], y[1200:])), x[:1], task)


SETUPS: Mapping[str, Callable[[argparse.Namespace], Setup]] = {
    "cifar10": cifar10, "photographs": photographs, "segmenter": segmenter, "digits": digits,
}  # fmt: skip
Tensors = tuple[torch.Tensor, torch.Tensor]


def shapes(count: int, seed: int) -> Tensors:
    """Images [count, 1, 48, 48] of a disc (1) and a square (2) in noise, and the class of every pixel."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    place = torch.rand(count, 4, 1, 1, generator=generator) * 32 + 8
    size = torch.rand(count, 2, 1, 1, generator=generator) * 5 + 4
    disc = (rows - place[:, 0]) ** 2 + (columns - place[:, 1]) ** 2 < size[:, 0] ** 2
    square = torch.maximum((rows - place[:, 2]).abs(), (columns - place[:, 3]).abs()) < size[:, 1]
    classes = torch.where(square, 2, disc.long())
    noise = torch.randn(count, 48, 48, generator=generator)
    return (0.8 * (classes > 0) + 0.7 * noise)[:, None], classes


def batched(pair: Tensors, size: int = 50) -> list[Tensors]:
    """Batches in memory."""
    return list(zip(pair[0].split(size), pair[1].split(size), strict=True))


def fit(model: nn.Module, pair: Tensors, task: Task, epochs: int) -> None:
    """Train with Adam."""
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for x, y in batched(pair):
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
    model.eval()


def headline(setup: Setup, model: nn.Module) -> float:
    """The task's metric on the test batches."""
    found = Evaluator(setup.task)
    model.eval()
    with torch.no_grad():
        for inputs, target in setup.test:
            found.see(model, *moved(model, inputs, target))
    return round(found.result()[setup.task.headline], 5)


class Unjudged(Judge):
    """Takes no time: whatever was trained last is best."""

    def __call__(self, model: nn.Module) -> float:
        """The same for all."""
        return 0.0


def single(setup: Setup, method: str, budget: str, seconds: float, seed: int) -> secateur.Result:
    """A method with its defaults, and plain training for the rest of the time."""
    began = time.monotonic()
    source = source_of(setup.train, setup.inputs, seed)
    assert source.shown is not None
    result = secateur.prune(
        setup.network, setup.inputs, method=method, budget=budget, data=list(source.shown()), loss=setup.task.loss,
        seed=seed,
    )  # fmt: skip
    tuner = Tuner(source, Unjudged(source, setup.task, setup.network), Record(None, seed))
    step = tuner.seconds_of_step(
        secateur.apply(setup.network, setup.inputs, result.plan, verify=False).model, distil=0.0
    )
    left = seconds - (time.monotonic() - began)
    some = min(max(int(left / step / _ROUNDS), 1), source.steps)
    rounds, steps = fitting(left, None, some, source.steps, step, 0.0)
    plan = Plan("sgd 0.01", 0.0, rounds, steps, seed)
    tuner.tune(result.model, plan, "single", late=lambda: time.monotonic() - began > seconds)
    return result


def measured(setup: Setup, name: str, budget: str, seconds: float, seed: int) -> dict[str, Any]:
    """One network found and tested."""
    began = time.monotonic()
    if name == "compress":
        result: secateur.Result = secateur.compress(
            setup.network, setup.train, example_inputs=setup.inputs, budget=budget, time=seconds, task=setup.task,
            seed=seed,
        )  # fmt: skip
        more = {"said": list(getattr(result, "said", ()))}
    else:
        result, more = single(setup, name, budget, seconds, seed), {}
    took = round(time.monotonic() - began, 1)
    return {
        "name": name, "seed": seed, "budget": budget, "time": seconds, "took": took,
        "figure": headline(setup, result.model), "flops": round(result.reached("flops"), 5), **more,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], dense: float) -> str:
    """Means over seeds with their 95% intervals of the mean (1.96 standard errors), best first."""
    by_name: dict[str, list[float]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row["figure"])
    lines = []
    for name, figures in sorted(by_name.items(), key=lambda pair: -statistics.mean(pair[1])):
        spread = 1.96 * statistics.stdev(figures) / len(figures) ** 0.5 if len(figures) > 1 else float("nan")
        lines.append(f"{name:10} {statistics.mean(figures):.4f} ± {spread:.4f}  ({len(figures)} seeds)")
    return "\n".join([f"original   {dense:.4f}", *lines])


def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure what is missing, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=SETUPS, default="cifar10")
    parser.add_argument("--name", help="of the result file, where a setup has several networks; default: the setup's")
    parser.add_argument("--run", type=Path, default=Path("runs/hour"), help="the finished run whose network is pruned")
    parser.add_argument("--weights", type=Path, help="torchvision's file of MobileNetV2")
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--budget", default="flops=0.5")
    parser.add_argument("--time", type=float, default=600.0, help="seconds for each network")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(SINGLE))
    parser.add_argument("--rows", type=Path, help="where rows are kept; default runs/compress_bench-NAME.jsonl")
    parser.add_argument("--quick", action="store_true", help="digits, seconds each; writes no result file")
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.setup, arguments.time, arguments.seeds, arguments.methods = "digits", 20.0, 1, "l1,fpgm"
        arguments.budget = "flops=0.3"
    name = arguments.name or arguments.setup
    kept: Path = arguments.rows or Path("runs") / f"compress_bench-{name}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    torch.set_num_threads(1)
    _shim.install()
    setup = SETUPS[arguments.setup](arguments)
    dense = headline(setup, setup.network)
    for seed in range(arguments.seeds):
        for each in ("compress", *arguments.methods.split(",")):
            if any((row["name"], row["seed"]) == (each, seed) for row in rows):
                continue
            rows.append(measured(setup, each, arguments.budget, arguments.time, seed))
            print({key: value for key, value in rows[-1].items() if key != "said"}, flush=True)
            with kept.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows, dense))
    if not arguments.quick:
        about = {"setup": name, "original": dense, "headline": setup.task.headline}
        _record.save(_record.RESULTS / f"compress_bench_{name}.json", {**_record.environment(), **about, "rows": rows})
    return rows


if __name__ == "__main__":
    main()
