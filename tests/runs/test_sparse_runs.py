"""A run that sets single weights to zero: what is in its folder, and that the zeros outlive fine-tuning."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from _small import outcome, recipe
from typer.testing import CliRunner

import secateur
from secateur import cli, runs
from secateur.errors import ConfigError
from secateur.plan import Plan
from secateur.runtime import check_folder
from secateur.runtime.sparse import FILE, read_sparse

SHARE = 0.2
WEIGHTS = (
    "name=sparse",
    "method={name: nap, mode: weight, rounds: 3, positions: 4}",
    f"budget=params={SHARE}",
    "train.epochs=2",
    "finetune={epochs: 2, lr: 0.05, weight_decay: 1e-3, nesterov: true}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    return runs.start(recipe(*WEIGHTS), tmp_path_factory.mktemp("sparse") / "run").folder


def masks(state: dict[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
    return {name: state[name] != 0 for name in names}


def test_so_many_weights_stay_and_the_network_keeps_its_shape(folder: Path) -> None:
    network = secateur.load(folder)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    total = sum(layer.weight.numel() for layer in layers)
    left = sum(int(layer.weight.count_nonzero()) for layer in layers)
    assert left == round(SHARE * total)
    results = json.loads((folder / "results.json").read_text())
    assert (results["sparse"]["weights"], results["sparse"]["nonzero"]) == (total, left)
    assert results["before"] == results["after"]
    assert len(results["sparse"]["names"]) == len(layers)
    assert all(mask.all() for mask in Plan.load(folder / "plan.json").masks.values())


def test_a_repair_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'batchnorm' would fill zeros that mode=weight has made"):
        runs.start(recipe(*WEIGHTS, "repair=batchnorm"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fine_tuning_moves_the_others_and_no_zero(folder: Path) -> None:
    prepared = runs.prepare(recipe(*WEIGHTS))
    pruned, tuned = prepared.network().model, secateur.load(folder).state_dict()
    secateur.runtime.read_weights(pruned, folder / "checkpoints" / "pruned.safetensors")
    before = pruned.state_dict()
    names = json.loads((folder / "results.json").read_text())["sparse"]["names"]
    assert all(torch.equal(mask, tuned[name] != 0) for name, mask in masks(before, names).items())
    assert all(not torch.equal(before[name], tuned[name]) for name in names)


def test_the_sparse_file_holds_the_same_network_in_less(folder: Path) -> None:
    dense, found = secateur.load(folder).state_dict(), read_sparse(folder / FILE)
    assert found.keys() == dense.keys()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in found.items())
    assert (folder / FILE).stat().st_size < (folder / "model.safetensors").stat().st_size
    files = json.loads((folder / "results.json").read_text())["files"]
    assert files[FILE]["bytes"] == (folder / FILE).stat().st_size


def test_the_run_is_sound_and_says_so(folder: Path) -> None:
    checked = check_folder(folder)
    assert checked["cut"]["exact"]
    said = CliRunner().invoke(cli.app, ["verify", str(folder)])
    assert (said.exit_code, said.stdout.splitlines()[0]) == (0, f"The run in {folder} is sound.")


def test_the_report_counts_what_is_not_zero(folder: Path) -> None:
    report = (folder / "report.html").read_text()
    sparse = json.loads((folder / "results.json").read_text())["sparse"]
    assert f"{sparse['nonzero']} of {sparse['weights']} in " in report
    assert "weights that are not zero 20.0% of at most 20.0%" in report
    assert FILE in report


def test_a_weight_that_comes_back_is_found(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    bytes_ = bytearray((tmp_path / "run" / FILE).read_bytes())
    bytes_[-1] ^= 1
    (tmp_path / "run" / FILE).write_bytes(bytes_)
    said = CliRunner().invoke(cli.app, ["verify", str(tmp_path / "run")])
    assert said.exit_code == 2
    assert FILE in said.stderr


def test_the_same_again(folder: Path, tmp_path: Path) -> None:
    again = runs.start(recipe(*WEIGHTS), tmp_path / "again").folder
    one, other = outcome(folder), outcome(again)
    assert one == other
    assert (again / FILE).read_bytes() == (folder / FILE).read_bytes()
