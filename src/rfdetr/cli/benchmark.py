"""`rfdetr benchmark`: what a checkpoint costs in each engine and precision, in one table."""

from __future__ import annotations

import copy
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rfdetr.checks import check_count, nearest
from rfdetr.cli.options import Checkpoint, Dataset, DatasetFile, Device, one_line
from rfdetr.errors import InputError, MissingPackageError, RunError

if TYPE_CHECKING:
    from rich.table import Table

    from rfdetr.detector import RFDETR
    from rfdetr.proof.benchmark import Candidate

DTYPES = "float32", "bfloat16", "int8"
ENGINES = {"torch": DTYPES[:2], "onnx": DTYPES[:1], "openvino": DTYPES}
_TIMES = "predict_ms", "engine_ms"
_FACTS = "batch", "queries", "layers"
_FIGURES = {"mAP_50_95": "mAP\n50:95", "segm_mAP_50_95": "mask mAP\n50:95"}


def benchmark(  # noqa: PLR0913 - each is an option of the command
    checkpoint: Checkpoint,
    dataset: Annotated[Path | None, Dataset] = None,
    /,
    *,
    engines: str = "torch,onnx,openvino",
    dtypes: str | None = None,
    batch: str = "1",
    queries: str | None = None,
    layers: str | None = None,
    resolution: str | None = None,
    dataset_file: DatasetFile = "roboflow",
    images: int | None = 100,
    turns: int = 5,
    device: Device = None,
    out: Path | None = None,
) -> None:
    """Measure a checkpoint in every engine and precision: latency, memory, file size and, with a
    dataset, mAP.

    Args:
        engines: What runs the network: torch,onnx,openvino.
        dtypes: Precisions: float32,bfloat16,int8 (whose export takes minutes, and images: the
            dataset's, else the run's). By default each engine's own.
        batch: Images at a time: 1,8.
        queries: Fewer queries than the file's, in rows of their own: 300,200,100.
        layers: Fewer decoder layers than the file's: 3,2.
        resolution: Side of the network's input in pixels, or height and width (320x480), in place
            of the file's.
        images: Of the dataset's valid split, for mAP.
        turns: Of each row, five calls a turn.
        out: JSON file for the same figures, and the machine's.
    """
    from rfdetr.console import with_progress
    from rfdetr.files import atomic_write
    from rfdetr.proof.agreement import Labelled
    from rfdetr.proof.benchmark import measure
    from rfdetr.proof.measuring import machine, versions

    if out is not None and out.exists():
        raise InputError(f"{out} exists: nothing is overwritten, choose another --out")
    sizes = _numbers("--batch", batch)
    check_count("--turns", turns)
    pairs = _engines(engines, dtypes, calibrated=dataset is not None)
    changes = {"device": device, "resolution": resolution}
    models = _models(checkpoint, changes, queries, layers)
    first = next(iter(models.values()))
    labelled = None
    if dataset is not None:
        masks = first.model_config.segmentation_head
        how: dict[str, Any] = {"dataset_file": dataset_file, "classes": first.trained_classes}
        labelled = Labelled.open(dataset, images, masks=masks, **how)
    content: dict[str, Any] = {"schema": 1, "checkpoint": checkpoint}
    content |= {"data": None if labelled is None else labelled.facts()}
    with tempfile.TemporaryDirectory() as folder:
        grid = list(product(models.values(), pairs))
        candidates = [
            _candidate(checkpoint, model, *pair, dataset, Path(folder, str(number)))
            for number, (model, pair) in enumerate(with_progress(grid, "Exporting", len(grid)))
        ]
        paths = [_noise(Path(folder, "noise.png"))] if labelled is None else labelled.paths()
        content["rows"] = measure(candidates, sizes, paths, labelled, turns)
    content |= {"machine": machine(first.model.device), "versions": versions()}
    _show(content)
    if all("reason" in row for row in content["rows"]):
        raise RunError("nothing could be measured")
    if out is not None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        atomic_write(out, lambda stream: stream.write(text.encode()))
        print(out)


def _engines(engines: str, dtypes: str | None, *, calibrated: bool) -> list[tuple[str, str]]:
    """Engines and their precisions; all that an engine has unless `dtypes` says which, int8 only
    where there are images to calibrate it with.
    """
    for name, text, known in (("--engines", engines, ENGINES), ("--dtypes", dtypes or "", DTYPES)):
        for one in filter(None, text.split(",")):
            if one not in known:
                near = nearest(one, known)
                hint = f"; did you mean {near!r}?" if near else ""
                raise InputError(f"{name} {one}{hint}: expected some of {','.join(known)}")
    if dtypes:
        return [*product(engines.split(","), dtypes.split(","))]
    own = ((engine, dtype) for engine in engines.split(",") for dtype in ENGINES[engine])
    return [(engine, dtype) for engine, dtype in own if dtype != "int8" or calibrated]


