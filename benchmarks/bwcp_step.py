"""What BWCP costs: a training step of ResNet-56 beside a plain one, and inference after folding beside a plain network.

    python benchmarks/bwcp_step.py                      # batch 128, one thread, alternating, median of 7
    python benchmarks/bwcp_step.py --device cuda --repeats 50

Networks take their steps in turn: plain batch norms, BWCP while gates are drawn and the penalty is on (*bwcp*), BWCP
once its masks stand (*settled*, six tenths of a training), and, with channels apart, the first with the whitening
written as in the paper (batch norm, covariance, roots, product one after the other). Images lie in memory with channels
together, as the engine trains on a CPU, and with channels apart. For inference the network BWCP ends with stands beside
one that was built plainly and cut to the same widths. On a CPU seconds are the process's own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import _record
import torch
from _turns import row, timed
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.methods.bwcp import BWCP, whitening
from secateur.methods.bwcp.gates import WhitenedNorm


class AsWritten(WhitenedNorm):
    """The training pass in the paper's steps; for this comparison only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whitened, root = whitening.whitening_reference(
            x, self.weight, self.bias, self.size, self.newton_steps, self.eps
        )
        with torch.no_grad():
            self.whitening.lerp_(root, self.root_momentum)
        shape = root.shape[:2]
        scale, offset = ((root @ v.view(*shape, 1)).view(-1) for v in (self.weight, self.bias))
        mask = self.gates.mask(self, (scale, offset))
        return whitened if mask is None else whitened * mask.view(-1, 1, 1)


def trained(name: str, device: str, *, settled: bool) -> BWCP:
    """BWCP in the middle of a training of 100,000 steps: gates open, penalty on; or with masks that stand."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, 32, 32, device=device)
    method = BWCP(secateur.models.create(name).to(device), image, budget="flops=0.5", steps=100_000, warmup=0.0)
    method.train()
    method.steering.strength = 1e-4
    method.step = 39_999 if settled else 20_000
    method.after_step()
    return method


def step(model: nn.Module, extra: BWCP | None, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """One step of SGD as a function."""
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)

    def take() -> None:
        loss = F.cross_entropy(model(x), y)
        if extra is not None:
            loss = loss + extra.loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if extra is not None:
            extra.after_backward()
            extra.after_step()

    return take


def inference(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """One forward pass without gradients as a function."""
    model.eval()

    def take() -> None:
        with torch.no_grad():
            model(x)

    return take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    clock = time.process_time if device == "cpu" else time.perf_counter
    x, y = torch.randn(arguments.batch, 3, 32, 32, device=device), torch.randint(0, 10, (arguments.batch,))
    y, rows, done = y.to(device), [], None
    for layout, what in ((torch.channels_last, "channels together"), (torch.contiguous_format, "channels apart")):
        sides = {}
        for side in ("plain", "bwcp", "settled", *(["as_written"] if layout is torch.contiguous_format else [])):
            method = None if side == "plain" else trained(arguments.model, device, settled=side == "settled")
            model = method or secateur.models.create(arguments.model).to(device).train()
            model.to(memory_format=layout)
            for module in model.modules() if side == "as_written" else ():
                if type(module) is WhitenedNorm:
                    module.__class__ = AsWritten
            sides[side] = step(model, method, x.to(memory_format=layout), y)
            done = method if side == "settled" else done
        rows.append(row(f"training step, {what}", timed(sides, arguments.repeats, device, clock)))
        print(rows[-1], flush=True)
    method = done
    assert method is not None
    small = method.finish()
    assert method.result is not None
    cut = secateur.apply(secateur.models.create(arguments.model).to(device), x[:2], method.result.plan).model
    dense = secateur.models.create(arguments.model).to(device)
    sides = {"plain": inference(cut, x), "bwcp": inference(small, x), "dense": inference(dense, x)}
    rows.append(row("inference", timed(sides, 2 * arguments.repeats, device, clock)))
    name = "bwcp_step" if device == "cpu" else f"bwcp_step_{device}"
    result = {**_record.environment(), "model": arguments.model, "batch": arguments.batch, "repeats": arguments.repeats}
    result["bar"] = 1.2
    if device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    _record.save(_record.RESULTS / f"{name}.json", {**result, "rows": rows})
    print(rows[-1])


if __name__ == "__main__":
    main()
