"""Published `aug_config`: which of Albumentations' names (2.0) are which steps of `augment`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rfdetr.checks import nearest, short
from rfdetr.errors import InputError

_Steps = dict[str, dict[str, Any]]


def steps_from(aug_config: Any) -> _Steps:
    """The steps of a dict of Albumentations' names and arguments, whose flip replaces the recipe's.
    `InputError` for what has no equivalent here.
    """
    if not isinstance(aug_config, Mapping):
        raise InputError(f"aug_config={short(aug_config)}: expected a dict of names and arguments")
    steps: _Steps = {"horizontal_flip": {"p": 0.0}}
    for name, arguments in aug_config.items():
        if name not in _READ:
            near = nearest(str(name), _READ)
            hint = f"did you mean {near!r}?" if near else f"read are {', '.join(_READ)}"
            raise InputError(f"aug_config: {short(name)} has no equivalent here: {hint}")
        given = dict(arguments) if isinstance(arguments, Mapping) else None
        share = 0.5 if given is None else given.pop("p", 0.5)
        defaults, read = _READ[name]
        if given is None or (unread := given.keys() - defaults.keys()):
            found = short(arguments) if given is None else ", ".join(sorted(map(str, unread)))
            known = ", ".join(["p", *defaults])
            raise InputError(f"aug_config: {name} of {found} is not read here, only of {known}")
        try:
            own = read(**{**defaults, **given}).items()
            own_steps = {step: {**ranges, "p": share * ranges.get("p", 1)} for step, ranges in own}
        except (TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"aug_config: {name}({short(given)}): {error}") from error
        if twice := [step for step in own_steps if steps.get(step, {"p": 0})["p"]]:
            told = f"{name} is {twice[0]!r} here, which another of its names is too"
            raise InputError(f"aug_config: {told}: give one of them, or augment=")
        steps |= own_steps
    return steps


def _range(value: Any, least: float | None = None) -> tuple[Any, Any]:
    """A pair as it is; a number n as -n to n, or from `least` to n."""
    if isinstance(value, int | float):
        return (-value if least is None else least, value)
    low, high = value
    return low, high


def _scaled(value: Any, factor: float, about: float = 0.0) -> tuple[float, float]:
    low, high = _range(value)
    return factor * (low - about), factor * (high - about)


def _affine(scale: Any, translate_percent: Any, rotate: Any, shear: Any) -> _Steps:
    zoom = (scale, scale) if isinstance(scale, int | float) else tuple(scale)
    move, turn, slant = _range(translate_percent), _range(rotate), _range(shear)
    return {"affine": {"scale": zoom, "translate": move, "rotate": turn, "shear": slant}}


def _shift_scale_rotate(shift_limit: Any, scale_limit: Any, rotate_limit: Any) -> _Steps:
    low, high = _range(scale_limit)
    return _affine((1 + low, 1 + high), _range(shift_limit), _range(rotate_limit), 0)


def _color_jitter(brightness: Any, contrast: Any, saturation: Any, hue: Any) -> _Steps:
    """Factors: a number n is from 1 - n to 1 + n; of hue it is a share of the circle."""
    value, change, gray = (
        _range(one) if isinstance(one, int | float) else _scaled(one, 1, 1)
        for one in (brightness, contrast, saturation)
    )
    colours = {"value": value, "saturation": gray, "hue": _scaled(hue, 360)}
    return {"hsv": colours, "brightness_contrast": {"brightness": (0, 0), "contrast": change}}


def _gaussian_blur(blur_limit: Any, sigma_limit: Any) -> _Steps:
    """A kernel of so many pixels has the deviation that OpenCV gives it."""
    sides = _range(blur_limit, 3)
    kernels = tuple(0.3 * ((max(side, 3) - 1) / 2 - 1) + 0.8 for side in sides)
    return {"blur": {"radius": kernels if sides[1] else _range(sigma_limit, 0.5)}}


def _dropout(num_holes_range: Any, hole_height_range: Any, hole_width_range: Any) -> _Steps:
    sides = [*hole_height_range, *hole_width_range]
    return {"cutout": {"holes": num_holes_range, "size": (min(sides), max(sides))}}


_READ: dict[str, tuple[dict[str, Any], Callable[..., _Steps]]] = {
    "HorizontalFlip": ({}, lambda: {"horizontal_flip": {}}),
    "VerticalFlip": ({}, lambda: {"vertical_flip": {}}),
    "RandomRotate90": ({}, lambda: {"quarter_turn": {"p": 0.75}}),  # one in four is none
    "Rotate": ({"limit": 90}, lambda limit: {"rotate": {"degrees": _range(limit)}}),
    "Affine": ({"scale": 1.0, "translate_percent": 0, "rotate": 0, "shear": 0}, _affine),
    "ShiftScaleRotate": (
        {"shift_limit": 0.0625, "scale_limit": 0.1, "rotate_limit": 45},
        _shift_scale_rotate,
    ),
    "Perspective": (
        {"scale": (0.05, 0.1)},
        lambda scale: {"perspective": {"strength": _range(scale, 0.0)}},
    ),
    "RandomBrightnessContrast": (
        {"brightness_limit": 0.2, "contrast_limit": 0.2},
        lambda brightness_limit, contrast_limit: {
            "brightness_contrast": {
                "brightness": _range(brightness_limit),
                "contrast": _range(contrast_limit),
            }
        },
    ),
    "ColorJitter": (
        {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.5},
        _color_jitter,
    ),
    "HueSaturationValue": (  # in units of OpenCV: half degrees, and 255 for the whole
        {"hue_shift_limit": 20, "sat_shift_limit": 30, "val_shift_limit": 20},
        lambda hue_shift_limit, sat_shift_limit, val_shift_limit: {
            "hsv": {
                "hue": _scaled(hue_shift_limit, 2),
                "saturation": _scaled(sat_shift_limit, 1 / 255),
                "value": _scaled(val_shift_limit, 1 / 255),
            }
        },
    ),
    "GaussianBlur": ({"blur_limit": 0, "sigma_limit": (0.5, 3.0)}, _gaussian_blur),
    "GaussNoise": (
        {"std_range": (0.2, 0.44)},
        lambda std_range: {"noise": {"deviation": tuple(std_range)}},
    ),
    "ImageCompression": (
        {"quality_range": (99, 100)},
        lambda quality_range: {"jpeg": {"quality": tuple(quality_range)}},
    ),
    "CoarseDropout": (
        {
            "num_holes_range": (1, 2),
            "hole_height_range": (0.1, 0.2),
            "hole_width_range": (0.1, 0.2),
        },
        _dropout,
    ),
}
"""By name: the arguments that are read with Albumentations' defaults, and what they are here."""
