"""Means over an epoch that a run resumed inside it goes on with; Lightning's would begin anew."""

# mypy: disable-error-code="override"

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

if TYPE_CHECKING:  # which imports this file
    from rfdetr.training.module import RFDETRModule


class EpochMeansCallback(Callback):
    """Sums what the training step adds, and logs the means with the last batch of the epoch.

    Checkpoints hold the sums of every rank. The module brings this callback along, whatever others
    a trainer has.
    """

    _trainer: Trainer

    def __init__(self) -> None:
        self._start_anew()

    def _start_anew(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight: float = 0
        self._logged = False

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Adds the `values` of a batch, detached means over `weight` images, by name."""
        for name, value in values.items():
            total = value.float() * weight
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._weight += weight

    def setup(self, trainer: Trainer, _module: RFDETRModule, stage: str) -> None:
        self._trainer = trainer
        if stage == "fit":  # before a checkpoint is read
            self._start_anew()

    def on_train_batch_end(self, trainer: Trainer, module: RFDETRModule, *_: Any) -> None:
        over = 0 <= trainer.max_steps <= trainer.global_step
        if trainer.is_last_batch or trainer.should_stop or over:
            self._log(module)

    def on_train_epoch_end(self, _trainer: Trainer, module: RFDETRModule) -> None:
        self._log(module)  # an epoch that ended unannounced, or goes on at its validation pass
        self._start_anew()

    def state_dict(self) -> dict[str, Any]:
        """{"names": N names, "sums": (ranks, 1 + N), the images and then the sum of each name}."""
        if not self._sums:
            return {}
        sums = list(self._sums.values())
        own = torch.stack([torch.full_like(sums[0], self._weight), *sums])
        gathered = self._trainer.strategy.all_gather(own).reshape(-1, len(own))
        return {"names": list(self._sums), "sums": gathered.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        trainer, rows = self._trainer, state_dict["sums"]
        # Of as many ranks as now each takes its own; else each takes an equal part of all.
        same = len(rows) == trainer.world_size
        own = rows[trainer.global_rank] if same else rows.sum(0) / trainer.world_size
        sums = own[1:].to(trainer.strategy.root_device)
        self._sums = dict(zip(state_dict["names"], sums.unbind(), strict=True))
        self._weight = own[0].item()

    def _log(self, module: RFDETRModule) -> None:
        if not self._logged:
            means = {name: total / self._weight for name, total in self._sums.items()}
            module.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
            self._logged = True
