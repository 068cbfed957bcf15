"""The prunability census: trace, prune half of the channels of every group, cut and verify, for every model listed.

    python benchmarks/census.py --jobs 2                                   # all (about an hour); --resume goes on
    python benchmarks/census.py --only 'timm:*ghost*' --out /dev/stdout    # a pattern (fnmatch), or several
    python benchmarks/census.py --sample 40 --seed 0

Weights are random but seeded. Each model runs in a worker process with a hard time limit, so that one that hangs or is
killed is a row and not the end. ``tables.py`` makes docs/census.md of the result.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import random
import re
import select
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _macs
import _record
import census_models
import numpy as np
import torch
from torch import nn

BAR_S = 30.0  # no model should take longer
LIMIT_S = 120.0  # a worker is killed after
WHOLE_SHARE = 0.95  # of the MACs in prunable layers; below, the row is marked partial
SEED = 0


@dataclass(frozen=True)
class Outcome:
    """What the library did with one model."""

    graph: Any
    plan: Any
    model: nn.Module
    verification: Any
    settled: list[str]  # sizes written in code that made channels stay
    seconds: dict[str, float]  # trace, solve, cut, verify


def prune_half(model: nn.Module, example_inputs: tuple[Any, ...]) -> Outcome:
    """Half of the channels of every group, drawn at random: the one place that knows secateur's interface."""
    from secateur.graph import SizeConflict, trace

    clock, settled = _Clock(), []
    graph = trace(model, example_inputs)
    traced, solve = clock.lap(), graph.timings["solve"]
    while True:
        plan = half_of(graph)
        try:
            made = graph.cut(plan)
            break
        except SizeConflict as conflict:
            settled.append(graph.settle(conflict))
    cut = clock.lap()
    verification = graph.verify(made, plan)
    seconds = {"trace": traced - solve, "solve": solve, "cut": cut, "verify": clock.lap()}
    return Outcome(graph, plan, made.model, verification, settled, seconds)


