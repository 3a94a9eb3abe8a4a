"""What a run does to its network beside the optimizer: an average of the weights, and drop path."""

# mypy: disable-error-code="override"

from __future__ import annotations

import copy
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rfdetr.errors import RunError
from rfdetr.geometry.boxes import at_least_float32
from rfdetr.training.lightning_state import find_callback, loss_scale
from rfdetr.training.module import RFDETRModule
from rfdetr.training.optim import ema_decay


class RFDETREMACallback(Callback):
    """Keeps `model`, an exponential moving average of the detector over optimizer steps.

    There is an update every `update_interval_steps`. The first copies the weights. The k-th keeps
    decay * (1 - exp(-k / tau)) of the average, so it follows quickly at first. Live weights in
    bfloat16 or float16 are averaged in float32: an update moves the average by less than they can
    hold. A step that float16's scaler skips, and then lowers its scale, is none.
    """

    def __init__(
        self, decay: float = 0.993, tau: float = 100, update_interval_steps: int = 1
    ) -> None:
        self.decay, self.tau, self.update_interval_steps = decay, tau, update_interval_steps
        self.updates = self._step = 0
        self._scale = 1.0
        self.model: nn.Module | None = None

    def setup(self, _trainer: Trainer, module: RFDETRModule, stage: str) -> None:
        if stage == "fit":  # before a checkpoint is restored, so that its average finds a home
            module.choose_trained()  # a second fit has adapters again; modules are set up later
            self.model = copy.deepcopy(module.detector).eval().requires_grad_(False)
            self.updates = 0

    def on_fit_start(self, _trainer: Trainer, module: RFDETRModule) -> None:
        average = self.averaged()
        average.to(module.device, at_least_float32(next(module.detector.parameters())).dtype)
        if self.updates == 0:  # a new run, or a checkpoint without an average
            average.load_state_dict(module.detector.state_dict())

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self._step, self._scale = trainer.global_step, loss_scale(trainer)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, module: RFDETRModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step, before, self._scale = trainer.global_step, self._scale, loss_scale(trainer)
        if self._step % self.update_interval_steps or self._scale < before:
            return
        self.updates += 1
        # Parameters and buffers alike: all are floats, as the network counts nothing.
        average, live = (
            [*m.parameters(), *m.buffers()] for m in (self.averaged(), module.detector)
        )
        live = [value.to(mean.dtype) for mean, value in zip(average, live, strict=True)]
        kept = ema_decay(self.updates, self.decay, self.tau) if self.updates > 1 else 0.0
        get_ema_multi_avg_fn(kept)(average, live, self.updates)  # type: ignore[no-untyped-call]

    def averaged(self) -> nn.Module:
        """The averaged model; `RunError` before training was set up."""
        if self.model is None:
            raise RunError("there is no averaged model before fit")
        return self.model

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.averaged().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, weights = state_dict["updates"], state_dict["weights"]
        self.averaged().to(next(iter(weights.values())).dtype).load_state_dict(weights)


def averaged_model(trainer: Trainer) -> nn.Module | None:
    """The averaged model of a run that keeps one and has trained."""
    found = find_callback(trainer, RFDETREMACallback)
    return found.model if found else None


class DropPathCallback(Callback):
    """Lowers the encoder's drop-path rate linearly from `rate` to 0 over the run's optimizer steps,
    or its time if that ends first.

    Stochastic depth regularises the early training; the last steps train the network that will be
    used, with all its blocks.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def on_train_batch_start(self, trainer: Trainer, module: RFDETRModule, *_: Any) -> None:
        done = trainer.global_step / max(module.total_steps, 1)
        module.detector.set_drop_path(self.rate * max(1 - max(done, module.time_share), 0.0))
