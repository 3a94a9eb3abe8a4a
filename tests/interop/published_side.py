"""What the interpreter with the published package and transformers runs: one call, told as JSON.

    python published_side.py '{"call": "predict", "weights": ..., "image": ..., "out": ...}'

Detections are written as arrays: xyxy, confidence, class_name and, where there are any, masks.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import Any

THRESHOLD = 0.001
SIZE = {"resolution": 96, "num_queries": 30, "num_select": 30, "group_detr": 2}


def predict(weights: str, image: str, out: str, **how: Any) -> None:
    import numpy as np

    from rfdetr import from_checkpoint

    found = from_checkpoint(weights, device="cpu").predict(image, threshold=THRESHOLD, **how)
    names = found.data["class_name"].astype(str)
    np.savez(out, xyxy=found.xyxy, confidence=found.confidence, class_name=names)


def train(**settings: Any) -> None:
    from rfdetr import RFDETRNano

    model = RFDETRNano(pretrain_weights=None, device="cpu", **SIZE)
    common = {"batch_size": 2, "grad_accum_steps": 1, "num_workers": 0, "multi_scale": False}
    model.train(**common, device="cpu", tensorboard=False, progress_bar=None, **settings)


def transformers_predict(folder: str, image: str, out: str) -> None:
    """As README.md of the folder says."""
    import numpy as np
    import torch
    import transformers
    from PIL import Image

    with open(f"{folder}/config.json") as file:
        (name,) = json.load(file)["architectures"]
    model, told = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told  # no tensor missing, unexpected or of another shape
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    picture = Image.open(image).convert("RGB")
    size = [(picture.height, picture.width)]
    with torch.no_grad():
        outputs = model.eval()(**processor(images=picture, return_tensors="pt"))
    if name.endswith("Segmentation"):
        result = processor.post_process_instance_segmentation(
            outputs, threshold=THRESHOLD, target_sizes=size, return_binary_maps=True
        )[0]
        rows = result["segments_info"]
        scores, labels = ([row[key] for row in rows] for key in ("score", "label_id"))
        arrays = {"mask": result["segmentation"].numpy().astype(bool)}
    else:
        result = processor.post_process_object_detection(
            outputs, threshold=THRESHOLD, target_sizes=size, top_k=model.config.num_queries
        )[0]
        scores, labels = result["scores"].tolist(), result["labels"].tolist()
        arrays = {"xyxy": result["boxes"].numpy()}
    names = np.array([model.config.id2label[label] for label in labels], dtype=str)
    np.savez(out, confidence=np.array(scores), class_name=names, **arrays)


def versions() -> None:
    packages = ("rfdetr", "transformers", "torch", "torchvision", "pytorch-lightning")
    print(json.dumps({name: importlib.metadata.version(name) for name in packages}))


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    globals()[job.pop("call")](**job)