def _numbers(name: str, text: str | None) -> list[int]:
    """The numbers of "300,200"; none of None."""
    try:
        return [check_count(name, int(part)) for part in text.split(",")] if text else []
    except ValueError as error:
        raise InputError(f"{name} is {text!r}: expected whole numbers, such as 8 or 1,8") from error


def _models(
    checkpoint: str, changes: dict[str, Any], queries: str | None, layers: str | None
) -> dict[tuple[int, int], RFDETR]:
    """The checkpoint's model with each number of queries and decoder layers, by these two."""
    from rfdetr.variants import RFDETR

    changes = {name: value for name, value in changes.items() if value is not None}
    own = RFDETR.from_checkpoint(checkpoint, **changes)
    config = own.model_config
    counts = {"queries": config.num_queries, "layers": config.dec_layers}
    wanted = [
        _numbers(f"--{name}", text) or [counts[name]]
        for name, text in (("queries", queries), ("layers", layers))
    ]
    models = {}
    for pair in product(wanted[0], wanted[1]):
        for (name, most), count in zip(counts.items(), pair, strict=True):
            if count > most:
                raise InputError(f"--{name} {count}: {checkpoint} has {most}, and no more")
        select = min(config.num_select, pair[0] * (config.num_classes + 1))
        settings: dict[str, Any] = {
            "num_queries": pair[0],
            "dec_layers": pair[1],
            "num_select": select,
        }
        is_own = pair == tuple(counts.values())
        models[pair] = own if is_own else RFDETR.from_checkpoint(checkpoint, **changes, **settings)
    return models


def _candidate(
    checkpoint: str, model: RFDETR, engine: str, dtype: str, dataset: Path | None, place: Path
) -> Candidate:
    """The model in an engine and a precision; exported into the folder `place`, if not torch."""
    from rfdetr.proof.benchmark import Candidate
    from rfdetr.proof.measuring import Loading
    from rfdetr.weights.load import resolve_weights

    config = model.model_config
    facts: dict[str, Any] = {"engine": engine, "dtype": dtype}
    facts |= {"queries": config.num_queries, "layers": config.dec_layers}
    try:
        if engine == "torch":
            fields = ("num_queries", "dec_layers", "num_select", "resolution", "device")
            settings = {name: getattr(config, name) for name in fields}
            optimize: dict[str, Any] = (
                {} if dtype == "float32" else {"dtype": dtype, "compile": False}
            )
            model = copy.deepcopy(model)
            if optimize:
                model.optimize_for_inference(**optimize)
            loading = Loading(resolve_weights(checkpoint), False, settings, optimize)
            return Candidate(facts, model.model, loading)
        settings = {"calibration_data": dataset} if dtype == "int8" else {}
        path: Any = model.export(place, format=engine, dtype=dtype, verify=False, **settings)
        return Candidate(facts, model.from_export(path).model, Loading(path, True))
    except (InputError, MissingPackageError) as error:
        return Candidate(facts, reason=one_line(error))


def _noise(path: Path) -> Path:
    """A picture of 640 x 480 pixels, where there is no dataset."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _show(content: dict[str, Any]) -> None:
    """Prints the table of what was measured, and why the rest was not."""
    from rich.console import Console

    rows = [row for row in content["rows"] if "reason" not in row]
    if rows:
        title = f"{content['checkpoint']} on {content['machine']['processor']}"
        Console().print(_table(rows, title))
    others = (row for row in content["rows"] if "reason" in row)
    reasons = (f"{row['engine']} {row['dtype']}: {row['reason']}" for row in others)
    for reason in dict.fromkeys(reasons):  # each once, however many queries and layers
        print(f"not measured: {reason}")


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    """A line a row; what all have alike is left out, for 80 columns. The JSON has everything."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    how: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    table = Table(title=title, title_justify="left", **how)
    facts = [name for name in _FACTS if len({row[name] for row in rows}) > 1]
    figures = [name for name in _FIGURES if any(name in row for row in rows)]
    for name in ("engine", "dtype"):
        table.add_column(name)
    headings = ["predict\nms", "95 %", "engine\nms", "images\n/s", "RAM\nMiB"]
    headings += ["file\nMiB", *(_FIGURES[name] for name in figures)]
    for name in [*facts, *headings]:
        table.add_column(name, justify="right")
    for row in rows:
        predict, engine = (row[name] for name in _TIMES)
        times = [f"{x:.1f}" for x in (predict["median"], predict["p95"], engine["median"])]
        cells = [row[name] for name in ("engine", "dtype", *facts)] + times
        peak = row["memory_mib"]
        cells += [f"{row['images_per_second']:.1f}", "-" if isinstance(peak, str) else round(peak)]
        cells += [f"{row['file_bytes'] / 2**20:.1f}"]
        cells += [f"{row[name]:.4f}" for name in figures]
        table.add_row(*map(str, cells))
    return table
