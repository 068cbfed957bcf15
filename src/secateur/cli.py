"""The `secateur` command: inspect a network, prune it, apply a saved plan, list what there is."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console, RenderableType
from rich.text import Text
from typer.core import TyperGroup

import secateur
from secateur import report
from secateur._hints import choose, readable
from secateur._version import __version__
from secateur.allocate import ALLOCATORS, Constraints
from secateur.budget import Budget
from secateur.errors import ConfigError, SecateurError
from secateur.methods import CRITERIA
from secateur.models import MODELS
from secateur.plan import Plan
from secateur.prune import Result
from secateur.references import Loaded, load
from secateur.report.documents import metadata
from secateur.runtime import check_target, read_weights, save_weights

DEBUG = "SECATEUR_DEBUG"
# newer releases of typer carry a click of their own
_USAGE: type[Exception] = next(k for k in typer.BadParameter.__mro__ if k.__name__ == "ClickException")


class _Commands(TyperGroup):
    """Every way a command can fail becomes one line on stderr and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; exits with 0, 2 for anything refused, 1 for a defect, 130 when interrupted."""
        run = super().main
        options = {**extra, "windows_expand_args": windows_expand_args, "standalone_mode": False}
        code = _guarded(lambda: run(args, prog_name or "secateur", complete_var, **options))
        if standalone_mode:
            sys.exit(code)
        return code


def _guarded(command: Callable[[], Any]) -> int:
    try:
        returned = command()
        return returned if isinstance(returned, int) else 0
    except SecateurError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except _USAGE as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "secateur")
        said = getattr(error, "format_message", error.__str__)().strip().rstrip(".")
        return _fail(f"{said}; see {path} --help.", 2)
    except Exception as error:
        if _debugging():
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")
        return _fail(
            f"Secateur itself failed ({said}): please report it with the command you ran; {DEBUG}=1 shows where.", 1
        )


def _fail(sentence: str, code: int) -> int:
    if _debugging():
        traceback.print_exc()
    print("error:", " ".join(sentence.split()), file=sys.stderr)
    return code


def _debugging() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="zoo:NAME, torchvision:NAME, timm:NAME or path/to/file.py:factory."),
]
ModelArg = Annotated[
    list[str],
    typer.Option("--model-arg", metavar="KEY=VALUE", help="Argument for the factory: num_classes=10. Repeatable."),
]
InputSize = Annotated[
    str | None, typer.Option(metavar="CxHxW", help="Size of one input: 3x224x224. Default: the model's own.")
]
InputShape = Annotated[
    list[str],
    typer.Option("--input-shape", metavar="N,C,H,W", help="Whole shape of an input: 1,3,224,224. Repeatable."),
]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help="Weights to start from (safetensors).")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Save the smaller network's weights (safetensors).")]
Attention = Annotated[str, typer.Option(metavar="WHAT", help="Prune whole heads, or head_dim of every head.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not compare with the masked original.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of random weights, scores and verification.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
All = Annotated[bool, typer.Option("--all", help="Show tables in full, however long.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what matters; errors always show.")]


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Channel pruning: any network in, an exactly equivalent smaller one out.

    \b
    Examples:
      secateur inspect zoo:resnet56
      secateur prune zoo:resnet20 --budget flops=0.5
      secateur prune mymodel.py:factory --input-size 3x64x64 --budget params=0.3 --out small.safetensors
    """
    if version:
        print(f"secateur {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def inspect(
    model: Model,
    input_size: InputSize = None,
    input_shape: InputShape = [],  # noqa: B006  # typer copies it
    model_arg: ModelArg = [],  # noqa: B006
    explain: Annotated[
        list[str], typer.Option("--explain", metavar="LAYER", help="Tell all about one layer or group. Repeatable.")
    ] = [],  # noqa: B006
    attention: Attention = "heads",
    seed: Seed = 0,
    every: All = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show a network's groups of channels, what they cost, and what cannot be pruned and why.

    \b
    Examples:
      secateur inspect zoo:resnet56
      secateur inspect torchvision:resnet50 --explain layer3.0.conv2
      secateur inspect timm:convnext_tiny --json
      secateur inspect mymodel.py:factory --input-size 3x64x64 --model-arg width=0.5
    """
    with _working("Tracing", quiet or as_json):
        loaded = load(model, arguments=model_arg, input_size=input_size, input_shapes=input_shape, seed=seed)
        graph = secateur.trace(loaded.model, loaded.inputs, attention=cast(Any, attention))
        told = {name: graph.explain(name) for name in explain}
        document = report.describe_graph(loaded, graph) | ({"explain": told} if told else {})
    if told and not as_json:
        _print(Text("\n\n".join(told.values())), wrap=False)
    else:
        _emit(document, as_json, lambda: report.graph_tables(loaded, graph, every=every, brief=quiet))


@app.command()
def prune(
    model: Model,
    budget: Annotated[
        str | None,
        typer.Option(metavar="BOUNDS", help="What may remain: flops=0.5, params=2M or both; also activations, peak."),
    ] = None,
    criterion: Annotated[str, typer.Option(help="How channels are scored; see `secateur criteria`.")] = "l1",
    allocator: Annotated[
        str | None, typer.Option(help="global, uniform, per_cost or ratios. Default: global, or ratios with --ratio.")
    ] = None,
    ratio: Annotated[
        list[str], typer.Option("--ratio", metavar="PATTERN=SHARE", help="Share of channels to remove. Repeatable.")
    ] = [],  # noqa: B006
    align: Annotated[int, typer.Option(help="Kept widths are multiples of this.")] = 1,
    ignore: Annotated[
        list[str],
        typer.Option("--ignore", metavar="PATTERN", help="Layers whose outputs stay whole: layer4.*. Repeatable."),
    ] = [],  # noqa: B006
    min_channels: Annotated[int, typer.Option(help="Channels that stay in every group.")] = 1,
    max_ratio: Annotated[float, typer.Option(help="Largest share of a group that may go.")] = 1.0,
    normalise: Annotated[
        str, typer.Option(help="How groups become comparable: mean, max, sum, standard, gauss, lamp, none.")
    ] = "mean",
    reduce: Annotated[str, typer.Option(help="How a group's members are combined: sum, mean, max, prod.")] = "sum",
    attention: Attention = "heads",
    seed: Seed = 0,
    no_verify: NoVerify = False,
    input_size: InputSize = None,
    input_shape: InputShape = [],  # noqa: B006
    model_arg: ModelArg = [],  # noqa: B006
    weights: Weights = None,
    out: Out = None,
    plan_out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the plan (JSON).")] = None,
    every: All = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove the least important channels until the budget is met, and verify the result.

    \b
    Examples:
      secateur prune zoo:resnet20 --budget flops=0.5
      secateur prune torchvision:mobilenet_v2 --budget flops=0.5,params=2M --align 8
      secateur prune zoo:vgg16_bn --ratio 'features.*=0.5' --ignore features.0
      secateur prune mymodel.py:factory --input-size 3x64x64 --budget params=0.3 \\
          --weights mine.safetensors --out small.safetensors --plan-out plan.json
    """
    bounds = None if budget is None else Budget.parse(budget)
    ratios = _ratios(ratio)
    allocator = choose(allocator or ("ratios" if ratios else "global"), ALLOCATORS, "allocator")
    _check_criterion(criterion)
    Constraints(tuple(ignore), min_channels, max_ratio, align)
    _check_files(weights, out, plan_out)
    with _working("Pruning", quiet or as_json):
        loaded = load(model, arguments=model_arg, input_size=input_size, input_shapes=input_shape, seed=seed)
        if weights is not None:
            read_weights(loaded.model, weights)
        result = secateur.prune(
            loaded.model,
            loaded.inputs,
            budget=bounds,
            criterion=criterion,
            allocator=allocator,
            normalise=normalise,
            reduce=reduce,
            ratios=ratios or None,
            align=align,
            ignore=ignore,
            min_channels=min_channels,
            max_ratio=max_ratio,
            attention=cast(Any, attention),  # checked there
            verify=not no_verify,
            seed=seed,
        )
        result.plan.provenance["model"] = model
        files = _save(loaded, result, out, plan_out)
    _tell("prune", loaded, result, files, every=every, as_json=as_json, quiet=quiet)


@app.command()
def apply(
    model: Model,
    plan: Annotated[Path, typer.Option(metavar="FILE", help="A plan that `secateur prune --plan-out` saved.")],
    input_size: InputSize = None,
    input_shape: InputShape = [],  # noqa: B006
    model_arg: ModelArg = [],  # noqa: B006
    weights: Weights = None,
    out: Out = None,
    seed: Seed = 0,
    no_verify: NoVerify = False,
    every: All = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cut a network as a saved plan says; it must be the original, unpruned architecture.

    \b
    Examples:
      secateur apply zoo:resnet20 --plan plan.json
      secateur apply mymodel.py:factory --input-size 3x64x64 --plan plan.json \\
          --weights mine.safetensors --out small.safetensors
    """
    _check_files(weights, out, None, plan)
    with _working("Cutting", quiet or as_json):
        saved = Plan.load(plan)
        loaded = load(model, arguments=model_arg, input_size=input_size, input_shapes=input_shape, seed=seed)
        if weights is not None:
            read_weights(loaded.model, weights)
        result = secateur.apply(loaded.model, loaded.inputs, saved, verify=not no_verify)
        files = _save(loaded, result, out, None)
    _tell("apply", loaded, result, files, every=every, as_json=as_json, quiet=quiet)


@app.command()
def models(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the zoo: the networks on which the pruning papers report, for 32x32 images.

    \b
    Examples:
      secateur models
      secateur models --json
    """
    if quiet and not as_json:
        return _print("\n".join(MODELS))
    rows = [
        {
            "name": row.name,
            "params": row.params,
            "macs": row.macs,
            "input_size": list(row.input_size),
            "summary": row.summary,
            "paper": row.paper,
            "year": row.year,
        }
        for row in MODELS.values()
    ]
    cells = [(row.name, readable(row.params), readable(row.macs), row.summary) for row in MODELS.values()]
    columns = ("model", "parameters", "MACs", "what it is")
    _emit({"models": rows}, as_json, lambda: report.listing(columns, cells, right=columns[1:3]))


@app.command()
def criteria(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the criteria by which channels can be scored.

    \b
    Examples:
      secateur criteria
      secateur criteria --json
    """
    if quiet and not as_json:
        return _print("\n".join(row.name for row in CRITERIA))
    rows = [
        {
            "name": row.name,
            "summary": row.summary,
            "needs_data": row.needs_data,
            "paper": row.paper,
            "year": row.year,
            "arxiv": row.arxiv,
        }
        for row in CRITERIA
    ]
    cells = [(c.name, c.summary, "yes" if c.needs_data else "no", str(c.year), c.arxiv) for c in CRITERIA]
    _emit({"criteria": rows}, as_json, lambda: report.listing(("criterion", "score", "data", "year", "arXiv"), cells))


# ------------------------------------------------------------------------------------------------------- arguments


def _check_criterion(name: str) -> None:
    row = {row.name: row for row in CRITERIA}[choose(name, [row.name for row in CRITERIA], "criterion")]
    if row.needs_data:
        raise ConfigError(
            f"The criterion {name!r} needs data and a loss, which the command line cannot give yet: call "
            "secateur.prune(..., data=batches, loss=function) from Python."
        )


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


def _check_files(weights: Path | None, out: Path | None, plan_out: Path | None, plan: Path | None = None) -> None:
    """Refuse files that cannot be written, or that would overwrite what is read, before any work is done."""
    named = {"--weights": weights, "--out": out, "--plan-out": plan_out, "--plan": plan}
    given = {option: path for option, path in named.items() if path is not None}
    for option in ("--out", "--plan-out"):
        if option in given:
            check_target(given[option], option)
            same = [o for o, p in given.items() if o != option and p.resolve() == given[option].resolve()]
            if same:
                raise ConfigError(f"{option} and {same[0]} name the same file: give two names.")


# ---------------------------------------------------------------------------------------------------------- output


def _save(loaded: Loaded, result: Result, out: Path | None, plan_out: Path | None) -> dict[str, str]:
    files = {}
    if plan_out is not None:
        result.plan.save(plan_out)
        files["plan"] = str(plan_out)
    if out is not None:
        save_weights(result.model, out, metadata(loaded, result))
        files["weights"] = str(out)
    return files


@contextlib.contextmanager
def _working(what: str, silent: bool) -> Iterator[None]:
    """What models and libraries print goes to stderr, their warnings nowhere (unless debugging)."""
    console = Console(stderr=True)
    busy = console.status(f"{what} ...") if console.is_terminal and not silent else contextlib.nullcontext()
    with warnings.catch_warnings(), busy, contextlib.redirect_stdout(sys.stderr):
        if not _debugging():
            warnings.simplefilter("ignore")
        yield


def _tell(
    command: str, loaded: Loaded, result: Result, files: dict[str, str], *, every: bool, as_json: bool, quiet: bool
) -> None:
    if as_json or not quiet:
        document = report.describe_result(command, loaded, result, files)
        _emit(document, as_json, lambda: report.result_tables(loaded, result, files, every=every))


def _emit(document: dict[str, Any], as_json: bool, table: Callable[[], RenderableType]) -> None:
    if as_json:
        _print(json.dumps(document, indent=2, allow_nan=False))
    else:
        _print(table())


def _print(what: RenderableType, *, wrap: bool = True) -> None:
    try:
        if isinstance(what, str):
            print(what)
        else:
            Console(highlight=False).print(what, soft_wrap=not wrap)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # the reader has left; nothing to say
    except OSError as error:
        raise ConfigError(f"The output cannot be written: {error}.") from error


def main() -> None:
    """Entry point of the `secateur` command."""
    app()


if __name__ == "__main__":
    main()
