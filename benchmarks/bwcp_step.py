"""What BWCP costs: a training step of ResNet-56 beside a plain one, and inference after folding beside a plain network.

    python benchmarks/bwcp_step.py                      # batch 128, one thread, alternating, median of 7
    python benchmarks/bwcp_step.py --device cuda --repeats 50

Three networks take their steps in turn: plain batch norms, BWCP with gates open and the penalty on, and the same with
the whitening written as in the paper (batch norm, covariance, roots, product one after the other). For inference the
network BWCP ends with stands beside one that was built plainly and cut to the same widths.
"""

from __future__ import annotations

import argparse
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
        mask = self.gates.mask(self, root)
        return whitened if mask is None else whitened * mask.view(-1, 1, 1)


def trained(name: str, batch: int, device: str) -> tuple[BWCP, torch.Tensor]:
    """BWCP in the middle of a training: gates open, penalty on."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, 32, 32, device=device)
    method = BWCP(secateur.models.create(name).to(device), image, budget="flops=0.5", steps=1000, warmup=0.0)
    method.train()
    method.step = 400
    method.steering.strength = 1e-4
    return method, torch.randn(batch, 3, 32, 32, device=device)


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
    method, x = trained(arguments.model, arguments.batch, device)
    written, _ = trained(arguments.model, arguments.batch, device)
    for module in written.modules():
        if type(module) is WhitenedNorm:
            module.__class__ = AsWritten
    plain = secateur.models.create(arguments.model).to(device).train()
    y = torch.randint(0, 10, (len(x),), device=device)
    sides = {
        "plain": step(plain, None, x, y),
        "bwcp": step(method, method, x, y),
        "as_written": step(written, written, x, y),
    }
    rows = [row("training step", timed(sides, arguments.repeats, device))]
    small = method.finish()
    assert method.result is not None
    cut = secateur.apply(secateur.models.create(arguments.model).to(device), x[:2], method.result.plan).model
    dense = secateur.models.create(arguments.model).to(device)
    sides = {"plain": inference(cut, x), "bwcp": inference(small, x), "dense": inference(dense, x)}
    rows.append(row("inference", timed(sides, 2 * arguments.repeats, device)))
    name = "bwcp_step" if device == "cpu" else f"bwcp_step_{device}"
    result = {**_record.environment(), "model": arguments.model, "batch": arguments.batch, "repeats": arguments.repeats}
    if device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    _record.save(_record.RESULTS / f"{name}.json", {**result, "rows": rows})
    for entry in rows:
        print(entry)


if __name__ == "__main__":
    main()
