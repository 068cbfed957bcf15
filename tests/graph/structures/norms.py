"""Normalisations, their affine parameters, layer scales, slopes and fixed buffers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from structures._case import Net, case, conv, head


def after(norm: nn.Module) -> nn.Module:
    """stem, norm, convolution, head."""
    return Net(
        lambda m, x: m.head(m.c(m.norm(m.stem(x)).relu())), stem=conv(3, 8), norm=norm, c=conv(8, 6), head=head(6)
    )  # fmt: skip


@case("batch norm", "stem:8 c:6")
def _() -> nn.Module:
    return after(nn.BatchNorm2d(8))


@case("batch norm without affine", "stem:8 c:6")
def _() -> nn.Module:
    return after(nn.BatchNorm2d(8, affine=False))


@case("batch norm without running statistics", "stem:8 c:6")
def _() -> nn.Module:
    return after(nn.BatchNorm2d(8, track_running_stats=False))


@case("group norm, two groups", "stem:4 c:6", exact=False)
def _() -> nn.Module:
    return after(nn.GroupNorm(2, 8))


@case("group norm, one group", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    return after(nn.GroupNorm(1, 8))


@case("group norm, a group for each channel", "stem:8 c:6")
def _() -> nn.Module:
    return after(nn.GroupNorm(8, 8))


@case("group norm without affine", "stem:4 c:6", exact=False)
def _() -> nn.Module:
    return after(nn.GroupNorm(2, 8, affine=False))


@case("instance norm", "stem:8 c:6")
def _() -> nn.Module:
    return after(nn.InstanceNorm2d(8, affine=True, track_running_stats=True))


@case("instance norm without affine", "stem:8 c:6")
def _() -> nn.Module:
    return after(nn.InstanceNorm2d(8))


@case("local response norm", "c:6")
def _() -> nn.Module:
    return after(nn.LocalResponseNorm(3, alpha=1.0))


class ChannelsFirst(nn.Module):
    """ConvNeXt's layer norm over dimension 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class LayerNorm2d(nn.LayerNorm):
    """timm's and torchvision's layer norm over dimension 1, by permutation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class GlobalResponse(nn.Module):
    """GRN of ConvNeXt v2, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 1, 1, width)), nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        strength = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * strength / (strength.mean(-1, keepdim=True) + 1e-6)) + self.beta + x


