"""The progress bar of an epoch, which is gone at its end: a line of the log takes its place."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ProgressBar, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm, convert_inf


class EpochProgressBar(TQDMProgressBar):
    """Lightning's bar as wide as the terminal, epochs counted from 1:
    `epoch 3/50: 45%|███   | 9/20 [00:12<00:15]`.
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    @property
    def train_description(self) -> str:
        epochs = self.trainer.max_epochs or 0
        return f"epoch {self.trainer.current_epoch + 1}" + (f"/{epochs}" if epochs > 0 else "")

    def on_train_start(self, *_: Any) -> None:
        self.train_progress_bar = Tqdm(disable=True)  # none before the first epoch

    def on_train_epoch_start(self, *_: Any) -> None:
        self.train_progress_bar = self.init_train_tqdm()
        self.train_progress_bar.leave = False
        self.train_progress_bar.reset(convert_inf(self.total_train_batches))

    def on_train_epoch_end(self, *_: Any) -> None:
        self.train_progress_bar.close()

    def on_exception(self, *_: Any) -> None:
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()  # so that what is told next has a line of its own

    def get_metrics(self, trainer: Trainer, _pl_module: LightningModule) -> dict[str, Any]:
        """The loss and users' own `prog_bar=True`; validation's figures are in the epoch's line."""
        shown = trainer.progress_bar_metrics.items()
        kept = {name: value for name, value in shown if not name.startswith("val/")}
        return {n.removeprefix("train/").removesuffix("_step"): kept[n] for n in kept}


def with_progress_bar(callbacks: list[Callback] | Callback | None) -> list[Callback]:
    """The callbacks of a trainer, and our bar where they hold none."""
    given = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    has_bar = any(isinstance(callback, ProgressBar) for callback in given)
    return given if has_bar else [*given, EpochProgressBar()]
