"""Where a dataset keeps its splits: Roboflow's COCO and YOLO exports, the original COCO layout,
YOLO folders, and what annotation tools write (`annotated`).

"roboflow" takes `<split>/_annotations.coco.json` for COCO and `data.yaml` for YOLO; "coco" is
`annotations/instances_<folder>.json` with `<folder>/` beside it, folders train2017 and val2017;
"yolo" is `data.yaml`.

One COCO file without a split is all train.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rfdetr.checks import check_path
from rfdetr.data.files import head_of
from rfdetr.data.findings import SHOWN, DatasetError, Findings
from rfdetr.data.formats.annotated import AnnotatedSplit, find_annotated, read_annotated
from rfdetr.data.formats.coco import read_coco
from rfdetr.data.formats.yolo import YAML_NAMES, YoloConfig, read_data_yaml, read_yolo
from rfdetr.data.index import DatasetIndex, build_index
from rfdetr.data.packs import Pack, open_pack
from rfdetr.data.records import SplitRecords

_HEAD = 65536  # bytes of a file that tell whether it is COCO's
_COCO = re.compile(
    rb'^(\xef\xbb\xbf)?\s*\{.*?"(images|annotations|categories|info)"\s*:', re.DOTALL
)
SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
_JSON = "_annotations.coco.json"
_LOOKED_FOR = {
    "roboflow": f"train/{_JSON} (COCO) or data.yaml with train/images/ (YOLO), "
    "or annotations of VOC, CVAT (XML), LabelMe, Label Studio (JSON)",
    "coco": "annotations/instances_train2017.json (or _train), train2017/, and so for val2017",
    "yolo": "data.yaml",
}


@dataclass(frozen=True)
class CocoSplit:
    """An annotation file and the folder its file names start from."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class DatasetLayout:
    """Format of a dataset and its splits ("train", "valid", "test") as far as it has them."""

    dataset_dir: Path
    format: str  # "coco", "yolo", or one of `annotated.FORMATS`
    splits: dict[str, CocoSplit | YoloConfig | AnnotatedSplit]
    pack: Pack | None = None  # where the images are, if not in files of their own


def find_splits(dataset_dir: str | Path, dataset_file: str = "roboflow") -> DatasetLayout:
    """Find the splits of a dataset; `dataset_file` is "roboflow", "coco" or "yolo". A packed one,
    which may be at an address, knows its own.
    """
    root = check_path("dataset_dir", dataset_dir)
    if pack := open_pack(root):
        return replace(find_splits(pack.folder, pack.dataset_file), dataset_dir=root, pack=pack)
    if not root.is_dir():
        expected = "dataset_dir must be the folder that holds the dataset's splits"
        raise DatasetError(f"{root}: no such folder; {expected}")
    if dataset_file not in _LOOKED_FOR:
        expected = f"expected one of {', '.join(_LOOKED_FOR)}"
        raise DatasetError(f"dataset_file is {dataset_file!r}; {expected}")
    finder = {"roboflow": _roboflow_coco, "coco": _original_coco}.get(dataset_file)
    if finder and (splits := finder(root)):
        return DatasetLayout(root, "coco", dict(splits))
    for path in (root / name for name in YAML_NAMES):
        if dataset_file != "coco" and path.is_file():
            config = read_data_yaml(path)
            return DatasetLayout(root, "yolo", dict.fromkeys(config.places, config))
    if layout := _of_tools(root, dataset_file):
        return layout
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    found = f"looked for {_LOOKED_FOR[dataset_file]}; found {', '.join(names[:20]) or 'nothing'}"
    if _original_coco(root):
        found += "; this looks like the original COCO layout: pass dataset_file='coco'"
    elif others := sorted(path.name for path in (root / "annotations").glob("*.json"))[:SHOWN]:
        found += (
            f"; annotations/ holds {', '.join(others)}, of no split: divide the images (in CVAT, "
            "into subsets Train and Validation) and export them again, or name the files "
            "instances_train.json and instances_val.json"
        )
    raise DatasetError(f"{root}: no dataset found: {found}")


