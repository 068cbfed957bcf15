"""Let torchvision and timm import, and detection models run, where torchvision's compiled operators do not load.

A CPU build of torch beside a CUDA build of torchvision can not load ``torchvision._C``: the import itself
then dies. Where the operators are there, `install` changes nothing.
"""

from __future__ import annotations

import sys

import torch

_LIBRARY: torch.library.Library | None = None  # operators live as long as this object


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression, box by box: slow and plain."""
    area = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    order = scores.argsort(descending=True, stable=True)
    kept = []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(dets[best, :2], dets[rest, :2])
        high = torch.minimum(dets[best, 2:], dets[rest, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        order = rest[overlap <= iou_threshold * (area[best] + area[rest] - overlap)]
    return torch.stack(kept) if kept else order


def install() -> None:
    """Declare torchvision's operators if they can not be loaded; call it before importing torchvision or timm."""
    global _LIBRARY
    if _LIBRARY is not None:
        return
    try:
        import torchvision

        return
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY.impl("nms", _nms, "CPU")
    import torchvision.extension

    torchvision.extension._has_ops = lambda: True  # RoIAlign then takes its pure-torch path ...
    roi_align = sys.modules["torchvision.ops.roi_align"]
    roi_align._roi_align = roi_align._roi_align.__wrapped__  # type: ignore[attr-defined]  # ... without compiling it first (40 s)
