"""What every command shares: how it fails, what its options are called, how it prints."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import sysconfig
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from secateur import _starting
from secateur._files import by_system
from secateur._progress import listening
from secateur.errors import ConfigError, SecateurError, SecateurWarning

if TYPE_CHECKING:
    from rich.console import RenderableType

DEBUG = "SECATEUR_DEBUG"
_LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib")
# newer releases of typer carry a click of their own
_USAGE: type[Exception] = next(k for k in typer.BadParameter.__mro__ if k.__name__ == "ClickException")


class Interrupted(SecateurError):
    """Ctrl-C, where there is something to say about going on."""

    exit_code = 130


@contextlib.contextmanager
def interruptible(advice: Callable[[], str]) -> Iterator[None]:
    """Within, Ctrl-C ends the command with what `advice` says: what is kept, and how to continue."""
    try:
        with _starting.advising(advice):
            yield
    except KeyboardInterrupt as error:
        raise Interrupted(advice()) from error


def resuming(command: str, folder: Path, begun: str) -> Callable[[], str]:
    """Advice to continue with `command --resume`, where the file `begun` shows that something is there."""

    def advice() -> str:
        if not (folder / begun).is_file():
            return NOTHING_WRITTEN
        return f"Interrupted: continue with secateur {command} --resume {shlex.quote(str(folder))}."

    return advice


NOTHING_WRITTEN = "Interrupted before anything was written."


class Described(TyperCommand):
    """A command whose examples fit the terminal."""

    def get_help(self, ctx: Any) -> str:
        """The help, no line of it wider than the terminal's."""
        return folded(super().get_help(ctx), ctx.make_formatter().width)

    def make_parser(self, ctx: Any) -> Any:
        """A parser that refuses an option given twice where one value is taken: the last would win unseen."""
        parser: Any = super().make_parser(ctx)
        read = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            options, arguments, order = read(args=args)
            for option in {id(each): each for each in order}.values():
                values = option.multiple or getattr(option, "count", False) or not hasattr(option, "is_flag")
                if not values and not _switch(option) and sum(each is option for each in order) > 1:
                    raise ConfigError(f"{max(option.opts, key=len)} is given more than once: give it once.")
            return options, arguments, order

        parser.parse_args = parse_args
        return parser


def _switch(option: Any) -> bool:
    """Whether an option only turns something on: given twice, it means what it means once."""
    return bool(option.is_flag) and not option.secondary_opts


class Commands(TyperGroup):
    """Every way a command can fail becomes one line on stderr and an exit code."""

    def get_help(self, ctx: Any) -> str:
        """The help, no line of it wider than the terminal's."""
        return folded(super().get_help(ctx), ctx.make_formatter().width)

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


def folded(text: str, width: int) -> str:
    """Lines of examples that are wider go on in the next one, as a shell reads them: broken before an option."""
    return "\n".join(_lines(text, width))


def _lines(text: str, width: int) -> Iterator[str]:
    for line in text.splitlines():
        while line.startswith("    ") and len(line) > width:
            place = line.rfind(" --", 12, width - 1)  # which leaves room for the backslash
            if place < 0:
                break
            yield line[:place] + " \\"
            line = " " * 8 + line[place + 1 :]
        yield line


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
    except OSError as error:
        if not by_system(error):
            return _failed(error)
        where = f" at {str(error.filename)!r}" if error.filename is not None else ""
        return _fail(f"The system refuses ({error.strerror or error}){where}: give another place, or free this one.", 2)
    except Exception as error:
        return _failed(error)


def _users_place(error: Exception) -> str | None:
    """File and line where code of the user's own failed, called by Secateur; None where it is Secateur's own."""
    ours = str(Path(__file__).parents[1])
    libraries = {str(Path(path)) for key, path in sysconfig.get_paths().items() if key in _LIBRARIES}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(ours):
            return None
        if not frame.filename.startswith((*libraries, "<")):
            return f"{frame.filename}, line {frame.lineno}"
    return None


def _failed(error: Exception) -> int:
    """A defect of ours, or of code that a user has named."""
    if debugging():
        raise error
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")
    if (place := _users_place(error)) is not None:
        return _fail(f"{place} failed ({said}): it is code of your own, correct it; {DEBUG}=1 shows more.", 2)
    return _fail(
        f"Secateur itself failed ({said}): please report it with the command you ran; {DEBUG}=1 shows where.", 1
    )


