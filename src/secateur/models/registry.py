"""One frozen row per network: listing, creation, documentation and tests read this table and nothing else.

`params` and `macs` are the exact counts of the network built here, with 10 classes, for one 3x32x32 image; MACs are
those of convolutions and linear layers. `published` is what the literature reports for it and `source` who does; None
where nobody is known to.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn

from secateur.errors import ConfigError
from secateur.models.densenet import DenseNet
from secateur.models.mobilenet import MobileNetV1, MobileNetV2
from secateur.models.preresnet import PreResNet
from secateur.models.resnet import BasicBlock, Bottleneck, ResNet
from secateur.models.small import LeNet5, Tiny
from secateur.models.vgg import VGG


@dataclass(frozen=True)
class Published:
    """Counts as printed in the literature, so rounded; a count that is not printed is None."""

    params: float | None
    macs: float | None
    source: str


@dataclass(frozen=True)
class ModelRow:
    name: str
    factory: Callable[..., nn.Module]
    summary: str
    paper: str
    year: int
    params: int
    macs: int
    published: Published | None = None
    input_size: tuple[int, int, int] = (3, 32, 32)


_HE15 = "He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385"
_HE16 = "He et al., Identity Mappings in Deep Residual Networks, arXiv 1603.05027"
_VGG = "Simonyan and Zisserman, arXiv 1409.1556; with batch normalisation and one linear layer"
_HE15_TABLE = "params: He et al. 2015, table 6"
_PRETRAINED = "params: imgclsmob, CIFAR-10 table, exact"
_HRANK = "baseline of HRank (arXiv 2002.10179) and those that compare with it"
_SLIMMING = "baseline of Network Slimming (arXiv 1708.06519): its PyTorch code; MACs: half of the paper's FLOPs"


def _resnet(depth: int, params: int, macs: int, published: Published | None = None) -> ModelRow:
    factory = partial(ResNet, BasicBlock, (depth - 2) // 6, shortcut="A")
    summary = f"{depth} layers, parameter-free shortcuts (option A)"
    return ModelRow(f"resnet{depth}", factory, summary, _HE15, 2015, params, macs, published)


def _resnet_b(depth: int, params: int, macs: int, published: Published | None = None) -> ModelRow:
    factory = partial(ResNet, BasicBlock, (depth - 2) // 6, shortcut="B")
    summary = f"{depth} layers, 1x1 convolution shortcuts (option B)"
    return ModelRow(f"resnet{depth}_b", factory, summary, _HE15, 2015, params, macs, published)


_ROWS = (
    _resnet(8, 75_290, 12_239_488),
    _resnet(14, 172_506, 26_395_264),
    _resnet(20, 269_722, 40_551_040, Published(0.27e6, 40.6e6, f"{_HE15_TABLE}; MACs: SFP (arXiv 1808.06866)")),
    _resnet(32, 464_154, 68_862_592, Published(0.46e6, 68.9e6, f"{_HE15_TABLE}; MACs: SFP (arXiv 1808.06866)")),
    _resnet(44, 658_586, 97_174_144, Published(0.66e6, None, _HE15_TABLE)),
    _resnet(56, 853_018, 125_485_696, Published(0.85e6, 125.49e6, f"{_HE15_TABLE}; MACs: {_HRANK}")),
    _resnet(110, 1_727_962, 252_887_680, Published(1.72e6, 252.89e6, _HRANK)),
    _resnet_b(8, 78_042, 12_501_632),
    _resnet_b(14, 175_258, 26_657_408),
    _resnet_b(20, 272_474, 40_813_184, Published(272_474, None, _PRETRAINED)),
    _resnet_b(32, 466_906, 69_124_736),
    _resnet_b(44, 661_338, 97_436_288),
    _resnet_b(56, 855_770, 125_747_840, Published(855_770, None, _PRETRAINED)),
    _resnet_b(110, 1_730_714, 253_149_824, Published(1_730_714, None, _PRETRAINED)),
    ModelRow(
        "resnet164",
        partial(ResNet, Bottleneck, 18, shortcut="B"),
        "164 layers, bottleneck blocks, activation after the sum",
        _HE15,
        2015,
        1_704_154,
        247_646_720,
        Published(1_704_154, None, _PRETRAINED),
    ),
    ModelRow(
        "preresnet20",
        partial(PreResNet, 2),
        "20 layers, pre-activation bottleneck blocks; small, for experiments",
        _HE16,
        2016,
        219_482,
        33_737_216,
    ),
    ModelRow(
        "preresnet164",
        partial(PreResNet, 18),
        "164 layers, pre-activation bottleneck blocks: the pruning papers' ResNet-164",
        _HE16,
        2016,
        1_703_258,
        247_646_720,
        Published(1_703_258, 249.5e6, f"{_PRETRAINED}; MACs: {_SLIMMING}"),
    ),
    ModelRow(
        "vgg16_bn",
        partial(VGG, 16),
        "13 convolutions and one linear layer",
        _VGG,
        2014,
        14_724_042,
        313_201_664,
        Published(14.72e6, 313.2e6, "baseline of Li et al. (arXiv 1608.08710), without its hidden linear layer"),
    ),
    ModelRow(
        "vgg19_bn",
        partial(VGG, 19),
        "16 convolutions and one linear layer",
        _VGG,
        2014,
        20_035_018,
        398_136_320,
        Published(20.04e6, 398.5e6, _SLIMMING),
    ),
    ModelRow(
        "densenet40",
        partial(DenseNet, 12, 12),
        "40 layers, growth rate 12, no bottleneck, no compression",
        "Huang et al., Densely Connected Convolutional Networks, arXiv 1608.06993",
        2016,
        1_059_298,
        282_917_328,
        Published(1.04e6, 282.92e6, _HRANK),
    ),
    ModelRow(
        "mobilenet_v1",
        MobileNetV1,
        "depthwise separable convolutions",
        "Howard et al., MobileNets, arXiv 1704.04861",
        2017,
        3_217_226,
        46_354_432,
        Published(3_217_226, None, "the authors' 4,231,976 with 1000 classes, less 990 classes of 1025"),
    ),
    ModelRow(
        "mobilenet_v2",
        MobileNetV2,
        "inverted residuals with linear bottlenecks",
        "Sandler et al., MobileNetV2, arXiv 1801.04381",
        2018,
        2_236_682,
        87_976_448,
        Published(2_236_682, None, "torchvision's mobilenet_v2 with 10 classes"),
    ),
    ModelRow(
        "lenet5",
        LeNet5,
        "two convolutions, three linear layers; trains in seconds",
        "LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 86(11)",
        1998,
        62_006,
        651_720,
        Published(62_006, None, "PyTorch's classifier tutorial; 61,706 with one input channel"),
    ),
    ModelRow(
        "tiny",
        Tiny,
        "residual, concatenation and depthwise convolution in 3,000 parameters; for tests",
        "none: made for Secateur",
        2026,
        3_258,
        1_882_352,
    ),
)

#: The zoo by name, one frozen row a network.
MODELS: Mapping[str, ModelRow] = MappingProxyType({row.name: row for row in _ROWS})


def list_models() -> list[str]:
    """Names that `create` takes, in the order of the table."""
    return list(MODELS)


def create(name: str, *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """Build a network of the zoo with random weights.

    name: one of `list_models()`.
    num_classes: outputs. in_channels: 1 for grey images. width: scales every hidden layer.

    Weights come from PyTorch's global generator.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(str(name), MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(MODELS)}."
        raise ConfigError(f"There is no zoo network named {name!r}: {hint}")
    _check_count("num_classes", num_classes)
    _check_count("in_channels", in_channels)
    if not _is_number(width) or not math.isfinite(width) or width <= 0:
        raise ConfigError(f"width is {width!r}: give a positive number; 1.0 is the published network.")
    return MODELS[name].factory(num_classes=num_classes, in_channels=in_channels, width=width)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}: give a whole number of at least 1.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
