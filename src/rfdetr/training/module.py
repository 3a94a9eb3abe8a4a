"""`RFDETRModule`: the detector, its losses and its optimizer as a LightningModule; every extra is a callback."""

# ruff: noqa: ARG002 - Lightning passes more than a hook may need

from __future__ import annotations

import functools
import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from rfdetr.config import ModelConfig, SegmentationTrainConfig, TrainConfig
from rfdetr.config.arguments import check_kind
from rfdetr.data.images import normalize
from rfdetr.losses.criterion import Criterion
from rfdetr.models.build import build_detector
from rfdetr.models.detector import DetectorOutput
from rfdetr.models.postprocess import postprocess_outputs
from rfdetr.training.adapters import adapted, add_adapters, freeze_encoder, in_form_of
from rfdetr.training.batch_size import resolve_batch_size
from rfdetr.training.checkpoints import fill_in_training_state
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.means import EpochMeansCallback
from rfdetr.training.optim import lr_factor, multi_scale_sizes, parameter_groups
from rfdetr.training.processes import LossMean, broadcast_start
from rfdetr.training.steps import (
    as_batch,
    count_steps,
    draw_size,
    mix_seed,
    resize_batch,
    share_of_window,
)
from rfdetr.weights.names import to_published
from rfdetr.weights.pretrained import load_pretrained
from rfdetr.weights.writing import description

Targets = Sequence[Mapping[str, Tensor]]
Detections = list[dict[str, Tensor]]


