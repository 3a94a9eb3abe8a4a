"""The folder of a run: its files, one run in it at a time, none that is written over unasked."""

from __future__ import annotations

import itertools
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rfdetr import files
from rfdetr.errors import InputError
from rfdetr.report import FILES as REPORT

if TYPE_CHECKING:  # what reads a run's folder shall not wait for Lightning's import
    from pytorch_lightning import Trainer

logger = logging.getLogger(__name__)

_SIGNS = ("results.json", "checkpoint_best_total.pth", "last.ckpt")  # that only a run leaves
_CHECKPOINTS = [
    "last.ckpt", "checkpoint_[0-9]*.ckpt", "checkpoint_best_*.pth", "checkpoint_best_*.safetensors",
]  # fmt: skip
_WEIGHTS_AND_FIGURES = [
    *_CHECKPOINTS, "nonfinite-step-*.pt", "results.json", "metrics.jsonl", "metrics.csv", "log.txt",
    "split.json",
]  # fmt: skip
_PLOTS = ["pr_curve.png", "f1_curve.png", "confusion_matrix*.png"]
_REDRAWN = [
    "config.yaml", "metrics.png", "dataset_grids", "labels.jpg", "train_views.jpg", *REPORT,
    *_PLOTS, *(f"segm_{plot}" for plot in _PLOTS),
]  # fmt: skip
_HEADS = {"config.yaml": b"rfdetr_version:", "metrics.jsonl": b'"step":'}
"""What stands in the first line of a run's first files."""
_NUMBERED = re.compile(r"checkpoint_?(\d+)\.(?:ckpt|pth)")
_used: set[Path] = set()  # folders to which runs of this process have written


def saves(trainer: Trainer) -> bool:
    """Whether a run of the trainer writes files; a `fast_dev_run` does not."""
    return not trainer.fast_dev_run  # type: ignore[attr-defined]


class OutputFolderError(InputError):
    """A folder that a run cannot write to; the message says why and what to do."""


