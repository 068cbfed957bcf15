"""How much the activations of layers depend on each other: the normalised HSIC of all pairs, from one pass.

    X_l [n, d_l]      activations of layer l for n images, flattened
    K_l = X_l X_lᵀ    (linear), or exp(-|x_i - x_j|² / 2 s²), s² the median of the squared distances (RBF)
    H_lm = <C K_l, C K_m> / (|C K_l| |C K_m|)      C K = J K J, J = I - 11ᵀ/n (biased), or the U-centred K (unbiased)

With the linear kernel the biased form is linear CKA, |Xc_mᵀ Xc_l|² / (|Xc_lᵀ Xc_l| |Xc_mᵀ Xc_m|) of centred columns.
The unbiased one is HSIC_1 of Song et al. (JMLR 2012), an inner product of U-centred matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from secateur._distributed import global_sum
from secateur._protocols import FloatArray, IntArray
from secateur.errors import InputError
from secateur.graph import Graph
from secateur.graph.modules import map_tensors
from secateur.graph.readers import observed
from secateur.graph.rules import tensors_in
from secateur.statistics.gather import Collector, pair, rows

Kernel = Literal["linear", "rbf"]
Estimator = Literal["biased", "unbiased"]

#: Features that are turned to double precision at a time.
_PIECE = 1 << 15


@dataclass(frozen=True, eq=False)
class Sight:
    """Where a group's activations are looked at: what a layer reads, or the output `position` of a module.

    index: positions of the group's channels along `dim`.
    """

    module: str
    reads: bool
    dim: int
    index: IntArray
    position: int = 0


def sights(graph: Graph) -> dict[str, Sight]:
    """Where each group is looked at; groups that show nowhere are missing.

    What the first layer that reads a group gets lies behind its norm and activation; where no layer does, the first
    output of a module that shows the group has to do.
    """
    modules, order = dict(graph.model.named_modules()), graph.recording.first_use
    tables = sorted(observed(graph)[0].items(), key=lambda item: order.get(f"{item[0]}.weight", 0))
    found: dict[str, Sight] = {}
    first = 0
    for group in graph.groups:
        for name, table in tables:
            index = np.flatnonzero((table >= first) & (table < first + group.width))
            if len(index):
                layer: Any = modules[name]
                dim = -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)
                found[group.name] = Sight(name, True, dim, index)
                break
        else:
            for tap in graph.taps(group)[:1]:
                found[group.name] = Sight(tap.module, False, tap.dim, tap.index.reshape(-1), tap.position)
        first += group.width
    return found


class Grams(Collector):
    """The linear kernels [n, n] of groups, by name, of one batch of n images; a layer that runs again is not looked at.

    Memory: 8 n² bytes a group, and the activations of that batch while it runs.
    """

    def __init__(self, places: Mapping[str, Sight], samples: int, device: torch.device) -> None:
        self._places, self._samples, self._seen = places, samples, set[str]()
        shape = (samples, samples)
        self.kernels = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name in places}

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        """Hook into every place."""
        for name, place in self._places.items():
            module = model.get_submodule(place.module)
            if place.reads:
                yield module.register_forward_pre_hook(partial(self._read, name), with_kwargs=True)
            else:
                yield module.register_forward_hook(partial(self._made, name))

    def _read(self, name: str, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._add(name, args[0] if args else keywords["input"])

    def _made(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._add(name, list(tensors_in(output))[self._places[name].position])

    def _add(self, name: str, x: torch.Tensor) -> None:
        if name in self._seen:
            return
        self._seen.add(name)
        place = self._places[name]
        if len(x) % self._samples:
            raise InputError(
                f"{place.module} sees {len(x)} rows of {self._samples} images, which cannot be told apart there: put "
                "the images into the first dimension, or choose another method."
            )
        index = torch.from_numpy(place.index).to(x.device)
        features = x.detach().index_select(place.dim, index).reshape(self._samples, -1)
        for piece in features.split(_PIECE, dim=1):
            wide = piece.double()
            self.kernels[name] += wide @ wide.T  # K = X Xᵀ, in double precision: float32 is not symmetric enough

    def total(self) -> None:
        """Add up over processes; all but one have seen nothing."""
        self.kernels = {name: global_sum(kernel) for name, kernel in self.kernels.items()}


def first_images(batches: Iterable[tuple[Any, Any]], most: int, device: torch.device) -> tuple[Any, int]:
    """The first images that are shown, `most` of them or as many as there are, as one batch of inputs, and how many."""
    parts, seen = [], 0
    for batch in batches:
        inputs = pair(batch, device)[0]
        images = rows(inputs)
        parts.append(map_tensors(inputs, partial(_head, images, min(images, most - seen))))
        seen += min(images, most - seen)
        if seen >= most:
            break
    if len(parts) < 2:
        return (parts[0] if parts else None), seen
    columns = iter([*zip(*map(_tensors, parts), strict=True)])
    return map_tensors(parts[0], lambda _: _joined(next(columns))), seen


def _head(images: int, count: int, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:count] if tensor.ndim and len(tensor) == images else tensor


def _tensors(inputs: Any) -> list[torch.Tensor]:
    """All tensors, in the order in which `map_tensors` comes by them."""
    found: list[torch.Tensor] = []
    map_tensors(inputs, found.append)
    return found


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(parts)) if parts[0].ndim else parts[0]


def rbf(kernel: torch.Tensor) -> torch.Tensor:
    """The RBF kernel [n, n] of the points whose linear kernel is given; its width is the median distance."""
    norms = kernel.diagonal()
    squares = (norms[:, None] + norms[None] - 2 * kernel).clamp_min(0.0)  # |x_i - x_j|²
    width = squares.median().clamp_min(torch.finfo(kernel.dtype).tiny)
    return torch.exp(-squares / (2 * width))


def nhsic(kernels: Sequence[torch.Tensor], kernel: Kernel = "linear", estimator: Estimator = "biased") -> FloatArray:
    """H [layers, layers] of linear kernels [n, n]: symmetric, 1 on its diagonal, 0 where a layer never changes.

    In [0, 1] if biased; the unbiased estimate needs four images, and may fall below 0 where there is no dependence.
    """
    centred = [_centred(k if kernel == "linear" else rbf(k), estimator).flatten() for k in kernels]
    rows_ = torch.stack(centred)
    products = rows_ @ rows_.T  # <C K_l, C K_m>; 1/(n-1)², or 1/n(n-3), cancels
    norms = products.diagonal().clamp_min(0.0).sqrt()
    scale = torch.outer(norms, norms)
    found = torch.where(scale > 0, products / torch.where(scale > 0, scale, 1.0), 0.0)
    found = ((found + found.T) / 2).clamp(0.0 if estimator == "biased" else -1.0, 1.0).fill_diagonal_(1.0)
    return np.asarray(found.cpu().numpy(), dtype=np.float64)


def _centred(kernel: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    n = len(kernel)
    if estimator == "biased":  # J K J
        return kernel - kernel.mean(0, keepdim=True) - kernel.mean(1, keepdim=True) + kernel.mean()
    open_ = kernel.clone().fill_diagonal_(0.0)
    sums = open_.sum(1)
    centred = open_ - (sums[:, None] + sums[None]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0.0)


def totals(dependence: FloatArray) -> FloatArray:
    """h_l = sum over m ≠ l of H_lm: how much each layer depends on all others; estimates below 0 count as none."""
    return np.asarray(np.maximum(dependence, 0.0).sum(1) - 1.0)


def alphas(h: FloatArray, beta: float) -> FloatArray:
    """alpha_l = exp(-beta h_l / sum h): what depends least on the rest is worth most."""
    return np.asarray(np.exp(-beta * _shares_of(h)))


def _shares_of(h: FloatArray) -> FloatArray:
    """h over its sum; zeros where nothing depends on anything."""
    whole = float(h.sum())
    return h / whole if whole > 0 else np.zeros_like(h)


def beta_for(h: FloatArray, spread: float) -> float:
    """The beta with which the largest alpha is `spread` times the smallest; 0 where all h are equal."""
    parts = _shares_of(h)
    width = float(np.ptp(parts)) if len(parts) else 0.0
    return float(np.log(spread)) / width if width > 1e-12 else 0.0
