"""Every snippet of README.md and docs/ runs, of Python and of a shell.

The snippets of a page run in its order, in one folder and one session, as a reader runs them; those
of the page of compatibility each in a fresh one. The folder holds labelled images (my_dataset, the
same as dataset; yolo-dataset), image.jpg, photos/, and for the pages of `AFTER_A_RUN` a finished
run in output. Models are tiny, of random weights, and an epoch is all they get; everything else is
real. A snippet that cannot run here stands under `<!-- not run: why -->`. What exports takes half a
minute each time: the quick run of a page leaves it out, the scheduled one does not.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.tiny import TINY

import rfdetr
from rfdetr import config, training, variants
from rfdetr.cli import main
from rfdetr.config import VARIANTS
from rfdetr.config.variants import RFDETRMiniConfig, RFDETRSegMiniConfig
from rfdetr.errors import InputError
from rfdetr.synthetic import generate
from rfdetr.training import RFDETRDataModule, build_trainer

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?:<!-- ([\w ]+): ([^\n]+?) -->\n)?```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
NOT_RUN = {
    "README.md": 1,
    "custom-training.md": 1,
    "export.md": 2,
    "first-hour.md": 1,
    "many-machines.md": 4,
    "predicting.md": 2,
    "report.md": 1,
    "serve.md": 3,
}
AFTER_A_RUN = {"compatibility.md", "export.md", "predicting.md", "report.md"}
LONG = {"augmentation.md", "many-machines.md", "training.md"}  # of several runs
EXPORTS = re.compile(r"export|inference_model|cd out")


class Snippet(NamedTuple):
    """What stands between two fences."""

    language: str
    code: str
    line: int
    why_not: str | None


class Part(NamedTuple):
    """What runs in one folder, and what a page says of it: "does not: ..." is an `InputError`."""

    page: str
    name: str
    verdict: str
    snippets: list[Snippet]


def snippets(text: str) -> list[Snippet]:
    found = []
    for match in FENCE.finditer(text):
        mark, why, language, code = match.groups()
        line = text.count("\n", 0, match.start(4))
        found.append(Snippet(language, code, line, why if mark == "not run" else None))
    return found


def parts() -> list[Part]:
    """The pages; one of blocks with verdicts is a part for each."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for part in re.split(r"^#### ", text, flags=re.MULTILINE)[1:] or [f"{page.stem}\n{text}"]:
            name, _, rest = part.partition("\n")
            if runnable := [s for s in snippets(rest) if s.language in ("python", "bash")]:
                found.append(Part(page.name, name, rest.strip().partition("\n")[0], runnable))
    return found


PARTS = parts()


def test_every_snippet_is_run_or_says_why_not() -> None:
    marked = {page.name: snippets(page.read_text(encoding="utf-8")) for page in PAGES}
    languages = {one.language for found in marked.values() for one in found}
    assert languages <= {"python", "bash", "text", "json", "yaml"}
    shell = re.compile(r"^(\$ |rfdetr |python |pip |cd )", re.MULTILINE)
    hidden = [one for found in marked.values() for one in found if one.language == "text"]
    assert [one.code for one in hidden if shell.search(one.code)] == []
    counts = {name: sum(one.why_not is not None for one in found) for name, found in marked.items()}
    assert {name: count for name, count in counts.items() if count} == NOT_RUN
    assert sum(len(part.snippets) for part in PARTS) > 80


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
    """Names of models stand for tiny ones of random weights, which see each image once, in the one
    epoch of any run.
    """
    monkeypatch.setattr(RFDETRDataModule, "least_updates", 1)
    monkeypatch.setattr(variants.RFDETR, "classes", dict(variants.RFDETR.classes))

    def short(*args: Any, **kwargs: Any) -> Any:
        return build_trainer(*args, **{"max_epochs": 1, **kwargs})

    monkeypatch.setattr(training, "build_trainer", short, raising=False)
    for short, name, base in (
        ("mini", "RFDETRMini", RFDETRMiniConfig),
        ("nano", "RFDETRNano", RFDETRMiniConfig),
        ("seg-nano", "RFDETRSegNano", RFDETRSegMiniConfig),
    ):
        made = tiny_variant(name, base)
        monkeypatch.setitem(VARIANTS, short, made)
        monkeypatch.setattr(config, f"{name}Config", made)
        face = type(name, (getattr(variants, name),), {}, config=made)
        monkeypatch.setattr(rfdetr, name, face, raising=False)
        monkeypatch.setitem(variants.FACES, short, face)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What snippets find."""
    folder = tmp_path_factory.mktemp("snippets")
    kinds = ("heart", "house", "key")
    data = generate(folder / "dataset", 8, kinds, sides=(64, 96), distractors=())
    shutil.copytree(data, folder / "my_dataset")
    (folder / "photos").mkdir()
    for name in ("image.jpg", "photos/harbour.jpg"):
        shutil.copy(next((data / "test").glob("*.jpg")), folder / name)
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
) -> Path:
    """The working folder of a part. A finished run is made once."""
    monkeypatch.chdir(prepared)
    if not (prepared / "output").exists():
        settings = {"epochs": 1, "batch_size": 2, "grad_accum_steps": 1, "progress_bar": False}
        rfdetr.RFDETRNano().train(dataset_dir="dataset", num_workers=0, **settings)
        shutil.copy("output/checkpoint_best_total.pth", "old_checkpoint.pth")
    for path in prepared.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RFDETR_HOME", str(tmp_path / "cache"))
    return tmp_path


def run(snippet: Snippet, names: dict[str, Any], leave_out: re.Pattern[str]) -> None:
    """Python in the session's `names`; of a shell, our own command in this process."""
    if snippet.language == "python":
        if not leave_out.search(snippet.code):
            exec(compile("\n" * snippet.line + snippet.code, "the page", "exec"), names)
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in snippet.code.replace("\\\n", "").splitlines():
        command, *arguments = shlex.split(line, comments=True) or [""]
        if not command or leave_out.search(line):
            continue
        if command == "cd":
            os.chdir(arguments[0])
            sys.path.insert(0, str(Path.cwd()))  # as Python does where it is started
        elif command == "rfdetr":
            assert main(arguments) == 0, f"line {snippet.line}: {line}"
        else:
            subprocess.run(line, shell=True, check=True, env={**os.environ, "PATH": path})


def cases() -> Iterator[Any]:
    """The parts, without what exports and with it."""
    for part in PARTS:
        codes = [snippet.code for snippet in part.snippets if snippet.why_not is None]
        if not all(map(EXPORTS.search, codes)):
            marks = [pytest.mark.scheduled] * (part.page in LONG)
            yield pytest.param(part, EXPORTS, id=part.name, marks=marks)
        if any(map(EXPORTS.search, codes)):
            name = f"{part.name}, with exports"
            yield pytest.param(part, re.compile(r"\A\Z"), id=name, marks=pytest.mark.scheduled)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "leave_out"), list(cases()))
def test_the_page_runs_as_it_stands(
    part: Part, leave_out: re.Pattern[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part.page not in AFTER_A_RUN:
        shutil.rmtree(place / "output")
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, Any] = {"__name__": "__main__"}
    refused = pytest.raises(InputError) if part.verdict.startswith("does not") else nullcontext()
    with warnings.catch_warnings(record=True) as caught, refused:
        warnings.simplefilter("always")
        for snippet in part.snippets:
            if snippet.why_not is None:
                run(snippet, names, leave_out)
    told = [str(one.message) for one in caught if "without effect" in str(one.message)]
    assert bool(told) == (part.verdict == "runs with a warning"), told
