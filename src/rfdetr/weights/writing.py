"""Writing checkpoints: all or nothing, in published tensor names, readable without this package."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from rfdetr._version import __version__
from rfdetr.config import ModelConfig, variant_name
from rfdetr.weights.checksums import CHECKSUMS_FILE, digest_of, read_checksums, recorded_digests, sidecar
from rfdetr.weights.names import to_published

RESIZE_POLICY = "bilinear-antialias-square"
"""How images are brought to the network's size; recorded in every file."""
_threads = threading.Lock()
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFullError(OSError):
    """A file that found no room; the message says how much it needs. What was there under its name still is."""


def atomic_write(path: str | os.PathLike[str], writer: Callable[[BinaryIO], object], *, checksum: bool = False) -> None:
    """Writes a file so that a reader, or a crash, meets the old content or the new, never a part.

    The temporary file lies beside `path` under a name of its own; a symbolic link at `path` is replaced, not followed.
    With `checksum`, the file's SHA-256 goes to the folder's checksums.json. `writer` is called
    again to measure what finds no room.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    target: _HashingWriter | None = None
    try:
        with open(temporary, "xb") as stream:
            target = _HashingWriter(stream)
            writer(cast(BinaryIO, target) if checksum else stream)
            stream.flush()
            os.fsync(stream.fileno())
        if checksum:  # until the file is replaced, both are right: a crash in between must not make it look damaged
            record_digests(path, [target.digest.hexdigest(), *recorded_digests(path)])
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt, too, must leave no temporary file behind
        temporary.unlink(missing_ok=True)
        cause = error if target is None or target.error is None else target.error
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            raise DiskFullError(_room_needed(path, writer)) from error
        raise
    _sync_directory(path.parent)
    if checksum:
        record_digests(path, [target.digest.hexdigest()])


def link_checkpoint(source: Path, path: Path) -> None:
    """Gives a checkpoint a second name that takes no room; a copy where the file system has no links."""
    if path.exists() and path.samefile(source):  # the same link again, which no rename replaces
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        os.link(source, temporary)
    except OSError:
        atomic_write(path, lambda stream: _copy(source, stream), checksum=True)
        return
    digests = recorded_digests(source) or [digest_of(source)]
    record_digests(path, [*digests, *recorded_digests(path)])
    os.replace(temporary, path)
    _sync_directory(path.parent)
    record_digests(path, digests)


def record_digests(path: str | os.PathLike[str], digests: list[str]) -> None:
    """Notes the digests that a file may have; none: it is forgotten. Writers of other files in the folder wait."""
    path = Path(path)
    with _sole_writer(path.parent):
        content = read_checksums(path.parent)
        if content is not None:
            content.pop(path.name, None)
            content |= {path.name: " ".join(dict.fromkeys(digests))} if digests else {}
            text = json.dumps(dict(sorted(content.items())), indent=2) + "\n"
            if content:
                atomic_write(path.parent / CHECKSUMS_FILE, lambda stream: stream.write(text.encode()))
            else:
                (path.parent / CHECKSUMS_FILE).unlink(missing_ok=True)
    sidecar(path).unlink(missing_ok=True)


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Keeps other threads from a folder's checksums.json, and other processes where folders can be locked."""
    with _threads:
        descriptor = None
        with suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _copy(source: Path, stream: BinaryIO) -> None:
    with open(source, "rb") as content:
        shutil.copyfileobj(content, stream)


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files of writes that were killed; nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", path.name):
            path.unlink(missing_ok=True)


class _HashingWriter:
    """Passes on what is written, and remembers its digest and the error, which torch.save may hide."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.stream.flush()


class _Counter:
    size = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.size += size
        return size

    def flush(self) -> None:
        pass


def _room_needed(path: Path, writer: Callable[[BinaryIO], object]) -> str:
    counter = _Counter()
    writer(cast(BinaryIO, counter))
    free = shutil.disk_usage(path.parent).free
    return (
        f"{path} could not be written: it needs {counter.size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free on its "
        "disk (or a quota or limit is reached)"
    )


def save_checkpoint(
    path: str | os.PathLike[str],
    detector_state: Mapping[str, Tensor],
    model_config: ModelConfig,
    class_names: Sequence[str] | None,
    extra: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Writes a `.pth` file from a detector's state dict.

    `extra` adds entries beside `model` and `args`; tensors and plain values only, since reading is `weights_only`.
    `data` adds to `args` what is known of the training data.
    """
    model = {name: _owned(tensor) for name, tensor in to_published(dict(detector_state)).items()}
    content = {**(extra or {}), "model": model, **description(model_config, class_names, data)}
    atomic_write(path, lambda stream: torch.save(content, stream), checksum=True)


def save_safetensors(  # noqa: PLR0913 - what a file holds, all but the first four by keyword
    path: str | os.PathLike[str],
    detector_state: Mapping[str, Tensor],
    model_config: ModelConfig,
    class_names: Sequence[str] | None,
    *,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Writes a `.safetensors` file: floating-point tensors as `dtype` if given, `notes` on its origin in the header."""
    from safetensors.torch import save

    model = {name: _owned(tensor) for name, tensor in to_published(dict(detector_state)).items()}
    if dtype is not None:
        model = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in model.items()}
    header = {"format": "pt", "args": json.dumps(checkpoint_args(model_config, class_names, data))}
    header |= {"notes": json.dumps(dict(notes))} if notes else {}
    content = _in_order(save(model, metadata=header))
    atomic_write(path, lambda stream: stream.write(content), checksum=True)


def _in_order(content: bytes) -> bytes:
    """The same file with the header sorted, which the library leaves in any order: equal runs make equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def description(
    model_config: ModelConfig, class_names: Sequence[str] | None, data: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a file says beside its tensors: `args`, and what `from_checkpoint` of the published package looks for."""
    told = {"args": checkpoint_args(model_config, class_names, data)}
    if variant_name(model_config) is None:
        return told
    fields = {**model_config.model_dump(mode="json"), "positional_encoding_size": model_config.position_grid}
    return {**told, "model_name": type(model_config).__name__.removesuffix("Config"), "model_config": fields}


def checkpoint_args(
    model_config: ModelConfig, class_names: Sequence[str] | None, data: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The `args` entry of a file: all that is needed to build the model again, as plain values."""
    return {
        **model_config.model_dump(mode="json"),
        "positional_encoding_size": model_config.position_grid,  # readers of published files expect a number
        "variant": variant_name(model_config),
        "class_names": None if class_names is None else list(class_names),
        "resize": RESIZE_POLICY,
        "rfdetr_version": __version__,
        **(data or {}),
    }


def _owned(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous and alone in its storage: a view would drag the whole storage into the file.

    Numbers are float32, as in published files, whatever precision they were trained in.
    """
    tensor = tensor.detach().cpu().contiguous()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    shares = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone() if shares else tensor


def _sync_directory(folder: Path) -> None:
    """Makes the rename itself survive a power cut, where the system can."""
    with suppress(OSError):  # Windows opens no directories, some network file systems sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
