"""The folder of a run: its files, one run in it at a time, none that is written over unasked."""

from __future__ import annotations

import itertools
import logging
import os
import re
from pathlib import Path

from pytorch_lightning import Trainer

from rfdetr import files
from rfdetr.errors import InputError

logger = logging.getLogger(__name__)

_LAST, _RESULTS, _TOTAL = "last.ckpt", "results.json", "checkpoint_best_total.pth"
_RECORD = ("metrics.jsonl", "metrics.csv", "log.txt")
_WEIGHTS = (
    *(_LAST, _RESULTS, "checkpoint_[0-9]*.ckpt", "checkpoint_best_*.pth"),
    *("checkpoint_best_*.safetensors", "nonfinite-step-*.pt"),
)
_SUMMARIES = (
    *("config.yaml", "metrics.png", "pr_curve.png", "f1_curve.png", "confusion_matrix*.png"),
    files.CHECKSUMS_FILE,
)
_NUMBERED = re.compile(r"checkpoint_?(\d+)\.(?:ckpt|pth)")
_used: set[Path] = set()  # folders to which runs of this process have written


def saves(trainer: Trainer) -> bool:
    """Whether a run of the trainer writes files; a `fast_dev_run` does not."""
    return not trainer.fast_dev_run  # type: ignore[attr-defined]


class OutputFolderError(InputError):
    """A folder that a run cannot write to; the message says why and what to do."""


class RunFolder:
    """The paths of a run's files, the lock that its writer holds, and what becomes of older files.

    A run's own files are those that `clear` or `set_aside` name; others in the folder are a user's
    and stay as they are.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.lock = files.RecordLock(self.path.resolve() / ".run.lock")
        self._held = False
        self.last = self.path / _LAST
        self.results = self.path / _RESULTS
        self.metrics, self.table, self.log = (self.path / name for name in _RECORD)
        self.config = self.path / "config.yaml"
        self.history = self.path / "metrics.png"

    def best(self, kind: str) -> Path:
        """The best weights of a kind: "regular" (live), "ema" (averaged) or "total" (of both)."""
        return self.path / f"checkpoint_best_{kind}.pth"

    def after(self, epochs: int) -> Path:
        """The training state that is kept after so many epochs."""
        return self.path / f"checkpoint_{epochs:04d}.ckpt"

    def nonfinite(self, step: int, rank: int | None = None) -> Path:
        """The batches of a skipped optimizer step, of one rank where there are several."""
        suffix = "" if rank is None else f"-rank{rank}"
        return self.path / f"nonfinite-step-{step:07d}{suffix}.pt"

    def acquire(self) -> None:
        """Locks the folder and deletes what killed writes have left in it.

        Raises `OutputFolderError` where another run holds the lock or nothing can be written.
        """
        try:
            self.lock.acquire()
        except files.LockHeldError as error:
            raise OutputFolderError(
                f"another run is writing to {self.path} ({error}): wait for it, end it, or choose "
                "another output_dir"
            ) from error
        except OSError as error:
            raise OutputFolderError(
                f"output_dir {self.path} cannot be written to: {error.strerror}"
            ) from error
        self._held = True
        files.remove_leftovers(self.path)

    def release(self) -> None:
        """Gives the lock back; nothing where it is not held."""
        if self._held:
            _used.add(self.path.resolve())
            self.lock.release()
            self._held = False

    @property
    def sign_of_run(self) -> str | None:
        """A file that only a run leaves, by name; None where there is none."""
        names = (_RESULTS, _TOTAL, _LAST)
        return next((name for name in names if (self.path / name).exists()), None)

    def newest_checkpoint(self) -> Path | None:
        """What to go on from: last.ckpt, else the file of most epochs, `.ckpt` before `.pth`."""
        found = [(_NUMBERED.fullmatch(path.name), path) for path in self.path.glob("checkpoint*")]
        numbered = sorted(((int(name[1]), path) for name, path in found if name), reverse=True)
        ordered = [path for _, path in numbered]
        kept = [path for path in ordered if path.suffix == ".ckpt"]
        names = [self.last, *kept, self.path / "checkpoint.pth", *ordered]
        return next((path for path in names if path.is_file()), None)

    def refuse_to_overwrite(
        self, resumed: str | os.PathLike[str] | None, *, keep_own: bool = False
    ) -> None:
        """Raises `OutputFolderError` where a run's files are that `resumed` is not one of.

        With `keep_own`, the files of an earlier run of this same process are set aside instead.
        """
        whole = self.path.absolute()
        nearest = next(place for place in (whole, *whole.parents) if place.exists())
        if not nearest.is_dir():
            raise OutputFolderError(
                f"output_dir {self.path} cannot be written to: {nearest} is no folder"
            )
        sign = self.sign_of_run
        if not sign or (resumed and Path(resumed).resolve().parent == self.path.resolve()):
            return
        if keep_own and self.path.resolve() in _used:
            self.set_aside()
            return
        state = "an interrupted" if sign == _LAST else "a finished"
        raise OutputFolderError(
            f'there is {state} run in {self.path} ({sign}): go on with it (resume="last"), choose '
            "another output_dir, or pass overwrite=True to start anew and lose it"
        )

    def clear(self) -> None:
        """Deletes the weights, results and figures of an earlier run; its pictures are redrawn."""
        for path in self._files(*_WEIGHTS, *_RECORD):
            path.unlink(missing_ok=True)
            files.record_digests(path, [])

    def set_aside(self) -> None:
        """Moves the files of a run to the first free subfolder run-1, run-2, ..."""
        names = (self.path / f"run-{number}" for number in itertools.count(1))
        place = next(path for path in names if not path.exists())
        place.mkdir()
        for path in self._files(*_WEIGHTS, *_RECORD, *_SUMMARIES):
            path.rename(place / path.name)
        logger.warning("the run that this session has made in %s is now in %s", self.path, place)

    def _files(self, *patterns: str) -> list[Path]:
        return [path for pattern in patterns for path in self.path.glob(pattern)]


def default_folder(base: Path, resume: str | None) -> Path:
    """Where a run goes whose user named no folder: the first of base, base-2, base-3, ... that is
    free of runs.

    A resumed run goes on where its checkpoint is, if that is one of them; for "last", where the
    newest last.ckpt is.
    """
    paths = [base, *base.parent.glob(f"{base.name}-*")]
    number = re.compile(rf"{re.escape(base.name)}(-\d+)?")
    series = [RunFolder(path) for path in paths if number.fullmatch(path.name)]
    if resume == "last":
        if saved := [folder for folder in series if folder.last.is_file()]:
            return max(saved, key=lambda folder: folder.last.stat().st_mtime_ns).path
    elif resume is not None:
        place = Path(resume).expanduser().resolve().parent
        if own := [folder.path for folder in series if folder.path.resolve() == place]:
            return own[0]
    names = itertools.chain([base.name], (f"{base.name}-{n}" for n in itertools.count(2)))
    folders = (RunFolder(base.with_name(name)) for name in names)
    free = (one for one in folders if not (one.sign_of_run or files.is_locked(one.lock.path)))
    return next(free).path
