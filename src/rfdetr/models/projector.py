"""Projector: the encoder's maps to one feature map per level, by a C2f block each.

As in LW-DETR (arXiv 2406.03459). Letters as in `rfdetr.models`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.errors import InputError
from rfdetr.models.layers import ChannelNorm


class ConvNorm(nn.Module):
    """Convolution without bias, LayerNorm over channels, activation."""

    activation: Callable[[Tensor], Tensor] = staticmethod(F.silu)

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.norm = ChannelNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        return self.activation(self.norm(self.conv(x)))


class C2f(nn.Module):
    """A 1x1 convolution, a chain of bottlenecks, and a 1x1 convolution over all their outputs.

    The first bottleneck takes half of the channels: 2 halves + 3 outputs of a half are merged.
    """

    def __init__(self, inputs: int, channels: int, bottlenecks: int = 3) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = ConvNorm(inputs, channels, 1)
        chain = (
            nn.Sequential(ConvNorm(half, half, 3), ConvNorm(half, half, 3))
            for _ in range(bottlenecks)
        )
        self.bottlenecks = nn.ModuleList(chain)
        self.merge = ConvNorm(half * (2 + bottlenecks), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, channels, h, w)."""
        parts = list(self.reduce(x).chunk(2, dim=1))
        for bottleneck in self.bottlenecks:
            parts.append(bottleneck(parts[-1]))
        return self.merge(torch.cat(parts, dim=1))  # type: ignore[no-any-return]


class Level(nn.Module):
    """One feature level: resample every map, concatenate, C2f, LayerNorm."""

    def __init__(self, width: int, num_maps: int, channels: int, scale: float) -> None:
        super().__init__()
        self.resample = nn.ModuleList(resampler(width, scale) for _ in range(num_maps))
        resampled = width // 2 if scale == 2.0 else width
        self.mix = C2f(resampled * num_maps, channels)
        self.norm = ChannelNorm(channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, D, h, w) each -> one (B, C, h scale, w scale)."""
        resampled = [resample(x) for resample, x in zip(self.resample, maps, strict=True)]
        return self.norm(self.mix(torch.cat(resampled, dim=1)))  # type: ignore[no-any-return]


def resampler(width: int, scale: float) -> nn.Module:
    """Scales a map of `width` channels: by 2 (and half of the channels), 1, or 0.5."""
    if scale == 2.0:
        return nn.ConvTranspose2d(width, width // 2, 2, stride=2)
    if scale == 1.0:
        return nn.Identity()
    if scale == 0.5:
        halved = ConvNorm(width, width, 3, stride=2)
        halved.activation = F.relu
        return halved
    raise InputError(f"projector scale {scale} is not one of 2, 1, 0.5")


class Projector(nn.Module):
    """Maps of the encoder to the decoder's levels, in the order of `scales`: finest first."""

    def __init__(self, width: int, num_maps: int, channels: int, scales: Sequence[float]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Level(width, num_maps, channels, scale) for scale in scales)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, D, h, w) -> one (B, C, h, w) for each level."""
        return [level(maps) for level in self.levels]
