"""The documented script, run by tests with several processes: what each rank saw goes to
rank<N>.json.
"""

import json
import os
import sys

import pytorch_lightning as pl

from rfdetr.config import RFDETRMiniConfig, TrainConfig
from rfdetr.evaluation import plots
from rfdetr.training import RFDETRDataModule, RFDETREMACallback, RFDETRModule, build_trainer

plots.plot_metrics = plots.plot_history = lambda *_: None
settings = json.loads(sys.argv[1])
seen = {"images": [], "evaluated": [], "gradients": [], "checksums": {}}


def write(trainer, module):
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    content = {**seen, "seed": module.seed, "epochs": trainer.current_epoch, "metrics": metrics}
    with open(
        os.path.join(train_config.output_dir, f"rank{trainer.global_rank}.json"), "w"
    ) as file:
        json.dump(content, file)


class Watch(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        seen["images"].append([int(target["image_id"]) for target in batch[1]])
        fail_at = settings.get("fail_on_rank_1_at")
        if trainer.global_rank == 1 and fail_at is not None and trainer.global_step == fail_at:
            raise OSError("rank 1 has lost its disk")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
        seen["evaluated"] += [int(target["image_id"]) for target in batch[1]]

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 0:
            seen["gradients"] = [
                float(parameter.grad.norm())
                for group in optimizer.param_groups
                for parameter in group["params"]
            ]

    def on_train_epoch_end(self, trainer, module):
        write(trainer, module)

    def on_train_end(self, trainer, module):  # before the best weights are loaded
        models = {"live": module.model}
        for callback in trainer.callbacks:
            if isinstance(callback, RFDETREMACallback):
                models["ema"] = callback.model
        for name, model in models.items():
            tensors = [
                getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)()
                for tensor in model.parameters()
            ]
            seen["checksums"][name] = [float(tensor.detach().double().sum()) for tensor in tensors]


model_config = RFDETRMiniConfig(**settings["model"])
train_config = TrainConfig(**settings["train"])
module = RFDETRModule(model_config, train_config)
datamodule = RFDETRDataModule(model_config, train_config)
trainer = build_trainer(train_config, model_config, **settings["trainer"])
trainer.callbacks.insert(0, Watch())
trainer.fit(module, datamodule)

seen["best"] = [
    float(getattr(t, "full_tensor", lambda t=t: t)().double().sum())
    for t in module.model.state_dict().values()
]
if settings["validate"]:
    seen["validated"] = trainer.validate(module, datamodule, verbose=False)[0]
write(trainer, module)
