"""Small finished runs: the files a run leaves behind, without the training; and what tests ask of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import secateur
from secateur import references
from secateur.errors import SecateurError
from secateur.runtime import describe_files, export_onnx, export_pt2, save_model
from secateur.runtime import folder as runtime_folder

#: What a network of digits runs with.
DIGIT = torch.zeros(1, 1, 8, 8)
FILES = ("plan.json", "model.safetensors", "model.pt2", "model.onnx", "verification.json")


@dataclass(frozen=True)
class Run:
    """A run folder, and what is in it."""

    folder: Path
    narrow: nn.Module
    result: secateur.Result
    inputs: Any

    def fresh(self, seed: int = 5) -> nn.Module:
        """The original class with other weights."""
        return references.load("zoo:tiny", seed=seed).model


def make_run(folder: Path, *, seed: int, onnx: bool) -> Run:
    loaded = references.load("zoo:tiny", seed=seed)
    result = secateur.prune(loaded.model, loaded.inputs, budget="flops=0.5")
    narrow = result.model.eval()
    save_model(folder, narrow, reference="zoo:tiny", inputs=loaded.inputs, plan=result.plan, metadata={"classes": 10})
    proofs = {"pt2": export_pt2(narrow, loaded.inputs, folder / "model.pt2")}
    if onnx:
        proofs["onnx"] = export_onnx(narrow, loaded.inputs, folder / "model.onnx")
    (folder / "recipe.yaml").write_text("name: test\n")
    (folder / "metrics.jsonl").write_text('{"stage": "train", "epoch": 1}\n{"stage": "train", "epoch": 2}\n')
    verification = {**proofs, "files": describe_files(folder, FILES)}
    (folder / "verification.json").write_text(json.dumps(verification))
    widths = result.plan.widths
    results = {
        "format": "secateur.run",
        "version": 1,
        "before": result.before.as_dict(),
        "after": result.after.as_dict(),
        "groups": [{"name": g.name, "width": g.width, "kept": widths[g.name]} for g in result.graph.groups],
        "files": describe_files(folder, FILES),
    }
    (folder / "results.json").write_text(json.dumps(results))
    return Run(folder, narrow, result, loaded.inputs)


def without_code() -> Any:
    """A context in which no reference is a library's, so that a folder's network comes from model.pt2 alone."""
    return mock.patch.object(runtime_folder, "is_library", return_value=False)


def computes_the_same(a: nn.Module, b: nn.Module, size: int = 3) -> bool:
    x = torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        return torch.allclose(a(x), b(x), rtol=1e-5, atol=1e-6)


def assert_sentence(error: SecateurError) -> None:
    """One sentence that ends, without a line break."""
    text = str(error)
    assert text.endswith((".", "?")), text
    assert "\n" not in text
    assert 20 < len(text) < 1200, text
