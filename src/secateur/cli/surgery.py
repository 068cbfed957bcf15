"""Commands on a network as it is: inspect, prune, apply."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from secateur.cli._base import (
    All,
    AsJson,
    Attention,
    Ema,
    InputShape,
    InputSize,
    Model,
    ModelArg,
    NoVerify,
    Out,
    Plugin,
    Quiet,
    Seed,
    Trust,
    Weights,
    emit,
    show,
    working,
)
from secateur.cli._normalising import Mean, Normalising, Std
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.latency import Watcher
    from secateur.runtime.named import Named
    from secateur.surgery import Result


def inspect(
    model: Model,
    input_size: InputSize = None,
    input_shape: InputShape = [],  # noqa: B006  # typer copies it
    model_arg: ModelArg = [],  # noqa: B006
    explain: Annotated[
        list[str], typer.Option("--explain", metavar="LAYER", help="Tell all about one layer or group. Repeatable.")
    ] = [],  # noqa: B006
    attention: Attention = "heads",
    trust: Trust = False,
    seed: Seed = 0,
    every: All = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the groups of coupled channels and what they cost.

    Also what cannot be pruned, and why; --explain tells all about one layer.

    \b
    Examples:
      secateur inspect zoo:resnet56
      secateur inspect torchvision:resnet50 --explain layer3.0.conv2
      secateur inspect timm:convnext_tiny --json
      secateur inspect mymodel.py:factory --input-size 3x64x64 --model-arg width=0.5
    """
    import secateur
    from secateur import report
    from secateur.runtime.named import Wish, network

    with working("Tracing", quiet or as_json):
        loaded = network(model, Wish(model_arg, input_size, input_shape, seed=seed, trust=trust))
        graph = secateur.trace(loaded.model, loaded.inputs, attention=cast(Any, attention))
        told = {name: graph.explain(name) for name in explain}
        document = report.describe_graph(loaded, graph) | ({"explain": told} if told else {})
    if told and not as_json:
        from rich.text import Text

        show(Text("\n\n".join(told.values())), wrap=False)
    else:
        emit(document, as_json, lambda: report.graph_tables(loaded, graph, every=every, brief=quiet))