def _fail(sentence: str, code: int) -> int:
    if debugging():
        traceback.print_exc()
    with contextlib.suppress(OSError):  # a log on a full disk; the exit code still tells
        tell(f"error: {sentence}")
    return code


def debugging() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:factory, package.module:factory, the folder of a "
        "run or a saved network, or hf:org/name.",
    ),
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
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Weights to start from: a checkpoint (.pth, .pt, .ckpt, .safetensors)."),
]
Ema = Annotated[bool, typer.Option("--ema", help="Take the moving average of the weights that the checkpoint holds.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Import the Python code that a folder given as MODEL names, if it is your own.")
]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Save the smaller network's weights (safetensors).")]
Attention = Annotated[str, typer.Option(metavar="WHAT", help="Prune whole heads, or head_dim of every head.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not compare with the masked original.")]


def _seed(text: str | int) -> int:
    """A seed that PyTorch takes; the range would be twenty digits in the help."""
    if not str(text).isdecimal() or not int(text) < 1 << 63:
        raise typer.BadParameter(f"{text!r} is no seed: give a whole number from 0 to 9223372036854775807.")
    return int(text)


Seed = Annotated[int, typer.Option(metavar="N", parser=_seed, help="Seed of random weights, scores and verification.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
All = Annotated[bool, typer.Option("--all", help="Show tables in full, however long.")]
Plugin = Annotated[
    list[str],
    typer.Option("--plugin", metavar="FILE", help="Methods of your own: a .py file, or module:Class. Repeatable."),
]


def plugged(plugins: Sequence[str]) -> list[str]:
    """The change of a recipe that --plugin is short for; files by their whole path, so that a run can be resumed."""
    named = [str(Path(p).absolute()) if p.endswith(".py") or ".py:" in p else p for p in plugins]
    return [f"plugins={json.dumps(named)}"] if named else []


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what matters; errors always show.")]


@contextlib.contextmanager
def working(what: str, silent: bool, *, still: bool = False) -> Iterator[Callable[[str], None]]:
    """What models and libraries print goes to stderr, their warnings nowhere (unless debugging), ours in a line each.

    still: nothing turns meanwhile, for it would take time from what is timed.

    Yields a function that says how far the work is, where that is shown.
    """
    from rich.console import Console
    from rich.status import Status

    console = Console(stderr=True)
    shown = console.is_terminal and not silent
    if shown and still:
        tell(f"{what} ...")
    busy = console.status(f"{what} ...") if shown and not still else contextlib.nullcontext()
    with warnings.catch_warnings(), busy, contextlib.redirect_stdout(sys.stderr):
        if not debugging():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", SecateurWarning)
            warnings.showwarning = lambda message, *_, **__: tell(str(message))

        def say(text: str) -> None:
            if isinstance(busy, Status):
                busy.update(f"{what}: {text} ...")

        with listening(say, every=1.0):
            yield say


def emit(document: dict[str, Any] | list[Any], as_json: bool, table: Callable[[], RenderableType]) -> None:
    if as_json:
        show(json.dumps(document, indent=2, allow_nan=False))
    else:
        show(table())


def show(what: RenderableType, *, wrap: bool = True) -> None:
    try:
        if isinstance(what, str):
            print(what)
        else:
            from rich.console import Console

            Console(highlight=False).print(what, soft_wrap=not wrap)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # the reader has left; nothing to say
    except OSError as error:
        raise ConfigError(f"The output cannot be written: {error}.") from error


def tell(sentence: str) -> None:
    """A sentence on stderr: one line of a file or a pipe, broken between words where a terminal is narrower."""
    said = " ".join(sentence.split())
    if sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console

        width = Console(stderr=True).width
        said = textwrap.fill(said, width, break_long_words=False, break_on_hyphens=False)
    print(said, file=sys.stderr, flush=True)


def free(path: Path) -> Path:
    """`path`, or with a number behind it the first that is not there."""
    candidates: Iterator[Any] = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in range(1, 10_000))
    return next((p for p in candidates if not p.exists()), path)
