"""`RFDETRModule`: the detector, its losses and its optimizer as a LightningModule; every extra is a
callback.
"""

# ruff: noqa: ARG002 - Lightning passes more than a hook may need

from __future__ import annotations

import functools
import os
import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import Self

from rfdetr.checks import check_kind
from rfdetr.config import ModelConfig, SegmentationTrainConfig, TrainConfig
from rfdetr.data.images import normalize
from rfdetr.errors import InputError
from rfdetr.losses.criterion import Criterion
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector, DetectorOutput, detector_in
from rfdetr.models.postprocess import postprocess_outputs
from rfdetr.training.adapters import adapted, add_adapters, freeze_encoder, in_form_of
from rfdetr.training.batch_size import resolve_batch_size
from rfdetr.training.checkpoints import (
    AtomicCheckpointIO,
    Moments,
    PlainCheckpointIO,
    convert_content,
)
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.lightning_state import place_in_run, training_loader
from rfdetr.training.means import EpochMeansCallback
from rfdetr.training.network import add_wrapper, check_wrapper, hide_wrapper, take_precision
from rfdetr.training.optim import lr_factor, multi_scale_sizes, parameter_groups
from rfdetr.training.processes import LossMean, broadcast_start, is_sharded
from rfdetr.training.resume import check_shared
from rfdetr.training.steps import (
    UNKNOWN,
    as_batch,
    count_steps,
    draw_size,
    length_of,
    losses_in_words,
    mix_seed,
    resize_batch,
    share_of_window,
)
from rfdetr.weights.identify import class_names, config_from_checkpoint
from rfdetr.weights.load import load_pretrained
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import checkpoint_of
from rfdetr.weights.writing import description

HOW_TRAINED = ("freeze_encoder", "backbone_lora", "gradient_checkpointing", "amp")
Targets = Sequence[Mapping[str, Tensor]]
Detections = list[dict[str, Tensor]]


