"""What a run is going to do and what it has done, as rows of (name, value) to be printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from rfdetr.config import variant_name
from rfdetr.config.augment import in_words
from rfdetr.config.fields import size_text
from rfdetr.evaluation.metrics import Metrics
from rfdetr.report import PAGE
from rfdetr.training.adapters import adapted, trained_parameters
from rfdetr.training.best_few import epochs_in_words
from rfdetr.training.callbacks import (
    BestModelCallback,
    RFDETREMACallback,
    TimeLimitCallback,
    UndecodableCallback,
)
from rfdetr.training.datamodule import RFDETRDataModule
from rfdetr.training.early_evaluation import stratified_share
from rfdetr.training.forecast import disk_need, in_bytes
from rfdetr.training.lightning_state import find_callback
from rfdetr.training.module import RFDETRModule
from rfdetr.training.run_folder import RunFolder, saves
from rfdetr.training.steps import count_steps, effective_batch
from rfdetr.weights.download import PUBLISHED
from rfdetr.weights.labels import renamed

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
    datamodule.trainer = trainer  # as fit will do: an epoch's images depend on its processes
    datamodule.setup("fit")
    model, train = module.model_config, module.train_config
    millions = sum(parameter.numel() for parameter in module.model.parameters()) / 1e6
    learns = "adapters in place of the encoder" if adapted(module.model) else "all"
    learns = "all but the encoder" if model.freeze_encoder else learns
    splits = ("train", "valid", *["test"] * datamodule.has_test)
    counts = {split: len(datamodule.index(split)) for split in splits}
    images = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    once, more = datamodule.images_taken, datamodule.images_an_epoch
    updates = datamodule.least_updates
    repeated = f"{once:,} images to {more:,} an epoch, so that it has {updates} updates"
    names = renamed(datamodule.class_names or [], train.class_names)
    steps = count_steps(trainer, len(datamodule.train_dataloader()))
    limited = trainer.max_epochs is not None and trainer.max_epochs >= 0
    epochs = trainer.max_epochs if limited else "no limit of"
    name, weights = variant_name(model) or "custom", model.pretrain_weights or "random"
    if weights in PUBLISHED and (file := module.weights_file) and file.name == weights:
        weights += f", found in {file.parent}"
    rows = {
        "model": f"{name}, {millions:.1f} M parameters, {size_text(model.resolution)} pixels",
        "resolution": datamodule.chosen,
        "goes on from": str(resumed) if resumed else "",
        "weights": "" if resumed else weights,
        "adapted": "" if resumed else ", ".join(changes),
        "trained": f"{trained_parameters(module.model):,} parameters: {learns}",
        "data": f"{datamodule.folders}: {images} images",
        "an epoch takes": f"{once:,} of the training images" * (once < counts["train"]),
        **_selected(datamodule),
        **{f"tiles of {split}": _tiles(datamodule, split) for split in splits},
        "classes": f"{len(names)}: {', '.join(names[:10])}{', ...' * (len(names) > 10)}",
        "augmentation": in_words(train.augment),
        "effective batch": effective_batch(train.batch_size, trainer),
        "steps": f"{steps.total:,} updates, {steps.per_epoch:,} an epoch, {epochs} epochs",
        "time": f"at most {train.minutes:g} min, with the evaluation" if train.minutes else "",
        "repeated": repeated * (once < more),
        "validation": _validation(datamodule, trainer),
        "cache": _cached(datamodule),
        "device": f"{trainer.strategy.root_device}, precision {trainer.precision}",
        "compiled": "training steps; each new size of images waits for its graph" * train.compile,
        "averaged weights": "yes" if find_callback(trainer, RFDETREMACallback) else "no",
        "seed": "the checkpoint's" if resumed else str(module.seed),
        "output": f"{train.output_dir}/: checkpoint_best_*.pth, last.ckpt, results.json, "
        "metrics.csv, log.txt, labels.jpg, train_views.jpg, plots",
        "disk": str(disk_need(trainer, module, train.output_dir)) * saves(trainer),
    }
    return [(name, value) for name, value in rows.items() if value]


def _selected(datamodule: RFDETRDataModule) -> dict[str, str]:
    """What was kept back of folders without a valid split, and what `classes` leaves out."""
    rows: dict[str, str] = {}
    for folder, (held_out, alike) in datamodule.folders.divisions.items():
        near = f", {alike:,} images that are like others kept with them" if alike else ""
        where = RunFolder(datamodule.train_config.output_dir).division
        told = f"{len(held_out):,} images of {folder}, by classes{near}; listed in {where}"
        rows["valid kept back"] = "; ".join(filter(None, (rows.get("valid kept back"), told)))
    for split, (objects, total, emptied, images) in datamodule.folders.left_out.items():
        told = f"{objects:,} of {total:,} objects, of other classes; {emptied:,} of {images:,}"
        rows[f"left out of {split}"] = f"{told} images are left without an object, as background"
    return rows


def _tiles(datamodule: RFDETRDataModule, split: str) -> str:
    """What the tiles of a split are, and what became of its objects; empty where there are none."""
    if datamodule.tile is None:
        return ""
    height, width = datamodule.tile
    images, tiles, empty, *objects = datamodule.cut[split]
    left_out = f" ({empty:,} more without an object are left out)" if empty else ""
    counts = "{:,} whole, {:,} cut, {:,} hardly shown and not judged".format(*objects)
    told = f"{images:,} images in {tiles:,} of {width} x {height} pixels{left_out}: {counts}"
    figures = "; figures are those of tiles, `rfdetr evaluate --slice` has those of images"
    return told + figures * (split == "valid")


def _validation(datamodule: RFDETRDataModule, trainer: pl.Trainer) -> str:
    """What an epoch's evaluation costs: images, sets of weights, and how often."""
    train, count = datamodule.train_config, len(datamodule.index("valid"))
    averaged = find_callback(trainer, RFDETREMACallback) is not None
    both = averaged and not train.validates_average_alone
    sets = "live and averaged weights" if both else f"{'averaged' if averaged else 'live'} weights"
    told = f"{count:,} images, {sets}"
    every = trainer.check_val_every_n_epoch or 1
    told += f", every {every} epochs" * (every > 1)
    if train.early_eval_share is not None:
        early = stratified_share(datamodule.index("valid"), train.early_eval_share, 0)
        told += (
            f"; {len(early):,} of them in the first {train.epochs_on_share} epochs (val_share/*)"
        )
    few = train.average_best
    return told + f"; once more at the end: the mean of the best {few}" * bool(few)


