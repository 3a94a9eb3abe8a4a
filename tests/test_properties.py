"""Thousands of generated files and settings: each gives a valid result or our own error, and no
other. Most are faulty; so that no reader passes by refusing all, a share must be accepted.

The readers and what must hold of their results are those of scripts/fuzz.py, which goes on where
this stops.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rfdetr.config import VARIANTS, SegmentationTrainConfig
from rfdetr.weights.writing import checkpoint_args

_spec = importlib.util.spec_from_file_location(
    "fuzz", Path(__file__).parents[1] / "scripts" / "fuzz.py"
)
assert _spec and _spec.loader
fuzz = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz)


def quiet(cases: int) -> settings:
    return settings(max_examples=cases, suppress_health_check=list(HealthCheck), database=None)


def accepted(cases: int, read: Callable[..., object], *drawn: st.SearchStrategy[Any]) -> float:
    """The share of generated files that a reader accepts; any error but ours ends the test."""
    results = []

    @quiet(cases)
    @given(st.tuples(*drawn))
    def run(case: tuple[Any, ...]) -> None:
        results.append(read(*case) is not None)

    run()
    assert len(results) >= cases // 2  # what is drawn twice is read once
    return sum(results) / len(results)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    logging.disable()  # thousands of notes on odd boxes
    yield fuzz.make_folder(tmp_path_factory.mktemp("fuzz"))
    logging.disable(logging.NOTSET)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from(
        [2**31, 2**63 - 1, 2**63, 10**400, -1e308, 1e300, math.inf, math.nan, -0.0, 0.5]
    ),
    st.sampled_from(
        ["", "a", "1", "\0", "\ud800", "../..", "x" * 300, [], {}, [[]], [1, 2, 3], {"image_id": 1}]
    ),
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 15).flatmap(lambda n: good if n else ODD)


NUMBERS = st.floats(-5, 50, width=32)
RECORD = {
    "id": mostly(st.integers(0, 5)),
    "image_id": mostly(st.sampled_from([0, 1, 1.0, "1", "a"])),
    "category_id": mostly(st.sampled_from([0, 1, 2, 2.0, "2"])),
    "bbox": mostly(st.lists(NUMBERS, min_size=4, max_size=4)),
}
OUTLINE = st.one_of(
    st.lists(st.lists(NUMBERS, max_size=8), max_size=2),
    st.fixed_dictionaries(
        {"size": mostly(st.just([30, 40])), "counts": st.lists(st.integers(-1, 1200), max_size=3)}
    ),
    st.fixed_dictionaries({"size": st.just([30, 40]), "counts": st.text("01DPo`_ñ", max_size=6)}),
)
EXTRA = {
    "area": mostly(NUMBERS),
    "iscrowd": mostly(st.integers(0, 1)),
    "segmentation": mostly(OUTLINE),
}
IMAGES = st.lists(
    st.fixed_dictionaries(
        {
            "id": mostly(st.sampled_from([0, 1, "a", 2**70])),
            "file_name": mostly(st.sampled_from(["0.png", "1.jpg"])),
        }
    ),
    min_size=1,
    max_size=2,
)
COCO = st.fixed_dictionaries(
    {
        "images": mostly(st.one_of(st.just(fuzz.coco_content()["images"]), IMAGES)),
        "annotations": mostly(st.lists(st.fixed_dictionaries(RECORD, optional=EXTRA), max_size=3)),
        "categories": mostly(st.just(fuzz.coco_content()["categories"])),
    }
)


@pytest.mark.slow
def test_annotation_files(folder: Path) -> None:
    (folder / "data.yaml").unlink(missing_ok=True)

    def read(content: dict[str, Any]) -> object:
        return fuzz.coco(json.dumps(content).encode(), folder)

    assert accepted(700, read, COCO) > 0.1


GOOD = st.lists(st.floats(0, 1, width=16).map("{:g}".format), min_size=4, max_size=4)
CORNERS = st.lists(st.floats(0, 1, width=16).map("{:g}".format), min_size=6, max_size=12).filter(
    lambda x: len(x) % 2 == 0
)
GOOD_LINE = st.tuples(st.integers(0, 2).map(str), st.one_of(GOOD, CORNERS)).map(
    lambda line: " ".join([line[0], *line[1]])
)
BAD_LINE = st.one_of(
    st.sampled_from(
        [
            "3 .5 .5 .1 .1",
            "-1 .5 .5 .1 .1",
            "0.5 .5 .5 .1 .1",
            "nan .5 .5 .1 .1",
            "0",
            "0 .5 .5 .1",
            "0 nan 0 0 0",
        ]
    ),
    st.sampled_from(
        [
            "0 .5 .5 .1 .1 .2",
            "0 320 200 10 10",
            "0 inf 0 0 0",
            "0 1e400 0 0 0",
            "0,0.5,0.5,0.1,0.1",
            "{}",
            "\0",
        ]
    ),
    st.tuples(st.text(st.characters(categories=["L", "P", "S"]), min_size=1, max_size=9), GOOD).map(
        lambda line: " ".join([f"x{line[0]}", *line[1]])
    ),
)


@pytest.mark.slow
@quiet(800)
@given(
    st.lists(GOOD_LINE, max_size=3),
    st.lists(BAD_LINE, max_size=1),
    st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
)
def test_label_lines_are_refused_exactly_where_one_is_faulty(
    folder: Path, good: list[str], bad: list[str], end: str
) -> None:
    (folder / "train" / "_annotations.coco.json").unlink(missing_ok=True)
    found = fuzz.labels(end.join([*good, *bad]).encode(), folder)
    assert (found is None) == bool(bad)
    assert found is None or len(found.boxes) <= len(good)


PLACES = ["train/images", "../train/images", "."]
VALUES = [*PLACES, "[a, b]", "{0: a}", "2", "&x [*x]", "no", "!!python/name:os"]
TEXT = st.text(st.characters(exclude_characters="/"), max_size=8)
VALUE = st.one_of(st.sampled_from(VALUES), TEXT, ODD.map(repr))
USUAL = {"names": "[a, b]", "train": "train/images", "Val": "train/images"}
DATA_YAML = st.tuples(
    st.fixed_dictionaries(
        {key: st.one_of(st.just(v), st.just(v), VALUE) for key, v in USUAL.items()}
    ),
    st.dictionaries(st.sampled_from(["test", "nc", "path", "kpt_shape"]), VALUE, max_size=2),
).map(lambda parts: parts[0] | parts[1])


def test_data_yaml(folder: Path) -> None:
    (folder / "train" / "_annotations.coco.json").unlink(missing_ok=True)
    (folder / "train" / "labels" / "0.txt").write_text("0 .5 .5 .1 .1\n")

    def read(content: dict[str, str]) -> object:
        text = "".join(f"{key}: {value}\n" for key, value in content.items())
        return fuzz.data_yaml(text.encode(errors="replace"), folder)

    assert accepted(600, read, DATA_YAML) > 0.02


def test_files_of_settings(folder: Path) -> None:
    names = ["epochs", "lr", "seed", "amp", "model", "resume", "x", "train"]
    contents = st.dictionaries(st.sampled_from(names), ODD, max_size=3)

    def read(content: dict[str, Any]) -> object:
        return fuzz.config(json.dumps(content).encode(), folder)  # JSON is YAML, nearly

    assert accepted(500, read, contents) > 0.05


CLASSES: list[type[BaseModel]] = [SegmentationTrainConfig, *VARIANTS.values()]
NAMED = {
    cls: st.dictionaries(
        st.sampled_from(sorted(cls.model_fields)),
        st.one_of(
            ODD,
            st.integers(1, 600),
            st.floats(0, 1),
            st.sampled_from(["P4", "cosine", "1", [1], [3, 6], ["P4"]]),
        ),
        max_size=4,
    )
    for cls in CLASSES
}


@pytest.mark.slow
@quiet(1500)
@given(st.sampled_from(CLASSES).flatmap(lambda cls: st.tuples(st.just(cls), NAMED[cls])))
def test_configurations(drawn: tuple[type[BaseModel], dict[str, Any]]) -> None:
    cls, values = drawn
    try:
        config = cls(
            **({"dataset_dir": "data", **values} if cls is SegmentationTrainConfig else values)
        )
    except ValidationError as error:
        assert error.error_count() and values
        return
    assert cls(**config.model_dump()) == config
    for name, value in config:
        assert not isinstance(value, float) or math.isfinite(value), name
        whole = cls.model_fields[name].annotation
        assert (
            not isinstance(value, int)
            or whole is bool
            or bool in get_args(whole)
            or 0 <= value < 2**32
        ), name
    if cls is not SegmentationTrainConfig:
        assert config.resolution % (config.patch_size * config.num_windows) == 0  # type: ignore[attr-defined]
        assert (
            json.loads(json.dumps(checkpoint_args(config, None)))["resolution"] == config.resolution
        )  # type: ignore


PATCHES = st.one_of(st.sampled_from([b"0", b"1", b"9", b" "]), st.binary(min_size=1, max_size=4))
EDITS = st.lists(st.tuples(st.integers(0, 4000), PATCHES), max_size=3)


def edited(data: bytes, edits: list[tuple[int, bytes]], within: int) -> bytes:
    changed = bytearray(data)
    for place, patch in edits:
        at = place % min(len(data), within)
        changed[at : at + len(patch)] = patch
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged tags
def test_image_headers(folder: Path) -> None:
    pictures = st.sampled_from(sorted(fuzz.pictures().values()))

    def read(picture: bytes, edits: list[tuple[int, bytes]], within: int) -> object:
        return fuzz.image(edited(picture, edits, within), folder)

    assert accepted(700, read, pictures, EDITS, st.sampled_from([12, 40, 4000])) > 0.1


@pytest.mark.parametrize("name", ["coco", "labels", "data_yaml", "config", "checkpoint"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes(folder: Path, name: str) -> None:
    (folder / "data.yaml").unlink(missing_ok=True)
    (folder / "train" / "_annotations.coco.json").unlink(missing_ok=True)
    (folder / "train" / "labels" / "0.txt").write_text("0 .5 .5 .1 .1\n")

    def read(seed: bytes, edits: list[tuple[int, bytes]] | bytes) -> object:
        data = edits if isinstance(edits, bytes) else edited(seed, edits, 4000)
        return fuzz.READERS[name](data, folder)

    seeds = st.sampled_from(fuzz.seeds(name))
    damage = st.one_of(EDITS, EDITS, st.binary(max_size=64))
    assert accepted(200, read, seeds, damage) > 0.01
