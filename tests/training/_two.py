"""Run by `accelerate launch` in test_two_processes.py, and by that test itself in one process for comparison."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from _toy import ToyData, ToyMethod, ToySplit, make_engine, short, toy_net
from safetensors.torch import save_file
from torch import nn

import secateur
from secateur import models
from secateur._distributed import global_mean, rank, world
from secateur.data import open_data
from secateur.errors import RunError
from secateur.methods.catro.class_scatter import ClassScatter
from secateur.methods.functionality.images import Extremes
from secateur.methods.group_fisher.gate_gradients import Fisher
from secateur.methods.pfp.sensitivity import Sensitivities
from secateur.recipe import DataConfig, EngineConfig, Training
from secateur.statistics import gather
from secateur.statistics.moments import Moments
from secateur.training import Engine, stage
from secateur.training.checkpoints import Store
from secateur.training.sync_norm import synchronised

torch.set_num_threads(1)
CONFIG = EngineConfig(device="cpu", precision="fp32")


def digits(folder: Path) -> None:
    """A residual network with batch norm; 187 images make batches that do not divide evenly."""
    data = open_data(DataConfig(name="digits", train_images=187), 0)
    engine = Engine(data, CONFIG, seed=1, batch_size=32, folder=folder / "digits")
    torch.manual_seed(0)
    net = models.create("resnet8", num_classes=10, in_channels=1)
    classes = [type(module) for module in net.modules()]
    fitted = engine.fit("train", net, Training(epochs=2, lr=0.05, warmup=0.5, label_smoothing=0.1))
    assert classes == [type(module) for module in net.modules()]
    assert fitted.steps == engine.steps(Training(epochs=2))
    found = engine.evaluate(net, data.test)
    plan = secateur.prune(net, torch.zeros(2, 1, 8, 8), budget="flops=0.5", method="l1").plan
    masks = {name: mask.tolist() for name, mask in plan.masks.items()}
    keep(
        folder, "digits", net, {"masks": masks, "loss": found.loss, "accuracy": found.headline, "images": found.images}
    )


def whitened(folder: Path) -> None:
    """BWCP: gates drawn alike, moments over all images, and in the end the same channels."""
    data = open_data(DataConfig(name="digits", train_images=187), 0)
    engine = Engine(data, CONFIG, seed=1, batch_size=32, folder=folder / "whitened")
    torch.manual_seed(0)
    training = Training(epochs=2, lr=0.02)
    net = models.create("resnet8", num_classes=10, in_channels=1, width=0.5)
    # without the controller, whose comparisons turn the last bit of a sum into another strength
    settings = {"budget": "flops=0.6", "steps": engine.steps(training), "controller": False, "lambda1": 1e-3}
    method = secateur.methods.create("bwcp", net, torch.zeros(2, 1, 8, 8), **settings)
    engine.fit("train", method, training, method=method)
    keep(folder, "whitened", method, {"masks": {name: mask.tolist() for name, mask in method.plan().masks.items()}})


def mixed(folder: Path) -> None:
    """Mixup draws for the whole batch, averages are taken, and a method adds its penalty once."""
    engine = make_engine(folder / "mixed", CONFIG)
    method = ToyMethod(toy_net(dropout=0.0))
    engine.fit("train", method, short(mixup=0.4, ema=0.9, optimiser="adamw", lr=0.01, select="best"), method=method)
    keep(folder, "mixed", method, {})


def small(folder: Path) -> None:
    """A last batch of three images, of which one process gets one, and a layer that only some images reach."""
    engine = make_engine(folder / "small", CONFIG, ToyData(ToySplit(19)))
    net = Sometimes()
    engine.fit("train", net, short())
    keep(folder, "small", net, {})


def gathered(folder: Path) -> None:
    """Sums over batches, of which each process sees every other one: five of them, the last a smaller one."""
    data = open_data(DataConfig(name="digits", train_images=187, validation=0.0), 0)
    batches = [(x.double(), y) for x, y in data.train.batches(40)]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
    ).double()  # fmt: skip
    tables = {"3": np.arange(6), "6": 6 + np.arange(128) // 16}
    counts = torch.bincount(torch.cat([y for _, y in batches])).tolist()
    moments, fisher, extremes = Moments(["0", "3", "6"]), Fisher(tables, 14, torch.device("cpu")), Extremes()
    scatter, sensitivities = ClassScatter(tables, counts, [6, 8]), Sensitivities(tables)
    collectors = (moments, fisher, extremes, scatter, sensitivities)
    assert gather(net, batches, collectors, nn.functional.cross_entropy) == 187
    found = {f"{name}.{part}": getattr(moments[name], part) for name in "036" for part in ("mean", "covariance")}
    found |= {"fisher": fisher.squares, "low": extremes.low, "high": extremes.high}
    found |= {f"sensitivity.{name}": value for name, value in sensitivities.of.items()}
    between, within = scatter.result
    found |= {"between": torch.as_tensor(between), "within": torch.as_tensor(within)}
    if rank() == 0:
        save_file({name: value.contiguous() for name, value in found.items()}, folder / "gathered.safetensors")


class Sometimes(nn.Module):
    """A process without a bright image does not use the second head at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.odd = toy_net(dropout=0.0), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, bright = self.body(x), x.mean((1, 2, 3)) > 0.25
        return y + self.odd(y) * bright[:, None] if bool(bright.any()) else y