def _cached(datamodule: RFDETRDataModule) -> str:
    """How many decoded images the cache has room for; empty without one."""
    caches = {split: datamodule.cache_of(split) for split in ("train", "valid")}
    found = {split: cache for split, cache in caches.items() if cache is not None}
    if not found:
        return ""
    fit = " and ".join(f"{cache.count:,} of {cache.all:,} {name}" for name, cache in found.items())
    size = in_bytes(sum(cache.bytes for cache in found.values()))
    each = " in each process" * (
        datamodule.trainer is not None and datamodule.trainer.world_size > 1
    )
    return f"room for {fit} images, decoded: {size} of memory{each}"


def run_summary(trainer: pl.Trainer, seconds: float) -> Rows:
    """What a fit of so many `seconds` has reached and left; empty where it kept nothing or had
    nothing left to train.
    """
    best = find_callback(trainer, BestModelCallback)
    if best is None or not (best.total_path.exists() and saves(trainer) and trainer.state.finished):
        return []
    rows: Rows = []
    if best.best_kind:
        entry, module = best.best[best.best_kind], trainer.lightning_module
        config: Any = module.train_config
        masks = any(m.masks is not None for m in best.results.values())
        figure = "mAR" if config.best_model_metric == "mar" else f"{'mask ' * masks}mAP 50:95"
        smoothed = ", smoothed" * (config.smooth_alpha > 0)
        label = "averaged (EMA)" if best.best_kind == "ema" else "live"
        found = f"{entry['score']:.4f}, {label} weights of epoch {entry['epoch'] + 1:.0f}"
        few = best.best_few
        if best.best_kind == "mean" and few:
            found = f"{entry['score']:.4f}, mean of the weights of {epochs_in_words(few.members)}"
        rows.append((f"best {figure} on valid{smoothed}", found))
        if few and best.mean_figures:
            mean, single = best.mean_figures
            told = "kept" if best.best_kind == "mean" else "not kept: the single one's are the best"
            row = f"{mean:.4f}, the best single weights {single:.4f}: {told}"
            rows.append((f"mean of the best {len(few.members)}", row))
    rows += [(split, _figures(metrics)) for split, metrics in best.results.items()]
    for split, metrics in list(best.results.items())[-1:]:
        rated = metrics if metrics.masks is None else metrics.masks
        judged = [row for row in rated.per_class if row["AP"] == row["AP"]]
        lowest = sorted(judged, key=lambda row: row["AP"])[:3]
        listed = ", ".join(f"{row['name']} {row['AP']:.3f}" for row in lowest)
        rows += [("weakest classes", f"on {split}, AP 50:95: {listed}")] * (len(judged) > 1)
    undecodable = find_callback(trainer, UndecodableCallback)
    damaged = undecodable.images if undecodable else {}
    counts = " and ".join(f"{len(found)} of {split}" for split, found in damaged.items() if found)
    if counts:
        rows.append(("damaged images", f"{counts} could not be decoded; `rfdetr check` names them"))
    rows.append(("epochs", _epochs(trainer)))
    page = best.output_dir / PAGE
    rows += [("best weights", str(best.total_path))] + [("report", str(page))] * page.is_file()
    rows.append(("all files", f"{best.output_dir}/"))
    took = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    return [*rows, ("time", took)]


def _epochs(trainer: pl.Trainer) -> str:
    """How many epochs it was; of a run that its time has ended, how much of the last one."""
    limit, text = find_callback(trainer, TimeLimitCallback), str(trainer.current_epoch)
    if limit is None or not limit.over:
        return text
    part = f", the last one to {limit.last_epoch:.0%}" if limit.last_epoch < 1 else ""
    return f"{text} of at most {trainer.max_epochs}{part}: the {limit.minutes:g} min were over"


def _figures(metrics: Metrics) -> str:
    """The main figures of a split: "mask mAP 50:95 0.4, ..., F1 0.7 at confidence 0.3, ..."."""
    figures = {}
    for kind, part in (("mask ", metrics.masks), ("", metrics)):
        if part is not None:
            figures[f"{kind}mAP 50:95"] = part.overall["mAP_50_95"]
            figures[f"{kind}mAP 50"] = part.overall["mAP_50"]
    figures["F1"] = metrics.overall["F1"]
    text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if value == value)
    threshold = metrics.overall["best_threshold"]
    return text + ("" if math.isnan(threshold) else f" at confidence {threshold:.3f}, its own best")
