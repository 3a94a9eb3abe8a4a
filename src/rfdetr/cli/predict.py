"""`rfdetr predict`: annotated pictures and one JSON file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rfdetr.errors import InputError, RunError

if TYPE_CHECKING:
    from rfdetr.inference.predictor import Prediction

JSON_NAME = "predictions.json"


def predict(
    checkpoint: str,
    /,
    *sources: str,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    threshold: float = 0.5,
    batch_size: int = 4,
    device: str | None = None,
    pictures: bool = True,
) -> None:
    """Find objects in images: pictures with boxes, and predictions.json; with masks (as COCO's RLE)
    where it has them.

    Parameters
    ----------
    checkpoint
        File of weights, or the name of a published one.
    sources
        Image files, folders, patterns ("shots/*.jpg") or http(s) addresses.
    out
        Folder to write to, new or empty; by default the first free of predictions, predictions-2, ...
    threshold
        Lowest confidence that is reported.
    batch_size
        Images at a time.
    device
        "cpu", "cuda", "mps"; the best there is by default.
    pictures
        Draw the boxes on copies of the images.
    """
    from rich.console import Console

    from rfdetr.console import with_progress
    from rfdetr.data.images import ImageError
    from rfdetr.detector import RFDETR
    from rfdetr.evaluation.drawing import draw
    from rfdetr.files import atomic_write
    from rfdetr.inference.sources import expand

    if not sources:
        raise InputError("which images? rfdetr predict CHECKPOINT SOURCES...")
    folder = _output_folder(out)
    images = list(expand(sources))
    stream = RFDETR.from_checkpoint(checkpoint, device=device).predict_stream(
        images, threshold, batch_size, on_error="skip"
    )
    records, taken = [], {JSON_NAME}
    for prediction in with_progress(stream, "Predicting", len(images)):
        record = _record(prediction)
        if prediction.error is None:
            folder.mkdir(
                parents=True, exist_ok=True
            )  # only now: what cannot be read leaves no empty folder
        if pictures and prediction.error is None:
            record["picture"] = _free_name(str(prediction.source), taken)
            texts = [
                f"{entry['class_name']} {entry['confidence']:.2f}" for entry in record["detections"]
            ]
            draw(prediction.image, prediction.detections, texts).save(
                folder / record["picture"], quality=92
            )
        records.append(record)
    unread = [record for record in records if "error" in record]
    if len(unread) == len(records):
        raise ImageError(unread[0]["error"])
    content = {"checkpoint": checkpoint, "threshold": threshold, "images": records}
    atomic_write(
        folder / JSON_NAME, lambda file: file.write(json.dumps(content, indent=1).encode())
    )
    found = sum(len(record.get("detections", ())) for record in records)
    Console().print(
        f"{len(records)} images, {found} objects: {folder / JSON_NAME}",
        soft_wrap=True,
        highlight=False,
    )
    if unread:
        names = ", ".join(str(record["source"]) for record in unread)
        raise RunError(
            f"{len(unread)} of {len(records)} images could not be read, the others are done: {names}"
        )


def _output_folder(out: Path | None) -> Path:
    """A folder in which nothing can be overwritten."""
    numbered = itertools.chain(["predictions"], (f"predictions-{n}" for n in itertools.count(2)))
    folder = (
        out if out is not None else next(path for path in map(Path, numbered) if not path.exists())
    )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder}: not an empty folder; nothing is overwritten, choose another --out"
        )
    return folder


def _record(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"source": prediction.source, "error": prediction.error}
    height, width = prediction.image.shape[:2]
    return {
        "source": prediction.source,
        "width": width,
        "height": height,
        "detections": list(_objects(prediction)),
    }


def _objects(prediction: Prediction) -> Iterator[dict[str, Any]]:
    from rfdetr.geometry.rle import compress, runs_of_bitmap

    found: Any = (
        prediction.detections
    )  # typed for every source of detections: with ids and confidences, or without
    for box, mask, confidence, class_id, _, data in found:
        entry = {
            "class_id": int(class_id),
            "class_name": str(data["class_name"]),
            "confidence": round(float(confidence), 4),
            "box_xyxy": [round(float(value), 2) for value in box],
        }
        if mask is not None:
            entry["mask_rle"] = {
                "size": list(mask.shape),
                "counts": compress(runs_of_bitmap(mask)).decode(),
            }
        yield entry


def _free_name(source: str, taken: set[str]) -> str:
    """The source's own name as a JPEG, numbered where two sources share it."""
    stem = Path(source.split("?")[0]).stem or "image"
    numbered = itertools.chain([f"{stem}.jpg"], (f"{stem}-{n}.jpg" for n in itertools.count(2)))
    name = next(name for name in numbered if name not in taken)
    taken.add(name)
    return name
