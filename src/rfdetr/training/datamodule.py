"""`RFDETRDataModule`: the splits of a dataset as Lightning's data loaders."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from rfdetr.checks import check_kind
from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.config.augment import steps_of
from rfdetr.config.fields import size_text
from rfdetr.data.augmentation.mixing import MIXING
from rfdetr.data.cache import ImageCache
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.findings import SHOWN, DatasetError, Findings
from rfdetr.data.folders import Folders
from rfdetr.data.index import DatasetIndex
from rfdetr.data.layout import SPLITS, DatasetLayout
from rfdetr.data.loaders import EpochSampler, build_loader
from rfdetr.data.tiling import TileCounts, cut_tiles
from rfdetr.data.transforms import EvalTransform, TrainTransform
from rfdetr.doctor.labels import check_classes, check_for_model
from rfdetr.errors import InputError
from rfdetr.training.early_evaluation import stratified_share
from rfdetr.training.lightning_state import predicts_with
from rfdetr.training.memory import cache_limit
from rfdetr.training.processes import is_sharded
from rfdetr.training.resolution import choose_resolution
from rfdetr.training.run_folder import RunFolder
from rfdetr.training.steps import draw_size, training_sizes

logger = logging.getLogger(__name__)

SHAPED = {"quarter_turn", "rotate", "affine", "perspective", "copy_paste"}
"""Steps of augmentation that read outlines, where the data has some, of a detection model too."""
LOADING = {"num_workers", "prefetch_factor", "persistent_workers", "pin_memory"}
"""Fields of `TrainConfig` that `build_loader` takes under the same names."""


class RFDETRDataModule(pl.LightningDataModule):
    """Training, validation and test images; each split is indexed at most once, when a stage or a
    loader needs it.

    In multi-scale training each image is resized once, straight to the size of its step, or to one
    of its own ("per-sample": smaller images of a batch are padded). There is no
    `predict_dataloader`: give `trainer.predict` the loader to use.

    With `auto_resolution`, train's images choose the resolution of `model_config` when they are
    indexed (see `choose_resolution`), and `chosen` then says why: call `setup("fit")`, and build
    the module with this `model_config`.
    """

    least_updates = 5
    """Updates of an epoch at least: a smaller set is repeated, or ten images would make one."""

    def __init__(
        self, model_config: ModelConfig, train_config: TrainConfig, auto_resolution: bool = False
    ) -> None:
        super().__init__()
        check_kind("model_config", model_config, ModelConfig)
        check_kind("train_config", train_config, TrainConfig)
        self.model_config = model_config
        self.train_config = train_config
        self.auto_resolution = auto_resolution
        self.chosen = ""
        self._given = model_config
        self.cut: dict[str, TileCounts] = {}  # by split, where images are cut into tiles
        self._indexes: dict[str, DatasetIndex] = {}  # in the order of SPLITS
        self.caches: dict[str, ImageCache] = {}  # by split, where images are kept

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes by label; None before a split was set up.

        They stand in ascending order of the category ids (COCO), or as in data.yaml (YOLO), of the
        first split set up, train before valid before test. Other splits follow by name. So do the
        splits that a trainer validates or tests weights with whose file has the same classes in
        another order: they follow the weights.
        """
        if not self._indexes:
            return None
        names = list(next(iter(self._indexes.values())).class_names)
        if self.trainer is None or self.trainer.state.fn not in ("validate", "test"):
            return names
        trained = getattr(self.trainer.lightning_module, "class_names", None)
        if trained is None or trained[: len(names)] in (names, self.train_config.class_names):
            return names
        if sorted(trained) != sorted(names):
            told = f"the data has the classes {names}, but the weights to evaluate know {trained}"
            raise InputError(told)
        return list(trained)

    @functools.cached_property
    def folders(self) -> Folders:
        """The labelled folders; a resumed run divides them as the one that it goes on with."""
        config, record = self.train_config, None
        if config.resume is not None:
            last = config.resume == "last"
            run = config.output_dir if last else Path(config.resume).expanduser().parent
            record = RunFolder(run).division
        return Folders(config.dataset_dir, config.dataset_file, config.classes, record=record)

    @property
    def layout(self) -> DatasetLayout:
        """Where the splits of the (first) folder are."""
        return self.folders.layouts[0]

    @property
    def tile(self) -> tuple[int, int] | None:
        """Height and width of the tiles that images are cut into; None for whole images."""
        tiles = self.train_config.tiles
        return self._given.input_size if tiles is True else tiles or None

    @property
    def has_test(self) -> bool:
        """Whether the dataset has a test split of its own."""
        return "test" in self.folders.splits

    def index(self, split: str) -> DatasetIndex:
        """The index of "train", "valid" or "test", its labels in the order of `class_names`."""
        self._read(split, None)
        return self._indexes[split].with_classes(tuple(self.class_names or ()), "the other splits")

    def data_record(self) -> dict[str, Any]:
        """What checkpoints record: category ids; by split images, boxes by class and digests."""
        ids = self.index("train").category_ids.tolist()
        taken, masks = self.train_config.classes, self.model_config.segmentation_head
        splits = {}
        for split in ("train", "valid"):
            index = self.index(split)
            splits[split] = (index if masks else replace(index, outlines=None)).facts()
        return {"category_ids": ids, "data": splits, **({"classes": taken} if taken else {})}

    def setup(self, stage: str | None = None) -> None:
        """Indexes the splits of a stage: train and valid to "fit", the evaluated one otherwise."""
        # Lightning also sets up the datamodule of an earlier call where predict was given loaders.
        if stage == "predict" and (self.trainer is None or predicts_with(self.trainer, self)):
            raise MisconfigurationException(
                "RFDETRDataModule has no predict_dataloader: pass the loader to use, as in "
                "trainer.predict(module, dataloaders=datamodule.val_dataloader())"
            )
        splits = {"fit": ("train", "valid"), "validate": ("valid",), "test": (self._test_split,)}
        new = [split for split in splits.get(stage or "fit", ()) if split not in self._indexes]
        findings = Findings(SHOWN)
        try:
            for split in new:
                self._read(split, findings)
            if "train" in new:  # Lightning sets up again what is set up
                check_classes({split: self.index(split) for split in self._indexes}, findings)
            findings.stop_on_errors(self.folders.names)
        except DatasetError:
            self._indexes.clear()
            raise
        findings.log(logger, self.folders.names)

    def _read(self, split: str, findings: Findings | None) -> None:
        """Indexes a split in its own order of classes, which must be those of the others; faults
        are raised, or go to `findings`.
        """
        if split in self._indexes:
            return
        config = self.model_config
        masks = config.segmentation_head
        spare = None if split == "train" and SHAPED & self._steps.keys() else False
        index = self.folders.index(split, findings, masks=masks or spare)
        for other in self._indexes.values():
            index.with_classes(other.class_names, "the other splits")
        if self.tile is not None:
            overlap, training = self.train_config.tile_overlap, split == "train"
            index, self.cut[split] = cut_tiles(index, self.tile, overlap, training=training)
        known = {**self._indexes, split: index}
        self._indexes = {name: known[name] for name in SPLITS if name in known}
        if split == "train" and self.auto_resolution:
            self._choose_resolution(index)
            config = self.model_config
        if findings is not None:
            needs = {"resolution", "patch_size", "num_queries"}
            check_for_model(index, findings, **config.model_dump(include=needs))

    def _choose_resolution(self, index: DatasetIndex) -> None:
        config, real = self._given, ~index.crowd  # a split that is read again chooses alike
        sizes = np.repeat(index.sizes, np.diff(index.offsets), axis=0)[real]
        boxes = index.boxes[real]
        shares = (boxes[:, 2:] - boxes[:, :2])[:, ::-1] / np.maximum(sizes, 1)
        step = config.patch_size * config.num_windows
        how = {"square": config.square, "patch": config.patch_size, "step": step}
        resolution, reason = choose_resolution(index.sizes, shares, **how)
        self.model_config = config.model_copy(update={"resolution": resolution})
        self.chosen = f"{size_text(resolution)}, chosen: {reason}"

    def train_dataloader(self) -> DataLoader[Any]:
        model, steps = self.model_config, self._steps
        mixing = {name: step for name, step in steps.items() if name in MIXING}
        single = {name: step for name, step in steps.items() if name not in MIXING}
        view = TrainTransform(model.input_size, self.train_config.color_jitter, single)
        scales = self.train_config.multi_scale
        each = scales == "per-sample"
        dataset = DetectionDataset(
            self.index("train"),
            view,
            seed=self._seed,
            sizes=training_sizes(model, self.train_config) if each else [],
            mixing=mixing,
            masks=model.segmentation_head,
            forgiving=True,
            cache=self.cache_of("train"),
        )
        order: dict[str, Any] = {"sizes": self._step_sizes if scales is True else None}
        order["progress"] = self._progress if mixing else None
        return self._loader(dataset, shuffle=True, at_least=self.images_an_epoch, **order)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.evaluation_loader("valid", chosen=self.early_images)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.evaluation_loader(self._test_split)

    def evaluation_loader(self, split: str, **order: Any) -> DataLoader[Any]:
        """All images of a split, or in the `order` of an `EpochSampler`."""
        view = EvalTransform(self.model_config.input_size)
        dataset = DetectionDataset(
            self.index(split), view, evaluation=True, forgiving=True, cache=self.cache_of(split)
        )
        return self._loader(dataset, self.train_config.eval_batch_size, shuffle=False, **order)

    @property
    def on_share(self) -> bool:
        """Whether the present epoch of fit is evaluated on `early_eval_share` of the images."""
        trainer = self.trainer
        return (
            trainer is not None
            and trainer.state.fn == "fit"
            and trainer.current_epoch < self.train_config.epochs_on_share
            # The last weights are judged by all.
            and not (trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs)
        )

    def early_images(self) -> NDArray[np.int64] | None:
        """Numbers of the valid images that the present epoch is evaluated on; None: of all."""
        share = self.train_config.early_eval_share
        if share is None or not self.on_share:
            return None
        return stratified_share(self.index("valid"), share, self._seed)

    def cache_of(self, split: str) -> ImageCache | None:
        """Room for a split's decoded files, where `cache` gives some: train's come first, then
        valid's. What is evaluated once has none.
        """
        most = self.train_config.cache
        if most is None or split not in ("train", "valid"):
            return None
        if split not in self.caches:
            before = (
                self.cache_of("train") if split == "valid" and "train" in self._indexes else None
            )
            index = self.index(split)
            sizes = index.sizes if index.tiles is None else index.tiles.sizes
            processes = self.trainer.world_size if self.trainer else 1
            left = cache_limit(most, processes) - (before.bytes if before else 0)
            self.caches[split] = ImageCache(sizes, left)
        return self.caches[split]

    def _loader(
        self, dataset: DetectionDataset, batch_size: int | None = None, **order: Any
    ) -> DataLoader[Any]:
        if trainer := self.trainer:
            # Lightning starts a resumed run's first iterator before it tells the sampler the epoch.
            order |= {"epoch": trainer.current_epoch, "rank": trainer.global_rank}
            # Sharded ranks wait for each other in every forward: they take equal shares.
            even = is_sharded(trainer.strategy)
            order |= {"world_size": trainer.world_size, "even": even}
        tiles = dataset.index.tiles
        files = None if tiles is None else tiles.files
        length = len(dataset)
        if order["shuffle"] and (taken := self._taken):
            length, order["taken"] = self.images_taken, taken
        sampler = EpochSampler(length, seed=self._seed, files=files, **order)
        options = self.train_config.model_dump(include=LOADING)
        if options["pin_memory"] is None:
            options["pin_memory"] = torch.cuda.is_available()
        return build_loader(dataset, sampler, batch_size=batch_size or self._batch_size, **options)

    def _step_sizes(self) -> Iterator[tuple[int, int]]:
        """The size of each training image to come: the one that the module draws for its step.

        Checkpoints are saved between steps, so an iteration starts with a step of its own. Where a
        run goes on with another batch size, that step may be shorter: Lightning counts its windows
        from the beginning of the epoch.
        """
        trainer, images = self.trainer, self._images_a_step
        sizes = training_sizes(self.model_config, self.train_config)
        first = left = 0
        if trainer:
            first = trainer.global_step
            epoch, batch = getattr(trainer.lightning_module, "resumed_at", (0, 0))
            left = batch * self._batch_size % images if epoch == trainer.current_epoch else 0
        for step in itertools.count(first):
            yield from itertools.repeat(draw_size(sizes, self._seed, step), images - left)
            left = 0

    def _progress(self, epoch: int) -> float:
        """The share of the run that is over with an epoch: of its epochs, or of its time where that
        is more.
        """
        trainer, epochs = self.trainer, self.train_config.epochs
        if trainer and trainer.max_epochs is not None and trainer.max_epochs > 0:
            epochs = trainer.max_epochs
        spent = getattr(trainer and trainer.lightning_module, "time_share", 0.0)
        return float(max((epoch + 1) / epochs, spent))

    @property
    def _steps(self) -> dict[str, dict[str, Any]]:
        return steps_of(self.train_config.augment)

    @property
    def _taken(self) -> list[tuple[int, int]]:
        """Training images (or tiles) of each folder, and how many of them an epoch takes; none
        where it takes all.
        """
        shares = self.folders.shares
        if min(shares) == 1:
            return []
        index, ends = self.index("train"), np.cumsum(self.folders.counts["train"])
        files = np.arange(len(index)) if index.tiles is None else index.tiles.files
        counts = np.diff(np.searchsorted(files, ends), prepend=0).tolist()
        return [(n, max(round(n * share), 1)) for n, share in zip(counts, shares, strict=True)]

    @property
    def images_taken(self) -> int:
        """Different training images of an epoch: of each folder its share."""
        return sum(most for _, most in self._taken) or len(self.index("train"))

    @property
    def images_an_epoch(self) -> int:
        """Training images of an epoch on all devices: those taken, or of `least_updates`."""
        devices = self.trainer.world_size if self.trainer else 1
        return max(self.images_taken, self.least_updates * self._images_a_step * devices)

    @property
    def _images_a_step(self) -> int:
        """Images of an optimizer step on one device."""
        trainer, config = self.trainer, self.train_config
        batches = trainer.accumulate_grad_batches if trainer else config.grad_accum_steps
        return self._batch_size * batches

    @property
    def _batch_size(self) -> int:
        """The configuration's; its default while "auto" is not resolved, as training alone does."""
        chosen = self.train_config.batch_size
        default: int = TrainConfig.model_fields["batch_size"].default
        return default if isinstance(chosen, str) else chosen

    @property
    def _test_split(self) -> str:
        return "test" if self.has_test else "valid"

    @property
    def _seed(self) -> int:
        """The module's: it draws one where none is configured, and a checkpoint restores it."""
        module = self.trainer and self.trainer.lightning_module
        return getattr(module, "seed", self.train_config.seed or 0)
