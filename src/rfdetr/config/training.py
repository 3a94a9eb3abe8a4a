"""`TrainConfig`: how a model is trained. Every field has its unit or range and one line of why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationInfo, field_validator, model_validator
from typing_extensions import TypedDict

from rfdetr import compat
from rfdetr.checks import check_path
from rfdetr.config import augment, fields
from rfdetr.config.fields import NonNegativeFloat, PathText, PositiveFloat, PositiveInt
from rfdetr.errors import InputError

__all__ = ["SegmentationTrainConfig", "TrainConfig", "TrainSettings"]

PathLike: TypeAlias = str | os.PathLike[str]


class TrainConfig(fields.StrictConfig):
    """How a model is trained. Defaults follow RF-DETR (arXiv 2511.09554)."""

    PLACE = "train({setting}) or TrainConfig({setting})"
    PUBLISHED = {name: f for name, f in compat.TRAIN.items() if not isinstance(f, compat.Moved)}

    dataset_dir: Path | dict[Path, fields.UnitIntervalAbove0]
    """Folder with the labelled images. Several: a list, or by folder the share of its training
    images that an epoch takes, {"new": 1, "old": 0.25} or ["new", "old@0.25"]."""
    dataset_file: Literal["roboflow", "coco", "yolo"] = "roboflow"
    """Layout: "roboflow" finds COCO or YOLO; "coco" has train2017/, val2017/; "yolo" data.yaml."""
    classes: fields.Classes | None = None
    """Classes to learn, by the data's names; objects of others are left out. A mapping merges:
    {"vehicle": ["car", "truck"]}; as text cat,vehicle=car+truck. None: all."""
    output_dir: Path = Path("output")
    """Where checkpoints, metrics and plots are written."""
    epochs: PositiveInt = 100
    """Passes over the training images."""
    minutes: PositiveFloat | None = None
    """Minutes that the run may take, evaluation included; its schedule is fitted to them, epochs
    are then the most that it has. None: no limit."""
    batch_size: PositiveInt | Literal["auto"] = 4
    """Images per device and step; "auto": what fits, with grad_accum_steps to 16 an update."""
    eval_batch_size: PositiveInt | None = None
    """Images per device of an evaluation batch; None: batch_size."""
    grad_accum_steps: PositiveInt = 4
    """Steps summed into one update; batch_size x grad_accum_steps x devices is best kept at 16."""
    lr: PositiveFloat = 1e-4
    """Learning rate of projector, heads and queries; the decoder gets lr_component_decay of it."""
    lr_encoder: NonNegativeFloat = 1.5e-4
    """Learning rate of the encoder before layer decay."""
    lr_vit_layer_decay: fields.UnitIntervalAbove0 = 0.8
    """Factor per encoder block, from the output down: early blocks change least."""
    lr_component_decay: fields.UnitIntervalAbove0 = 0.7
    """Factor of the decoder's learning rate; squared, of the encoder's."""
    weight_decay: NonNegativeFloat = 1e-4
    """AdamW's decoupled weight decay."""
    lr_scheduler: Literal["step", "cosine"] = "step"
    """Shape of the learning rate over the run, per optimizer step."""
    lr_drop: PositiveInt = 100
    """Epoch from which "step" multiplies the learning rate by 0.1."""
    lr_min_factor: fields.UnitInterval = 0.0
    """Fraction of the learning rate that "cosine" ends at."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs of linear warm-up from 0."""
    clip_max_norm: NonNegativeFloat = 0.1
    """Largest total gradient norm; 0 turns clipping off."""
    drop_path: fields.UnitIntervalBelow1 = 0.0
    """Stochastic depth rate of the encoder's last block."""
    use_ema: bool = True
    """Keep and evaluate an exponential moving average of the weights."""
    ema_decay: fields.UnitIntervalBelow1 = 0.993
    """Fraction of the average kept at each update."""
    ema_tau: NonNegativeFloat = 100
    """Updates over which the decay warms up; 0: full decay at once."""
    ema_update_interval: PositiveInt = 1
    """Optimizer steps from one update of the average to the next."""
    multi_scale: bool | Literal["per-batch", "per-sample", "off"] = True
    """Train at random sizes around the resolution: one for an update's images ("per-batch" is True,
    "off" False), or with "per-sample" each image at its own, padded to the largest of the batch."""
    expanded_scales: bool = True
    """Multi-scale over 11 sizes instead of 8."""
    tiles: fields.Tiles | None = None
    """Train and validate on tiles of larger images: pixels, (height, width), or True for the
    network's input; None or False: on whole images."""
    tile_overlap: fields.Overlap = 0.2
    """Share of a tile's sides at least that the next one shows too; best: the usual object's."""
    augment: str | dict[str, Any] = "default"
    """Steps that change training images beside the recipe: "default" (none), "strong", "aerial",
    "industrial", "dense", a mapping of steps, or a YAML file of one."""
    color_jitter: fields.UnitIntervalBelow1 = 0.2
    """Largest relative change of brightness, contrast, saturation in training; 0: none."""
    cls_loss_coef: NonNegativeFloat = 1.0
    """Weight of the classification loss."""
    bbox_loss_coef: NonNegativeFloat = 5.0
    """Weight of the L1 box loss."""
    giou_loss_coef: NonNegativeFloat = 2.0
    """Weight of the GIoU box loss."""
    num_workers: fields.WorkerCount = 2
    """Processes that load images, per device; 0 loads in the training process."""
    prefetch_factor: PositiveInt | None = None
    """Batches that each loader process makes ahead; None: PyTorch's 2. Not with num_workers 0."""
    persistent_workers: bool | None = None
    """Keep loader processes from epoch to epoch; None: yes. Without effect with num_workers 0."""
    pin_memory: bool | None = None
    """Load batches into page-locked memory, from which a GPU copies faster; None: with CUDA."""
    cache: Literal["ram"] | PositiveFloat | None = None
    """Keep decoded images of training and validation in memory, for all loader processes together:
    so many GB at most, or "ram": half of what is free; None: decode them every epoch."""
    seed: fields.Seed | None = None
    """Seed of everything random; None draws one and records it."""
    accelerator: str = "auto"
    """Lightning's accelerator: "auto", "cpu", "gpu", "mps"."""
    compile: bool = False
    """Run the network of training steps by torch.compile: each size waits for its graph once."""
    sync_bn: bool = False
    """Accepted and without effect: the network has no batch norm to synchronise."""
    resume: PathText | None = None
    """Checkpoint to continue from: "last" (of output_dir), or a path."""
    allow_changed_data: bool = False
    """Resume on other images or labels than the checkpoint's; what changed is then a warning."""
    run_test: bool = True
    """Evaluate the best weights on the test split at the end, where there is one."""
    eval_interval: PositiveInt = 1
    """Epochs from one evaluation to the next."""
    eval_max_dets: PositiveInt = 500
    """Detections per image that evaluation counts; COCO's own figure is 100."""
    early_eval_share: fields.UnitIntervalAbove0 | None = None
    """Share of the validation images on which the first epochs are evaluated, with figures of their
    own (val_share/*) that choose no weights; None: all images in every epoch."""
    early_eval_epochs: PositiveInt | None = None
    """First epochs that early_eval_share is for; None: half of epochs."""
    eval_ema_only: bool = False
    """Validate the averaged weights alone, where there are any: half the time, no live figures."""
    eval_base_model: bool | None = None
    """Validate the live weights beside the average; None: unless eval_ema_only, False: that."""
    compute_val_loss: bool | Literal["auto"] = True
    """Log val/loss too; "auto": only where a callback or a schedule watches it."""
    log_per_class_metrics: bool = True
    """Log val/AP/<class> too."""
    best_model_metric: Literal["map", "mar"] = "map"
    """Figure that chooses the best weights and stops early: mAP (of masks, where there are any), or
    "mar", the mean average recall of boxes."""
    smooth_alpha: fields.UnitIntervalBelow1 = 0.0
    """Share of the evaluations before in the figure that chooses the best weights; 0: as it is."""
    skip_best_epochs: fields.Count = 0
    """First epochs whose evaluations neither choose the best weights nor stop early."""
    average_best: Annotated[int, Field(ge=2, le=100)] | None = None
    """So many best evaluations, by the same figure, whose weights are averaged at the end: the
    run's best if valid finds them no worse than the best single ones. None: no average."""
    early_stopping: bool = False
    """Stop when validation mAP has stopped improving."""
    early_stopping_patience: PositiveInt = 10
    """Evaluations without improvement before stopping."""
    early_stopping_min_delta: NonNegativeFloat = 0.001
    """Smallest rise of mAP that counts as improvement."""
    early_stopping_use_ema: bool = False
    """Watch the averaged weights' mAP alone, instead of the better of both."""
    checkpoint_interval: PositiveInt = 10
    """Epochs from one kept checkpoint to the next; last.ckpt is written every epoch."""
    checkpoint_every_n_steps: PositiveInt | None = None
    """Optimizer steps from one last.ckpt to the next inside an epoch; None: none by steps."""
    checkpoint_every_minutes: PositiveFloat | None = 30.0
    """Minutes from one last.ckpt to the next inside an epoch; None: none by time."""
    save_safetensors: bool = False
    """Write the best weights as checkpoint_best_total.safetensors too, for other programs."""
    save_dataset_grids: bool = False
    """Draw the first three batches of training and validation to output_dir/dataset_grids."""
    class_names: list[str] | None = None
    """Names to know the classes by, in the order of the data's; None: the data's own."""
    notes: fields.Json = None
    """Any JSON value, which stands in args["notes"] of every checkpoint."""
    overwrite: bool = False
    """Start anew in an output_dir that holds a run, and lose that run."""
    tensorboard: bool = False
    """Log to TensorBoard too (extra `[tensorboard]`)."""
    wandb: bool = False
    """Log to Weights & Biases too (extra `[wandb]`); WANDB_MODE=offline keeps it here."""
    mlflow: bool = False
    """Log to MLflow too (extra `[mlflow]`): to MLFLOW_TRACKING_URI or output_dir/mlflow.db."""
    project: str | None = None
    """Project of Weights & Biases, experiment of MLflow; None: "rfdetr"."""
    run: str | None = None
    """Name of the run there; None: the service makes one up."""
    progress_bar: bool | Literal["tqdm", "rich"] | None = True
    """A bar within each epoch, on a terminal or in a notebook, beside the line at its end: True or
    "tqdm", or Lightning's "rich" one; False or None: no bar."""

    @classmethod
    def _unknown_name(cls, name: str, value: Any, model: str) -> str:
        if taken := {**compat.TRAINER, "callbacks": "callbacks"}.get(name):
            place = f"build_trainer(train_config, model_config, {taken}=...)"
            return f"TrainConfig has no field {name!r}: pass {taken}= to {place}"
        return super()._unknown_name(name, value, model)

    @field_validator("dataset_dir", "output_dir", mode="before")
    @classmethod
    def _expand_user(cls, value: Any, info: ValidationInfo) -> Any:
        """Before pydantic makes a Path of it, and of an empty text the working directory."""
        if info.field_name == "dataset_dir":
            return fields.as_folders("dataset_dir", value)
        return check_path("output_dir", value) if isinstance(value, str | os.PathLike) else value

    @field_validator("augment", mode="before")
    @classmethod
    def _check_steps(cls, value: Any) -> Any:
        return augment.checked(value)

    @field_validator("cache", mode="before")
    @classmethod
    def _as_size(cls, value: Any) -> Any:
        """True is "ram" and no gigabyte; False is None."""
        return ("ram" if value else None) if isinstance(value, bool) else value

    @field_validator("resume", mode="before")
    @classmethod
    def _say_which(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise InputError('expected "last" (the newest of output_dir), a path, or None for none')
        return value

    @field_validator("multi_scale", "progress_bar", mode="after")
    @classmethod
    def _in_one_form(cls, value: Any) -> Any:
        """The published names of True and False as these."""
        known = {"per-batch": True, "tqdm": True, "off": False, None: False}
        return known.get(value, value)

    @property
    def validates_average_alone(self) -> bool:
        """Whether live weights are not validated where there are averaged ones."""
        return self.eval_ema_only or self.eval_base_model is False

    @property
    def epochs_on_share(self) -> int:
        """First epochs that are evaluated on `early_eval_share` of the validation images."""
        if self.early_eval_share is None:
            return 0
        return self.early_eval_epochs or self.epochs // 2

    def _check_early_evaluation(self) -> None:
        if self.early_eval_share is None:
            if self.early_eval_epochs is not None:
                raise InputError("early_eval_epochs is for early_eval_share, which is None")
            return
        if self.minutes and self.early_eval_epochs is None:
            told = (
                "early_eval_share with minutes needs early_eval_epochs: half of epochs may be more"
            )
            raise InputError(f"{told} than the time is for")
        every = min(self.eval_interval, self.epochs)
        if self.epochs // every * every <= self.epochs_on_share:
            told = (
                f"early_eval_epochs {self.epochs_on_share} of epochs {self.epochs} leaves no epoch"
            )
            raise InputError(f"{told} to evaluate on all images: no weights could be chosen")

    def _check_average(self) -> None:
        every = min(self.eval_interval, self.epochs)
        first = max(self.epochs_on_share, self.skip_best_epochs)
        choosing = self.epochs // every - min(first, self.epochs) // every
        if self.average_best and choosing < 2:
            told = (
                f"average_best {self.average_best} averages the weights of two evaluations or more"
            )
            raise InputError(f"{told}: of epochs {self.epochs}, {choosing} can choose weights")

    @model_validator(mode="after")
    def _check_consistency(self) -> TrainConfig:
        if self.warmup_epochs >= self.epochs:
            left = f"leaves nothing of epochs {self.epochs} to train at full rate"
            raise InputError(f"warmup_epochs {self.warmup_epochs} {left}")
        if self.early_stopping_use_ema and not self.use_ema:
            raise InputError("early_stopping_use_ema True watches what use_ema False does not keep")
        if self.eval_base_model and self.eval_ema_only:
            raise InputError("eval_base_model True validates what eval_ema_only True leaves out")
        self._check_early_evaluation()
        self._check_average()
        return self


class SegmentationTrainConfig(TrainConfig):
    """How a segmentation model is trained; `train` takes these fields for one by itself."""

    PLACE = "the training of a segmentation model: train() or SegmentationTrainConfig({setting})"

    mask_ce_loss_coef: NonNegativeFloat = 5.0
    """Weight of the masks' cross-entropy loss."""
    mask_dice_loss_coef: NonNegativeFloat = 5.0
    """Weight of the masks' dice loss."""
    mask_point_sample_ratio: PositiveInt = 16
    """Mask cells for each point at which losses and matching look at a mask."""


class TrainSettings(TypedDict, total=False):
    """The fields of `SegmentationTrainConfig` as keywords of `RFDETR.train`, for editors, and the
    resolution, which is the model's; a test holds the two together.
    """

    dataset_dir: PathLike | Sequence[PathLike] | Mapping[PathLike, float]
    dataset_file: Literal["roboflow", "coco", "yolo"]
    classes: Sequence[str] | Mapping[str, Sequence[str]] | None
    output_dir: PathLike
    epochs: int
    minutes: float | None
    batch_size: int | Literal["auto"]
    eval_batch_size: int | None
    grad_accum_steps: int
    lr: float
    lr_encoder: float
    lr_vit_layer_decay: float
    lr_component_decay: float
    weight_decay: float
    lr_scheduler: Literal["step", "cosine"]
    lr_drop: int
    lr_min_factor: float
    warmup_epochs: float
    clip_max_norm: float
    drop_path: float
    use_ema: bool
    ema_decay: float
    ema_tau: float
    ema_update_interval: int
    multi_scale: bool | Literal["per-batch", "per-sample", "off"]
    expanded_scales: bool
    tiles: bool | int | tuple[int, int] | None
    tile_overlap: float
    augment: PathLike | Mapping[str, Any]
    color_jitter: float
    cls_loss_coef: float
    bbox_loss_coef: float
    giou_loss_coef: float
    num_workers: int
    prefetch_factor: int | None
    persistent_workers: bool | None
    pin_memory: bool | None
    cache: Literal["ram"] | float | None
    seed: int | None
    accelerator: str
    compile: bool
    sync_bn: bool
    resume: PathLike | None
    allow_changed_data: bool
    run_test: bool
    eval_interval: int
    eval_max_dets: int
    early_eval_share: float | None
    early_eval_epochs: int | None
    eval_ema_only: bool
    eval_base_model: bool | None
    compute_val_loss: bool | Literal["auto"]
    log_per_class_metrics: bool
    best_model_metric: Literal["map", "mar"]
    smooth_alpha: float
    skip_best_epochs: int
    average_best: int | None
    early_stopping: bool
    early_stopping_patience: int
    early_stopping_min_delta: float
    early_stopping_use_ema: bool
    checkpoint_interval: int
    checkpoint_every_n_steps: int | None
    checkpoint_every_minutes: float | None
    save_safetensors: bool
    save_dataset_grids: bool
    class_names: list[str] | None
    notes: Any
    overwrite: bool
    tensorboard: bool
    wandb: bool
    mlflow: bool
    project: str | None
    run: str | None
    progress_bar: bool | Literal["tqdm", "rich"] | None
    mask_ce_loss_coef: float
    mask_dice_loss_coef: float
    mask_point_sample_ratio: int
    resolution: int | tuple[int, int] | Literal["auto"]
