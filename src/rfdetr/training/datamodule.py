"""`RFDETRDataModule`: the splits of a dataset as Lightning's data loaders."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from rfdetr.checks import check_kind
from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.findings import SHOWN, DatasetError, Findings
from rfdetr.data.index import DatasetIndex
from rfdetr.data.layout import SPLITS, DatasetLayout, find_splits, load_index
from rfdetr.data.loaders import EpochSampler, build_loader
from rfdetr.data.transforms import EvaluationView, TrainingView
from rfdetr.doctor.splits import check_classes, check_for_model
from rfdetr.errors import InputError
from rfdetr.training.lightning_state import predicts_with
from rfdetr.training.optim import multi_scale_sizes
from rfdetr.training.processes import is_sharded
from rfdetr.training.steps import draw_size

logger = logging.getLogger(__name__)


class RFDETRDataModule(pl.LightningDataModule):
    """Training, validation and test images; each split is indexed at most once, when a stage or a
    loader needs it.

    An epoch of training has five updates at least: a smaller set is repeated, as otherwise ten
    images would make one update an epoch. In multi-scale training each image is resized once,
    straight to the size of its step. There is no `predict_dataloader`: give `trainer.predict` the
    loader to use.
    """

    least_updates = 5
    """Updates of an epoch at least."""

    def __init__(self, model_config: ModelConfig, train_config: TrainConfig) -> None:
        super().__init__()
        check_kind("model_config", model_config, ModelConfig)
        check_kind("train_config", train_config, TrainConfig)
        self.model_config = model_config
        self.train_config = train_config
        self._layout: DatasetLayout | None = None
        self._indexes: dict[str, DatasetIndex] = {}

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
        names = list(self._first_index.class_names)
        evaluating = self.trainer is not None and self.trainer.state.fn in ("validate", "test")
        trained = (
            getattr(self.trainer.lightning_module, "class_names", None)
            if evaluating and self.trainer
            else None
        )
        if trained is None or trained[: len(names)] == names:
            return names
        if sorted(trained) != sorted(names):
            raise InputError(
                f"the data has the classes {names}, but the weights to evaluate know {trained}"
            )
        return list(trained)

    @property
    def has_test(self) -> bool:
        """Whether the dataset has a test split of its own."""
        return "test" in self.layout.splits

    @property
    def layout(self) -> DatasetLayout:
        """Where the dataset's splits are."""
        if self._layout is None:
            self._layout = find_splits(
                self.train_config.dataset_dir, self.train_config.dataset_file
            )
        return self._layout

    def index(self, split: str) -> DatasetIndex:
        """The index of "train", "valid" or "test", its labels in the order of `class_names`.

        Every split must have the same classes.
        """
        self._read(split, None)
        return self._indexes[split].with_classes(tuple(self.class_names or ()), "the other splits")

    def facts(self) -> dict[str, Any]:
        """What files of weights tell of the data: the annotations' own category ids, and each
        split's `facts`.
        """
        ids = self.index("train").category_ids.tolist()
        return {
            "category_ids": ids,
            "data": {split: self.index(split).facts() for split in ("train", "valid")},
        }

    def setup(self, stage: str | None = None) -> None:
        """Indexes what a stage needs: train and valid to "fit", valid to "validate", test, or else
        valid, to "test".
        """
        # Lightning sets up the datamodule of an earlier call too, though it was given loaders to
        # predict with.
        if stage == "predict" and (self.trainer is None or predicts_with(self.trainer, self)):
            raise MisconfigurationException(
                "RFDETRDataModule has no predict_dataloader: pass the loader to use, as in trainer.predict(module, "
                "dataloaders=datamodule.val_dataloader()), test_dataloader() or a loader of your own"
            )
        splits = {"fit": ("train", "valid"), "validate": ("valid",), "test": (self._test_split,)}
        new = [split for split in splits.get(stage or "fit", ()) if split not in self._indexes]
        findings = Findings(SHOWN)
        try:
            for split in new:
                self._read(split, findings)
            if "train" in new:  # Lightning sets up again what is set up
                check_classes({split: self.index(split) for split in self._indexes}, findings)
            findings.stop_on_errors(self.train_config.dataset_dir)
        except DatasetError:
            self._indexes.clear()
            raise
        findings.log(logger, self.train_config.dataset_dir)

    @property
    def _first_index(self) -> DatasetIndex:
        return next(self._indexes[split] for split in SPLITS if split in self._indexes)

    def _read(self, split: str, findings: Findings | None) -> None:
        """Indexes a split that is not yet, in its own order of classes; faults are raised, or left
        in `findings`.
        """
        if split in self._indexes:
            return
        config = self.model_config
        index = load_index(self.layout, split, None, findings, masks=config.segmentation_head)
        if self._indexes:
            index.with_classes(self._first_index.class_names, "the other splits")
        self._indexes[split] = index
        if findings is not None:
            check_for_model(
                index,
                findings,
                resolution=config.resolution,
                patch_size=config.patch_size,
                num_queries=config.num_queries,
            )

    def train_dataloader(self) -> DataLoader[Any]:
        view = TrainingView(self.model_config.resolution, self.train_config.color_jitter)
        return self._loader(
            DetectionDataset(self.index("train"), view, seed=self._seed, forgiving=True),
            shuffle=True,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("valid")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader(self._test_split)

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        view = EvaluationView(self.model_config.resolution)
        return self._loader(
            DetectionDataset(self.index(split), view, evaluation=True, forgiving=True),
            shuffle=False,
        )

    def _loader(self, dataset: DetectionDataset, shuffle: bool) -> DataLoader[Any]:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        even = trainer is not None and is_sharded(
            trainer.strategy
        )  # whose ranks wait for each other in every forward
        multi_scale = shuffle and self.train_config.multi_scale
        # Lightning starts a resumed run's first iterator before it tells the sampler the epoch.
        epoch = trainer.current_epoch if trainer else 0
        return build_loader(
            dataset,
            EpochSampler(
                len(dataset),
                shuffle=shuffle,
                seed=self._seed,
                epoch=epoch,
                rank=rank,
                world_size=world_size,
                even=even,
                at_least=self.images_an_epoch if shuffle else 0,
                sizes=self._step_sizes if multi_scale else None,
            ),
            batch_size=self._batch_size,
            num_workers=self.train_config.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _step_sizes(self) -> Iterator[int]:
        """The size of each training image to come: all of an optimizer step have the one that the
        module draws for it.

        Checkpoints are saved between steps, so an iteration starts with a step of its own. Where a
        run goes on with another batch size, that step may be shorter: Lightning counts its windows
        from the beginning of the epoch.
        """
        model, expanded = self.model_config, self.train_config.expanded_scales
        sizes = multi_scale_sizes(model.resolution, model.patch_size, model.num_windows, expanded)
        trainer = self.trainer
        epoch, batch = getattr(trainer and trainer.lightning_module, "resumed_at", (0, 0))
        taken = (
            batch * self._batch_size % self._images_a_step
            if trainer and epoch == trainer.current_epoch
            else 0
        )
        for step in itertools.count(trainer.global_step if trainer else 0):
            yield from itertools.repeat(
                draw_size(sizes, self._seed, step), self._images_a_step - taken
            )
            taken = 0

    @property
    def images_an_epoch(self) -> int:
        """Training images of an epoch over all devices: those of the split, or of `least_updates`."""
        devices = self.trainer.world_size if self.trainer else 1
        return max(len(self.index("train")), self.least_updates * self._images_a_step * devices)

    @property
    def _images_a_step(self) -> int:
        """Images of an optimizer step on one device."""
        accumulate = (
            self.trainer.accumulate_grad_batches
            if self.trainer
            else self.train_config.grad_accum_steps
        )
        return self._batch_size * accumulate

    @property
    def _batch_size(self) -> int:
        """The configuration's; its default while "auto" has not been resolved, which training alone
        does.
        """
        chosen = self.train_config.batch_size
        default: int = TrainConfig.model_fields["batch_size"].default
        return default if isinstance(chosen, str) else chosen

    @property
    def _test_split(self) -> str:
        return "test" if self.has_test else "valid"

    @property
    def _seed(self) -> int:
        """The module's, which is drawn where the configuration has none and restored by a
        checkpoint.
        """
        from rfdetr.training.module import RFDETRModule

        if self.trainer and isinstance(self.trainer.lightning_module, RFDETRModule):
            return self.trainer.lightning_module.seed
        return self.train_config.seed or 0
