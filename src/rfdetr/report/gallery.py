"""The sections of report.html that show pictures: the confusion matrix, whose cells open them, the
worst images and the label hints.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rfdetr.report.cases import CONFUSED, FALSE, MISPLACED, MISSED
from rfdetr.report.hints import DUPLICATE, OVERLOOKED, SPURIOUS, SWAPPED
from rfdetr.report.hints import MISPLACED as OFF
from rfdetr.report.svg import overlay

Data = Mapping[str, Any]
_MEANING = {
    OVERLOOKED: "an object that has no label",
    SWAPPED: "a label of the wrong class",
    OFF: "a label that does not fit its object",
    SPURIOUS: "a label where there is nothing",
    DUPLICATE: "a second label of one object",
}
_DO = {
    OVERLOOKED: "add {found}",
    SWAPPED: "{label} becomes {found}",
    OFF: "move {label} to the red box",
    SPURIOUS: "remove {label}",
    DUPLICATE: "remove this {label}, keep the thin one at its place",
}
_LEGEND = (
    '<p class="legend soft"><label><input type=checkbox data-boxes=label checked> '
    "<span class=l>labels: green, whole lines</span></label> <label><input type=checkbox "
    "data-boxes=found checked> <span class=f>found: red, dashed</span></label>. Thick is what a "
    "picture is about.</p>"
)


def confusion(data: Data, pictures: Mapping[int, bytes]) -> str:
    found = data["confusion"]
    names, counts, shown = found["names"], found["counts"], found["pictures"]
    if len(names) > 41:
        return f"<p>{len(names) - 1} classes are too many to show: see confusion_matrix.png.</p>"
    rows, places = [], []
    for i, name in enumerate(names):
        cells, total = [], max(sum(counts[i]), 1)
        for j, count in enumerate(counts[i]):
            share, numbers = count / total, shown.get(f"{i},{j}", [])
            heat = f' style="background:rgb(var(--heat) / {0.55 * share:.2f})"' if count else ""
            told = _cell_text(names, i, j, count)
            if count and any(number in pictures for number in numbers):
                places.append(_pictures_of_cell(data, pictures, (i, j), told))
                cell = (
                    f'<button type=button aria-expanded=false aria-controls="cell-{i}-{j}" '
                    f'aria-label="{escape(told)}: show">{count}</button>'
                )
            else:
                cell = f"<span class={'zero' if not count else 'some'}>{count}</span>"
            cells.append(f"<td{heat}>{cell}</td>")
        rows.append(f"<tr><th scope=row>{escape(name)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    return (
        f"<p>At the threshold {data['threshold']:.2f}. Rows are what the labels say, columns what "
        "the detector says. In the last column are objects that nothing found, in the last row "
        "detections where no object is labelled. A number with dots below opens pictures.</p>"
        f'<div class=scroll tabindex=0 role=region aria-label="Confusion matrix"><table '
        f"class=matrix><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        f"</div>{_LEGEND}{''.join(places)}"
    )


def _cell_text(names: Sequence[str], i: int, j: int, count: int) -> str:
    background = len(names) - 1
    if i == j:
        return f"{names[i]}: {count} right"
    if j == background:
        return f"{names[i]}: {count} missed"
    if i == background:
        return f"{names[j]}: {count} told where no object is labelled"
    return f"{names[i]}: {count} told as {names[j]}"


def _pictures_of_cell(
    data: Data, pictures: Mapping[int, bytes], cell: tuple[int, int], told: str
) -> str:
    numbers = data["confusion"]["pictures"][f"{cell[0]},{cell[1]}"]
    shown = "".join(_picture(data, pictures, number) for number in numbers)
    return (
        f'<div class=cell-pictures id="cell-{cell[0]}-{cell[1]}" hidden><h3>{escape(told)}</h3>'
        f"<div class=pictures>{shown}</div></div>"
    )


def worst(data: Data, pictures: Mapping[int, bytes]) -> str:
    if not data["worst"]:
        return "<p>No image has an error at this threshold.</p>"
    items = []
    for row in data["worst"]:
        if row["picture"] in pictures:
            counts = ", ".join(f"{count} {kind}" for kind, count in row["counts"].items())
            note = f"<b>{escape(row['image'])}</b><br>{counts}"
            picture = _picture(data, pictures, row["picture"], note)
            items.append(_item(picture, "|".join(row["counts"])))
    kinds = (MISSED, FALSE, CONFUSED, MISPLACED)
    chips = _chips({"": "all", **{kind: kind for kind in kinds}}, len(items))
    return (
        f"<p>The {len(items)} images of {data['split']} with most errors at the threshold "
        f"{data['threshold']:.2f}, worst first.</p>{chips}{_LEGEND}"
        f'<div class="pictures wide">{"".join(items)}</div>'
    )


def hints(data: Data, pictures: Mapping[int, bytes]) -> str:
    lone = [f"about {row['count']} of {row['class']}" for row in data["unlabelled"]]
    pattern = (
        f"<p>Beside these, objects may be unlabelled as a rule: {escape(', '.join(lone))}, "
        "by how often detections of such scores are right.</p>"
        if lone
        else ""
    )
    if not data["hints"]:
        return f"<p>No label looks wrong.</p>{pattern}"
    items = []
    for hint in data["hints"]:
        if hint["picture"] in pictures:
            parts = {k: hint[k] and hint[k]["class"] for k in ("label", "found")}
            note = (
                f"<b>{hint['probability']:.0%}: {_MEANING[hint['kind']]}</b><br>"
                f"{escape(_DO[hint['kind']].format(**parts))}<br>"
                f"{escape(hint['split'])}/{escape(hint['image'])}"
            )
            items.append(_item(_picture(data, pictures, hint["picture"], note), hint["kind"]))
    chips = _chips({"": "all", **{kind: kind for kind in _MEANING}}, len(items))
    file = "label_hints.json"
    return (
        "<p>Labels that are likely wrong, likeliest first: "
        f"{len(items)} of {len(data['hints'])} in "
        f'<code>{file}</code>. Look at each; where you agree, set its <code>"apply"</code> to true '
        f"in the file, then run <code>rfdetr check DATASET --hints {file} --fix NEW_FOLDER</code>: "
        f"it writes a corrected copy, and leaves your data as it is.</p>{pattern}{chips}{_LEGEND}"
        f'<div class="pictures">{"".join(items)}</div>'
    )


def _chips(kinds: Mapping[str, str], count: int) -> str:
    buttons = "".join(
        f'<button type=button data-kind="{kind}" aria-pressed={"false" if kind else "true"}>'
        f"{name}</button>"
        for kind, name in kinds.items()
    )
    return f"<div class=chips>{buttons}</div><p class='count soft' role=status>{count} shown</p>"


def _item(picture: str, kinds: str) -> str:
    return f'<div class=item data-kinds="{escape(kinds)}">{picture}</div>'


def _picture(data: Data, pictures: Mapping[int, bytes], number: int, note: str = "") -> str:
    if number not in pictures:
        return ""
    record = data["pictures"][number]
    names = [row["name"] for row in data["classes"]]
    told = note or f"{escape(record['split'])}/{escape(record['image'])}"
    content = base64.b64encode(pictures[number]).decode()
    width, height = record["size"]
    return (
        f'<figure class=picture><div class=frame><img alt="Part of {escape(record["image"])}" '
        f'width={width} height={height} src="data:image/webp;base64,{content}">'
        f"{overlay(record['size'], record['boxes'], names)}</div><figcaption>{told}</figcaption>"
        "</figure>"
    )
