"""Figures: what they draw, that they are written, and that they leave matplotlib's global state
alone.
"""

from __future__ import annotations

import math
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from rfdetr.evaluation.plots import (
    Threshold,
    confusion_figure,
    f1_figure,
    history_figure,
    plot_history,
    plot_metrics,
    pr_figure,
)

pytestmark = pytest.mark.usefixtures("with_plots")
FILES = {"pr_curve.png", "f1_curve.png", "confusion_matrix.png", "confusion_matrix_normalized.png"}


def many_classes(sets, classes: int):
    made = sets.random_set(classes, images=20, classes=classes)
    made.class_names[0] = "$ [bold] a name that is much too long for any legend"
    return sets.evaluated(made).compute()


@pytest.mark.parametrize("classes", [2, 3, 25, 80])
def test_every_number_of_classes_is_drawn(sets, tmp_path, classes):
    plot_metrics(many_classes(sets, classes), tmp_path / "made", "valid")
    assert {path.name for path in (tmp_path / "made").iterdir()} == FILES
    for path in (tmp_path / "made").iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert 400 < min(image.size) <= max(image.size) < 2500
            assert len(np.unique(np.asarray(image.convert("L")))) > 20  # not blank


def test_nothing_found_and_nothing_there_are_drawn(sets, tmp_path):
    made = sets.DetectionSet(
        ["a", "b"], [sets.detection([], [], [])], [sets.target(1, [0], [[0, 0, 9, 9]])]
    )
    plot_metrics(sets.evaluated(made).compute(), tmp_path / "nothing found", "valid")
    plot_metrics(
        sets.evaluated(sets.DetectionSet(["a", "b"])).compute(), tmp_path / "nothing there", "test"
    )
    assert len(list(tmp_path.glob("*/*.png"))) == 2 * len(FILES)


def test_best_threshold_is_marked_on_the_mean_curve(sets):
    metrics = many_classes(sets, 4)
    threshold = Threshold(metrics.overall["best_threshold"], "valid")
    lines = {
        line.get_label(): line for line in f1_figure(metrics, "valid", threshold).axes[0].lines
    }
    mark = next(line for label, line in lines.items() if label.startswith("threshold"))
    assert mark.get_xdata()[1] == metrics.overall["best_threshold"]
    assert mark.get_ydata()[1] == metrics.overall["F1"]
    mean = next(line for label, line in lines.items() if label.startswith("all classes"))
    # The curve has 1,001 points.
    assert mean.get_ydata().max() == pytest.approx(metrics.overall["F1"], abs=0.02)


def test_plots_of_the_test_split_show_the_threshold_chosen_on_valid(sets):
    valid, test = (
        sets.evaluated(sets.random_set(seed, images=20, classes=3)).compute() for seed in (1, 2)
    )
    best = valid.overall["best_threshold"]
    assert best != test.overall["best_threshold"]
    figure = confusion_figure(test, "test", Threshold(best, "valid"), normalized=False).axes[0]
    assert (
        f"Confusion on test, counts\nconfidence ≥ {best:.3f} (best F1 on valid)"
        in figure.get_title()
    )
    assert np.array_equal(figure.images[0].get_array(), test.confusion(best))
    assert not np.array_equal(test.confusion(best), test.confusion())
    curves = f1_figure(test, "test", Threshold(best, "valid")).axes[0]
    assert "on test" in curves.get_title()
    mark = next(line for line in curves.lines if "best on valid" in line.get_label())
    assert mark.get_xdata()[1] == best
    assert mark.get_ydata()[1] <= test.overall["F1"]


def test_curves_of_classes_without_objects_are_left_out(sets):
    metrics = many_classes(sets, 4)
    labels = [line.get_label() for line in pr_figure(metrics, "valid").axes[0].lines]
    assert len(labels) == 1 + 3
    assert not any("class 3" in label for label in labels)


def test_history_joins_epochs_without_evaluation(tmp_path):
    history = [
        {"epoch": 0, "train/loss": 3.0, "train/lr": 1e-4},
        {"epoch": 1, "train/loss": 2.0, "val/mAP_50_95": 0.1, "val/F1": None},
        {"epoch": 2, "train/loss": 1.5, "val/mAP_50_95": math.nan},
        {"epoch": 3, "train/loss": 1.0, "val/mAP_50_95": 0.3},
    ]
    loss, precision, f1, rate = history_figure(history).axes
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert [list(map(float, data)) for data in precision.lines[0].get_data()] == [
        [2, 4],
        [0.1, 0.3],
    ]
    assert [len(axes.lines) for axes in (loss, precision, f1, rate)] == [1, 1, 0, 1]
    assert f1.texts[0].get_text() == "not logged"
    plot_history(history, tmp_path / "metrics.png")
    plot_history([], tmp_path / "metrics.png")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.png"]


def test_one_epoch_is_legible():
    record = {
        "epoch": 0,
        "train/loss": 3.0,
        "train/lr": 1e-4,
        "val/mAP_50_95": 0.125,
        "val/F1": 0.5,
    }
    panels = history_figure([record]).axes
    assert {axes.get_xlim() for axes in panels} == {(0.5, 1.5)}
    labels = [line.get_label() for axes in panels for line in axes.lines]
    assert labels == ["train 3", "50:95 0.125", "F1 0.5", "largest of all groups 0.0001"]
    assert all(line.get_markersize() > 5 for axes in panels for line in axes.lines)
    assert [axes.get_ylim()[0] for axes in panels[1:]] == [0, 0, 0]


def test_global_settings_stay(sets, tmp_path):
    before = dict(mpl.rcParams)
    plot_metrics(many_classes(sets, 3), tmp_path, "valid")
    assert dict(mpl.rcParams) == before


def test_pyplot_is_not_imported():
    code = "import sys, rfdetr.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
