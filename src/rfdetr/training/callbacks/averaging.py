"""Exponential moving average of the weights, evaluated beside the live ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rfdetr.errors import RunError
from rfdetr.geometry.boxes import at_least_float32
from rfdetr.training.optim import ema_decay


class RFDETREMACallback(Callback):
    """Keeps `model`, an average of the module's detector over all optimizer steps, parameters and
    buffers alike.

    The first update copies the weights, the k-th keeps decay * (1 - exp(-k / tau)) of the average,
    so it follows quickly at first. The average has float32 or more of live weights with less: it
    moves by parts of them that bfloat16 would round away.
    """

    def __init__(self, decay: float = 0.993, tau: float = 100) -> None:
        self.decay = decay
        self.tau = tau
        self.updates = 0
        self.model: nn.Module | None = None
        self._step = 0

    def setup(self, _trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":  # before a checkpoint is restored, so that its average finds a home
            pl_module.choose_trained()  # a second fit begins with adapters again; modules are set up after callbacks
            self.model = copy.deepcopy(pl_module.detector).eval().requires_grad_(False)
            self.updates = 0

    def on_fit_start(self, _trainer: Any, pl_module: Any) -> None:
        average = self.averaged()
        exact = at_least_float32(next(pl_module.detector.parameters()))
        average.to(pl_module.device, exact.dtype)
        if (
            self.updates == 0
        ):  # what was restored since `setup`, if anything, had no average of its own
            average.load_state_dict(pl_module.detector.state_dict())

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step = trainer.global_step
        self.updates += 1
        average, live = _floats(self.averaged()), _floats(pl_module.detector)
        live = [value.to(mean.dtype) for mean, value in zip(average, live, strict=True)]
        kept = ema_decay(self.updates, self.decay, self.tau) if self.updates > 1 else 0.0
        get_ema_multi_avg_fn(kept)(average, live, self.updates)  # type: ignore[no-untyped-call]

    def averaged(self) -> nn.Module:
        """The averaged model; an error before training was set up."""
        if self.model is None:
            raise RunError("there is no averaged model before fit")
        return self.model

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.averaged().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        weights = state_dict["weights"]
        self.averaged().to(next(iter(weights.values())).dtype).load_state_dict(weights)


def averaged_model(trainer: Any) -> nn.Module | None:
    """The averaged model of a run that keeps one and has trained."""
    return next(
        (
            callback.model
            for callback in trainer.callbacks
            if isinstance(callback, RFDETREMACallback)
        ),
        None,
    )


def _floats(model: nn.Module) -> list[Tensor]:
    # The network counts nothing: it has no integer buffers that an average would have to copy.
    return [*model.parameters(), *model.buffers()]