class RootMeanSquare(nn.Module):
    """RMS norm written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def last(norm: nn.Module) -> nn.Module:
    """A norm on channels-last features between two linear layers."""
    return Net(
        lambda m, x: m.head(m.fc(m.norm(m.stem(x).permute(0, 2, 3, 1))).relu().permute(0, 3, 1, 2)),
        stem=conv(3, 8), norm=norm, fc=nn.Linear(8, 6), head=head(6),
    )  # fmt: skip


@case("layer norm, channels last", "stem:8 fc:6", exact=False)
def _() -> nn.Module:
    return last(nn.LayerNorm(8))


@case("layer norm without affine", "stem:8 fc:6", exact=False)
def _() -> nn.Module:
    return last(nn.LayerNorm(8, elementwise_affine=False))


@case("layer norm without bias", "stem:8 fc:6", exact=False)
def _() -> nn.Module:
    return last(nn.LayerNorm(8, bias=False))


@case("layer norm cut at 90%", "stem:384", exact=False, share=0.9, shape=(1, 3, 4, 4))
def _() -> nn.Module:
    return Net(
        lambda m, x: m.fc(m.norm(m.stem(x).permute(0, 2, 3, 1)).mean((1, 2))),
        stem=conv(3, 384, 1), norm=nn.LayerNorm(384), fc=nn.Linear(384, 5),
    )  # fmt: skip


@case("layer norm over channels and space", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    return after(nn.LayerNorm([8, 8, 8]))


@case("layer norm, channels first", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    return after(ChannelsFirst(8))


@case("layer norm by permutation", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    return after(LayerNorm2d(8))


@case("RMS norm", "stem:8 fc:6", exact=False)
def _() -> nn.Module:
    return last(nn.RMSNorm(8))


@case("RMS norm written out", "stem:8 fc:6", exact=False)
def _() -> nn.Module:
    return last(RootMeanSquare(8))


@case("global response norm", "stem:8 fc:6", exact=False)
def _() -> nn.Module:
    return last(GlobalResponse(8))


@case("L2 normalised features", "stem:8 fc:6", exact=True)
def _() -> nn.Module:
    return Net(
        lambda m, x: m.fc2(F.normalize(m.fc(m.stem(x).mean((2, 3))), dim=-1)),
        stem=conv(3, 8), fc=nn.Linear(8, 6), fc2=nn.Linear(6, 5),
    )  # fmt: skip


@case("layer scale", "stem:8 fc1:12")
def _() -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        return m.head(x + m.gamma * m.fc2(m.fc1(x).relu()))

    return Net(
        run, stem=conv(3, 8), fc1=conv(8, 12, 1), fc2=conv(12, 8, 1), gamma=nn.Parameter(torch.full((8, 1, 1), 1e-6)),
        head=head(8),
    )  # fmt: skip


@case("PReLU, one slope a channel", "stem:8 c:6")
def _() -> nn.Module:
    return after(nn.PReLU(8))


@case("PReLU, one slope", "stem:8 c:6")
def _() -> nn.Module:
    return after(nn.PReLU())


class Standardised(nn.Conv2d):
    """Weight standardisation as in BiT."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(var + 1e-6)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledStandardised(nn.Conv2d):
    """timm's ScaledStdConv2d of the NF-nets: standardised through batch_norm, with a gain."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=(self.gain * self.scale).view(-1), training=True, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=self.padding)


@case("weight standardisation", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    return Net(lambda m, x: m.head(m.c(m.stem(x).relu())), stem=conv(3, 8), c=Standardised(8, 6, 3), head=head(6))


@case("scaled weight standardisation", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.stem(x).relu()).relu()), stem=ScaledStandardised(3, 8), c=ScaledStandardised(8, 6),
        head=head(6),
    )  # fmt: skip


class Blur(nn.Module):
    """Blur pool: a fixed depthwise kernel, stored once for each channel or once for all."""

    def __init__(self, width: int, *, shared: bool) -> None:
        super().__init__()
        kernel = torch.tensor([1.0, 2.0, 1.0])
        square = (kernel[:, None] * kernel[None]) / 16
        self.register_buffer("kernel", square[None, None] if shared else square.repeat(width, 1, 1, 1))
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        if len(self.kernel) > 1:
            return F.conv2d(x, self.kernel, stride=2, groups=self.kernel.shape[0])
        return F.conv2d(x, self.kernel.expand(self.width, 1, 3, 3), stride=2, groups=self.width)


@case("blur pool", "stem:8 c:6")
def _() -> nn.Module:
    return after(Blur(8, shared=False))


@case("blur pool, one kernel expanded", "stem:8 c:6")
def _() -> nn.Module:
    return after(Blur(8, shared=True))


@case("weight norm, new style", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.stem(x).relu()).relu()), stem=conv(3, 8),
        c=parametrizations.weight_norm(conv(8, 6)), head=head(6),
    )  # fmt: skip


@case("weight norm, old style", "stem:8 c:6", exact=False)
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.stem(x).relu()).relu()), stem=conv(3, 8), c=torch.nn.utils.weight_norm(conv(8, 6)),
        head=head(6),
    )  # fmt: skip


@case("spectral norm, new style", "stem:8 c:6", macs=False, exact=False)
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.stem(x).relu()).relu()), stem=conv(3, 8),
        c=parametrizations.spectral_norm(conv(8, 6)), head=head(6),
    )  # fmt: skip


@case("spectral norm, old style", "stem:8 c:6", macs=False, exact=False)
def _() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.stem(x).relu()).relu()), stem=conv(3, 8), c=torch.nn.utils.spectral_norm(conv(8, 6)),
        head=head(6),
    )  # fmt: skip


@case("masks of torch.nn.utils.prune", "stem:8 c:6")
def _() -> nn.Module:
    from torch.nn.utils import prune

    c = conv(8, 6)
    prune.l1_unstructured(c, "weight", amount=0.5)
    return Net(lambda m, x: m.head(m.c(m.stem(x).relu()).relu()), stem=conv(3, 8), c=c, head=head(6))
