"""Small layers that several parts of the network share. Letters as in `rfdetr.models`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

_SCORES_AT_ONCE = 3 * 2**19  # bytes of attention: what the cache of a core holds


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over tensors (B, heads, N, width of a head): PyTorch's fused kernel.

    On CPUs its backward pass for bfloat16 is slow: ours takes half of the time.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value)
    q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    if torch.compiler.is_compiling():
        return torch.bmm(_attention_weights(q, k), v).view(query.shape)
    return _AttentionInParts.apply(q, k, v).view(query.shape)  # type: ignore[no-any-return, no-untyped-call]


class _AttentionInParts(torch.autograd.Function):
    """Softmax attention over rows (B heads, N, width), so many at a time that their scores stay in
    the cache. The backward pass computes them again (as FlashAttention does, arXiv 2205.14135,
    section 3.1): a step of RFDETRNano is as fast as if they were kept, and its peak 0.3 GB lower.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        out = torch.empty_like(query)
        for q, k, v, part in _in_parts(query, key, value, out):
            torch.bmm(_attention_weights(q, k), v, out=part)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor, ...]:
        inputs = ctx.saved_tensors
        gradients = tuple(torch.empty_like(x) for x in inputs)
        scale = inputs[0].shape[-1] ** -0.5
        for q, k, v, of_part, of_q, of_k, of_v in _in_parts(*inputs, of_out, *gradients):
            weights = _attention_weights(q, k)
            torch.bmm(weights.transpose(1, 2), of_part, out=of_v)
            of_weights = torch.bmm(of_part, v.transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, q.dtype)
            torch.baddbmm(of_q, of_scores, k, beta=0, alpha=scale, out=of_q)
            torch.baddbmm(of_k, of_scores.transpose(1, 2), q, beta=0, alpha=scale, out=of_k)
        return gradients


def _in_parts(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (rows, N, width), some rows of all at a time."""
    scores = first.shape[1] ** 2 * first.element_size()
    count = max(1, _SCORES_AT_ONCE // scores)
    return zip(*(x.split(count) for x in (first, *others)), strict=True)  # type: ignore[no-untyped-call]


def _attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """(rows, N, width) twice -> (rows, N, N), which sum to 1 along the last."""
    nothing, scale = query.new_zeros(1, 1, 1), query.shape[-1] ** -0.5
    return torch.baddbmm(nothing, query, key.transpose(1, 2), beta=0, alpha=scale).softmax(-1)


class Linear(nn.Linear):
    """A linear layer, of which `relu=True` gives the positive part."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias, relu)


def linear(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """x (..., in), `weight` (out, in), `bias` (out,) -> (..., out), with `relu` its positive part.

    Under bfloat16 autocast on a CPU one oneDNN product adds the bias and cuts off what is negative;
    PyTorch's own would be led by a copy of the bias to every row, and followed by another pass.
    """
    if is_fused(x):
        low = (tensor.to(torch.bfloat16) for tensor in (x, weight, bias))
        return _FusedLinear.apply(*low, relu)  # type: ignore[no-any-return, no-untyped-call]
    product = F.linear(x, weight, bias)
    # Not in place: of a view, such as this, the gradient would be copied twice.
    return F.relu(product) if relu else product


def is_fused(x: Tensor) -> bool:
    """Whether products of `x` run by oneDNN's operators, which are private: are they there?"""
    low = x.device.type == "cpu" and autocast_dtype(x) == torch.bfloat16
    if not low or torch.compiler.is_compiling():
        return False
    operators = ("_linear_pointwise", "_is_mkldnn_bf16_supported")
    there = all(hasattr(torch.ops.mkldnn, name) for name in operators)
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast gives to products of `x`; None where it is off."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        activation = "relu" if relu else "none"
        out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
        ctx.save_for_backward(x, weight, out if relu else None)
        return out  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        if out is not None:
            of_out = torch.ops.aten.threshold_backward(of_out, out, 0)
        rows = of_out.reshape(-1, weight.shape[0])
        of_x = (rows @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_x, None, None, None
        return of_x, rows.t() @ x.reshape(-1, weight.shape[1]), rows.sum(0), None


def linear_of_recomputed(
    cheap: nn.Module, x: Tensor, linear: nn.Module, recompute: bool = True
) -> Tensor:
    """linear(cheap(x)); in training cheap(x) is not kept for the backward pass but recomputed, of
    x, which is kept. (Not with `recompute=False`, nor by torch's compiler, which chooses itself.)

    Together with `DecoderLayer`, which feeds forward image by image, this takes the peak of a
    training step of RFDETRNano from 3.9 to 3.3 GB, and no time.
    """
    if not (recompute and linear.training) or torch.compiler.is_compiling():
        return linear(cheap(x))  # type: ignore[no-any-return]
    low = autocast_dtype(x)

    def compute(x: Tensor) -> Tensor:
        cast = nullcontext() if low is None else torch.autocast(x.device.type, low)
        with cast:
            return cheap(x).to(low)  # type: ignore[no-any-return]

    y: Tensor | None = compute(x)

    def pack(kept: Tensor) -> Tensor | torch.Size:
        return kept.shape if kept is y or kept._base is y else kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return compute(x).view(kept)

    with saved_tensors_hooks(pack, unpack):
        result: Tensor = linear(y)
    y = None  # which `pack` would keep
    return result


class MLP(nn.Module):
    """Linear layers with ReLU between them: `widths` (in, hidden..., out), made by `linear`."""

    def __init__(self, *widths: int, linear: Callable[[int, int], nn.Module] = Linear) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        for layer in self.layers[:-1]:
            x = layer(x, relu=True)
        return self.layers[-1](x)  # type: ignore[no-any-return]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map; no copy where the map is channels last in memory."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w), channels last in memory."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def init_linears(module: nn.Module) -> None:
    """Xavier matrices and zero biases for every linear layer inside `module`, in place."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