def _of_tools(root: Path, dataset_file: str) -> DatasetLayout | None:
    """One COCO file without a split, or what annotation tools write."""
    elsewhere = dataset_file == "yolo" or _original_coco(root)
    if lone := {} if elsewhere else _lone_coco(root):
        return DatasetLayout(root, "coco", dict(lone))
    if dataset_file == "roboflow" and (annotated := find_annotated(root, SPLITS)):
        return DatasetLayout(root, next(iter(annotated.values())).format, dict(annotated))
    return None


def load_index(
    layout: DatasetLayout,
    split: str,
    class_names: Sequence[str] | None = None,
    findings: Findings | None = None,
    masks: bool | None = False,
) -> DatasetIndex:
    """Index a split; with `class_names` (those of train, or of a model) labels follow them and must
    be the same set. `masks` reads outlines too, which objects must have; None: such as there are.

    Faults of records are raised together, or left in `findings` where these are given.
    """
    if split not in layout.splits:
        where = f"{layout.dataset_dir}: no {split!r} split in this {layout.format.upper()} dataset"
        looked = f"looked for {' or '.join(SPLITS.get(split, (split,)))}"
        raise DatasetError(f"{where}: {looked}; found {', '.join(layout.splits) or 'none'}")
    records = read_split(layout, split, findings, masks is not False)
    index = build_index(records, lenient=findings is not None, masks=masks)
    names = index.class_names if class_names is None else tuple(class_names)
    return index.with_classes(names, "the model or the train split")


def read_split(
    layout: DatasetLayout, split: str, findings: Findings | None = None, masks: bool = False
) -> SplitRecords:
    found = layout.splits[split]
    if isinstance(found, YoloConfig):
        records = read_yolo(found, split, findings, masks)
    elif isinstance(found, AnnotatedSplit):
        records = read_annotated(found, findings, masks)
    else:
        records = read_coco(found.annotations, found.images, findings, masks)
    if layout.pack is not None:
        records.packed = layout.pack.files_of(records.root, records.names)
    return records


def _inside(folder: Path) -> dict[str, Path]:
    """What is in a folder by its name in lower case: CVAT writes Train and Validation."""
    return {path.name.lower(): path for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def _roboflow_coco(root: Path) -> dict[str, CocoSplit]:
    folders = _inside(root)
    found: dict[str, CocoSplit] = {}
    for split, names in SPLITS.items():
        for folder in (folders[name] for name in names if name in folders):
            if (folder / _JSON).is_file():
                found.setdefault(split, CocoSplit(folder / _JSON, folder))
    return found


def _original_coco(root: Path) -> dict[str, CocoSplit]:
    files, folders = _inside(root / "annotations"), _inside(root / "images") | _inside(root)
    found: dict[str, CocoSplit] = {}
    for split, names in SPLITS.items():
        for name in (f"{name}{year}" for year in ("2017", "") for name in names):
            if annotations := files.get(f"instances_{name}.json"):
                found.setdefault(split, CocoSplit(annotations, folders.get(name, root / name)))
    return found


def _lone_coco(root: Path) -> dict[str, CocoSplit]:
    """The one COCO file of a folder, or of its `annotations`, as train; its images are where the
    first that it names is found.
    """
    files = [
        path for place in (root, root / "annotations") for path in sorted(place.glob("*.json"))
    ]
    if len(files) != 1:
        return {}
    head = head_of(files[0], _HEAD)
    if not _COCO.search(head):
        return {}
    images, subset = root / "images", files[0].stem.removeprefix("instances_")
    places = (images / subset, images, root / subset, root)
    first = re.search(rb'"file_name"\s*:\s*"([^"\\\0]+)"', head)
    name = os.fsdecode(first[1]) if first else "?"
    there = (place for place in places if (place / name).is_file())
    return {"train": CocoSplit(files[0], next(there, images if images.is_dir() else root))}
