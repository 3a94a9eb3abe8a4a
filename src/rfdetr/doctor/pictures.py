"""The findings of a check as one HTML file: what each is about is shown, with its box marked."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from rfdetr.data.box_checks import as_written
from rfdetr.data.findings import RULES, Finding
from rfdetr.data.images import ImageError, decode_image
from rfdetr.data.packs import PackedFile
from rfdetr.doctor.check import Report
from rfdetr.errors import InputError
from rfdetr.files import atomic_write

PER_RULE, MOST_PICTURES, MOST_BYTES = 12, 160, 5_000_000
"""Pictures of a rule and in all, and bytes of all of them."""
MOST_LISTED = 200  # findings of a rule that are listed at all
SIDE = 320
Box: TypeAlias = Sequence[float]
"""x1 y1 x2 y2 in pixels of the upright image, perhaps outside of it."""

_TWIN = re.compile(r"(?:the same pixels as )?(train|valid|test)'s (.+?)(?: is nearly the same)?")
_TINY = re.compile(r"([\d.]+)x([\d.]+) pixels at (\d+)")
_COLOURS = {"error": "#c62828", "warning": "#b26a00", "info": "#1565c0"}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1080px;
  padding: 0 1em }}
h1 {{ font-size: 1.4em }} h2 {{ font-size: 1.1em; margin: 2em 0 .2em }} p {{ margin: .2em 0 .8em }}
h2 span {{ color: #fff; border-radius: 4px; padding: 1px 7px; font-size: .8em; margin-right: .5em }}
.cards {{ display: flex; flex-wrap: wrap; gap: 14px }}
figure {{ margin: 0; width: {side}px; max-width: 100% }}
img {{ width: 100%; border: 1px solid #8886; border-radius: 4px; display: block }}
figcaption, li {{ font-size: .82em; overflow-wrap: anywhere }} .dim {{ opacity: .7 }}
table {{ border-collapse: collapse }} td {{ padding: 1px 12px 1px 0 }} td.n {{ text-align: right }}
</style>
<h1>{title}</h1>
{body}
</html>
"""
_CARD = '<figure><img src="{image}" loading="lazy" alt=""><figcaption>{text}</figure>'


class Shown(NamedTuple):
    """A picture to show: a file, what is marked in it, and another file beside it."""

    path: Path | PackedFile
    boxes: Sequence[Box] = ()
    twin: Path | PackedFile | None = None


def write_pictures(report: Report, path: Path) -> None:
    """Writes every finding of `report` into one new HTML file that needs no other; of many, the
    first ones have a picture, and the counts of the rest are told.

    Raises `InputError` where `path` exists.
    """
    if path.exists():
        raise InputError(f"{path} exists, and nothing is overwritten: name another file")
    finder, room, pictures = Finder(report), MOST_BYTES, 0
    sections = []
    for rule in filter(report.findings.counts.__getitem__, RULES):
        found = report.of(rule)
        cards: list[str] = []
        for finding in found:
            if len(cards) == PER_RULE or pictures == MOST_PICTURES or room <= 0:
                break
            if (shown := finder.find(finding)) and (image := picture(shown)):
                cards.append(_CARD.format(image=image, text=_text(finding)))
                pictures, room = pictures + 1, room - len(image)
        sections.append(_section(report, rule, found, cards))
    counts = "".join(
        f'<tr><td><a href="#{rule}">{rule}</a><td class="n">{report.findings.counts[rule]:,}'
        f"<td>{report.findings.severity(rule)}"
        for rule in filter(report.findings.counts.__getitem__, RULES)
    )
    images = ", ".join(f"{len(index):,} {split}" for split, index in report.indexes.items())
    nothing = "" if sections else "<p>Nothing to remark.</p>"
    body = f"<p>{images or 'no'} images; {pictures} pictures of findings are in this file.</p>"
    body += f"<table>{counts}</table>{nothing}{''.join(sections)}"
    title = f"Check of {escape(str(report.dataset))}"
    text = _PAGE.format(title=title, side=SIDE, body=body)
    atomic_write(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))


