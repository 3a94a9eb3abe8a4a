"""How good label hints are: plants faults in a data set, trains on it, counts those that are told.

    python benchmarks/hints.py --data ../shared/data/bccd-coco --epochs 30
    python benchmarks/hints.py --lr 8e-4            # the demo's data, at its rate

Valid and test together get 40 faults, ten of each kind, and train as many for its boxes: a label
taken away, one of another class, one moved off its object, one where nothing is. `--kinds` may add
`duplicate`, a second label of an object, half of these of another class. Printed are, of the first
40 and the first 60 hints, how many lie on a planted fault and name its kind.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr import RFDETRMini
from rfdetr.synthetic.generate import generate

KINDS = ("overlooked", "swapped", "badly placed", "spurious", "duplicate")
ANNOTATIONS = "_annotations.coco.json"
Fault = dict[str, Any]


def iou(a: list[float], b: list[float]) -> float:
    """Of two boxes x, y, width, height."""
    sides = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def moved(rng: np.random.Generator, box: list[float], size: tuple[int, int]) -> list[float] | None:
    """The box moved and stretched, inside an image of (width, height); None: by too much or too
    little to be a fault that a person would mend.
    """
    x, y, w, h = box
    scale = np.exp(rng.uniform(-0.5, 0.5, 2))
    low = np.array((x, y)) + rng.uniform(-0.4, 0.4, 2) * (w, h)
    high = np.clip(low + scale * (w, h), 0, size)
    low = np.clip(low, 0, size)
    changed = [*low, *(high - low)]
    right = min(high - low) > 4 and 0.25 < iou(changed, box) < 0.55
    return [round(float(side), 1) for side in changed] if right else None


def beside(rng: np.random.Generator, box: list[float], size: tuple[int, int]) -> list[float]:
    """A box that another person might have drawn: each side a tenth of the extent off at most."""
    x, y, w, h = box
    corners = np.array((x, y, x + w, y + h)) + rng.uniform(-0.1, 0.1, 4) * (w, h, w, h)
    corners = np.clip(corners, 0, (*size, *size))
    return [round(float(side), 1) for side in (*corners[:2], *(corners[2:] - corners[:2]))]


def add(entries: list[Any], like: dict[str, Any], box: list[float], **changed: Any) -> None:
    """One more label, of a box."""
    new = {"id": max(one["id"] for one in entries) + 1, "bbox": box, "area": box[2] * box[3]}
    entries.append({**like, **new, "segmentation": [], **changed})


def plant(
    content: dict[str, Any], count: int, kinds: list[str], rng: np.random.Generator
) -> list[Fault]:
    """Changes a COCO file's content: `count` faults, of each kind as many. Tells where they are."""
    images = {image["id"]: image for image in content["images"]}
    entries, classes = content["annotations"], [one["id"] for one in content["categories"]]
    classes = sorted({entry["category_id"] for entry in entries} & set(classes))
    chosen = rng.permutation(len(entries))[: 10 * count].tolist()
    faults: list[Fault] = []
    gone = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        while True:
            entry = entries[chosen.pop()]
            image, box = images[entry["image_id"]], list(entry["bbox"])
            size = image["width"], image["height"]
            fault = {"kind": kind, "image": image["file_name"], "box": box}
            if kind == "overlooked":
                gone.append(entry)
            elif kind == "swapped":
                others = [one for one in classes if one != entry["category_id"]]
                entry["category_id"] = int(rng.choice(others))
            elif kind == "badly placed":
                if (other := moved(rng, box, size)) is None:
                    continue
                entry |= {"bbox": other, "area": other[2] * other[3], "segmentation": []}
                fault["written"] = other
            elif kind == "duplicate":
                fault["written"] = beside(rng, box, size)
                number_of = [one for one in classes if one != entry["category_id"]]
                again = rng.random() < 0.5 or not number_of
                label = entry["category_id"] if again else int(rng.choice(number_of))
                add(entries, entry, fault["written"], category_id=label)
            else:
                corner = rng.uniform(0, 1, 2) * (size[0] - box[2], size[1] - box[3])
                box = fault["box"] = [round(float(side), 1) for side in (*corner, *box[2:])]
                same = [one["bbox"] for one in entries if one["image_id"] == image["id"]]
                if any(iou(box, other) > 0.05 for other in same):
                    continue
                add(entries, entry, box)
            faults.append(fault)
            break
    content["annotations"] = [entry for entry in entries if not any(entry is one for one in gone)]
    return faults


