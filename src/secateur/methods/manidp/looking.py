"""What images do at given thresholds: channels that open, and inputs that are there, image by image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur._protocols import BoolArray
from secateur.errors import ConfigError
from secateur.graph.modules import call_with_copies
from secateur.methods.manidp.gates import SiteGates
from secateur.statistics.gather import pair, untouched


@dataclass(frozen=True)
class Seen:
    """What calibration images did at some thresholds.

    active, read: outputs that were open and inputs that were not zero, of every site [images, sites].
    opened, masks, saliencies: of every site, which outputs some image opened, and means over images [outputs].
    tops: the largest saliency of every site.
    """

    active: torch.Tensor
    read: torch.Tensor
    opened: list[BoolArray]
    masks: list[torch.Tensor]
    saliencies: list[torch.Tensor]
    tops: list[float]


@torch.no_grad()
def look(model: nn.Module, gates: SiteGates, batches: Iterable[tuple[Any, Any]], xi: torch.Tensor) -> Seen:
    """Show all batches to the gated model, in evaluation.

    gates: of the model. batches: pairs (inputs, target); targets do not matter. xi: thresholds [sites].

    Raises:
        ConfigError: there is no batch.
    """
    sites = gates.sites
    active, read = list[torch.Tensor](), list[torch.Tensor]()
    masks, saliencies, tops = ([torch.zeros(s.outputs, dtype=torch.float64) for s in sites] for _ in range(3))
    opened = [torch.zeros(s.outputs, dtype=torch.bool) for s in sites]
    with untouched(model), gates.at(xi, counting=True):
        for batch in batches:
            args, keywords = call_with_copies(pair(batch, xi.device)[0])
            model(*args, **keywords)
            seen = [gates.masks[k].cpu().double() for k in range(len(sites))]
            active.append(torch.stack([(mask > 0).sum(1) for mask in seen], 1))
            read.append(torch.stack([gates.read[k].cpu() for k in range(len(sites))], 1))
            for k, mask in enumerate(seen):
                pi = gates.pi[k].cpu().double()
                opened[k] |= (mask > 0).any(0)
                masks[k] += mask.sum(0)
                saliencies[k] += pi.sum(0)
                tops[k] = torch.maximum(tops[k], pi.amax(0))
    gates.forget()
    if not active:
        raise ConfigError("ManiDP was shown no images to count their cost on: give at least one batch.")
    number = sum(map(len, active))
    return Seen(
        torch.cat(active),
        torch.cat(read),
        [stays.numpy() for stays in opened],
        [total / number for total in masks],
        [total / number for total in saliencies],
        [float(top.max()) for top in tops],
    )
