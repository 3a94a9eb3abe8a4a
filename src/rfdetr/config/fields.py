"""What the configurations share: strict names, and number types that carry their range."""

from __future__ import annotations

import difflib
import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rfdetr.config.arguments import plain_path

# As types and not as `Field(...)` defaults: a variant that states another default then keeps the range.
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]  # more is a slip of the keyboard that would eat the memory
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


class StrictConfig(BaseModel):
    """Rejects unknown fields by name, with the nearest known one."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_names(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in values:
                if name not in cls.model_fields:
                    raise ValueError(cls._unknown_name_message(str(name)))
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigns what fits the other fields; a refused value changes nothing (pydantic assigns before it checks)."""
        before = dict(self.__dict__)
        try:
            super().__setattr__(name, value)
        except ValidationError:
            self.__dict__.update(before)
            raise

    @classmethod
    def _unknown_name_message(cls, name: str) -> str:
        for other in StrictConfig.__subclasses__():  # the model's and the training's
            if name in other.model_fields:
                return f"{cls.__name__} has no field {name!r}: it is one of {other.__name__}"
        near = difflib.get_close_matches(name, cls.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known names: {', '.join(cls.model_fields)}"
        return f"{cls.__name__} has no field {name!r}{hint}"
