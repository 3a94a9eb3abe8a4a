"""Which precision a device computes in; without Lightning, since evaluation alone needs it too."""

from __future__ import annotations

from typing import Any

import torch


def resolve_precision(amp: bool, accelerator: Any) -> str:
    """bfloat16 autocast where the device is fast at it, float16 on older CUDA devices, else
    float32.
    """
    name = (
        accelerator.lower() if isinstance(accelerator, str) else type(accelerator).__name__.lower()
    )
    if not amp:
        return "32-true"
    if torch.cuda.is_available() and name.startswith(("auto", "gpu", "cuda")):
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"
    on_cpu = name.startswith("cpu") or (name == "auto" and not torch.backends.mps.is_available())
    return "bf16-mixed" if on_cpu and has_fast_bfloat16() else "32-true"


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware (AMX or AVX-512 BF16)."""
    # No public probe exists; a torch that lacks these is taken for a processor that does, and
    # computes in float32.
    probes = (
        getattr(torch.cpu, name, bool)
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return any(probe() for probe in probes)
