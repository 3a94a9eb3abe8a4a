"""Pictures of the first batches: what is in them, and that the run does not notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rfdetr.data.dataset import NestedTensor
from rfdetr.training.callbacks.grids import batch_picture

SETTINGS = {"epochs": 1, "batch_size": 2, "eval_batch_size": 3, "run_test": False}


def test_the_first_three_batches_are_drawn_and_the_run_is_as_without(
    make_run: Callable[..., Any], make_tiny_coco: Callable[..., Path]
) -> None:
    data = make_tiny_coco({"train": 8, "valid": 4}, "eight")
    seen: list[torch.Tensor] = []
    run = make_run(dataset_dir=data, save_dataset_grids=True, multi_scale=True, **SETTINGS)
    step = run.module.training_step

    def watched(batch: Any, batch_idx: int) -> Any:
        seen.append(batch[0].tensors)
        return step(batch, batch_idx)

    run.module.training_step = watched
    run.fit()
    folder = run.output / "dataset_grids"
    numbers = {"train": 3, "val": 2}
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{split}_batch{n}_grid.jpg" for split, count in numbers.items() for n in range(count)
    ]
    for n, images in enumerate(seen[:3]):
        side = images.shape[-1]
        picture = np.asarray(Image.open(folder / f"train_batch{n}_grid.jpg"))
        assert picture.shape == (side, 2 * side + 4, 3)
        drawn = np.concatenate((picture[:, :side], picture[:, side + 4 :]), 1).astype(int)
        given = torch.cat((*images.permute(0, 2, 3, 1),), 1).numpy().astype(int)
        assert np.median(np.abs(drawn - given)) < 10  # boxes and JPEG aside
    plain = make_run(dataset_dir=data, multi_scale=True, output="plain", **SETTINGS).fit()
    assert not (plain.output / "dataset_grids").exists()
    ends = [torch.load(each.output / "last.ckpt") for each in (run, plain)]
    for name, tensor in ends[0]["state_dict"].items():
        assert torch.equal(tensor, ends[1]["state_dict"][name]), name


def test_objects_are_drawn_where_the_image_lies_in_its_padding() -> None:
    gray = torch.full((2, 3, 128, 128), 128, dtype=torch.uint8)
    padding = torch.zeros(2, 128, 128, dtype=torch.bool)
    padding[1, 64:], padding[1, :, 64:] = True, True
    gray[1][:, padding[1]] = 0
    masks = torch.zeros(1, 128, 128, dtype=torch.bool)
    masks[:, 16:48, 16:48] = True  # of the padded picture
    box = {"boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]), "labels": torch.tensor([0])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    none["masks"] = torch.zeros(0, 128, 128, dtype=torch.bool)
    picture = batch_picture(NestedTensor(gray, padding), [none, {**box, "masks": masks}], ["a"])
    coloured = np.ptp(np.asarray(picture).astype(int), axis=2) > 20
    assert picture.size == (260, 128) and not coloured[:, :132].any()
    rows, columns = np.nonzero(coloured[16:, 132:])  # below the name
    assert rows.min() == 0 and abs(rows.max() - 32) <= 1
    assert abs(columns.min() - 16) <= 1 and abs(columns.max() - 48) <= 1


def test_batches_of_other_loaders_are_not_drawn(
    make_run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(save_dataset_grids=True, **SETTINGS)
    data = run.datamodule
    run.trainer.fit(run.module, data.train_dataloader(), data.val_dataloader())
    assert "no picture of train batches" in caplog.text
    assert not (run.output / "dataset_grids").exists()
