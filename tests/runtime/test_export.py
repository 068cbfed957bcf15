"""Exporters: what they write computes what the network does, or is not written, and they are silent about it."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from _runs import Run, assert_sentence, computes_the_same
from torch import nn

from secateur import models
from secateur.errors import ConfigError, RunError
from secateur.runtime import EXPORTERS, QUANTISERS, export_model, export_onnx, export_pt2
from secateur.runtime.archive import read_archive
from secateur.runtime.export import quiet, relative_error
from secateur.runtime.exporters import subject as export_module
from secateur.runtime.program import Program

INPUTS = torch.randn(1, 3, 8, 8)


class Fixed(nn.Module):
    """Runs with two images only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(2, 144)


class Baked(nn.Module):
    """Runs with any number of images, but Python reads the number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(int(x.shape[0]) ** 0.5) if int(x.shape[0]) > 2 else x


class Loud(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("loud")
        warnings.warn("loud", stacklevel=1)
        logging.getLogger("loud").error("loud")
        print("loud", file=sys.stderr)
        return x.relu()


class Refuses(nn.Module):
    """Cannot be exported: what it returns depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() if float(x.sum()) > 0 else x


def test_the_files_hold_one_network_and_no_paths_of_this_machine(run: Run) -> None:
    import onnx

    proto = onnx.load(run.folder / "model.onnx")
    onnx.checker.check_model(proto)
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, [d.dim_value for d in dims][1:]) == ("batch", [3, 32, 32])
    here = str(Path(export_module.__file__).parents[4]).encode()
    for name in ("model.onnx", "model.pt2"):
        data = (run.folder / name).read_bytes()
        assert b".py" not in data
        assert here not in data


def test_the_archive_holds_no_pickle_and_torch_reads_it_too(run: Run) -> None:
    with zipfile.ZipFile(run.folder / "model.pt2") as file:
        assert file.testzip() is None
        for info in file.infolist():
            assert not file.read(info).startswith((b"\x80\x02", b"PK")), info.filename
            assert not info.filename.endswith(".pt") or info.file_size == 0
    network = torch.export.load(run.folder / "model.pt2").module()
    assert computes_the_same(network, run.narrow, 2)


def test_both_say_what_they_compared(run: Run, tmp_path: Path) -> None:
    found = export_pt2(run.narrow, run.inputs, tmp_path / "model.pt2")
    assert found["dynamic_batch"] is True
    assert found["loads"] is True
    assert found["batch_sizes"] == [1, 3]
    assert found["max_relative_error"] <= found["tolerance"] == 1e-4
    assert found["bytes"] == (tmp_path / "model.pt2").stat().st_size
    assert "reason" not in found


def test_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    model = models.create("tiny").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_pt2(model, torch.randn(2, 3, 32, 32), tmp_path / "m.pt2")
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("model", "size"), [(Fixed(), 2), (Baked(), 1)])
def test_a_fixed_batch_is_exported_and_said(tmp_path: Path, model: nn.Module, size: int) -> None:
    x = torch.randn(size, 3, 8, 8)
    found = export_pt2(model, x, tmp_path / "m.pt2")
    assert found["dynamic_batch"] is False
    assert found["batch_sizes"] == [size]
    assert "batch size" in found["reason"]
    program = Program(read_archive(tmp_path / "m.pt2"))
    assert not program.dynamic
    assert torch.equal(program(x), model(x))


def test_a_fixed_batch_as_onnx(tmp_path: Path) -> None:
    found = export_onnx(Fixed(), torch.randn(2, 3, 8, 8), tmp_path / "m.onnx")
    assert (found["dynamic_batch"], found["batch_sizes"]) == (False, [2])


