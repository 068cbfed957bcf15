"""The models of the census: every torchvision model and every timm architecture family, with example inputs that work.

The list is data (``census_models.json``), written by ``census_survey.py``, which runs each model's forward once and
keeps the smallest input that works: nothing is guessed here.

    model, example_inputs, entry = load("torchvision:resnet50")
"""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _shim
import torch
from torch import nn

_shim.install()

import timm  # noqa: E402  # only imports once the shim is installed
import torchvision  # noqa: E402

TABLE = Path(__file__).with_suffix(".json")
CLASSES = 13  # of every classifier: a number no layer width of these models equals by chance
SEED = 0

# timm model modules, each reviewed. "conv" mixes space by convolution and pooling alone; channel attention and gating
# such as SE, ECA, GC or split attention are allowed. "other" has attention over space, token-mixing MLPs or recurrence.
TIMM_CLASS: dict[str, str] = {
    "beit": "other",
    "byoanet": "other",  # bottleneck, halo and lambda attention in a ResNet
    "byobnet": "conv",
    "cait": "other",
    "coat": "other",
    "convit": "other",
    "convmixer": "conv",
    "convnext": "conv",
    "cpubone": "other",
    "crossvit": "other",
    "csatv2": "other",
    "cspnet": "conv",
    "cspnext": "conv",
    "davit": "other",
    "deepseek_vit": "other",
    "deit": "other",
    "densenet": "conv",
    "dla": "conv",
    "dpn": "conv",
    "edgenext": "other",  # cross-covariance attention
    "efficientformer": "other",
    "efficientformer_v2": "other",
    "efficientnet": "conv",
    "efficientvim": "other",  # state space mixer
    "efficientvit_mit": "other",
    "efficientvit_msra": "other",
    "eva": "other",
    "fasternet": "conv",
    "fastvit": "conv",
    "focalnet": "other",  # focal modulation, a transformer without attention
    "gcvit": "other",
    "gemma4_vit": "other",
    "ghostnet": "conv",
    "hardcorenas": "conv",
    "hgnet": "conv",
    "hiera": "other",
    "hieradet_sam2": "other",
    "hrnet": "conv",
    "iformer": "other",
    "inception_next": "conv",
    "inception_resnet_v2": "conv",
    "inception_v3": "conv",
    "inception_v4": "conv",
    "lcnetv2": "conv",
    "levit": "other",
    "lowformer": "other",
    "mambaout": "conv",  # gated convolutions, the state space left out
    "maxxvit": "other",
    "metaformer": "conv",
    "mlp_mixer": "other",
    "mobilenetv3": "conv",
    "mobilenetv5": "other",
    "mobilevit": "other",
    "mvitv2": "other",
    "naflexvit": "other",
    "nasnet": "conv",
    "nest": "other",
    "nextvit": "other",
    "nfnet": "conv",
    "pit": "other",
    "pnasnet": "conv",
    "pvt_v2": "other",
    "qwen3_vit": "other",
    "rdnet": "conv",
    "regnet": "conv",
    "repghost": "conv",
    "repvit": "conv",
    "res2net": "conv",
    "resnest": "conv",
    "resnet": "conv",
    "resnetv2": "conv",
    "rexnet": "conv",
    "selecsls": "conv",
    "senet": "conv",
    "sequencer": "other",  # LSTM
    "shvit": "other",
    "sknet": "conv",
    "starnet": "conv",
    "swiftformer": "other",
    "swin_transformer": "other",
    "swin_transformer_v2": "other",
    "swin_transformer_v2_cr": "other",
    "tiny_vit": "other",
    "tnt": "other",
    "tresnet": "conv",
    "twins": "other",
    "vgg": "conv",
    "visformer": "other",
    "vision_transformer": "other",
    "vision_transformer_hybrid": "other",
    "vision_transformer_relpos": "other",
    "vision_transformer_sam": "other",
    "vitamin": "other",
    "volo": "other",
    "vovnet": "conv",
    "xception": "conv",
    "xception_aligned": "conv",
    "xcit": "other",
}

