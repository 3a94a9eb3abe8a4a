"""`rfdetr predict`: annotated pictures and one JSON file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rfdetr.cli.options import (
    BatchSize,
    Device,
    Predicting,
    Slice,
    SliceOverlap,
    SliceWhole,
    open_model,
    read_tile,
)
from rfdetr.errors import InputError, RunError

if TYPE_CHECKING:
    from rfdetr.inference.predictor import Prediction

JSON_NAME = "predictions.json"


def predict(  # noqa: PLR0913 - each is an option of the command
    checkpoint: Predicting,
    /,
    *sources: str,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    threshold: float = 0.5,
    thresholds: str | None = None,
    batch_size: BatchSize = 4,
    device: Device = None,
    slice: Slice = None,
    slice_overlap: SliceOverlap = 0.2,
    slice_whole: SliceWhole = True,
    pictures: bool = True,
) -> None:
    """Find objects in images: pictures with boxes, and predictions.json; with masks (as COCO's RLE)
    where it has them.

    Args:
        sources: Image files, folders, patterns ("shots/*.jpg") or http(s) addresses.
        out: New or empty folder; default: the first free of predictions, predictions-2, ...
        threshold: Lowest confidence that is reported.
        thresholds: The same by class, as JSON ('{"cat": 0.4}') or a file of it; others have
            `threshold`.
        pictures: Draw the boxes on copies of the images.
    """
    from rfdetr.console import with_progress
    from rfdetr.data.images import ImageError
    from rfdetr.data.sources import expand
    from rfdetr.files import atomic_write

    if not sources:
        raise InputError("which images? rfdetr predict CHECKPOINT SOURCES...")
    out = out or next(path for path in map(Path, _numbered("predictions")) if not path.exists())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: no empty folder; nothing is overwritten, choose another --out")
    by_class = read_thresholds(thresholds) if thresholds else None
    images = list(expand(sources))
    detector = open_model(checkpoint, device)
    how: dict[str, Any] = {"on_error": "skip", "thresholds": by_class, "slice": read_tile(slice)}
    how |= {"slice_overlap": slice_overlap, "slice_whole": slice_whole}
    stream = detector.predict_stream(images, threshold, batch_size, **how)
    records = list(_records(with_progress(stream, "Predicting", len(images)), out, pictures))
    unread = [record for record in records if "error" in record]
    if len(unread) == len(records):
        raise ImageError(unread[0]["error"])
    content = {"checkpoint": checkpoint, "threshold": threshold, "images": records}
    content |= {"thresholds": by_class} if by_class else {}
    tiles = {"slice": how["slice"], "overlap": slice_overlap, "whole": slice_whole}
    content |= {"tiles": tiles} if slice is not None else {}
    atomic_write(out / JSON_NAME, lambda file: file.write(json.dumps(content, indent=1).encode()))
    count = sum(len(record.get("detections", ())) for record in records)
    print(f"{len(records)} images, {count} objects: {out / JSON_NAME}")
    if unread:
        share = f"{len(unread)} of {len(records)} images could not be read"
        names = ", ".join(str(record["source"]) for record in unread)
        raise RunError(f"{share}, the others are done: {names}")


def read_thresholds(given: str) -> dict[str, float]:
    """Confidences by class name, of JSON or of a file of it; `InputError` for anything else."""
    try:
        text = given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8")
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"--thresholds {given}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f'--thresholds {given}: expected {{"class": confidence, ...}}')
    return found


def _numbered(stem: str, ending: str = "") -> Iterator[str]:
    """stem, stem-2, stem-3, ... without end, each with the `ending`."""
    yield f"{stem}{ending}"
    yield from (f"{stem}-{number}{ending}" for number in itertools.count(2))


def _records(
    predictions: Iterable[Prediction], folder: Path, pictures: bool
) -> Iterator[dict[str, Any]]:
    """What predictions.json says of each image; with `pictures`, draws those that were read.

    A picture is a JPEG of the source's own name, numbered where two sources share it.
    """
    from rfdetr.evaluation.drawing import draw

    taken = {JSON_NAME}
    for prediction in predictions:
        record = _record(prediction)
        if pictures and prediction.error is None:
            folder.mkdir(parents=True, exist_ok=True)  # only now: unread images leave no folder
            stem = Path(str(prediction.source).split("?")[0]).stem or "image"
            name = next(name for name in _numbered(stem, ".jpg") if name not in taken)
            taken.add(name)
            record["picture"] = name
            found = record["detections"]
            texts = [f"{entry['class_name']} {entry['confidence']:.2f}" for entry in found]
            draw(prediction.image, prediction.detections, texts).save(folder / name, quality=92)
        yield record


def _record(prediction: Prediction) -> dict[str, Any]:
    """What predictions.json says of one image: an error, or its size and objects."""
    from rfdetr.geometry.rle import compress, runs_of_bitmap

    if prediction.error is not None:
        return {"source": prediction.source, "error": prediction.error}
    objects, (height, width) = [], prediction.image.shape[:2]
    found: Any = prediction.detections  # supervision types ids and confidences as perhaps missing
    for box, mask, confidence, class_id, _, data in found:
        entry = {
            "class_id": int(class_id),
            "class_name": str(data["class_name"]),
            "confidence": round(float(confidence), 4),
            "box_xyxy": [round(float(value), 2) for value in box],
        }
        if mask is not None:
            counts = compress(runs_of_bitmap(mask)).decode()
            entry["mask_rle"] = {"size": [height, width], "counts": counts}
        objects.append(entry)
    size = {"width": width, "height": height}
    return {"source": prediction.source, **size, "detections": objects}
