"""Seconds to `import rfdetr`, and from process start to an RFDETRNano's first prediction.

    python benchmarks/start.py

The weights are random.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import _common

FIRST_PREDICTION = """
import numpy, rfdetr
model = rfdetr.RFDETRNano(pretrain_weights=None)
model.predict(numpy.zeros((480, 640, 3), numpy.uint8), threshold=0.9)
"""


def work(_: argparse.Namespace) -> dict[str, float]:
    """Whole processes, as a user's script is one."""
    seconds = {}
    for name, code in (
        ("torch_s", "import torch"),
        ("import_s", "import rfdetr"),
        ("first_prediction_s", FIRST_PREDICTION),
    ):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        seconds[name] = time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    _common.main(work)