class Finder:
    """Finds the image and the boxes that a finding is about, in what the check has read."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._images: dict[tuple[str, str], tuple[str, int]] = {}  # by source and name of the file
        self._files: dict[str, tuple[str, int]] = {}  # by label file
        self._rows: dict[tuple[str, int, int], int] = {}  # by split, image (YOLO) or -1, and place
        for split, records in report.records.items():
            for image, name in enumerate(records.names):
                for known in {name, Path(name).name}:
                    self._images.setdefault((str(records.source), known), (split, image))
                    self._images.setdefault((split, known), (split, image))
            files = Counter(records.label_files)
            for image, file in enumerate(records.label_files or []):
                if files[file] > 1:  # of all images (CVAT, Label Studio)
                    continue
                self._files[str(file)] = split, image
            places = records.boxes[["image", "place"]].tolist()
            yolo = records.label_files is not None
            for row, (image, place) in enumerate(places):
                self._rows[split, image if yolo else -1, place] = row

    def find(self, finding: Finding) -> Shown | None:
        """What to show of a finding; None for one that is about no single image."""
        if (path := Path(finding.record)).is_absolute() and path.is_file():
            return Shown(path)
        at = -1 if finding.at is None else finding.at
        if finding.file in self._files:
            split, image = self._files[finding.file]
            row = self._rows.get((split, image, at))
            return self._shown(split, image, row)
        if finding.record.startswith("annotation"):
            splits = [s for s, r in self.report.records.items() if str(r.source) == finding.file]
            rows = [(split, self._rows.get((split, -1, at))) for split in splits]
            return next(
                (self._shown(split, -1, row) for split, row in rows if row is not None), None
            )
        name = finding.record.rsplit(" (image id ", 1)[0]
        place = self._images.get((finding.file, name))
        if place is None and finding.rule == "box-tiny":
            place = self._images.get((finding.file, name.rsplit(", ", 1)[0]))
        if place is None:
            return None
        shown = self._shown(*place, None)
        if found := _TWIN.fullmatch(finding.found):
            twin = self._images.get((found[1], found[2]))
            return shown._replace(twin=self.report.records[twin[0]].file(twin[1]) if twin else None)
        return shown._replace(boxes=self._boxes_of_index(finding, *place))

    def _shown(self, split: str, image: int, row: int | None) -> Shown:
        records = self.report.records[split]
        if row is None:
            return Shown(records.file(image))
        image = int(records.boxes["image"][row])
        box = records.boxes["xyxy"][row]
        if records.relative:
            box = box * np.tile(records.images["size"][image][::-1], 2)
        elif records.swapped is not None and records.swapped[row]:
            box = as_written(box[None])[0]
        return Shown(records.file(image), [box.tolist()])

    def _boxes_of_index(self, finding: Finding, split: str, image: int) -> list[Box]:
        """The boxes of an image that has too many, or the one that is told to be tiny."""
        index = self.report.indexes.get(split)
        if index is None or finding.rule not in ("box-tiny", "objects-over-queries"):
            return []
        boxes = index.boxes[index.rows(image)]
        if tiny := _TINY.match(finding.found):
            width, height = index.sizes[image][::-1].tolist()
            sides = (boxes[:, 2:] - boxes[:, :2]) / (width, height) * int(tiny[3])
            told = [(f"{w:.1f}", f"{h:.1f}") == (tiny[1], tiny[2]) for w, h in sides.tolist()]
            boxes = boxes[told]
        return [list(map(float, box)) for box in boxes]


def picture(shown: Shown) -> str:
    """The cut-out around a box, or the whole image, as a data URL; "": not decodable."""
    try:
        views = [_view(shown.path, shown.boxes)]
        views += [_view(shown.twin, ())] if shown.twin else []
    except (ImageError, OSError):
        return ""
    whole, left = Image.new("RGB", (SIDE, max(view.height for view in views)), "#808080"), 0
    for view in views:
        view.thumbnail(((SIDE - 4 * (len(views) - 1)) // len(views), SIDE))
        whole.paste(view, (left, 0))
        left += SIDE - view.width
    size = SIDE if len(views) > 1 else views[0].width, max(view.height for view in views)
    stream = io.BytesIO()
    whole.crop((0, 0, *size)).save(stream, "WEBP", quality=60)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def _view(path: Path | PackedFile, boxes: Sequence[Box]) -> Image.Image:
    """An image of which the longer side is `SIDE`: the surroundings of one box, gray outside of the
    image, or else all of it. Boxes are marked.
    """
    image, lone = Image.fromarray(decode_image(path)), len(boxes) == 1
    left, top, right, bottom = _around(boxes[0], image.size) if lone else (0, 0, *image.size)
    cut = Image.new("RGB", (right - left, bottom - top), "#808080")
    cut.paste(image, (-left, -top))
    scale = SIDE / max(cut.size)
    cut = cut.resize((max(1, round(cut.width * scale)), max(1, round(cut.height * scale))))
    pen, inside = ImageDraw.Draw(cut), np.array(cut.size) - 2
    for box in boxes:
        corners = (np.nan_to_num(box).reshape(2, 2) - (left, top)) * scale
        ends = np.sort(corners, axis=0).clip(1, inside).ravel().tolist()
        if lone:
            pen.rectangle(ends, outline="#ffffff", width=4)
        pen.rectangle(ends, outline="#e00000", width=2 if lone else 1)
    return cut


def _around(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the surroundings of a box in an image (width, height): of a
    large one, and of one outside, that with all of the image.
    """
    limits = np.array([*size] * 2)
    x1, y1, x2, y2 = np.clip(np.nan_to_num(box), -limits, 2 * limits).tolist()
    half = max(0.9 * max(x2 - x1, y2 - y1), 24.0, 0.08 * max(size))
    outside = min(x2, y2, size[0] - x1, size[1] - y1) <= 0
    if outside or half > 0.7 * max(size):
        first, last = (min(0, x1, x2), min(0, y1, y2)), (max(size[0], x2), max(size[1], y2))
        left, top, right, bottom = map(round, (*first, *last))
        return left, top, right, bottom
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return round(x - half), round(y - half), round(x + half), round(y + half)


def _text(finding: Finding) -> str:
    name = escape(Path(finding.file).name)
    where = " · ".join(filter(None, (name, escape(finding.record))))
    return f'<span class="dim">{where}</span> {escape(finding.found)}'


def _section(report: Report, rule: str, found: Sequence[Finding], cards: Sequence[str]) -> str:
    """All of a rule: what it means, pictures, and the list of its findings."""
    severity, count = report.findings.severity(rule), report.findings.counts[rule]
    without = count - len(cards)
    told = f"{count:,} found, {len(cards)} shown" + f"; {without:,} without a picture" * (
        without > 0
    )
    badge = f'<span style="background:{_COLOURS[severity]}">{severity}</span>'
    meaning = escape(f"{RULES[rule].meaning}: {RULES[rule].advice}")
    items = "".join(f"<li>{_text(finding)}" for finding in found[:MOST_LISTED])
    rest = f"<p>and {count - MOST_LISTED:,} more; --json lists all" * (count > MOST_LISTED)
    opened = "" if cards else " open"
    listed = f"<details{opened}><summary>list</summary><ul>{items}</ul>{rest}</details>"
    head = f"<h2 id={rule}>{badge}{rule}</h2><p>{meaning} <span class=dim>({told})</span></p>"
    return f'{head}<div class="cards">{"".join(cards)}</div>{listed}'
