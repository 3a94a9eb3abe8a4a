"""Configuration: what a model is (`ModelConfig` and its variants) and how it is trained (`TrainConfig`).

Every field has its unit or range and one line of why. A variant class states only what differs from `ModelConfig`;
what follows from other fields is computed. Unknown names are refused with the nearest known one.
Longer than other files, since it is also the list of all options that a reader wants in one place.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator


class EncoderDims(NamedTuple):
    """Size of a DINOv2 encoder: token width, number of blocks, attention heads."""

    width: int
    depth: int
    heads: int


ENCODERS: dict[str, EncoderDims] = {
    "pico": EncoderDims(width=160, depth=5, heads=5),
    "small": EncoderDims(width=384, depth=12, heads=6),
    "base": EncoderDims(width=768, depth=12, heads=12),
}
# As types and not as `Field(...)` defaults: a variant that states another default then keeps the range.
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
PathText = Annotated[str, BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)]

PROJECTOR_SCALES: dict[str, float] = {"P3": 2.0, "P4": 1.0, "P5": 0.5}

EncoderName = Literal[
    "dinov2_windowed_pico",
    "dinov2_windowed_small",
    "dinov2_windowed_base",
    "dinov2_registers_windowed_small",
    "dinov2_registers_windowed_base",
]


class _StrictConfig(BaseModel):
    """Rejects unknown fields by name, with the nearest known one."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_names(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in values:
                if name not in cls.model_fields:
                    raise ValueError(cls._unknown_name_message(str(name)))
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigns what fits the other fields; a refused value changes nothing (pydantic assigns before it checks)."""
        before = dict(self.__dict__)
        try:
            super().__setattr__(name, value)
        except ValidationError:
            self.__dict__.update(before)
            raise

    @classmethod
    def _unknown_name_message(cls, name: str) -> str:
        near = difflib.get_close_matches(name, cls.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known names: {', '.join(cls.model_fields)}"
        return f"{cls.__name__} has no field {name!r}{hint}"


class ModelConfig(_StrictConfig):
    """What the network is. Use a variant class (`RFDETRNanoConfig`, ...) unless you design your own.

    Source: RF-DETR (arXiv 2511.09554), table of variants.
    """

    encoder: EncoderName = "dinov2_windowed_small"
    """DINOv2 family and size; `registers` encoders carry 4 extra learned tokens."""
    out_feature_indexes: list[int] = [3, 6, 9, 12]
    """States handed to the projector, counted in encoder blocks (1 = after the first). Those blocks attend globally."""
    patch_size: PositiveInt = 16
    """Side of an image patch, pixels."""
    num_windows: PositiveInt = 2
    """Attention windows per image side; 1 = every block attends globally."""
    resolution: PositiveInt = 384
    """Side of the square network input, pixels; a multiple of patch_size * num_windows."""
    positional_encoding_size: PositiveInt | None = None
    """Side of the stored position grid, patches. None: resolution // patch_size; set where published weights fix it."""
    projector_scale: list[Literal["P3", "P4", "P5"]] = ["P4"]
    """Feature levels for the decoder: P3 twice, P4 once, P5 half the patch grid's resolution."""
    hidden_dim: PositiveInt = 256
    """Width of projector and decoder; a multiple of 4 and of both head counts."""
    dec_layers: PositiveInt = 2
    """Decoder layers; more are slower and more precise."""
    sa_nheads: PositiveInt = 8
    """Heads of the decoder's self-attention."""
    ca_nheads: PositiveInt = 16
    """Heads of the decoder's deformable cross-attention."""
    dec_n_points: PositiveInt = 2
    """Sampling points per head and level of the deformable cross-attention."""
    dim_feedforward: PositiveInt = 2048
    """Hidden width of the decoder's feed-forward blocks."""
    num_queries: PositiveInt = 300
    """Queries per group: the most objects the decoder can tell apart in one image."""
    num_select: PositiveInt = 300
    """Detections kept per image, out of num_queries x (num_classes + 1) scores."""
    group_detr: PositiveInt = 13
    """Query groups in training (Group DETR, arXiv 2207.13085); inference uses the first."""
    num_classes: PositiveInt = 90
    """Classes; the head has one logit more. `train()` sets it from the data."""
    segmentation_head: bool = False
    """Predict a mask for every box."""
    mask_downsample_ratio: PositiveInt = 4
    """Masks are predicted at input size / this."""
    pretrain_weights: PathText | None = None
    """Published file name (downloaded once), path to a checkpoint, or None for random weights."""
    gradient_checkpointing: bool = False
    """Recompute encoder blocks in the backward pass: less memory, slower steps."""
    amp: bool = True
    """Train and evaluate under automatic mixed precision where the device is fast at it."""
    device: str | None = None
    """Where `predict` runs ("cpu", "cuda:1", "mps"); None: the best there is."""

    @property
    def encoder_dims(self) -> EncoderDims:
        """Width, depth and heads of the encoder."""
        return ENCODERS[self.encoder.rsplit("_", 1)[1]]

    @property
    def num_registers(self) -> int:
        """Extra learned tokens of the encoder."""
        return 4 if "registers" in self.encoder else 0

    @property
    def position_grid(self) -> int:
        """Side of the stored position grid, patches."""
        return self.positional_encoding_size or self.resolution // self.patch_size

    @model_validator(mode="after")
    def _check_consistency(self) -> ModelConfig:
        step = self.patch_size * self.num_windows
        if self.resolution % step:
            low = max(self.resolution // step, 1) * step
            raise ValueError(
                f"resolution {self.resolution} is not a multiple of patch_size {self.patch_size} x num_windows "
                f"{self.num_windows} = {step}; the nearest that fit are {low} and {low + step}"
            )
        _check_feature_indexes(self.out_feature_indexes, self.encoder, self.encoder_dims.depth)
        for name, heads in (("sa_nheads", self.sa_nheads), ("ca_nheads", self.ca_nheads)):
            if self.hidden_dim % heads:
                raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of {name} {heads}")
        if self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of 4, the coordinates of a box")
        if not self.projector_scale or len(set(self.projector_scale)) != len(self.projector_scale):
            raise ValueError(f"projector_scale {self.projector_scale} needs one or more levels, each once")
        most = self.num_queries * (self.num_classes + 1)
        if self.num_select > most:
            raise ValueError(
                f"num_select {self.num_select} is more than num_queries {self.num_queries} x (num_classes "
                f"{self.num_classes} + 1) = {most}"
            )
        return self


def _check_feature_indexes(indexes: list[int], encoder: str, depth: int) -> None:
    if not indexes or indexes != sorted(set(indexes)) or indexes[0] < 1:
        raise ValueError(f"out_feature_indexes {indexes} must be ascending, distinct and at least 1")
    if indexes[-1] > depth:
        raise ValueError(f"out_feature_indexes {indexes} go past the {depth} blocks of encoder {encoder!r}")


class RFDETRPicoConfig(ModelConfig):
    """Ours: under 3 M parameters, for laptops, tests and very small devices. Weights come with the package."""

    encoder: EncoderName = "dinov2_windowed_pico"
    out_feature_indexes: list[int] = [1, 3, 5]
    resolution: PositiveInt = 256
    hidden_dim: PositiveInt = 128
    ca_nheads: PositiveInt = 8
    dim_feedforward: PositiveInt = 512
    num_queries: PositiveInt = 100
    num_select: PositiveInt = 100
    group_detr: PositiveInt = 3
    pretrain_weights: PathText | None = "rf-detr-pico.safetensors"


class RFDETRNanoConfig(ModelConfig):
    """30.5 M parameters, 384 pixels."""

    pretrain_weights: PathText | None = "rf-detr-nano.pth"


class RFDETRSmallConfig(ModelConfig):
    """32.1 M parameters, 512 pixels."""

    resolution: PositiveInt = 512
    dec_layers: PositiveInt = 3
    pretrain_weights: PathText | None = "rf-detr-small.pth"


class RFDETRMediumConfig(ModelConfig):
    """33.7 M parameters, 576 pixels."""

    resolution: PositiveInt = 576
    dec_layers: PositiveInt = 4
    pretrain_weights: PathText | None = "rf-detr-medium.pth"


class RFDETRLargeConfig(ModelConfig):
    """33.9 M parameters, 704 pixels."""

    resolution: PositiveInt = 704
    dec_layers: PositiveInt = 4
    pretrain_weights: PathText | None = "rf-detr-large-2026.pth"


class RFDETRBaseConfig(ModelConfig):
    """The first published model: patch 14 on the DINOv2 position grid, 560 pixels."""

    out_feature_indexes: list[int] = [2, 5, 8, 11]
    patch_size: PositiveInt = 14
    num_windows: PositiveInt = 4
    resolution: PositiveInt = 560
    positional_encoding_size: PositiveInt | None = 37
    dec_layers: PositiveInt = 3
    pretrain_weights: PathText | None = "rf-detr-base.pth"


class RFDETRLargeDeprecatedConfig(RFDETRBaseConfig):
    """The first published large model: a base-size encoder and two feature levels."""

    encoder: EncoderName = "dinov2_windowed_base"
    projector_scale: list[Literal["P3", "P4", "P5"]] = ["P3", "P5"]
    hidden_dim: PositiveInt = 384
    sa_nheads: PositiveInt = 12
    ca_nheads: PositiveInt = 24
    dec_n_points: PositiveInt = 4
    pretrain_weights: PathText | None = "rf-detr-large.pth"


class RFDETRSegNanoConfig(ModelConfig):
    """Instance segmentation, 33.6 M parameters, 312 pixels."""

    patch_size: PositiveInt = 12
    num_windows: PositiveInt = 1
    resolution: PositiveInt = 312
    dec_layers: PositiveInt = 4
    num_queries: PositiveInt = 100
    num_select: PositiveInt = 100
    segmentation_head: bool = True
    pretrain_weights: PathText | None = "rf-detr-seg-nano.pt"


class RFDETRSegSmallConfig(RFDETRSegNanoConfig):
    """Instance segmentation, 33.7 M parameters, 384 pixels."""

    num_windows: PositiveInt = 2
    resolution: PositiveInt = 384
    pretrain_weights: PathText | None = "rf-detr-seg-small.pt"


class RFDETRSegMediumConfig(RFDETRSegSmallConfig):
    """Instance segmentation, 35.7 M parameters, 432 pixels."""

    resolution: PositiveInt = 432
    dec_layers: PositiveInt = 5
    num_queries: PositiveInt = 200
    num_select: PositiveInt = 200
    pretrain_weights: PathText | None = "rf-detr-seg-medium.pt"


class RFDETRSegLargeConfig(RFDETRSegMediumConfig):
    """Instance segmentation, 35.9 M parameters, 504 pixels."""

    resolution: PositiveInt = 504
    pretrain_weights: PathText | None = "rf-detr-seg-large.pt"


class RFDETRSegXLargeConfig(RFDETRSegLargeConfig):
    """Instance segmentation, 38.1 M parameters, 624 pixels."""

    resolution: PositiveInt = 624
    dec_layers: PositiveInt = 6
    num_queries: PositiveInt = 300
    num_select: PositiveInt = 300
    pretrain_weights: PathText | None = "rf-detr-seg-xlarge.pt"


class RFDETRSeg2XLargeConfig(RFDETRSegXLargeConfig):
    """Instance segmentation, 38.6 M parameters, 768 pixels."""

    resolution: PositiveInt = 768
    pretrain_weights: PathText | None = "rf-detr-seg-xxlarge.pt"


class RFDETRSegPreviewConfig(RFDETRSegSmallConfig):
    """The first published segmentation model, 432 pixels."""

    resolution: PositiveInt = 432
    num_queries: PositiveInt = 200
    num_select: PositiveInt = 200
    pretrain_weights: PathText | None = "rf-detr-seg-preview.pt"


VARIANTS: dict[str, type[ModelConfig]] = {
    "pico": RFDETRPicoConfig,
    "nano": RFDETRNanoConfig,
    "small": RFDETRSmallConfig,
    "medium": RFDETRMediumConfig,
    "large": RFDETRLargeConfig,
    "base": RFDETRBaseConfig,
    "large-deprecated": RFDETRLargeDeprecatedConfig,
    "seg-nano": RFDETRSegNanoConfig,
    "seg-small": RFDETRSegSmallConfig,
    "seg-medium": RFDETRSegMediumConfig,
    "seg-large": RFDETRSegLargeConfig,
    "seg-xlarge": RFDETRSegXLargeConfig,
    "seg-2xlarge": RFDETRSeg2XLargeConfig,
    "seg-preview": RFDETRSegPreviewConfig,
}


def variant_name(config: ModelConfig | type[ModelConfig]) -> str | None:
    """Short name of a configuration's variant ("nano"), or None for one that is no published or bundled variant."""
    cls = config if isinstance(config, type) else type(config)
    return next((name for name, variant in VARIANTS.items() if variant is cls), None)


class TrainConfig(_StrictConfig):
    """How a model is trained. Defaults follow RF-DETR (arXiv 2511.09554); lists of paths and files are in the guide."""

    DERIVED_FROM_TRAINER: ClassVar[dict[str, str]] = {
        "strategy": "pass strategy= to build_trainer(train_config, model_config, strategy=...)",
        "devices": "pass devices= to build_trainer(train_config, model_config, devices=...)",
        "callbacks": "pass callbacks= to build_trainer, or extend trainer.callbacks",
    }

    dataset_dir: Path
    """Folder with the labelled images, COCO or YOLO layout."""
    dataset_file: Literal["roboflow", "coco", "yolo"] = "roboflow"
    """Layout: "roboflow" detects COCO or YOLO exports; "coco" has train2017/, val2017/; "yolo" has data.yaml."""
    output_dir: Path = Path("output")
    """Where checkpoints, metrics and plots are written."""
    epochs: PositiveInt = 100
    """Passes over the training images."""
    batch_size: PositiveInt = 4
    """Images per device and step."""
    grad_accum_steps: PositiveInt = 4
    """Steps summed into one update; batch_size x grad_accum_steps x devices is best kept at 16."""
    lr: PositiveFloat = 1e-4
    """Learning rate of projector, heads and queries; the decoder gets lr_component_decay of it."""
    lr_encoder: NonNegativeFloat = 1.5e-4
    """Learning rate of the encoder before layer decay."""
    lr_vit_layer_decay: Factor = 0.8
    """Factor per encoder block, from the output down: early blocks change least."""
    lr_component_decay: Factor = 0.7
    """Factor of the decoder's learning rate; squared, of the encoder's."""
    weight_decay: NonNegativeFloat = 1e-4
    """AdamW's decoupled weight decay."""
    lr_scheduler: Literal["step", "cosine"] = "step"
    """Shape of the learning rate over the run, per optimizer step."""
    lr_drop: PositiveInt = 100
    """Epoch from which "step" multiplies the learning rate by 0.1."""
    lr_min_factor: Share = 0.0
    """Share of the learning rate "cosine" ends at."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs of linear warm-up from 0."""
    clip_max_norm: NonNegativeFloat = 0.1
    """Largest total gradient norm; 0 turns clipping off."""
    drop_path: Rate = 0.0
    """Stochastic depth rate of the encoder's last block."""
    use_ema: bool = True
    """Keep and evaluate an exponential moving average of the weights."""
    ema_decay: Rate = 0.993
    """Share of the average kept at each update."""
    ema_tau: NonNegativeFloat = 100
    """Updates over which the decay warms up; 0: full decay at once."""
    multi_scale: bool = True
    """Train each batch at a random size around the resolution."""
    expanded_scales: bool = True
    """Multi-scale over 11 sizes instead of 8."""
    color_jitter: Rate = 0.0
    """Largest relative change of brightness, contrast and saturation in training; 0 is the published recipe."""
    cls_loss_coef: NonNegativeFloat = 1.0
    """Weight of the classification loss."""
    bbox_loss_coef: NonNegativeFloat = 5.0
    """Weight of the L1 box loss."""
    giou_loss_coef: NonNegativeFloat = 2.0
    """Weight of the GIoU box loss."""
    num_workers: NonNegativeInt = 2
    """Processes that load images, per device; 0 loads in the training process."""
    seed: NonNegativeInt | None = None
    """Seed of everything random; None draws one and records it."""
    accelerator: str = "auto"
    """Lightning's accelerator: "auto", "cpu", "gpu", "mps"."""
    sync_bn: bool = False
    """Convert batch norms to synchronised ones when training on several devices."""
    resume: PathText | None = None
    """Checkpoint to continue from: "last" (of output_dir), or a path."""
    run_test: bool = True
    """Evaluate the best weights on the test split at the end, where there is one."""
    eval_interval: PositiveInt = 1
    """Epochs from one evaluation to the next."""
    eval_max_dets: PositiveInt = 500
    """Detections per image that evaluation counts; COCO's own figure is 100."""
    compute_val_loss: bool = True
    """Log val/loss too."""
    log_per_class_metrics: bool = True
    """Log val/AP/<class> too."""
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
    tensorboard: bool = False
    """Log to TensorBoard too (extra `[tensorboard]`)."""
    progress_bar: bool = True
    """Show progress while training."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_trainer_arguments(cls, values: Any) -> Any:
        for name, advice in cls.DERIVED_FROM_TRAINER.items():
            if isinstance(values, dict) and name in values:
                raise ValueError(f"TrainConfig has no field {name!r}: {advice}")
        return values

    @field_validator("dataset_dir", "output_dir", mode="after")
    @classmethod
    def _expand_user(cls, path: Path) -> Path:
        return path.expanduser()

    @model_validator(mode="after")
    def _check_consistency(self) -> TrainConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} leaves nothing of epochs {self.epochs} to train at full rate"
            )
        if self.early_stopping_use_ema and not self.use_ema:
            raise ValueError("early_stopping_use_ema True watches averaged weights, but use_ema False keeps none")
        return self