class RunFolder:
    """The paths of a run's files, the lock that its writer holds, and what becomes of older files.

    Files that `clear` and `set_aside` do not name are a user's and stay as they are.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.lock = files.RecordLock(self.path.resolve() / ".run.lock")
        self._held = False
        self._made: list[Path] = []  # by `acquire`: the folder and its parents, innermost first
        self.last = self.path / "last.ckpt"
        self.results = self.path / "results.json"
        self.metrics = self.path / "metrics.jsonl"
        self.table = self.path / "metrics.csv"
        self.log = self.path / "log.txt"
        self.config = self.path / "config.yaml"
        self.division = self.path / "split.json"
        self.history = self.path / "metrics.png"
        self.grids = self.path / "dataset_grids"
        self.labels = self.path / "labels.jpg"
        self.views = self.path / "train_views.jpg"

    def best(self, kind: str) -> Path:
        """The best weights of a kind: "regular" (live), "ema" (averaged), "step_120" (of one of the
        best few evaluations), "mean" (of these) or "total" (of all).
        """
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
        whole = self.path.absolute()
        self._made = [place for place in (whole, *whole.parents) if not place.exists()]
        try:
            self.lock.acquire()
        except files.LockHeldError as error:
            raise OutputFolderError(
                f"another run is writing to {self.path} ({error}): wait for it, end it, or choose "
                "another output_dir"
            ) from error
        except OSError as error:
            told = f"output_dir {self.path} cannot be written to: {error.strerror}"
            raise OutputFolderError(told) from error
        self._held = True
        files.remove_leftovers(self.path)

    def release(self) -> None:
        """Gives the lock back, if it is held; a folder made for nothing goes again."""
        if self._held:
            _used.add(self.path.resolve())
            self.lock.release()
            self._held = False
            with suppress(OSError):  # of one that is not empty
                for place in self._made:
                    place.rmdir()

    @property
    def sign_of_run(self) -> str | None:
        """The name of a file that only a run leaves; None where there is none."""
        return next((name for name in _SIGNS if (self.path / name).exists()), None)

    @property
    def users_file(self) -> str | None:
        """The name of a file that no run has left and one would replace; None where none is."""
        if self.sign_of_run:
            return None
        for name, head in _HEADS.items():
            if (path := self.path / name).is_file():
                with open(path, "rb") as stream:
                    if head in stream.readline(1_000_000):
                        return None
        found = self._files(_WEIGHTS_AND_FIGURES + _REDRAWN)
        return found[0].name if found else None

    def newest_checkpoint(self) -> Path | None:
        """What to go on from: last.ckpt, else the file of most epochs, `.ckpt` before `.pth`."""
        found = {path: _NUMBERED.fullmatch(path.name) for path in self.path.glob("checkpoint*")}
        numbered = sorted(((int(name[1]), path) for path, name in found.items() if name))[::-1]
        ordered = [path for _, path in numbered]
        kept = [path for path in ordered if path.suffix == ".ckpt"]
        paths = [self.last, *kept, self.path / "checkpoint.pth", *ordered]
        return next((path for path in paths if path.is_file()), None)

    def refuse_to_overwrite(
        self, resumed: str | os.PathLike[str] | None, *, keep_own: bool = False
    ) -> None:
        """Raises `OutputFolderError` where a run's files are that `resumed` is not one of, or a
        user's that a run would replace, or no folder can be.

        With `keep_own`, the files of an earlier run of this same process are set aside instead.
        """
        whole = self.path.absolute()
        nearest = next(place for place in (whole, *whole.parents) if place.exists())
        if not nearest.is_dir():
            told = f"output_dir {self.path} cannot be written to: {nearest} is no folder"
            raise OutputFolderError(told)
        if resumed and Path(resumed).resolve().parent == self.path.resolve():
            return
        if name := self.users_file:
            raise OutputFolderError(
                f"output_dir {self.path} holds {name}, which no run has left and this one would "
                "replace: choose another output_dir, or pass overwrite=True to lose it"
            )
        if not (sign := self.sign_of_run):
            return
        if keep_own and self.path.resolve() in _used:
            self.set_aside()
            return
        state = "an interrupted" if sign == "last.ckpt" else "a finished"
        raise OutputFolderError(
            f'there is {state} run in {self.path} ({sign}): go on with it (resume="last"), choose '
            "another output_dir, or pass overwrite=True to start anew and lose it"
        )

    def clear(self) -> None:
        """Deletes the weights, results and figures of an earlier run; its pictures are redrawn."""
        for path in self._files(_WEIGHTS_AND_FIGURES):
            path.unlink(missing_ok=True)
            files.record_digests(path, [])

    def set_aside(self) -> None:
        """Moves the files of a run to the first free subfolder run-1, run-2, ..."""
        paths = (self.path / f"run-{number}" for number in itertools.count(1))
        place = next(path for path in paths if not path.exists())
        place.mkdir()
        for path in self._files([*_WEIGHTS_AND_FIGURES, *_REDRAWN, files.CHECKSUMS_FILE]):
            path.rename(place / path.name)
        logger.warning("the run that this session has made in %s is now in %s", self.path, place)

    def checkpoint_bytes(self) -> int:
        """What the weights and training states of a run in the folder take, each file once."""
        found = [path.stat() for path in self._files(_CHECKPOINTS)]
        return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in found}.values())

    def _files(self, patterns: list[str]) -> list[Path]:
        return [path for pattern in patterns for path in self.path.glob(pattern)]


def default_folder(base: Path, resume: str | None) -> Path:
    """Where a run goes whose user named no folder: the first of base, base-2, base-3, ... that is
    free of runs, and of a user's files that one would replace.

    A resumed run goes on where its checkpoint is, if that is one of them; for "last", where the
    newest last.ckpt is.
    """
    paths = [base, *base.parent.glob(f"{base.name}-*")]
    series = [p for p in paths if re.fullmatch(r"(-\d+)?", p.name.removeprefix(base.name))]
    if resume == "last":
        if saved := [path / "last.ckpt" for path in series if (path / "last.ckpt").is_file()]:
            return max(saved, key=lambda file: file.stat().st_mtime_ns).parent
    elif resume is not None:
        place = Path(resume).expanduser().resolve().parent
        if own := [path for path in series if path.resolve() == place]:
            return own[0]
    numbered = (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))
    folders = map(RunFolder, itertools.chain([base], numbered))

    def is_free(one: RunFolder) -> bool:
        return not (one.sign_of_run or one.users_file or files.is_locked(one.lock.path))

    return next(filter(is_free, folders)).path
