"""First epochs that are judged on a share of the images, and the mean of the best epochs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rfdetr.training.best_few import BestFew
from rfdetr.training.callbacks import BestModelCallback
from rfdetr.training.early_evaluation import stratified_share
from rfdetr.training.lightning_state import find_callback
from rfdetr.training.plan import run_summary, training_plan
from rfdetr.training.records import RunRecord
from rfdetr.training.run_folder import RunFolder
from rfdetr.weights.reading import read_checkpoint


def best_of(run: Any) -> BestModelCallback:
    found = find_callback(run.trainer, BestModelCallback)
    assert found is not None
    return found


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path).model


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def split_of(objects: list[list[int]], classes: int) -> Any:
    """What `stratified_share` asks of an index whose images show these labels."""
    offsets = np.cumsum([0, *map(len, objects)])
    labels = np.array([label for image in objects for label in image], np.int64)
    names = tuple(map(str, range(classes)))
    index = SimpleNamespace(labels=labels, offsets=offsets, class_names=names)
    return type("Index", (SimpleNamespace,), {"__len__": lambda _: len(objects)})(**vars(index))


def test_a_share_of_the_images_shows_every_class() -> None:
    # 60 images of class 0, 8 of them with class 1 too, 1 with class 2, and 12 without an object
    objects = [[0]] * 51 + [[0, 1, 1]] * 8 + [[2, 0]] + [[]] * 12
    index = split_of(objects, classes=4)
    for seed in range(5):
        chosen = stratified_share(index, 0.25, seed)
        assert (np.diff(chosen) > 0).all()
        kinds = [max(objects[image], default=-1) for image in chosen.tolist()]
        assert [kinds.count(kind) for kind in (0, 1, 2, -1)] == [13, 2, 1, 3]  # 51/4, 8/4, 1, 12/4
        assert np.array_equal(chosen, stratified_share(index, 0.25, seed))
    assert not np.array_equal(stratified_share(index, 0.25, 0), stratified_share(index, 0.25, 1))
    assert stratified_share(index, 1.0, 0).tolist() == list(range(72))


def test_early_figures_stand_apart_and_choose_nothing(make_run: Callable[..., Any]) -> None:
    seen: list[int] = []
    run = make_run(
        epochs=3, early_eval_share=0.5, early_eval_epochs=2, run_test=False, early_stopping=True,
        early_stopping_patience=1, early_stopping_min_delta=1.0,
        watch={"on_validation_epoch_start": lambda *_: seen.append(0)},
    )  # fmt: skip
    step = run.module.validation_step

    def counted(batch: Any, batch_idx: int) -> Any:
        seen[-1] += len(batch[1])
        return step(batch, batch_idx)

    run.module.validation_step = counted
    run.fit()
    few = len(stratified_share(run.datamodule.index("valid"), 0.5, 7))
    assert seen == [few, few, 4] and few < 4
    records = RunRecord(run.output).read()[1]
    starts = [{name.split("/")[0] for name in record if "/" in name} for record in records]
    assert starts == [{"train", "val_share"}, {"train", "val_share"}, {"train", "val"}]
    assert {"val_share/mAP_50_95", "val_share/ema_F1", "val_share/loss"} <= records[0].keys()
    assert {entry["epoch"] for entry in best_of(run).best.values()} == {2}
    plan = dict(training_plan(run.module, run.datamodule, run.trainer))
    told = f"4 images, live and averaged weights; {few} of them in the first 2 epochs (val_share/*)"
    assert plan["validation"] == told
    # What is chosen is measured on all images, whichever epoch it is.
    assert best_of(run).results["valid"].num_images == 4


SCORES = (0.2, 0.5, 0.1, 0.4, 0.3)


def few_scripted(make_scripted: Callable[..., Any], epochs: int = 5, **settings: Any) -> Any:
    scores = [{"val/mAP_50_95": score} for score in SCORES]
    given = {"use_ema": False, "run_test": False, "average_best": 3, **settings}
    return make_scripted(scores, epochs=epochs, **given)


@pytest.mark.slow
def test_the_best_few_are_kept_and_their_mean_is_judged(make_scripted: Callable[..., Any]) -> None:
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def remember(trainer: Any, module: Any) -> None:
        state = module.detector.state_dict()
        kept[trainer.current_epoch] = {name: value.clone() for name, value in state.items()}

    run = few_scripted(make_scripted, watch={"on_validation_end": remember}).fit()
    best = best_of(run)
    few = best.best_few
    assert few is not None
    assert [entry["epoch"] for entry in few.members.values()] == [1, 3, 4]
    files = {path.name for path in run.output.glob("checkpoint_best_step_*.pth")}
    assert files - {few.path(name).name for name in few.members} == {"checkpoint_best_step_2.pth"}
    for key, value in few.mean().items():
        parts = torch.stack([kept[epoch][key].double() for epoch in (1, 3, 4)])
        torch.testing.assert_close(value, parts.mean(0).to(value.dtype), rtol=0, atol=1e-7)
    rows = dict(run_summary(run.trainer, 1.0))
    assert best.mean_figures is not None
    mean, single = best.mean_figures
    assert f"{mean:.4f}, the best single weights {single:.4f}" in rows["mean of the best 3"]


@pytest.mark.parametrize("wins", [True, pytest.param(False, marks=pytest.mark.scheduled)])
def test_the_mean_is_the_best_where_it_is_no_worse(
    make_scripted: Callable[..., Any], wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = few_scripted(make_scripted)
    found = iter([0.5, 0.5 if wins else 0.49])  # of the single best, then of the mean

    def figures(*_: Any) -> list[Any]:
        from rfdetr.training.callbacks.validation import build_evaluator

        metrics = build_evaluator(run.module, 500).compute()
        metrics.overall["mAP_50_95"] = next(found)
        return [metrics]

    place = "rfdetr.training.callbacks.validation.evaluate_loader"
    monkeypatch.setattr(place, figures)
    run.fit()
    total, single = (run.output / f"checkpoint_best_{kind}.pth" for kind in ("total", "regular"))
    mean = run.output / "checkpoint_best_mean.pth"
    rows = dict(run_summary(run.trainer, 1.0))
    assert mean.exists() == wins
    assert same(total, single) != wins
    assert best_of(run).best_kind == ("mean" if wins else "regular")
    head = run.module.detector.state_dict()["class_head.weight"]
    assert torch.equal(head, weights(total)["class_embed.weight"])
    if wins:
        assert total.samefile(mean)
        assert rows["best mAP 50:95 on valid"] == "0.5000, mean of the weights of epochs 2, 4 and 5"
    else:
        assert rows["mean of the best 3"].endswith("not kept: the single one's are the best")


@pytest.mark.scheduled
def test_a_resumed_run_has_the_same_few(make_scripted: Callable[..., Any]) -> None:
    whole = few_scripted(make_scripted, output="whole").fit()
    few_scripted(make_scripted, epochs=3, output="parts").fit()
    later = few_scripted(make_scripted, output="parts").fit(ckpt_path="last")
    one, other = best_of(whole), best_of(later)
    assert one.best_few is not None and other.best_few is not None
    assert one.best_few.members == other.best_few.members
    for name in one.best_few.members:
        assert same(one.best_few.path(name), other.best_few.path(name))
    assert one.mean_figures == pytest.approx(other.mean_figures)
    assert same(one.total_path, other.total_path)


def test_a_file_that_is_another_is_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = BestFew(RunFolder(tmp_path), 2)
    names = [
        few.offer(step, {"score": score, "epoch": step}) for step, score in ((4, 0.1), (8, 0.3))
    ]
    for name in names:
        assert name is not None
        few.path(name).write_bytes(name.encode())
    assert few.offer(12, {"score": 0.05, "epoch": 12}) is None  # less than both
    assert few.offer(12, {"score": 0.1, "epoch": 12}) is None  # the earlier one wins a tie
    digests = {name: [hashlib.sha256(str(name).encode()).hexdigest()] for name in names}
    state = {"members": few.members, "files": digests}
    few.path("step_4").write_bytes(b"later weights")
    few.path("step_16").write_bytes(b"of a later time")
    with caplog.at_level(logging.WARNING):
        few.load_state_dict(state)
    assert list(few.members) == ["step_8"]
    assert "checkpoint_best_step_4.pth is not here as the checkpoint knows it" in caplog.text
    few.remove_others()
    assert [path.name for path in tmp_path.glob("*.pth")] == ["checkpoint_best_step_8.pth"]
