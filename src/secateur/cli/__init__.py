"""The `secateur` command: prune a network, run a recipe, read a run's folder, list what there is.

Nothing heavy is imported before a command needs it, so that help is there at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from secateur import _starting
from secateur._version import __version__
from secateur.cli import comparing, folders, latency, lists, running, surgery
from secateur.cli._base import DEBUG, Commands

__all__ = ["DEBUG", "app", "main"]

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Channel pruning: from a recipe to a trained, pruned, verified and explained network.

    \b
    Examples:
      secateur demo
      secateur run recipes/cifar10-resnet56-bwcp.yaml --set budget=flops=0.4
      secateur inspect zoo:resnet56
      secateur prune zoo:resnet20 --budget flops=0.5
      secateur prune mymodel.py:factory --input-size 3x64x64 --budget params=0.3 --out small.safetensors
    """
    if version:
        print(f"secateur {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


_COMMANDS = (
    running.run, running.demo, comparing.compare, folders.report, folders.verify, folders.export, folders.push,
    surgery.inspect, surgery.prune, surgery.apply, latency.latency,
    lists.methods, lists.models, lists.repairs,
)  # fmt: skip
for _command in _COMMANDS:
    app.command()(_command)


def main() -> None:
    """Entry point of the `secateur` command."""
    _starting.listen()
    try:
        app()
    except KeyboardInterrupt:  # a second one, while the first was being told
        _starting.end()
        print("error: interrupted", file=sys.stderr)
        sys.exit(_starting.INTERRUPTED)
    finally:
        _starting.end()
