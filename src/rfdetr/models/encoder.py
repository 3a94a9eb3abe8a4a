"""Encoder and projector: from an image to the feature maps that the decoder reads.

The encoder is a windowed DINOv2 vision transformer (arXiv 2304.07193). It differs from plain DINOv2
in two ways. Most blocks attend inside windows of the image, and the states after several blocks are
the output, not the last one alone. The projector makes one map per level of them, by a C2f block
each, as in LW-DETR (arXiv 2406.03459).

Letters as in `rfdetr.models`. An image is cut into windows x windows of N tokens: a copy of the
class token, of the registers (which carry no position), and the window's patches. A row of a batch
of tokens is a window: (B windows^2, N, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rfdetr.errors import InputError
from rfdetr.geometry.boxes import at_least_float32
from rfdetr.models.layers import ChannelNorm, Linear, attention, linear_of_recomputed


def drop_path(branch: Tensor, rate: float | Tensor, training: bool) -> Tensor:
    """Stochastic depth (arXiv 1603.09382) of a residual `branch` (rows, N, D), in training alone.

    Each row becomes 0 with probability `rate`; the others are scaled up, which keeps the mean.
    """
    if not training or (isinstance(rate, float) and rate == 0.0):
        return branch
    keep = torch.rand(branch.shape[0], 1, 1, dtype=torch.float32, device=branch.device) >= rate
    return branch * keep / (1.0 - rate)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale; the tokens of a row attend to each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.drop_path = 0.0
        self.drop_rate: Tensor | None = None  # the same, where it is no constant of a graph
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.scale1 = nn.Parameter(torch.ones(width))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = Linear(width, 4 * width)
        self.activation = nn.GELU()
        self.fc2 = Linear(4 * width, width)
        self.scale2 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, recompute: bool = True) -> Tensor:
        """Tokens (rows, N, D) -> (rows, N, D); `recompute` as in `linear_of_recomputed`."""
        kept = self.drop_rate if torch.compiler.is_compiling() else None
        rate = self.drop_path if kept is None else kept
        branch = drop_path(self.attend(x, recompute), rate, self.training)
        x = torch.addcmul(x, branch, self.scale1)
        branch = drop_path(self.feed_forward(x, recompute), rate, self.training)
        return torch.addcmul(x, branch, self.scale2)

    def attend(self, x: Tensor, recompute: bool = True) -> Tensor:
        """Multi-head self-attention."""
        qkv = linear_of_recomputed(self.norm1, x, self.qkv, recompute)
        qkv = qkv.view(*qkv.shape[:-1], 3, self.heads, -1)  # rows N 3 heads D/heads
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        attended = attention(query, key, value)  # rows heads N D/heads
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def feed_forward(self, x: Tensor, recompute: bool = True) -> Tensor:
        """Two linear layers with GELU between them."""
        hidden = linear_of_recomputed(self.norm2, x, self.fc1, recompute)
        return linear_of_recomputed(self.activation, hidden, self.fc2, recompute)


class Encoder(nn.Module):
    """Images (B, 3, H, W) to feature maps (B, D, H / patch, W / patch).

    One map for each of `out_feature_indexes`: the states after so many blocks. Block i (from 0) of
    a number among them attends over the whole image, all others inside windows.
    """

    def __init__(  # noqa: PLR0913 - what a vision transformer is
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        patch_size: int,
        position_grid: int,
        num_windows: int,
        num_registers: int,
        out_feature_indexes: Sequence[int],
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.position_grid = position_grid
        self.num_windows = num_windows
        self.out_feature_indexes = tuple(out_feature_indexes)
        self.gradient_checkpointing = gradient_checkpointing
        self.patch_embed = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        # Part of DINOv2 and of its published files; plays no part in detection.
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)
        registers = torch.empty(1, num_registers, width)
        self.register_tokens = nn.Parameter(registers) if num_registers else None
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + position_grid**2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        # Blocks after the last output are not run; ranks would wait for their gradients.
        self.blocks[self.out_feature_indexes[-1] :].requires_grad_(False)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for token in (self.class_token, self.register_tokens, self.position_embeddings):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth from 0 in the first block to `rate` in the last."""
        last = max(len(self.blocks) - 1, 1)
        for index, block in enumerate(self.blocks):
            block.drop_path = rate * index / last  # type: ignore[assignment]

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map for each of `out_feature_indexes`; blocks after the last of them are not run."""
        grid = self.grid_of(images)
        x = self.embed(images)
        maps = []
        for index in range(self.out_feature_indexes[-1]):
            x = self.run_block(index, x)
            if index + 1 in self.out_feature_indexes:
                maps.append(self.to_map(self.norm(x), grid))
        return maps

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns (h, w) of the image's patches. Raises `InputError` for other sizes."""
        (height, width), patch = images.shape[-2:], self.patch_size
        step = patch * self.num_windows
        if height % step or width % step:
            rule = f"multiples of patch_size {patch} x num_windows {self.num_windows} = {step}"
            raise InputError(f"image height {height} and width {width} must be {rule}")
        return height // patch, width // patch

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B windows^2, N, D), the windows of an image adjacent."""
        grid = self.grid_of(images)
        patches = self.patch_embed(images.to(self.patch_embed.weight.dtype)).permute(0, 2, 3, 1)
        windows = partition_windows(patches + self.positions(grid), self.num_windows)
        tokens = [self.class_token + self.position_embeddings[:, :1]]
        if self.register_tokens is not None:
            tokens.append(self.register_tokens)
        copies = (token.expand(windows.shape[0], -1, -1) for token in tokens)
        return torch.cat((*copies, windows), dim=1)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings (1, h, w, D) of the patches of a `grid` (h, w)."""
        side = self.position_grid
        positions = self.position_embeddings[:, 1:].reshape(1, side, side, -1)
        return positions if grid == (side, side) else resample_positions(positions, grid)

    def run_block(self, index: int, x: Tensor) -> Tensor:
        """Block `index` on tokens (B windows^2, N, D), inside windows or over the whole image."""
        block, shape = self.blocks[index], x.shape
        if index in self.out_feature_indexes:  # a row is an image: (B, windows^2 N, D)
            x = x.reshape(-1, self.num_windows**2 * shape[1], shape[2])
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            x = checkpoint(block, x, False, use_reentrant=False)  # the whole block anew
        else:
            x = block(x)
        return x.view(shape)

    def to_map(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens back in place: (B windows^2, N, D) -> (B, D, h, w), channels last."""
        first = 1 + (0 if self.register_tokens is None else self.register_tokens.shape[1])
        return join_windows(x[:, first:], self.num_windows, grid).permute(0, 3, 1, 2)


def partition_windows(x: Tensor, num_windows: int) -> Tensor:
    """(B, h, w, D) -> (B windows^2, patches of a window, D), windows row by row."""
    if num_windows == 1:
        return x.flatten(1, 2)
    rows, columns, width = x.shape[1] // num_windows, x.shape[2] // num_windows, x.shape[3]
    x = x.reshape(-1, num_windows, rows, num_windows, columns, width)
    return x.transpose(2, 3).reshape(-1, rows * columns, width)


def join_windows(x: Tensor, num_windows: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `partition_windows`, for a `grid` of (h, w) patches: -> (B, h, w, D)."""
    rows, columns = grid[0] // num_windows, grid[1] // num_windows
    x = x.reshape(-1, num_windows, num_windows, rows, columns, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, *grid, x.shape[-1])


def resample_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings (1, h, w, D) for another `grid` (h, w): bicubic, antialiased.

    Computed at least in float32, returned in the dtype of `positions`.
    """
    maps = at_least_float32(positions.permute(0, 3, 1, 2))
    resampled = F.interpolate(maps, grid, mode="bicubic", antialias=True, align_corners=False)
    return resampled.permute(0, 2, 3, 1).to(positions.dtype)


def resize_positions(embeddings: Tensor, side: int) -> Tensor:
    """Embeddings (1, 1 + n^2, D), the class token's first, for a grid of another side: `side` x
    `side` patches. The same where it has that side.
    """
    stored = math.isqrt(embeddings.shape[1] - 1)
    if stored == side:
        return embeddings
    grid = embeddings[:, 1:].reshape(1, stored, stored, -1)
    resampled = resample_positions(grid, (side, side)).flatten(1, 2)
    return torch.cat((embeddings[:, :1], resampled), dim=1)


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
