"""`augment=`: what may be done to training images beside the recipe. Each step has its parameters,
their ranges and their meaning here; `PRESETS` are named sets of steps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rfdetr.checks import nearest, short, shown
from rfdetr.config.fields import UnitInterval, UnitIntervalAbove0, fault_lines
from rfdetr.errors import InputError

__all__ = ["PRESETS", "STEPS"]

Steps: TypeAlias = dict[str, dict[str, Any]]
"""Parameters by step, as plain values: {"rotate": {"p": 0.5, "degrees": [-15.0, 15.0]}}."""


def _around_0(value: Any) -> Any:
    """A number n as the range from -n to n."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (-value, value) if number else value


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise InputError("expected the smaller number first")
    return pair


Angle = Annotated[float, Field(ge=-180, le=180)]
Slant = Annotated[float, Field(ge=-45, le=45)]
Change = Annotated[float, Field(ge=-1, le=1)]
Zoom = Annotated[float, Field(ge=0.1, le=10)]
Shift = Annotated[float, Field(ge=0, le=0.2)]
Radius = Annotated[float, Field(ge=0, le=10)]
Quality = Annotated[int, Field(ge=1, le=100)]
Number = Annotated[int, Field(ge=1, le=100)]
Split = Annotated[float, Field(ge=0.2, le=0.8)]
Angles = Annotated[tuple[Angle, Angle], BeforeValidator(_around_0), AfterValidator(_rising)]
Slants = Annotated[tuple[Slant, Slant], BeforeValidator(_around_0), AfterValidator(_rising)]
Changes = Annotated[tuple[Change, Change], BeforeValidator(_around_0), AfterValidator(_rising)]
Zooms = Annotated[tuple[Zoom, Zoom], AfterValidator(_rising)]
Shifts = Annotated[tuple[Shift, Shift], AfterValidator(_rising)]
Radii = Annotated[tuple[Radius, Radius], AfterValidator(_rising)]
Shares = Annotated[tuple[UnitInterval, UnitInterval], AfterValidator(_rising)]
Splits = Annotated[tuple[Split, Split], AfterValidator(_rising)]
Numbers = Annotated[tuple[Number, Number], AfterValidator(_rising)]
Qualities = Annotated[tuple[Quality, Quality], AfterValidator(_rising)]


class Step(BaseModel):
    """A step and the ranges from which each image draws, evenly; a number n is from -n to n where
    a range may be negative.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    p: UnitInterval = 0.5
    """Share of the images that get it."""


class Crop(Step):
    """The recipe's random crop; with p 0 every view is the whole image."""


class HorizontalFlip(Step):
    """Left is right."""


class VerticalFlip(Step):
    """Up is down."""


class QuarterTurn(Step):
    """One, two or three quarter turns of the whole view."""


class Rotate(Step):
    """Turned about its middle."""

    degrees: Angles = (-10.0, 10.0)
    """Anticlockwise."""


class Affine(Step):
    """Turned, scaled, slanted and moved in one."""

    rotate: Angles = (0.0, 0.0)
    """Degrees, anticlockwise."""
    scale: Zooms = (0.75, 1.33)
    """Factor of both sides."""
    shear: Slants = (-3.0, 3.0)
    """Degrees, drawn for each axis."""
    translate: Changes = (-0.1, 0.1)
    """Share of the sides, drawn for each axis."""


class Perspective(Step):
    """Seen from aside: each corner is moved."""

    strength: Shifts = (0.02, 0.08)
    """Share of the sides by which a corner moves at most."""


class Hsv(Step):
    """Hue, saturation and brightness."""

    hue: Angles = (-8.0, 8.0)
    """Degrees about the gray axis."""
    saturation: Changes = (-0.5, 0.5)
    """Relative change; -1 is gray."""
    value: Changes = (-0.3, 0.3)
    """Relative change of brightness."""


class BrightnessContrast(Step):
    """Brightness and contrast."""

    brightness: Changes = (-0.2, 0.2)
    """Share of white that is added."""
    contrast: Changes = (-0.2, 0.2)
    """Relative change about the mean gray."""


class Blur(Step):
    """Out of focus."""

    radius: Radii = (0.3, 1.5)
    """Deviation of the Gaussian, pixels of the view."""


class Noise(Step):
    """The noise of a sensor, drawn for each pixel and channel."""

    deviation: Shares = (0.01, 0.04)
    """Share of white."""


class Jpeg(Step):
    """Compressed as JPEG."""

    quality: Qualities = (30, 80)
    """From 1 to 100."""


class Cutout(Step):
    """Gray rectangles; what they hide by more than three quarters is no longer asked for."""

    holes: Numbers = (1, 3)
    """How many."""
    size: Shares = (0.05, 0.25)
    """Share of the view's height and width, drawn for each."""


class MixingStep(Step):
    """A step that shows other training images beside the own one."""

    until: UnitIntervalAbove0 = 1.0
    """Share of the run after which it rests; below 1 the last epoch is always without."""


class CopyPaste(MixingStep):
    """Objects of another training image, at their place in a view of it. Of an object without an
    outline the ellipse in its box is pasted; what is hidden by more than three quarters is dropped.
    """

    objects: Numbers = (1, 8)
    """How many, as far as there are so many."""


class Mosaic(MixingStep):
    """Four views in the quarters of one."""

    until: UnitIntervalAbove0 = 0.85
    """Share of the run after which it rests; below 1 the last epoch is always without."""
    centre: Splits = (0.4, 0.6)
    """Share of height and width where they meet."""


class Mixup(MixingStep):
    """Another training image shines through."""

    until: UnitIntervalAbove0 = 0.85
    """Share of the run after which it rests; below 1 the last epoch is always without."""
    share: Shares = (0.3, 0.5)
    """Weight of the other image."""


