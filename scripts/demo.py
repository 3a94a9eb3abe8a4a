"""The main job in a few minutes, offline: make a data set, fine-tune on it, evaluate, draw.

    python scripts/demo.py                    # boxes
    python scripts/demo.py --task segment     # RFDETRSegMini: boxes and masks
    python scripts/demo.py --docs docs/pictures    # with the pictures of the documentation, of each
                                                   # task its own; needs playwright and Chromium

The bundled weights have never seen the classes of the set. All that happens is what
`RFDETRMini().train(...)` does with any folder of labelled images; the set itself can be had by
`rfdetr.synthetic.generate("folder", plain=True)`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from rfdetr import RFDETR, RFDETRMini, RFDETRSegMini
from rfdetr.data.index import DatasetIndex
from rfdetr.data.layout import find_splits, load_index
from rfdetr.evaluation.drawing import draw, side_by_side
from rfdetr.evaluation.metrics import MASK_PREFIX, metrics_table
from rfdetr.geometry.detections import import_supervision
from rfdetr.geometry.rle import rle_dict
from rfdetr.synthetic import generate

TASKS: dict[str, tuple[type[RFDETR], int]] = {
    "detect": (RFDETRMini, 24),
    "segment": (RFDETRSegMini, 20),
}
"""Model and epochs: masks take longer."""


def main() -> None:
    """Runs the demo."""
    options = parse_options()
    console = Console()
    started = time.monotonic()
    data = generate(options.out / "data", plain=not options.hard)
    console.print(
        f"[bold]{data}[/]: images, boxes and outlines made in {time.monotonic() - started:.0f} s"
    )

    masks = options.task == "segment"
    run = first_free(options.out / ("run-segment" if masks else "run"))
    model_class, epochs = TASKS[options.task]
    model = model_class(**({"pretrain_weights": None} if options.from_random_weights else {}))
    model.train(
        dataset_dir=data,
        output_dir=run,
        epochs=options.epochs or epochs,
        batch_size=16,
        grad_accum_steps=1,
        lr=8e-4,
        lr_encoder=8e-4,
        lr_vit_layer_decay=0.9,
        lr_scheduler="cosine",
        warmup_epochs=0.5,
        multi_scale=False,
        eval_interval=options.eval_every,
        compute_val_loss=False,
        run_test=False,  # done below, with a table
        num_workers=min(2, os.cpu_count() or 1),
        seed=0,
    )
    metrics = model.evaluate(data, split="test", batch_size=16)
    index = load_index(find_splits(data), "test", masks=masks)
    pictures = draw_pictures(model, index, run / "pictures", options.pictures)

    curve = ", ".join(
        f"{epoch}: {value:.3f}"
        for epoch, value in validation_curve(run, MASK_PREFIX if masks else "")
    )
    console.print(
        f"\n[bold]{'mask ' * masks}mAP 50:95 on the validation images after epoch[/] {curve}"
    )
    console.print(metrics_table(metrics, "Test images, never used in training"))
    if options.docs is not None:
        write_docs(run, options.docs, masks)
    console.print(
        f"truth beside predictions: [bold]{pictures}[/]   in all {time.monotonic() - started:.0f} s"
    )


def validation_curve(run: Path, kind: str) -> list[tuple[int, float]]:
    """(epoch from 1, mAP 50:95 of the averaged weights) of each evaluation, of boxes or of another
    kind.
    """
    key = f"val/ema_{kind}mAP_50_95"
    lines = [
        json.loads(line) for line in (run / "log.txt").read_text(encoding="utf-8").splitlines()
    ]
    return [(line["epoch"] + 1, line[key]) for line in lines if key in line]


def draw_pictures(model: RFDETR, index: DatasetIndex, folder: Path, count: int) -> Path:
    """Writes pictures with the truth on the left and what is predicted on the right."""
    folder.mkdir()
    sources = [index.path(image) for image in range(min(count, len(index)))]
    for image, prediction in enumerate(model.predict_stream(sources, threshold=0.4)):
        rows = index.rows(image)
        outlined = full_masks(index, image) if index.outlines else None
        truth = import_supervision().Detections(
            xyxy=index.boxes[rows], class_id=index.labels[rows], mask=outlined
        )
        halves = [
            draw(prediction.image, found, [index.class_names[label] for label in found.class_id])
            for found in (truth, prediction.detections)
        ]
        side_by_side(*halves).save(folder / f"{sources[image].stem}.png")
    return folder


def full_masks(index: DatasetIndex, image: int) -> np.ndarray:
    """The outlines of an image's objects as masks (n, height, width); empty for an object without
    one.
    """
    import hotcoco.mask

    height, width = index.sizes[image].tolist()
    masks = np.zeros((index.rows(image).stop - index.rows(image).start, height, width), bool)
    for mask, outline in zip(masks, index.outlines_of(image, index.rows(image)), strict=True):
        if outline is not None:
            mask[:] = hotcoco.mask.decode(rle_dict(outline.to_rle(), height, width))
    return masks


def write_docs(run: Path, folder: Path, masks: bool) -> None:
    """Writes what the pages of docs/ show of a run into `folder`, as WebP."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [Image.open(path) for path in sorted((run / "pictures").glob("*.png"))]
    if masks:
        write_small(grid(pairs[:4]), folder / "masks.webp")
        return
    write_small(grid(pairs[:4]), folder / "predictions.webp")
    write_small(Image.open(run / "labels.jpg"), folder / "labels.webp")
    write_small(Image.open(run / "train_views.jpg"), folder / "train-views.webp")
    for name, picture in screenshots(run / "report.html").items():
        write_small(picture, folder / f"report-{name}.webp")


