"""Which logit is a file's first class: files of fine-tuned models count classes from 0 or, older
ones, from 1.

Both have one logit more than names. The published package before its version 1.6 trained with the
category ids of Roboflow's COCO exports, 1 to n: its logit 0 stands for nothing. Since then, and
here, the last logit does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from rfdetr.assets.coco_classes import COCO_CLASSES
from rfdetr.checks import short, shown
from rfdetr.errors import InputError, InputTypeError
from rfdetr.weights.names import CLASS_HEADS

ClassNames: TypeAlias = "Sequence[str] | Mapping[int, str]"
_FROM_ZERO = (1, 6)  # the published version that counts from 0
_MOST = 0.75  # of the heads must agree


def names_by_logit(args: Mapping[str, Any]) -> dict[int, str] | None:
    """The class names in a file's `args`, if any: as a dict numbers them, a list from 0."""
    names = args.get("class_names")
    if isinstance(names, Mapping) and all(str(logit).isdecimal() for logit in names):
        return {int(logit): str(names[logit]) for logit in sorted(names, key=int)}
    return dict(enumerate(map(str, names))) if isinstance(names, list) else None


def known_labels(class_names: Sequence[str] | None, num_classes: int) -> dict[int, str]:
    """Name of each class id: as given, COCO's for 90 classes (published files), else of none."""
    if class_names is None and num_classes == max(COCO_CLASSES):
        return dict(COCO_CLASSES)
    return dict(enumerate(class_names or ()))


def class_labels(class_names: Sequence[str] | None, num_classes: int) -> dict[int, str]:
    """`known_labels`; where there are none, numbers."""
    known = known_labels(class_names, num_classes)
    return known or dict(enumerate(map(str, range(num_classes))))


def logits_by_name(class_names: Sequence[str], labels: dict[int, str]) -> dict[int, int]:
    """The logit of a file, whose names are `labels`, for each of `class_names` by label: the one
    of the same name, else but for case, else but for a plural. Classes without one are left out.

    ["Cats", "owl", "bus"] of {0: "bus", 1: "cat"} have {0: 1, 2: 0}.
    """
    exact = {name: logit for logit, name in reversed(labels.items())}  # the first of equal names
    folded = {name.casefold(): logit for logit, name in reversed(labels.items())}
    plurals = {more: logit for name, logit in folded.items() for more in _plurals(name)}
    logits: dict[int, int] = {}
    for label, name in enumerate(class_names):
        one = name.casefold()
        ways = (exact, name), (folded, one), (plurals, one), *((folded, x) for x in _plurals(one))
        if found := [table[spelling] for table, spelling in ways if spelling in table]:
            logits[label] = found[0]
    return logits


def _plurals(name: str) -> tuple[str, ...]:
    """What a regular English plural of three letters or more could be, and some that none is."""
    return (f"{name}s", f"{name}es", f"{name.removesuffix('y')}ies") if len(name) > 2 else ()


def given_names(class_names: ClassNames | None) -> tuple[int | None, list[str] | None]:
    """The logit of the first class, and the names in order, from the `class_names` of a user:
    {1: "cat", 2: "dog"} -> 1, ["cat", "dog"]. (None, None) leaves both to the file.
    """
    if class_names is None:
        return None, None
    pairs = class_names.items() if isinstance(class_names, Mapping) else enumerate(class_names)
    names = dict(sorted(pairs))
    first = min(names, default=-1)
    in_order = list(names) == list(range(first, first + len(names)))
    if isinstance(class_names, str) or first not in (0, 1) or not in_order:
        raise InputError(
            f"class_names is {short(class_names)}; expected a list of names, or a dict that "
            "numbers them from 0 or 1"
        )
    listed = [str(name) for name in names.values()]
    if twice := repeated(listed):
        found = f"class_names is {short(class_names)}: {', '.join(map(repr, twice))} occur twice"
        raise InputError(f"{found}; expected a name of its own for each class")
    return first, listed


def repeated(names: Sequence[str]) -> list[str]:
    """The names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def are_numbers(labels: Mapping[int, str]) -> bool:
    """Whether the names of logits are their numbers: nothing gave names."""
    return all(name == str(logit) for logit, name in labels.items())


def renamed(own: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """The names to know the data's classes by: as `given` in their order, else their `own`.

    Raises `InputError` for another number of names, for one given twice, and for the own name of
    another class, which would call objects by each other's name.
    """
    if given is not None and (isinstance(given, str) or not isinstance(given, Sequence)):
        raise InputTypeError(f"class_names is {shown(given)}: expected a list of names")
    if given is None or list(given) == list(own):
        return list(own)
    told = (
        f"class_names is {short(list(given))}, but the classes of the data are {short(list(own))}"
    )
    if len(set(given)) != len(own) or len(given) != len(own):
        raise InputError(f"{told}: expected a name of its own for each, in that order")
    if any(name in own and name != place for name, place in zip(given, own, strict=True)):
        raise InputError(f"{told}: of these, some in another order; leave class_names out")
    return list(given)


def names_for_head(names: Sequence[str], num_classes: int) -> list[str]:
    """The data's class names, with numbers for classes that the model has beyond these.

    Refuses a head with fewer classes, before a label is out of its range.
    """
    if len(names) > num_classes:
        raise InputError(
            f"the model has num_classes={num_classes}, but the data has {len(names)} classes "
            f"({', '.join(names)}): build the model with num_classes={len(names)}"
        )
    return [*names, *map(str, range(len(names), num_classes))]


def first_class(
    model: Mapping[str, Tensor], args: Mapping[str, Any], extra: Mapping[str, Any]
) -> tuple[int, bool]:
    """The logit (0 or 1) of a file's first class, and whether that is sure.

    What the file says decides: its writer, or names by number. Where it says nothing, the class
    heads do: training pushes the bias of a logit that no object has ever had below all others, in
    each head by itself. Where most heads show neither the first logit nor the last so, the answer
    is 0.
    """
    heads = [x for name, x in model.items() if CLASS_HEADS.fullmatch(name) and "bias" in name]
    names, version = names_by_logit(args), args.get("rfdetr_version") or extra.get("rfdetr_version")
    if not names or not heads or any(bias.shape != (len(names) + 1,) for bias in heads):
        return 0, True  # no name for each class: there is nothing to misname
    if isinstance(args.get("class_names"), Mapping):
        return int(min(names) == 1), True
    told = re.match(r"(\d+)\.(\d+)", str(version))
    recent = (int(told[1]), int(told[2])) >= _FROM_ZERO if told else "model_name" in extra
    if recent or "resize" in args or args.get("dataset_file") == "yolo":  # "resize": by us
        return 0, True
    biases = [bias.float().sort() for bias in heads]
    lowest = [int(places[0]) for values, places in biases if values[0] < values[1]]  # no ties
    agree = {logit: lowest.count(logit) / len(heads) for logit in (0, len(names))}
    return int(agree[0] >= _MOST), agree[len(names)] >= _MOST


def classes_from_zero(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors that count from 1, counted from 0: logit 0, of no class, comes last."""
    return {
        name: tensor.roll(-1, 0) if CLASS_HEADS.fullmatch(name) and tensor.dim() else tensor
        for name, tensor in tensors.items()
    }
