"""Means over an epoch that outlive the process: Lightning's own begin anew when a run is resumed
inside an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor


class EpochMeansCallback(Callback):
    """Sums what the training step adds, and logs the means with the last batch of the epoch.

    Checkpoints hold the sums of every rank. The module brings this callback along, whatever others
    a trainer has.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight: float = 0
        self._logged = False
        self._restored: dict[str, Any] | None = None
        self._trainer: Trainer | None = None

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Adds one batch: detached scalars by the names to log them under, and how many images they
        are means of.
        """
        for name, value in values.items():
            total = value.float() * weight
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._weight += weight

    def setup(self, trainer: Any, _pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._trainer = trainer
            self._reset()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._restored:
            rows = self._restored["sums"].to(pl_module.device)
            same = (
                len(rows) == trainer.world_size
            )  # as when it was saved; else each takes an equal part of all
            own = rows[trainer.global_rank] if same else rows.sum(0) / trainer.world_size
            self._sums = dict(zip(self._restored["names"], own[1:].unbind(), strict=True))
            self._weight = own[0].item()
            self._restored = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        ends = (
            trainer.is_last_batch
            or trainer.should_stop
            or 0 <= trainer.max_steps <= trainer.global_step
        )
        if ends and not self._logged:
            self._log(pl_module)

    def on_train_epoch_end(self, _trainer: Any, pl_module: Any) -> None:
        if (
            not self._logged
        ):  # a run that was resumed at the validation pass, or an epoch that ended unannounced
            self._log(pl_module)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        if not self._sums or self._trainer is None:
            return {}
        own = torch.stack(
            [torch.full_like(next(iter(self._sums.values())), self._weight), *self._sums.values()]
        )
        gathered = self._trainer.strategy.all_gather(own).reshape(
            -1, len(own)
        )  # (ranks, 1 + names)
        return {"names": list(self._sums), "sums": gathered.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def _log(self, module: Any) -> None:
        means = {name: total / self._weight for name, total in self._sums.items()}
        module.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        self._logged = True

    def _reset(self) -> None:
        self._sums, self._weight, self._logged = {}, 0, False
