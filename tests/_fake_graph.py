"""Graphs made by hand, so that budgets, plans, allocators and criteria are tested without tracing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class FakeMember:
    name: str
    dim: int
    role: str
    index: np.ndarray


@dataclass(frozen=True)
class FakeGroup:
    name: str
    width: int
    members: tuple[FakeMember, ...]
    inexact: tuple[str, ...] = ()


@dataclass(frozen=True)
class FakeFrozen:
    name: str
    width: int
    reason: str
    members: tuple[FakeMember, ...] = ()


@dataclass(frozen=True)
class FakeConv:
    """A conv from the groups `inputs` (or a frozen input width) to group `output` (or a frozen output width)."""

    name: str
    inputs: tuple[int, ...]  # group numbers; concatenated
    output: int | None  # group number
    pixels: int = 1
    kernel: int = 3
    frozen_in: int = 0
    frozen_out: int = 0
    depthwise: bool = False


@dataclass
class FakeCosts:
    """Sums of products of linear functions of the widths, as real networks have them."""

    inside: np.ndarray  # [convs, groups]
    outside: np.ndarray  # [convs, groups]
    fixed_in: np.ndarray
    fixed_out: np.ndarray
    pixels: np.ndarray
    area: np.ndarray
    names: tuple[str, ...] = ("macs", "params", "activations", "peak_activations")
    calls: list[int] = field(default_factory=list)

    def evaluate(self, widths: np.ndarray) -> dict[str, np.ndarray]:
        widths = np.asarray(widths, dtype=np.float64)
        self.calls.append(int(np.prod(widths.shape[:-1], dtype=int)))
        read = widths @ self.inside.T + self.fixed_in
        written = widths @ self.outside.T + self.fixed_out
        pairs = read * written * self.area
        maps = written * self.pixels
        # what a conv reads is alive together with what it writes
        alive = (read + written) * self.pixels
        return {
            "macs": pairs @ self.pixels,
            "params": pairs.sum(-1) + written.sum(-1),
            "activations": maps.sum(-1),
            "peak_activations": alive.max(-1),
        }


@dataclass
class FakeGraph:
    model: nn.Module
    groups: tuple[FakeGroup, ...]
    frozen: tuple[FakeFrozen, ...]
    costs: FakeCosts
    unsupported: tuple[object, ...] = ()

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.model.state_dict(keep_vars=True))


def costs(widths: Sequence[int], convs: Sequence[FakeConv]) -> FakeCosts:
    """Build the cost model; a depthwise conv reads one channel per output."""
    inside, outside = np.zeros((len(convs), len(widths))), np.zeros((len(convs), len(widths)))
    fixed_in, fixed_out = np.zeros(len(convs)), np.zeros(len(convs))
    for row, conv in enumerate(convs):
        for group in conv.inputs:
            inside[row, group] += 0 if conv.depthwise else 1
        fixed_in[row] = 1 if conv.depthwise else conv.frozen_in
        fixed_out[row] = conv.frozen_out
        if conv.output is not None:
            outside[row, conv.output] = 1
    pixels = np.array([conv.pixels for conv in convs], dtype=float)
    area = np.array([conv.kernel**2 for conv in convs], dtype=float)
    return FakeCosts(inside, outside, fixed_in, fixed_out, pixels, area)


def build(widths: Sequence[int], convs: Sequence[FakeConv], *, seed: int = 0, norms: bool = True) -> FakeGraph:
    """Build modules, members and costs; each conv with a group as output gets a batch norm `<name>_bn` if `norms`."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Module()
    members: list[list[FakeMember]] = [[] for _ in widths]
    names: list[str | None] = [None] * len(widths)
    for conv in convs:
        out = conv.frozen_out if conv.output is None else widths[conv.output]
        read = conv.frozen_in + sum(widths[group] for group in conv.inputs)
        layer = nn.Conv2d(1 if conv.depthwise else read, out, conv.kernel, bias=False)
        with torch.no_grad():
            layer.weight.normal_(generator=generator)
        path = conv.name.split(".")
        parent = model
        for part in path[:-1]:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(path[-1], layer)
        place = conv.frozen_in
        for group in () if conv.depthwise else conv.inputs:
            index = np.arange(place, place + widths[group])[:, None]
            members[group].append(FakeMember(f"{conv.name}.weight", 1, "consumer", index))
            place += widths[group]
        if conv.output is None:
            continue
        whole = np.arange(out)[:, None]
        members[conv.output].append(FakeMember(f"{conv.name}.weight", 0, "producer", whole))
        names[conv.output] = names[conv.output] or conv.name
        if norms:
            norm = nn.BatchNorm2d(out)
            with torch.no_grad():
                norm.weight.normal_(generator=generator)
            parent.add_module(f"{path[-1]}_bn", norm)
            for part in ("weight", "bias", "running_mean", "running_var"):
                members[conv.output].append(FakeMember(f"{conv.name}_bn.{part}", 0, "producer", whole))
    groups = tuple(
        FakeGroup(name or f"group{number}", width, tuple(member))
        for number, (name, width, member) in enumerate(zip(names, widths, members, strict=True))
    )
    frozen = tuple(
        FakeFrozen(
            conv.name,
            conv.frozen_out,
            "it is an output of the model",
            (FakeMember(f"{conv.name}.weight", 0, "producer", np.arange(conv.frozen_out)[:, None]),),
        )
        for conv in convs
        if conv.output is None
    )
    return FakeGraph(model, groups, frozen, costs(widths, convs))


