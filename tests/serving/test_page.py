"""The page in a browser, wide and narrow, light and dark: every control is used, nothing goes
wrong, and no other server is asked.

Needs playwright's Python package and a Chromium (RFDETR_CHROMIUM, or `chromium` on the path).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.report.test_page import VIEWS, browser  # noqa: F401 - a fixture
from tests.serving.conftest import Live, picture

from rfdetr import RFDETR
from rfdetr.geometry.rle import run_lengths

pytestmark = pytest.mark.slow
DROP = """
([type, text]) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], "given.png", { type: "image/png" }));
  const how = { bubbles: true, cancelable: true };
  const event = type === "paste" ? new ClipboardEvent(type, { ...how, clipboardData: data })
    : new DragEvent(type, { ...how, dataTransfer: data });
  document.body.dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def detector(detector: RFDETR) -> RFDETR:
    """Scores of a random model are about 0.1: raised, so that some lie above the page's lowest."""
    with torch.no_grad():
        detector.model.model.class_head.bias += 2.0
    return detector


@pytest.fixture(params=VIEWS)
def page(browser: Any, server: Live, request: pytest.FixtureRequest) -> Iterator[Any]:  # noqa: F811
    width, height, scheme = VIEWS[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True,
        has_touch=request.param == "narrow",
    )  # fmt: skip
    page, faults, asked = context.new_page(), [], []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.asked, page.faults = asked, faults
    page.goto(str(server.client.base_url))
    page.locator("#about", has_text="3 classes").wait_for()
    yield page
    assert faults == []
    own = (str(server.client.base_url), "blob:", "data:")
    assert all(url.startswith(own) for url in asked)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


def show(page: Any, content: bytes) -> None:
    image = {"name": "some.png", "mimeType": "image/png", "buffer": content}
    page.set_input_files("#choose", image)
    page.wait_for_selector("#result:visible")


def rows(page: Any) -> int:
    return page.locator("#objects tr").count()


def pixels(page: Any) -> str:
    return page.evaluate("document.getElementById('canvas').toDataURL()")


def test_every_control_does_its_own(page: Any, server: Live) -> None:
    content = picture(3, size=(120, 160))
    show(page, content)
    params = {"threshold": 0.05, "masks": True}
    kind = {"content-type": "image/png"}
    answer = server.client.post("/predict", content=content, params=params, headers=kind).json()
    scores = [found["confidence"] for found in answer["detections"]]
    assert len(scores) > 2
    asked = len(page.asked)
    page.focus("#threshold")
    page.keyboard.press("Home")
    assert rows(page) == len(scores)
    middle = sorted(scores)[len(scores) // 2]
    steps = round(100 * middle) - 5
    for _ in range(steps):
        page.keyboard.press("ArrowRight")
    least = float(page.text_content("#threshold-value"))
    assert least == pytest.approx(0.05 + steps / 100)
    above = [score for score in scores if score >= least]
    assert rows(page) == len(above) < len(scores)
    assert page.text_content("#status") == f"{len(above)} object{'s' * (len(above) != 1)}"
    page.keyboard.press("Home")

    with_masks = pixels(page)
    page.uncheck("#masks")
    assert pixels(page) != with_masks
    page.uncheck("#names")
    plain = pixels(page)
    page.locator("#objects button").first.focus()
    page.keyboard.press("Enter")
    assert page.get_attribute("#objects button >> nth=0", "aria-pressed") == "true"
    assert pixels(page) != plain

    page.click("#none")
    assert rows(page) == 0 and page.is_visible("#nothing")
    page.locator("#classes input").first.check()
    name = page.locator("#objects button").first.text_content()
    with page.expect_download() as started:
        page.click("#download")
    saved = json.loads(started.value.path().read_text())
    assert started.value.suggested_filename == "some.json"
    own = [found for found in answer["detections"] if found["class_name"] == name]
    assert saved["detections"] == own and saved["threshold"] == 0.05
    page.click("#all")
    assert rows(page) == len(scores)
    assert len(page.asked) == asked  # one answer was enough
    label = page.get_attribute("#canvas", "aria-label")
    assert label.startswith(f"The image with {len(scores)} objects: ")


def test_a_mask_is_where_it_belongs(page: Any, server: Live) -> None:
    """The browser's run lengths, and the pixels it fills, are those of the answer."""
    show(page, picture(3, size=(120, 160)))
    page.fill("#threshold", "0.05")
    for number in range(min(3, rows(page))):
        found = page.evaluate(f"(({{ runs, ...found }}) => [runs, found])(shown()[{number}])")
        runs, told = found
        assert runs == run_lengths(told["mask_rle"]["counts"].encode()).tolist()
        filled = page.evaluate(
            "(n) => { const layer = new ImageData(160, 120); fill(layer, shown()[n], 1, 1);"
            " return new Uint32Array(layer.data.buffer).reduce((a, b) => a + b, 0); }",
            number,
        )
        assert filled == sum(runs[1::2])


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_may_be_dropped_and_pasted(page: Any, way: str) -> None:
    page.evaluate(DROP, [way, base64.b64encode(picture()).decode()])
    page.wait_for_selector("#result:visible")
    assert page.text_content("#caption").startswith("given.png, 80 × 60 pixels, answered in ")


def test_what_goes_wrong_is_told(page: Any) -> None:
    page.set_input_files(
        "#choose", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"}
    )
    page.wait_for_selector("#fault:visible")
    assert "no known image format" in page.text_content("#fault")
    assert all("415" in fault for fault in page.faults)  # Chromium's own line
    page.faults.clear()
    big = {"name": "big.png", "mimeType": "image/png", "buffer": b"x" * (5 * 2**20)}
    page.set_input_files("#choose", big)
    page.locator("#fault", has_text="5.0 MiB").wait_for()
    show(page, picture())
    assert not page.is_visible("#fault")
    assert page.is_visible("#photograph") == page.evaluate("innerWidth < 500")


def test_controls_have_names_and_can_be_reached_by_keys(page: Any) -> None:
    show(page, picture(3, size=(120, 160)))
    page.fill("#threshold", "0.05")
    nameless = """
    [...document.querySelectorAll("input, button, canvas, [role=region]")].filter((item) =>
      item.offsetParent && !(item.labels?.length && item.labels[0].textContent.trim())
      && !item.getAttribute("aria-label") && !item.textContent.trim()).map((item) => item.id)"""
    assert page.evaluate(nameless) == []
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"choose", "threshold", "all", "none", "names", "masks", "download", "A"} <= reached
