"""What options of `train()` are worth: short fine-tunings with and without, on data sets, by seed.

    python benchmarks/accuracy.py --data wide bccd=path/to/bccd-coco \\
        --options "square resolution=256" "auto resolution=auto" --out runs.jsonl

The first of --options is what the others are compared with. A line of JSON a run goes to --out; a
run that is there already is not made again, so a stopped measurement is continued by the same
command. At the end: mean and spread by model, data set and options, and the difference to the
first with the same model, data set and seed, with a paired t-test and a sign test (p: how often
chance alone gives as much). The figure is mAP 50:95, of masks where the model has them, the mean
of the validation and test splits. --epochs gives all runs the same views, --minutes the same time.
`slice` among the options is that of the evaluation. Training on tiles, on large pictures of small
objects (boxes alone), is measured with

    --data small --options whole "sliced slice=256" "tiles tiles=256 slice=256"
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from scipy.stats import binomtest, ttest_rel

from rfdetr.synthetic import generate
from rfdetr.variants import FACES

IMAGES = 214  # of a drawn set; 150 of them to train on


def glued(folder: Path, images: int = 96, grid: int = 4) -> Path:
    """Pictures of `grid` x `grid` scenes each, 640 pixels wide, in which objects are small."""
    side, name = 160, "_annotations.coco.json"
    parts = folder.with_name(f"{folder.name}-parts")
    generate(parts, images * grid**2, sides=(side, side), plain=True)
    for split in ("train", "valid", "test"):
        content = json.loads((parts / split / name).read_text())
        (folder / split).mkdir(parents=True, exist_ok=True)
        whole = len(content["images"]) // grid**2
        place_of, pictures, records = {}, [], []
        for number in range(whole):
            canvas = Image.new("RGB", (grid * side, grid * side))
            for at, part in enumerate(content["images"][number * grid**2 :][: grid**2]):
                left, top = at % grid * side, at // grid * side
                canvas.paste(Image.open(parts / split / part["file_name"]), (left, top))
                place_of[part["id"]] = number + 1, left, top
            file_name = f"{number:04d}.jpg"
            canvas.save(folder / split / file_name, quality=92)
            size = {"width": canvas.width, "height": canvas.height}
            pictures.append({"id": number + 1, "file_name": file_name, **size})
        for record in content["annotations"]:
            if record["image_id"] in place_of:
                image, left, top = place_of[record["image_id"]]
                x, y, *sides = record["bbox"]
                box = [x + left, y + top, *sides]
                records.append({**record, "image_id": image, "bbox": box, "segmentation": []})
        content |= {"images": pictures, "annotations": records}
        (folder / split / name).write_text(json.dumps(content))
    return folder


DRAWN: dict[str, Callable[[Path], Path]] = {
    "plain": lambda folder: generate(folder, IMAGES, plain=True),
    "hard": lambda folder: generate(folder, IMAGES),
    "wide": lambda folder: generate(folder, IMAGES, sides=(160, 240), plain=True, shape=2.0),
    "small": glued,
    "high": lambda folder: generate(folder, IMAGES, sides=(320, 480), plain=True, shape=0.5),
}
"""Data sets by name; others are given by name=path."""
RECIPE: dict[str, Any] = {
    "batch_size": 8, "grad_accum_steps": 1, "lr": 5e-4, "lr_encoder": 5e-4,
    "lr_vit_layer_decay": 0.9, "lr_scheduler": "cosine", "warmup_epochs": 0.5,
    "compute_val_loss": False, "run_test": False, "num_workers": 0, "progress_bar": False,
}  # fmt: skip
"""Of every run, under its own options: the rates suit few updates of a small model."""
Row = dict[str, Any]


def main() -> None:
    """Runs what is missing, then prints the summary."""
    options = parse_options()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    folder = options.out.with_suffix(".data")
    sets = {}
    for given in options.data:
        name, _, path = given.partition("=")
        sets[name] = Path(path) if path else DRAWN[name](folder / name)
    chosen = dict(map(named_options, options.options))
    budget = {"minutes": options.minutes, "epochs": 1000} if options.minutes else {}
    budget = budget or {"epochs": options.epochs}
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows: list[Row] = [json.loads(line) for line in lines]
    for seed, model, data, name in itertools.product(
        range(options.seeds), options.models, sets, chosen
    ):
        cell = {"model": model, "set": data, "options": name, "seed": seed, "budget": budget}
        if any(cell.items() <= row.items() for row in rows):
            continue
        settings = {**RECIPE, **budget, "eval_interval": budget["epochs"], **chosen[name]}
        rows.append({**cell, **run(model, sets[data], seed, settings)})
        print(json.dumps(rows[-1]), flush=True)
        with options.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    wanted = [row for row in rows if row["options"] in chosen and row["budget"] == budget]
    result = summary(wanted, next(iter(chosen)))
    print(json.dumps(result, indent=1))
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


def named_options(text: str) -> tuple[str, dict[str, Any]]:
    """ "big resolution=[320,480] lr=1e-3" as its name and the keywords of `train()`."""
    name, *parts = text.split()
    pairs = (part.partition("=") for part in parts)
    return name, {keyword: yaml.safe_load(value) for keyword, _, value in pairs}


def run(model: str, data: Path, seed: int, settings: Mapping[str, Any]) -> Row:
    """The figures of one fine-tuning."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as output:
        detector = FACES[model]()
        training = {name: settings[name] for name in settings.keys() - {"slice"}}
        detector.train(dataset_dir=data, output_dir=output, seed=seed, **training)
        trained = time.monotonic()
        found = [
            detector.evaluate(
                data, split=split, batch_size=16, num_workers=0, slice=settings.get("slice")
            )
            for split in ("valid", "test")
        ]
    figures = [(metrics.masks or metrics).overall["mAP_50_95"] for metrics in found]
    size = list(detector.model.size)
    row = {"mAP": round(statistics.mean(figures), 4), "seconds": round(trained - started, 1)}
    return {**row, "size": size}


