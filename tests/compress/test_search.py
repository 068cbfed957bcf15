"""Whole searches on a tiny network: what they end with and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from _quarters import QUICK, images, network
from optuna.trial import Trial
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import secateur
from secateur.compress.result import Tried, pareto


def test_the_best_network_within_a_budget(model: nn.Module, loader: Any, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heard: list[str] = []
    found = secateur.compress(model, loader, flops=0.5, out=tmp_path / "c", say=heard.append, **QUICK)
    assert found.reached("flops") <= 0.5
    assert found.met
    assert found.verification is not None
    assert found.verification.exact
    assert not found.model.training
    assert found.unit == "accuracy"
    assert found.figure == pytest.approx(_accuracy(found.model, loader), abs=0.15)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    race = [each for each in found.tried if each.stage == "race"]
    assert {each.what.split()[0].strip(",") for each in race[:2]} == {"l1", "fpgm"}
    assert len({each.what for each in race}) == 3
    assert [each.stage for each in found.tried].count("front") == 3
    assert all(each.rounds for each in found.tried if each.stage == "finalists")
    assert any("Chosen: " in line for line in found.said)
    assert any(line.startswith("trial 1: ") for line in heard)
    assert "candidates were compared" in str(found)
    assert "<table>" in found._repr_html_()

    document = json.loads((tmp_path / "c" / "compress.json").read_text(encoding="utf-8"))
    assert document["figure"] == found.figure
    assert len(document["tried"]) == len(found.tried)
    again = secateur.load(tmp_path / "c", model=network())
    x = images(8)[0]
    assert torch.equal(again(x), found.model(x))
    study = optuna.load_study(study_name="race", storage=f"sqlite:///{tmp_path / 'c' / 'study.db'}")
    assert study.metric_names == ["accuracy", "share of flops"]
    assert [t.user_attrs["what"] for t in study.trials][: len(race)] == [each.what for each in race]


def _accuracy(model: nn.Module, loader: Any) -> float:
    right = [(model(x).argmax(1) == y).float() for x, y in loader]
    return float(torch.cat(right).mean())


def test_training_mends_what_the_cut_broke(model: nn.Module, loader: Any) -> None:
    options = {**QUICK, "trials": 1, "methods": ("l1",), "repairs": ("none",), "allocators": ("uniform",)}
    cut = secateur.compress(model, loader, flops=0.1, **{**options, "epochs": 0})
    trained = secateur.compress(model, loader, flops=0.1, **{**options, "epochs": 6})
    assert "epochs=0" in " ".join(cut.said)
    assert trained.figure > cut.figure + 0.05
    assert trained.reached("flops") == cut.reached("flops")


def test_the_smallest_network_within_a_drop(model: nn.Module, loader: Any) -> None:
    found = secateur.compress(model, loader, max_drop=5, **{**QUICK, "epochs": 0, "trials": 2})
    smaller = [each for each in found.tried if each.stage == "smallest" and each.figure is not None]
    cost = found.reached("flops")
    assert found.met
    assert found.original - found.figure <= 0.05 + 1e-9
    # nothing smaller that was looked at keeps to the drop, and bisection came close
    assert all(each.figure < found.original - 0.05 for each in smaller if (each.cost or 0) < cost - 1e-9)  # type: ignore[operator]
    assert 2 <= len(smaller) <= 5
    assert "The smallest network found leaves" in " ".join(found.said)


def test_a_budget_that_cannot_be_met_within_the_drop_gives_the_nearest_that_can(model: nn.Module, loader: Any) -> None:
    found = secateur.compress(model, loader, flops=0.1, max_drop=1, **{**QUICK, "epochs": 0, "trials": 1})
    assert not found.met
    assert found.reached("flops") > 0.1
    assert found.original - found.figure <= 0.01 + 1e-9
    said = " ".join(found.said)
    assert "The budget flops=0.1 cannot be met with a drop of 1 points; the nearest network that keeps to it" in said
    assert "worth 1.25 points, more than the drop" in said  # 80 images are held out


def test_a_budget_out_of_reach_says_what_can_be_reached(model: nn.Module, loader: Any) -> None:
    with pytest.raises(secateur.BudgetError, match="smallest reachable"):
        secateur.compress(model, loader, flops=1e-5, **QUICK)


def test_without_data(model: nn.Module) -> None:
    heard: list[str] = []
    found = secateur.compress(
        model,
        example_inputs=torch.zeros(1, 1, 8, 8),
        params=0.6,
        say=heard.append,
        **{**QUICK, "methods": ("l1", "taylor")},
    )
    said = " ".join(found.said)
    before = [line for line in heard[: heard.index(next(h for h in heard if "trial 1" in h))] if line.endswith(".")]
    assert before == [line for line in found.said if line in heard]  # what is known before the work is said before it
    assert len(before) == 3  # no data; taylor; the allocator that measures
    assert "No data are given" in said
    assert "Not tried, for want of images: taylor." in said
    assert found.unit == "agreement"
    assert found.reached("params") <= 0.6
    with pytest.raises(secateur.ConfigError, match="max_drop is a drop of the accuracy"):
        secateur.compress(model, example_inputs=torch.zeros(1, 1, 8, 8), max_drop=1)
    with pytest.raises(secateur.InputError, match="example_inputs="):
        secateur.compress(model, flops=0.5)


SET = TensorDataset(*images(40))


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (SET, {}, "gives single samples: wrap it in a torch.utils.data.DataLoader"),
        (3, {}, "The data are a int: give batches"),
        ([], {}, "The data are empty"),
        (iter([]), {}, "The data are empty"),
        ([images(40)], {"held_out": []}, "There are no images in held_out"),
        ([images(40)], {"loss": 3}, "3 is no loss"),
        ([images(40)], {"metric": nn.L1Loss}, r"The metric L1Loss is a class: give an object of it, L1Loss\(\)"),
        ([images(40)], {"metric": lambda output: 0.0}, "is no metric: give a function of output and target."),
        ([images(40)], {"ignore": "nothing.*"}, "nothing"),
        ([images(40)], {"min_channels": 0}, "min_channels=0 is not a positive integer"),
        ([images(40)], {"max_ratio": "all"}, "max_ratio='all' is not a share"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    model: nn.Module, data: Any, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(secateur.SecateurError, match=said) as caught:
        secateur.compress(model, data, flops=0.5, out=tmp_path / "c", **{**QUICK, **options})
    assert "No candidate" not in str(caught.value)
    given = {key: value for key, value in options.items() if key in ("held_out", "loss", "metric", "ignore")}
    if not options or given:
        with pytest.raises(secateur.SecateurError, match=said):
            secateur.sensitivity(model, data, shares=0.5, **given)


def test_a_drop_alone_says_where_it_would_begin(model: nn.Module, loader: Any) -> None:
    with pytest.raises(secateur.BudgetError, match=r"begins at flops=0\.5, which is out of reach: give a budget"):
        secateur.compress(model, loader, max_drop=1, max_ratio=0.1, **QUICK)


def test_what_is_no_network_is_one_sentence() -> None:
    with pytest.raises(secateur.ModelError, match=r"A torch.nn.Module is needed, not str"):
        secateur.compress("net", [images(40)], flops=0.5, **QUICK)  # type: ignore[arg-type]
    with pytest.raises(secateur.ModelError, match=r"A torch.nn.Module is needed, not str"):
        secateur.sensitivity("net", [images(40)], shares=0.5)  # type: ignore[arg-type]


def test_a_generator_loses_no_batch_to_the_example(model: nn.Module) -> None:
    batches = [images(60), images(60)]
    found = secateur.compress(model, iter(batches), flops=0.5, **{**QUICK, "trials": 1, "epochs": 0})
    assert "on 40 held-out training images" in " ".join(found.said)  # a third of 120


def test_ten_images(model: nn.Module) -> None:
    found = secateur.compress(model, [images(10)], size=0.6, **QUICK)
    assert "10 images are few" in " ".join(found.said)
    assert found.unit == "agreement"


def test_images_without_labels_are_imitated(model: nn.Module) -> None:
    found = secateur.compress(
        model, list(images(240)[0].split(40)), flops=0.5, **{**QUICK, "epochs": 2, "methods": ("l1", "taylor")}
    )
    said = " ".join(found.said)
    assert "have no labels" in said
    assert "to imitate the original" in said
    assert "Not tried, for want of labels: taylor." in said


class Detector(nn.Module):
    """Outputs in a dict: where, and whether."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.boxes, self.scores = body, nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(x)
        return {"boxes": self.boxes(features), "scores": self.scores(features)}


