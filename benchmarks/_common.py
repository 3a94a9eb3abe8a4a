"""What the benchmark scripts share: work timed under one or two interpreters, as one JSON line.

    python benchmarks/predict.py --rounds 5 --python other/bin/python

A script defines `work(args) -> dict[str, float]`, timed figures of one process, and calls
`main(work)`. Every round is a fresh process, so nothing of one round warms the next; `--python
OTHER` alternates with another one (with another revision, or another implementation of the same
public interface) and prints the ratio of the medians. The figures are medians over the rounds;
"spread" has the least and the largest of each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MARK = "BENCHMARK "
VARIANTS = {"nano": "RFDETRNano", "seg-nano": "RFDETRSegNano"}


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, GB (1e9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def is_peer() -> bool:
    """Whether this interpreter has the published package, not all of whose names are ours."""
    import importlib.metadata

    return "rfdetr" in {
        (distribution.name or "").lower() for distribution in importlib.metadata.distributions()
    }


def median_seconds(function: Callable[[], Any], repeats: int, warmup: int = 1) -> float:
    """Median wall-clock seconds of one call, after `warmup` calls."""
    times = []
    for i in range(warmup + repeats):
        start = time.perf_counter()
        function()
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def write_dataset(
    folder: Path, *, images: int, size: tuple[int, int], objects: int = 12, classes: int = 3
) -> None:
    """A COCO folder of smooth, noisy pictures of (width, height): about as many bytes a pixel as
    photographs.

    Each object is outlined by an ellipse of 32 corners.
    """
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    ellipse = (np.stack((np.cos(angle), np.sin(angle)), axis=1) + 1) / 2
    width, height = size
    rng = np.random.default_rng(0)
    categories = [
        {"id": 1 + k, "name": f"class{k}", "supercategory": "none"} for k in range(classes)
    ]
    for split, count in (("train", images), ("valid", 1)):
        (folder / split).mkdir(parents=True)
        records, annotations = [], []
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8))
            pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
            noisy = (
                (pixels + rng.integers(-6, 7, pixels.shape, np.int16)).clip(0, 255).astype(np.uint8)
            )
            Image.fromarray(noisy).save(folder / split / f"{i}.jpg", quality=85)
            records.append({"id": i, "file_name": f"{i}.jpg", "width": width, "height": height})
            for k in range(objects):
                corner, extent = rng.uniform(0, 0.7, 2) * size, rng.uniform(0.05, 0.3, 2) * size
                box = [round(float(value), 2) for value in (*corner, *extent)]
                outline = (ellipse * extent + corner).ravel().round(2).tolist()
                row = {"id": objects * i + k, "image_id": i, "category_id": 1 + k % classes}
                row |= {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                annotations.append({**row, "segmentation": [outline]})
        content = {"info": {}, "licenses": [], "categories": categories}
        content |= {"images": records, "annotations": annotations}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))


def main(
    work: Callable[[argparse.Namespace], dict[str, float]],
    add_arguments: Callable[[Any], None] | None = None,
) -> None:
    """Command line of a benchmark script: measure here and, with --python, elsewhere too; print one
    JSON line.
    """
    script = Path(sys.argv[0]).resolve()
    parser = argparse.ArgumentParser(
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--python", help="another interpreter to run the same work under, in alternation"
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes per interpreter")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    if add_arguments is not None:
        add_arguments(parser)
    args = parser.parse_args()
    if args.child:
        print(MARK + json.dumps(work(args)), flush=True)
        return
    interpreters = {"ours": sys.executable} | ({"other": args.python} if args.python else {})
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in interpreters}
    for _ in range(args.rounds):
        for name, python in interpreters.items():
            rounds[name].append(_run_child(python, script, sys.argv[1:]))
    result: dict[str, Any] = {"benchmark": script.stem, "rounds": args.rounds}
    for name, figures in rounds.items():
        result[name] = _over_rounds(figures, statistics.median)
    least, most = (_over_rounds(rounds["ours"], pick) for pick in (min, max))
    result["spread"] = {key: [least[key], most[key]] for key in least}
    if args.python:
        shared = result["ours"].keys() & result["other"].keys()
        result["ratio"] = {
            key: round(result["ours"][key] / result["other"][key], 3) for key in sorted(shared)
        }
    print(json.dumps(result))


def _run_child(python: str, script: Path, arguments: list[str]) -> dict[str, float]:
    command = [python, str(script), *arguments, "--child"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise SystemExit(
            f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-3000:]}"
        )
    figures: dict[str, float] = json.loads(lines[-1][len(MARK) :])
    return figures


def _over_rounds(figures: list[dict[str, float]], pick: Callable[[Any], float]) -> dict[str, float]:
    return {key: float(f"{pick([row[key] for row in figures]):.5g}") for key in figures[0]}