class RFDETRModule(pl.LightningModule):
    """Owns the weights (`model`, the network), the criterion, post-processing and the optimizer.

    `model` may be compiled (`torch.compile`, `model.compile()`) or wrapped before fit; `detector`
    is the plain network inside, whose names state dicts and files have.

    A batch is [images, targets]: images a `NestedTensor` of uint8 (B, 3, H, W), normalised here on
    the device (float images are taken as normalised), targets one dict per image. Random numbers
    come from `seed`: the configuration's, or one drawn here; checkpoints keep it.
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
        self.resumed_at = (0, 0)
        """Epoch and batch that a resumed run has begun with."""
        self._moments: Moments = {}  # of another training loop's optimizer, for ours
        self.last_losses: dict[str, Tensor] = {}  # of the last training batch: "loss" and its terms
        self.evaluation_loss = LossMean()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.model = build_detector(model_config, drop_path=train_config.drop_path)
            loaded = load_pretrained(self.model, model_config)
        if loaded and loaded.class_names and len(loaded.class_names) == model_config.num_classes:
            self.class_names = loaded.class_names
        self.register_state_dict_post_hook(hide_wrapper)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(add_wrapper)  # type: ignore[no-untyped-call]
        self.choose_trained()
        self.criterion = build_criterion(model_config, train_config)
        self.postprocess = functools.partial(detections_of, num_select=model_config.num_select)
        self.epoch_means = EpochMeansCallback()

    @property
    def detector(self) -> Detector:
        """The plain network, whatever wraps it in `model`."""
        return detector_in(self.model)

    def choose_trained(self) -> None:
        """Leaves to training what the configuration says: all weights, or an encoder frozen or with
        adapters.
        """
        if self.model_config.freeze_encoder:
            freeze_encoder(self.detector)
        if self.model_config.backbone_lora and not adapted(self.detector):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                add_adapters(self.detector)

    def configure_callbacks(self) -> list[pl.Callback]:
        known = self.epoch_means in self.trainer.callbacks  # type: ignore[attr-defined]
        return (
            [] if known else [self.epoch_means]
        )  # from the trainer's second run on; Lightning would remark on it

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1 and self.train_config.seed is None:  # every process drew one
            self.seed = broadcast_start(self.trainer, self.model, self.seed)
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = PlainCheckpointIO()
        take_precision(self, stage)
        if stage == "fit":
            check_wrapper(self)
            self.resumed_at, self._moments = (0, 0), {}
            resolve_batch_size(self, self.trainer.datamodule, self.trainer)  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        self.class_names, num_classes = data_class_names(self), self.model_config.num_classes
        found = self.trainer.datamodule.class_names if self.class_names is not None else None  # type: ignore[attr-defined]
        if found is not None and len(found) < num_classes:
            warnings.warn(
                f"num_classes={num_classes}, but the data has only {len(found)} classes",
                stacklevel=2,
            )
        if isinstance(datamodule := self.trainer.datamodule, RFDETRDataModule):  # type: ignore[attr-defined]
            self.data_facts = datamodule.facts()
        if self.train_config.seed is not None:
            pl.seed_everything(self.seed, verbose=False)

    def on_train_batch_start(self, batch: list[Any], batch_idx: int) -> None:
        # Stochastic depth draws from torch's own generator; so seeded, a resumed run draws what the
        # whole one would.
        torch.manual_seed(mix_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))
        if self.train_config.multi_scale:
            config = self.model_config
            sizes = multi_scale_sizes(
                config.resolution,
                config.patch_size,
                config.num_windows,
                self.train_config.expanded_scales,
            )
            batch[0] = resize_batch(batch[0], draw_size(sizes, self.seed, self.global_step))

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> list[Any]:
        images, targets = as_batch(batch)
        moved = [
            {key: value.to(device, non_blocking=True) for key, value in target.items()}
            for target in targets
        ]
        return [images.to(device, non_blocking=True), moved]

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        images, targets = batch
        outputs = self.model(normalize(images.tensors), images.mask)
        losses = self.compute_losses(outputs, targets)
        loss = torch.stack(list(losses.values())).sum()
        terms = {
            f"train/{name}": value.detach() for name, value in {"loss": loss, **losses}.items()
        }
        self.log("train/loss_step", terms["train/loss"], prog_bar=True)
        self.log_dict(
            {f"{name}_step": value for name, value in terms.items() if name != "train/loss"}
        )
        self.last_losses = {name.removeprefix("train/"): value for name, value in terms.items()}
        self.epoch_means.add(terms, len(targets))
        # Lightning divides by accumulate_grad_batches before it goes backward.
        epoch, first = self.resumed_at
        return loss * share_of_window(
            batch_idx, self.trainer, first if epoch == self.current_epoch else 0
        )

    def compute_losses(self, outputs: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """The weighted terms of the loss by name; what a subclass adds is summed and logged like
        these.
        """
        terms: dict[str, Tensor] = self.criterion(outputs, targets)
        return terms

    def validation_step(self, batch: list[Any], batch_idx: int) -> dict[str, Any]:
        found = self.evaluate(batch)
        if self.train_config.compute_val_loss:
            self.log("val/loss", self.evaluation_loss, batch_size=len(batch[1]))
        return found

    def test_step(self, batch: list[Any], batch_idx: int) -> dict[str, Any]:
        found = self.evaluate(batch)
        if self.train_config.compute_val_loss:
            self.log("test/loss", self.evaluation_loss, batch_size=len(batch[1]))
        return found

    def predict_step(self, batch: list[Any], batch_idx: int) -> Detections:
        return self.detect(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.train_config
        groups = parameter_groups(
            self.detector,
            lr=config.lr,
            lr_encoder=config.lr_encoder,
            layer_decay=config.lr_vit_layer_decay,
            component_decay=config.lr_component_decay,
            weight_decay=config.weight_decay,
        )
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        # Lightning would keep the gradients through the next forward pass, when most memory is in
        # use.
        optimizer.register_step_post_hook(lambda stepped, *_: stepped.zero_grad())
        # Lightning clips no gradients that the optimizer might still unscale; this one is left
        # nothing to unscale.
        optimizer._step_supports_amp_scaling = False
        for name, parameter in self.detector.named_parameters():
            if parameter.requires_grad and name in self._moments:
                optimizer.state[parameter] = dict(self._moments[name])
        loader = training_loader(self.trainer)
        steps = count_steps(self.trainer, length_of(loader), config.epochs)
        if steps.total == UNKNOWN and (needing := needing_steps(config)):
            raise InputError(
                f"the training loader does not tell how many batches it has, and {' and '.join(needing)} must know: "
                "give the trainer max_steps or limit_train_batches, or the dataset __len__"
            )
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
        before = (
            self.resumed_at[0] * steps.per_epoch
        )  # a checkpoint with the schedule's own state overwrites it
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor, last_epoch=before - 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        accumulate, batches = (
            self.trainer.accumulate_grad_batches,
            self.trainer.fit_loop.batch_idx + 1,
        )
        if self.trainer.num_training_batches == float("inf") and (window := batches % accumulate):
            # Nothing told that the epoch would end here: only now can its last gradients become a
            # mean over them.
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(accumulate / window)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The same tensors under published names: a file holds them once, and what reads .pth files
        # reads this one.
        weights = {
            name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()
        }
        checkpoint["model"] = to_published(weights)
        checkpoint.update(description(self.model_config, self.class_names, self.data_facts))
        checkpoint["seed"] = self.seed
        of_this_folder = {"output_dir", "overwrite", "resume"}
        checkpoint["train_config"] = self.train_config.model_dump(
            mode="json", exclude=of_this_folder
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Brings what any known file holds into the form of this module, and of its trainer's run
        if there is one.
        """
        trainer = self._trainer
        source = Path((trainer and trainer.ckpt_path) or "the checkpoint")
        convert_content(checkpoint, source)
        trains = trainer is not None and trainer.state.fn == "fit"
        if trainer is not None:
            check_shared(checkpoint, source, self, data_class_names(self))
        checkpoint["state_dict"] = in_form_of(self.detector, checkpoint["state_dict"], trains)
        self.seed = checkpoint.get("seed", self.seed)
        if trainer is None or not trains:
            return
        self.resumed_at = place_in_run(checkpoint, source, trainer)
        lost = checkpoint.get("moments_lost", "")
        self._moments = checkpoint.get("moments", {})
        if self._moments and is_sharded(trainer.strategy):
            self._moments, lost = {}, "its state cannot be split over devices"
        if lost:
            rank_zero_warn(f"{source}: the optimizer starts afresh: {lost}")

    @classmethod
    def load_from_checkpoint(  # type: ignore[override] # less hparams_file: the file has it all
        cls,
        checkpoint_path: str | os.PathLike[str],
        map_location: str | torch.device | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """The module of a file, on the CPU or `map_location`; `model_config` and `train_config` win
        over the file's.

        Takes `.ckpt`, `.pth` and `.safetensors`. A file that does not tell how it was trained gets
        the defaults.
        """
        path = Path(checkpoint_path)
        checkpoint = AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
        told = {"dataset_dir": ".", **checkpoint.get("train_config", {}), "output_dir": path.parent}
        file = checkpoint_of(path, checkpoint)
        if "model_config" not in kwargs:
            config = config_from_checkpoint(file)[0]
            how = {name: file.args[name] for name in HOW_TRAINED if "seed" in checkpoint}
            kwargs["model_config"] = type(config)(
                **{**config.model_dump(), **how, "pretrain_weights": None}
            )
        if "train_config" not in kwargs:
            kind = (
                SegmentationTrainConfig if kwargs["model_config"].segmentation_head else TrainConfig
            )
            kwargs["train_config"] = kind(
                **{name: told[name] for name in told if name in kind.model_fields}
            )
        module = cls(**kwargs)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=strict)
        module.class_names = class_names(file)
        return module.to(map_location)

    def detect(self, batch: list[Any], model: nn.Module | None = None) -> Detections:
        """Detections in pixels of the original images, of `model` or the module's own."""
        return self.postprocess(
            finite_outputs(self, batch, self.model if model is None else model), batch[1]
        )

    def evaluate(self, batch: list[Any]) -> dict[str, Any]:
        """The detections of a batch and its targets; with `compute_val_loss` its loss goes into
        `evaluation_loss`.
        """
        targets = batch[1]
        outputs = finite_outputs(self, batch, self.model)
        if self.train_config.compute_val_loss:
            objects = [without_crowds(target) for target in targets]
            loss = torch.stack(list(self.compute_losses(outputs, objects).values())).sum()
            self.evaluation_loss.update(loss, sum(len(target["labels"]) for target in objects))
        return {"results": self.postprocess(outputs, targets), "targets": targets}


