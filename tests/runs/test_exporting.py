"""What a run exports beyond the usual: OpenVINO, and the network in 8 bits with its accuracy, calibrated honestly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from _small import recipe

from secateur import runs
from secateur.data import open_data
from secateur.errors import ConfigError, RunError
from secateur.runs import exporting
from secateur.runtime import QUANTISERS, check_folder

for _row in QUANTISERS.values():
    if _row.missing is not None:
        pytest.skip(f"{_row.missing} is not installed: {_row.install}", allow_module_level=True)

WANTED = (
    "export.openvino=true",
    "export.int8=[onnxruntime, openvino]",
    "data.calibration_images=120",
    "data.train_images=null",
    "train.epochs=5",
    "finetune.epochs=3",
    "finetune.lr=0.05",
)


@pytest.fixture(scope="module")
def shown() -> list[torch.Tensor]:
    """Every image the quantisers were shown."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shown: list[torch.Tensor]) -> Path:
    real = exporting.quantise_subject

    def watching(name: str, subject: Any, path: Path, calibration: Any) -> dict[str, Any]:
        shown.extend(image for images, _ in calibration for image in images)
        return real(name, subject, path, calibration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "quantise_subject", watching)
        return runs.start(recipe(*WANTED), tmp_path_factory.mktemp("runs") / "a").folder


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.long
def test_a_run_says_what_eight_bits_cost(finished: Path) -> None:
    results = results_of(finished)
    final = results["accuracy"]["final"]
    assert final > 0.5
    assert list(results["int8"]) == ["onnxruntime", "openvino"]
    for row in results["int8"].values():
        assert row["float_accuracy"] == final
        assert row["images"] == results["accuracy"]["images"]
        assert row["calibration_images"] == 120
        assert row["accuracy"] > final - 0.05
    files = {"model.xml", "model.bin", "model.int8.onnx", "model.int8.xml", "model.int8.bin"}
    assert files <= set(results["files"])
    verification = json.loads((finished / "verification.json").read_text())
    assert files <= set(verification["files"])
    assert verification["openvino"]["max_relative_error"] <= 1e-4
    page = (finished / "report.html").read_text()
    for words in ("OpenVINO files (model.xml)", "In 8 bits for ONNX Runtime", "calibrated with 120 training images"):
        assert words in page


def test_only_training_images_calibrate(finished: Path, shown: list[torch.Tensor]) -> None:
    data = open_data(recipe(*WANTED).data, 0)

    def all_of(split: Any) -> set[bytes]:
        return {image.numpy().tobytes() for images, _ in split.batches(100) for image in images}

    seen = {image.numpy().tobytes() for image in shown}
    assert len(shown) == 2 * 120
    assert seen <= all_of(data.train)
    assert not seen & (all_of(data.test) | all_of(data.validation)) - all_of(data.train)


def test_its_folder_is_sound_until_a_file_changes(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "a")
    found = check_folder(folder)
    assert found["openvino"]["dynamic_batch"] is True
    assert sum("only its hash was compared" in sentence for sentence in found["not_checked"]) == 2
    file = folder / "model.int8.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match=r"model\.int8\.bin"):
        check_folder(folder)


@pytest.mark.long
def test_eight_bits_after_the_run(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "a")
    before = results_of(folder)
    elsewhere = exporting.export_int8(folder, "onnx", tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").is_file()
    assert results_of(folder) == before
    (folder / "model.int8.onnx").unlink()
    again = exporting.export_int8(folder, "onnx")
    assert again["accuracy"] == elsewhere["accuracy"] == before["int8"]["onnxruntime"]["accuracy"]
    assert again["path"] == str(folder / "model.int8.onnx")
    after = results_of(folder)
    assert after["int8"]["onnxruntime"]["float_accuracy"] == before["accuracy"]["final"]
    assert after["int8"]["openvino"] == before["int8"]["openvino"]
    check_folder(folder)
    with pytest.raises(ConfigError, match="no quantiser for the format 'pt2': choose onnx or openvino"):
        exporting.export_int8(folder, "pt2")
    (folder / "recipe.yaml").unlink()
    with pytest.raises(RunError, match=r"holds no recipe\.yaml"):
        exporting.export_int8(folder, "onnx")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("export.int8=tensorrt", r"export\.int8 .*'tensorrt', but must be a list of onnxruntime, openvino"),
        ("export.openvino=1", r"export\.openvino is 1, but must be true or false"),
    ],
)
def test_what_a_recipe_may_not_say(key: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(key)


def test_a_missing_package_is_missed_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    found = util.find_spec
    absent = ("nncf", "executorch")
    monkeypatch.setattr(util, "find_spec", lambda name, *more: None if name in absent else found(name, *more))
    with pytest.raises(
        ConfigError,
        match=r'nncf is not installed: pip install "secateur\[int8\]" .*, or leave openvino',
    ):
        runs.start(recipe("export.int8=openvino"), tmp_path / "a")
    with pytest.raises(ConfigError, match=r'"secateur\[executorch\]" .*, or set export.executorch: false'):
        runs.start(recipe("export.executorch=true"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