def small(seed: int = 0) -> FakeGraph:
    """A stem, a residual stage (stream and two inner widths, one depthwise), a concatenation and a head."""
    convs = (
        FakeConv("stem", (), 0, pixels=256, frozen_in=3),
        FakeConv("layer1.0.conv1", (0,), 1, pixels=256),
        FakeConv("layer1.0.conv2", (1,), 0, pixels=256),
        FakeConv("layer1.1.conv1", (0,), 2, pixels=256, kernel=1),
        FakeConv("layer1.1.dw", (2,), 2, pixels=256, depthwise=True),
        FakeConv("layer1.1.conv2", (2,), 0, pixels=256, kernel=1),
        FakeConv("layer2.conv", (0, 2), 3, pixels=64),
        FakeConv("fc", (3,), None, kernel=1, frozen_out=10),
    )
    return build((16, 12, 24, 31), convs, seed=seed)


def resnet50() -> FakeGraph:
    """Widths, MACs and couplings of a ResNet-50 (about 4.1 G MACs)."""
    widths, convs = [64], [FakeConv("conv1", (), 0, pixels=112 * 112, kernel=7, frozen_in=3)]
    previous = 0
    for stage, (blocks, planes, side) in enumerate(((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)), start=1):
        stream = len(widths)
        widths.append(planes * 4)
        convs.append(FakeConv(f"layer{stage}.0.down", (previous,), stream, pixels=side**2, kernel=1))
        for block in range(blocks):
            inner, name = len(widths), f"layer{stage}.{block}"
            widths += [planes, planes]
            read = previous if block == 0 else stream
            convs.append(FakeConv(f"{name}.conv1", (read,), inner, pixels=side**2, kernel=1))
            convs.append(FakeConv(f"{name}.conv2", (inner,), inner + 1, pixels=side**2))
            convs.append(FakeConv(f"{name}.conv3", (inner + 1,), stream, pixels=side**2, kernel=1))
        previous = stream
    convs.append(FakeConv("fc", (previous,), None, kernel=1, frozen_out=1000))
    return build(widths, convs)


def densenet201() -> FakeGraph:
    """Widths and couplings of a DenseNet-201: every layer of a block reads all before it."""
    widths, convs = [64], [FakeConv("conv0", (), 0, pixels=112 * 112, kernel=7, frozen_in=3)]
    reads = [0]
    for stage, (layers, side) in enumerate(((6, 56), (12, 28), (48, 14), (32, 7)), start=1):
        for layer in range(layers):
            inner, name = len(widths), f"denseblock{stage}.layer{layer}"
            widths += [128, 32]
            convs.append(FakeConv(f"{name}.conv1", tuple(reads), inner, pixels=side**2, kernel=1))
            convs.append(FakeConv(f"{name}.conv2", (inner,), inner + 1, pixels=side**2))
            reads = [*reads, inner + 1]
        if stage < 4:
            out = sum(widths[group] for group in reads) // 2
            widths.append(out)
            convs.append(FakeConv(f"transition{stage}", tuple(reads), len(widths) - 1, pixels=side**2, kernel=1))
            reads = [len(widths) - 1]
    convs.append(FakeConv("classifier", tuple(reads), None, kernel=1, frozen_out=1000))
    return build(widths, convs)