def half_of(graph: Any) -> Any:
    """A plan that keeps a random half of the channels of every group, the larger one where the width is odd."""
    from secateur.plan import Plan

    generator, masks = np.random.default_rng(SEED), {}
    for group in graph.groups:
        masks[group.name] = np.zeros(group.width, dtype=bool)
        masks[group.name][generator.permutation(group.width)[: group.width - group.width // 2]] = True
    return Plan(masks=masks, provenance={"allocator": "half of every group, at random", "seed": SEED})


class _Clock:
    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds


def measure(name: str) -> dict[str, Any]:
    """One row of the census; an exception of the library becomes the row's error."""
    model, example_inputs, entry = census_models.load(name)
    before = weight_shapes(model)
    row: dict[str, Any] = {
        "name": name,
        "kind": entry.kind,
        "family": entry.family,
        "class": entry.architecture,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "layers": len(before),
    }
    start = time.perf_counter()
    try:
        outcome = prune_half(model, example_inputs)
    except Exception as error:
        status = "differs" if type(error).__name__ == "VerificationError" else "error"
        row |= {"status": status, "error": f"{type(error).__name__}: {error}"[:500], "where": _where(error)}
        return {**row, "total_s": round(time.perf_counter() - start, 3)}
    row |= {f"{phase}_s": round(seconds, 3) for phase, seconds in outcome.seconds.items()}
    row["total_s"] = round(time.perf_counter() - start, 3)
    try:
        row |= _describe(outcome, model, example_inputs, before)
    except Exception as error:
        row |= {
            "status": "error",
            "error": f"after the cut: {type(error).__name__}: {error}"[:500],
            "where": _where(error),
        }
    return row


def _describe(
    outcome: Outcome, model: nn.Module, example_inputs: tuple[Any, ...], before: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    graph, verification = outcome.graph, outcome.verification
    layer_macs = macs_by_layer(model, example_inputs, before)
    whole = max(sum(layer_macs.values()), 1)
    members = {_layer(member.name) for group in graph.groups for member in group.members}
    producers = {_layer(member.name) for group in graph.groups for member in group.members if member.role == "producer"}
    weights = dict.fromkeys(before, 0)
    for key, tensor in model.named_parameters():
        if tensor.ndim >= 2:
            weights[_layer(key)] += tensor.numel()
    after = weight_shapes(outcome.model)
    cost, cost_after = graph.cost(), graph.cost(outcome.plan)
    share = sum(layer_macs[layer] for layer in members & layer_macs.keys()) / whole
    return {
        "status": "exact" if verification.exact else "inexact" if verification.passed else "differs",
        "partial": share < WHOLE_SHARE,
        "reasons": sorted({re.sub(r" in [^()]*\)$", ")", reason) for reason in verification.reasons}),
        "settled": outcome.settled[:10],
        "max_relative_error": float(verification.max_relative_error),
        "structural_error": verification.structural_error,
        "operator_calls": len(graph.recording.calls),
        "macs": cost.macs,
        "macs_counted": _macs.count(model, example_inputs),
        "groups": len(graph.groups),
        "prunable_macs": round(share, 4),
        "prunable_output_macs": round(sum(layer_macs[layer] for layer in producers & layer_macs.keys()) / whole, 4),
        "prunable_params": round(
            sum(weights[layer] for layer in members & weights.keys()) / max(sum(weights.values()), 1), 4
        ),
        "layers_touched": sum(after.get(layer) != shape for layer, shape in before.items()),
        "macs_after": cost_after.macs,
        "macs_after_counted": _macs.count(outcome.model, example_inputs),
        "params_after": sum(parameter.numel() for parameter in outcome.model.parameters()),
        "frozen": _frozen(graph, layer_macs),
        "unsupported": sorted({item.operator for item in graph.unsupported})[:10],
    }


def _layer(parameter: str) -> str:
    """Name of the module that owns a parameter; parametrised weights count for the module they parametrise."""
    return (
        parameter.split(".parametrizations.")[0] if ".parametrizations." in parameter else parameter.rpartition(".")[0]
    )


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Layers with a weight of two or more dimensions, and the shapes of those weights, joined."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            shapes[_layer(name)] = shapes.get(_layer(name), ()) + tuple(parameter.shape)
    return shapes


def macs_by_layer(model: nn.Module, example_inputs: tuple[Any, ...], layers: dict[str, Any]) -> dict[str, int]:
    """MACs of each layer that owns a weight, without those of the layers inside it."""
    counted = _macs.by_module(model, example_inputs)
    own = {}
    for layer in layers:
        inside = [name for name in counted if name.startswith(f"{layer}.")]
        nearest = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside)]
        own[layer] = counted.get(layer, 0) - sum(counted[name] for name in nearest)
    return own


def _frozen(graph: Any, layer_macs: dict[str, int]) -> list[dict[str, Any]]:
    """The five frozen widths that hold most MACs, with their reasons."""
    rows = [
        {"name": item.name, "width": item.width, "reason": item.reason, "macs": layer_macs.get(item.name, 0)}
        for item in graph.frozen
    ]
    return sorted(rows, key=lambda row: -row["macs"])[:5]


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))


def sample(number: int, seed: int, *, max_params: float = 60e6, max_macs: float = 1.5e9) -> list[str]:
    """A seeded sample of the smaller models, in the order of the list."""
    names = [e.name for e in census_models.entries().values() if e.params <= max_params and e.macs <= max_macs]
    chosen = set(random.Random(seed).sample(names, min(number, len(names))))
    return [name for name in names if name in chosen]


