"""`rfdetr predict`: annotated pictures and one JSON file."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rfdetr.checks import check_new_folder
from rfdetr.cli.options import (
    WHOLE_IMAGES,
    Device,
    Predicting,
    TileOptions,
    open_model,
)
from rfdetr.config.fields import as_sides
from rfdetr.errors import InputError, RunError

if TYPE_CHECKING:
    from PIL import Image

    from rfdetr.inference.predictor import Prediction

JSON_NAME = "predictions.json"


def predict(  # noqa: PLR0913 - each is an option of the command
    checkpoint: Predicting,
    /,
    *sources: str,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    threshold: float = 0.5,
    thresholds: str | None = None,
    batch_size: Annotated[
        int | None, Parameter(help="Images at a time; default: 4, of a film or stream 1.")
    ] = None,
    device: Device = None,
    shape: str | None = None,
    tiles: TileOptions = WHOLE_IMAGES,
    pictures: bool = True,
    every: int = 1,
    track: bool = True,
    show: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Find objects in images: pictures with boxes, and predictions.json; with masks (as COCO's RLE)
    where it has them.

    Args:
        sources: Image files, folders, patterns ("shots/*.jpg") or http(s) addresses; or one film, a
            stream (rtsp://...) or a camera (0): an annotated film and predictions.jsonl.
        out: New or empty folder; default: the first free of predictions, predictions-2, ...
        threshold: Lowest confidence that is reported.
        thresholds: The same by class, as JSON ('{"cat": 0.4}') or a file of it; others have
            `threshold`.
        shape: Another input of the network than its own: height,width in pixels.
        pictures: Draw the boxes on copies of the images, or of the film.
        every: Of a film, frames from one that is looked at to the next.
        track: Of a film, number objects for as long as they are followed.
        show: Of a film, show it in a window as it is looked at; closing that ends it.
    """
    from rfdetr.console import with_progress
    from rfdetr.data.sources import expand
    from rfdetr.data.video import is_video

    if not sources:
        raise InputError(
            "which images? rfdetr predict CHECKPOINT SOURCES... (--slice takes the next word; "
            "--slice= does not)"
        )
    out = out or next(path for path in map(Path, _numbered("predictions")) if not path.exists())
    check_new_folder("--out", out)
    by_class = read_thresholds(thresholds) if thresholds else None
    how: dict[str, Any] = {"thresholds": by_class, **tiles.keywords()}
    if shape is not None:
        how["shape"] = as_sides(shape)
        if isinstance(how["shape"], str):
            raise InputError(f"--shape {shape}: expected height,width")
    is_film = any(map(is_video, sources))
    how["batch_size"] = (1 if is_film else 4) if batch_size is None else batch_size
    if is_film:
        if len(sources) > 1:
            raise InputError(f"{len(sources)} sources with a film among them: name one film alone")
        window = Window(sources[0]) if show else None
        how |= {"every": every, "track": track}
        frames = open_model(checkpoint, device).predict_film(sources[0], threshold, **how)
        _write_film(frames, out, Path(sources[0]).stem, pictures, window)
        return
    if show or every != 1:
        name = "--show" if show else "--every"
        raise InputError(f"{name} is for films, streams and cameras; {sources[0]} is none")
    images = list(expand(sources))
    detector = open_model(checkpoint, device)
    stream = detector.predict_stream(images, threshold, on_error="skip", **how)
    records: list[dict[str, Any]] = []
    content = {"checkpoint": checkpoint, "threshold": threshold}
    content |= {"thresholds": by_class} if by_class else {}
    in_tiles = {name.removeprefix("slice_"): how[name] for name in asdict(tiles)}
    content |= {"tiles": in_tiles} if tiles.slice is not None else {}
    with written(out / JSON_NAME, content, records):
        for record in _records(with_progress(stream, "Predicting", len(images)), out, pictures):
            records.append(record)
    _tell(records, out / JSON_NAME)


