"""What an ONNX file calls its inputs and outputs, in which opset it is, and which sizes it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ConfigError, RunError
from secateur.runtime import export_onnx, export_pt2

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Detector(nn.Module):
    """Fully convolutional, with names for what comes in and what goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, *, image: torch.Tensor, shift: torch.Tensor) -> dict[str, Any]:
        hidden = self.body(image + shift).relu()
        scores = self.scores(hidden)
        return {"boxes": self.boxes(hidden), "levels": [scores, scores.mean((2, 3))], "image": scores.sigmoid()}


INPUTS = {"image": torch.randn(1, 3, 16, 16), "shift": torch.randn(1, 3, 1, 1)}


def file(path: Path) -> Any:
    return onnx.load(path)


def test_names_come_from_dicts_and_the_opset_is_as_asked(tmp_path: Path) -> None:
    narrow = secateur.prune(Detector(), INPUTS, budget="flops=0.7").model
    found = export_onnx(narrow, INPUTS, tmp_path / "a.onnx", opset=20)
    model = file(tmp_path / "a.onnx")
    assert [row.name for row in model.graph.input] == ["image", "shift"]
    assert [row.name for row in model.graph.output] == ["boxes", "levels_0", "levels_1", "image_out"]
    assert found["opset"] == 20 == model.opset_import[0].version
    with pytest.raises(ConfigError, match="no opset to choose"):
        secateur.runtime.export_model("pt2", narrow, INPUTS, tmp_path / "a.pt2", opset=20)


def test_height_and_width_are_left_open_where_the_network_lets_them(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    export_onnx(model, torch.randn(1, 3, 16, 16), tmp_path / "a.onnx", open_size=True)
    (given,) = file(tmp_path / "a.onnx").graph.input
    sizes = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]
    assert file(tmp_path / "a.onnx").graph.output[0].name == "output"
    export_pt2(model, torch.randn(1, 3, 16, 16), tmp_path / "a.pt2")
    fixed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 14 * 14, 2))
    with pytest.raises(RunError, match="does not run with images of another size"):
        export_onnx(fixed, torch.randn(1, 3, 16, 16), tmp_path / "b.onnx", open_size=True)
    assert not (tmp_path / "b.onnx").exists()