class Worker:
    """A process that measures one model after another, replaced when one takes too long or kills it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, name: str, limit: float) -> dict[str, Any]:
        started = self._start()
        assert started.stdin is not None
        assert started.stdout is not None
        start = time.perf_counter()
        started.stdin.write(name.encode() + b"\n")
        started.stdin.flush()
        ready, _, _ = select.select([started.stdout], [], [], limit)
        line = started.stdout.readline() if ready else b""
        if line:
            row: dict[str, Any] = json.loads(line)
            return row
        self.stop()
        entry = census_models.entries()[name]
        seconds = time.perf_counter() - start
        row = {
            "name": name,
            "kind": entry.kind,
            "family": entry.family,
            "class": entry.architecture,
            "params": entry.params,
        }
        fate = f"worker died with exit code {started.returncode}" if ready else f"not done after {limit:.0f} s"
        return {**row, "status": "error" if ready else "timeout", "error": fate, "total_s": round(seconds, 3)}

    def _start(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self.process.stdout is not None
            self.process.stdout.readline()  # imports done: the limit is for the model alone
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def serve() -> None:
    """The worker's loop: a name a line in, a row a line out."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a model that prints does not disturb the rows
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            row = measure(line.strip())
        except Exception as error:
            row = {
                "name": line.strip(),
                "status": "error",
                "error": f"benchmark: {error!r}"[:500],
                "where": _where(error),
            }
        print(json.dumps(row), file=answers, flush=True)
        gc.collect()


def run(
    names: list[str], *, jobs: int = 1, limit: float = LIMIT_S, report: Callable[[dict[str, Any]], None] | None = None
) -> list[dict[str, Any]]:
    """Rows of the named models, in that order."""
    workers = [Worker() for _ in range(jobs)]
    idle = list(workers)

    def one(name: str) -> dict[str, Any]:
        worker = idle.pop()
        try:
            row = worker.ask(name, limit)
        finally:
            idle.append(worker)
        if report:
            report(row)
        return row

    try:
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, names))
    finally:
        for worker in workers:
            worker.stop()


def choose(arguments: argparse.Namespace) -> list[str]:
    names = sample(arguments.sample, arguments.seed) if arguments.sample else list(census_models.entries())
    if arguments.only:
        names = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.only)]
    if not names:
        raise SystemExit(
            f"no model of the census matches {arguments.only}: patterns are like 'torchvision:*' or 'timm:res2net*'"
        )
    return names


def _lines(names: list[str]) -> Iterator[str]:
    table = census_models.entries()
    for name in names:
        entry = table[name]
        size = f"{entry.params / 1e6:7.1f} M {entry.macs / 1e9:7.2f} GMACs"
        yield f"{name:55s} {entry.kind:15s} {entry.architecture:6s} {size} {entry.inputs}"


def _brief(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    share = 100 * row["prunable_macs"]
    return f"{row['groups']} groups, error {row['max_relative_error']:.1e}, {share:.0f}% of the MACs prunable"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="PATTERN", help="names to measure, fnmatch; may be repeated")
    parser.add_argument("--sample", type=int, metavar="N", help="measure N of the smaller models, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="worker processes, one thread each")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds after which a worker is killed")
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that --out already holds; errors run again"
    )
    parser.add_argument("--out", type=Path, default=_record.RESULTS / "census.json")
    parser.add_argument("--list", action="store_true", help="print the chosen models and end")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return serve()
    names = choose(arguments)
    if arguments.list:
        print("\n".join(_lines(names)))
        return None
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    if arguments.resume and arguments.out.exists():
        rows = {
            row["name"]: row for row in _record.read(arguments.out)["rows"] if row["status"] not in ("error", "timeout")
        }
    order, wanted = (
        {name: i for i, name in enumerate(census_models.entries())},
        [name for name in names if name not in rows],
    )
    head = {
        **_record.environment(),
        "jobs": arguments.jobs,
        "limit_s": arguments.limit,
        "bar_s": BAR_S,
        "listed": len(order),
        "whole_share": WHOLE_SHARE,
    }

    def keep(row: dict[str, Any]) -> None:
        rows[row["name"]] = row
        text = f"{len(rows):4d}/{len(names)} {row['name']:50s} {row['status']:8s} {row.get('total_s', 0):7.2f} s  "
        print((text + _brief(row))[:200], flush=True)
        if arguments.out.suffix == ".json":
            _record.save(
                arguments.out, {**head, "rows": sorted(rows.values(), key=lambda row: order.get(row["name"], -1))}
            )

    run(wanted, jobs=arguments.jobs, limit=arguments.limit, report=keep)
    return None


if __name__ == "__main__":
    main()
