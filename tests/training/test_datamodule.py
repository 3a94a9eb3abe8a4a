"""The datamodule: which stage reads what, once, and what it says of the classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.data.findings import DatasetError
from rfdetr.training import RFDETRDataModule


@pytest.fixture
def make_datamodule(
    tiny_model: Callable[..., ModelConfig], train_config: Callable[..., TrainConfig]
) -> Callable[..., RFDETRDataModule]:
    return lambda **train: RFDETRDataModule(tiny_model(), train_config(**train))


@pytest.mark.parametrize(
    ("stage", "splits"),
    [("fit", {"train", "valid"}), ("validate", {"valid"}), ("test", {"test"})],
)
def test_a_stage_reads_its_splits_only(
    make_datamodule: Callable[..., RFDETRDataModule], stage: str, splits: set[str]
) -> None:
    datamodule = make_datamodule()
    assert datamodule.class_names is None
    datamodule.setup(stage)
    assert set(datamodule._indexes) == splits


def test_a_split_is_read_once(make_datamodule: Callable[..., RFDETRDataModule]) -> None:
    datamodule = make_datamodule()
    datamodule.setup("fit")
    first = datamodule.index("train"), datamodule.index("valid")
    datamodule.setup("fit")
    datamodule.setup("validate")
    assert datamodule.index("train") is first[0]
    assert datamodule.index("valid") is first[1]
    assert datamodule.class_names == ["blue", "green", "red"]


def reorder(content: dict[str, Any]) -> None:
    """Other category ids for the same names, in another order."""
    for record in [*content["categories"], *content["annotations"]]:
        key = "category_id" if "category_id" in record else "id"
        record[key] = 10 - record[key]


def test_labels_follow_the_ids_of_train_and_other_splits_follow_by_name(
    make_tiny_coco: Callable[..., Path],
    edit_coco: Callable[..., None],
    make_datamodule: Callable[..., RFDETRDataModule],
) -> None:
    dataset = make_tiny_coco(name="renumbered")
    before = make_datamodule(dataset_dir=dataset).index("valid").labels
    edit_coco(dataset / "valid" / "_annotations.coco.json", reorder)
    alone, both = make_datamodule(dataset_dir=dataset), make_datamodule(dataset_dir=dataset)
    alone.setup("validate")
    assert alone.class_names == ["red", "green", "blue"]
    assert (2 - alone.index("valid").labels).tolist() == before.tolist()
    both.setup("validate")
    both.setup("fit")
    assert both.class_names == ["blue", "green", "red"]
    assert both.index("valid").category_ids.tolist() == [9, 8, 7]
    assert both.index("valid").labels.tolist() == before.tolist()


def test_evaluation_follows_the_order_of_the_weights(
    make_run: Callable[..., Any],
    make_tiny_coco: Callable[..., Path],
    edit_coco: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Weights that know the data's classes in another order get the figures that they have in that
    order.
    """
    run = make_run(epochs=2, lr=3e-3, use_ema=False).fit()
    run.module.class_names = ["blue", "green", "red"]
    expected = run.trainer.validate(run.module, run.datamodule)[0]
    run.trainer.save_checkpoint(tmp_path / "known.ckpt", weights_only=True)
    dataset = make_tiny_coco(name="renumbered")
    edit_coco(dataset / "valid" / "_annotations.coco.json", reorder)
    again = make_run(
        output="again",
        dataset_dir=dataset,
        model={"pretrain_weights": str(tmp_path / "known.ckpt")},
    )
    assert again.module.class_names == ["blue", "green", "red"]
    assert again.trainer.validate(again.module, again.datamodule)[0] == expected
    assert again.datamodule.class_names == ["blue", "green", "red"]
    again.module.class_names = ["blue", "green", "rot"]
    with pytest.raises(
        ValueError, match=r"the data has the classes .* the weights to evaluate know .*'rot'"
    ):
        again.trainer.validate(again.module, again.datamodule)


