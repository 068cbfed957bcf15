"""Engines: every one runs the network it was given, and says in a sentence where it cannot. No timing is asserted."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError, RunError, SecateurError
from secateur.runtime.engines import ENGINES, compiled, copied, engines_of, threads_set

ON_FILES = ["onnxruntime", "openvino", "executorch"]


def network(width: int = 4) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


def one_tensor(output: Any) -> torch.Tensor:
    """What a call returned, whatever the runtime calls a list."""
    if isinstance(output, torch.Tensor):
        return output
    return torch.as_tensor(next(iter(output.values())) if hasattr(output, "values") else output[0])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with threads_set(1):
        yield


def present(name: str) -> None:
    if (sentence := ENGINES[name].missing()) is not None:
        pytest.skip(sentence)


def test_the_order_of_the_engines() -> None:
    assert list(ENGINES) == ["pytorch", "compiled", "onnxruntime", "openvino", "executorch"]
    assert all(name == row.name and row.summary for name, row in ENGINES.items())


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "compiled"])  # below: it takes its time
def test_a_call_computes_what_the_network_computes(name: str) -> None:
    present(name)
    x = torch.randn(2, 3, 8, 8)
    original = network().eval()
    with torch.no_grad():
        original(x)  # the lazy layer
    model = copied(original)
    call = ENGINES[name].prepare(model, x, 1)
    got = one_tensor(call())
    assert not got.requires_grad
    assert torch.allclose(got, original(x), atol=1e-5)
    assert torch.equal(one_tensor(call()), got)


def test_compiled_networks_of_one_class_do_not_share_what_was_compiled() -> None:
    present("compiled")
    pair = []
    for width in (3, 5):
        model, x = nn.Sequential(nn.Linear(6, width)).eval(), torch.randn(1, 6)
        pair.append((model, x, ENGINES["compiled"].prepare(model, x, 1)))
    for model, x, call in pair:
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.allclose(one_tensor(call()), model(x), atol=1e-6)


def test_what_compiles_only_in_pieces_is_told() -> None:
    present("compiled")

    class Branches(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if float(x.sum()) > 0 else x

    with pytest.raises(RunError, match="cannot be compiled in one piece"):
        ENGINES["compiled"].prepare(Branches(2, 2).eval(), torch.randn(1, 2), 1)


def test_a_missing_compiler_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    sentence = compiled.compiler()
    assert sentence is not None
    assert "C++ compiler" in sentence
    assert ENGINES["compiled"].missing() == sentence


@pytest.mark.parametrize("name", ON_FILES)
def test_a_missing_package_is_a_sentence_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ENGINES[name]
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert row.missing() == f"{row.packages[0]} is not installed: {row.install}"
    assert row.install.startswith("pip install")
    with pytest.raises(ConfigError, match="is not installed: pip install"):
        engines_of(["pytorch", name])


@pytest.mark.parametrize("name", ON_FILES)
def test_a_network_that_no_file_can_hold_is_a_sentence(name: str) -> None:
    present(name)

    class Refuses(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if float(x.sum()) > 0 else x[:, :2]

    with pytest.raises(RunError, match="cannot be exported") as caught:
        ENGINES[name].prepare(Refuses(4, 2).eval(), torch.randn(1, 4), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [[], ["onnxrumtime"], ["pytorch", "pytorch"]])
def test_names_are_checked(names: list[str]) -> None:
    with pytest.raises(SecateurError):
        engines_of(names)


def test_threads_are_set_for_a_while() -> None:
    before = torch.get_num_threads()
    with threads_set(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ENGINES)
def test_versions_name_what_runs(name: str) -> None:
    present(name)
    found = ENGINES[name].versions()
    assert found["torch"] == torch.__version__
    assert name in ("pytorch", "compiled") or name in found


#: Networks that end in the order they came, then a Ctrl-C.
INTERRUPTED = """
import os, signal, torch
from torch import nn
from secateur.runtime.engines import ENGINES
signal.signal(signal.SIGINT, signal.default_int_handler)
calls = [ENGINES["openvino"].prepare(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8), 1) for _ in range(3)]
while calls:
    calls.pop(0)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="needs signals as Unix has them")
def test_ctrl_c_is_heard_after_openvino() -> None:
    present("openvino")
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
