"""report.html: the report's values as one page that needs no network and no other file.

Everything is on the page without a script; page.js sorts, filters and tries thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from rfdetr.config.fields import size_text
from rfdetr.report import gallery
from rfdetr.report.svg import Line, bar, bars, chart

Data = Mapping[str, Any]


def render(data: Data, pictures: Mapping[int, bytes]) -> str:
    """The page; `pictures` are WebP files by their number."""
    sections = {
        "verdict": ("Verdict", _verdict(data)),
        "next": ("What to do next", _next(data)),
        "curves": ("Curves", _curves(data)),
        "classes": ("Classes", _classes(data)),
        "thresholds": ("Thresholds", _thresholds(data)),
        "confusion": ("Confusion", gallery.confusion(data, pictures)),
        "worst": ("Worst images", gallery.worst(data, pictures)),
        "hints": ("Label hints", gallery.hints(data, pictures)),
        "calibration": ("Calibration", _calibration(data)),
        "recall": ("Recall", _recall(data)),
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
            f"{data['weights']}, judged on the {data['split']} split at "
            f"{size_text(data['resolution'])} pixels"
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
    note = (
        "Points are mAP 50 (of 100) that a repair of every such error would bring, as TIDE counts."
    )
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
    epochs = "1 epoch" if len(rows) == 1 else f"{len(rows)} epochs"
    took = f"{epochs} in {sum(seconds) / 60:.1f} minutes" if seconds else ""
    took += f", {sum(seconds) / len(seconds):.0f} seconds each." if seconds else ""
    mark = "The upright line marks the best epoch. " if best else ""
    drawn = "".join(
        chart(title, lines, "epoch", mark=best)
        for title, lines in charts.items()
        if any(line.points for line in lines)
    )
    return f'<p class="note">{mark}{took}</p><div class="charts">{drawn}</div>{_pace(data)}'


def _pace(data: Data) -> str:
    """A row for each thing that was forecast, beside what was taken."""
    if not data["pace"]:
        return ""
    written: dict[str, tuple[str, Callable[[float], str]]] = {
        "seconds": ("seconds of an epoch, with its validation", "{:.1f}".format),
        "memory": ("memory at most, GB", lambda used: f"{used / 1e9:.2f}"),
    }
    rows = "".join(
        f"<tr><th scope=row>{name}</th>"
        + "".join(f"<td class=num>{text(value)}</td>" for value in data["pace"][key])
        + "</tr>"
        for key, (name, text) in written.items()
        if None not in data["pace"][key]
    )
    head = "<tr><td></td><th scope=col>after some updates</th><th scope=col>in the end</th></tr>"
    return (
        f"<table><caption>Forecast and what was taken</caption><thead>{head}</thead>"
        f"<tbody>{rows}</tbody></table>"
    )


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
    why = f"the best mean F1 on {data['threshold_from']}"
    if not sum(data["sweep"]["objects"]):
        why = "as always where there are no labels to choose it by"
    return (
        "<p>A detection is reported from its threshold on: a higher one gives fewer false ones "
        f"and misses more. Recommended is {data['threshold']:.2f}, {why}. "
        f"The figures are of {data['split']}, counted over all objects, at IoU 0.5: how much of "
        "what is reported is right, and how many of the objects are found.</p>"
        "<div class=chips><button type=button class=do id=use-recommended>Recommended</button>"
        "<button type=button class=do id=use-common>Best common one here</button>"
        "<button type=button class=do id=use-own>Best for each class here</button></div>"
        f"<label>One for all: <output id=threshold-all-value></output><input id=threshold-all "
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
        "size": "By size (of a square as large, in pixels of the network's "
        f"{size_text(data['resolution'])})",
        "objects": "By the number of objects in the image",
        "shape": "By shape",
        "place": "By place",
        "brightness": "By brightness of the image (mean, of 255), with false detections an image",
        "sharpness": "By sharpness (deviation of the Laplacian), from blurred to sharp",
    }
    tables = []
    for key, title in titles.items():
        rows = []
        for row in data["recall"][key]:
            told = f"{row['found']} of {row['objects']}"
            if "false" in row:
                told += f", {row['false'] / row['images']:.1f} false"
            rows.append((row["name"], row["found"] / row["objects"], told))
        tables += [bars(title, rows)] * bool(rows)
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
        head = "".join(f"<th scope=col class=num>{n}</th><td class=bar></td>" for n in splits)
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
    sizes = ", ".join(
        f"{s}: {f['images']:,} images, {f['boxes']:,} boxes" for s, f in splits.items()
    )
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


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cell(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else _figure(value)
