"""One rank of a run whose second rank has a loss that is no number in its second optimizer step."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rfdetr.config import RFDETRMiniConfig, TrainConfig
from rfdetr.evaluation import plots
from rfdetr.training import RFDETRDataModule, RFDETRModule, build_trainer
from rfdetr.training.callbacks import NonFiniteCallback
from rfdetr.training.processes import whole_weights

if __name__ == "__main__":
    plots.plot_metrics = plots.plot_history = lambda *_: None
    RFDETRDataModule.least_updates = 1
    settings = json.loads(sys.argv[1])
    config = TrainConfig(**settings["train"])
    model_config = RFDETRMiniConfig(**settings["model"])
    module = RFDETRModule(model_config, config)
    whole = module.compute_losses
    rank = int(os.environ["RANK"])

    def compute_losses(*args: object) -> dict:
        losses = whole(*args)
        factor = float("nan") if rank == 1 and module.global_step == 1 else 1.0
        return {name: value * factor for name, value in losses.items()}

    module.compute_losses = compute_losses
    trainer = build_trainer(
        config, model_config, accelerator="cpu", devices=2, strategy=settings["strategy"]
    )
    trainer.fit(module, RFDETRDataModule(model_config, config))
    faults = next(
        callback for callback in trainer.callbacks if isinstance(callback, NonFiniteCallback)
    )
    total = sum(float(weight.double().sum()) for weight in whole_weights(trainer, module).values())
    content = {"skipped": faults.skipped, "step": trainer.global_step, "sum": total}
    Path(config.output_dir, f"rank{rank}.json").write_text(json.dumps(content))