def test_what_is_odd_about_classes_is_told_once(
    make_run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(epochs=1)
    run.datamodule.setup("fit")
    run.fit()
    run.trainer.test(run.module, run.datamodule)
    assert (
        caplog.text.count("x class-")
        == len({line for line in caplog.text.splitlines() if "x class-" in line})
        > 0
    )


def test_a_dataset_without_a_test_split_is_tested_on_valid(
    make_tiny_coco: Callable[..., Path], make_datamodule: Callable[..., RFDETRDataModule]
) -> None:
    datamodule = make_datamodule(
        dataset_dir=make_tiny_coco({"train": 4, "valid": 2}, name="no-test")
    )
    datamodule.setup("test")
    assert not datamodule.has_test
    assert len(datamodule.test_dataloader().dataset) == 2


def test_loaders_work_before_setup_and_in_yolo_layout(
    tiny_yolo: Path, make_datamodule: Callable[..., RFDETRDataModule]
) -> None:
    images, targets = next(iter(make_datamodule(dataset_dir=tiny_yolo).val_dataloader()))
    assert images.tensors.shape == (2, 3, 64, 64)
    assert "iscrowd" in targets[0]


def test_a_train_split_without_an_object_to_learn_is_refused(
    make_tiny_coco: Callable[..., Path],
    edit_coco: Callable[..., None],
    tiny_yolo: Path,
    make_datamodule: Callable[..., RFDETRDataModule],
) -> None:
    dataset = make_tiny_coco(name="crowds")

    def all_crowds(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1

    edit_coco(dataset / "train" / "_annotations.coco.json", all_crowds)
    with pytest.raises(
        DatasetError, match="split train: 6 images, 7 crowds: train has no object to learn"
    ):
        make_datamodule(dataset_dir=dataset).setup("fit")
    for label in (tiny_yolo / "train" / "labels").iterdir():
        label.write_text("")
    with pytest.raises(
        DatasetError, match="split train: 6 images, 0 crowds: train has no object to learn"
    ):
        make_datamodule(dataset_dir=tiny_yolo).setup("fit")


def test_splits_with_other_classes_are_refused(
    make_tiny_coco: Callable[..., Path],
    edit_coco: Callable[..., None],
    make_datamodule: Callable[..., RFDETRDataModule],
) -> None:
    dataset = make_tiny_coco(name="renamed")
    annotations = dataset / "valid" / "_annotations.coco.json"
    edit_coco(annotations, lambda content: content["categories"][1].update(name="azure"))
    with pytest.raises(DatasetError, match="azure"):
        make_datamodule(dataset_dir=dataset).setup("fit")


def test_there_is_no_predict_dataloader(make_run: Callable[..., Any]) -> None:
    run = make_run()
    assert "predict_dataloader" not in vars(RFDETRDataModule)
    match = r"no predict_dataloader.*dataloaders=datamodule\.val_dataloader\(\)"
    with pytest.raises(MisconfigurationException, match=match):
        run.trainer.predict(run.module, run.datamodule)


def test_training_order_changes_with_the_epoch_and_evaluation_order_does_not(
    make_datamodule: Callable[..., RFDETRDataModule],
) -> None:
    datamodule = make_datamodule()

    def order(loader: Any, epoch: int) -> list[int]:
        loader.sampler.set_epoch(epoch)
        return [int(target["image_id"]) for _, targets in loader for target in targets]

    train, valid = datamodule.train_dataloader(), datamodule.val_dataloader()
    assert order(train, 0) == order(datamodule.train_dataloader(), 0) != order(train, 1)
    assert order(valid, 0) == order(valid, 1) == [1, 2, 3, 4]


def test_without_a_seed_the_data_follow_the_modules_draw(make_run: Callable[..., Any]) -> None:
    run = make_run(seed=None, trainer={"fast_dev_run": 1}).fit()
    assert run.trainer.train_dataloader.sampler.seed == run.module.seed
