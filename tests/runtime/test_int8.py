"""The network in 8 bits: nearly as accurate, calibrated with what it is given and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _runs import assert_sentence
from torch import nn

from secateur import models
from secateur.data import open_data
from secateur.errors import ConfigError, InputError, RunError
from secateur.recipe import DataConfig
from secateur.runtime import QUANTISERS, export_int8, open_exported
from secateur.runtime.export import Subject
from secateur.runtime.exporters.calibration import Pieces

NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(row.missing is not None, reason=f"{row.missing} is not installed: {row.install}"),
    )
    for name, row in QUANTISERS.items()
]


@pytest.fixture(scope="module")
def digits() -> Any:
    return open_data(DataConfig(name="digits"), 0)


@pytest.fixture(scope="module")
def network(digits: Any) -> nn.Module:
    """Trained for ten epochs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.create("tiny", in_channels=digits.input_size[0])
        optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for epoch in range(10):
            for x, y in digits.train.batches(64, epoch=epoch, shuffle=True):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimiser.step()
    return model.eval()


@torch.no_grad()
def accuracy(network: nn.Module, digits: Any) -> float:
    right = [(network(x).argmax(1) == y).float() for x, y in digits.test.batches(100)]
    return float(torch.cat(right).mean())


class Watched:
    """Training images; knows how many were taken."""

    def __init__(self, digits: Any, most: int) -> None:
        self.digits, self.most, self.turns = digits, most, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.turns += 1
        batches = self.digits.train.batches(50)
        return (x for _, (x, _) in zip(range(self.most // 50), batches, strict=False))


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_stays_within_points(name: str, network: nn.Module, digits: Any, tmp_path: Path) -> None:
    row, images = QUANTISERS[name], Watched(digits, 200)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    found = export_int8(name, network, torch.zeros(1, *digits.input_size), tmp_path / row.file, images)
    assert images.turns
    assert found["calibration_images"] == 200
    assert found["dynamic_batch"] is True
    assert 0 < found["relative_difference"] < 0.3  # eight bits are not thirty-two
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(row.files)
    assert found["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    whole = accuracy(network, digits)
    assert whole > 0.8  # or the next line would say nothing
    assert accuracy(open_exported(tmp_path / row.file), digits) > whole - 0.03
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_whole_numbers(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The file of a layer with many weights is about a quarter of theirs; and nothing is printed on the way."""
    layer = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 3, padding=1))
    path = tmp_path / QUANTISERS[name].file
    found = export_int8(name, layer, torch.zeros(1, 3, 8, 8), path, [torch.randn(4, 3, 8, 8)])
    assert capfd.readouterr() == ("", "")
    weights = 4 * sum(parameter.numel() for parameter in layer.parameters())
    data = tmp_path / QUANTISERS[name].files[-1]
    assert data.stat().st_size < 0.35 * weights
    assert found["relative_difference"] < 0.1
    for file in tmp_path.iterdir():
        assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()


class Fixed(nn.Module):
    """Runs with two images only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(2, 144)


@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_batch_is_calibrated_in_its_size(name: str, tmp_path: Path) -> None:
    network, path = Fixed().eval(), tmp_path / QUANTISERS[name].file
    images = iter([torch.randn(5, 3, 8, 8), torch.randn(2, 3, 8, 8)])  # once only, and five is no multiple of two
    found = export_int8(name, network, torch.zeros(2, 3, 8, 8), path, images)
    assert found["calibration_images"] == 6
    assert found["dynamic_batch"] is False
    assert "batch size" in found["reason"]
    assert open_exported(path, batch_size=2)(torch.randn(3, 3, 8, 8)).shape == (3, 144)


def test_what_cannot_be_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)
    with pytest.raises(ConfigError, match="Choose one of onnxruntime, openvino"):
        export_int8("tensorrt", network, x, tmp_path / "m", [x])
    with pytest.raises(InputError, match="no batch to calibrate with") as caught:
        export_int8("onnxruntime", network, x, tmp_path / "m", [])
    assert_sentence(caught.value)
    with pytest.raises(InputError, match="of 2 inputs, the network's batch size"):
        Pieces([x], Subject.of(Fixed(), torch.zeros(2, 3, 8, 8)))
    with pytest.raises(RunError, match=r"cannot quantise the network .* leave onnxruntime out of export.int8"):
        export_int8("onnxruntime", network, x, tmp_path / "m", [torch.zeros(1, 5, 8, 8)])
    assert not list(tmp_path.iterdir())


class TwoInputs(nn.Module):
    """Adds what two layers make of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.two(y)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_batches_as_a_loader_gives_them(name: str, tmp_path: Path) -> None:
    """The same file, whether labels come with the images or not; and a second input is no label."""
    torch.manual_seed(0)
    x, z, labels, row = torch.randn(6, 3, 8, 8), torch.randn(6, 1, 8, 8), torch.arange(6), QUANTISERS[name]
    layer, path = nn.Conv2d(3, 4, 3), tmp_path / row.file
    forms: list[Any] = [[x], [(x, labels)], iter([(x, labels, "names")]), [{"image": x, "label": labels}]]
    found = [export_int8(name, layer, x[:1], path, form) for form in forms]
    assert {each["relative_difference"] for each in found} == {found[0]["relative_difference"]}
    assert [each["calibration_images"] for each in found] == [6, 6, 6, 6]
    for form in ((x, z), (x, z, labels), ((x, z), labels)):
        both = export_int8(name, TwoInputs(), (x[:1], z[:1]), path, [form])
        assert both["calibration_images"] == 6
    with pytest.raises(InputError, match="a single sample is no batch"):
        export_int8(name, layer, x[:1], path, [(x[0], 1)])