class RFDETRModule(pl.LightningModule):
    """Owns the weights (`model`, the plain network), the criterion, post-processing and the optimizer.

    A batch is [images, targets]: images a `NestedTensor` of uint8 (B, 3, H, W), normalised here on the device (float
    images are taken as normalised), targets one dict per image. Random numbers come from `seed`: the configuration's,
    or one drawn here; checkpoints keep it.
    """

    def __init__(self, model_config: ModelConfig, train_config: TrainConfig) -> None:
        super().__init__()
        check_kind("model_config", model_config, ModelConfig)
        check_kind("train_config", train_config, TrainConfig)
        self.model_config = model_config
        self.train_config = train_config
        self.seed = secrets.randbits(31) if train_config.seed is None else train_config.seed
        self.class_names: list[str] | None = None
        self.data_facts: dict[str, Any] = {}
        self.total_steps = 0
        self.evaluation_loss = LossMean()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.model = build_detector(model_config, drop_path=train_config.drop_path)
            loaded = load_pretrained(self.model, model_config)
        if loaded and loaded.class_names and len(loaded.class_names) == model_config.num_classes:
            self.class_names = loaded.class_names
        self.choose_trained()
        self.criterion = build_criterion(model_config, train_config)
        self.postprocess = functools.partial(detections_of, num_select=model_config.num_select)
        self.epoch_means = EpochMeansCallback()

    def choose_trained(self) -> None:
        """Leaves to training what the configuration says: all weights, or an encoder frozen or with adapters."""
        if self.model_config.freeze_encoder:
            freeze_encoder(self.model)
        if self.model_config.backbone_lora and not adapted(self.model):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                add_adapters(self.model)

    def configure_callbacks(self) -> list[pl.Callback]:
        known = self.epoch_means in self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if known else [self.epoch_means]  # from the trainer's second run on; Lightning would remark on it

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1 and self.train_config.seed is None:  # every process drew one
            self.seed = broadcast_start(self.trainer, self.model, self.seed)
        if stage == "fit":
            resolve_batch_size(self, self.trainer.datamodule, self.trainer)  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        names, num_classes = data_class_names(self), self.model_config.num_classes
        if names is not None and len(names) < num_classes:
            warnings.warn(f"num_classes={num_classes}, but the data has only {len(names)} classes", stacklevel=2)
            names += [str(label) for label in range(len(names), num_classes)]  # files name every class of the model
        self.class_names = names
        if isinstance(datamodule := self.trainer.datamodule, RFDETRDataModule):  # type: ignore[attr-defined]
            self.data_facts = datamodule.facts()
        if self.train_config.seed is not None:
            pl.seed_everything(self.seed, verbose=False)

    def on_train_batch_start(self, batch: list[Any], batch_idx: int) -> None:
        # Stochastic depth draws from torch's own generator; so seeded, a resumed run draws what the whole one would.
        torch.manual_seed(mix_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))
        if self.train_config.multi_scale:
            config = self.model_config
            sizes = multi_scale_sizes(
                config.resolution, config.patch_size, config.num_windows, self.train_config.expanded_scales
            )
            batch[0] = resize_batch(batch[0], draw_size(sizes, self.seed, self.global_step))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> list[Any]:
        images, targets = as_batch(batch)
        moved = [{key: value.to(device, non_blocking=True) for key, value in target.items()} for target in targets]
        return [images.to(device, non_blocking=True), moved]

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        images, targets = batch
        outputs = self.model(normalize(images.tensors), images.mask)
        losses = self.compute_losses(outputs, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.log("train/loss_step", loss.detach(), prog_bar=True)
        means = {f"train/{name}": value.detach() for name, value in {"loss": loss, **losses}.items()}
        self.epoch_means.add(means, len(targets))
        # Lightning divides by accumulate_grad_batches before it goes backward.
        return loss * share_of_window(batch_idx, self.trainer)

    def compute_losses(self, outputs: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """The weighted terms of the loss by name; what a subclass adds is summed and logged like these."""
        terms: dict[str, Tensor] = self.criterion(outputs, targets)
        return terms

    def validation_step(self, batch: list[Any], batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, "val/loss")

    def test_step(self, batch: list[Any], batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, "test/loss")

    def predict_step(self, batch: list[Any], batch_idx: int) -> Detections:
        return self.detect(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.train_config
        groups = parameter_groups(
            self.model,
            lr=config.lr,
            lr_encoder=config.lr_encoder,
            layer_decay=config.lr_vit_layer_decay,
            component_decay=config.lr_component_decay,
            weight_decay=config.weight_decay,
        )
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        # Lightning would keep the gradients through the next forward pass, when most memory is in use.
        optimizer.register_step_post_hook(lambda stepped, *_: stepped.zero_grad())
        # Lightning clips no gradients that the optimizer might still unscale; this one is left nothing to unscale.
        optimizer._step_supports_amp_scaling = False
        steps = count_steps(self.trainer, len(self.trainer.fit_loop._data_source.dataloader()))
        self.total_steps = steps.total
        factor = functools.partial(
            lr_factor,
            schedule=config.lr_scheduler,
            total_steps=steps.total,
            steps_per_epoch=steps.per_epoch,
            warmup_epochs=config.warmup_epochs,
            lr_drop=config.lr_drop,
            min_factor=config.lr_min_factor,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The same tensors under published names: a file holds them once, and what reads .pth files reads this one.
        weights = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
        checkpoint["model"] = to_published(weights)
        checkpoint.update(description(self.model_config, self.class_names, self.data_facts))
        checkpoint["seed"] = self.seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        fill_in_training_state(checkpoint, self.trainer)
        training = self.trainer.state.fn == "fit"
        checkpoint["state_dict"] = in_form_of(self.model, checkpoint["state_dict"], training)
        self.seed = checkpoint.get("seed", self.seed)

    def detect(self, batch: list[Any], model: nn.Module | None = None) -> Detections:
        """Detections in pixels of the original images, of `model` or the module's own."""
        images, targets = batch
        outputs = (model or self.model)(normalize(images.tensors), images.mask)
        return self.postprocess(outputs, targets)

    def _evaluate(self, batch: list[Any], loss_name: str) -> dict[str, Any]:
        images, targets = batch
        outputs = self.model(normalize(images.tensors), images.mask)
        if self.train_config.compute_val_loss:
            objects = [without_crowds(target) for target in targets]
            loss = torch.stack(list(self.compute_losses(outputs, objects).values())).sum()
            self.evaluation_loss.update(loss, sum(len(target["labels"]) for target in objects))
            self.log(loss_name, self.evaluation_loss, batch_size=len(targets))
        return {"results": self.postprocess(outputs, targets), "targets": targets}


RFDETRModelModule = RFDETRModule
"""The name under which later published releases have it."""


def build_criterion(model: ModelConfig, train: TrainConfig) -> Criterion:
    """The losses of a run; a plain `TrainConfig` leaves the weights of the mask terms at their defaults."""
    usual = SegmentationTrainConfig(dataset_dir=train.dataset_dir)
    masks = train if isinstance(train, SegmentationTrainConfig) else usual
    return Criterion(
        group_detr=model.group_detr,
        cls_loss_coef=train.cls_loss_coef,
        bbox_loss_coef=train.bbox_loss_coef,
        giou_loss_coef=train.giou_loss_coef,
        mask_ce_loss_coef=masks.mask_ce_loss_coef,
        mask_dice_loss_coef=masks.mask_dice_loss_coef,
        mask_point_sample_ratio=masks.mask_point_sample_ratio,
    )


def detections_of(outputs: DetectorOutput, targets: Targets, num_select: int) -> Detections:
    """The best detections of each image, from the last decoder layer, in pixels of the original image."""
    sizes = torch.stack([target["orig_size"] for target in targets])
    return postprocess_outputs(outputs, sizes, num_select)


def data_class_names(module: RFDETRModule) -> list[str] | None:
    """Names of the classes of the trainer's data; None where loaders were given without our datamodule.

    Refuses a head with fewer classes, before a label is out of its range.
    """
    datamodule = module.trainer.datamodule  # type: ignore[attr-defined]
    names = datamodule.class_names if isinstance(datamodule, RFDETRDataModule) else None
    if names is not None and len(names) > module.model_config.num_classes:
        raise ValueError(
            f"the model has num_classes={module.model_config.num_classes}, but the data has {len(names)} classes "
            f"({', '.join(names)}): build the model with num_classes={len(names)}"
        )
    return names


def without_crowds(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What losses read, of single objects; a crowd's box is no box to learn or to be measured against."""
    kept = ~target["iscrowd"] if "iscrowd" in target else torch.ones_like(target["labels"], dtype=torch.bool)
    return {name: target[name][kept] for name in ("labels", "boxes", "masks", "has_mask") if name in target}
