"""Every command in the documentation exists: programs, options and their values, files and targets of make."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest
import typer.main
from _blocks import PAGES, ROOT, SHELL, blocks

from secateur.cli import app

#: Programs of others that pages may call; their options are theirs.
OTHERS = frozenset("cd export git mkdir pip ray rsync sbatch scp source srun ssh torchrun tar wget".split())
OURS = ("accelerate", "make", "python", "secateur")
_ENVIRONMENT = re.compile(r"\w+=\S*")
COMMAND = typer.main.get_command(app)


def _calls() -> Iterator[tuple[str, str]]:
    """Every command line, with its place: blocks of shell, indented blocks that begin like one, and `secateur ...`."""
    for page in PAGES:
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            for words in re.findall(r"`(secateur [^`]+)`", line):
                yield f"{page.relative_to(ROOT).as_posix()}:{number}", words
        for block in blocks(page):
            first = block.code.strip().split(None, 1)
            if block.language in SHELL or (not block.language and first and first[0] in {*OURS, *OTHERS}):
                for line in block.code.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True) if line.strip() else []
                    for call in _divided(words):
                        yield block.place, shlex.join(call)


def _divided(words: list[str]) -> Iterator[list[str]]:
    """One call after the other; what follows `;` or `&&` is the next, what comes behind `|` or `>` is not looked at."""
    call: list[str] = []
    for word in words:
        ends = word in ("&&", "|", ">", "2>", "&") or word.endswith(";")
        if ends:
            call += [word[:-1]] if word.endswith(";") and len(word) > 1 else []
            if call:
                yield call
            call = []
            if word in ("|", ">", "2>"):
                return
        else:
            call.append(word)
    if call:
        yield call


CALLS = sorted(set(_calls()))


@pytest.mark.parametrize(("place", "call"), CALLS, ids=[f"{place} {call[:40]}" for place, call in CALLS])
def test_command_exists(place: str, call: str) -> None:
    words = shlex.split(call)
    while words and _ENVIRONMENT.fullmatch(words[0]):
        words = words[1:]
    program, *arguments = words or ["cd"]
    if program == "secateur":
        _understood(arguments)
    elif program == "accelerate":
        assert arguments[0] == "launch"
        if "-m" in arguments:
            _understood(arguments[arguments.index("-m") + 2 :])
        else:
            _exists([word for word in arguments if word.endswith(".py")])
    elif program == "python":
        _understood(arguments[2:]) if arguments[:2] == ["-m", "secateur"] else _exists(arguments[:1])
    elif program == "make":
        made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(made)
    else:
        assert program in OTHERS, f"no program of ours, and not in OTHERS: {program}"


def _understood(arguments: list[str]) -> None:
    """The command line reads it: the command, its options and the kinds of their values."""
    if not arguments or arguments[0].startswith("-"):
        COMMAND.make_context("secateur", list(arguments), resilient_parsing=True)
        return
    name, *rest = arguments
    context = COMMAND.make_context("secateur", [], resilient_parsing=True)
    command = COMMAND.get_command(context, name)
    assert command is not None, f"there is no command {name!r}"
    if rest and "--help" not in rest:  # a bare name in a sentence means the command
        command.make_context(name, rest, parent=context)


def _exists(files: list[str]) -> None:
    for file in files:
        assert (ROOT / file).is_file(), f"there is no file {file}"


def test_commands_are_found() -> None:
    assert len(CALLS) > 30
    assert len({place.partition(":")[0] for place, _ in CALLS}) > 5


def test_an_unknown_option_is_noticed() -> None:
    with pytest.raises(Exception, match="--budgett"):
        _understood(["prune", "zoo:tiny", "--budgett", "flops=0.5"])
