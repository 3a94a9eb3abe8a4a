"""Command-line options made from the configuration's fields, so that no field is written twice.

Precedence: option > file of `--config` > default. `key=value` is read as `--key=value`.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, create_model

from rfdetr.checks import short
from rfdetr.config import VARIANTS, ModelConfig, SegmentationTrainConfig, TrainConfig
from rfdetr.config.fields import fault_lines
from rfdetr.errors import InputError

_FIELDS = [*SegmentationTrainConfig.model_fields, *ModelConfig.model_fields]


def field_notes(config: type[BaseModel]) -> dict[str, str]:
    """The line of documentation under each field of a class of `rfdetr.config`."""
    return {
        name: note
        for cls in config.__mro__[::-1]
        if "rfdetr" in cls.__module__
        for name, note in _notes(cls)
    }


def _notes(config: type[Any]) -> Iterator[tuple[str, str]]:
    tree = ast.parse(inspect.getsource(sys.modules[config.__module__]))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == config.__name__
    )
    for field, note in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(note, ast.Expr)
            and isinstance(note.value, ast.Constant)
            and isinstance(note.value.value, str)
        ):
            yield field.target.id, note.value.value


def _plain(value: Any) -> Any:
    """ "none" is None, and "3,6" or "[3, 6]" is a list of two, in an option that may be one."""
    if isinstance(value, list):
        return [part.strip() for text in value for part in str(text).strip("[]").split(",")]
    return None if value in ("none", "null") else value


def options_of(
    config: type[BaseModel], group: Group, *, without: frozenset[str] = frozenset()
) -> Any:
    """A class with every field of `config` as an option; what is not given stays unset, and its
    default in `config`.
    """
    notes = field_notes(config)
    annotated: Any = Annotated  # these types are made here, where a type checker cannot follow
    fields: dict[str, Any] = {}
    for name, field in config.model_fields.items():
        if name not in without:
            default = "" if field.default is None else f" [default: {field.default}]"
            help_text = notes.get(name, "") + ("" if config is ModelConfig else default)
            kind: Any = str if field.annotation is Path else field.annotation  # "" is no Path(".")
            kind = annotated[kind | None, BeforeValidator(_plain), Parameter(group=group)]
            fields[name] = (kind, Field(None, description=help_text))
    return annotated[create_model(f"{config.__name__}Options", **fields), Parameter(name="*")]


def given(options: BaseModel | None) -> dict[str, Any]:
    """The options that were on the command line."""
    return options.model_dump(exclude_unset=True) if options is not None else {}


def read_config_file(path: Path | None) -> dict[str, Any]:
    """Settings of a YAML file: `name: value`, or the config.yaml that a run leaves."""
    if path is None:
        return {}
    import yaml

    try:
        settings: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(settings or {}, dict):
        raise InputError(
            f"{path}: expected lines of `name: value`, found {type(settings).__name__}"
        )
    found: dict[str, Any] = settings or {}
    if isinstance(found.get("train"), dict) and isinstance(found.get("model"), dict):
        found = {**found["train"], **found["model"], "model": found.get("variant")}
    try:
        split_settings({name: value for name, value in found.items() if name != "model"})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return found


def split_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """One flat set of settings into those of the model and those of the training."""
    problems = []
    for name in settings:
        if name not in _FIELDS and name not in TrainConfig.BELONGS_TO_TRAINER:
            near = difflib.get_close_matches(str(name), _FIELDS, n=1)
            problems.append(
                f"no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    if problems:
        raise InputError("; ".join(problems))
    model = {name: value for name, value in settings.items() if name in ModelConfig.model_fields}
    return model, {name: value for name, value in settings.items() if name not in model}


def known_model(name: Any) -> str:
    """The same name, of a variant."""
    if isinstance(name, str) and name in VARIANTS:
        return name
    near = difflib.get_close_matches(short(name).strip("'"), VARIANTS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the models are {', '.join(VARIANTS)}"
    raise InputError(f"no model {short(name)}; {hint}")


def one_line(error: BaseException) -> str:
    """An exception's message in one line."""
    for fault in (error, error.__cause__):  # cyclopts hands on what pydantic has found as a cause
        if isinstance(fault, ValidationError):
            return "; ".join(fault_lines(fault))
    return " ".join(str(error).split()) or type(error).__name__


def dashed(tokens: list[str]) -> list[str]:
    """`epochs=5` to `--epochs=5`, unless a file has that name."""
    return [
        f"--{token}" if re.match(r"[A-Za-z_][\w-]*=", token) and not Path(token).exists() else token
        for token in tokens
    ]