def summary(rows: list[Row], base: str) -> dict[str, Any]:
    """By model, data set and options: mean and standard deviation over seeds, seconds, and the
    gains over the options `base` with the same seed; last, the gains of all runs together.
    """
    found = {(r["model"], r["set"], r["options"], r["seed"]): r for r in rows}
    result: dict[str, Any] = {}
    gains: dict[str, list[tuple[float, float]]] = {}
    for group in dict.fromkeys(key[:3] for key in found):
        own = [key for key in found if key[:3] == group]
        figures: dict[str, Any] = {"seeds": len(own), "size": found[own[0]]["size"]}
        figures["mAP"] = spread([found[key]["mAP"] for key in own])
        figures["seconds"] = spread([found[key]["seconds"] for key in own])
        bases = {key: (*key[:2], base, key[3]) for key in own}
        pairs = [
            (found[key]["mAP"], found[other]["mAP"])
            for key, other in bases.items()
            if other in found
        ]
        if group[2] != base and pairs:
            figures["gain"] = compared(pairs)
            gains.setdefault(group[2], []).extend(pairs)
        result[" ".join(group)] = figures
    return result | {f"all {name}": {"gain": compared(pairs)} for name, pairs in gains.items()}


def compared(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Mean and spread of the differences of pairs, and the chance of as much without a cause."""
    differences = [one - other for one, other in pairs]
    told: dict[str, Any] = {"runs": len(pairs), "mean": spread(differences)}
    if len(set(differences)) > 1:
        told["t_test_p"] = float(f"{ttest_rel(*zip(*pairs, strict=True)).pvalue:.3g}")
    better, worse = (sum(sign * d > 0 for d in differences) for sign in (1, -1))
    if better + worse:
        told["better"] = f"{better} of {better + worse}"
        told["sign_test_p"] = float(f"{binomtest(better, better + worse).pvalue:.3g}")
    return told


def spread(values: list[float]) -> list[float]:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return [round(statistics.mean(values), 4), round(deviation, 4)]


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    drawn = ", ".join(DRAWN)
    parser.add_argument("--out", type=Path, default=Path("accuracy.jsonl"), help="a line a run")
    parser.add_argument("--data", nargs="+", default=[*DRAWN], help=f"{drawn}, or name=path")
    parser.add_argument("--models", nargs="+", default=["mini"], choices=[*FACES])
    parser.add_argument("--options", nargs="+", required=True, help="'NAME keyword=value ...' each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--minutes", type=float, help="of each run, in place of epochs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
