"""Data for the tests: the blood-cell set where it is at hand, and small generated sets in both
layouts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from PIL import Image

from rfdetr.evaluation import plots

REPOSITORY = Path(__file__).parents[1]
# Class names, in label order.
COLOURS = {
    "blue": (40, 60, 220),
    "green": (40, 200, 60),
    "red": (220, 50, 40),
}
FIRST_SEED = {"train": 0, "valid": 400, "test": 800}  # so that splits share no picture


settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def with_plots() -> None:
    """A test that names this gets the pictures too; they take longer to draw than the tiny runs to
    train.
    """


@pytest.fixture(autouse=True)
def _without_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_plots" not in request.fixturenames:
        monkeypatch.setattr(plots, "plot_metrics", lambda *_: None)
        monkeypatch.setattr(plots, "plot_history", lambda *_: None)


def _shared_data(name: str) -> Path:
    place = Path(os.environ.get("RFDETR_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / name
    if not place.is_dir():
        pytest.skip(f"{place} is not there: set RFDETR_TEST_DATA to the folder that holds {name}")
    return place


@pytest.fixture(scope="session")
def bccd_coco() -> Path:
    """Blood cells in COCO layout: 205, 87 and 72 images, classes Platelets, RBC, WBC."""
    return _shared_data("bccd-coco")


@pytest.fixture(scope="session")
def bccd_yolo() -> Path:
    """A part of the same in YOLO layout: 40, 12 and 8 images."""
    return _shared_data("bccd-yolo")


def draw_scene(
    seed: int, width: int = 64, height: int = 48
) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """A gray picture with 0 to 3 coloured rectangles, and (label, [x, y, w, h]) of each."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(90, 130, (height, width, 3), np.uint8)
    objects = []
    for _ in range(seed % 4):
        w, h = (int(side) for side in rng.integers(8, 20, 2))
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        label = int(rng.integers(len(COLOURS)))
        picture[y : y + h, x : x + w] = list(COLOURS.values())[label]
        objects.append((label, [x, y, w, h]))
    return picture, objects


def write_tiny_coco(root: Path, counts: dict[str, int] | None = None) -> Path:
    """A COCO export with a root category; image 0 of each split is empty, files are JPEG and PNG in
    turn.
    """
    counts = counts or {"train": 6, "valid": 4, "test": 3}
    categories = [{"id": 0, "name": "colours", "supercategory": "none"}]
    categories += [
        {"id": i, "name": name, "supercategory": "colours"} for i, name in enumerate(COLOURS, 1)
    ]
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(count):
            picture, objects = draw_scene(FIRST_SEED[split] + i)
            name = f"{i}.{('jpg', 'png')[i % 2]}"
            Image.fromarray(picture).save(root / split / name, quality=95)
            images.append(
                {
                    "id": i + 1,
                    "file_name": name,
                    "width": picture.shape[1],
                    "height": picture.shape[0],
                }
            )
            for label, box in objects:
                record = {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": label + 1,
                    "bbox": box,
                }
                annotations.append(
                    {**record, "area": box[2] * box[3], "iscrowd": 0, "segmentation": []}
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def write_tiny_yolo(root: Path, counts: dict[str, int] | None = None) -> Path:
    """The same as a YOLO export with Roboflow's paths; an empty image has no label file."""
    for split, count in (counts or {"train": 6, "valid": 4, "test": 3}).items():
        (root / split / "images").mkdir(parents=True)
        (root / split / "labels").mkdir()
        for i in range(count):
            picture, objects = draw_scene(FIRST_SEED[split] + i)
            height, width = picture.shape[:2]
            Image.fromarray(picture).save(root / split / "images" / f"{i}.png")
            lines = []
            for label, (x, y, w, h) in objects:
                shares = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
                lines.append(" ".join([str(label), *(f"{share:.8f}" for share in shares)]) + "\n")
            if lines:
                (root / split / "labels" / f"{i}.txt").write_text("".join(lines))
    places = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    (root / "data.yaml").write_text(f"{places}\nnc: {len(COLOURS)}\nnames: {list(COLOURS)}\n")
    return root


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Path:
    """A fresh COCO dataset of 13 pictures with coloured rectangles, to read or to damage."""
    return write_tiny_coco(tmp_path / "tiny-coco")


@pytest.fixture(scope="session")
def shared_tiny_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same dataset once for all tests that only read it."""
    return write_tiny_coco(tmp_path_factory.mktemp("shared") / "tiny-coco")


@pytest.fixture
def tiny_yolo(tmp_path: Path) -> Path:
    """A fresh YOLO dataset of the same pictures."""
    return write_tiny_yolo(tmp_path / "tiny-yolo")


@pytest.fixture(scope="session")
def write_coco() -> Callable[..., Path]:
    """`write_coco(folder, counts)`, for datasets that several tests share."""
    return write_tiny_coco


@pytest.fixture
def make_tiny_coco(tmp_path: Path) -> Callable[..., Path]:
    """Like `tiny_coco`, with a choice of splits and their sizes: `make_tiny_coco({"train": 20,
    "valid": 4})`.
    """
    return lambda counts=None, name="made-coco": write_tiny_coco(tmp_path / name, counts)


@pytest.fixture
def edit_coco() -> Callable[..., None]:
    """`edit_coco(path, change)` rewrites an annotation file after `change(content)` altered it in
    place.
    """

    def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`made_once(name, make)`: a folder that `make(folder)` fills, once for all processes of the
    tests, which only read it.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(root / f"{name}.lock"):
            if not (root / f"{name}.made").exists():
                make(root / name)
                (root / f"{name}.made").touch()
        return root / name

    return folder


@pytest.fixture(scope="session")
def mini_exports(made_once: Callable[..., Path]) -> Path:
    """The bundled Mini in all formats, by the call."""
    from rfdetr import RFDETRMini

    def export(folder: Path) -> None:
        written = RFDETRMini(device="cpu").export(
            folder, format=["onnx", "openvino", "pt2"], notes="of the harbour"
        )
        endings = "onnx", "xml", "pt2"
        assert written == [folder / f"inference_model.{ending}" for ending in endings]

    return made_once("mini-exports", export)


@pytest.fixture(scope="session")
def seg_mini_exports(made_once: Callable[..., Path]) -> Path:
    """The bundled SegMini in all formats, by the command, which told told.txt; it takes uint8."""

    def export(folder: Path) -> None:
        line = ["export", "rf-detr-seg-mini.safetensors", "--format", "onnx,openvino,pt2"]
        line += ["--input-dtype", "uint8", "--out", str(folder)]
        command = [sys.executable, "-m", "rfdetr", *line]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (folder / "told.txt").write_text(done.stdout + done.stderr)

    return made_once("seg-mini-exports", export)


class QuietServer(ThreadingHTTPServer):
    """Closing waits for its answers, so that none outlives its test; clients may hang up."""

    daemon_threads = False

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Callable[..., Any]:
    """A context in which a handler class answers at the address that it gives."""

    @contextmanager
    def address(handler: Any) -> Iterator[str]:
        server = QuietServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()
        thread.join()

    return address
