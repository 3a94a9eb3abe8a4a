"""`TrainSettings`: the keywords of `RFDETR.train`, so that editors complete and check them.

They are the fields of `SegmentationTrainConfig`, to which a test holds them; what each means stands
there.
"""

from __future__ import annotations

import os
from typing import Any, Literal, TypeAlias

from typing_extensions import TypedDict

PathLike: TypeAlias = str | os.PathLike[str]


class TrainSettings(TypedDict, total=False):
    """Keywords of `RFDETR.train`; the last three are of segmentation models alone."""

    dataset_dir: PathLike
    dataset_file: Literal["roboflow", "coco", "yolo"]
    output_dir: PathLike
    epochs: int
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
    color_jitter: float
    cls_loss_coef: float
    bbox_loss_coef: float
    giou_loss_coef: float
    num_workers: int
    prefetch_factor: int | None
    persistent_workers: bool | None
    pin_memory: bool | None
    seed: int | None
    accelerator: str
    sync_bn: bool
    resume: PathLike | None
    allow_changed_data: bool
    run_test: bool
    eval_interval: int
    eval_max_dets: int
    eval_ema_only: bool
    eval_base_model: bool | None
    compute_val_loss: bool | Literal["auto"]
    log_per_class_metrics: bool
    best_model_metric: Literal["map", "mar"]
    smooth_alpha: float
    skip_best_epochs: int
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
