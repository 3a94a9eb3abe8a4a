"""Optimizer steps without a finite loss or gradients: skipped, saved, and in the end fatal."""

# mypy: disable-error-code="override"

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from rfdetr.files import atomic_write
from rfdetr.training.lightning_state import loss_scale
from rfdetr.training.module import RFDETRModule
from rfdetr.training.run_folder import RunFolder, saves
from rfdetr.training.steps import losses_in_words

logger = logging.getLogger(__name__)

Batches = list[tuple[int, Any]]  # (number in the epoch, [images, targets])
MOST_IN_A_ROW = 10  # skipped steps that stop a run
MOST_SAVED = 20  # skipped steps whose batches are kept on disk


class NonFiniteCallback(Callback):
    """Skips optimizer steps that are not finite, and ends a run whose weights no longer are.

    A step whose loss or gradients are not finite changes no weight: all ranks drop their gradients.
    The batches of its accumulation window, with step, epoch and seed, go to `nonfinite-step-*.pt`,
    read by `torch.load`. Under float16, whose scaler finds its scale by overflowing gradients,
    these count only where the scale is down to 1: it is then not the scale that makes them so.
    `FloatingPointError` ends the run after `MOST_IN_A_ROW` such steps, and where the weights are
    not finite: they are looked at with every skipped step, before each validation pass, before a
    `.ckpt` is written (the last good one stays), and at the end.
    """

    state_key = "FaultsCallback"  # the class's name when the first checkpoints were written

    def __init__(self, output_dir: str | Path) -> None:
        self._folder = RunFolder(output_dir)
        self.skipped = self.in_a_row = 0
        self._begin_window()

    def _begin_window(self, *_: Any) -> None:
        self._batches: Batches = []
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []

    on_train_epoch_end = _begin_window  # type: ignore[assignment]

    def on_train_batch_start(self, _: Trainer, __: Any, batch: Any, batch_idx: int) -> None:
        self._batches.append((batch_idx, batch))

    def on_before_backward(self, _: Trainer, module: RFDETRModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())
        self._terms.append(module.last_losses)

    def on_before_optimizer_step(
        self, trainer: Trainer, module: RFDETRModule, optimizer: Optimizer
    ) -> None:
        losses, terms, batches = torch.stack(self._losses), self._terms, self._batches
        self._begin_window()
        gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
        if _all_finite(trainer, [losses, *gradients]):
            self.in_a_row = 0
            return
        optimizer.zero_grad(set_to_none=True)  # without gradients it moves and decays no weight
        if loss_scale(trainer) > 1 and _all_finite(trainer, [losses]):
            return  # the scaler has seen them: it skips the step and halves its scale
        self.skipped += 1
        self.in_a_row += 1
        step, where = trainer.global_step, "not saved any more"
        if self.skipped <= MOST_SAVED:
            where = self._save(trainer, module.seed, batches, losses)
        bad = {name for term in terms for name, value in term.items() if not value.isfinite()}
        what = ", ".join(sorted(bad)) or "gradients"
        logger.warning(
            "optimizer step %d skipped: its %s are not finite (losses %s); batches: %s; "
            "%d skipped so far",
            *(step, what, losses.tolist(), where, self.skipped),
        )
        check_weights(trainer, module, f"; not finite in step {step}: {what}; its batches: {where}")
        if self.in_a_row >= MOST_IN_A_ROW:
            raise FloatingPointError(
                f"{MOST_IN_A_ROW} optimizer steps in a row had no finite loss or gradients, the "
                f"last is step {step}; its batches: {where}. {losses_in_words(module.last_losses)}"
            )

    def on_validation_start(self, trainer: Trainer, module: RFDETRModule) -> None:
        if trainer.state.fn == "fit":
            check_weights(trainer, module)

    def on_train_end(self, trainer: Trainer, module: RFDETRModule, *_: Any) -> None:
        check_weights(trainer, module)

    on_save_checkpoint = on_train_end  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def _save(self, trainer: Trainer, seed: int, batches: Batches, losses: Tensor) -> str:
        """Writes the batches of a skipped step, each rank its own; where to, or why not."""
        if not saves(trainer):
            return "not saved in a fast_dev_run"
        step, rank = trainer.global_step, trainer.global_rank
        path = self._folder.nonfinite(step, rank if trainer.world_size > 1 else None)
        content: dict[str, Any] = {"step": step, "epoch": trainer.current_epoch, "seed": seed}
        content |= {"rank": rank, "losses": losses.cpu(), "batches": []}
        for number, (nested, targets) in batches:
            images, mask = nested.to("cpu")
            told = [{name: value.cpu() for name, value in target.items()} for target in targets]
            entry = {"batch": number, "images": images, "targets": told, "mask": mask}
            content["batches"].append(entry)
        try:
            atomic_write(path, lambda stream: torch.save(content, stream))
        except OSError as error:  # a full disk must not end what could go on
            return f"could not be saved ({error})"
        return str(path)


def check_weights(trainer: Trainer, module: RFDETRModule, more: str = "") -> None:
    """Raises `FloatingPointError` where a weight of the module is not finite on any rank."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    if _all_finite(trainer, weights.values()):
        return
    bad = [name for name, weight in weights.items() if not _own_part(weight).isfinite().all()]
    raise FloatingPointError(
        f"after optimizer step {trainer.global_step} the weights are not finite ({len(bad)} "
        f"tensors, first {bad[0] if bad else 'on another rank'}){more}. "
        f"{losses_in_words(module.last_losses)}"
    )


def _all_finite(trainer: Trainer, tensors: Iterable[Tensor]) -> bool:
    """Whether the tensors of all ranks are finite; collective, as all must do the same."""
    parts = [part for tensor in tensors if (part := _own_part(tensor)).numel()]
    bad = ~get_total_norm(parts, float("inf")).isfinite()
    if trainer.world_size > 1:
        bad = trainer.strategy.reduce(bad.float(), reduce_op="max")
    return not bad


def _own_part(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this rank holds, which may be empty; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
