"""Seconds and peak memory of indexing a COCO split of 100,000 images with 1,000,000 boxes.

    python benchmarks/index.py
    python benchmarks/index.py --corners 20     # each box has an outline of so many corners

Every image header is read; outlines are read as for a segmentation model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import random
import tempfile
import time
from pathlib import Path

import _common


def make_split(folder: Path, images: int, boxes: int, corners: int) -> Path:
    """A train folder of hard links to one JPEG and its annotation file."""
    from PIL import Image

    train = folder / "train"
    train.mkdir()
    Image.new("RGB", (640, 480)).save(train / "0.jpg")
    for i in range(1, images):
        if i % 10_000 == 0:  # file systems limit the links to one file
            (train / f"{i}.jpg").write_bytes((train / "0.jpg").read_bytes())
        else:
            os.link(train / f"{i // 10_000 * 10_000}.jpg", train / f"{i}.jpg")
    rng = random.Random(0)
    with (train / "_annotations.coco.json").open("w") as out:
        records = (json.dumps(_image(i)) for i in range(images))
        categories = [{"id": i, "name": f"class{i}", "supercategory": "none"} for i in range(80)]
        out.write(f'{{"categories": {json.dumps(categories)}, "images": [{",".join(records)}], ')
        out.write('"annotations": [')
        for i in range(boxes):
            out.write("," * (i > 0) + json.dumps(_annotation(i, i % images, corners, rng)))
        out.write("]}")
    return folder


def _image(i: int) -> dict[str, object]:
    return {"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480, "license": 1}


def _annotation(i: int, image: int, corners: int, rng: random.Random) -> dict[str, object]:
    x, y, w, h = rng.uniform(0, 500), rng.uniform(0, 400), rng.uniform(5, 140), rng.uniform(5, 80)
    box = [round(value, 2) for value in (x, y, w, h)]
    category = rng.randrange(80)
    record = {"id": i, "image_id": image, "category_id": category, "bbox": box}
    record |= {"area": w * h, "iscrowd": 0}
    if corners:
        angles = [2 * math.pi * k / corners for k in range(corners)]
        ring = [(x + w * (1 + math.cos(a)) / 2, y + h * (1 + math.sin(a)) / 2) for a in angles]
        record["segmentation"] = [[round(value, 2) for corner in ring for value in corner]]
    return record


def work(args: argparse.Namespace) -> dict[str, float]:
    """Write the split, then index it; the peak before is reported too, as it bounds what the index
    added.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_split(Path(folder), args.images, args.boxes, args.corners)
        from rfdetr.data.layout import find_splits, load_index

        before = _common.peak_memory_gb()
        start = time.perf_counter()
        index = load_index(find_splits(folder), "train", masks=args.corners > 0)
        seconds = time.perf_counter() - start
    return {
        "index_s": seconds,
        "peak_before_gb": before,
        "peak_gb": _common.peak_memory_gb(),
        "index_mb": len(pickle.dumps(index)) / 1e6,
        "boxes": float(len(index.boxes)),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Size of the split."""
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=1_000_000)
    parser.add_argument(
        "--corners", type=int, default=0, help="of each box's outline; 0: no outlines"
    )


if __name__ == "__main__":
    _common.main(work, add_arguments)
