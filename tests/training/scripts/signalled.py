"""Trains with loader workers, and in one hook says READY and waits a moment for the signal that the
test sends.
"""

from __future__ import annotations

import json
import sys
import time

import pytorch_lightning as pl

from rfdetr.config import RFDETRMiniConfig, TrainConfig
from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer

settings = json.loads(sys.argv[1])
config, model_config = TrainConfig(**settings["train"]), RFDETRMiniConfig(**settings["model"])


def wait(*_: object) -> None:
    print("READY", flush=True)
    time.sleep(1)


watch = pl.Callback()
setattr(watch, settings["hook"], wait)
trainer = build_trainer(config, model_config)
trainer.callbacks.insert(0, watch)
trainer.fit(RFDETRModule(model_config, config), RFDETRDataModule(model_config, config))
