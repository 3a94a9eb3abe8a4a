"""`rfdetr train`: every field of `SegmentationTrainConfig` and `ModelConfig` is an option."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import Group
from pydantic import BaseModel

from rfdetr.cli.options import Dataset, known_model, options_of, read_config_file, split_settings
from rfdetr.compat import split_moved
from rfdetr.config import ModelConfig, SegmentationTrainConfig
from rfdetr.errors import InputError

if TYPE_CHECKING:
    TrainOptions: TypeAlias = BaseModel | None
    ModelOptions: TypeAlias = BaseModel | None
else:
    TrainOptions = options_of(SegmentationTrainConfig, Group("Training", sort_key=1))
    ModelOptions = options_of(ModelConfig, Group("Model (defaults are the variant's)", sort_key=2))


def train(
    dataset: Annotated[list[str] | None, Dataset] = None,
    /,
    *,
    model: str | None = None,
    config: Path | None = None,
    training: TrainOptions = None,
    network: ModelOptions = None,
) -> None:
    """Fine-tune a detector on a folder of labelled images, or on several: new old@0.25 takes a
    quarter of the images of old in each epoch.

    Args:
        model: Variant: mini, nano, small, medium, ...; default: of --pretrain-weights, or nano.
        config: YAML file with any of these options, `name: value`; options given here win over it.
    """
    settings = {} if config is None else read_config_file(config)
    for options in (training, network):
        settings |= options.model_dump(exclude_unset=True) if options is not None else {}
    name = model or settings.get("model")
    settings.pop("model", None)
    if dataset is not None:
        settings["dataset_dir"] = dataset[0] if len(dataset) == 1 else dataset
    if "dataset_dir" not in settings:
        raise InputError("which folder of labelled images? rfdetr train DATASET [OPTIONS]")
    of_model, of_training = split_settings(settings)
    if of_model.get("resolution") == "auto":  # of the training images
        of_training["resolution"] = of_model.pop("resolution")
    SegmentationTrainConfig(
        **split_moved(of_training)[0]
    )  # a wrong setting is told before weights are loaded

    from rfdetr.variants import FACES, RFDETR

    if name is None and of_model.get("pretrain_weights"):
        detector = RFDETR.from_checkpoint(of_model.pop("pretrain_weights"), **of_model)
    else:
        detector = FACES[known_model(name or "nano")](**of_model)
    detector.train(**of_training)
