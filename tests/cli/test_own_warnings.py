"""What Secateur warns of is a line on stderr; what libraries warn of is not, unless debugging."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur import cli
from secateur.cli._base import working
from secateur.runtime import export_pt2, save_model


def test_ours_show_and_those_of_libraries_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    with working("Pruning", silent=True):
        warnings.warn("The one is\n not the other.", secateur.SecateurWarning, stacklevel=1)
        warnings.warn("of a library", UserWarning, stacklevel=1)
    assert capsys.readouterr() == ("", "The one is not the other.\n")


def test_those_of_libraries_show_while_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_DEBUG", "1")
    with pytest.warns(UserWarning, match="of a library"), working("Pruning", silent=True):
        warnings.warn("of a library", UserWarning, stacklevel=1)


@pytest.mark.parametrize("options", [[], ["--json"], ["--quiet"]])
def test_a_network_that_runs_without_its_code_says_so(tmp_path: Path, options: list[str]) -> None:
    model, inputs = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)), torch.randn(1, 3, 8, 8)
    result, folder = secateur.prune(model, inputs, budget="params=0.6"), tmp_path / "narrow"
    save_model(folder, result.model, reference="m.py:f", inputs=inputs, plan=result.plan)
    export_pt2(result.model, inputs, folder / "model.pt2")
    done = CliRunner().invoke(cli.app, ["inspect", str(folder), *options])
    assert done.exit_code == 0
    assert done.stderr.count("is run from model.pt2, for inference only: ") == 1
    assert "model.pt2" not in done.stdout
