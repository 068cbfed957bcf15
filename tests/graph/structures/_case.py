"""The table of structures: a case is a network, example inputs, and the groups it must have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

CASES: list[Case] = []


@dataclass(frozen=True)
class Case:
    """One structure; `groups` are the names and widths that must come out, so that "all frozen" cannot pass."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    groups: dict[str, int]
    exact: bool = True  # masking equals removal
    share: float = 0.5  # of every group that is removed
    attention: str = "heads"
    settled: bool = False  # a size in code keeps some channels
    macs: bool = True  # torch's counter sees all products
    again: bool = True  # the cut model can be traced and pruned once more
    xfail: str = ""

    def __str__(self) -> str:
        return self.name


def case(
    name: str,
    groups: str,
    *,
    shape: tuple[int, ...] = (2, 3, 8, 8),
    inputs: Callable[[], Any] | None = None,
    **options: Any,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Add a network to the table; `groups` is written "stem:8 block.conv:12"."""
    widths = {part.rpartition(":")[0]: int(part.rpartition(":")[2]) for part in groups.split()}

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        make = inputs or (lambda: torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        CASES.append(Case(name, build, make, widths, **options))
        return build

    return register


class Net(nn.Module):
    """Modules and numbers by keyword, and how they run."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size of the image."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def head(channels: int, classes: int = 5) -> nn.Sequential:
    """Global pooling and a linear classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
