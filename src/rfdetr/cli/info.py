"""`rfdetr info`: the environment, a checkpoint, an exported model, or a dataset."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from rfdetr.checks import check_path
from rfdetr.config.fields import size_text
from rfdetr.console import show_rows

PACKAGES = (
    *("torch", "numpy", "pillow", "simplejpeg", "supervision"),
    *("pytorch-lightning", "hotcoco", "scipy"),
)


def info(target: Annotated[str | None, Parameter(name="--target")] = None, /) -> None:
    """Show what a checkpoint or a dataset holds; without either, the environment.

    Args:
        target: A file of weights, the name of a published one, an exported model, or a folder of
            labelled images.
    """
    if target is None:
        show_rows("Environment", _environment().items())
    elif (path := check_path("the target", target)).is_dir():
        _show_dataset(path)
    elif path.suffix.lower() in (".onnx", ".xml", ".pt2"):
        show_rows(target, _artifact(path).items())
    else:
        show_rows(target, _checkpoint(target).items())


def _environment() -> dict[str, str]:
    import torch

    from rfdetr import __version__
    from rfdetr.inference.predictor import best_device
    from rfdetr.weights.download import cache_dir

    rows = {"rfdetr": __version__, "python": platform.python_version()}
    rows["system"] = platform.platform()
    for package in PACKAGES:
        rows[package] = "not installed"
        with suppress(metadata.PackageNotFoundError):
            rows[package] = metadata.version(package)
    device = best_device(None)
    rows["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    rows["cores"] = f"{os.cpu_count()} ({torch.get_num_threads()} used)"
    return {**rows, "weights cache": str(cache_dir())}


def _checkpoint(name: str) -> dict[str, str]:
    from rfdetr.config import variant_name
    from rfdetr.weights.identify import config_from_checkpoint
    from rfdetr.weights.load import resolve_weights
    from rfdetr.weights.reading import read_checkpoint

    path = resolve_weights(name)
    checkpoint = read_checkpoint(path)
    config, class_names = config_from_checkpoint(checkpoint)
    parameters = sum(tensor.numel() for tensor in checkpoint.model.values())
    return {
        "file": f"{path} ({path.stat().st_size / 2**20:.1f} MiB)",
        "variant": variant_name(config) or "custom",
        "resolution": f"{size_text(config.resolution)} pixels",
        "parameters": f"{parameters / 1e6:.2f} M",
        "classes": str(config.num_classes),
        "class names": ", ".join(class_names) if class_names else "not in the file",
        "written by": str(checkpoint.args.get("rfdetr_version", "another program")),
    }


def _artifact(path: Path) -> dict[str, str]:
    from rfdetr.inference.engines import open_artifact

    engine, told = open_artifact(path)
    classes = ", ".join(f"{logit} {name}" for logit, name in told.classes.items())
    batch = "any number" if told.input.batch == "dynamic" else told.input.batch
    proof = told.certificate or {}
    kept = {name: value for name, value in proof.items() if name not in ("schema", "fingerprint")}
    certificate = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in kept.items())
    return {
        "file": f"{path} ({path.stat().st_size / 2**20:.1f} MiB), read by {engine.name}",
        "variant": told.variant or "custom",
        "task": told.task,
        "input": f"{told.input.name}: {batch} x 3 x {told.input.height} x {told.input.width} "
        f"{told.input.dtype}",
        "outputs": ", ".join(name for name in told.outputs.model_dump().values() if name),
        "arithmetic": told.dtype,
        "classes": classes,
        "queries": f"{told.num_queries}, of which the best {told.num_select} pairs are reported",
        "weights": f"SHA-256 {told.weights_sha256}",
        "certificate": certificate or "none",
        "written by": f"rfdetr {told.version}",
    }


def _show_dataset(folder: Path) -> None:
    """Prints how many boxes of each class, and how many images, each split has."""
    import numpy as np

    from rfdetr.data.layout import find_splits, load_index

    layout = find_splits(folder, "roboflow")
    indexes = {split: load_index(layout, split) for split in layout.splits}
    table = Table(title=f"{folder}: {layout.format}", title_justify="left")
    table.add_column("boxes of class")
    counts = []  # by name: splits may list other classes, or the same in another order
    for split, index in indexes.items():
        table.add_column(split, justify="right")
        names = index.class_names
        boxes = np.bincount(index.labels, minlength=len(names))
        counts.append(dict(zip(names, boxes, strict=True)))
    for name in dict.fromkeys(chain.from_iterable(counts)):
        table.add_row(name, *(str(count.get(name, "not listed")) for count in counts))
    table.add_section()
    table.add_row("images", *(str(len(index)) for index in indexes.values()))
    Console().print(table)
