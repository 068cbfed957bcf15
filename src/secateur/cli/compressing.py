"""Commands that search: compress, and the sensitivity of a network's groups."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli._base import (
    AsJson,
    InputShape,
    InputSize,
    Model,
    ModelArg,
    Plugin,
    Quiet,
    Seed,
    Weights,
    free,
    interruptible,
    resuming,
    show,
    tell,
    working,
)
from secateur.cli._normalising import Mean, Normalising, Std
from secateur.errors import ConfigError, RunError, SecateurError

if TYPE_CHECKING:
    from secateur.compress.result import Compressed
    from secateur.runtime.named import Named

_REQUEST, _FORMAT = "request.json", "secateur.compress.request"
#: Options that are arguments of `secateur.compress` as they are, and all that a search begins with.
_PASSED = (
    "speedup", "latency", "flops", "params", "size", "budget", "runtime", "max_drop", "task", "trials", "epochs",
    "methods", "repairs", "allocators", "align", "ignore", "min_channels", "max_ratio", "workers", "address", "seed",
)  # fmt: skip
#: Options that requests of earlier releases do not have, with what they stood at.
_SINCE: dict[str, Any] = {"repairs": None, "allocators": None, "min_channels": 1, "max_ratio": 1.0}
_OPTIONS = {
    *_PASSED, "model", "data", "mean", "std", "time", "plugin", "input_size", "input_shape", "model_arg", "weights",
}  # fmt: skip
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Training data: a folder of images, KIND:PATH, or file.py:loader (a DataLoader, or what returns one).",
    ),
]
TaskName = Annotated[str | None, typer.Option("--task", metavar="NAME", help="What the network is for; see the docs.")]
Ignore = Annotated[
    list[str], typer.Option("--ignore", metavar="PATTERN", help="Layers whose outputs stay whole. Repeatable.")
]


def compress(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="As for prune; none with --resume.")] = None,
    data: Data = None,
    mean: Mean = None,
    std: Std = None,
    speedup: Annotated[str | None, typer.Option(metavar="X", help="How much faster: 2.")] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it may take: 5ms, 5ms@openvino.")
    ] = None,
    flops: Annotated[str | None, typer.Option(metavar="N", help="MACs that may remain: 0.5, 200M.")] = None,
    params: Annotated[str | None, typer.Option(metavar="N", help="Parameters that may remain: 0.5, 2M.")] = None,
    size: Annotated[str | None, typer.Option(metavar="BYTES", help="Size of its weights: 4MB.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="BOUNDS", help="Several bounds, as for prune.")] = None,
    runtime: Annotated[str | None, typer.Option(metavar="NAME", help="Where it shall be fast: onnxruntime.")] = None,
    max_drop: Annotated[float | None, typer.Option(metavar="POINTS", help="Accuracy that may be lost: 1.")] = None,
    time: Annotated[str, typer.Option(metavar="TIME", help="For all of it: 90s, 30m, 1h30m, or none.")] = "30m",
    task: TaskName = None,
    trials: Annotated[int | None, typer.Option(min=1, metavar="N", help="Candidates to compare, at most.")] = None,
    epochs: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of the last training, at most.")] = None,
    methods: Annotated[str | None, typer.Option(metavar="A,B,C", help="Methods to compare, by commas.")] = None,
    repairs: Annotated[
        str | None, typer.Option(metavar="A,B+C", help="Repairs to try, by commas; B+C: C behind B; none.")
    ] = None,
    allocators: Annotated[
        str | None, typer.Option(metavar="A,B", help="Of global, uniform, per_cost, measured: those to try, by commas.")
    ] = None,
    align: Annotated[
        str | None,
        typer.Option(metavar="N", help="Kept widths are multiples of this: a number, a preset's name, or auto."),
    ] = None,
    ignore: Ignore = [],  # noqa: B006  # typer copies it
    min_channels: Annotated[int, typer.Option(help="Channels that stay in every group.")] = 1,
    max_ratio: Annotated[float, typer.Option(help="Largest share of a group that may go.")] = 1.0,
    plugin: Plugin = [],  # noqa: B006
    workers: Annotated[
        int | None, typer.Option(min=1, max=10_000, metavar="N", help="Candidates tried at a time, on Ray. Default: 1.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="local|auto|HOST:PORT", help="Of the Ray cluster. Default: local.")
    ] = None,
    seed: Seed = 0,
    input_size: InputSize = None,
    input_shape: InputShape = [],  # noqa: B006
    model_arg: ModelArg = [],  # noqa: B006
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the search, new.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Continue the search in this folder.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a network faster or smaller and keep its accuracy.

    Compares ways to prune it, trains the best of them and keeps the best. Networks are compared on training images
    that are held out; test images are never looked at. The folder holds the network (model.safetensors, plan.json),
    the report (compress.json, front.svg) and the record of the search (study.db: optuna-dashboard
    sqlite:///DIR/study.db). After Ctrl-C or a crash --resume goes on from there.

    \b
    Examples:
      secateur compress zoo:resnet20 --weights mine.safetensors --data cifar10:data --speedup 2 --runtime onnxruntime
      secateur compress net.py:build --input-size 3x96x96 --weights mine.safetensors --data photos --flops 0.5 --time 1h
      secateur compress zoo:resnet20 --weights mine.safetensors --data loaders.py:train --max-drop 1 --out runs/c
      secateur compress --resume runs/c
    """
    given = locals()
    hands = {"workers": workers or 1, "address": address or "local"}
    asked = {key: given[key] for key in sorted(_OPTIONS)} | hands
    if resume is not None:
        if model is not None or out is not None:
            raise ConfigError("--resume and MODEL or --out are both given: a search goes on with what it began with.")
        _refuse_others(context)
        folder, asked = resume, _request(resume)
        asked |= {key: hands[key] for key in hands if given[key] is not None}  # which change nothing but the time
    else:
        if model is None:
            raise ConfigError("Neither MODEL nor --resume is given: write secateur compress MODEL, or --resume DIR.")
        folder = out if out is not None else free(Path("runs") / "compress")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{str(folder)!r} is there already: give another --out, or continue it with --resume.")
    with interruptible(resuming("compress", folder, _REQUEST)), working("Compressing", as_json or quiet) as say:
        found = _searched(asked, folder, _heard(say, quiet), begun=resume is None)
    _tell(found, folder, as_json, quiet)


