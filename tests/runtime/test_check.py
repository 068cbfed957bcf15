"""`check_folder`: a sound folder passes with figures, and each kind of untruth is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _runs import FILES, Run, assert_sentence

from secateur.errors import ConfigError, RunError, SecateurError
from secateur.runtime import check, check_folder, describe_files, export_onnx, export_pt2, save_model
from secateur.runtime.exporters import onnx

Copy = Callable[..., Path]


def edit(path: Path, change: Callable[[dict[str, Any]], object], *, listed: bool = False) -> None:
    """Change a JSON file; with `listed`, results.json vouches for it again."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    if listed:
        vouch(path.parent)


def vouch(folder: Path) -> None:
    edit(folder / "results.json", lambda d: d["files"].update(describe_files(folder, d["files"])))


def test_a_sound_folder_passes_with_figures(run: Run) -> None:
    found = check_folder(run.folder)
    assert json.loads(json.dumps(found)) == found
    assert found["files"] == len(FILES)
    assert found["cut"]["exact"]
    assert found["cut"]["max_relative_error"] <= found["cut"]["tolerance"]
    assert found["onnx"]["dynamic_batch"]
    assert found["pt2"]["dynamic_batch"]
    assert found["pt2"]["max_relative_error"] == 0
    assert found["weights"]["numbers"] == sum(t.numel() for t in run.narrow.state_dict().values())
    assert len(found["not_checked"]) == 1  # measurements


def test_without_the_architecture_the_rest_is_checked(run: Run, copied: Copy) -> None:
    folder = copied()
    save_model(folder, run.narrow, reference="net.py:f", inputs=run.inputs, plan=run.result.plan)
    vouch(folder)
    edit(folder / "verification.json", lambda d: d.pop("files"), listed=True)
    found = check_folder(folder)
    assert "cut" not in found
    assert found["onnx"]["max_relative_error"] <= 1e-4  # against model.pt2
    assert any("net.py:f" in sentence for sentence in found["not_checked"])
    assert "cut" in check_folder(folder, model=run.fresh())


def test_a_library_that_is_not_installed_is_said(run: Run, copied: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied()
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda _: None)
    save_model(folder, run.narrow, reference="timm:tiny", inputs=run.inputs, plan=run.result.plan)
    vouch(folder)
    edit(folder / "verification.json", lambda d: d.pop("files"), listed=True)
    assert any("timm is not installed" in sentence for sentence in check_folder(folder)["not_checked"])


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_what_was_not_exported_is_said(copied: Copy, name: str) -> None:
    folder = copied()
    (folder / name).unlink()
    edit(folder / "results.json", lambda d: d["files"].pop(name))
    found = check_folder(folder)
    assert name.removeprefix("model.") not in found
    assert any(name in sentence for sentence in found["not_checked"])


def test_without_onnxruntime_the_rest_is_checked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> Any:
        raise ConfigError(f"{package} is not installed: pip install it.")

    monkeypatch.setattr(onnx, "needed", missing)
    found = check_folder(run.folder)
    assert "onnx" not in found
    assert any("onnxruntime is not installed" in sentence for sentence in found["not_checked"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["after"].update(macs=1), "cost after the cut"),
        (lambda d: d.pop("before"), "cost before the cut"),
        (lambda d: d["groups"].pop(), "widths"),
        (lambda d: d["groups"][0].update(kept=1), "widths"),
        (lambda d: d.pop("groups"), "no groups"),
        (lambda d: d["files"].pop("plan.json"), "no plan.json"),
        (lambda d: d["files"].pop("model.onnx"), "not listed"),
        (lambda d: d["files"].update({"more.json": {"bytes": 1, "sha256": "0"}}), "no file"),
        (lambda d: d.update(version=2), "version"),
        (lambda d: d.update(format="x"), "format"),
    ],
)
def test_untrue_results_are_named(copied: Copy, change: Callable[[dict[str, Any]], object], words: str) -> None:
    folder = copied()
    edit(folder / "results.json", change)
    with pytest.raises(RunError, match=words) as caught:
        check_folder(folder)
    assert_sentence(caught.value)


def test_hashes_in_two_files_must_agree(copied: Copy) -> None:
    folder = copied()
    edit(folder / "verification.json", lambda d: d["files"]["model.pt2"].update(sha256="0"), listed=True)
    with pytest.raises(RunError, match=r"disagree about 'model\.pt2'"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_an_export_of_another_network_is_found(run: Run, other_run: Run, copied: Copy, name: str) -> None:
    folder = copied()
    edit(folder / "verification.json", lambda d: d.pop("files"))
    export = {"onnx": export_onnx, "pt2": export_pt2}[name]
    export(other_run.narrow, run.inputs, folder / f"model.{name}")
    vouch(folder)
    with pytest.raises(RunError, match=r"does not compute|different weights") as caught:
        check_folder(folder)
    assert_sentence(caught.value)


def test_onnx_files_that_are_none_are_one_sentence(copied: Copy) -> None:
    folder = copied()
    edit(folder / "verification.json", lambda d: d.pop("files"))
    for data in (b"", b"\x08\x08", b"not a model", bytes(1000)):
        (folder / "model.onnx").write_bytes(data)
        vouch(folder)
        with pytest.raises(RunError, match="secateur export") as caught:
            check_folder(folder)
        assert_sentence(caught.value)


@pytest.mark.parametrize("line", ["[]", "{", '{"a": NaN}', "\udcff"])
def test_metrics_are_json_lines(copied: Copy, line: str) -> None:
    folder = copied()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match="metrics"):
        check_folder(folder)


def test_an_unfinished_or_absent_run(copied: Copy, tmp_path: Path) -> None:
    folder = copied()
    (folder / "results.json").unlink()
    with pytest.raises(RunError, match=r"secateur run --resume"):
        check_folder(folder)
    (folder / "recipe.yaml").unlink()
    with pytest.raises(RunError, match="is not the folder of a run"):
        check_folder(folder)
    with pytest.raises(SecateurError, match="There is no folder"):
        check_folder(tmp_path / "nowhere")