def planted_copy(data: Path, out: Path, count: int, kinds: list[str], seed: int) -> list[Fault]:
    """A copy of a COCO folder with `count` faults in valid and test, and as dense ones in train."""
    rng = np.random.default_rng(seed)
    shutil.copytree(data, out, symlinks=True)
    contents = {
        path.parent.name: json.loads(path.read_text()) for path in out.glob(f"*/{ANNOTATIONS}")
    }
    boxes = {split: len(content["annotations"]) for split, content in contents.items()}
    per_kind = count / (boxes["valid"] + boxes["test"]) / len(kinds)
    counts = {name: len(kinds) * round(per_kind * boxes[name]) for name in ("valid", "train")}
    counts["test"] = count - counts["valid"]
    faults = []
    for split, number in counts.items():
        found = plant(contents[split], number, kinds, rng)
        (out / split / ANNOTATIONS).write_text(json.dumps(contents[split]))
        faults += [{"split": split, **fault} for fault in found if split != "train"]
    return faults


def matches(hint: dict[str, Any], fault: Fault) -> bool:
    """Whether a hint points to where a fault was planted."""
    if (hint["split"], hint["image"]) != (fault["split"], fault["image"]):
        return False
    told = [box for box in (hint["found"], hint["label"]) if box]
    return any(
        iou(one["box"], place) >= 0.5
        for one in told
        for place in (fault["box"], fault.get("written", fault["box"]))
    )


def judge(hints: list[dict[str, Any]], faults: list[Fault]) -> None:
    """Prints the table."""
    print(
        f"{'first':>6}{'on a fault':>12}{'precision':>11}{'faults told':>13}{'recall':>8}  by kind"
    )
    for most in (len(faults), len(faults) * 3 // 2):
        first = hints[:most]
        right = [h for h in first if any(matches(h, f) for f in faults)]
        told = [f for f in faults if any(matches(h, f) for h in first)]
        kinds = []
        for kind in dict.fromkeys(fault["kind"] for fault in faults):
            of_kind = [f for f in told if f["kind"] == kind]
            named = sum(any(matches(h, f) and h["kind"] == kind for h in first) for f in of_kind)
            kinds.append(f"{kind} {len(of_kind)} (named {named})")
        shares = (
            f"{len(right) / max(len(first), 1):11.2f}{len(told):13}{len(told) / len(faults):8.2f}"
        )
        print(f"{most:6}{len(right):12}{shares}  {', '.join(kinds)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a COCO folder with train, valid and test")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, help="of all weights; train()'s own if not given")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep data and run in this new folder")
    args = parser.parse_args()
    folder = args.out or Path(tempfile.mkdtemp())
    data = args.data or generate(folder / "drawn", plain=True)
    faults = planted_copy(data, folder / "data", args.count, args.kinds, args.seed)
    (folder / "planted.json").write_text(json.dumps(faults, indent=1))
    run = folder / "run"
    rates = {"lr": args.lr, "lr_encoder": args.lr} if args.lr else {}
    RFDETRMini().train(
        dataset_dir=folder / "data", output_dir=run, epochs=args.epochs, seed=args.seed,
        num_workers=1, **rates,
    )  # fmt: skip
    judge(json.loads((run / "label_hints.json").read_text())["hints"], faults)
    if args.out is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