@pytest.mark.parametrize("name", list(EXPORTERS))
def test_what_cannot_be_expressed_is_one_sentence_and_leaves_no_file(tmp_path: Path, name: str) -> None:
    if EXPORTERS[name].missing is not None:
        pytest.skip(f"{EXPORTERS[name].missing} is not installed: {EXPORTERS[name].install}")
    (tmp_path / "m").write_text("before")
    with pytest.raises(RunError, match=f"export.{name}=false") as caught:
        export_model(name, Refuses(), INPUTS, tmp_path / "m")
    assert_sentence(caught.value)
    assert (tmp_path / "m").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_computes_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.Subject, "error", lambda *_: 2e-4)
    with pytest.raises(RunError, match="does not compute what the network does"):
        export_pt2(nn.Conv2d(3, 4, 3), INPUTS, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_an_archive_with_pickles_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def older(program: Any, file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("serialized_state_dict.pt", b"PK")

    monkeypatch.setattr(torch.export, "save", older)
    monkeypatch.setattr(torch.export, "load", lambda _: torch.export.export(nn.Conv2d(3, 4, 3), (INPUTS,)))
    monkeypatch.setattr(export_module.Subject, "error", lambda *_: 0.0)
    with pytest.raises(RunError, match="install a newer PyTorch"):
        export_pt2(nn.Conv2d(3, 4, 3), INPUTS, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_exporters_are_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: Any) -> None:
    export_pt2(Loud(), INPUTS, tmp_path / "m.pt2")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not recwarn.list
    assert logging.root.manager.disable == 0


def test_onnx_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: Any) -> None:
    export_onnx(nn.Conv2d(3, 4, 3), INPUTS, tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_quiet_hides_no_exception() -> None:
    with pytest.raises(ZeroDivisionError), quiet():
        print(1 / 0)


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, *given: Any) -> Any:
        if name == "onnxruntime":
            raise ModelNotFound(name)
        return real(name, *given)

    class ModelNotFound(ModuleNotFoundError):
        def __init__(self, name: str) -> None:
            super().__init__(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r'onnxruntime is not installed: pip install "secateur\[export\]"'):
        export_onnx(nn.Conv2d(3, 4, 3), INPUTS, tmp_path / "m.onnx")


def test_an_unknown_format_and_an_impossible_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'onnx'"):
        export_model("onxx", nn.Conv2d(3, 4, 3), INPUTS, tmp_path / "m")
    with pytest.raises(RunError, match="cannot be written"):
        export_pt2(nn.Conv2d(3, 4, 3), INPUTS, tmp_path / "nowhere" / "m.pt2")


def test_the_relative_error() -> None:
    one = torch.tensor([1.0, 2.0])
    assert relative_error([one], [one + torch.tensor([0.0, 0.02])]) == pytest.approx(0.01)
    assert relative_error([one], [one, one]) == relative_error([], []) == float("inf")
    assert relative_error([one], [one * float("nan")]) == float("inf")
    assert relative_error([one], [one[None]]) == float("inf")


def test_every_exporter_has_a_row() -> None:
    for name, row in EXPORTERS.items():
        assert row.name == name
        assert row.file.startswith("model.")
        assert len({Path(file).stem for file in row.files}) == 1  # one name, several endings
        assert row.summary
        assert row.install.startswith("pip install ")
    files = [file for row in (*EXPORTERS.values(), *QUANTISERS.values()) for file in row.files]
    assert len(set(files)) == len(files)


def test_operators_of_every_form_run_from_the_file(tmp_path: Path) -> None:
    """Several outputs, lists of outputs, none at all, sizes computed from sizes, types and devices as arguments."""

    class Forms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            n, c, h, w = x.shape
            values, indices = x.view(n, c, h * w).topk(2, dim=2)
            a, b, last = x.split([1, 1, c - 2], dim=1)
            grid = torch.arange(w, device=x.device, dtype=torch.float64).to(x.dtype)
            grown = nn.functional.interpolate(a, size=(h // 2, w * 2), mode="bilinear")
            masked = b.masked_fill(b > 0, float("-inf")).softmax(-1)
            moved = last.to(memory_format=torch.channels_last).clamp(min=0)
            return [values, indices, grid + self.norm(a), grown, masked, moved.unbind(1)[0].reshape(n * h, -1)]

    torch.manual_seed(0)  # a row of positive numbers alone would be NaN on both sides
    x = torch.randn(2, 3, 8, 8)
    found = export_pt2(Forms(), x, tmp_path / "m.pt2")
    assert found["loads"], found
    assert found["dynamic_batch"]
    want, got = Forms()(x), Program(read_archive(tmp_path / "m.pt2"))(x)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
