"""What colour jitter is worth: short fine-tunings at several strengths, on data sets, with seeds.

    python benchmarks/color_jitter.py --out runs.jsonl --data path/to/another_set

A line of JSON a run goes to --out; a run that is there already is not made again, so a stopped
measurement is continued by the same command. At the end: mean and spread by data set and strength,
and the difference to strength 0 with the same data set and seed. The figure is mAP 50:95, the mean
of the validation and test splits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rfdetr import RFDETRMini
from rfdetr.synthetic import generate

IMAGES = 214  # of a synthetic set; 150 of them to train on


def main() -> None:
    """Runs what is missing, then prints the summary."""
    options = parse_options()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    folder = options.out.with_suffix(".data")
    sets = {
        "plain": generate(folder / "plain", IMAGES, plain=True),
        "hard": generate(folder / "hard", IMAGES),
        **{path.name: path for path in options.data},
    }
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["set"], row["seed"], row["strength"]) for row in rows}
    for seed, name, strength in itertools.product(range(options.seeds), sets, options.strengths):
        if (name, seed, strength) not in done:
            figures = run(sets[name], strength, seed, options.epochs)
            row = {"set": name, "seed": seed, "strength": strength, "epochs": options.epochs}
            rows.append({**row, **figures})
            print(json.dumps(rows[-1]), flush=True)
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(json.dumps(summary(rows), indent=1))


def run(data: Path, strength: float, seed: int, epochs: int) -> dict[str, float]:
    """The figures of one fine-tuning."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as output:
        model = RFDETRMini()
        model.train(
            dataset_dir=data,
            output_dir=output,
            epochs=epochs,
            batch_size=8,
            grad_accum_steps=1,
            lr=5e-4,
            lr_encoder=5e-4,
            lr_vit_layer_decay=0.9,
            lr_scheduler="cosine",
            warmup_epochs=0.5,
            multi_scale=False,
            color_jitter=strength,
            eval_interval=epochs,
            compute_val_loss=False,
            run_test=False,  # done below, on both splits
            num_workers=0,
            progress_bar=False,
            seed=seed,
        )
        trained = time.monotonic()
        figures = [
            model.evaluate(data, split=split, batch_size=16).overall["mAP_50_95"]
            for split in ("valid", "test")
        ]
    return {"mAP": round(statistics.mean(figures), 4), "seconds": round(trained - started, 1)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By data set and strength: mean, standard deviation over seeds, and the same of the difference
    to strength 0.
    """
    found = {(row["set"], row["strength"], row["seed"]): row["mAP"] for row in rows}
    result = {}
    for name, strength in sorted({key[:2] for key in found}):
        seeds = [seed for seed in range(len(rows)) if (name, strength, seed) in found]
        scores = [found[name, strength, seed] for seed in seeds]
        gains = [
            found[name, strength, s] - found[name, 0.0, s] for s in seeds if (name, 0.0, s) in found
        ]
        figures = {"seeds": len(seeds), "mAP": spread(scores), "gain": spread(gains)}
        result[f"{name} {strength:g}"] = figures
    for strength in sorted({key[1] for key in found} - {0.0}):
        pairs = [found[key] - found[key[0], 0.0, key[2]] for key in found if key[1] == strength]
        result[f"all {strength:g}"] = {"runs": len(pairs), "gain": spread(pairs)}
    return result


def spread(values: list[float]) -> list[float]:
    """Mean and standard deviation."""
    return [
        round(statistics.mean(values), 4),
        round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
    ]


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("color_jitter.jsonl"), help="a line a run")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="*",
        default=[],
        help="more data sets than the two synthetic ones",
    )
    parser.add_argument("--strengths", type=float, nargs="*", default=[0.0, 0.2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    return parser.parse_args()


if __name__ == "__main__":
    main()
