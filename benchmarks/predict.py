"""Latency of `predict` on one 640x480 image, as a user calls it, with random weights.

    python benchmarks/predict.py
    python benchmarks/predict.py --variant seg-nano --threshold 0 --optimize bfloat16
    python benchmarks/predict.py --backend openvino --optimize bfloat16 --batch 8 --python OTHER

Such a model finds nothing; with --threshold 0 everything is found, and every query's mask built at
the image's size.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import _common
import numpy as np
import torch


def add_arguments(parser: Any) -> None:
    parser.add_argument("--variant", choices=_common.VARIANTS, default="nano")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--optimize", choices=["none", "bfloat16", "float32", "int8"], default="none"
    )
    parser.add_argument("--backend", choices=["torch", "onnx", "openvino"], default="torch")
    parser.add_argument("--batch", type=int, default=1, help="images in one call")


def work(args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds per image; --optimize calls `inference` with that dtype first, and with
    --backend where the package has engines (another one runs as it is).
    """
    import rfdetr

    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    model = getattr(rfdetr, _common.VARIANTS[args.variant])(pretrain_weights=None)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    if args.backend != "torch":
        if hasattr(model, "from_export"):
            calibration = [image] * 4 if args.optimize == "int8" else None  # any: it is timed
            model.inference(backend=args.backend, dtype=args.optimize, calibration=calibration)
    elif args.optimize != "none":
        model.inference(dtype=getattr(torch, args.optimize), compile=False)
    images, how = [image] * args.batch, {"threshold": args.threshold}
    if args.batch > 1 and hasattr(model, "from_export"):
        how["batch_size"] = args.batch  # elsewhere a list is one batch
    seconds = _common.median_seconds(
        lambda: model.predict(images if args.batch > 1 else image, **how), args.repeats, warmup=3
    )
    return {"predict_ms": seconds * 1e3 / args.batch, "peak_memory_gb": _common.peak_memory_gb()}


if __name__ == "__main__":
    _common.main(work, add_arguments)