def prune(
    model: Model,
    budget: Annotated[
        list[str],
        typer.Option(
            "--budget",
            metavar="BOUNDS",
            help="What may remain: flops=0.5, params=2M or both; also activations, peak, latency=0.6@onnxruntime.",
        ),
    ] = [],  # noqa: B006
    method: Annotated[
        str, typer.Option(metavar="NAME", help="How channels are chosen; see `secateur methods`.")
    ] = "l1",
    data: Annotated[
        str | None,
        typer.Option(metavar="KIND:PATH", help="Images to learn from: digits, imagefolder:photos."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many images they are shown. Default: 1024.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Images at a time. Default: 64.")] = None,
    repair: Annotated[
        list[str], typer.Option("--repair", metavar="NAME", help="Of `secateur repairs`, before the cut. Repeatable.")
    ] = [],  # noqa: B006
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="NAME.KEY=VALUE", help="Of the method or a repair: cp.ridge=1e-3. Repeatable."),
    ] = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    allocator: Annotated[
        str | None,
        typer.Option(
            help="global, uniform, per_cost, ratios, or measured (on --data, for cap and methods that only score). "
            "Default: the method's own, or ratios with --ratio."
        ),
    ] = None,
    ratio: Annotated[
        list[str], typer.Option("--ratio", metavar="PATTERN=SHARE", help="Share of channels to remove. Repeatable.")
    ] = [],  # noqa: B006
    align: Annotated[
        str,
        typer.Option(metavar="N", help="Kept widths are multiples of this: a number, a preset's name, or auto."),
    ] = "1",
    ignore: Annotated[
        list[str],
        typer.Option("--ignore", metavar="PATTERN", help="Layers whose outputs stay whole: layer4.*. Repeatable."),
    ] = [],  # noqa: B006
    min_channels: Annotated[int, typer.Option(help="Channels that stay in every group.")] = 1,
    max_ratio: Annotated[float, typer.Option(help="Largest share of a group that may go.")] = 1.0,
    normalise: Annotated[
        str | None,
        typer.Option(
            help="How groups become comparable: mean, max, sum, standard, gauss, lamp, none. Default: the method's."
        ),
    ] = None,
    attention: Attention = "heads",
    seed: Seed = 0,
    no_verify: NoVerify = False,
    input_size: InputSize = None,
    input_shape: InputShape = [],  # noqa: B006
    model_arg: ModelArg = [],  # noqa: B006
    weights: Weights = None,
    ema: Ema = False,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A plan that MODEL is cut by already; --weights are after it.")
    ] = None,
    trust: Trust = False,
    out: Out = None,
    plan_out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the plan (JSON).")] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save the smaller network, to be loaded, exported and pruned again."),
    ] = None,
    every: All = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Prune a network within a budget, and verify the result.

    A method chooses the channels that stay; the others are removed until the budget is met. Methods that act while
    the network is trained need a recipe: see `secateur run`.

    \b
    Examples:
      secateur prune zoo:resnet20 --budget flops=0.5
      secateur prune torchvision:mobilenet_v2 --budget flops=0.5,params=2M --align 8
      secateur prune torchvision:resnet50 --budget flops=0.5 --method cp --data imagefolder:photos --images 512 \\
          --repair least_squares --set cp.ridge=1e-3
      secateur prune timm:resnet18 --weights mine.pth --budget flops=0.5 --method taylor --data photos --mean half
      secateur prune torchvision:resnet50 --budget latency=0.6@onnxruntime
      secateur prune zoo:vgg16_bn --ratio 'features.*=0.5' --ignore features.0
      secateur prune mymodel.py:factory --input-size 3x64x64 --budget params=0.3 \\
          --weights mine.pth --out small.safetensors --plan-out plan.json
      secateur prune mypackage.nets:build --input-size 3x64x64 --budget flops=0.6 --weights last.ckpt --ema --save once
      secateur prune once --trust --budget flops=0.7 --save twice
    """
    from secateur._hints import choose
    from secateur.allocate import ALLOCATORS, MEASURED, Constraints
    from secateur.budget import Budget
    from secateur.cli._choice import chosen, images_of
    from secateur.latency import align_of
    from secateur.prune import prune as secateur_prune
    from secateur.runtime.named import Wish, network

    bounds = Budget.parse(",".join(budget)) if budget else None  # several options are several bounds
    ratios = _ratios(ratio)
    if allocator is not None:
        choose(allocator, (*ALLOCATORS, MEASURED), "allocator")
    own, mending = chosen(method, repair, settings, plugin)
    normalising = Normalising(mean, std)
    if data is None:
        normalising.refuse("without --data")
        for option, value in (("--images", images), ("--batch-size", batch_size)):
            if value is not None:
                raise ConfigError(f"{option} is of no use without --data: say with --data KIND:PATH which images.")
    multiple = align_of(align)
    Constraints(tuple(ignore), min_channels, max_ratio, multiple)
    _check_files(model, weights, out, plan_out, plan)
    if save is not None:
        _check_save(save, model)
    silent = quiet or as_json
    timed = bounds is not None and bounds.target is not None
    with (
        working("Pruning", silent, still=timed) as say,
        _measuring(silent) if timed else contextlib.nullcontext() as watch,
    ):
        loaded = network(model, Wish(model_arg, input_size, input_shape, weights, plan, seed, ema, trust))
        shown, notes = None, loaded.notes
        if data is not None:
            shown, sentence = images_of(data, loaded, images or 1024, batch_size or 64, seed, normalising, say)
            notes = (*notes, sentence)
        result = secateur_prune(
            loaded.model,
            loaded.inputs,
            method=method,
            budget=bounds,
            data=shown,
            repair=mending,
            allocator=allocator,
            normalise=normalise,
            ratios=ratios or None,
            align=multiple,
            ignore=ignore,
            min_channels=min_channels,
            max_ratio=max_ratio,
            attention=cast(Any, attention),  # checked there
            verify=not no_verify,
            seed=seed,
            watch=watch,
            **own,
        )
        result.plan.provenance["model"] = model
        result = replace(result, remarks=(*notes, *result.remarks))
        files = _save(loaded, result, out, plan_out, save)
    _tell("prune", loaded, result, files, every=every, as_json=as_json, quiet=quiet)


def apply(
    model: Model,
    plan: Annotated[Path, typer.Option(metavar="FILE", help="A plan that `secateur prune --plan-out` saved.")],
    input_size: InputSize = None,
    input_shape: InputShape = [],  # noqa: B006
    model_arg: ModelArg = [],  # noqa: B006
    weights: Weights = None,
    ema: Ema = False,
    trust: Trust = False,
    out: Out = None,
    seed: Seed = 0,
    no_verify: NoVerify = False,
    every: All = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cut a network as a saved plan says.

    The network must be the original one, not yet pruned.

    \b
    Examples:
      secateur apply zoo:resnet20 --plan plan.json
      secateur apply mymodel.py:factory --input-size 3x64x64 --plan plan.json \\
          --weights mine.safetensors --out small.safetensors
    """
    import secateur
    from secateur.plan import Plan
    from secateur.runtime.named import Wish, network

    _check_files(model, weights, out, None, plan)
    with working("Cutting", quiet or as_json):
        saved = Plan.load(plan)
        loaded = network(model, Wish(model_arg, input_size, input_shape, weights, None, seed, ema, trust))
        result = secateur.apply(loaded.model, loaded.inputs, saved, verify=not no_verify)
        result = replace(result, remarks=(*loaded.notes, *result.remarks))
        files = _save(loaded, result, out, None)
    _tell("apply", loaded, result, files, every=every, as_json=as_json, quiet=quiet)


