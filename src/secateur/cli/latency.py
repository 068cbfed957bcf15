"""The command that times networks: alone or against another, on every runtime there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli._base import All, AsJson, InputSize, ModelArg, Quiet, Seed, emit, working
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.runtime.named import Named

Subject = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:factory, or the folder of a run.",
    ),
]


def latency(
    model: Subject,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME]",
            help="pytorch, compiled, onnxruntime, openvino, executorch; all: those that are installed.",
        ),
    ] = "pytorch,onnxruntime",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="DENSE", help="The network to compare with. Default: what MODEL was before its cut, if it had one."
        ),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Compare with nothing.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Images at a time.")] = 1,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of the CPU.")] = 1,
    repeats: Annotated[int, typer.Option(min=3, max=1_000_000, help="Measurements of each network.")] = 30,
    layers: Annotated[bool, typer.Option("--layers", help="The times of single layers too.")] = False,
    stairs: Annotated[
        str | None,
        typer.Option(
            "--staircase",
            metavar="LAYER",
            help="Instead, the time of one layer at its own width and the 32 below it; auto: the one with most MACs.",
        ),
    ] = None,
    input_size: InputSize = None,
    model_arg: ModelArg = [],  # noqa: B006  # typer copies it
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of MODEL (safetensors), before or after its plan.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Cut MODEL by this plan; then it is compared with itself uncut.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save what --json prints, a run's latency.json.")
    ] = None,
    every: All = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time a network, alone or against another.

    The two run in turns (A B B A) after warming up, so that what else the machine does hits both alike. Told are the
    median and, in brackets, the 10th and the 90th percentile. A difference is called a speed-up where the 95%
    interval of the ratio of their medians lies above 1 (bootstrap of the pairs); a noisy machine is called noisy.

    \b
    Examples:
      secateur latency runs/a
      secateur latency zoo:resnet20 --against zoo:resnet56 --runtime all --layers
      secateur latency torchvision:resnet50 --plan plan.json --runtime onnxruntime,openvino
      secateur latency torchvision:resnet50 --staircase layer2.1.conv2
      secateur latency mymodel.py:small --against mymodel.py:large --input-size 3x64x64 --batch 8 --threads 4
    """
    from secateur.report.latency_tables import latency_tables, stairs_tables
    from secateur.runtime import measure
    from secateur.runtime.latency import measure_alone
    from secateur.runtime.named import Wish, network, opponent

    if out is not None:
        _check_out(out, model, weights, plan)
    wish = Wish(model_arg, input_size, weights=weights, plan=plan, seed=seed)
    if stairs is not None:
        asked = {"--against": against, "--alone": alone, "--layers": layers}
        if ignored := [option for option, given in asked.items() if given]:
            raise ConfigError(f"--staircase times one layer, so {ignored[0]} has no meaning: leave one of them out.")
        with working("Timing", quiet or as_json, still=True):
            document = _staircases(network(model, wish), stairs, runtime, batch, threads)
        _save(document, out)
        if as_json or not quiet:
            emit(document, as_json, lambda: stairs_tables(document))
        return
    if alone and against is not None:
        raise ConfigError("--alone and --against are both given: use one of them.")
    names, skipped = _runtimes(runtime)
    settings: dict[str, Any] = {"batch_size": batch, "repeats": repeats, "threads": threads, "runtimes": names}
    with working("Timing", quiet or as_json, still=True):
        subject = network(model, wish, dense=against)
        other = subject.before if against is None else opponent(against, subject, wish)
        if alone or other is None:
            other = None
            document = measure_alone(subject.model, subject.inputs, layers=layers, **settings)
        else:
            document = measure(other.model, subject.model, subject.inputs, layers=layers, **settings)
    document["skipped"] += skipped
    document |= {"model": subject.reference, "against": None if other is None else other.reference}
    _save(document, out)
    if as_json or not quiet:
        emit(document, as_json, lambda: latency_tables(document, every=every))


def _staircases(subject: Named, layer: str, runtimes: str, batch: int, threads: int) -> dict[str, Any]:
    """The staircases of one layer, one for each runtime."""
    from secateur.graph import trace
    from secateur.latency import BENCHES, Target, staircase

    names, skipped = _runtimes(runtimes)
    own = [name for name in names if name in BENCHES and name != "compiled"]
    skipped += [
        {"runtime": name, "reason": "It has no kernels of its own to time."} for name in names if name not in own
    ]
    graph = trace(subject.model, subject.inputs)
    chosen = None if layer == "auto" else layer
    rows = [staircase(graph, Target(name, batch, threads), chosen).as_json() for name in own]
    return {
        "format": "secateur.staircase",
        "version": 1,
        "model": subject.reference,
        "runtimes": rows,
        "skipped": skipped,
    }


def _runtimes(text: str) -> tuple[list[str], list[dict[str, str]]]:
    """The runtimes asked for, and with `all` those that are not installed, with what to do about it."""
    from secateur.runtime.engines import ENGINES, engines_of

    names = [name.strip() for name in text.split(",") if name.strip()]
    if names != ["all"]:
        engines_of(names)
        return names, []
    missing = {name: sentence for name, row in ENGINES.items() if (sentence := row.missing()) is not None}
    return [name for name in ENGINES if name not in missing], [
        {"runtime": name, "reason": sentence} for name, sentence in missing.items()
    ]


def _check_out(out: Path, model: str, weights: Path | None, plan: Path | None) -> None:
    """Refuse a file that cannot be written, or that is read; a run's own latencies may be measured anew."""
    from secateur.runtime import check_target

    own = out.resolve() == (Path(model) / "latency.json").resolve()
    check_target(out, "--out", "" if own else model)
    for option, path in (("--weights", weights), ("--plan", plan)):
        if path is not None and path.resolve() == out.resolve():
            raise ConfigError(f"--out and {option} name the same file: give two names.")


def _save(document: dict[str, Any], out: Path | None) -> None:
    from secateur._files import write_json

    if out is not None:
        write_json(out, document, what="The latencies")
