"""Every network of the zoo: its published size, its shapes, its options and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateur import models
from secateur.errors import ConfigError

NAMES = models.list_models()
LIGHT = [name for name in NAMES if models.MODELS[name].macs < 1e8]


def build(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return models.create(name, **options)


def count_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, image: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers, from the shapes that pass through them."""
    total = 0

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(hook)
    model(image)
    return total


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_the_row(name: str) -> None:
    row, image = models.MODELS[name], torch.zeros(1, 3, 32, 32)
    with torch.device("meta"):
        model = build(name).eval()
        assert count_params(model) == row.params
        assert count_macs(model, image.to("meta")) == row.macs


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet8_b", "preresnet20", "mobilenet_v1", "mobilenet_v2", "lenet5", "tiny"]
)
def test_macs_are_half_of_what_torch_counts_as_flops(name: str) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build(name).eval()(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * models.MODELS[name].macs


@pytest.mark.parametrize("name", [name for name in NAMES if models.MODELS[name].published])
def test_counts_agree_with_the_literature(name: str) -> None:
    row = models.MODELS[name]
    assert row.published is not None
    for measured, printed in ((row.params, row.published.params), (row.macs, row.published.macs)):
        if printed is not None:
            exact = printed == int(printed) and printed % 1000  # a count to the last digit, not a rounded one
            assert measured == printed if exact else math.isclose(measured, printed, rel_tol=0.02)


def test_mobilenet_sizes_are_those_of_the_original_classifiers() -> None:
    with torch.device("meta"):
        assert count_params(models.create("mobilenet_v1", num_classes=1000)) == 4_231_976
        assert count_params(models.create("mobilenet_v2", num_classes=1000)) == 3_504_872  # torchvision's mobilenet_v2
        assert count_params(models.create("lenet5", in_channels=1)) == 61_706


@pytest.mark.parametrize("name", NAMES)
def test_width_classes_and_input_channels(name: str) -> None:
    model = build(name, num_classes=7, in_channels=1, width=0.25).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert count_params(model) < models.MODELS[name].params


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("width", [0.01, 1.5])
def test_extreme_widths(name: str, width: float) -> None:
    with torch.device("meta"):
        assert models.create(name, width=width)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = build(name, width=0.5)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("name", NAMES)
def test_weights_load_into_a_fresh_copy(name: str) -> None:
    first, second = build(name, width=0.25).eval(), models.create(name, width=0.25).eval()
    second.load_state_dict(first.state_dict())
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(first(image), second(image))


def test_convolutions_start_with_the_variance_of_the_papers() -> None:
    for module in build("resnet56").modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)


def test_option_a_shortcut_appends_zero_channels_to_every_second_pixel() -> None:
    block = build("resnet8").layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)  # the residual branch says nothing: what remains is the shortcut
    x = torch.rand(1, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert not out[:, 16:].any()


def test_option_a_shortcut_needs_no_repair_when_its_stages_become_narrower() -> None:
    shortcut = build("resnet8").layer2[0].shortcut
    assert shortcut(torch.rand(1, 5, 8, 8), torch.rand(1, 11, 4, 4)).shape == (1, 11, 4, 4)


def test_tiny_takes_the_small_images_of_the_embedded_data() -> None:
    assert build("tiny", in_channels=1)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_rows_are_frozen_and_complete() -> None:
    assert len(set(NAMES)) == len(NAMES)
    row = models.MODELS["resnet20"]
    with pytest.raises(AttributeError):
        row.params = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        models.MODELS["mine"] = row  # type: ignore[index]
    assert all(row.summary and row.paper and row.year for row in models.MODELS.values())
    assert all(row.published.source for row in models.MODELS.values() if row.published)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet57", "'resnet56'|'resnet57'"),
        ("vgg16", "'vgg16_bn'"),
        ("mobilenetv2", "'mobilenet_v2'"),
        ("???", "choose one of resnet8"),
        ("", "choose one of"),
    ],
)
def test_unknown_name_suggests_the_nearest(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        models.create(name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": -3}, "num_classes is -3"),
        ({"num_classes": 2.0}, "num_classes is 2.0"),
        ({"num_classes": True}, "num_classes is True"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"in_channels": "3"}, "in_channels is '3'"),
        ({"width": 0}, "width is 0"),
        ({"width": -0.5}, "width is -0.5"),
        ({"width": math.nan}, "width is nan"),
        ({"width": math.inf}, "width is inf"),
        ({"width": None}, "width is None"),
    ],
)
def test_bad_options_are_refused_with_their_value(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        models.create("tiny", **options)
