"""`rfdetr pack`: a folder of labelled images as a few tar files, for disks and stores far away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rfdetr.cli.options import Dataset, DatasetFile


def pack(
    dataset: Annotated[Path, Dataset],
    /,
    *,
    out: Path,
    dataset_file: DatasetFile = "roboflow",
    shard_mb: int = 256,
) -> None:
    """Pack a dataset into tar files, which train, evaluate and check read where they are.

    Nothing is overwritten; one that was interrupted goes on if it is called again.

    Args:
        out: New folder; a copy of it may then lie anywhere that fsspec reaches, such as s3://.
        shard_mb: Most million bytes of images in one file.
    """
    from rfdetr.data.packing import pack as write

    folder = write(dataset, out, dataset_file, shard_mb=shard_mb)
    shards = [path.stat().st_size for path in folder.glob("images-*.tar")]
    print(f"{len(shards)} files of images, {sum(shards) / 1e6:,.1f} MB: rfdetr train {folder}")
