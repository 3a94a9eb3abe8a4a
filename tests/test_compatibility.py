"""The page of compatibility holds: its tables are those of the code, and its blocks run as it says.

The blocks name published models. Here these are tiny, of random weights, so that each runs in
seconds; everything else is real.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tests.tiny import TINY

import rfdetr
from rfdetr import config, variants
from rfdetr.config import VARIANTS
from rfdetr.config.variants import RFDETRMiniConfig, RFDETRSegMiniConfig
from rfdetr.errors import InputError
from rfdetr.synthetic import generate
from rfdetr.training import RFDETRDataModule

SCRIPT = Path(__file__).parents[1] / "scripts" / "compatibility.py"
WARNING = re.compile("without effect")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compatibility", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compatibility = load_script()
PAGE = compatibility.PAGE.read_text()
BLOCKS = compatibility.blocks(PAGE)


def test_the_page_holds_what_the_script_prints() -> None:
    assert compatibility.generated(PAGE) == PAGE, "run scripts/compatibility.py --write"


def test_every_published_keyword_has_a_row() -> None:
    for call, keywords in compatibility.KEYWORDS.items():
        for keyword in keywords if call in compatibility.CALLS else ():
            assert f"\n| `{keyword}` | " in PAGE, (call, keyword)


def test_nine_of_ten_blocks_run() -> None:
    run = [block for block in BLOCKS if not block.verdict.startswith("does not")]
    assert len(BLOCKS) >= 30
    assert len(run) >= 0.9 * len(BLOCKS)
    assert len({block.name for block in BLOCKS}) == len(BLOCKS)


def tiny_variant(name: str, base: type[config.ModelConfig]) -> type[config.ModelConfig]:
    """A configuration of the variant's name with a tiny network's defaults."""
    fields = {key: (base.model_fields[key].annotation, value) for key, value in TINY.items()}
    kinds = {key: kind for key, (kind, _) in fields.items()}
    values = {key: value for key, (_, value) in fields.items()}
    made: type[config.ModelConfig] = type(
        f"{name}Config", (base,), {"__annotations__": kinds, "__module__": __name__, **values}
    )
    return made


@pytest.fixture
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published names stand for tiny models of random weights, which see each image once."""
    monkeypatch.setattr(RFDETRDataModule, "least_updates", 1)
    for short, name, base in (
        ("nano", "RFDETRNano", RFDETRMiniConfig),
        ("seg-nano", "RFDETRSegNano", RFDETRSegMiniConfig),
    ):
        made = tiny_variant(name, base)
        monkeypatch.setitem(VARIANTS, short, made)
        monkeypatch.setattr(config, f"{name}Config", made)
        monkeypatch.setattr(variants.RFDETR, "classes", dict(variants.RFDETR.classes))
        face = type(name, (getattr(variants, name),), {}, config=made)
        monkeypatch.setattr(rfdetr, name, face, raising=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page says the blocks find, but for the run."""
    folder = tmp_path_factory.mktemp("compatibility")
    kinds = ("heart", "house", "key")
    data = generate(folder / "dataset", 8, kinds, sides=(64, 96), distractors=())
    shutil.copy(next((data / "test").glob("*.jpg")), folder / "image.jpg")
    write_yolo(folder / "yolo-dataset", data)
    return folder


def write_yolo(folder: Path, coco: Path) -> None:
    """The first pictures of a COCO set, each with one box of the whole picture."""
    for split in ("train", "valid"):
        for part in ("images", "labels"):
            (folder / split / part).mkdir(parents=True)
        for path in sorted((coco / split).glob("*.jpg"))[:2]:
            shutil.copy(path, folder / split / "images")
            (folder / split / "labels" / f"{path.stem}.txt").write_text("0 0.5 0.5 1 1\n")
    (folder / "data.yaml").write_text("train: train/images\nval: valid/images\nnames: [cell]\n")


@pytest.fixture
def place(
    prepared: Path, tiny_models: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The working folder of a block; a finished run is made once."""
    monkeypatch.chdir(prepared)
    if not (prepared / "output").exists():
        settings = {"epochs": 1, "batch_size": 2, "grad_accum_steps": 1, "progress_bar": False}
        rfdetr.RFDETRNano().train(dataset_dir="dataset", num_workers=0, **settings)
    for path in prepared.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block,
            id=block.name,
            marks=pytest.mark.scheduled if block.name == "export to OpenVINO" else [],
        )
        for block in BLOCKS
    ],
)
def test_the_block_runs_as_the_page_says(block: compatibility.Block, place: Path) -> None:
    code = compile(block.code, f"{compatibility.PAGE.name}: {block.name}", "exec")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if block.verdict.startswith("does not"):
            with pytest.raises(InputError):
                exec(code, {"__name__": "__main__"})
        else:
            exec(code, {"__name__": "__main__"})
    told = [str(one.message) for one in caught if WARNING.search(str(one.message))]
    assert bool(told) == (block.verdict == "runs with a warning"), told
