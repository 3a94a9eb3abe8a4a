"""labels.jpg and train_views.jpg: what is in them, and that the run does not notice."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rfdetr.evaluation.drawing import COLOURS, edges
from rfdetr.training.callbacks import DataViewsCallback, views

SHORT = {"epochs": 1, "batch_size": 2, "run_test": False, "multi_scale": True}


def watched(run: Any) -> list[torch.Tensor]:
    """The images of every training batch of a run to come."""
    seen: list[torch.Tensor] = []
    step = run.module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        seen.append(batch[0].tensors)
        return step(batch, batch_idx)

    run.module.training_step = training_step
    return seen


@pytest.mark.usefixtures("with_plots")
def test_the_views_are_the_batches_and_the_run_is_as_without(make_run: Callable[..., Any]) -> None:
    run, plain = make_run(**SHORT), make_run(output="plain", **SHORT)
    plain.trainer.callbacks[:] = [
        one for one in plain.trainer.callbacks if not isinstance(one, DataViewsCallback)
    ]
    seen = watched(run)
    run.fit(), plain.fit()
    whole = Image.open(run.output / "train_views.jpg")
    six = 2 * (views.SIDE + views.CAPTION) + 4  # in two rows of four
    assert whole.width == 4 * (views.SIDE + 4) - 4 and whole.height - six > 40  # the legend
    picture = np.asarray(whole).astype(int)[-six:]
    for number, image in enumerate(image for batch in seen for image in batch):
        row, column = divmod(number, views.COLUMNS)
        top, left = row * (views.SIDE + views.CAPTION + 4), column * (views.SIDE + 4)
        cell = picture[top : top + views.SIDE, left : left + views.SIDE]
        given = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((views.SIDE,) * 2)
        assert np.median(np.abs(cell - np.asarray(given).astype(int))) < 10  # boxes aside
    labels = Image.open(run.output / "labels.jpg")
    assert labels.format == "JPEG" and min(labels.size) > 900
    assert not (plain.output / "labels.jpg").exists()
    ends = [torch.load(each.output / "last.ckpt")["state_dict"] for each in (run, plain)]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
    figures = [(each.output / "metrics.csv").read_bytes() for each in (run, plain)]
    assert figures[0] == figures[1]


def test_no_global_random_number_is_drawn(make_run: Callable[..., Any]) -> None:
    data = make_run(**SHORT).datamodule
    data.setup("fit")
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    views.draw_labels(data, ["blue", "green", "red"])
    views.draw_views(data, ["blue", "green", "red"])
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


def test_masks_are_outlined_in_the_colour_of_the_class(
    make_run: Callable[..., Any], add_outlines: Callable[[], None]
) -> None:
    run = make_run(model={"segmentation_head": True}, **{**SHORT, "multi_scale": False})
    add_outlines()
    run.datamodule.setup("fit")
    picture = np.asarray(views.draw_views(run.datamodule, ["blue", "green", "red"])).astype(int)
    for colour in COLOURS[:3]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture - rgb).max(2) == 0).sum() > 500, colour
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[:, 1:4, 2:6] = True
    assert edges(mask)[0].nonzero().tolist() == [
        [1, 2], [1, 3], [1, 4], [1, 5], [2, 2], [3, 2], [3, 3], [3, 4], [3, 5],
    ]  # fmt: skip


@pytest.mark.usefixtures("with_plots")
def test_a_picture_that_fails_ends_nothing(
    make_run: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("no font")

    monkeypatch.setattr(views, "draw_views", broken)
    run = make_run(**SHORT).fit()
    assert caplog.text.count("train_views.jpg is not drawn, the run goes on: ValueError") == 1
    assert (run.output / "results.json").exists() and (run.output / "labels.jpg").exists()


def test_with_many_classes_objects_have_their_names(make_run: Callable[..., Any]) -> None:
    data = make_run(**SHORT).datamodule
    data.setup("fit")
    sizes = {}
    for count in (len(COLOURS), 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(views, "COLOURS", COLOURS[:count])
            sizes[count] = views.draw_views(data, ["blue", "green", "red"]).height
    assert sizes[len(COLOURS)] > sizes[1]  # the legend
