"""How commands end that the system or the user ends: one line, exit code 2 or 130, no traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from secateur import _starting, cli
from secateur.cli import lists

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def started(*arguments: str) -> subprocess.Popen[str]:
    """The command in a process that names each module on stderr as it has been imported."""
    return subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "secateur", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("module", ["secateur._starting", "numpy", "secateur.graph.modules"])
def test_ctrl_c_while_importing(module: str) -> None:
    process = started("models")
    assert process.stderr is not None
    for line in process.stderr:
        if line.rstrip().endswith(f" {module}"):
            break
    process.send_signal(signal.SIGINT)
    rest = [line for line in process.stderr.read().splitlines() if not line.startswith("import time:")]
    assert process.wait(60) == 130
    assert rest == ["error: interrupted"]


SWALLOWED = """
import sys
sys.argv = sys.orig_argv = ["secateur"]
from pathlib import Path
from secateur.cli._base import interruptible, resuming
class Callback:
    def __del__(self):
        raise KeyboardInterrupt
with interruptible(resuming("run", Path(sys.argv[0]).parent / "a b", "state.json")):
    callback = Callback()
    del callback
    print("not reached")
"""


@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_in_a_callback_says_how_to_continue(tmp_path: Path, begun: bool) -> None:
    (tmp_path / "a b").mkdir()
    if begun:
        (tmp_path / "a b" / "state.json").write_text("{}")
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, cwd=tmp_path, check=False)
    how = "Interrupted: continue with secateur run --resume 'a b'."
    assert done.stderr == f"error: {how if begun else 'Interrupted before anything was written.'}\n"
    assert (done.returncode, done.stdout) == (130, "")


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_an_interrupted_export_says_what_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.runtime.export_folder", interrupted)
    found = CliRunner().invoke(cli.app, ["export", str(tmp_path), "--format", form])
    assert found.exit_code == 130
    said = "error: Interrupted: the run and its network are kept; the same command begins the export again."
    assert found.stderr.splitlines()[-1] == said


@pytest.mark.long
def test_many_ctrl_c_in_a_row(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "secateur", "run", str(recipe(tmp_path)), "--out", str(tmp_path / "a")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("train 1/")
    for _ in range(30):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
        if process.poll() is not None:
            break
    said = process.stderr.read()
    assert process.wait(60) == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(("error: Interrupted: continue with", "error: interrupted"))


def recipe(folder: Path) -> Path:
    file = folder / "r.yaml"
    file.write_text(
        "name: long\nmodel: zoo:tiny\ndata: {name: digits, train_images: 300, batch_size: 50}\nmethod: l1\n"
        "budget: flops=0.6\ntrain: {epochs: 100000}\nexport: {onnx: false, pt2: false}\nlatency: null\n"
        "engine: {device: cpu, precision: fp32}\n"
    )
    return file


@pytest.mark.parametrize(
    ("arguments", "original", "expected"),
    [
        (["/usr/bin/secateur", "run"], ["python", "/usr/bin/secateur", "run"], True),
        (["-m", "run"], ["python", "-X", "dev", "-m", "secateur", "run"], True),
        (["-m", "secateur"], ["python", "-m", "pytest", "secateur"], False),
        (["train.py"], ["python", "train.py"], False),
        ([""], ["python"], False),
        (["/usr/bin/pytest", "-m", "slow"], ["python", "/usr/bin/pytest", "-m", "slow"], False),
    ],
)
def test_which_processes_are_the_command(arguments: list[str], original: list[str], expected: bool) -> None:
    assert _starting.is_command(arguments, original) is expected


def test_programs_that_import_the_package_keep_their_handlers() -> None:
    code = (
        "import signal, sys, secateur\n"
        "print(signal.getsignal(2) is signal.default_int_handler, sys.excepthook is sys.__excepthook__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=heard)
    assert done.stdout.split() == ["True", "True"]


def heard() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC, errno.EACCES])
def test_what_the_system_refuses_is_no_defect(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number), "place")

    monkeypatch.setattr(lists, "show", fails)
    monkeypatch.setattr(lists, "emit", fails)
    result = CliRunner().invoke(cli.app, ["methods"])
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"error: The system refuses ({os.strerror(number)}) at 'place': give another place, or free this one.\n"
    )


@pytest.mark.parametrize("option", ["--out", "--resume"])
def test_a_name_that_is_too_long(option: str, tmp_path: Path) -> None:
    name = str(tmp_path / ("n" * 300))
    arguments = ["--resume", name] if option == "--resume" else [str(recipe(tmp_path)), "--out", name]
    result = CliRunner().invoke(cli.app, ["run", *arguments])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert ("There is no run" if option == "--resume" else "File name too long") in result.stderr


def test_a_disk_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root may write anywhere, the system is asked through what it would say."""
    from secateur.recipe import Recipe
    from secateur.runs.folder import LOCK, Folder

    run = tmp_path / "a"
    Folder.create(run, Recipe.read(recipe(tmp_path)))
    true = Path.open

    def readonly(self: Path, mode: str = "r", *more: Any, **keywords: Any) -> Any:
        if self.name == LOCK:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return true(self, mode, *more, **keywords)

    monkeypatch.setattr(Path, "open", readonly)
    result = CliRunner().invoke(cli.app, ["run", "--resume", str(run)])
    assert result.exit_code == 2
    assert "cannot be written to" in result.stderr
    assert "copy it to where it can be" in result.stderr
    monkeypatch.setattr(os, "access", lambda place, mode: mode != os.W_OK)
    result = CliRunner().invoke(cli.app, ["run", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "b")])
    assert result.exit_code == 2
    assert "is write-protected, so nothing can be written" in result.stderr
