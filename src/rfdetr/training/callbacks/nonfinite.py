"""Faults while training: steps without a finite loss or gradient, images that cannot be decoded,
too little memory.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from rfdetr.errors import RunError
from rfdetr.files import atomic_write
from rfdetr.training.memory import is_out_of_memory
from rfdetr.training.steps import losses_in_words

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 10  # skipped steps that stop a run
MOST_SAVED = 20  # batches of skipped steps kept on disk
MOST_UNDECODABLE = 0.01  # share of a split's images; a single one stops no run


class Batch(NamedTuple):
    """Size of a batch: images, and pixels of their side."""

    images: int
    side: int

    def __str__(self) -> str:
        return f"{self.images} image{'s' * (self.images > 1)} at {self.side} x {self.side} pixels"


class FaultsCallback(Callback):
    """Skips, saves and counts what a run can do without, and stops it where that is too much.

    Weights that are not finite end it at once: they are looked at with every skipped step, before
    each validation pass, before a `.ckpt` is written (the last good one stays), and at the end. A
    step whose loss or gradients are not finite changes no weight: all ranks drop their gradients.
    The batches of its accumulation window, with step, epoch and seed, go to `nonfinite-step-*.pt`,
    read by `torch.load`. Under float16, whose scaler finds its scale by overflowing gradients, only
    losses count.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self.skipped = 0
        self.in_a_row = 0
        self.undecodable: defaultdict[str, set[int]] = defaultdict(set)
        self.largest: Batch | None = None  # that a training step had memory for
        self._window: list[tuple[int, list[Any]]] = []
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []

    def on_train_batch_start(
        self, _trainer: Any, _pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self._count_undecodable("train", batch[1])
        self._window.append((batch_idx, batch))

    def on_before_backward(self, _trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self._losses.append(loss.detach())
        self._terms.append(pl_module.last_losses)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        losses = torch.stack(self._losses)
        window, terms = self._window, self._terms
        self._window, self._losses, self._terms = [], [], []
        gradients = [] if _has_scaler(trainer) else _gradients(pl_module)
        if not _any_rank(trainer, ~_finite([losses, *gradients])):
            self.in_a_row = 0
            return
        optimizer.zero_grad(
            set_to_none=True
        )  # without gradients it changes nothing, decays nothing
        self.skipped += 1
        self.in_a_row += 1
        step = trainer.global_step
        where = (
            self._save(trainer, pl_module, window, losses)
            if self.skipped <= MOST_SAVED
            else "not saved any more"
        )
        what = _what_is_not_finite(terms)
        text = (
            f"optimizer step {step} skipped: its {what} are not finite (losses {losses.tolist()})"
        )
        logger.warning("%s; batches: %s; %d skipped so far", text, where, self.skipped)
        self._check_weights(
            trainer, pl_module, f"; not finite in step {step}: {what}; its batches: {where}"
        )
        if self.in_a_row >= MOST_IN_A_ROW:
            raise FloatingPointError(
                f"{MOST_IN_A_ROW} optimizer steps in a row had no finite loss or gradients, the last is step {step}; "
                f"its batches: {where}. {losses_in_words(pl_module.last_losses)}"
            )

    def on_train_batch_end(
        self, _trainer: Any, _pl_module: Any, _outputs: Any, batch: Any, _batch_idx: int
    ) -> None:
        size = _size(batch)
        if (
            self.largest is None
            or size.images * size.side**2 > self.largest.images * self.largest.side**2
        ):
            self.largest = size

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self._check_weights(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._check_weights(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, _checkpoint: dict[str, Any]) -> None:
        self._check_weights(trainer, pl_module)

    def on_validation_batch_start(
        self, _trainer: Any, _pl_module: Any, batch: Any, *_: Any
    ) -> None:
        self._count_undecodable("valid", batch[1])

    def on_train_epoch_end(self, *_: Any) -> None:
        self._window, self._losses, self._terms = [], [], []

    def state_dict(self) -> dict[str, Any]:
        numbers = {split: sorted(images) for split, images in self.undecodable.items()}
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "undecodable": numbers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        self.undecodable.update(
            {split: set(images) for split, images in state_dict["undecodable"].items()}
        )

    def memory_advice(self) -> str:
        """What to lower when memory has run out, and what there was memory for."""
        tried = f" in a step of {_size(self._window[-1][1])}" if self._window else ""
        fitted = (
            f"the largest batch that fitted: {self.largest}"
            if self.largest
            else "no batch has fitted yet"
        )
        return (
            f"out of memory{tried}; {fitted}. Lower batch_size, and raise grad_accum_steps by the same factor; lower "
            "resolution; or leave out the largest sizes with multi_scale=False or expanded_scales=False"
        )

    def _check_weights(self, trainer: Any, module: Any, more: str = "") -> None:
        weights = [_local(parameter.detach()) for parameter in module.parameters()]
        if not _any_rank(trainer, ~_finite(weights)):
            return
        names = [
            name
            for name, weight in module.named_parameters()
            if not _local(weight).isfinite().all()
        ]
        raise FloatingPointError(
            f"after optimizer step {trainer.global_step} the weights are not finite ({len(names)} tensors, first "
            f"{names[0] if names else 'on another rank'}){more}. {losses_in_words(module.last_losses)}"
        )

    def _count_undecodable(self, split: str, targets: Sequence[Mapping[str, Tensor]]) -> None:
        for target in targets:
            if "undecodable" in target:
                image, total = target["undecodable"].tolist()
                self.undecodable[split].add(image)
                count = len(self.undecodable[split])
                if count > 1 and count > MOST_UNDECODABLE * total:
                    raise RunError(
                        f"{count} of {total} {split} images cannot be decoded, more than {MOST_UNDECODABLE:.0%}; the "
                        "log names them, `rfdetr check` too. Replace or remove them, and go on with resume='last'"
                    )

    def _save(
        self, trainer: Any, module: Any, window: Sequence[tuple[int, list[Any]]], losses: Tensor
    ) -> str:
        """Writes the batches of a skipped step; each rank its own."""
        if trainer.fast_dev_run:
            return "not saved in a fast_dev_run"
        rank = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.output_dir / f"nonfinite-step-{trainer.global_step:07d}{rank}.pt"
        content = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "seed": module.seed,
            "rank": trainer.global_rank,
            "losses": losses.cpu(),
            "batches": [_plain_batch(number, batch) for number, batch in window],
        }
        try:
            atomic_write(path, lambda stream: torch.save(content, stream))
        except OSError as error:  # a full disk must not end what could go on
            return f"could not be saved ({error})"
        return str(path)


@contextmanager
def explained_memory(trainer: Any) -> Iterator[None]:
    """Says what to lower where a run of the trainer has no memory left."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        faults = next(
            (callback for callback in trainer.callbacks if isinstance(callback, FaultsCallback)),
            None,
        )
        if faults is None or not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(f"{faults.memory_advice()} ({error})") from error


def _plain_batch(number: int, batch: list[Any]) -> dict[str, Any]:
    (images, mask), targets = batch
    return {
        "batch": number,
        "images": images.cpu(),
        "mask": None if mask is None else mask.cpu(),
        "targets": [{name: value.cpu() for name, value in target.items()} for target in targets],
    }


def _size(batch: list[Any]) -> Batch:
    return Batch(len(batch[0].tensors), batch[0].tensors.shape[-1])


def _gradients(module: Any) -> list[Tensor]:
    return [
        _local(parameter.grad) for parameter in module.parameters() if parameter.grad is not None
    ]


def _local(tensor: Tensor) -> Tensor:
    """A tensor, or of a sharded one this rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _finite(tensors: Iterable[Tensor]) -> Tensor:
    filled = [tensor for tensor in tensors if tensor.numel()]  # a rank's part may be empty
    return get_total_norm(filled, float("inf")).isfinite()


def _what_is_not_finite(window: Iterable[Mapping[str, Tensor]]) -> str:
    """The terms of the loss in the batches of a window, or the gradients where all of them are
    finite.
    """
    names = {name for terms in window for name, value in terms.items() if not value.isfinite()}
    return ", ".join(sorted(names)) or "gradients"


def _any_rank(trainer: Any, flag: Tensor) -> bool:
    """Whether the flag is up on any rank: all must do the same."""
    return bool(
        trainer.strategy.reduce(flag.float(), reduce_op="max") if trainer.world_size > 1 else flag
    )


def _has_scaler(trainer: Any) -> bool:
    return trainer.precision == "16-mixed" and trainer.precision_plugin.scaler is not None
