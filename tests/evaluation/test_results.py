"""results.json and the console table."""

from __future__ import annotations

import json

from rich.console import Console

from rfdetr.evaluation.metrics import metrics_table, write_results


def test_results_hold_every_figure_by_split(sets, tmp_path):
    metrics = sets.evaluated(sets.random_set(1)).compute()
    write_results(
        tmp_path / "results.json", {"valid": metrics, "test": metrics}, weights="best.pth"
    )
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["schema_version"], content["weights"], content["iou_type"]) == (
        1,
        "best.pth",
        "bbox",
    )
    assert list(content["splits"]) == ["valid", "test"]
    test = content["splits"]["test"]
    assert (test["images"], test["boxes"], test["max_dets"]) == (16, metrics.num_boxes, 500)
    assert test["overall"] == metrics.overall
    assert test["per_class"][:4] == metrics.per_class[:4]
    absent = test["per_class"][4]
    assert (absent["name"], absent["boxes"], absent["AP"], absent["F1"]) == (
        "class 4",
        0,
        None,
        None,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_results_are_json_in_any_language_and_without_nan(sets, tmp_path):
    made = sets.DetectionSet(["Thrombozyt größer"])
    write_results(
        tmp_path / "results.json", {"test": sets.evaluated(made).compute()}, weights="random"
    )
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "größer" in text
    assert set(json.loads(text)["splits"]["test"]["overall"].values()) == {None}


def test_table_has_a_row_per_class_and_the_means(sets):
    made = sets.random_set(1)
    made.class_names[0] = "[red]brackets"
    metrics = sets.evaluated(made).compute()
    console = Console(width=140)
    with console.capture() as captured:
        console.print(metrics_table(metrics, "test split"))
    lines = captured.get().splitlines()
    row = next(line for line in lines if "[red]brackets" in line)
    assert f"{metrics.per_class[0]['AP']:.3f}" in row
    assert next(line for line in lines if "class 4" in line).count(" - ") == 5
    assert f"{metrics.overall['F1']:.3f}" in next(line for line in lines if " all " in line)
    assert any(f"confidence {metrics.overall['best_threshold']:.3f}" in line for line in lines)


def test_metrics_show_themselves_in_a_line(sets):
    metrics = sets.evaluated(sets.random_set(1)).compute()
    shown = repr(metrics)
    assert shown.startswith(f"Metrics(mAP_50_95 {metrics.overall['mAP_50_95']:.4f}, ")
    assert (
        f"16 images, {metrics.num_boxes} objects" in shown
        and "\n" not in shown
        and len(shown) < 160
    )