@contextlib.contextmanager
def _measuring(silent: bool) -> Iterator[Watcher]:
    """What shows the layer shapes that are measured, as a run does."""
    from secateur.training import make_progress

    progress = make_progress(quiet=silent)
    try:
        yield progress.measured
    finally:
        progress.end_stage()  # a bar that an error or Ctrl-C has left


def _ratios(texts: Sequence[str]) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for text in texts:
        pattern, sign, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not sign or not pattern or not 0 <= number <= 1:
            raise ConfigError(
                f"--ratio {text!r} is not understood: write a layer pattern and the share to remove, from 0 to 1, "
                "such as 'layer4.*=0.3'."
            )
        if pattern in ratios:
            raise ConfigError(f"--ratio gives {pattern!r} twice: give it once.")
        ratios[pattern] = number
    return ratios


def _check_files(model: str, weights: Path | None, out: Path | None, plan_out: Path | None, plan: Path | None) -> None:
    """Refuse files that cannot be written, or that would overwrite what is read, before any work is done."""
    from secateur.runtime import check_target

    named = {"--weights": weights, "--out": out, "--plan-out": plan_out, "--plan": plan}
    given = {option: path for option, path in named.items() if path is not None}
    for option in ("--out", "--plan-out"):
        if option in given:
            same = [o for o, p in given.items() if o != option and p.resolve() == given[option].resolve()]
            if same:
                raise ConfigError(f"{option} and {same[0]} name the same file: give two names.")
            check_target(given[option], option, model)


def _check_save(save: Path, model: str) -> None:
    """Refuse a folder whose own network would be replaced, before any work is done."""
    if save.exists() and not save.is_dir():
        raise ConfigError(f"--save {str(save)!r} is a file: give a folder.")
    if Path(model).is_dir() and save.resolve() == Path(model).resolve():
        raise ConfigError("--save and MODEL name the same folder: give another one.")
    held = next((name for name in ("state.json", "results.json", "request.json") if (save / name).exists()), None)
    if held is not None:
        raise ConfigError(
            f"--save {str(save)!r} holds a run or a search ({held}), whose network would be replaced: give another "
            "folder."
        )


def _save(
    loaded: Named, result: Result, out: Path | None, plan_out: Path | None, save: Path | None = None
) -> dict[str, str]:
    from secateur.report.documents import metadata
    from secateur.runtime import save_model, save_weights

    files = {}
    if save is not None:
        origin, inputs = loaded.origin, loaded.inputs
        save_model(save, result.model, reference=origin, inputs=inputs, plan=result.plan, arguments=loaded.arguments)
        files["network"] = str(save)
    if plan_out is not None:
        result.whole_plan.save(plan_out)
        files["plan"] = str(plan_out)
    if out is not None:
        save_weights(result.model, out, metadata(loaded, result))
        files["weights"] = str(out)
    return files


def _tell(
    command: str, loaded: Named, result: Result, files: dict[str, str], *, every: bool, as_json: bool, quiet: bool
) -> None:
    from rich.text import Text

    from secateur import report

    if as_json or not quiet:
        document = report.describe_result(command, loaded, result, files)
        emit(document, as_json, lambda: report.result_tables(loaded, result, files, every=every))
    for line in () if as_json or quiet else _reminders(command, loaded, files):
        show(Text(line))


def _reminders(command: str, loaded: Named, files: dict[str, str]) -> Iterator[str]:
    """What a first try is surprised by: the weights of a library's network are random, and nothing is kept unasked."""
    library = loaded.reference.partition(":")[0] in ("zoo", "torchvision", "timm")
    if library and not loaded.trained and not loaded.arguments.keys() & {"weights", "pretrained"}:
        yield "The weights are random: give trained ones with --weights FILE."
    if not files:
        options = "--save DIR keeps the network, --plan-out FILE the plan" if command == "prune" else "--out FILE does"
        yield f"Nothing was saved: {options}."
