"""`rfdetr verify-resume`: that killed runs go on exactly, on this machine and with this dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rfdetr.cli.options import known_model
from rfdetr.errors import RunError


def verify_resume(
    dataset: Path,
    /,
    *,
    model: str = "mini",
    classes: str | None = None,
    kills: int = 5,
    num_workers: int = 0,
    seed: int = 0,
) -> None:
    """Train a little, once undisturbed and once killed and resumed, and compare all files.

    Args:
        dataset: Folder with the labelled images; six batches of it are used.
        model: Variant to train.
        classes: Of the data, those to learn, as in training: cat,vehicle=car+truck.
        kills: How often the second training is killed.
        num_workers: Processes that load images.
        seed: Draws the moments.
    """
    from rfdetr.config import VARIANTS, TrainConfig
    from rfdetr.config.fields import as_classes
    from rfdetr.data.folders import Folders
    from rfdetr.training.verify import verify_resume as verify

    variant = VARIANTS[known_model(model)]
    taken = as_classes(classes)
    names = Folders(dataset, classes=taken).index("train").class_names
    model_config = variant(num_classes=len(names), pretrain_weights=None)
    short: Any = dict(epochs=2, batch_size=1, grad_accum_steps=2, checkpoint_every_n_steps=1)
    train_config = TrainConfig(
        dataset_dir=dataset, num_workers=num_workers, seed=seed, classes=taken, **short
    )
    report = verify(model_config, train_config, kills=kills, limit_batches=6, seed=seed)
    for name, digest in report.files.items():
        print(f"{digest}  {name}{'  DIFFERS' if name in report.differences else ''}")
    if report.differences:
        raise RunError(
            f"after {report.kills} kills and resumes these files differ: "
            f"{', '.join(report.differences)}. On a GPU, some operations add in no fixed order, "
            "and two undisturbed runs differ as well"
        )
    after = f"after {report.kills} kills at moments drawn from {report.moments}"
    print(f"the same, bit for bit, {after}")