RFDETRModelModule = RFDETRModule
"""The name under which later published releases have it."""


def build_criterion(model: ModelConfig, train: TrainConfig) -> Criterion:
    """The losses of a run; a plain `TrainConfig` leaves the weights of the mask terms at their
    defaults.
    """
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


def needing_steps(config: TrainConfig) -> list[str]:
    """Settings that cannot be followed without knowing how many steps a run and an epoch have."""
    needs = {
        "lr_scheduler": config.lr_scheduler != "step",
        "lr_drop": config.lr_drop < config.epochs,
        "warmup_epochs": config.warmup_epochs > 0,
        "drop_path": config.drop_path > 0,
    }
    return [f"{name}={getattr(config, name)!r}" for name, needed in needs.items() if needed]


def finite_outputs(module: RFDETRModule, batch: list[Any], model: nn.Module) -> DetectorOutput:
    """What `model` gives for a batch. An error where it is not finite: its figures would mean
    nothing.
    """
    outputs: DetectorOutput = model(normalize(batch[0].tensors), batch[0].mask)
    if bad := outputs.not_finite():
        raise FloatingPointError(
            f"after optimizer step {module.global_step} the network's {' and '.join(bad)} are not finite: it has "
            f"diverged. {losses_in_words(module.last_losses)}"
        )
    return outputs


