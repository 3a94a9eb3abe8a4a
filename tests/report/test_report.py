"""The report of a run: its files, its figures, and the page that holds them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.report.conftest import found_in, judged
from tests.tiny import TINY

from rfdetr import RFDETRMini, RFDETRSegMini
from rfdetr.cli import main
from rfdetr.data.index import DatasetIndex
from rfdetr.report import FILES
from rfdetr.report.build import Facts, build
from rfdetr.report.page import render
from rfdetr.report.svg import nice_ticks
from rfdetr.report.write import write_report
from rfdetr.synthetic.generate import generate

SHOWN = ("verdict", "next", "curves", "classes", "thresholds", "confusion", "worst", "hints",
         "calibration", "recall", "drift", "reproduce")  # fmt: skip


@pytest.fixture(scope="module")
def run(write_coco: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of boxes."""
    folder = tmp_path_factory.mktemp("run")
    data = write_coco(folder / "data", {"train": 12, "valid": 8, "test": 8})
    RFDETRMini(**TINY).train(
        dataset_dir=data, output_dir=folder / "run", epochs=2, num_workers=0, progress_bar=None
    )
    return folder / "run"


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


class Page(HTMLParser):
    """What a page asks for, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        void = {"meta", "link", "input", "img", "br"}
        if tag not in void and tag not in ("rect", "line", "circle", "polyline"):
            self.open.append(tag)
        if tag == "img":
            assert told["alt"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line", "circle", "polyline"):
            assert self.open.pop() == tag


def test_a_run_leaves_its_report_with_the_figures_of_results_json(run: Path) -> None:
    assert all((run / name).is_file() for name in FILES)
    pace = read(run, "report.json")["pace"]
    assert all(forecast > 0 and taken > 0 for forecast, taken in pace.values())
    assert "Forecast and what was taken" in (run / "report.html").read_text()
    assert read(run, "report.json")["splits"] == read(run, "results.json")["splits"]
    text = (run / "report.html").read_text()
    assert len(text) < 6_000_000
    page = Page(text)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert set(SHOWN) <= set(page.ids)
    assert all(source.startswith(("#", "data:")) for source in page.sources)  # no network
    figure = read(run, "results.json")["splits"]["test"]["overall"]["mAP_50_95"]
    assert f">{figure:.3f}<" in text


def test_the_command_makes_it_anew_and_keeps_what_its_user_marked(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(run, "report.json")
    hints = read(run, "label_hints.json")
    for hint in hints["hints"][:1]:
        hint["apply"] = True
    (run / "label_hints.json").write_text(json.dumps(hints))
    assert main(["report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    after = read(run, "report.json")
    assert after["splits"] == before["splits"] == read(run, "results.json")["splits"]
    assert after["best"] == before["best"] and after["threshold"] == before["threshold"]
    marked = [hint["apply"] for hint in read(run, "label_hints.json")["hints"]]
    assert sum(marked) == min(len(marked), 1)


def test_a_folder_without_a_finished_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no results.json, config.yaml, checkpoint_best_total.pth" in capsys.readouterr().err


def test_an_evaluation_leaves_a_report_where_nothing_is_overwritten(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, data = run / "checkpoint_best_total.pth", run.parent / "data"
    command = ["evaluate", str(checkpoint), str(data), "--out", str(tmp_path / "new")]
    assert main(command) == 0
    assert (
        read(tmp_path / "new", "report.json")["splits"]
        == (read(tmp_path / "new", "results.json")["splits"])
    )
    assert main(command) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_what_fails_in_a_report_loses_no_run(
    write_coco: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_coco(tmp_path / "data", {"train": 4, "valid": 3})
    out = tmp_path / "run"
    (out / "report.html").mkdir(parents=True)  # where no file can be
    RFDETRMini(**TINY).train(
        dataset_dir=data, output_dir=out, epochs=1, num_workers=0, progress_bar=None,
        overwrite=True,
    )  # fmt: skip
    assert "report.html could not be written" in caplog.text
    assert (out / "results.json").is_file() and (out / "checkpoint_best_total.pth").is_file()


@pytest.mark.scheduled
def test_masks_are_judged_and_drawn(tmp_path: Path) -> None:
    data, out = generate(tmp_path / "data", 20), tmp_path / "run"
    RFDETRSegMini().train(
        dataset_dir=data, output_dir=out, epochs=1, num_workers=0, progress_bar=None
    )
    report = read(out, "report.json")
    assert report["masks"] and report["splits"] == read(out, "results.json")["splits"]
    assert "AP of masks" in (out / "report.html").read_text()


def test_names_are_text_and_no_markup(index: DatasetIndex, tmp_path: Path) -> None:
    bad = ("</script><b>", 'a"quote', "<img src=x>")
    named = type(index)(**{**vars(index), "class_names": bad})
    split = judged(named, found_in(index))
    data, album = build({"valid": split.metrics}, {"valid": named}, Facts("m", "w", 64, "d"))
    text = render(data, album.files)
    page = Page(text)
    assert page.open == [] and "<img src=x" not in text and "</script><b>" not in text
    script = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert script and json.loads(script[1])["names"] == list(bad)


def test_pictures_are_few_small_and_say_what_they_show(index: DatasetIndex, tmp_path: Path) -> None:
    split = judged(index, found_in(index))
    data, album = build({"valid": split.metrics}, {"valid": index}, Facts("m", "w", 64, "d"))
    assert 0 < len(album.files) <= 120
    for number, record in enumerate(data["pictures"]):
        assert album.files[number][8:12] == b"WEBP" and max(record["size"]) <= 480
        width, height = record["size"]
        for box in record["boxes"]:
            left, top, right, bottom = box["box"]
            assert left < width and top < height and right > 0 and bottom > 0
    write_report(tmp_path, {"valid": split.metrics}, {"valid": index}, Facts("m", "w", 64, "d"))
    assert read(tmp_path, "report.json") == json.loads(json.dumps(data))


@pytest.mark.parametrize(
    ("most", "ticks"),
    [(0.34, [0, 0.1, 0.2, 0.3, 0.4]), (9.2, [0, 2, 4, 6, 8, 10]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1])],
)
def test_ticks_are_round(most: float, ticks: list[float]) -> None:
    assert nice_ticks(most) == pytest.approx(ticks)
