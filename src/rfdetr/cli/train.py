"""`rfdetr train`: every field of `SegmentationTrainConfig` and `ModelConfig` is an option."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Group, Parameter
from pydantic import BaseModel

from rfdetr.cli.options import given, known_model, options_of, read_config_file, split_settings
from rfdetr.config import ModelConfig, SegmentationTrainConfig
from rfdetr.errors import InputError

if TYPE_CHECKING:
    from rfdetr.detector import RFDETR

    TrainOptions: TypeAlias = BaseModel | None
    ModelOptions: TypeAlias = BaseModel | None
else:
    _training = Group("Training", sort_key=1)
    _network = Group("Model (defaults are the variant's)", sort_key=2)
    TrainOptions = options_of(
        SegmentationTrainConfig, _training, without=frozenset({"dataset_dir"})
    )
    ModelOptions = options_of(ModelConfig, _network)


def train(
    dataset: Annotated[str | None, Parameter(name=["--dataset-dir", "--dataset", "--data"])] = None,
    /,
    *,
    model: str | None = None,
    config: Path | None = None,
    training: TrainOptions = None,
    network: ModelOptions = None,
) -> None:
    """Fine-tune a detector on a folder of labelled images (COCO or YOLO layout).

    Parameters
    ----------
    dataset
        Folder with the labelled images.
    model
        Variant: mini, nano, small, medium, large, ... Without it, the variant of --pretrain-weights, or nano.
    config
        YAML file with any of these options, `name: value`; options given here win over it.
    """
    settings = {**read_config_file(config), **given(training), **given(network)}
    name = model or settings.get("model")
    settings.pop("model", None)
    if dataset is not None:
        settings["dataset_dir"] = dataset
    if "dataset_dir" not in settings:
        raise InputError("which folder of labelled images? rfdetr train DATASET [OPTIONS]")
    model_settings, train_settings = split_settings(settings)
    SegmentationTrainConfig(
        **train_settings
    )  # a wrong setting is told before any weights are loaded
    _detector(name, model_settings).train(**train_settings)


def _detector(name: str | None, settings: dict[str, Any]) -> RFDETR:
    from rfdetr.detector import FACES, RFDETR

    if name is None and settings.get("pretrain_weights"):
        return RFDETR.from_checkpoint(settings.pop("pretrain_weights"), **settings)
    return FACES[known_model(name or "nano")](**settings)