def keep(folder: Path, name: str, net: nn.Module, facts: dict[str, Any]) -> None:
    if rank() == 0:
        save_file({k: v.clone() for k, v in net.state_dict().items()}, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(facts))


def norms(folder: Path) -> None:
    """Values and gradients of a synchronised norm, in each kind, are those of one norm over all images."""
    for kind, shape in ((nn.BatchNorm1d, (7, 3)), (nn.BatchNorm2d, (7, 3, 2, 2)), (nn.BatchNorm3d, (5, 3, 2, 1, 2))):
        for momentum, affine in ((0.1, True), (None, False)):
            torch.manual_seed(2)
            whole = torch.randn(shape, dtype=torch.float64) * 3 + 5
            wanted = torch.randn(shape, dtype=torch.float64)
            one = kind(3, momentum=momentum, affine=affine, dtype=torch.float64)
            many = kind(3, momentum=momentum, affine=affine, dtype=torch.float64)
            x, y = whole.clone().requires_grad_(), whole.tensor_split(world())[rank()].clone().requires_grad_()
            target = wanted.tensor_split(world())[rank()]
            for _ in range(2):
                full = one(x)
                ((full - wanted) ** 2).sum().backward()
                with synchronised(many):
                    part = many(y)
                    ((part - target) ** 2).sum().backward()
            close(part, full.tensor_split(world())[rank()])
            close(y.grad, x.grad.tensor_split(world())[rank()])
            close(many.running_mean, one.running_mean)
            close(many.running_var, one.running_var)
            if affine:
                for mine, true in ((many.weight.grad, one.weight.grad), (many.bias.grad, one.bias.grad)):
                    torch.distributed.all_reduce(mine)
                    close(mine, true)


def means(folder: Path) -> None:
    """global_mean weighs unequal shares, ignores an empty one, and its gradient is that of the whole."""
    whole = torch.arange(6.0, dtype=torch.float64).reshape(3, 2).requires_grad_()
    ((whole.mean(0)) ** 3).sum().backward()
    part = whole.detach().tensor_split(world())[rank()].clone().requires_grad_()
    mean = global_mean(part.mean(0), len(part))
    close(mean, whole.mean(0))
    ((mean**3).sum() / world()).backward()  # the loss is the sum over processes
    close(part.grad, whole.grad.tensor_split(world())[rank()])
    nothing = torch.zeros(0, 2).mean(0) if rank() else torch.ones(2)
    close(global_mean(nothing, float(rank() == 0)), torch.ones(2))
    close(global_mean(torch.full((2, 2), float(rank()))), torch.full((2, 2), 0.5))


def close(mine: torch.Tensor | None, true: torch.Tensor | None) -> None:
    assert mine is not None
    assert true is not None
    torch.testing.assert_close(mine.detach(), true.detach(), rtol=1e-9, atol=1e-9)


def dies(folder: Path) -> None:
    """The second process is killed in the second epoch; the first says so and has a checkpoint."""
    step, taken = stage.Stage._step, []

    def deadly(self: Any, *args: Any) -> float:
        taken.append(1)
        if len(taken) == 8 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    stage.Stage._step = deadly  # type: ignore[method-assign]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, which would come a moment after
    try:
        make_engine(folder / "dies", CONFIG).fit("train", toy_net(dropout=0.0), short())
    except RunError as error:
        (folder / "dies.txt").write_text(str(error))
    os._exit(3)


def main(folder: Path) -> None:
    torch.distributed  # noqa: B018
    make_engine()  # starts the process group
    assert world() == 2
    if rank() == 1:
        Store.write = None  # type: ignore[assignment,method-assign]  # only the first process may write
    for work in (norms, means, gathered, digits, whitened, mixed, small):
        work(folder)
        torch.distributed.barrier()
    (folder / f"survived{rank()}").touch()
    dies(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
