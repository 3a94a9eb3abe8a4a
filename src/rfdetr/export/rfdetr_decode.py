"""Runs an artifact of rfdetr without rfdetr or torch: NumPy, Pillow, and ONNX Runtime or OpenVINO.

    python rfdetr_decode.py inference_model.onnx image.jpg [threshold]

In a program:

    run, metadata = open_model("inference_model.onnx")
    for found in detect(run, metadata, Image.open("image.jpg"), threshold=0.5):
        print(found["name"], found["confidence"], found["box"])
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Array = Any  # a NumPy array
Run = Any  # a function from images (B, 3, H, W) to the outputs by name


def open_model(path: str) -> tuple[Run, dict[str, Any]]:
    """What runs the artifact, and its metadata."""
    if path.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = json.loads(session.get_modelmeta().custom_metadata_map["rfdetr"])
        names = [output.name for output in session.get_outputs()]

        def run(images: Array) -> dict[str, Array]:
            arrays = session.run(names, {metadata["input"]["name"]: images})
            return dict(zip(names, arrays, strict=True))

        return run, metadata
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    metadata = json.loads(model.get_rt_info("rfdetr").astype(str))
    # Without the hint OpenVINO chooses by the processor, and boxes differ from machine to machine.
    hint = model.get_rt_info(["runtime_options", "INFERENCE_PRECISION_HINT"]).astype(str)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return lambda x: {k.get_any_name(): v for k, v in compiled(x).items()}, metadata


def to_8_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 or 32 bits over the power of two that its largest value needs."""
    if image.mode[0] not in "IF":
        return image
    values = np.nan_to_num(np.array(image, np.float32), nan=0, posinf=0, neginf=0)
    values -= min(values.min(), 0)
    scale = max(2.0 ** np.ceil(np.log2(values.max() or 1)), 0 if image.mode == "F" else 256)
    return Image.fromarray(np.minimum(values * (256 / scale), 255).astype(np.uint8))


def preprocess(image: Image.Image, metadata: dict[str, Any]) -> Array:
    """An RGB image as (B, 3, H, W) of the input's type: stretched, antialiased, B times."""
    wanted = metadata["input"]
    size = wanted["width"], wanted["height"]
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    if wanted["dtype"] == "float32":
        mean, std = (np.array(wanted[part], np.float32) for part in ("mean", "std"))
        pixels = (pixels / np.float32(255) - mean) / std
    times = 1 if wanted["batch"] == "dynamic" else wanted["batch"]
    return np.repeat(pixels.transpose(2, 0, 1)[None], times, axis=0)


def detect(
    run: Run, metadata: dict[str, Any], image: Image.Image, threshold: float = 0.5
) -> list[dict[str, Any]]:
    """The objects of an image, best first: "label" (of the logit), "name", "confidence", "box" (x1,
    y1, x2, y2 in pixels of the upright image) and of some models "mask" (height, width) bool.
    """
    image = to_8_bits(ImageOps.exif_transpose(image)).convert("RGB")
    outputs = run(preprocess(image, metadata))
    named = metadata["outputs"]
    boxes, logits = outputs[named["boxes"]][0], outputs[named["logits"]][0]
    masks = outputs[named["masks"]][0] if named["masks"] else None
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    best = np.argsort(-scores, axis=None, kind="stable")[: metadata["num_select"]]
    found = []
    for query, label in zip(*np.unravel_index(best, scores.shape), strict=True):
        name = metadata["classes"].get(str(label))  # a logit without a name stands for no class
        if name is not None and scores[query, label] >= threshold:
            one = {"label": int(label), "name": name, "confidence": float(scores[query, label])}
            one["box"] = to_pixels(boxes[query], image.size)
            if masks is not None:
                columns = enlarge(masks[query].astype(np.float32).T, image.width)
                one["mask"] = enlarge(columns.T, image.height) > 0
            found.append(one)
    return found


def to_pixels(box: Array, size: tuple[int, int]) -> list[float]:
    """cx, cy, w, h relative to the image -> x1, y1, x2, y2 in pixels, inside it."""
    centre, half = box[:2].astype(np.float64), box[2:].astype(np.float64) / 2
    limits = np.array(size * 2, np.float64)
    corners = np.concatenate([centre - half, centre + half]) * limits
    return [float(side) for side in np.clip(corners, 0, limits)]


def enlarge(rows: Array, count: int) -> Array:
    """(n, m) -> (count, m): bilinear."""
    places = np.clip((np.arange(count) + 0.5) * len(rows) / count - 0.5, 0, len(rows) - 1)
    before = places.astype(int)
    share = (places - before)[:, None].astype(np.float32)
    return rows[before] * (1 - share) + rows[np.minimum(before + 1, len(rows) - 1)] * share


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or not sys.argv[1].endswith((".onnx", ".xml")):
        sys.exit("usage: python rfdetr_decode.py MODEL.onnx|MODEL.xml IMAGE [THRESHOLD, of 0 to 1]")
    least = float([*sys.argv, "0.5"][3])
    for thing in detect(*open_model(sys.argv[1]), Image.open(sys.argv[2]), least):
        corners = " ".join(f"{side:.1f}" for side in thing["box"])
        print(f"{thing['name']} {thing['confidence']:.3f} {corners}")  # noqa: T201
