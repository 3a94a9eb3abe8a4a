"""Command-line options made from the configuration's fields, so that no field is written twice.

Precedence: option > file of `--config` > default. `key=value` is read as `--key=value`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, create_model

from rfdetr.checks import nearest, short
from rfdetr.compat import MODEL, TRAIN
from rfdetr.config import VARIANTS, ModelConfig, SegmentationTrainConfig
from rfdetr.config.fields import as_sides, fault_lines
from rfdetr.errors import InputError

if TYPE_CHECKING:
    from rfdetr.detector import RFDETR
    from rfdetr.predicting import ExportedDetector

_FIELDS = [*SegmentationTrainConfig.model_fields, *ModelConfig.model_fields]
_TEXTS = (
    *(Path, ModelConfig.model_fields["resolution"].annotation),
    *(
        SegmentationTrainConfig.model_fields[name].annotation
        for name in ("classes", "augment", "tiles")
    ),
)
"""Read by the configuration itself: "" is no Path("."), "320x480" is a height and a width,
"steps.yaml" a mapping, and `--tiles` alone True.
"""
_FOLDER = "Folder with the labelled images (COCO, YOLO, VOC, LabelMe, CVAT, Label Studio)."
_FILES = 'Layout: "roboflow" detects it, "coco" is the original COCO layout.'
_WEIGHTS = "File of weights, or the name of a published one"
_DEVICES = '"cpu", "cuda", "mps"; the best there is by default.'
# Parameters that several commands have, with their notes.
Dataset = Parameter(name=["--dataset-dir", "--dataset", "--data"], help=_FOLDER)
DatasetFile = Annotated[Literal["roboflow", "coco", "yolo"], Parameter(help=_FILES)]
Checkpoint = Annotated[str, Parameter(help=f"{_WEIGHTS}.")]
Predicting = Annotated[str, Parameter(help=f"{_WEIGHTS}; or an exported .onnx, .xml or .pt2.")]
BatchSize = Annotated[int, Parameter(help="Images at a time.")]
Device = Annotated[str | None, Parameter(help=_DEVICES)]
_STAND_ALONE = {"--report": "", "--slice": "", "--tiles": "true"}  # or have another value
AsJson = Annotated[bool, Parameter(name="--json", negative="")]


def options_of(config: type[BaseModel], group: Group) -> Any:
    """A class with the fields of `config` that have a default as options; unset if not given."""
    annotated: Any = Annotated  # these types are made here, where a type checker cannot follow
    fields: dict[str, Any] = {}
    for name, field in config.model_fields.items():
        if field.is_required():
            continue
        shows = config is not ModelConfig and field.default is not None  # variants have their own
        note = f"{field.description} [default: {field.default}]" if shows else field.description
        apart = field.annotation in _TEXTS
        kind: Any = str if apart else field.annotation
        spellings = (rule for rule in field.metadata if isinstance(rule, BeforeValidator))
        rules = *(() if apart else spellings), BeforeValidator(_plain), Parameter(group=group)
        kind = annotated[(kind | None, *rules)]
        fields[name] = (kind, Field(None, description=" ".join(str(note).split())))
    return annotated[create_model(f"{config.__name__}Options", **fields), Parameter(name="*")]


def _plain(value: Any) -> Any:
    """ "none" is None, and "3,6" or "[3, 6]" is a list of two, in an option that may be one."""
    if isinstance(value, list):
        return [part.strip() for text in value for part in str(text).strip("[]").split(",")]
    return None if value in ("none", "null") else value


def read_config_file(path: Path) -> dict[str, Any]:
    """Settings of a YAML file: `name: value`, or the config.yaml that a run leaves."""
    import yaml

    found: dict[str, Any]
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected lines of `name: value`, found {type(found).__name__}")
    if isinstance(found.get("train"), dict) and isinstance(found.get("model"), dict):
        found = {**found["train"], **found["model"], "model": found.get("variant")}
    try:
        split_settings({name: value for name, value in found.items() if name != "model"})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return found


def split_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """One flat set of settings into those of the model and those of the training.

    Raises `InputError` for unknown names, with the nearest known one of each.
    """
    problems = []
    for name in settings:
        if name not in {*_FIELDS, *MODEL, *TRAIN, "callbacks"}:
            near = nearest(str(name), _FIELDS)
            problems.append(f"no setting {name!r}" + (f"; did you mean {near!r}?" if near else ""))
    if problems:
        raise InputError("; ".join(problems))
    of_models = {*ModelConfig.model_fields, *MODEL} - {*SegmentationTrainConfig.model_fields}
    model = {name: value for name, value in settings.items() if name in of_models}
    return model, {name: value for name, value in settings.items() if name not in model}


def known_model(name: Any) -> str:
    """The same name, if it is a variant's; else `InputError` with the nearest one."""
    if isinstance(name, str) and name in VARIANTS:
        return name
    near = nearest(short(name).strip("'"), VARIANTS)
    hint = f"did you mean {near!r}?" if near else f"the models are {', '.join(VARIANTS)}"
    raise InputError(f"no model {short(name)}; {hint}")


def open_model(name: str, device: str | None) -> RFDETR | ExportedDetector:
    """The model of a checkpoint, of a published name, or of an exported file or its folder."""
    from rfdetr.inference.engines import is_artifact
    from rfdetr.variants import RFDETR

    if not is_artifact(name):
        return RFDETR.from_checkpoint(name, device=device)
    if device not in (None, "cpu"):
        raise InputError(f"device {device!r}: an exported model runs on the CPU; leave it out")
    return RFDETR.from_export(name)


@Parameter(name="*")
@dataclass(frozen=True)
class TileOptions:
    """Options of prediction in tiles."""

    slice: Annotated[
        str | None,
        Parameter(
            help="Tiles for small objects: pixels, height,width, or alone the network's input."
        ),
    ] = None
    slice_overlap: Annotated[
        float, Parameter(help="Least share of a tile's sides in the next one.")
    ] = 0.2
    slice_whole: Annotated[bool, Parameter(help="Look at the whole image beside its tiles.")] = True

    def keywords(self) -> dict[str, Any]:
        """Those of `predict`; `--slice` that stands alone is True."""
        sides = as_sides(self.slice)
        if isinstance(sides, str) and not (sides.isdecimal() or not sides):
            raise InputError(f"--slice {sides}: expected pixels, or height,width")
        tile = (int(sides) if sides else True) if isinstance(sides, str) else sides
        return {**asdict(self), "slice": tile}


WHOLE_IMAGES = TileOptions()


def one_line(error: BaseException) -> str:
    """An exception's message in one line."""
    for fault in (error, error.__cause__):  # cyclopts hands on what pydantic has found as a cause
        if isinstance(fault, ValidationError):
            return "; ".join(fault_lines(fault))
    return " ".join(str(error).split()) or type(error).__name__


def dashed(tokens: list[str]) -> list[str]:
    """The tokens, `epochs=5` as `--epochs=5`, unless there is a file of that name; one of
    `_STAND_ALONE` without a value, before an option or a folder, as `--report=`. What follows
    `--classes` is its value.
    """
    setting = re.compile(r"[A-Za-z_][\w-]*=")
    named = [
        f"--{t}" if setting.match(t) and not Path(t).exists() and before != "--classes" else t
        for before, t in zip(["", *tokens], tokens, strict=False)
    ]
    return [
        f"{token}={_STAND_ALONE[token]}"
        if token in _STAND_ALONE and (after.startswith("-") or Path(after).is_dir())
        else token
        for token, after in zip(named, [*named[1:], "--"], strict=True)
    ]
