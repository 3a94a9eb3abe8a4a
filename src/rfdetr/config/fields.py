"""What the configurations share: strict names, and number types that carry their range."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from rfdetr.checks import (
    LEAST_TILE,
    MOST,
    MOST_OVERLAP,
    check_path,
    nearest,
    plain_path,
    short,
    shown,
)
from rfdetr.compat import Fate, absorb
from rfdetr.errors import InputError

__all__ = ["ConfigError"]


def plain_json(value: Any) -> Any:
    """The same JSON value as a file gives it back: tuples are lists. Raises for any other."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise PydanticCustomError("json", "no JSON value: {why}", {"why": str(error)}) from None


def as_sides(value: Any) -> Any:
    """ "320x480" or "320,480" as (320, 480); anything else as it is."""
    pair = re.fullmatch(r"(\d+) ?[x,] ?(\d+)", value) if isinstance(value, str) else None
    return value if pair is None else (int(pair[1]), int(pair[2]))


def _as_resolution(value: Any) -> Any:
    if value == "auto":
        raise InputError('"auto" is chosen from training images: train(resolution="auto")')
    return as_sides(value)


def input_size(resolution: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a `resolution`: 384 is (384, 384)."""
    height, width = (resolution,) * 2 if isinstance(resolution, int) else resolution
    return height, width


def squared(resolution: int | Sequence[int]) -> int | tuple[int, int]:
    """A square by its one side: (384, 384) is 384; anything else by height and width."""
    height, width = input_size(resolution)
    return height if height == width else (height, width)


def size_text(resolution: int | Sequence[int]) -> str:
    """A `resolution` in words: "384", "320x480" (height x width)."""
    known = squared(resolution)
    return str(known) if isinstance(known, int) else "{}x{}".format(*known)


# Types and not `Field(...)` defaults: a variant that states another default then keeps the range.
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
WorkerCount = Annotated[int, Field(ge=0, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes
Side = Annotated[int, Field(ge=1, le=8192)]  # pixels or patches; the tokens of more fit nowhere
# Of two types that are told apart before they are checked, so that a number's fault is told alone.
Resolution = Annotated[
    Annotated[Side, Tag("side")] | Annotated[tuple[Side, Side], Tag("sides")],
    Discriminator(lambda value: "sides" if isinstance(value, list | tuple) else "side"),
    BeforeValidator(_as_resolution),
    AfterValidator(squared),
]
TileSide = Annotated[int, Field(ge=LEAST_TILE, le=MOST)]
Overlap = Annotated[float, Field(ge=0, le=MOST_OVERLAP)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
UnitIntervalAbove0 = Annotated[float, Field(gt=0, le=1)]
UnitIntervalBelow1 = Annotated[float, Field(ge=0, lt=1)]
Classes = Annotated[dict[str, list[str]], BeforeValidator(lambda value: as_classes(value))]
Json = Annotated[Any, AfterValidator(plain_json)]
PathText = Annotated[
    str,
    BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value),
    AfterValidator(lambda path: plain_path("the path", path)),
]


def as_tile(value: Any) -> Any:
    """Pixels, or (height, width), as (height, width)."""
    sides = as_sides(value)
    return (sides, sides) if isinstance(sides, str | int) and not isinstance(sides, bool) else sides


Tiles = Annotated[
    Annotated[bool, Tag("flag")]
    | Annotated[tuple[TileSide, TileSide], BeforeValidator(as_tile), Tag("tile")],
    Discriminator(lambda value: "flag" if str(value).lower() in ("true", "false") else "tile"),
]


def as_folders(name: str, value: Any) -> Any:
    """One folder as its path; several, or one of which a share is taken, as {path: share}.

    ["new", "old@0.25"] is {"new": 1.0, "old": 0.25}. An "@" in the name of a folder that exists is
    no share.
    """
    if isinstance(value, str) and not os.path.isdir(os.path.expanduser(value)):
        folder, _, share = value.rpartition("@")
        if folder and re.fullmatch(r"[+-]?\d*\.?\d+", share):
            value = {folder: float(share)}
    if isinstance(value, list | tuple):
        several = [as_folders(name, one) for one in value]
        pairs = [
            pair
            for one in several
            for pair in (one.items() if isinstance(one, dict) else [(one, 1.0)])
        ]
    elif isinstance(value, Mapping):
        pairs = [(check_path(name, folder), share) for folder, share in value.items()]
        for folder, part in pairs:
            if isinstance(part, bool) or not (isinstance(part, int | float) and 0 < part <= 1):
                raise InputError(f"the share of {folder} must be above 0 and at most 1")
    else:
        return check_path(name, value)
    shares = dict(pairs)
    if not shares or len(shares) < len(pairs):
        raise InputError(f"expected folders, each once; found {short(value)}")
    (folder, share), *others = shares.items()
    return folder if not others and share == 1 else shares


def as_classes(value: Any) -> Any:
    """The classes to take, by new name the ones that become one: "cat,vehicle=car+truck", or the
    same as a list, is {"cat": ["cat"], "vehicle": ["car", "truck"]}.
    """
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        parts = [(item, *item.partition("=")) for item in value]
        pairs = [
            (new, olds.split("+")) if sign else (item, [item]) for item, new, sign, olds in parts
        ]
    elif isinstance(value, Mapping):
        pairs = [(new, [olds] if isinstance(olds, str) else olds) for new, olds in value.items()]
    elif value is None:
        return None
    else:
        raise InputError("expected names of classes, or a mapping of new names to old ones")
    new = [name for name, _ in pairs]
    old = [name for _, olds in pairs if isinstance(olds, list | tuple) for name in olds]
    if not all(isinstance(name, str) for name in (*new, *old)):
        return value
    if not old or "" in [*new, *old] or any(len({*names}) < len(names) for names in (new, old)):
        raise InputError(f"expected names of classes, each once; found {short(value)}")
    return dict(pairs)


class ConfigError(InputError, ValidationError):
    """A configuration that cannot be: a line for each wrong field, what was expected and found."""

    def __str__(self) -> str:
        return "\n".join(fault_lines(self))

    def __repr__(self) -> str:
        return f"ConfigError({str(self)!r})"


def fault_lines(error: ValidationError) -> list[str]:
    """A line for each field that pydantic refuses: `epochs: Input should be ...; found 0 (int)`."""

    def place_of(fault: Any) -> str:
        """`projector_scale.1`: field and list element, without the names of a union's types."""
        first, *rest = fault["loc"] or ("",)
        return ".".join([str(first), *(str(step) for step in rest if isinstance(step, int))])

    lines: list[str] = []
    for place, group in itertools.groupby(error.errors(), place_of):
        faults = list(group)  # one for each type of a union
        texts = [fault["msg"].removeprefix("Value error, ") for fault in faults]
        if place:
            found = "" if faults[0]["type"] == "missing" else f"; found {shown(faults[0]['input'])}"
            texts = [f"{place}: {' or '.join(texts)}{found}"]
        lines += texts
    return lines


class StrictConfig(BaseModel):
    """Refuses unknown fields, naming the nearest known one or the configuration that has them. The
    text under a field is its `description`.
    """

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    PLACE: ClassVar[str]  # of its fields, told to who gives one elsewhere: "train({setting})"
    PUBLISHED: ClassVar[Mapping[str, Fate]] = {}  # published names that are no fields here

    if not TYPE_CHECKING:  # type checkers know the parameters from the fields

        def __init__(self, /, **settings: Any) -> None:
            try:
                super().__init__(**absorb(settings, self.PUBLISHED))
            except ValidationError as error:
                raise self._error(error.errors()) from None

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigns what fits the other fields; a refused value changes nothing."""
        type(self)(**{**self.__dict__, name: value})  # pydantic would assign first, then check
        super().__setattr__(name, value)

    @classmethod
    def refuse_unknown(cls, settings: Mapping[str, Any], model: str = "ModelConfig") -> None:
        """Raises `ConfigError` for names of no fields; `model` is the class with the model's."""
        faults = [
            {"type": "extra_forbidden", "msg": "", "loc": (name,), "input": value}
            for name, value in settings.items()
            if name not in cls.model_fields
        ]
        if faults:
            raise cls._error(faults, model)

    @classmethod
    def _error(cls, faults: Sequence[Any], model: str = "ModelConfig") -> ConfigError:
        """The error of faults as pydantic tells them, unknown names in our words."""
        told: list[Any] = []
        for fault in faults:
            kind, place, text, value = (fault[key] for key in ("type", "loc", "msg", "input"))
            if kind == "extra_forbidden":
                text, place = cls._unknown_name(str(place[0]), value, model), ()
            error = PydanticCustomError(kind, "{text}", {"text": text})
            told.append({"type": error, "loc": place, "input": value})
        return ConfigError.from_exception_data(cls.__name__, told)

    @classmethod
    def _unknown_name(cls, name: str, value: Any, model: str) -> str:
        """The message for a name that is no field."""
        kinds = StrictConfig.__subclasses__()
        for other in (*kinds, *(special for kind in kinds for special in kind.__subclasses__())):
            if name in other.model_fields:
                place = other.PLACE.format(model=model, setting=f"{name}={short(value)}")
                return f"{name} belongs to {place}"
        near = nearest(name, cls.model_fields)
        hint = f"did you mean {near!r}?" if near else f"known names: {', '.join(cls.model_fields)}"
        return f"{cls.__name__} has no field {name!r}; {hint}"
