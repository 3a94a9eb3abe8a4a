"""What the configurations share: strict names, and number types that carry their range."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from rfdetr.checks import MOST, plain_path, short, shown
from rfdetr.errors import InputError

# As types and not as `Field(...)` defaults: a variant that states another default then keeps the
# range.
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
WorkerCount = Annotated[int, Field(ge=0, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
PathText = Annotated[
    str,
    BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value),
    AfterValidator(lambda path: plain_path("the path", path)),
]


class ConfigError(InputError, ValidationError):
    """A configuration that cannot be: a line for each wrong field, with what was expected and what
    was found.

    `except pydantic.ValidationError` catches it too.
    """

    def __str__(self) -> str:
        return "\n".join(fault_lines(self))

    def __repr__(self) -> str:
        return f"ConfigError({str(self)!r})"


def fault_lines(error: ValidationError) -> list[str]:
    """What pydantic has found, a line for each wrong field: `epochs: Input should be ...; found 0
    (int)`.
    """
    lines: list[str] = []
    for place, group in itertools.groupby(error.errors(), lambda fault: _place(fault["loc"])):
        faults = list(group)
        texts = [fault["msg"].removeprefix("Value error, ") for fault in faults]
        if place:
            found = "" if faults[0]["type"] == "missing" else f"; found {shown(faults[0]['input'])}"
            texts = [f"{place}: {' or '.join(texts)}{found}"]
        lines += texts
    return lines


def _place(steps: tuple[str | int, ...]) -> str:
    """The field, and the number of a list's element; a union of types adds the name of each, which
    is left out.
    """
    return ".".join(str(step) for i, step in enumerate(steps) if i == 0 or isinstance(step, int))


class StrictConfig(BaseModel):
    """Rejects unknown fields by name, with the nearest known one or where they belong."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    PLACE: ClassVar[
        str
    ]  # where its fields belong, told to whoever gives one elsewhere: a format of model and setting

    if not TYPE_CHECKING:  # type checkers know the parameters from the fields

        def __init__(self, /, **settings: Any) -> None:
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise self._error(error.errors()) from None

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigns what fits the other fields; a refused value changes nothing (pydantic assigns
        before it checks).
        """
        before = dict(self.__dict__)
        self.refuse_unknown({name: value})
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            self.__dict__.update(before)
            raise self._error(error.errors()) from None

    @classmethod
    def refuse_unknown(cls, settings: Mapping[str, Any], model: str = "ModelConfig") -> None:
        """Raises `ConfigError` for names that are no fields; `model` names the class that takes
        fields of the model.
        """
        faults = [
            {"type": "extra_forbidden", "loc": (name,), "msg": "", "input": value}
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
            known = fault["type"] != "extra_forbidden"
            text = (
                fault["msg"]
                if known
                else cls._unknown_name_message(str(fault["loc"][0]), fault["input"], model)
            )
            kept = PydanticCustomError(fault["type"], "{text}", {"text": text})
            told.append(
                {"type": kept, "loc": fault["loc"] if known else (), "input": fault["input"]}
            )
        return ConfigError.from_exception_data(cls.__name__, told)

    @classmethod
    def _unknown_name_message(cls, name: str, value: Any, model: str) -> str:
        kinds = StrictConfig.__subclasses__()
        for other in (*kinds, *(special for kind in kinds for special in kind.__subclasses__())):
            if name in other.model_fields:
                return f"{name} belongs to {other.PLACE.format(model=model, setting=f'{name}={short(value)}')}"
        near = difflib.get_close_matches(name, cls.model_fields, n=1)
        hint = (
            f"; did you mean {near[0]!r}?"
            if near
            else f"; known names: {', '.join(cls.model_fields)}"
        )
        return f"{cls.__name__} has no field {name!r}{hint}"