def grid(pictures: list[Image.Image]) -> Image.Image:
    """The pictures two by two, each in a cell as large as the largest."""
    width, height = (max(picture.size[side] for picture in pictures) for side in (0, 1))
    whole = Image.new("RGB", (2 * width, -(-len(pictures) // 2) * height), "white")
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % 2 * width, number // 2 * height))
    return whole


def write_small(picture: Image.Image, path: Path, most: int = 60_000) -> None:
    """A WebP at most 1100 pixels wide, of the best quality that fits `most` bytes."""
    picture = picture.convert("RGB")
    picture.thumbnail((1100, 1100))
    for quality in range(80, 10, -5):
        picture.save(path, quality=quality, method=6)
        if path.stat().st_size <= most:
            break


def screenshots(page: Path) -> dict[str, Image.Image]:
    """The top of a report, and its worst images."""
    from playwright.sync_api import sync_playwright

    browser = os.environ.get("RFDETR_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        shown = started.new_page(viewport={"width": 1100, "height": 800}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        found = {"verdict": shown.screenshot()}
        shown.locator("#worst").scroll_into_view_if_needed()
        shown.evaluate("document.querySelector('#worst').scrollIntoView()")
        shown.wait_for_timeout(1000)  # pictures are decoded when they come into view
        found["worst"] = shown.screenshot()
        started.close()
    return {name: Image.open(io.BytesIO(raw)) for name, raw in found.items()}


def first_free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    numbered = itertools.chain(
        [path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    )
    return next(candidate for candidate in numbered if not candidate.exists())


def parse_options() -> argparse.Namespace:
    """The command line; everything has a default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, default="detect", help="boxes alone, or masks too")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the data and the runs"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        help=", ".join(f"{epochs} to {task}" for task, (_, epochs) in TASKS.items()),
    )
    parser.add_argument("--eval-every", type=int, default=4, help="epochs")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--docs", type=Path, help="folder for the pictures of the documentation")
    parser.add_argument(
        "--hard", action="store_true", help="strong textures, clutter, noise, smaller objects"
    )
    parser.add_argument(
        "--from-random-weights", action="store_true", help="to see what the pre-training is worth"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
