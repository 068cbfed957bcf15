"""Every format there is: files compute what the network computes, several are written together, tampering shows."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _runs import Run, assert_sentence
from torch import nn

from secateur._hints import install
from secateur.errors import ConfigError, RunError
from secateur.runtime import EXPORTERS, QUANTISERS, check_folder, export_folder, export_model, open_exported
from secateur.runtime.archive import read_archive
from secateur.runtime.export import Subject, export_subject, outputs, relative_error
from secateur.runtime.exporters.subject import allowed
from secateur.runtime.folder import describe_files
from secateur.runtime.program import Program

INPUTS = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FORMATS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(row.missing is not None, reason=f"{row.missing} is not installed: {row.install}"),
    )
    for name, row in EXPORTERS.items()
]


class Residual(nn.Module):
    """A sum, a depthwise convolution, norms, a mean over what is left and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.last = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        return self.last((x + self.deep(x)).mean((2, 3)))


class Branches(nn.Module):
    """A concatenation, pooling, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([nn.functional.max_pool2d(self.a(x), 2), self.b(x).sigmoid()], 1)
        return both, both.flatten(1).amax(1)


class Fixed(nn.Module):
    """Runs with two images only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(2, 144)


def make(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind().eval()


def opened(name: str, file: Path, size: int | None = None) -> nn.Module:
    return Program(read_archive(file)) if name == "pt2" else open_exported(file, batch_size=size)


def agree(network: nn.Module, other: nn.Module, size: int) -> bool:
    x = torch.randn(size, *INPUTS.shape[1:], generator=torch.Generator().manual_seed(size))
    return relative_error(outputs(network, x), outputs(other, x)) <= 1e-4


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", [Residual, Branches])
def test_a_network_comes_back_with_any_batch_size(name: str, kind: type[nn.Module], tmp_path: Path) -> None:
    network, row = make(kind), EXPORTERS[name]
    found = export_model(name, network, INPUTS, tmp_path / row.file)
    assert found["dynamic_batch"] is True
    assert found["batch_sizes"] == [1, 3]
    assert found["max_relative_error"] <= found["tolerance"] == 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(row.files)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert found["sha256"] == hashes[row.file]
    assert found["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    if len(row.files) > 1:
        assert {file: each["sha256"] for file, each in found["files"].items()} == hashes
    for path in tmp_path.iterdir():
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()
    assert agree(network, opened(name, tmp_path / row.file), 5)


@pytest.mark.parametrize("name", FORMATS)
def test_a_fixed_batch_says_why(name: str, tmp_path: Path) -> None:
    network, file = make(Fixed), tmp_path / EXPORTERS[name].file
    found = export_model(name, network, torch.randn(2, 3, 8, 8), file)
    assert found["dynamic_batch"] is False
    assert found["batch_sizes"] == [2]
    assert "batch size" in found["reason"]
    assert agree(network, opened(name, file, 2), 2)


def test_a_fixed_batch_is_run_in_turns(tmp_path: Path) -> None:
    network = make(Fixed)
    export_model("onnx", network, torch.randn(2, 3, 8, 8), tmp_path / "m.onnx")
    x = torch.randn(5, 3, 8, 8)
    got = open_exported(tmp_path / "m.onnx", batch_size=2)(x)
    want = torch.cat([network(x[:2]), network(x[2:4]), network(x[[4, 4]])[:1]])
    assert torch.allclose(got, want, atol=1e-5)


def test_formats_share_one_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: calls.append(a) or real(*a, **k))
    network = make(Residual)
    subject = Subject.of(network, INPUTS)
    names = ("onnx", "openvino", "pt2", "onnx")
    found = {name: export_subject(name, subject, tmp_path / EXPORTERS[name].file) for name in names}
    assert len(calls) == 1
    assert len({row["weights"] for row in found.values()}) == 1
    assert all(agree(network, opened(name, tmp_path / EXPORTERS[name].file), 2) for name in names)


def test_openvino_keeps_single_precision(tmp_path: Path) -> None:
    """Weights that half precision cannot hold come back as they were."""
    network = nn.Conv2d(3, 4, 1)
    nn.init.constant_(network.weight, 1 + 2**-20)
    export_model("openvino", network, INPUTS, tmp_path / "m.xml")
    x = torch.ones(1, 3, 8, 8)
    assert torch.allclose(open_exported(tmp_path / "m.xml")(x), network(x), rtol=2e-7, atol=0)


class Rounding(nn.Module):
    """Its output is the small difference of large sums: single precision has few digits of it."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.shift).flatten(1).cumsum(1).softmax(1) + (x + self.shift).mean((1, 2, 3))[:, None] - self.shift


def test_a_network_that_rounds_more_than_the_tolerance_may_differ_as_much() -> None:
    cases = [INPUTS]
    network, fine = Rounding(3e4), Rounding(0.0)
    own = relative_error(outputs(Rounding(3e4).double(), INPUTS.double()), outputs(network, INPUTS))
    assert own > 1e-4
    assert allowed(network, cases, 1.5e-4) == pytest.approx(min(3 * own, 1e-2))
    assert allowed(network, cases, 1e-5) == 1e-4  # nobody needs more
    assert allowed(network, cases, float("inf")) == 1e-4
    assert allowed(fine, cases, 1.5e-4) == 1e-4  # for this one the same difference is a fault
    assert allowed(make(Fixed), [torch.randn(3, 3, 8, 8)], 1.5e-4) == 1e-4  # it does not even run


def test_of_two_files_both_are_written_or_none(tmp_path: Path) -> None:
    (tmp_path / "m.bin").mkdir()  # in the way
    (tmp_path / "m.xml").write_text("before")
    with pytest.raises(RunError, match="cannot be written") as caught:
        export_model("openvino", make(Residual), INPUTS, tmp_path / "m.xml")
    assert_sentence(caught.value)
    assert (tmp_path / "m.xml").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]


ALL = [("format", row) for row in EXPORTERS.values()] + [("quantiser", row) for row in QUANTISERS.values()]


@pytest.mark.parametrize(
    ("row", "package"),
    [pytest.param(row, package, id=f"{kind} {row.name} {package}") for kind, row in ALL for package in row.packages],
)
def test_a_missing_package_is_a_sentence(row: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, *given: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return object() if name in row.packages else real(name, *given)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError) as caught:
        row.check()
    assert str(caught.value) == f"{package} is not installed: {install(row.extra)}"


def test_extras_are_those_of_the_package() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for _, row in ALL:
        line = next((line for line in text.splitlines() if line.startswith(f"{row.extra} = [")), "")
        others = ("torchao",)  # comes with executorch
        assert all(f'"{package}>=' in line for package in row.packages if package not in others), row.name


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one that ends in \.onnx, \.xml, \.pte"):
        open_exported(tmp_path / "m.txt")
    with pytest.raises(RunError, match="cannot be read"):
        open_exported(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(RunError, match="cannot be run"):
        open_exported(tmp_path / "m.onnx")


# ---------------------------------------------------------------------------------------------------------- run folders


def relist(folder: Path, *names: str) -> None:
    """Put the hashes of changed files where the folder lists them."""
    for document in ("verification.json", "results.json"):
        content = json.loads((folder / document).read_text())
        content["files"].update(describe_files(folder, [*names, *(["verification.json"] * (document[0] == "r"))]))
        (folder / document).write_text(json.dumps(content))


def test_a_run_folder_with_openvino_is_verified(run: Run, copied: Callable[..., Path]) -> None:
    folder = copied()
    found = export_folder(folder, "openvino")
    assert found["path"] == str(folder / "model.xml")
    checked = check_folder(folder)
    assert checked["openvino"]["max_relative_error"] <= 1e-4
    assert checked["openvino"]["dynamic_batch"] is True
    listed = json.loads((folder / "results.json").read_text())["files"]
    assert {"model.xml", "model.bin"} <= set(listed)

    weights = bytearray((folder / "model.bin").read_bytes())
    weights[400:440] = bytes(40)
    (folder / "model.bin").write_bytes(weights)
    with pytest.raises(RunError, match=r"model\.bin") as caught:
        check_folder(folder)
    assert_sentence(caught.value)
    relist(folder, "model.bin")  # whoever changes the hashes as well is found by running it
    with pytest.raises(RunError, match=r"model\.xml' does not compute what the weights' network does"):
        check_folder(folder)


def test_a_foreign_file_in_the_folder_is_refused(copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / "model.pte").write_bytes(b"x")
    with pytest.raises(RunError, match="not listed"):
        check_folder(folder)
