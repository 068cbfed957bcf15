"""What plans, allocators and criteria need to know about a graph: names and types, no code.

`secateur.graph` provides the real classes. Naming only what is used here keeps imports pointing downward and lets
the tests use a graph made by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class MemberLike(Protocol):
    """One place a group touches; row c of `index` holds what channel c owns along dimension `dim` of tensor `name`."""

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def role(self) -> str: ...
    @property
    def index(self) -> IntArray: ...


class GroupLike(Protocol):
    """Channels that lie side by side in the same places."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def members(self) -> Sequence[MemberLike]: ...


class FrozenLike(Protocol):
    """A width that cannot be pruned, and why."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def members(self) -> Sequence[MemberLike]: ...


class CostLike(Protocol):
    """Cost of one network, in multiply-accumulates and elements."""

    @property
    def macs(self) -> int: ...
    @property
    def params(self) -> int: ...
    @property
    def activations(self) -> int: ...
    @property
    def peak_activations(self) -> int: ...


class CostModelLike(Protocol):
    """Cost as a function of the groups' widths."""

    def evaluate(self, widths: Array) -> Mapping[str, Array]:
        """Return each cost [...] of the widths [..., groups]; exact, and monotone in every width."""
        ...


class GraphLike(Protocol):
    """A traced model."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def groups(self) -> Sequence[GroupLike]: ...
    @property
    def frozen(self) -> Sequence[FrozenLike]: ...
    @property
    def costs(self) -> CostModelLike: ...
    def tensors(self) -> Mapping[str, torch.Tensor]: ...
