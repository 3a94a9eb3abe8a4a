"""Projector: the encoder's maps to one feature map per level, by a C2f block each (LW-DETR, arXiv
2406.03459).
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

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        activation: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        self.norm = ChannelNorm(out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h / stride, w / stride)."""
        return self.activation(self.norm(self.conv(x)))


class C2f(nn.Module):
    """1x1 convolution, a chain of bottlenecks on half of the channels, and a 1x1 convolution over
    all of them.
    """

    def __init__(self, in_channels: int, channels: int, num_bottlenecks: int = 3) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = ConvNorm(in_channels, channels, 1)
        self.bottlenecks = nn.ModuleList(
            nn.Sequential(ConvNorm(half, half, 3), ConvNorm(half, half, 3))
            for _ in range(num_bottlenecks)
        )
        self.merge = ConvNorm(half * (2 + num_bottlenecks), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, channels, h, w)."""
        parts = list(self.reduce(x).chunk(2, dim=1))
        for bottleneck in self.bottlenecks:
            parts.append(bottleneck(parts[-1]))
        return self.merge(torch.cat(parts, dim=1))  # type: ignore[no-any-return]


class Level(nn.Module):
    """One feature level: resample every map, concatenate, C2f, LayerNorm."""

    def __init__(self, width: int, num_maps: int, channels: int, scale: float) -> None:
        super().__init__()
        self.resample = nn.ModuleList(_resampler(width, scale) for _ in range(num_maps))
        resampled = width // 2 if scale == 2.0 else width
        self.mix = C2f(resampled * num_maps, channels)
        self.norm = ChannelNorm(channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, D, h, w) each -> (B, C, h scale, w scale)."""
        resampled = [resample(x) for resample, x in zip(self.resample, maps, strict=True)]
        return self.norm(self.mix(torch.cat(resampled, dim=1)))  # type: ignore[no-any-return]


def _resampler(width: int, scale: float) -> nn.Module:
    if scale == 2.0:
        return nn.ConvTranspose2d(width, width // 2, 2, stride=2)
    if scale == 1.0:
        return nn.Identity()
    if scale == 0.5:
        return ConvNorm(width, width, 3, stride=2, activation=F.relu)
    raise InputError(f"projector scale {scale} is not one of 2, 1, 0.5")


class Projector(nn.Module):
    """Feature maps of the encoder to the decoder's levels, finest first as `scales` lists them."""

    def __init__(self, width: int, num_maps: int, channels: int, scales: Sequence[float]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Level(width, num_maps, channels, scale) for scale in scales)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One (B, C, h, w) per level."""
        return [level(maps) for level in self.levels]
