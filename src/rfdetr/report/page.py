"""report.html: the report's values as one page that needs no network and no other file.

Everything is on the page without a script; page.js sorts, filters and tries thresholds.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from rfdetr.report.cases import CONFUSED, FALSE, MISPLACED, MISSED
from rfdetr.report.hints import MISPLACED as OFF
from rfdetr.report.hints import OVERLOOKED, SPURIOUS, SWAPPED
from rfdetr.report.svg import Line, bar, bars, chart, overlay

Data = Mapping[str, Any]
_MEANING = {
    OVERLOOKED: "an object that has no label",
    SWAPPED: "a label of the wrong class",
    OFF: "a label that does not fit its object",
    SPURIOUS: "a label where there is nothing",
}
_DO = {
    OVERLOOKED: "add {found}",
    SWAPPED: "{label} becomes {found}",
    OFF: "move {label} to the red box",
    SPURIOUS: "remove {label}",
}
_LEGEND = (
    '<p class="legend soft"><label><input type=checkbox data-boxes=label checked> '
    '<span class=l>labels: green, whole lines</span></label> <label><input type=checkbox '
    'data-boxes=found checked> <span class=f>found: red, dashed</span></label>. Thick is what a '
    "picture is about.</p>"
)


def render(data: Data, pictures: Mapping[int, bytes]) -> str:
    """The page; `pictures` are WebP files by their number."""
    sections = {
        "verdict": ("Verdict", _verdict(data)),
        "next": ("What to do next", _next(data)),
        "curves": ("Curves", _curves(data)),
        "classes": ("Classes", _classes(data)),
        "thresholds": ("Thresholds", _thresholds(data)),
        "confusion": ("Confusion", _confusion(data, pictures)),
        "worst": ("Worst images", _worst(data, pictures)),
        "hints": ("Label hints", _hints(data, pictures)),
        "calibration": ("Calibration", _calibration(data)),
        "recall": ("Sizes", _recall(data)),
        "drift": ("Splits", _drift(data)),
        "reproduce": ("Reproduce", _reproduce(data)),
    }
    told = {key: (title, text) for key, (title, text) in sections.items() if text}
    for_script = {
        "names": [row["name"] for row in data["classes"]],
        "sweep": data["sweep"],
        "threshold": data["threshold"],
    }
    dataset = data["reproduce"]["dataset"].rstrip("/").rsplit("/", 1)[-1]
    assets = files("rfdetr.report")
    return Template(assets.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{data['model']} on {dataset}"),
        subtitle=escape(
            f"{data['weights']}, judged on the {data['split']} split at {data['resolution']} pixels"
        ),
        nav="".join(f'<li><a href="#{key}">{title}</a></li>' for key, (title, _) in told.items()),
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>'
            f"{text}</section>"
            for key, (title, text) in told.items()
        ),
        css=assets.joinpath("page.css").read_text(encoding="utf-8"),
        js=assets.joinpath("page.js").read_text(encoding="utf-8"),
        data=json.dumps(for_script).replace("<", "\\u003c"),  # which must not end the script
    )


def _verdict(data: Data) -> str:
    at, shown = data["at_threshold"], data["splits"][data["split"]]
    rated = shown["masks"] if data["masks"] else shown
    tiles = {
        f"mAP of {'masks' if data['masks'] else 'boxes'}": _figure(rated["overall"]["mAP_50_95"]),
        "recommended threshold": f"{data['threshold']:.2f}",
        "of what it reports is right": _percent(at["right"], at["right"] + at["wrong"]),
        "of the objects are found": _percent(at["right"], at["objects"]),
    }
    texts = "".join(f"<p>{escape(sentence)}</p>" for sentence in data["verdict"])
    boxes = "".join(f"<div class=tile><b>{v}</b><span>{k}</span></div>" for k, v in tiles.items())
    return f'<div class="verdict">{texts}</div><div class="tiles">{boxes}</div>'


def _next(data: Data) -> str:
    items = []
    for item in data["next"]:
        title = escape(item["title"])
        if "gain" in item:
            title += f' <span class="gain">up to +{100 * item["gain"]:.1f} points</span>'
        if "filter" in item:
            link = f'<a href="#worst" data-filter="{item["filter"]}">Show such images</a>'
        else:
            link = f'<a href="#{item["link"]}">Go there</a>'
        items.append(f"<li><h3>{title}</h3><p>{escape(item['text'])} {link}</p></li>")
    if not items:
        return "<p>Nothing stands out: no kind of error costs half a point.</p>"
    note = "Points are mAP 50 (of 100) that a repair of every such error would bring, as TIDE counts."
    return f'<p class="note">{note}</p><ol class="next">{"".join(items)}</ol>'


def _curves(data: Data) -> str:
    rows = data["curves"]
    if not rows:
        return ""

    def line(name: str, key: str, style: str) -> Line:
        points = [(row["epoch"] + 1, row[key]) for row in rows if row.get(key) is not None]
        return Line(name, points, style)

    best = data["best"]["epoch"] if data["best"] else None
    kind = "segm_" if data["masks"] else ""
    charts = {
        "Loss": [line("train", "train/loss", "a"), line("valid", "val/loss", "b")],
        f"mAP on valid{', masks' if kind else ''}": [
            line("live weights", f"val/{kind}mAP_50_95", "a"),
            line("averaged (EMA)", f"val/ema_{kind}mAP_50_95", "b"),
        ],
        "At the best threshold on valid": [
            line("precision", "val/precision", "b"),
            line("recall", "val/recall", "c"),
            line("F1", "val/F1", "a"),
        ],
    }
    seconds = [row["seconds"] for row in rows if row.get("seconds")]
    took = f"{len(rows)} epochs in {sum(seconds) / 60:.1f} minutes" if seconds else ""
    took += f", {sum(seconds) / len(seconds):.0f} seconds each." if seconds else ""
    mark = "The upright line marks the best epoch. " if best else ""
    drawn = "".join(chart(title, lines, "epoch", mark=best) for title, lines in charts.items()
                    if any(line.points for line in lines))
    return f'<p class="note">{mark}{took}</p><div class="charts">{drawn}</div>'


def _classes(data: Data) -> str:
    counted = [split for split in ("train", "valid", "test") if split in data["drift"]]
    keys = {"name": "class", "AP": "AP", "AP50": "AP 50"}
    keys |= {"mask_AP": "AP of masks"} if data["masks"] else {}
    keys |= {"precision": "precision", "recall": "recall", "F1": "F1"}
    keys |= {"best_F1": "own best F1", "best_threshold": "own threshold"}
    keys |= {split: f"boxes in {split}" for split in counted}
    whole = data["splits"][data["split"]]["overall"]
    head = "".join(
        f"<th scope=col{' data-text' * (key == 'name')} class={'text' if key == 'name' else 'num'}>"
        f"<button type=button>{name}</button></th>"
        for key, name in keys.items()
    )
    body = "".join(
        f"<tr><th scope=row>{escape(row['name'])}</th>"
        + "".join(f"<td class=num>{_cell(row.get(key))}</td>" for key in [*keys][1:])
        + "</tr>"
        for row in data["classes"]
    )
    masks = data["splits"][data["split"]].get("masks", {}).get("overall", {})
    means = {**whole, "AP": whole["mAP_50_95"], "AP50": whole["mAP_50"]}
    means |= {"mask_AP": masks.get("mAP_50_95"), "best_F1": None, "best_threshold": None}
    means |= {split: data["drift"][split]["boxes"] for split in counted}
    foot = "".join(f"<td class=num>{_cell(means.get(key))}</td>" for key in [*keys][1:])
    best = whole["best_threshold"]
    note = "AP is the mean over IoU 0.50 to 0.95. Precision, recall and F1 are at IoU 0.5 and the "
    note += f"threshold that is best on {data['split']} itself ({_figure(best)}), as in "
    note += "results.json. A click on a name sorts."
    return (
        f'<p class="note">{note}</p><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Figures by class"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody><tfoot><tr><th scope=row>all</th>{foot}</tr></tfoot></table></div>"
    )


def _thresholds(data: Data) -> str:
    sliders = []
    slider = "type=range min=0.01 max=1 step=0.01"
    for number, row in enumerate(data["classes"]):
        name = escape(row["name"])
        sliders.append(
            f"<tr id=threshold-{number}><th scope=row>{name}</th><td><input {slider} "
            f'aria-label="Threshold of {name}"></td><td><output>-</output></td>{_RATES}</tr>'
        )
    head = "".join(f"<th scope=col class=num>{name}</th>" for name in _RATE_NAMES)
    origin = data["threshold_from"]
    return (
        f"<p>A detection is reported from its threshold on: a higher one gives fewer false ones and "
        f"misses more. Recommended is {data['threshold']:.2f}, the best mean F1 on {origin}. The "
        f"figures are of {data['split']}, counted over all objects, at IoU 0.5: how much of what is "
        "reported is right, and how many of the objects are found.</p>"
        "<div class=chips><button type=button class=do id=use-recommended>Recommended</button>"
        "<button type=button class=do id=use-common>Best common one here</button>"
        "<button type=button class=do id=use-own>Best for each class here</button></div>"
        f'<label>One for all: <output id=threshold-all-value></output><input id=threshold-all '
        f"{slider}></label>"
        '<div class=scroll tabindex=0 role=region aria-label="Thresholds by class"><table><thead>'
        f"<tr><th scope=col>class</th><th scope=col>threshold</th><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(sliders)}</tbody><tfoot><tr id=threshold-total><th scope=row>all</th>"
        f"<td></td><td></td>{_RATES}</tr></tfoot></table></div>"
        "<p><button type=button class='do main' id=copy>Copy as JSON</button> "
        "<span id=copied role=status></span></p><textarea id=threshold-json rows=3 readonly "
        'aria-label="Thresholds as JSON"></textarea>'
        "<p class=note>For <code>model.predict(images, thresholds={...})</code> and "
        "<code>rfdetr predict CHECKPOINT IMAGES --thresholds FILE_OR_JSON</code>.</p>"
    )


_RATE_NAMES = ("right", "found", "F1", "false an image")
_RATES = "<td class=num>-</td>" * len(_RATE_NAMES)


def _confusion(data: Data, pictures: Mapping[int, bytes]) -> str:
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
        "the detector says. In the last column are objects that nothing found, in the last row detections "
        "where no object is labelled. A number with dots below opens pictures.</p>"
        f'<div class=scroll tabindex=0 role=region aria-label="Confusion matrix"><table '
        f"class=matrix><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
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


def _worst(data: Data, pictures: Mapping[int, bytes]) -> str:
    if not data["worst"]:
        return "<p>No image has an error at this threshold.</p>"
    items = []
    for row in data["worst"]:
        if row["picture"] in pictures:
            counts = ", ".join(f"{count} {kind}" for kind, count in row["counts"].items())
            note = f"<b>{escape(row['image'])}</b><br>{counts}"
            kinds = "|".join(row["counts"])
            items.append(_item(_picture(data, pictures, row["picture"], note), kinds))
    chips = _chips({"": "all", MISSED: "missed", FALSE: "false", CONFUSED: "wrong class",
                    MISPLACED: "badly placed"}, len(items))
    return (
        f"<p>The {len(items)} images of {data['split']} with most errors at the threshold "
        f"{data['threshold']:.2f}, worst first.</p>{chips}{_LEGEND}"
        f'<div class="pictures wide">{"".join(items)}</div>'
    )


def _hints(data: Data, pictures: Mapping[int, bytes]) -> str:
    lone = [f"about {row['count']} of {row['class']}" for row in data["unlabelled"]]
    pattern = f"<p>Beside these, objects may be unlabelled as a rule: {escape(', '.join(lone))}, " \
        "by how often detections of such scores are right.</p>" if lone else ""
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
        f"<p>Labels that are likely wrong, likeliest first: {len(items)} of {len(data['hints'])} in "
        f"<code>{file}</code>. Look at each; where you agree, set its <code>\"apply\"</code> to true "
        f"in the file, then run <code>rfdetr check DATASET --hints {file} --fix NEW_FOLDER</code>: "
        f"it writes a corrected copy, and leaves your data as it is.</p>{pattern}{chips}{_LEGEND}"
        f'<div class="pictures">{"".join(items)}</div>'
    )


def _calibration(data: Data) -> str:
    bins, ece = data["errors"]["bins"], data["errors"]["ece"]
    if not bins:
        return ""
    lines = [
        Line("right", [(row["confidence"], row["right"]) for row in bins], "a"),
        Line("if scores were shares", [(0, 0), (1, 1)], "d ideal"),
    ]
    drawn = chart("Share of detections that are right, by score", lines, "score", top=1.0)
    after = data["errors"]["ece_after"]
    note = f"A score is no probability: on the mean it is {ece:.3f} off the share that is right"
    note += f" (ECE); after isotonic calibration {after:.3f} would be left." if after else "."
    note += " Choose thresholds by the explorer above, not by what a score seems to say."
    return f'<p>{note}</p><div class="charts">{drawn}</div>'


def _recall(data: Data) -> str:
    titles = {
        "size": f"By size (of a square as large, in pixels of the network's {data['resolution']})",
        "objects": "By the number of objects in the image",
        "shape": "By shape",
        "place": "By place",
    }
    tables = []
    for key, title in titles.items():
        rows = [
            (row["name"], row["found"] / row["objects"], f"{row['found']} of {row['objects']}")
            for row in data["recall"][key]
        ]
        tables.append(bars(title, rows))
    note = f"The share of objects that is found at the threshold {data['threshold']:.2f}."
    return f'<p>{note}</p><div class="charts">{"".join(tables)}</div>'


def _drift(data: Data) -> str:
    splits = data["drift"]
    texts = []
    for split, facts in splits.items():
        if "classes_distance" in facts:
            texts.append(
                f"{split} differs from train by {facts['classes_distance']:.0%} of its classes and "
                f"{facts['sizes_distance']:.0%} of its sizes."
            )
    tables = []
    for kind, title in (("classes", "Classes"), ("sizes", "Sizes")):
        names = list(next(iter(splits.values()))[kind])
        head = "".join(f"<th scope=col class=num colspan=2>{split}</th>" for split in splits)
        rows = []
        for name in names:
            cells = ""
            for facts in splits.values():
                share = facts[kind].get(name, 0) / max(facts["boxes"], 1)
                cells += f"<td class=num>{share:.1%}</td><td class=bar>{bar(share)}</td>"
            rows.append(f"<tr><th scope=row>{escape(name)}</th>{cells}</tr>")
        tables.append(
            f"<table><caption>{title}</caption><thead><tr><td></td>{head}</tr></thead><tbody>"
            f"{''.join(rows)}</tbody></table>"
        )
    sizes = ", ".join(f"{s}: {f['images']:,} images, {f['boxes']:,} boxes" for s, f in splits.items())
    return (
        f"<p>{sizes}. {' '.join(texts)} Splits that are alike make figures that hold.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="What the splits are made of">'
        f"{''.join(tables)}</div>"
    )


def _reproduce(data: Data) -> str:
    import yaml

    facts = data["reproduce"]
    told = {
        "command": facts["command"],
        "dataset": facts["dataset"],
        "seed": facts["seed"],
        "versions": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
        **{f"labels of {split}": digest for split, digest in facts["fingerprints"].items()},
    }
    rows = "".join(
        f"<tr><th scope=row>{name}</th><td><code>{escape(str(value))}</code></td></tr>"
        for name, value in told.items()
        if value is not None
    )
    config = ""
    if facts["config"]:
        text = yaml.safe_dump(facts["config"], sort_keys=False, allow_unicode=True)
        config = f"<details><summary>Configuration (config.yaml)</summary><pre>{escape(text)}</pre>"
        config += "</details>"
    table = '<div class="scroll" tabindex="0" role="region" aria-label="How to reproduce">'
    return f"{table}<table>{rows}</table></div>{config}"


def _chips(kinds: Mapping[str, str], count: int) -> str:
    buttons = "".join(
        f'<button type=button data-kind="{kind}" aria-pressed={str(not kind).lower()}>{name}</button>'
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


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cell(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else _figure(value)
