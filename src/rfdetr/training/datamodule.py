"""`RFDETRDataModule`: the splits of a dataset as Lightning's data loaders."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.index import DatasetIndex
from rfdetr.data.layout import DatasetLayout, find_splits, load_index
from rfdetr.data.loaders import EpochSampler, build_loader
from rfdetr.data.transforms import EvaluationView, TrainingView


class RFDETRDataModule(pl.LightningDataModule):
    """Training, validation and test images; each split is indexed at most once, when a stage or a loader needs it.

    There is no `predict_dataloader`: give `trainer.predict` the loader to use.
    """

    def __init__(self, model_config: ModelConfig, train_config: TrainConfig) -> None:
        super().__init__()
        self.model_config = model_config
        self.train_config = train_config
        self._layout: DatasetLayout | None = None
        self._indexes: dict[str, DatasetIndex] = {}

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes by label, from the first split that was set up; None before."""
        return list(next(iter(self._indexes.values())).class_names) if self._indexes else None

    @property
    def has_test(self) -> bool:
        """Whether the dataset has a test split of its own."""
        return "test" in self.layout.splits

    @property
    def layout(self) -> DatasetLayout:
        """Where the dataset's splits are."""
        if self._layout is None:
            self._layout = find_splits(self.train_config.dataset_dir, self.train_config.dataset_file)
        return self._layout

    def index(self, split: str) -> DatasetIndex:
        """The index of "train", "valid" or "test"; every split must have the classes of the first one read."""
        if split not in self._indexes:
            self._indexes[split] = load_index(self.layout, split, self.class_names)
        return self._indexes[split]

    def setup(self, stage: str | None = None) -> None:
        """Indexes what a stage needs: train and valid to "fit", valid to "validate", test, or else valid, to "test"."""
        splits = {"fit": ("train", "valid"), "validate": ("valid",), "test": (self._test_split,)}
        for split in splits.get(stage or "fit", ()):
            self.index(split)

    def train_dataloader(self) -> DataLoader[Any]:
        view = TrainingView(self.model_config.resolution, self.train_config.color_jitter)
        return self._loader(DetectionDataset(self.index("train"), view, seed=self._seed), shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("valid")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader(self._test_split)

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        view = EvaluationView(self.model_config.resolution)
        return self._loader(DetectionDataset(self.index(split), view, evaluation=True), shuffle=False)

    def _loader(self, dataset: DetectionDataset, shuffle: bool) -> DataLoader[Any]:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        # Lightning starts a resumed run's first iterator before it tells the sampler the epoch.
        epoch = trainer.current_epoch if trainer else 0
        return build_loader(
            dataset,
            EpochSampler(len(dataset), shuffle=shuffle, seed=self._seed, epoch=epoch, rank=rank, world_size=world_size),
            batch_size=self.train_config.batch_size,
            num_workers=self.train_config.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def _test_split(self) -> str:
        return "test" if self.has_test else "valid"

    @property
    def _seed(self) -> int:
        """The module's, which is drawn where the configuration has none and restored by a checkpoint."""
        from rfdetr.training.module import RFDETRModule

        if self.train_config.seed is None and self.trainer and isinstance(self.trainer.lightning_module, RFDETRModule):
            return self.trainer.lightning_module.seed
        return self.train_config.seed or 0
