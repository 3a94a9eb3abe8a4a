"""Runs an artifact of rfdetr without rfdetr or torch: NumPy, Pillow, and ONNX Runtime or OpenVINO.

    python rfdetr_decode.py inference_model.onnx image.jpg [threshold]

In a program:

    run, metadata = open_model("inference_model.onnx")
    for found in detect(run, metadata, Image.open("image.jpg"), threshold=0.5):
        print(found["name"], found["confidence"], found["box"])
"""

import json
import sys

import numpy as np
from PIL import Image, ImageOps


def open_model(path):
    """A function from an array (B, 3, H, W) to the outputs by name, and the artifact's metadata."""
    if str(path).endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = json.loads(session.get_modelmeta().custom_metadata_map["rfdetr"])
        names = [output.name for output in session.get_outputs()]

        def run(pixels):
            arrays = session.run(names, {metadata["input"]["name"]: pixels})
            return dict(zip(names, arrays, strict=True))

        return run, metadata
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    metadata = json.loads(model.get_rt_info("rfdetr").astype(str))
    # Without the hint OpenVINO chooses by the processor, and boxes differ from machine to machine.
    hint = model.get_rt_info(["runtime_options", "INFERENCE_PRECISION_HINT"]).astype(str)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return lambda pixels: {
        value.get_any_name(): array for value, array in compiled(pixels).items()
    }, metadata


def preprocess(image, metadata):
    """An upright RGB image as (1, 3, H, W) of the input's type: stretched, antialiased."""
    wanted = metadata["input"]
    image = image.resize((wanted["width"], wanted["height"]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    if wanted["dtype"] == "float32":
        mean, std = np.float32(wanted["mean"]), np.float32(wanted["std"])
        pixels = (pixels / np.float32(255) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def detect(run, metadata, image, threshold=0.5):
    """The objects of an image, best first: "label" (of the logit), "name", "confidence", "box"
    (x1, y1, x2, y2 in pixels of the upright image) and, of a segmentation model, "mask" (height,
    width) bool.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    outputs = run(preprocess(image, metadata))
    named = metadata["outputs"]
    boxes, logits = (outputs[named[part]][0] for part in ("boxes", "logits"))
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    best = np.argsort(-scores, axis=None, kind="stable")[: metadata["num_select"]]
    found = []
    for query, label in zip(*np.unravel_index(best, scores.shape), strict=True):
        name = metadata["classes"].get(str(label))  # a logit without a name stands for no class
        if name is None or scores[query, label] < threshold:
            continue
        box = to_pixels(boxes[query], image.size)
        one = {"label": int(label), "name": name, "confidence": float(scores[query, label])}
        one["box"] = [float(side) for side in box]
        if named["masks"]:
            one["mask"] = to_mask(outputs[named["masks"]][0, query], image.size)
        found.append(one)
    return found


def to_pixels(box, size):
    """cx, cy, w, h relative to the image -> x1, y1, x2, y2 in pixels, inside it."""
    centre, half = box[:2].astype(np.float64), box[2:].astype(np.float64) / 2
    corners = np.concatenate([centre - half, centre + half]) * np.tile(size, 2)
    return np.clip(corners, 0, np.tile(size, 2))


def to_mask(logits, size):
    """Logits (h, w) enlarged to the image, and where they are above 0."""
    columns = enlarge(logits.astype(np.float32).T, size[0])
    return enlarge(columns.T, size[1]) > 0


def enlarge(rows, count):
    """(n, m) -> (count, m), bilinear, pixel centres at halves."""
    places = np.clip((np.arange(count) + 0.5) * len(rows) / count - 0.5, 0, len(rows) - 1)
    before = places.astype(int)
    share = (places - before)[:, None].astype(np.float32)
    return rows[before] * (1 - share) + rows[np.minimum(before + 1, len(rows) - 1)] * share


if __name__ == "__main__":
    model_path, image_path, *rest = sys.argv[1:]
    runner, about = open_model(model_path)
    for thing in detect(runner, about, Image.open(image_path), float(rest[0]) if rest else 0.5):
        corners_text = " ".join(f"{side:.1f}" for side in thing["box"])
        print(f"{thing['name']} {thing['confidence']:.3f} {corners_text}")  # noqa: T201
