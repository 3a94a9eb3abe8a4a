"""What a report says in words: the verdict, and what to do next, dearest fault first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rfdetr.config.fields import size_text

LEAST_GAIN = 0.005  # of mAP 50, below which an error is not worth a line
FEW_BOXES = 50  # training boxes of a class, below which more of them are advised
COARSE = 0.6  # share of a class's box AP, below which its masks are told to be coarse
SMALL = ("under 16 px", "16 to 31 px")
# By TIDE's name: title, what it is, the section that shows it.
_ERRORS = {
    "Miss": ("Objects that nothing finds", "missed"),
    "Bkg": ("Detections where no object is labelled", "false"),
    "Cls": ("Right place, wrong class", "confused"),
    "Loc": ("Right class, box badly placed", "badly placed"),
    "Both": ("Wrong class and badly placed", "badly placed"),
    "Dupe": ("The same object found twice", "false"),
}
Item = dict[str, Any]


def verdict(data: dict[str, Any]) -> list[str]:
    """Three sentences: how good, how to use it, where most is lost."""
    shown, kind = data["splits"][data["split"]], "masks" if data["masks"] else "boxes"
    of = shown["masks"] if data["masks"] else shown
    value, (low, high) = of["overall"]["mAP_50_95"], data["interval"]
    images = f"{shown['images']} {data['split']} images"
    if value is None:
        return [f"The {images} have no labelled objects, so that nothing could be measured."]
    unseen = "" if data["split"] == "test" else ", by which the weights were chosen,"
    within = (
        "" if low is None else f", and on other images like them likely {low:.2f} to {high:.2f}"
    )
    good = f"On {images}{unseen} the {kind} reach a mAP of {value:.3f}{within} (1 is perfect)."
    best = data["best"]
    if best:
        which = {"ema": "averaged (EMA) ones of", "mean": "mean of the best epochs', up to"}
        good += f" The weights are the {which.get(best['kind'], 'live ones of')} epoch "
        good += f"{best['epoch']} of {best['epochs']}, which were best on valid."
    costly = [item for item in data["next"] if item.get("error")][:2]
    parts = [f"{item['title'].lower()} ({100 * item['gain']:.1f} points)" for item in costly]
    lost = f"Most of mAP 50 is lost by {' and by '.join(parts)}."
    return [good, _how_to_use(data), lost if costly else "No kind of error costs much."]


def _how_to_use(data: dict[str, Any]) -> str:
    at, threshold = data["at_threshold"], data["threshold"]
    if not at["right"]:
        return "No detection is right at any threshold: the model has not learned the task yet."
    share = at["right"] / max(at["right"] + at["wrong"], 1)
    recall = at["right"] / max(at["objects"], 1)
    false = at["wrong"] / max(at["images"], 1)
    return (
        f"With the threshold {threshold:.2f}, {share:.0%} of what it reports is right and it finds "
        f"{recall:.0%} of the objects, with {false:.1f} false detections an image."
    )


def next_steps(data: dict[str, Any]) -> list[Item]:
    """What to do, by what it could bring; what has no figure comes after what brings much."""
    gains = data["errors"]["errors"]
    items: list[Item] = []
    for error, (title, cases) in _ERRORS.items():
        if gains.get(error, 0) >= LEAST_GAIN:
            item = {"error": error, "title": title, "gain": gains[error], "filter": cases}
            items.append(item | {"text": " ".join(_EXPLAINED[error](data))})
    items.sort(key=lambda item: -item["gain"])
    return [*items, *_without_figures(data)]


def _missed(data: dict[str, Any]) -> list[str]:
    texts = []
    sizes = data["recall"]["size"]
    lost = sum(row["objects"] - row["found"] for row in sizes)
    small = sum(row["objects"] - row["found"] for row in sizes if row["name"] in SMALL)
    if lost and small / lost >= 0.3:
        texts.append(
            f"{small / lost:.0%} of them are under 32 pixels wide at the network's "
            f"{size_text(data['resolution'])}: raise resolution, or train and predict on parts of "
            "the images."
        )
    rated = [row for row in data["classes"] if row["recall"] is not None]
    if rated:
        worst = min(rated, key=lambda row: row["recall"])
        text = f"{worst['name']} is found least ({worst['recall']:.0%})"
        if worst.get("train") is not None:
            text += f", with {worst['train']} training boxes"
        more = (worst.get("train") or FEW_BOXES) < FEW_BOXES
        texts.append(text + (": label more of it." if more else "."))
    return [*texts, "Look at the worst images for what the missed ones share."]


def _on_background(data: dict[str, Any]) -> list[str]:
    lone = data["unlabelled"]
    texts = [
        f"About {row['count']} of {row['class']} look like real objects without a label: if so, "
        "the detector is better than its figures. See the label hints."
        for row in lone[:2]
    ]
    rest = "Where the detector is wrong, add training images of such places, without labels."
    return [*texts, rest]


def _confused(data: dict[str, Any]) -> list[str]:
    counts, names = data["confusion"]["counts"], data["confusion"]["names"]
    pairs = [
        (counts[i][j], names[i], names[j])
        for i in range(len(names) - 1)
        for j in range(len(names) - 1)
        if i != j and counts[i][j]
    ]
    texts = [
        f"{n} of {real} {'was' if n == 1 else 'were'} taken for {told}."
        for n, real, told in sorted(pairs)[:-3:-1]
    ]
    return [*texts, "Check their labels, add examples that differ in just that, or join them."]


def _badly_placed(data: dict[str, Any]) -> list[str]:
    count = sum(hint["kind"] == "badly placed" for hint in data["hints"])
    texts = [f"{count} labels may themselves be off: see the label hints."] if count else []
    return [*texts, "Draw boxes tight and all in one way; a higher resolution places them better."]


def _joined(_: dict[str, Any]) -> list[str]:
    return ["Often objects that touch or hide each other: look at the worst images."]


def _twice(_: dict[str, Any]) -> list[str]:
    return ["Most have low scores, below the threshold to use. They fade with longer training."]


_EXPLAINED: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "Miss": _missed,
    "Bkg": _on_background,
    "Cls": _confused,
    "Loc": _badly_placed,
    "Both": _joined,
    "Dupe": _twice,
}


def _coarse_masks(data: dict[str, Any]) -> list[Item]:
    """The two classes whose masks are furthest behind their boxes."""
    rated = [row for row in data["classes"] if row.get("mask_AP") is not None]
    behind = [row for row in rated if row["mask_AP"] < COARSE * row["AP"] and row["AP"] >= 0.2]
    behind.sort(key=lambda row: row["mask_AP"] - row["AP"])
    return [
        {
            "title": f"Masks of {row['name']} are coarse",
            "text": f"They reach an AP of {row['mask_AP']:.2f} where its boxes reach "
            f"{row['AP']:.2f}. Thin parts and holes are lost first: a higher resolution draws "
            "them finer. See that the outlines in the labels have them.",
            "link": "classes",
        }
        for row in behind[:2]
    ]


def _without_figures(data: dict[str, Any]) -> list[Item]:
    items: list[Item] = []
    best = data["best"]
    if (
        best
        and best["epoch"] >= best["epochs"] - max(best["epochs"] // 20, 0)
        and best["epochs"] > 1
    ):
        text = f"The best epoch is {best['epoch']} of {best['epochs']}: more epochs likely help."
        items.append({"title": "Train longer", "text": text, "link": "curves"})
    items += _coarse_masks(data)
    likely = [hint for hint in data["hints"] if hint["probability"] >= 0.2]
    if likely:
        text = f"{len(likely)} labels are likely wrong. Mend them first: they hold back training, "
        text += "and the figures too."
        items.append({"title": "Look at the label hints", "text": text, "link": "hints"})
    few = [row for row in data["classes"] if (row.get("train") or FEW_BOXES) < FEW_BOXES]
    for row in few[:3]:
        text = f"{row['train']} training boxes are few; a hundred or more make a class reliable."
        items.append({"title": f"More of {row['name']}", "text": text, "link": "classes"})
    for split, facts in data["drift"].items():
        distances = facts.get("classes_distance", 0), facts.get("sizes_distance", 0)
        if facts["boxes"] and max(distances) >= 0.15:
            text = f"{split} has other classes or sizes than train: divide the images at random."
            items.append({"title": "Splits differ", "text": text, "link": "drift"})
    return items
