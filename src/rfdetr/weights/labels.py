"""Which logit is a file's first class: files of fine-tuned models count classes from 0, or, older
ones, from 1.

Both have one logit more than names. The published package before its version 1.6 trained with the
category ids of Roboflow's COCO exports, 1 to n, so that logit 0 stands for nothing; later, and
here, the last one does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from rfdetr.assets.coco_classes import COCO_CLASSES
from rfdetr.checks import short
from rfdetr.errors import InputError

ClassNames: TypeAlias = "Sequence[str] | Mapping[int, str]"
CLASS_HEADS = re.compile(r"(class_embed|transformer\.enc_out_class_embed\.\d+)\.(weight|bias)")
"""The rows of these tensors, by published name, are the logits of the decoder and of each group's
encoder stage.
"""

_FROM_ZERO = (1, 6)  # the published version that counts from 0
_MOST = 0.75  # of the heads must agree


def names_by_logit(args: Mapping[str, Any]) -> dict[int, str] | None:
    """The class names that a file tells, by logit where it tells that too and else from 0; None: it
    has none.
    """
    names = args.get("class_names")
    if isinstance(names, Mapping) and all(str(logit).isdecimal() for logit in names):
        return {int(logit): str(names[logit]) for logit in sorted(names, key=int)}
    return dict(enumerate(map(str, names))) if isinstance(names, list) else None


def class_labels(class_names: Sequence[str] | None, num_classes: int) -> dict[int, str]:
    """Name of each logit: the given ones, COCO's for the published files (which have no list), else
    numbers.
    """
    if class_names is not None:
        return dict(enumerate(class_names))
    if num_classes == max(COCO_CLASSES):
        return dict(COCO_CLASSES)
    return {label: str(label) for label in range(num_classes)}


def given_names(class_names: ClassNames | None) -> tuple[int | None, list[str] | None]:
    """The logit of the first class and the names in order, as a user says; None for what a user
    leaves to the file.
    """
    if class_names is None:
        return None, None
    pairs = class_names.items() if isinstance(class_names, Mapping) else enumerate(class_names)
    names = dict(sorted(pairs))
    first = min(names, default=-1)
    if (
        isinstance(class_names, str)
        or first not in (0, 1)
        or list(names) != list(range(first, first + len(names)))
    ):
        raise InputError(
            f"class_names is {short(class_names)}; expected a list of names, or a dict that numbers them from 0 or 1"
        )
    return first, [str(name) for name in names.values()]


def first_class(
    model: Mapping[str, Tensor], args: Mapping[str, Any], extra: Mapping[str, Any]
) -> tuple[int, bool]:
    """The logit (0 or 1) of a file's first class, and whether that is sure.

    What the file says decides: its writer, or names by number. Where it says nothing, the class
    heads do: training pushes the bias of a logit that no object has ever had below all others, in
    each head by itself. Where most heads show neither the first logit nor the last so, the answer
    is 0.
    """
    names, biases = names_by_logit(args), [model[name] for name in model if _is_bias(name)]
    if not names or not biases or any(bias.shape != (len(names) + 1,) for bias in biases):
        return 0, True  # no name for each class: there is nothing to misname
    if isinstance(args.get("class_names"), Mapping):
        return int(min(names) == 1), True
    told = re.match(r"(\d+)\.(\d+)", str(args.get("rfdetr_version") or extra.get("rfdetr_version")))
    recent = (int(told[1]), int(told[2])) >= _FROM_ZERO if told else "model_name" in extra
    if (
        recent or "resize" in args or args.get("dataset_file") == "yolo"
    ):  # the second: this package wrote it
        return 0, True
    lowest = [_lowest(bias) for bias in biases]
    agree = {logit: lowest.count(logit) / len(lowest) for logit in (0, len(names))}
    return int(agree[0] >= _MOST), agree[len(names)] >= _MOST


def classes_from_zero(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file that counts from 1 as those of one that counts from 0: logit 0, of no
    class, comes last.
    """
    return {
        name: tensor.roll(-1, 0) if CLASS_HEADS.fullmatch(name) and tensor.dim() else tensor
        for name, tensor in tensors.items()
    }


def _is_bias(name: str) -> bool:
    return CLASS_HEADS.fullmatch(name) is not None and name.endswith("bias")


def _lowest(bias: Tensor) -> int:
    """The place of the lowest value; -1 where two are equal, as before any training."""
    values, places = bias.float().sort()
    return int(places[0]) if values[0] < values[1] else -1