# Models with attention inside a convolutional module: the name decides, not the module.
TIMM_HYBRIDS = (
    "bat_resnext*",
    "resnet*_clip",
    "fastvit_sa*",
    "fastvit_ma*",
    "fastvit_mci*",
    "caformer*",
    "mobilenetv4_hybrid*",
)

TORCHVISION_ATTENTION = ("vision_transformer", "swin_transformer", "maxvit", "mvit")


@dataclass(frozen=True)
class Entry:
    """One model of the census; ``inputs`` holds shapes, a list of shapes standing for a list of tensors."""

    name: str  # "torchvision:resnet50", "timm:resnet50d"
    kind: str  # classification | segmentation | detection | video | optical_flow
    family: str  # the module that defines it
    architecture: str  # conv | other (attention, MLP, hybrid)
    inputs: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    params: int = 0
    macs: int = 0

    def factory(self) -> nn.Module:
        """The model with random weights, as its builder leaves it."""
        return build(self.name, self.options)

    def example_inputs(self) -> tuple[Any, ...]:
        """The arguments of one forward pass: images of seeded noise."""
        generator = torch.Generator().manual_seed(SEED)
        return tuple(_noise(shape, generator, self.kind) for shape in self.inputs)


def _noise(shape: Any, generator: torch.Generator, kind: str) -> Any:
    if isinstance(shape[0], list | tuple):
        return [_noise(one, generator, kind) for one in shape]
    if kind == "detection":  # images in 0..1
        return torch.rand(*shape, generator=generator)
    return torch.randn(*shape, generator=generator)


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """Construct a model by its full name, without pretrained weights."""
    library, model = name.split(":", 1)
    if library == "timm":
        return timm.create_model(model, pretrained=False, num_classes=CLASSES, **options)
    if library == "torchvision":
        return torchvision.models.get_model(model, weights=None, **torchvision_options(model), **options)
    raise ValueError(f"no library {library!r} in {name!r}: use torchvision:NAME or timm:NAME")


def torchvision_kind(model: str) -> str:
    """classification, segmentation, detection, video or optical_flow, from the module that defines the model."""
    parts = torchvision.models.get_model_builder(model).__module__.split(".")
    return parts[2] if len(parts) > 3 else "classification"


def torchvision_family(model: str) -> str:
    return torchvision.models.get_model_builder(model).__module__.split(".")[-1]


def torchvision_options(model: str) -> dict[str, Any]:
    """What every model of a kind is built with: few classes, small images, few proposals, outputs never empty."""
    kind = torchvision_kind(model)
    options: dict[str, Any] = {} if kind == "optical_flow" else {"num_classes": CLASSES}
    if kind in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if model in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the truncated normal of scipy takes 10 s
    if model.startswith("ssd"):
        options |= {"score_thresh": 0.0, "topk_candidates": 10, "detections_per_img": 4}
    elif kind == "detection":
        options |= {"min_size": 64, "max_size": 96}
        if "rcnn" in model:
            options |= {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 8}
            options |= {"box_detections_per_img": 4, "box_score_thresh": 0.0}
            if "mobilenet" in model:
                options["rpn_score_thresh"] = 0.0
        else:
            options |= {"score_thresh": 0.0, "topk_candidates": 10, "detections_per_img": 4}
    return options


def timm_architecture(model: str, module: str) -> str:
    if any(fnmatch.fnmatch(model, pattern) for pattern in TIMM_HYBRIDS):
        return "other"
    return TIMM_CLASS[module]


def torchvision_architecture(model: str) -> str:
    return "other" if torchvision_family(model) in TORCHVISION_ATTENTION else "conv"


def entries() -> dict[str, Entry]:
    """The whole list, by name, torchvision first."""
    rows = json.loads(TABLE.read_text())["models"]
    return {row["name"]: Entry(**{**row, "inputs": tuple(row["inputs"])}) for row in rows}


def load(name: str) -> tuple[nn.Module, tuple[Any, ...], Entry]:
    """A model of the list in eval mode, seeded, with its example inputs."""
    table = entries()
    if name not in table:
        raise ValueError(f"{name!r} is not in {TABLE.name}; names look like torchvision:resnet50 or timm:resnet50d")
    entry = table[name]
    torch.manual_seed(SEED)
    return entry.factory().eval(), entry.example_inputs(), entry
