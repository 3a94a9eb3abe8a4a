"""`rfdetr convert`: a dataset in another layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from rfdetr.cli.options import Dataset, DatasetFile


def convert(
    dataset: Annotated[str, Dataset],
    out: Path,
    /,
    *,
    to: Literal["coco", "yolo"] = "coco",
    dataset_file: DatasetFile = "roboflow",
    classes: str | None = None,
    split: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a dataset of any layout that is read as COCO or YOLO, with links to its images.

    Args:
        out: New or empty folder.
        to: Layout to write.
        classes: Of the data, those to write, as in training: cat,vehicle=car+truck.
        split: Divide a valid split off train, where there is none, as training would.
    """
    import logging

    from rfdetr.doctor.convert import convert as write

    written = write(dataset, out, to, dataset_file=dataset_file, classes=classes, split=split)
    written.findings.log(logging.getLogger("rfdetr"), dataset)
    for name, (images, objects) in written.splits.items():
        print(f"{name}: {images:,} images, {objects:,} objects")
    print(f"{out}: {to.upper()}, its images are links to the originals")
