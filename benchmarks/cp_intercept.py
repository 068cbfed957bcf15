"""Does CP's LASSO pick other channels with one intercept for each output (ours) than with one for all (the authors')?

    python benchmarks/cp_intercept.py         # no data needed; a minute

Small networks with random weights and norms calibrated on their batches; of every convolution with eight inputs or
more half are kept. Said is in how many layers the two differ, and which leaves less unexplained after the refit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from secateur.methods.cp.lasso import select
from secateur.testing.networks import NETWORKS

NAMES, SEEDS, POSITIONS = ("no norm", "residual", "depthwise", "projection", "concatenation"), range(3), 10
Sample = tuple[str, torch.Tensor, torch.Tensor]  # layer, patches [samples, inputs, kernel], weights


@torch.no_grad()
def layers(name: str, seed: int) -> list[Sample]:
    """Of one network: what its convolutions read."""
    kind = next(each for each in NETWORKS if each.name == name)
    model: Any = kind.make(seed)
    for x, _ in kind.batches(10):
        model(x)
    seen: dict[str, tuple[Any, torch.Tensor]] = {}
    for path, module in model.eval().named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels >= 8:
            module.register_forward_hook(lambda m, a, _, path=path: seen.setdefault(path, (m, a[0])) and None)
    model(torch.cat([x for x, _ in kind.batches(6, seed=7)]))
    found = []
    for path, (module, x) in seen.items():
        patches = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        few = min(POSITIONS, patches.shape[2])
        at = torch.randint(patches.shape[2], (len(x), few), generator=torch.Generator().manual_seed(0))
        rows = patches.gather(2, at[:, None].expand(-1, patches.shape[1], -1)).mT
        found.append((path, rows.reshape(-1, module.in_channels, module.weight[0, 0].numel()).double(), module.weight))
    return found


def chosen(parts: torch.Tensor, wanted: torch.Tensor, kept: int) -> Any:
    """parts: of every input in every answer [samples, outputs, inputs]. wanted: [samples, outputs]. Both centred."""
    flat = parts.flatten(0, 1)
    return select((flat.T @ flat / len(parts)).numpy(), (flat.T @ wanted.flatten() / len(parts)).numpy(), kept)


def unexplained(rows: torch.Tensor, wanted: torch.Tensor, mask: Any) -> float:
    """The share of the answers' variance that the best weights of these inputs leave."""
    read = rows[:, torch.from_numpy(mask)].flatten(1)
    read, wanted = read - read.mean(0), wanted - wanted.mean(0)
    left = wanted - read @ torch.linalg.lstsq(read, wanted, driver="gelsd").solution
    return float(left.square().sum() / wanted.square().sum())


@torch.no_grad()
def main() -> None:
    differ = better = total = 0
    for name in NAMES:
        for seed in SEEDS:
            for path, rows, weight in layers(name, seed):
                parts = torch.einsum("nck,ock->noc", rows, weight.double().flatten(2))
                wanted = parts.sum(2)
                kept = parts.shape[2] // 2
                ours = chosen(parts - parts.mean(0), wanted - wanted.mean(0), kept)
                one = chosen(parts - parts.mean((0, 1)), wanted - wanted.mean(), kept)
                total += 1
                if (ours != one).any():
                    left = [unexplained(rows, wanted, mask) for mask in (ours, one)]
                    differ, better = differ + 1, better + (left[0] < left[1])
                    print(f"{name}, seed {seed}, {path}: left unexplained {left[0]:.4f} (ours), {left[1]:.4f}")
    print(f"{differ} of {total} layers differ; ours leaves less unexplained in {better} of them")


if __name__ == "__main__":
    main()