STEPS: dict[str, type[Step]] = {
    "crop": Crop,
    "horizontal_flip": HorizontalFlip,
    "vertical_flip": VerticalFlip,
    "quarter_turn": QuarterTurn,
    "rotate": Rotate,
    "affine": Affine,
    "perspective": Perspective,
    "hsv": Hsv,
    "brightness_contrast": BrightnessContrast,
    "blur": Blur,
    "noise": Noise,
    "jpeg": Jpeg,
    "mosaic": Mosaic,
    "copy_paste": CopyPaste,
    "mixup": Mixup,
    "cutout": Cutout,
}
"""In the order in which they are done, whatever the order of a mapping."""
RECIPE = ("crop", "horizontal_flip")
"""Steps that are on, half the time, where a mapping does not name them."""
PRESETS: dict[str, Steps] = {
    "default": {},
    "strong": {
        "affine": {"p": 0.6, "rotate": 8, "translate": 0.1},
        "perspective": {"p": 0.15},
        "hsv": {"p": 0.5},
        "brightness_contrast": {"p": 0.3},
        "blur": {"p": 0.1},
        "noise": {"p": 0.1},
        "jpeg": {"p": 0.1},
        "copy_paste": {"p": 0.3, "until": 0.85},
        "cutout": {"p": 0.2},
    },
    "aerial": {
        "vertical_flip": {"p": 0.5},
        "quarter_turn": {"p": 0.5},
        "affine": {"p": 0.3, "scale": (0.8, 1.25), "shear": (0, 0)},
        "brightness_contrast": {"p": 0.4, "brightness": 0.15, "contrast": 0.15},
        "copy_paste": {"p": 0.3},
    },
    "industrial": {
        "affine": {"p": 0.4, "rotate": 5, "scale": (0.9, 1.1), "shear": (0, 0), "translate": 0.05},
        "brightness_contrast": {"p": 0.5},
        "blur": {"p": 0.2, "radius": (0.3, 1)},
        "noise": {"p": 0.2},
        "copy_paste": {"p": 0.2},
    },
    "dense": {
        "hsv": {"p": 0.3, "hue": 4, "saturation": 0.3, "value": 0.2},
        "mosaic": {"p": 0.5},
        "copy_paste": {"p": 0.3, "until": 0.85},
        "mixup": {"p": 0.3, "until": 0.5},
    },
}


def checked(value: Any) -> str | Steps:
    """A preset's name as it is; a mapping, or the YAML file of one, with all parameters of its
    steps. `InputError` for a name that is unknown, and for a value out of its range.
    """
    if isinstance(value, str) and value in PRESETS:
        return value
    if isinstance(value, str | os.PathLike):
        value = _read(value)
    if not isinstance(value, Mapping):
        raise InputError(f"expected a preset ({', '.join(PRESETS)}), a mapping or a YAML file")
    steps: dict[str, Any] = {str(name): given for name, given in value.items()}
    preset = steps.pop("preset", "default")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InputError(f"preset {short(preset)}: {_hint(preset, PRESETS)}")
    steps = {**PRESETS[preset], **steps}
    return {name: _checked_step(name, given) for name, given in steps.items()}


def steps_of(value: str | Steps) -> Steps:
    """The steps that are on, those of the recipe among them, in the order in which they are done;
    `value` is one of `checked`.
    """
    named = {name: Step().model_dump() for name in RECIPE}
    given = checked(PRESETS[value]) if isinstance(value, str) else value
    named |= given  # type: ignore[arg-type]  # of a mapping, `checked` makes one
    return {name: named[name] for name in STEPS if name in named and named[name]["p"] > 0}


def in_words(value: str | Steps) -> str:
    """What a run's plan says: "strong: crop 0.5, ..., copy_paste 0.3 until 85 %"; "" for the
    default.
    """
    if value == "default":
        return ""
    told = []
    for name, step in steps_of(value).items():
        rests = f" until {step['until']:.0%}" if step.get("until", 1) < 1 else ""
        told.append(f"{name} {step['p']:g}{rests}")
    return f"{value if isinstance(value, str) else 'own steps'}: {', '.join(told) or 'none'}"


def _read(path: str | os.PathLike[str]) -> Any:
    import yaml

    text = os.fspath(path)
    if not text.endswith((".yaml", ".yml")):
        raise InputError(f"{_hint(path, PRESETS)}; or give a mapping of steps, or a .yaml file")
    try:
        return yaml.safe_load(Path(text).expanduser().read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read as YAML: {' '.join(str(error).split())}") from error


def _checked_step(name: str, given: Any) -> dict[str, Any]:
    """All parameters of a step; `given` are some of them, its probability alone, or None."""
    if name not in STEPS:
        raise InputError(f"no step {short(name)}: {_hint(name, STEPS)}")
    if isinstance(given, int | float) and not isinstance(given, bool):
        given = {"p": given}
    if not isinstance(given, Mapping | None):
        raise InputError(
            f"{name}: expected its parameters or its probability, found {shown(given)}"
        )
    known = STEPS[name].model_fields
    for parameter in given or ():
        if parameter not in known:
            raise InputError(f"{name} has no {short(parameter)}: {_hint(parameter, known)}")
    try:
        return STEPS[name](**(given or {})).model_dump(mode="json")
    except ValidationError as error:
        raise InputError("; ".join(f"{name}.{line}" for line in fault_lines(error))) from None


def _hint(name: Any, known: Mapping[str, Any]) -> str:
    near = nearest(str(name), known)
    return f"did you mean {near!r}?" if near else f"there is {', '.join(known)}"
