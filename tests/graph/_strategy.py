"""Random small networks: a spec is a tuple of plain blocks that prints, and `build` makes the network from it.

Widths are kept whole by construction: every block says how many channels it gives, and takes as many as it gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from _sized import SIZED
from hypothesis import strategies as st
from torch import nn


@dataclass(frozen=True)
class Block:
    """One step of a network: its kind, a width, and a number that each kind reads in its own way."""

    kind: str
    width: int = 8
    extra: int = 2

    def __repr__(self) -> str:
        return f"{self.kind}({self.width},{self.extra})"


@dataclass(frozen=True)
class Spec:
    """A whole network: blocks, head, size of the image, and seeds."""

    blocks: tuple[Block, ...]
    head: str = "pool"
    side: int = 8
    bias: bool = True
    seed: int = 0
    share: float = 0.5


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size of the image."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def divisor(number: int, wish: int) -> int:
    """The largest divisor of `number` that is at most `wish`."""
    return next(d for d in range(min(wish, number), 0, -1) if number % d == 0)


class Plain(nn.Module):
    """Convolution, norm and nonlinearity of several sorts."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.out = block.width
        kernel, stride = ((1, 1), (3, 1), (3, 2), (5, 1))[block.extra % 4]
        self.conv = conv(width, self.out, kernel, stride=stride, bias=bias)
        self.norm = (nn.Identity(), nn.BatchNorm2d(self.out), nn.PReLU(self.out))[block.extra % 3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    """Bottleneck with a shortcut; where the widths differ, a projection or padded channels."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.out = block.width if block.extra % 3 else width
        self.c1 = conv(width, block.width, 3, bias=bias)
        self.norm = nn.BatchNorm2d(block.width)
        self.c2 = conv(block.width, self.out, 1)
        self.mode = ("same", "project", "pad")[block.extra % 3]
        if self.mode == "pad" and self.out < width:
            self.mode = "project"
        if self.mode == "project":
            self.proj = conv(width, self.out, 1)
        self.missing = self.out - width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c2(F.silu(self.norm(self.c1(x))))
        if self.mode == "project":
            x = self.proj(x)
        elif self.mode == "pad":
            x = F.pad(x, (0, 0, 0, 0, 0, self.missing))
        return F.relu(x + y)


class Dense(nn.Module):
    """The input and a few new channels, side by side."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.norm, self.c = nn.BatchNorm2d(width), conv(width, block.width, 3, bias=bias)
        self.first, self.out = block.extra % 2, width + block.width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(self.norm(x).relu())
        return torch.cat([y, x] if self.first else [x, y], 1)


class Grouped(nn.Module):
    """A grouped convolution, as many groups as fit; perhaps beside one of another number."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        groups = divisor(width, 2 + block.extra)
        self.out = groups * max(block.width // groups, 1)
        self.c = conv(width, self.out, 3, groups=groups, bias=bias)
        other = divisor(width, max(groups - 1, 1))
        self.d = conv(width, other * max(self.out // other, 1), 1, groups=other) if block.extra % 2 else None
        self.out += self.d.out_channels if self.d is not None else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(x)
        return F.relu(y if self.d is None else torch.cat([y, self.d(x)], 1))


class Depthwise(nn.Module):
    """Depthwise (with a multiplier), then one by one."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        times = 1 + block.extra % 2
        self.d = conv(width, width * times, 3, groups=width, bias=bias)
        self.norm = nn.BatchNorm2d(width * times)
        self.p, self.out = conv(width * times, block.width, 1), block.width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.p(F.relu6(self.norm(self.d(x))))


class Shuffle(nn.Module):
    """Channel shuffle in one of its spellings."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.groups, self.out, self.way = divisor(width, 2 + block.extra % 2), width, block.extra % 2
        self.c = conv(width, width, 1, groups=self.groups, bias=bias) if block.width % 2 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.c is not None:
            x = self.c(x)
        if self.way:
            return F.channel_shuffle(x, self.groups) if self.groups > 1 else x
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Split(nn.Module):
    """Parts of the width that go different ways: chunk, sizes in a list, or slices at an attribute."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.way = ("chunk", "sizes", "slice", "split")[block.extra % 4] if width > 3 else "whole"
        if self.way in ("chunk", "split") and width % 2:
            self.way = "sizes"
        first = width // 2 if self.way in ("chunk", "split") else max(width // 3, 1)
        self.sizes, self.at = [first, width - first], first
        self.a = conv(first if self.way != "whole" else width, block.width, 3, bias=bias)
        self.rest = 0 if self.way == "whole" else width - first
        self.out = block.width + self.rest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "whole":
            return self.a(x)
        if self.way == "chunk":
            p, q = x.chunk(2, 1)
        elif self.way == "split":
            p, q = torch.split(x, self.at, 1)
        elif self.way == "sizes":
            p, q = torch.split(x, self.sizes, 1)
        else:
            p, q = x[:, : self.at], x[:, self.at :]
        return torch.cat([self.a(p).relu(), q], 1)


class C2f(nn.Module):
    """Halves, one of which goes on through a bottleneck with a shortcut."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        half = max(block.width // 2, 2)
        self.cv1, self.m = conv(width, 2 * half, 1, bias=bias), conv(half, half, 3)
        self.cv2, self.out, self.shortcut = conv(3 * half, block.width, 1), block.width, block.extra % 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        y = self.m(parts[-1]).relu()
        parts.append(parts[-1] + y if self.shortcut else y)
        return self.cv2(torch.cat(parts, 1))


class Gate(nn.Module):
    """Squeeze and excite by linear layers or convolutions; or a gate by halves."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.way, self.out = block.extra % 3, width
        inner = max(block.width // 2, 1)
        if self.way == 0:
            self.f1, self.f2 = nn.Linear(width, inner), nn.Linear(inner, width, bias=bias)
        elif self.way == 1:
            self.f1, self.f2 = conv(width, inner, 1), conv(inner, width, 1, bias=bias)
        else:
            self.f1, self.out = conv(width, 2 * block.width, 1, bias=bias), block.width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == 0:
            gate = self.f2(self.f1(x.mean((2, 3))).relu()).sigmoid()
            return x * gate[:, :, None, None]
        if self.way == 1:
            return x * self.f2(self.f1(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return F.glu(self.f1(x), 1)


class Pixels(nn.Module):
    """Pixel shuffle and unshuffle, space to depth."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.way = block.extra % 3
        self.c = conv(width, 4 * max(block.width // 4, 1), 1, bias=bias) if self.way == 0 else None
        self.out = max(block.width // 4, 1) if self.way == 0 else 4 * width
        self.down = conv(self.out, block.width, 1) if self.way else None
        self.out = block.width if self.way else self.out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.c is not None:
            return F.max_pool2d(F.pixel_shuffle(self.c(x), 2), 2)
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        if self.way == 1:
            x = F.pixel_unshuffle(x, 2)
        else:
            x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        return F.interpolate(self.down(x), scale_factor=2.0)


class Twice(nn.Module):
    """A convolution that runs twice, or two that share a weight."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.out, self.way = width, block.extra % 3
        self.c = conv(width, width, 3, bias=bias)
        if self.way == 1:
            self.d = conv(width, width, 3)
            self.d.weight = self.c.weight
        elif self.way == 2:
            self.c, self.d = conv(width, block.width, 1, bias=bias), conv(width, block.width, 1)
            self.d.weight, self.out = self.c.weight, block.width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == 0:
            return self.c(self.c(x).relu())
        return self.c(x).relu() + self.d(x).tanh() if self.way == 2 else self.d(self.c(x).relu())


class Normed(nn.Module):
    """Norms over channels or groups of them: removal is not masking."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.out = width
        kinds = (
            nn.GroupNorm(1, width),
            nn.GroupNorm(divisor(width, 2), width),
            nn.LayerNorm(width),
            nn.GroupNorm(width, width),
        )
        self.norm = (*kinds, nn.InstanceNorm2d(width, affine=bias), nn.RMSNorm(width))[block.extra % 6]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.norm, nn.LayerNorm | nn.RMSNorm):
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x)


class Attention(nn.Module):
    """Attention over positions: PyTorch's layer, fused qkv with the inner width free, or a product of projections."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.way, self.out = block.extra % 3, width
        self.heads = divisor(width, 2 + block.extra % 2)
        if self.heads**2 == width:  # as many heads as features a head: PyTorch's layer then keeps its whole stream
            self.heads = 1
        self.size = max(block.width // self.heads, 1)
        if self.way == 2:  # einsum takes another way for a width of one
            self.heads, self.size = 1, max(block.width, 11)
        inner = self.heads * self.size
        if self.way == 0:
            # settling ties the stream to the heads; a concatenation cut across by heads would have nothing left
            self.into = conv(width, width, 1)
            self.attn = nn.MultiheadAttention(width, self.heads, batch_first=True, bias=bias)
        else:
            self.qkv, self.proj = nn.Linear(width, 3 * inner, bias=bias), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.into(x) if self.way == 0 else x
        shape = x.shape
        x = x.flatten(2).transpose(1, 2)
        if self.way == 0:
            y = self.attn(x, x, x, need_weights=False)[0]
        elif self.way == 1:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
            y = ((q * 0.3) @ k.transpose(-2, -1)).softmax(-1) @ v
            y = self.proj(y.transpose(1, 2).reshape(b, n, -1))
        else:
            q, k, v = self.qkv(x).chunk(3, -1)
            y = self.proj(torch.einsum("bij,bjc->bic", torch.einsum("bic,bjc->bij", q, k).softmax(-1), v))
        return (x + y).transpose(1, 2).reshape(shape)


class Shape(nn.Module):
    """Things that move channels: flips, repeats, transposed convolutions, one channel."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.way, self.out = block.extra % 5, width
        if self.way == 1:
            self.out = 2 * width
        elif self.way == 2:
            groups = divisor(width, 2)
            self.out = groups * max(block.width // groups, 1)
            self.up = nn.ConvTranspose2d(width, self.out, 2, 2, groups=groups, bias=bias)
        elif self.way == 3:
            self.one, self.c, self.out = conv(width, 1, 1), conv(1, block.width, 3, bias=bias), block.width
        elif self.way == 4:
            self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-4))
            self.register_buffer("shift", torch.ones(1, width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == 0:
            return x.flip(1)
        if self.way == 1:
            return x.repeat(1, 2, 1, 1)
        if self.way == 2:
            return F.max_pool2d(self.up(x), 2)
        if self.way == 3:
            return self.c(self.one(x).relu())
        return x * self.scale + self.shift


class Diagonal(nn.Module):
    """A square weight that code changes along its diagonal, in one of many spellings; sides are tied."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.way, self.out = block.extra % 8, width
        self.mix, self.gain = nn.Parameter(torch.zeros(width, width)), nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.kernel(x)[:, :, None, None], self.bias)

    def kernel(self, x: torch.Tensor) -> torch.Tensor:
        w, n = self.mix, x.shape[1]
        places = torch.arange(n)
        if self.way == 0:
            return w + torch.eye(n, dtype=w.dtype)
        if self.way == 1:
            return w * (places[:, None] != places)
        if self.way == 2:
            ones = torch.zeros(n, n, dtype=w.dtype)
            ones[places, places] = self.gain
            return w + ones
        if self.way == 3:
            return w + F.one_hot(places, n)
        if self.way == 4:
            return w.clone().fill_diagonal_(1.0)
        if self.way == 5:
            return w + torch.diag_embed(self.gain)
        if self.way == 6:
            return w.tril()
        return w.scatter(1, places.unsqueeze(1), 1.0)


class Numbered(nn.Module):
    """Values by the position of a channel, made in forward: the width stays, what is inside does not."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.way, self.out = block.extra % 5, width
        self.c1, self.c2 = conv(width, block.width, 3, bias=bias), conv(block.width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        values = (
            lambda: torch.arange(n, dtype=x.dtype) / n,
            lambda: torch.linspace(0.5, 2, n, dtype=x.dtype),
            lambda: torch.hann_window(n, dtype=x.dtype) + 0.1,
            lambda: torch.ones(n, dtype=x.dtype).cumsum(0) / n,
            lambda: (torch.arange(n) < 2).to(x.dtype) + 0.5,
        )[self.way]()
        return self.c2(self.c1(x).relu()) + x * values[:, None, None]


# Whether the random networks have blocks whose inside reaches an output in training mode alone.
TRAINING_HEADS = True


class TrainingHead(nn.Module):
    """In training mode the network also returns what is inside: through an auxiliary layer, raw, or a part of it."""

    def __init__(self, width: int, block: Block, bias: bool) -> None:
        super().__init__()
        self.c, self.d, self.out = conv(width, block.width, 3, bias=bias), conv(block.width, width, 1), width
        self.way, self.seen = block.extra % 3, None
        self.aux = conv(block.width, 2, 1) if self.way == 0 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(x).relu()
        if self.training:
            self.seen = y[:, : self.c.out_channels // 2] if self.way == 1 else y if self.aux is None else self.aux(y)
        return self.d(y)


def made_by_position() -> tuple[type[nn.Module], ...]:
    """Blocks whose code makes constants by the position of a channel."""
    return Diagonal, Numbered


BLOCKS: dict[str, type[nn.Module]] = {
    c.__name__: c
    for c in (
        Plain, Residual, Dense, Grouped, Depthwise, Shuffle, Split, C2f, Gate, Pixels, Twice, Normed, Attention, Shape,
        *made_by_position(), TrainingHead,
    )
}  # fmt: skip
BLOCKS |= SIZED
FAMILIES = {
    "convolutions": "Plain Residual Dense Grouped Depthwise Gate".split(),
    "reshapes": "Plain Residual Shuffle Split C2f Pixels Shape Grouped Dense".split(),
    "sharing": "Plain Twice Residual Gate Split Shape Depthwise".split(),
    "mixing": "Plain Normed Attention Residual Gate Dense".split(),
    "sizes": "Plain Stated Fraction Less Residual Split".split(),
}
for _family in ("convolutions", "sharing"):
    FAMILIES[_family] += [block.__name__ for block in made_by_position()]
if TRAINING_HEADS:
    FAMILIES["sharing"].append(TrainingHead.__name__)


class Network(nn.Module):
    """A stem, the blocks, and one or several heads."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        width = spec.blocks[0].width
        self.stem = conv(3, width, bias=spec.bias)
        blocks = []
        for block in spec.blocks:
            blocks.append(BLOCKS[block.kind](width, block, spec.bias))
            width = int(blocks[-1].out)
        self.blocks, self.kind = nn.ModuleList(blocks), spec.head
        # whatever the blocks tie together, this width is free
        self.neck, width = conv(width, 7, 1, bias=spec.bias), 7
        if spec.head == "flat":
            self.reduce = conv(width, 4)
            self.fc1, self.fc2 = nn.Linear(16, 6), nn.Linear(6, 3)
        elif spec.head == "map":
            self.last = conv(width, 2, 1)
        elif spec.head == "several":
            self.a, self.b = conv(width, 4), nn.Linear(width, 3)
        else:
            self.fc = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = F.relu(self.neck(x))
        inside = [block.seen for block in self.blocks if isinstance(block, TrainingHead)]
        return (self.ended(x), inside) if self.training and inside else self.ended(x)

    def ended(self, x: torch.Tensor) -> Any:
        """What the head makes of the features."""
        if self.kind == "flat":
            return self.fc2(self.fc1(F.adaptive_avg_pool2d(self.reduce(x), 2).flatten(1)).relu())
        if self.kind == "map":
            return self.last(x)
        if self.kind == "several":
            return {"map": self.a(x), "class": [self.b(x.mean((2, 3)))]}
        return self.fc(x.mean((2, 3)))


def build(spec: Spec) -> Network:
    """The network of a spec, with weights of order one."""
    from _harness import randomise

    torch.manual_seed(0)
    return randomise(Network(spec), spec.seed).eval()


def specs(family: str) -> st.SearchStrategy[Spec]:
    """Random specs of one family of blocks."""
    block = st.builds(Block, st.sampled_from(FAMILIES[family]), st.integers(4, 16), st.integers(0, 11))
    return st.builds(
        Spec,
        st.lists(block, min_size=1, max_size=5).map(tuple),
        head=st.sampled_from(["pool", "flat", "map", "several"]),
        side=st.sampled_from([7, 8]),
        bias=st.booleans(),
        seed=st.integers(0, 1000),
        share=st.sampled_from([0.25, 0.5, 0.75, 0.9]),
    )
