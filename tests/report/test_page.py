"""The page in a browser: every control is used, wide and narrow, light and dark; nothing goes wrong
and nothing is asked of the network.

Needs playwright's Python package and a Chromium (RFDETR_CHROMIUM, or `chromium` on the path).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report.conftest import found_in, judged, with_rows

from rfdetr.data.index import DatasetIndex
from rfdetr.report.build import Facts
from rfdetr.report.write import write_report

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
HISTORY = [
    {"epoch": e, "seconds": 2.0, "train/loss": 5 - e, "val/mAP_50_95": e / 9, "val/F1": e / 8}
    for e in range(4)
]
VIEWS = {"wide": (1280, 900, "light"), "narrow": (390, 844, "dark")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("RFDETR_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: install one, or name it in RFDETR_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def folder(index: DatasetIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with errors of every kind and hints of every kind."""
    folder = tmp_path_factory.mktemp("page")
    rows = np.arange(4, len(index.labels))
    labels, boxes = index.labels[rows].copy(), index.boxes[rows].copy()
    labels[:8] = (labels[:8] + 1) % 3
    boxes[20:26, 0] += 0.5 * (boxes[20:26, 2] - boxes[20:26, 0])
    boxes[40] = (0, 20, 7, 30)
    faulty = with_rows(index, rows, labels=labels, boxes=boxes)
    split = judged(faulty, found_in(index))
    facts = Facts("mini", "best.pth", 64, "data/tiny", {"kind": "ema", "epoch": 3}, HISTORY)
    write_report(folder, {"valid": split.metrics}, {"valid": faulty}, facts)
    return folder


@pytest.fixture(params=VIEWS)
def page(browser: Any, folder: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, height, scheme = VIEWS[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme,
        permissions=["clipboard-read", "clipboard-write"],
    )  # fmt: skip
    page, faults, asked = context.new_page(), [], []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{folder}/report.html")
    yield page
    assert faults == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
    context.close()


def test_the_page_is_no_wider_than_the_window_and_its_pictures_show(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for number, button in enumerate(page.query_selector_all(".matrix button")):
        button.click()
        assert page.locator(".cell-pictures:visible").count() == 1
        if number == 0:
            button.click()
            assert page.locator(".cell-pictures:visible").count() == 0
    shown = "[...document.images].filter((i) => i.offsetParent).every((i) => i.naturalWidth > 0)"
    page.wait_for_function(shown)


def test_a_click_on_a_column_sorts_by_it(page: Any) -> None:
    cells = "#classes tbody tr td:nth-child(2)"
    for order in ("descending", "ascending"):
        page.click("#classes thead th:nth-child(2) button")
        values = [float(text) for text in page.locator(cells).all_text_contents()]
        assert values == sorted(values, reverse=order == "descending")
        assert page.get_attribute("#classes thead th:nth-child(2)", "aria-sort") == order


def test_thresholds_are_tried_and_copied(page: Any, folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    sweep, total = report["sweep"], "#threshold-total td.num"

    def expected(at: int) -> str:
        right = sum(row[at] for row in sweep["right"])
        return f"{right / (right + sum(row[at] for row in sweep['wrong'])):.1%}"

    def told() -> dict[str, float]:
        return json.loads(page.input_value("#threshold-json"))

    at = round(100 * report["threshold"])
    assert page.locator(total).first.text_content() == expected(at)
    page.focus("#threshold-all")
    page.keyboard.press("Home")
    assert set(told().values()) == {0.01} and page.locator(total).first.text_content() == expected(
        1
    )
    page.click("#use-own")
    own, names = told(), [row["name"] for row in report["classes"]]
    f1 = [
        [2 * r / max(r + w + objects, 1) for r, w in zip(right, wrong, strict=True)]
        for right, wrong, objects in zip(
            *(sweep[k] for k in ("right", "wrong", "objects")), strict=True
        )
    ]
    for name, curve in zip(names, f1, strict=True):
        assert curve[round(100 * own[name])] == pytest.approx(max(curve[1:]))
    page.focus("#threshold-0 input")
    page.keyboard.press("ArrowRight")
    assert told()[names[0]] == pytest.approx(own[names[0]] + 0.01)
    page.click("#use-common")
    assert len(set(told().values())) == 1
    page.click("#use-recommended")
    assert set(told().values()) == {report["threshold"]}
    page.click("#copy")
    page.wait_for_function("document.getElementById('copied').textContent === 'Copied.'")
    assert json.loads(page.evaluate("navigator.clipboard.readText()")) == told()


def test_controls_work_on_a_split_without_labels(
    browser: Any, index: DatasetIndex, tmp_path: Path
) -> None:
    bare = with_rows(index, np.arange(0))
    split = judged(bare, found_in(index))
    facts = Facts("mini", "best.pth", 64, "data/tiny", {"kind": "ema", "epoch": 3}, HISTORY[:1])
    write_report(tmp_path, {"valid": split.metrics}, {"valid": bare}, facts)
    page, faults = browser.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"file://{tmp_path}/report.html")
    for name in ("recommended", "common", "own"):
        page.click(f"#use-{name}")
    assert set(json.loads(page.input_value("#threshold-json")).values()) == {0.5}
    assert "no labels to choose it by" in page.inner_text("#thresholds")
    assert "1 epoch in" in page.inner_text("#curves")
    page.close()
    assert faults == []


@pytest.mark.parametrize("group", ["worst", "hints"])
def test_filters_show_their_kind_alone(page: Any, group: str) -> None:
    for chip in page.query_selector_all(f"#{group} .chips button"):
        chip.click()
        kind = chip.get_attribute("data-kind")
        shown = page.locator(f"#{group} .item:visible")
        assert page.text_content(f"#{group} .count") == f"{shown.count()} shown"
        kinds = [shown.nth(i).get_attribute("data-kinds").split("|") for i in range(shown.count())]
        assert all(kind in own for own in kinds) if kind else len(kinds) > 0
        assert chip.get_attribute("aria-pressed") == "true"


def test_links_of_what_to_do_filter_and_boxes_can_be_hidden(page: Any) -> None:
    link = page.locator("a[data-filter]").first
    kind = link.get_attribute("data-filter")
    link.click()
    assert page.get_attribute(f"#worst [data-kind='{kind}']", "aria-pressed") == "true"
    for name in ("label", "found"):
        boxes = page.locator(f"#hints .picture rect.{name}")
        assert boxes.first.is_visible()
        page.locator(f"#hints [data-boxes={name}]").uncheck()
        assert not boxes.first.is_visible()
        assert not page.locator(f"#worst [data-boxes={name}]").is_checked()
        page.locator(f"#hints [data-boxes={name}]").check()


def test_text_stands_out_from_its_ground(page: Any) -> None:
    """Contrast of 4.5 and more, as WCAG asks of text."""
    ratio = """
    (selector) => {
      const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = (text) => {
        const [r, g, b] = rgb(text).slice(0, 3).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const item = document.querySelector(selector);
      let ground = item;
      while (rgb(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
      const a = light(getComputedStyle(item).color);
      const b = light(getComputedStyle(ground).backgroundColor);
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }"""
    for selector in ("p", ".note", ".gain", "nav a", ".tile span", "button.main", ".legend .l",
                     ".legend .f", ".chips [aria-pressed=true]", "figcaption"):  # fmt: skip
        assert page.evaluate(ratio, selector) >= 4.5, selector
