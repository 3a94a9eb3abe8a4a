"""`pack`: a folder of labelled images into a few tar files and their index (see `packs`)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfdetr.checks import check_count, check_path
from rfdetr.console import with_progress
from rfdetr.data.files import leaves, walk
from rfdetr.data.findings import SHOWN, DatasetError, Findings
from rfdetr.data.images import read_header
from rfdetr.data.layout import DatasetLayout, find_splits, load_index
from rfdetr.data.packs import FORMAT, LABELS, MANIFEST, ROW, TABLE, key_of, table_bytes
from rfdetr.errors import InputError
from rfdetr.files import LockHeldError, RecordLock, atomic_write, digest_of, remove_leftovers

_LABEL_SUFFIXES = {".json", ".txt", ".yaml", ".yml", ".xml", ".csv"}
_OWN = re.compile(r"images-\d{5}\.tar|\..*|" + "|".join(map(re.escape, (LABELS, TABLE))))
_BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """An image file of the folder, as a shard has it."""

    name: str
    size: int
    modified: int  # seconds


def pack(
    dataset_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset_file: str = "roboflow",
    *,
    shard_mb: int = 256,
) -> Path:
    """Pack a labelled folder that `train` would take into the new folder `out`, and give its path.

    A shard holds up to `shard_mb` million bytes, or one larger image. What was killed goes on after
    the last whole shard. `train`, `evaluate` and `check` take `out` as the folder itself, and find
    the same in it, to the bit. `InputError` where `out` holds anything else.
    """
    root, folder = check_path("dataset_dir", dataset_dir), check_path("out", out)
    most = 10**6 * check_count("shard_mb", shard_mb)
    layout = find_splits(root, dataset_file)
    if layout.pack is not None:
        raise InputError(f"{root} is packed already")
    if not leaves(root, folder):
        raise InputError(f"out {folder} is inside the data set: choose a folder beside it")
    there = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    for other in (name for name in there if not _OWN.fullmatch(name)):  # not of an unfinished pack
        raise InputError(f"out {folder} holds {other}, and nothing is overwritten: choose another")
    digests, names = _read_labels(layout)
    lock = RecordLock(folder.resolve() / ".pack.lock")
    try:
        lock.acquire()
    except LockHeldError as error:
        raise InputError(f"out {folder} is being written to ({error})") from error
    with ExitStack() as unless_right:
        unless_right.callback(lock.release)
        unless_right.callback((folder / MANIFEST).unlink, missing_ok=True)
        remove_leftovers(folder)
        _write(root, folder, names, most, dataset_file)
        if digests != _read_labels(find_splits(folder))[0]:
            told = "the pack gives other labels than the folder, which has changed or"
            raise DatasetError(f"{root}: {told} names places outside of itself")
        unless_right.pop_all()
        lock.release()
    return folder


def _read_labels(layout: DatasetLayout) -> tuple[dict[str, str], list[str]]:
    """What tells each split, and the names of all images, each once."""
    digests, names = {}, dict[str, None]()
    for split in layout.splits:
        findings = None if layout.pack is None else Findings(SHOWN)  # told once
        index = load_index(layout, split, findings=findings)
        digests[split] = index.fingerprint()
        for path in map(index.path, range(len(index)) if layout.pack is None else ()):
            if leaves(layout.dataset_dir, path):
                raise DatasetError(f"{path} is not in {layout.dataset_dir}: move it there")
            names[key_of(layout.dataset_dir, path)] = None
    return digests, list(names)


def _write(root: Path, folder: Path, names: list[str], most: int, dataset_file: str) -> None:
    shards, parts = list(_divided(root, names, most)), []
    for number, members in enumerate(with_progress(shards, "Packing", len(shards))):
        shard = folder / f"images-{number:05d}.tar"
        if not shard.exists():
            atomic_write(shard, partial(_add, mode="w", root=root, members=members))
        found, rows = _rows(shard, number)
        if found != members:
            told = "is of another folder, another shard_mb, or of images that have changed since"
            raise InputError(f"{shard} {told}: remove {folder}, or choose another folder")
        parts.append(rows)
    labels = [p for p in walk(root) if p.suffix.lower() in _LABEL_SUFFIXES]
    members = [_member(root, key_of(root, path)) for path in labels]
    atomic_write(folder / LABELS, partial(_add, mode="w:gz", root=root, members=members))
    table = table_bytes(names, np.concatenate(parts))
    atomic_write(folder / TABLE, lambda stream: stream.write(table))
    files = [*sorted(folder.glob("images-*.tar")), folder / LABELS, folder / TABLE]
    content = {
        "format": FORMAT,
        "dataset_file": dataset_file,
        "images": len(names),
        "sizes": {path.name: path.stat().st_size for path in files},
        "sha256": {name: digest_of(folder / name) for name in (LABELS, TABLE)},
    }
    text = json.dumps(content, indent=2).encode()
    atomic_write(folder / MANIFEST, lambda stream: stream.write(text))


def _member(root: Path, name: str) -> Member:
    stat = (root / name).stat()
    return Member(name, stat.st_size, int(stat.st_mtime))


def _divided(root: Path, names: Sequence[str], most: int) -> Iterator[list[Member]]:
    """The images of each shard, in order."""
    members: list[Member] = []
    size = 0
    for name in names:
        member = _member(root, name)
        whole = _BLOCK * (1 - (-member.size // _BLOCK))
        if members and size + whole > most:
            yield members
            members, size = [], 0
        members.append(member)
        size += whole
    yield members


def _add(stream: Any, mode: Any, root: Path, members: Sequence[Member]) -> None:
    """Writes files to a tar that is the same each time: without owners and rights."""
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for member in members:
            entry = tarfile.TarInfo(member.name)
            entry.size, entry.mtime = member.size, member.modified
            with (root / member.name).open("rb") as content:
                archive.addfile(entry, content)
            archive.members = []  # type: ignore[attr-defined]  # else it keeps them all


def _rows(shard: Path, number: int) -> tuple[list[Member], NDArray[Any]]:
    """Reads a shard from the disk: what it holds, and its rows of the index."""
    members, rows = [], []
    with tarfile.open(shard, "r:") as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            data = (content or io.BytesIO()).read()
            header = read_header(data, entry.name)
            facts = *header.upright_size, header.orientation, header.deep
            sha256 = hashlib.sha256(data).digest()
            rows.append((number, entry.offset_data, entry.size, facts, sha256))
            members.append(Member(entry.name, entry.size, int(entry.mtime)))
    return members, np.array(rows, ROW)
