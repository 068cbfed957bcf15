"""The `secateur` command: prune a network, run a recipe, read a run's folder, list what there is.

Nothing heavy is imported before a command needs it, so that help and a shell's completions are there at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from secateur import _starting
from secateur._version import __version__
from secateur.cli import comparing, compressing, folders, latency, lists, running, surgery
from secateur.cli._base import DEBUG, Commands, Described

__all__ = ["DEBUG", "app", "main"]

app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"secateur {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[
        bool,
        # eager: before typer has loaded what the other options need
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    """Channel pruning: from a recipe to a trained, pruned, verified and explained network.

    \b
    Examples:
      secateur demo
      secateur compress mymodel.py:factory --input-size 3x64x64 --weights mine.safetensors --data photos --speedup 2
      secateur run recipe:cifar10-resnet56-bwcp --set budget=flops=0.4
      secateur inspect zoo:resnet56
      secateur prune zoo:resnet20 --budget flops=0.5
      secateur prune mymodel.py:factory --input-size 3x64x64 --budget params=0.3 --out small.safetensors
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


_COMMANDS = (
    running.run, running.demo, compressing.compress, comparing.compare, folders.report, folders.verify, folders.export,
    folders.push, surgery.inspect, surgery.prune, surgery.apply, compressing.sensitivity, latency.latency,
    lists.methods, lists.models, lists.repairs,
)  # fmt: skip


def _loaded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, behind the seconds in which PyTorch is imported; Ctrl-C ends those at once."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        import secateur.prune  # noqa: F401  # and with it nearly everything

        _starting.listen()
        command(*arguments, **options)

    return run


for _command in _COMMANDS:
    app.command(cls=Described)(_loaded(_command))


def main() -> None:
    """Entry point of the `secateur` command."""
    try:
        app()
    except KeyboardInterrupt:  # a second one, while the first was being told
        _starting.end()
        print("error: interrupted", file=sys.stderr)
        sys.exit(_starting.INTERRUPTED)
    finally:
        _starting.end()
