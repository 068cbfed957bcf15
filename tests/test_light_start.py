"""Importing the package, help, the version and a shell's completions load nothing heavy; names are as if they had."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import secateur

HEAVY = {"torch", "numpy", "scipy", "sklearn", "pydantic", "pydantic_core", "rich", "safetensors", "accelerate", "yaml"}
IMPORT = "import secateur"
COMMAND = "import contextlib; from secateur.cli import main\nwith contextlib.suppress(SystemExit): main()"


def loaded(code: str, *arguments: str, **environment: str) -> tuple[set[str], str]:
    """What a process has loaded of the packages that take time, and what it printed before."""
    code += "\nimport sys; print('\\n' + ' '.join(name for name in sys.modules if '.' not in name))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, _, modules = done.stdout.rstrip().rpartition("\n")
    assert {"secateur", "sys"} <= set(modules.split())
    return set(modules.split()) & HEAVY, said


def test_import_is_light() -> None:
    assert loaded(IMPORT) == (set(), "")
    found, _ = loaded(IMPORT + "; assert 'trace' in dir(secateur); secateur.Budget")
    assert "numpy" in found  # what is asked for is there


@pytest.mark.parametrize(("arguments", "says"), [(["--help"], "--show-completion"), (["--version"], "")])
def test_help_and_version_are_light(arguments: list[str], says: str) -> None:
    found, said = loaded(COMMAND, *arguments)
    assert not found
    assert says in said
    assert "secateur" in said


@pytest.mark.parametrize(("line", "offered"), [("secateur pru", "prune"), ("secateur prune --bud", "--budget")])
def test_a_shell_completes_lightly(line: str, offered: str) -> None:
    last = str(len(line.split()) - 1)
    found, said = loaded(COMMAND, _SECATEUR_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=last)
    assert said.split() == [offered]
    assert found <= {"pydantic", "pydantic_core", "rich"}  # typer's own


def test_seeing_where_norms_stand_loads_no_compiler() -> None:
    """The kernels of PyTorch's meta device load it at their first call, with sympy: seconds."""
    code = (
        "import sys, torch, secateur; from secateur.graph.norms import sources; "
        "net, x = secateur.models.create('resnet20').eval(), torch.ones(2, 3, 32, 32); "
        "assert len(sources(secateur.trace(net, x)).of) == 19; assert 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_what_type_checkers_see() -> None:
    tree = ast.parse(Path(secateur.__file__).read_text(encoding="utf-8"))
    block = next(part for part in tree.body if isinstance(part, ast.If))
    seen = {"__version__"}
    for part in block.body:
        assert isinstance(part, ast.ImportFrom)
        made_in = importlib.import_module(part.module or "")
        for name in (alias.name for alias in part.names):
            assert getattr(secateur, name) is getattr(made_in, name)
            seen.add(name)
    assert seen == set(secateur.__all__) <= set(dir(secateur))


def test_a_function_keeps_its_name_beside_its_module() -> None:
    code = (
        "import secateur.prune, secateur.allocate, secateur.allocate.presets, secateur\nfrom secateur import allocate"
    )
    loaded(code + "\nassert callable(secateur.prune) and callable(secateur.allocate) and callable(allocate)")


def test_rooms_are_there_and_others_are_not() -> None:
    assert secateur.statistics is sys.modules["secateur.statistics"]  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"module 'secateur' has no attribute 'no_such_room'"):
        _ = secateur.no_such_room  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        from secateur import no_such_room  # type: ignore[attr-defined]  # noqa: F401