def test_a_detector_with_a_loss_of_its_own() -> None:
    detector, pixels = Detector(network()[:6]).eval(), images(160)[0]
    targets = F.avg_pool2d(pixels, 3, 1, 1)

    def loss(output: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(output["scores"], target) + F.smooth_l1_loss(output["boxes"], target.expand(-1, 4, -1, -1))

    data = list(zip(pixels.split(40), targets.split(40), strict=True))
    found = secateur.compress(detector, data, flops=0.5, loss=loss, **{**QUICK, "epochs": 4})
    assert found.unit == "minus loss"
    race = [each.figure for each in found.tried if each.stage == "race" and each.figure is not None]
    assert found.figure > max(race)
    with pytest.raises(secateur.SecateurError, match=r"task of your own|pass loss="):
        secateur.compress(detector, data, flops=0.5, **QUICK)


def test_a_time_that_is_over_ends_with_what_there_is(model: nn.Module, loader: Any) -> None:
    found = secateur.compress(model, loader, flops=0.5, **{**QUICK, "time": 1e-3, "epochs": None})
    assert len([each for each in found.tried if each.stage == "race"]) == 1
    assert "the time does not allow it" in " ".join(found.said)


def test_the_front_is_what_nothing_beats() -> None:
    points = [Tried("race", k, "", figure, cost, 0, 0.0) for k, (figure, cost) in enumerate(
        [(0.9, 0.5), (0.8, 0.5), (0.95, 0.7), (0.9, 0.6), (None, None)]
    )]  # fmt: skip
    assert [each.number for each in pareto(points)] == [0, 2]


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["pytorch", "openvino"])
def test_a_latency_is_measured_in_the_end(
    model: nn.Module, loader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    pytest.importorskip("torch" if runtime == "pytorch" else runtime)
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    found = secateur.compress(model, loader, latency=f"1.0@{runtime}", **{**QUICK, "epochs": 0, "trials": 1})
    assert found.key == "latency"
    assert found.measured is not None
    assert found.measured["runtimes"][0]["runtime"] == runtime
    assert any(line.startswith(f"Measured on {runtime}: ") for line in found.said)


def test_a_short_training_that_lags_is_ended(model: nn.Module, loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "should_prune", lambda trial: trial.number > 0)
    found = secateur.compress(model, loader, flops=0.4, **{**QUICK, "epochs": 8})
    trained = [each for each in found.tried if each.stage == "finalists"]
    assert len(trained) > 1
    assert found.met
    assert "It did best in" in " ".join(found.said)
