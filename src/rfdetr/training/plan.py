"""What a run is going to do and what it has done, as rows of (name, value) for whoever prints them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytorch_lightning as pl

from rfdetr.config import variant_name
from rfdetr.evaluation.metrics import Metrics
from rfdetr.training.adapters import adapted, trained_parameters
from rfdetr.training.callbacks import BestModelCallback, RFDETREMACallback, UndecodableCallback
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.module import RFDETRModule
from rfdetr.training.steps import count_steps, effective_batch

CallbackT = TypeVar("CallbackT", bound=pl.Callback)
Rows = list[tuple[str, str]]


def training_plan(
    module: RFDETRModule,
    datamodule: RFDETRDataModule,
    trainer: pl.Trainer,
    changes: Sequence[str] = (),
    resumed: Path | None = None,
) -> Rows:
    """What `trainer.fit(module, datamodule, ckpt_path=resumed)` will do. Indexes the dataset.

    `changes` says what was done to weights that did not fit (the class head, the position grid).
    """
    datamodule.trainer = trainer  # as fit will do: how many images an epoch has depends on processes and accumulation
    datamodule.setup("fit")
    model, train = module.model_config, module.train_config
    names = datamodule.class_names or []
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    counts = [f"{len(datamodule.index(split)):,} {split}" for split in ("train", "valid")]
    counts += [f"{len(datamodule.index('test')):,} test"] if datamodule.has_test else []
    datamodule.trainer = trainer  # whose processes share the images
    steps = count_steps(trainer, len(datamodule.train_dataloader()))
    epochs = (
        trainer.max_epochs
        if trainer.max_epochs is not None and trainer.max_epochs >= 0
        else "no limit of"
    )
    return [
        (
            "model",
            f"{variant_name(model) or 'custom'}, {parameters / 1e6:.1f} M parameters, {model.resolution} pixels",
        ),
        ("weights", model.pretrain_weights or "random")
        if resumed is None
        else ("goes on from", str(resumed)),
        *([("adapted", ", ".join(changes))] if changes and resumed is None else []),
        ("trained", _what_learns(module)),
        (
            "data",
            f"{datamodule.layout.dataset_dir} ({datamodule.layout.format.upper()}): {', '.join(counts)} images",
        ),
        ("classes", f"{len(names)}: {', '.join(names[:10])}{', ...' * (len(names) > 10)}"),
        ("effective batch", effective_batch(train.batch_size, trainer)),
        ("steps", f"{steps.total:,} updates, {steps.per_epoch:,} an epoch, {epochs} epochs"),
        *_repetition(datamodule),
        ("device", f"{trainer.strategy.root_device}, precision {trainer.precision}"),
        ("averaged weights", "yes" if _find(trainer, RFDETREMACallback) else "no"),
        ("seed", str(module.seed) if resumed is None else "the checkpoint's"),
        (
            "output",
            f"{train.output_dir}/: checkpoint_best_*.pth, last.ckpt, results.json, metrics.csv, log.txt, plots",
        ),
    ]


def _what_learns(module: RFDETRModule) -> str:
    adapters = "adapters in place of the encoder" if adapted(module.model) else "all"
    part = "all but the encoder" if module.model_config.freeze_encoder else adapters
    return f"{trained_parameters(module.model):,} parameters: {part}"


def _repetition(datamodule: RFDETRDataModule) -> Rows:
    images, total = len(datamodule.index("train")), datamodule.images_an_epoch
    least = datamodule.least_updates
    return [
        ("repeated", f"{images:,} images to {total:,} an epoch, so that it has {least} updates")
    ] * (images < total)


def run_summary(trainer: pl.Trainer) -> Rows:
    """What a finished fit has reached and left; empty for a run that kept nothing (`fast_dev_run`)."""
    best = _find(trainer, BestModelCallback)
    if best is None or not best.total_path.exists() or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return []
    rows: Rows = []
    if best.best_kind:
        kind, entry = best.best_kind, best.best[best.best_kind]
        label = "averaged (EMA)" if kind == "ema" else "live"
        rows.append(
            (
                f"best {'mask ' * any(m.masks is not None for m in best.results.values())}mAP 50:95 on valid",
                f"{entry['score']:.4f}, {label} weights of epoch {entry['epoch'] + 1:.0f}",
            )
        )
    for split, metrics in best.results.items():
        named = (("mAP 50:95", "mAP_50_95"), ("mAP 50", "mAP_50"), ("F1", "F1"))
        figures = [(name, metrics.overall[key]) for name, key in named]
        if metrics.masks is not None:
            figures = [
                *((f"mask {name}", metrics.masks.overall[key]) for name, key in named[:2]),
                *figures,
            ]
        text = ", ".join(f"{name} {value:.4f}" for name, value in figures if not math.isnan(value))
        threshold = metrics.overall["best_threshold"]
        chosen = "" if math.isnan(threshold) else f" at confidence {threshold:.3f}, its own best"
        rows.append((split, text + chosen))
    if weakest := _weakest_classes(best.results):
        rows.append(weakest)
    faults = _find(trainer, UndecodableCallback)
    if faults and (
        damaged := {split: len(images) for split, images in faults.images.items() if images}
    ):
        counts = " and ".join(f"{count} of {split}" for split, count in damaged.items())
        rows.append(("damaged images", f"{counts} could not be decoded; `rfdetr check` names them"))
    rows.append(("epochs", str(trainer.current_epoch)))
    return [
        *rows,
        ("best weights", str(best.total_path)),
        ("all files", f"{Path(best.output_dir)}/"),
    ]


def _weakest_classes(results: Mapping[str, Metrics], count: int = 3) -> tuple[str, str] | None:
    """The `count` classes of the lowest AP on the last split, test if there is one: "red 0.12,
    ...".
    """
    split, metrics = list(results.items())[-1] if results else ("", None)
    shown = metrics and (metrics.masks or metrics)
    ranked = [row for row in shown.per_class if not math.isnan(row["AP"])] if shown else []
    if len(ranked) < 2:
        return None
    lowest = sorted(ranked, key=lambda row: row["AP"])[:count]
    listed = ", ".join(f"{row['name']} {row['AP']:.3f}" for row in lowest)
    return "weakest classes", f"on {split}, AP 50:95: {listed}"


def _find(trainer: pl.Trainer, kind: type[CallbackT]) -> CallbackT | None:
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
