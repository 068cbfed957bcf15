"""Plans and results of every method as hashes, to see that a change of the code's structure changed no result.

    python benchmarks/same_results.py write before.json            # with the old code on PYTHONPATH
    python benchmarks/same_results.py compare benchmarks/results/same_results_9fdf074.json   # what differs now

Every method, and those of its settings that take another path, on three networks with two seeds: six training steps
or two calibration batches of eight images, then finish(). Hashed are the plan, its provenance, the costs, the notes,
the metrics and every tensor of the narrow network, bit by bit. One thread.

The move of methods into rooms of their own, commit 0de2477, changed nothing: with its code on PYTHONPATH all 216
results are those of 9fdf074. What changed since, and why, is in SINCE; `compare` says it beside each method that
differs, and its exit code is 1 only where a method differs for which no reason is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from secateur import models
from secateur.errors import SecateurError
from secateur.methods import METHODS
from secateur.testing.networks import NETWORKS

SEEDS = (0, 1)
STEPS = 6
#: Why results are no longer those of commit 9fdf074, by method: the commits that changed them, and what they changed.
SINCE: dict[str, str] = {
    "bn_scale": "309463b: a note says where all scores of a group are equal, so that the order of channels decides",
    "bwcp": "33a7a1e: whitening goes through its input once, so that sums have another order; plans are the same",
    "cap": "dd6e44e: goes by the loss where there is no accuracy, and says so; 71cc680: a note of how many images were "
    "shown; 1d9e428: forward selection in blocks, wide sums of squares in single precision; 3048756: rounding is no "
    "signal",
    "catro": "5248dc0: all classes count alike, with a note of their numbers, and budget that would cost more than a "
    "hundredth of the utility stays unspent, which the plan says",
    "cp": "71cc680: all images that are shown are used, and a note says how many; be5c1bb: least squares is made ready "
    "once from the inputs that stay, so that sums have another order",
    "cpmc": "309463b: alpha and beta are 0.1, and scores are normalised as `combine` asks; settings are in provenance",
    "csgd": "309463b: the share of vectors follows the length of training by default (setting vectors, in provenance), "
    "and the note of filters that have not become equal names both strengths",
    "cwb": "6113ee7: masks are learnt in training alone, so that the settings passes and lr are gone from provenance; "
    "plans are the same",
    "dcp": "e0378ab: kernels are a method of their own (dkp), classifiers stand behind sums, the fit stops where "
    "nothing is left to gain, 20 rounds instead of 5; 71cc680: all images that are shown are used, with a note; "
    "058f135: the largest weights join where nothing is left to gain; be5c1bb: sums in another order",
    "dcpcac": "309463b: rates follow the length of training by default (settings rate and trunk, in provenance), and "
    "the setting answers is new",
    "functionality": "558e582: the setting steps is named ascent_steps; 16ea567: images climb with momentum, classes "
    "are balanced, plans do not cluster again; 38e0eb7: they climb on a copy with norms folded in",
    "nap": "309463b: rounds end at 0.4 of the training instead of 0.75; settings round_ratio and answers are new",
    "pfp": "18d6f96: sums of layers stay whole by default (setting units), each layer says what it asks for, and equal "
    "shares are decided by other layers, so that a plan follows its channels",
    "prunenet": "5248dc0: plans say the widths that lambda leaves; plans and weights are the same",
}
#: Settings beside the defaults, by method.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "catro": [{"streams": True, "sweeps": 2}],
    "cp": [{"streams": True}],
    "cpmc": [{"units": "inside", "combine": "ratio"}],
    "csgd": [{"clustering": "even"}],
    "cwb": [{"units": "all"}],
    "dcp": [{"rounds": None, "norm": "frobenius"}, {"weight": 0.0, "shortcuts": False}],
    "dcpcac": [{"metric": "loss"}],
    "functionality": [{"merge": True}],
    "nap": [{"form": "obd"}, {"mode": "weight"}],
    "pfp": [{"variant": "rand"}],
    "prunenet": [{"units": "all", "after_norm": False}],
}


def networks() -> dict[str, Any]:
    """The networks, each as a function of the seed, with the shape of an image and the number of classes."""
    toys = {network.name: network for network in NETWORKS}

    def zoo(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return models.create("resnet8")

    return {
        "residual": (toys["residual"].make, (3, 8, 8), 5),
        "depthwise": (toys["depthwise"].make, (3, 8, 8), 5),
        "resnet8": (zoo, (3, 16, 16), 10),
    }


def batches(count: int, shape: tuple[int, ...], classes: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of eight images whose brightness tells their class."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        labels = torch.randint(0, classes, (8,), generator=generator)
        images = torch.randn(8, *shape, generator=generator) + labels.view(-1, 1, 1, 1) / classes
        found.append((images, labels))
    return found


def train(method: Any, shown: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """An own training loop, every hook called."""
    optimiser = torch.optim.SGD(method.parameters(), 0.02, momentum=0.9)
    method.train()
    for images, labels in shown:
        optimiser.zero_grad()
        method.before_forward(labels)
        output = method(images)
        method.after_forward(output, labels)
        (F.cross_entropy(output, labels) + method.loss()).backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
    method.after_epoch()


def result(row: Any, settings: dict[str, Any], network: str, seed: int) -> dict[str, str]:
    """The hashes of one method on one network, or the sentence with which it refuses."""
    build, shape, classes = networks()[network]
    torch.manual_seed(seed)
    budget = getattr(row, "example_budget", "flops=0.5") if settings.get("mode") != "weight" else "params=0.5"
    try:
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
        method = row.factory(build(seed), images, budget=budget, steps=STEPS, seed=seed, **settings)
        if row.acts == "while training":
            train(method, batches(STEPS, shape, classes, seed))
        if row.needs == "calibration":
            method.collect(batches(2, shape, classes, seed + 5), F.cross_entropy)
        narrow = method.finish()
    except SecateurError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    plan, found = method.result.plan, method.result
    kept = {name: mask.tolist() for name, mask in sorted(plan.masks.items())}
    costs = [found.before, found.after]
    return {
        "plan": _hash(kept),
        "provenance": _hash(plan.provenance),
        "costs": _hash([str(cost) for cost in costs]),
        "notes": _hash(method.notes),
        "metrics": _hash(method.metrics()),
        "weights": _tensors(narrow.state_dict()),
    }


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _tensors(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def every(only: list[str]) -> dict[str, dict[str, str]]:
    """The hashes of all methods, by method, settings, network and seed."""
    found = {}
    for row in METHODS:
        if only and row.name not in only:
            continue
        for settings in [{}, *VARIANTS.get(row.name, [])]:
            for network in networks():
                for seed in SEEDS:
                    key = f"{row.name} {json.dumps(settings)} {network} seed {seed}"
                    found[key] = result(row, settings, network, seed)
                    print(key, *found[key].values(), file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Write the hashes, or compare them with those of a file; exit code 1 where anything differs without a reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--methods", default="", help="only these, comma-separated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    found = every([name for name in options.methods.split(",") if name])
    if options.action == "write":
        options.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    before = json.loads(options.file.read_text(encoding="utf-8"))
    lines, unexplained = compared(before, found)
    print("\n".join(lines))
    return 1 if unexplained else 0


def compared(before: dict[str, dict[str, str]], found: dict[str, dict[str, str]]) -> tuple[list[str], list[str]]:
    """What differs and why, in lines, and the methods that differ for no reason that is known."""
    lines, methods = [], dict[str, None]()
    both = [key for key in found if key in before]
    differing = [key for key in both if before[key] != found[key]]
    for key in differing:
        lines.append(" ".join([key, *(part for part in found[key] if before[key].get(part) != found[key][part])]))
        methods[key.split(" ")[0]] = None
    lines += [f"{name}: {SINCE.get(name, 'no reason is known')}." for name in methods]
    later = dict.fromkeys(key.split(" ")[0] for key in found if key not in before)
    if later:
        lines.append(f"New since then: {', '.join(later)}.")
    lines.append(f"{len(both) - len(differing)} of {len(both)} results are bit-identical")
    return lines, [name for name in methods if name not in SINCE]


if __name__ == "__main__":
    sys.exit(main())