def detections_of(outputs: DetectorOutput, targets: Targets, num_select: int) -> Detections:
    """The best detections of each image, from the last decoder layer, in pixels of the original
    image.
    """
    sizes = torch.stack([target["orig_size"] for target in targets])
    return postprocess_outputs(outputs, sizes, num_select)


def data_class_names(module: RFDETRModule) -> list[str] | None:
    """Names of the classes of the trainer's data, with numbers for classes that the model has
    beyond these.

    None where loaders were given without our datamodule. Refuses a head with fewer classes, before
    a label is out of its range.
    """
    datamodule = module.trainer.datamodule  # type: ignore[attr-defined]
    names = datamodule.class_names if isinstance(datamodule, RFDETRDataModule) else None
    if names is None:
        return None
    if len(names) > module.model_config.num_classes:
        raise InputError(
            f"the model has num_classes={module.model_config.num_classes}, but the data has {len(names)} classes "
            f"({', '.join(names)}): build the model with num_classes={len(names)}"
        )
    return names + [str(label) for label in range(len(names), module.model_config.num_classes)]


def without_crowds(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What losses read, of single objects; a crowd's box is no box to learn or to be measured
    against.
    """
    kept = (
        ~target["iscrowd"]
        if "iscrowd" in target
        else torch.ones_like(target["labels"], dtype=torch.bool)
    )
    return {
        name: target[name][kept]
        for name in ("labels", "boxes", "masks", "has_mask")
        if name in target
    }