def _tell(records: list[dict[str, Any]], path: Path) -> None:
    """Says what was done, and raises where images could not be read."""
    from rfdetr.data.images import ImageError

    unread = [record for record in records if "error" in record]
    if len(unread) == len(records):
        raise ImageError(unread[0]["error"])
    count = sum(len(record.get("detections", ())) for record in records)
    print(f"{len(records)} images, {count} objects: {path}")
    if unread:
        share = f"{len(unread)} of {len(records)} images could not be read"
        names = ", ".join(str(record["source"]) for record in unread)
        raise RunError(f"{share}, the others are done: {names}")


@contextlib.contextmanager
def written(path: Path, content: dict[str, Any], records: list[dict[str, Any]]) -> Iterator[None]:
    """Writes what is in `records` when the block ends, also by an error or Ctrl-C: then with
    "finished": false. Nothing is written where no image was read.
    """
    from rfdetr.files import atomic_write

    finished = False
    try:
        yield
        finished = True
    finally:
        if any("error" not in record for record in records):
            all_of = {**content, "finished": finished, "images": records}
            text = json.dumps(all_of, indent=1).encode()
            atomic_write(path, lambda file: file.write(text))


class Window:
    """A window of tkinter, which shows one picture after the other."""

    def __init__(self, title: str) -> None:
        try:
            import tkinter
        except ImportError as error:
            raise InputError(
                f"--show: this Python has no tkinter ({error}): leave it out"
            ) from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            told = f"--show: no window can be opened here ({error})"
            raise InputError(f"{told}: leave it out, and look at the film in --out") from error
        self._root.title(title)
        self._label: Any = tkinter.Label(self._root)
        self._label.pack()
        self.is_open = True
        self._root.protocol("WM_DELETE_WINDOW", self.close)

    def close(self) -> None:
        self.is_open = False
        self._root.destroy()

    def show(self, picture: Image.Image) -> None:
        from PIL import ImageTk

        self._label.image = ImageTk.PhotoImage(picture)  # Tk itself keeps no reference
        self._label.configure(image=self._label.image)
        self._root.update()


def _write_film(
    frames: Iterable[Any], out: Path, stem: str, pictures: bool, window: Window | None
) -> None:
    """A line of predictions.jsonl for each frame and, with `pictures`, the film drawn on.

    What was written before a stream breaks, or Ctrl-C ends it, is whole and stays.
    """
    import numpy as np

    from rfdetr.data.video import FilmWriter
    from rfdetr.evaluation.drawing import draw
    from rfdetr.inference.predictor import Prediction

    count = objects = 0
    with contextlib.ExitStack() as stack:
        lines = writer = None
        for frame, found in frames:
            if lines is None:  # only now: a film that cannot be read leaves no folder
                out.mkdir(parents=True, exist_ok=True)
                lines = stack.enter_context((out / "predictions.jsonl").open("w", encoding="utf-8"))
                if pictures:
                    writer = FilmWriter(out / f"{stem}.mp4")
                    stack.callback(writer.close)
            record = _record(Prediction(None, frame.image, found))["detections"]
            if found.tracker_id is not None:
                for entry, number in zip(record, found.tracker_id.tolist(), strict=True):
                    entry["track_id"] = number
            line = {"index": frame.number, "seconds": round(frame.seconds, 6), "detections": record}
            lines.write(json.dumps(line) + "\n")
            count, objects = count + 1, objects + len(record)
            if writer is None and window is None:
                continue
            texts = [
                f"{entry['class_name']} {entry.get('track_id', entry['confidence'])}"
                for entry in record
            ]
            picture = draw(frame.image, found, texts)
            if writer is not None:
                writer.write(np.asarray(picture), frame.seconds)
            if window is not None:
                window.show(picture)
                if not window.is_open:
                    break
    print(f"{count} frames, {objects} objects: {out / 'predictions.jsonl'}")


def read_thresholds(given: str) -> dict[str, float]:
    """Confidences by class name, of JSON or of a file of it; `InputError` for anything else."""
    try:
        is_json = given.lstrip()[:1] in ("{", "[")
        found = json.loads(given if is_json else Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
    from rfdetr.inference.records import objects_of

    if prediction.error is not None:
        return {"source": prediction.source, "error": prediction.error}
    height, width = prediction.image.shape[:2]
    objects = objects_of(prediction.detections, (height, width))
    size = {"width": width, "height": height}
    return {"source": prediction.source, **size, "detections": objects}
