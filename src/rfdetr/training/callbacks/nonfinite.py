"""Optimizer steps without a finite loss or gradients: skipped, saved, counted, and in the end the
reason to stop.
"""

# mypy: disable-error-code="override"

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from rfdetr.files import atomic_write
from rfdetr.training.run_folder import RunFolder
from rfdetr.training.steps import losses_in_words

if TYPE_CHECKING:
    from rfdetr.training.module import RFDETRModule

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 10  # skipped steps that stop a run
MOST_SAVED = 20  # skipped steps whose batches are kept on disk


class NonFiniteCallback(pl.Callback):
    """Skips optimizer steps that are not finite, and ends a run whose weights no longer are.

    A step whose loss or gradients are not finite changes no weight: all ranks drop their gradients.
    The batches of its accumulation window, with step, epoch and seed, go to `nonfinite-step-*.pt`,
    read by `torch.load`. Under float16, whose scaler finds its scale by overflowing gradients, only
    losses count. `FloatingPointError` ends the run after `MOST_IN_A_ROW` such steps, and where the
    weights are not finite: they are looked at with every skipped step, before each validation pass,
    before a `.ckpt` is written (the last good one stays), and at the end.
    """

    state_key = "FaultsCallback"  # the class's name when the first checkpoints were written

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self.skipped = 0
        self.in_a_row = 0
        self._begin_window()

    def on_train_batch_start(
        self, _trainer: pl.Trainer, _pl_module: RFDETRModule, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append((batch_idx, batch))

    def on_before_backward(
        self, _trainer: pl.Trainer, pl_module: RFDETRModule, loss: Tensor
    ) -> None:
        self._losses.append(loss.detach())
        self._terms.append(pl_module.last_losses)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: RFDETRModule, optimizer: torch.optim.Optimizer
    ) -> None:
        losses, terms, batches = torch.stack(self._losses), self._terms, self._batches
        self._begin_window()
        scaled = trainer.precision == "16-mixed" and getattr(trainer.precision_plugin, "scaler", None)
        given = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
        if _all_finite(trainer, [losses] if scaled else [losses, *given]):
            self.in_a_row = 0
            return
        optimizer.zero_grad(set_to_none=True)  # without gradients it moves and decays no weight
        self.skipped += 1
        self.in_a_row += 1
        step, where = trainer.global_step, "not saved any more"
        if self.skipped <= MOST_SAVED:
            where = self._save(trainer, pl_module, batches, losses)
        bad = {name for term in terms for name, value in term.items() if not value.isfinite()}
        what = ", ".join(sorted(bad)) or "gradients"
        logger.warning(
            "optimizer step %d skipped: its %s are not finite (losses %s); batches: %s; %d skipped so far",
            *(step, what, losses.tolist(), where, self.skipped),
        )
        more = f"; not finite in step {step}: {what}; its batches: {where}"
        check_weights(trainer, pl_module, more)
        if self.in_a_row >= MOST_IN_A_ROW:
            raise FloatingPointError(
                f"{MOST_IN_A_ROW} optimizer steps in a row had no finite loss or gradients, the last is step {step}; "
                f"its batches: {where}. {losses_in_words(pl_module.last_losses)}"
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: RFDETRModule) -> None:
        if trainer.state.fn == "fit":
            check_weights(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: RFDETRModule) -> None:
        check_weights(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: RFDETRModule, _checkpoint: dict[str, Any]
    ) -> None:
        check_weights(trainer, pl_module)

    def on_train_epoch_end(self, *_: Any) -> None:
        self._begin_window()

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def _begin_window(self) -> None:
        self._batches: list[tuple[int, Any]] = []
        self._losses: list[Tensor] = []
        self._terms: list[dict[str, Tensor]] = []

    def _save(
        self,
        trainer: pl.Trainer,
        module: RFDETRModule,
        batches: list[tuple[int, Any]],
        losses: Tensor,
    ) -> str:
        """Writes the batches of a skipped step, each rank its own; where to, or why not."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return "not saved in a fast_dev_run"
        step, rank = trainer.global_step, trainer.global_rank
        path = RunFolder(self.output_dir).nonfinite(step, rank if trainer.world_size > 1 else None)
        content: dict[str, Any] = {"step": step, "epoch": trainer.current_epoch, "seed": module.seed, "rank": rank}
        content |= {"losses": losses.cpu(), "batches": []}
        for number, ((images, mask), targets) in batches:
            told = [{name: value.cpu() for name, value in target.items()} for target in targets]
            entry = {"batch": number, "images": images.cpu(), "targets": told}
            content["batches"].append({**entry, "mask": None if mask is None else mask.cpu()})
        try:
            atomic_write(path, lambda stream: torch.save(content, stream))
        except OSError as error:  # a full disk must not end what could go on
            return f"could not be saved ({error})"
        return str(path)


def check_weights(trainer: pl.Trainer, module: RFDETRModule, more: str = "") -> None:
    """Raises `FloatingPointError` where a weight of the module is not finite on any rank."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    if _all_finite(trainer, weights.values()):
        return
    bad = [name for name, weight in weights.items() if not _own_part(weight).isfinite().all()]
    raise FloatingPointError(
        f"after optimizer step {trainer.global_step} the weights are not finite ({len(bad)} tensors, first "
        f"{bad[0] if bad else 'on another rank'}){more}. {losses_in_words(module.last_losses)}"
    )


def _all_finite(trainer: pl.Trainer, tensors: Iterable[Tensor]) -> bool:
    """Whether the tensors of all ranks are finite; collective, as all must do the same."""
    parts = [part for tensor in tensors if (part := _own_part(tensor)).numel()]
    bad = ~get_total_norm(parts, float("inf")).isfinite()
    if trainer.world_size > 1:
        bad = trainer.strategy.reduce(bad.float(), reduce_op="max")
    return not bad


def _own_part(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this rank holds, which may be empty; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
