"""MACs of networks before and after a cut, counted by Secateur and by three other counters.

    pip install --target counters --no-deps thop fvcore ptflops iopath yacs portalocker termcolor
    PYTHONPATH=counters python benchmarks/count_macs.py

Each network is counted whole and pruned to half of its MACs, at 224 pixels, with batch 1. The counters are asked as
their own documentation says; thop and ptflops change the module they count, so each gets a copy.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import io
import logging
from collections.abc import Callable
from typing import Any

import _macs
import _record
import _shim
import torch
from torch import nn

import secateur

_shim.install()

import torchvision  # noqa: E402  # only imports once the shim is installed

MODELS = (
    "resnet50",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "deeplabv3_resnet50",
)
PEERS = ("thop", "fvcore", "ptflops")


def _thop(model: nn.Module, image: torch.Tensor) -> int:
    import thop

    return int(thop.profile(model, inputs=(image,), verbose=False)[0])


def _fvcore(model: nn.Module, image: torch.Tensor) -> int:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    return int(FlopCountAnalysis(model, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


def _ptflops(model: nn.Module, image: torch.Tensor) -> int:
    from ptflops import get_model_complexity_info

    with contextlib.redirect_stdout(io.StringIO()):
        macs, _ = get_model_complexity_info(
            model, tuple(image.shape[1:]), as_strings=False, print_per_layer_stat=False, verbose=False
        )
    return int(macs)


COUNTERS = {"thop": _thop, "fvcore": _fvcore, "ptflops": _ptflops, "torch": lambda m, image: _macs.count(m, (image,))}


def counted(model: nn.Module, image: torch.Tensor) -> dict[str, Any]:
    """MACs by counter; a sentence where one fails."""
    found = {"secateur": secateur.trace(model, image).cost().macs}
    return found | {name: _asked(count, model, image) for name, count in COUNTERS.items()}


def _asked(count: Callable[[nn.Module, torch.Tensor], int], model: nn.Module, image: torch.Tensor) -> int | str:
    try:
        with torch.no_grad():
            return count(copy.deepcopy(model).eval(), image)
    except Exception as error:  # a counter that cannot count this network is a result
        return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one network")
    parser.add_argument("--pixels", type=int, default=224)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in [arguments.only] if arguments.only else MODELS:
        torch.manual_seed(0)
        plain = {"weights_backbone": None} if "deeplab" in name else {}
        model = torchvision.models.get_model(name, weights=None, **plain).eval()
        image = torch.randn(1, 3, arguments.pixels, arguments.pixels)
        small = secateur.prune(model, image, budget="flops=0.5").model.eval()
        for state, network in (("whole", model), ("pruned", small)):
            rows.append({"name": name, "state": state, **counted(network, image)})
            print(rows[-1], flush=True)
    versions = {peer: importlib.metadata.version(peer) for peer in PEERS}
    environment = _record.environment()
    environment["versions"] |= versions
    _record.save(_record.RESULTS / "macs.json", {**environment, "pixels": arguments.pixels, "rows": rows})


if __name__ == "__main__":
    main()