def sensitivity(
    model: Model,
    data: Annotated[str, typer.Option(metavar="DATA", help="Training data, as for compress.")],
    mean: Mean = None,
    std: Std = None,
    shares: Annotated[
        str, typer.Option(metavar="A,B", help="Shares of a group to remove, by commas.")
    ] = "0.25,0.5,0.75",
    method: Annotated[str, typer.Option(metavar="NAME", help="Whose scores choose the channels.")] = "l1",
    repair: Annotated[
        list[str],
        typer.Option("--repair", metavar="NAME", help="What repairs the remaining weights each time. Repeatable."),
    ] = [],  # noqa: B006
    task: TaskName = None,
    drop: Annotated[
        float | None, typer.Option(metavar="POINTS", help="Also print --ratio options that alone cost at most this.")
    ] = None,
    ignore: Ignore = [],  # noqa: B006
    seed: Seed = 0,
    input_size: InputSize = None,
    input_shape: InputShape = [],  # noqa: B006
    model_arg: ModelArg = [],  # noqa: B006
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write sensitivity.json and .svg there.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what pruning each group alone costs in accuracy.

    Group by group, on training images that are held out.

    \b
    Examples:
      secateur sensitivity zoo:resnet20 --weights mine.safetensors --data cifar10:data
      secateur sensitivity net.py:build --input-size 3x96x96 --data photos --shares 0.5 --repair batchnorm --drop 1
    """
    from secateur.cli._choice import training_data
    from secateur.compress import sensitivity as work
    from secateur.report.tables import summed_up

    with working("Measuring", as_json or quiet) as say:
        loaded = _loaded(model, model_arg, input_size, input_shape, seed, weights)
        images = training_data(data, loaded, seed, Normalising(mean, std))
        found = work(
            loaded.model, images, example_inputs=loaded.inputs, shares=_numbers(shares), method=method,
            repair=repair, task=task, ignore=ignore, seed=seed, say=_heard(say, quiet),
        )  # fmt: skip
        ratios = None if drop is None else found.ratios(drop)
        if out is not None:
            found.write(out)
    if as_json:
        show(json.dumps({**found.document(), "ratios": ratios}, indent=2, allow_nan=False))
        return
    if not quiet:
        show(summed_up(found._summary()))
    if ratios is not None:
        show(shlex.join(part for name, share in ratios.items() if share for part in ("--ratio", f"{name}={share:g}")))
    if out is not None:
        show(f"Written: {out}", wrap=False)


# --------------------------------------------------------------------------------------------------------- what is done


def _refuse_others(context: typer.Context) -> None:
    """ConfigError for an option beside --resume that could only be ignored."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name in _OPTIONS:
            option = max(parameter.opts, key=len)
            raise ConfigError(
                f"--resume and {option} are both given, and a search goes on with what it began with: leave {option} "
                "out, or begin another search."
            )


def _heard(say: Callable[[str], None], quiet: bool) -> Callable[[str], None]:
    """How far the work is, where that is shown; whole sentences stay, unless nothing is to be said."""

    def heard(text: str) -> None:
        if not text.endswith("."):
            say(text)
        elif not quiet:
            tell(text)

    return heard


def _searched(asked: dict[str, Any], folder: Path, say: Any, *, begun: bool) -> Compressed:
    """The search of these options, which are written into the folder when it begins."""
    from secateur._files import make_folder, write_json
    from secateur.cli._choice import training_data
    from secateur.compress.record import STUDY
    from secateur.methods import plug_in
    from secateur.runtime import save_model

    for each in asked["plugin"]:
        plug_in(each)
    weights = None if asked["weights"] is None else Path(asked["weights"])
    loaded = _loaded(
        asked["model"], asked["model_arg"], asked["input_size"], asked["input_shape"], asked["seed"], weights
    )
    normalising = Normalising(asked["mean"], asked["std"])
    if asked["data"] is None:
        normalising.refuse("without --data")
        data = None
    else:
        data = training_data(asked["data"], loaded, asked["seed"], normalising)
    if begun:
        make_folder(folder)
        plain = {**asked, "weights": None if weights is None else str(weights.absolute())}
        write_json(folder / _REQUEST, {"format": _FORMAT, "version": 1, "asked": plain}, what="The request")
    try:
        found = _worked(asked, loaded, data, folder, say)
    except SecateurError:
        if begun and not (folder / STUDY).exists():  # refused, so that the same folder may be named again
            (folder / _REQUEST).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        raise
    save_model(
        folder, found.model, reference=loaded.origin, arguments=loaded.arguments,
        inputs=loaded.inputs, plan=found.plan,
    )  # fmt: skip
    return found


def _worked(asked: dict[str, Any], loaded: Named, data: Any, folder: Path, say: Any) -> Compressed:
    from secateur.compress import compress as work

    return work(
        loaded.model, data, example_inputs=loaded.inputs, out=folder, say=say,
        time=None if asked["time"] == "none" else asked["time"],
        **{key: asked[key] for key in _PASSED},
    )  # fmt: skip


def _loaded(
    model: str, arguments: Sequence[str], size: str | None, shapes: Sequence[str], seed: int, weights: Path | None
) -> Named:
    from secateur.runtime.named import Wish, network

    return network(model, Wish(arguments, size, shapes, weights, seed=seed))


def _request(folder: Path) -> dict[str, Any]:
    """The options with which the search in a folder began; RunError where there are none."""
    from secateur._files import read_json

    if not (folder / _REQUEST).is_file():
        raise RunError(f"There is no search in {str(folder)!r}: give the folder that secateur compress wrote.")
    document = read_json(folder / _REQUEST, what="The request")
    asked = document.get("asked") if isinstance(document, dict) and document.get("format") == _FORMAT else None
    if not isinstance(asked, dict) or not asked.keys() >= _OPTIONS - _SINCE.keys():
        raise RunError(f"{str(folder / _REQUEST)!r} is no request of this release: begin the search again.")
    return _SINCE | asked


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--shares {text!r} is not understood: write such as 0.25,0.5.") from error


def _tell(found: Compressed, folder: Path, as_json: bool, quiet: bool) -> None:
    if as_json:
        show(json.dumps(found.document(), indent=2, allow_nan=False, ensure_ascii=False))
    elif quiet:
        show(str(folder))
    else:
        from secateur.report.tables import summed_up

        show(summed_up(found._summary()))
        show(f"Network, report and record: {folder}", wrap=False)
