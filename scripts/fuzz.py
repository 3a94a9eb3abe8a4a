"""Fuzz the readers, guided by coverage: whatever a file holds, the answer is a valid result or our
own error.

python scripts/fuzz.py [READER ...] [--seconds 600] [--findings FOLDER]; needs `pip install
atheris`, which has wheels for Linux. Each reader gets its share of the time in a process of its
own. Inputs that crash, hang or give another error are kept under FOLDER, one for each place they
fail at, and listed at the end. The property tests use the same readers.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLASSES = ("ant", "bee", "cat")
SIZE = (40, 30)  # width and height of the pictures
HANG_SECONDS = 60  # by the clock: a busy machine is no hang
UNPICKLER = "torch._weights_only_unpickler"
READERS: dict[str, Callable[[bytes, Path], object]] = {}


def reader(call: Callable[[bytes, Path], object]) -> Callable[[bytes, Path], object]:
    """Registers a function that reads bytes with the help of a folder; any error but ours leaves
    it.
    """
    READERS[call.__name__] = call
    return call


@reader
def coco(data: bytes, folder: Path) -> Any:
    """An annotation file of two images."""
    (folder / "train" / "_annotations.coco.json").write_bytes(data)
    return _indexes(folder)


@reader
def labels(data: bytes, folder: Path) -> Any:
    """A YOLO label file."""
    from rfdetr.data.formats.yolo import YoloConfig
    from rfdetr.data.layout import DatasetLayout

    (folder / "train" / "labels" / "0.txt").write_bytes(data)
    yolo = YoloConfig(folder / "data.yaml", CLASSES, {"train": (folder / "train" / "images",)})
    return _indexes(folder, DatasetLayout(folder, "yolo", {"train": yolo}))


@reader
def data_yaml(data: bytes, folder: Path) -> Any:
    """A YOLO data.yaml."""
    (folder / "data.yaml").write_bytes(data)
    return _indexes(folder)


@reader
def config(data: bytes, folder: Path) -> Any:
    """A YAML file of settings, as `rfdetr train --config` reads it."""
    from rfdetr.cli.options import read_config_file, split_settings
    from rfdetr.config import ModelConfig, SegmentationTrainConfig
    from rfdetr.errors import InputError

    path = folder / "run.yaml"
    path.write_bytes(data)
    try:
        settings = read_config_file(path)
        settings.pop("model", None)
        model, train = split_settings(settings)
        return ModelConfig(**model), SegmentationTrainConfig(**{"dataset_dir": folder, **train})
    except InputError:
        return None


@reader
def checkpoint(data: bytes, folder: Path) -> Any:
    """A file of weights; its first byte chooses among the kinds."""
    from rfdetr.weights.identify import config_from_checkpoint
    from rfdetr.weights.reading import CheckpointError, read_checkpoint

    path = (
        folder / ("weights.pth", "weights.safetensors", "weights.ckpt")[data[0] % 3 if data else 0]
    )
    path.write_bytes(data[1:])
    content = None
    try:
        content = read_checkpoint(path)
        config_from_checkpoint(content)
    except CheckpointError as error:
        assert path.name in str(error)
    return content  # which may hold another network than a detector


@reader
def image(data: bytes, folder: Path) -> Any:
    """A picture."""
    from rfdetr.data.images import MAX_PIXELS, ImageError, decode_image, read_header

    path = folder / "picture.jpg"
    path.write_bytes(data)
    try:
        header = read_header(path)
        assert 0 < header.height * header.width <= MAX_PIXELS and 1 <= header.orientation <= 8
        if header.height * header.width > 2**20:
            return header
        pixels = decode_image(path)
    except ImageError as error:
        assert path.name in str(error)
        return None
    assert pixels.dtype == "uint8" and pixels.ndim == 3 and pixels.shape[2] == 3
    return pixels


def _indexes(folder: Path, layout: Any = None) -> Any:
    """The split's index, checked, or None where the dataset was refused; outlines are read and
    checked as well.
    """
    from rfdetr.data.findings import DatasetError
    from rfdetr.data.layout import find_splits

    try:
        layout = layout or find_splits(folder)
    except DatasetError as error:
        assert str(folder) in str(error), "an error must name the file"
        return None
    _index(layout, masks=True)
    return _index(layout, masks=False)


def _index(layout: Any, masks: bool) -> Any:
    import numpy as np

    from rfdetr.data.findings import DatasetError
    from rfdetr.data.layout import load_index

    try:
        index = load_index(layout, "train", masks=masks)
    except DatasetError as error:
        assert str(layout.dataset_dir) in str(error), "an error must name the file"
        return None
    assert len(index) == len(index.offsets) - 1 > 0 and index.offsets[-1] == len(
        index.boxes
    ) == len(index.labels)
    limits = np.repeat(index.sizes[:, [1, 0, 1, 0]], np.diff(index.offsets), axis=0)
    assert (index.boxes >= 0).all() and (index.boxes <= limits).all()  # false for NaN
    assert (index.boxes[:, 2:] > index.boxes[:, :2]).all()
    assert ((index.labels >= 0) & (index.labels < len(index.class_names))).all()
    assert index.outlines is None or len(index.outlines.entries) == len(index.boxes)
    return index


def make_folder(place: Path) -> Path:
    """What the readers need around the file: pictures where annotations look for them."""
    from PIL import Image

    folder = place / "a" / "data" / "set"  # deep, so that "../.." is nothing large
    for sub in ("train/images", "train/labels"):
        (folder / sub).mkdir(parents=True)
    for name in ("train/0.png", "train/1.jpg", "train/images/0.png"):
        Image.new("RGB", SIZE, (9, 99, 199)).save(folder / name)
    return folder


def seeds(name: str) -> list[bytes]:
    """Good files of each kind, to start from."""
    if name == "coco":
        return [
            json.dumps(coco_content()).encode(),
            b'{"images": [], "annotations": [], "categories": []}',
        ]
    if name == "labels":
        return [b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.5 0.1 0.5 0.5\n", b"2 1 1 1 1"]
    if name == "data_yaml":
        return [
            b"path: .\ntrain: train/images\nval: train/images\nnc: 2\nnames: [a, b]\n",
            b"names: {0: a, 1: b}\n",
        ]
    if name == "config":
        return [
            b"epochs: 5\nlr: 1.0e-4\nresolution: 96\nmodel: mini\n",
            b"train: {seed: 1}\nmodel: {amp: no}\n",
        ]
    return (
        [_weights(kind) for kind in range(3)] if name == "checkpoint" else list(pictures().values())
    )


def coco_content() -> dict[str, list[dict[str, Any]]]:
    """A good annotation file."""
    width, height = SIZE
    images = [
        {"id": i, "file_name": f, "width": width, "height": height}
        for i, f in enumerate(("0.png", "1.jpg"))
    ]
    categories = [
        {"id": i, "name": name, "supercategory": "animal"} for i, name in enumerate(CLASSES)
    ]
    polygon, rle = (
        [[1, 1, 9, 1, 9, 9]],
        {"size": [height, width], "counts": [31, 9, height * width - 40]},
    )
    boxes = [
        {
            "id": 1,
            "image_id": 0,
            "category_id": 0,
            "bbox": [1, 1, 8, 8],
            "area": 64,
            "segmentation": polygon,
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 2,
            "bbox": [1, 1, 1, 9.5],
            "iscrowd": 1,
            "segmentation": rle,
        },
    ]
    return {"images": images, "annotations": boxes, "categories": categories}


def pictures() -> dict[str, bytes]:
    """A small picture of every format, one of them with an orientation."""
    from PIL import Image, features

    encoded = {}
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in (
        "JPEG",
        "PNG",
        "BMP",
        "GIF",
        "TIFF",
        "PPM",
        *(k for k in ("WEBP", "AVIF") if features.check(k.lower())),
    ):
        out = io.BytesIO()
        Image.new("RGB", (9, 7), (9, 99, 199)).save(
            out, kind, **({"exif": exif} if kind == "JPEG" else {})
        )
        encoded[kind] = out.getvalue()
    return encoded


def _weights(kind: int) -> bytes:
    import torch
    from safetensors.torch import save

    tensors = {"backbone.0.x": torch.zeros(2), "class_embed.weight": torch.ones(2, 2)}
    if kind == 1:
        return b"\1" + save(tensors, {"args": '{"resolution": 64}'})
    out = io.BytesIO()
    content = {"model": tensors, "args": {"resolution": 64, "class_names": ["a"]}, "epoch": 1}
    torch.save(content, out, _use_new_zipfile_serialization=kind == 0)
    return bytes([kind]) + out.getvalue()


def fuzz(name: str, seconds: int, findings: Path) -> None:
    """Runs one reader in this process, which libFuzzer ends."""
    import atheris
    import pydantic  # noqa: F401 - first, since the import hook below makes every import slow
    import torch

    del sys.modules[UNPICKLER]
    with atheris.instrument_imports(include=["rfdetr", "yaml", UNPICKLER]):
        torch.serialization._weights_only_unpickler = importlib.import_module(UNPICKLER)
        import rfdetr.cli.options
        import rfdetr.data.layout
        import rfdetr.weights.identify  # noqa: F401
    logging.disable()
    warnings.simplefilter("ignore")
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    folder, corpus = make_folder(place), place / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(name)):
        (corpus / str(number)).write_bytes(seed)
    seen: set[str] = set()

    def run(data: bytes) -> None:
        try:
            READERS[name](data, folder)
        except Exception as error:  # noqa: BLE001 - finding them is the purpose; the fuzzer goes on to the next
            last = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            if what not in seen:
                seen.add(what)
                place_of_failure = re.sub(r"\W+", "-", what)
                (findings / f"{name}-{place_of_failure}").write_bytes(data)
                print(f"FOUND {what}: {str(error)[:200]}", flush=True)

    limits = [
        f"-max_total_time={seconds}",
        f"-timeout={HANG_SECONDS}",
        "-rss_limit_mb=6000",
        "-max_len=4096",
    ]
    options = [
        *limits,
        "-print_final_stats=1",
        "-verbosity=0",
        f"-artifact_prefix={findings}/{name}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run)
    atheris.Fuzz()


def main() -> int:
    """Every reader in turn; the result is how many have findings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)}; all by default"
    )
    parser.add_argument("--seconds", type=int, default=600, help="in all")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.readers or list(READERS)
    if unknown := set(names) - READERS.keys():
        parser.error(f"no reader {', '.join(sorted(unknown))}; there are {', '.join(READERS)}")
    options.findings.mkdir(parents=True, exist_ok=True)
    seconds = max(options.seconds // len(names), 1)
    if options.child:
        fuzz(names[0], seconds, options.findings)
    failed = 0
    for name in names:
        command = [
            sys.executable,
            __file__,
            name,
            "--child",
            f"--seconds={seconds}",
            f"--findings={options.findings}",
        ]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        runs = re.search(r"number_of_executed_units: (\d+)", result.stdout)
        found = re.findall(r"^(?:FOUND|==\d+== ERROR:).*", result.stdout, re.MULTILINE)
        failed += bool(found or result.returncode)
        count = runs[1] if runs else "no"
        what = f"{count} executions in {seconds} s, exit {result.returncode}"
        print(f"{name}: {what}, {len(found)} findings")
        print(
            *(f"  {line}" for line in found),
            "" if runs else result.stdout[-2000:],
            sep="\n",
            flush=True,
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())
