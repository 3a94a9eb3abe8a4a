"""Which weights a run keeps, and what it leaves when it ends badly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from rfdetr import RFDETR
from rfdetr.evaluation.metrics import as_record
from rfdetr.training import BestModelCallback
from rfdetr.training.plan import run_summary
from rfdetr.training.records import read_rows

LIVE, EMA = "val/mAP_50_95", "val/ema_mAP_50_95"
Scores = list[tuple[float, float]]


def scored(*scores: tuple[float, float]) -> list[dict[str, float]]:
    """The figures of epochs with these (live, averaged) mAP."""
    return [dict(zip((LIVE, EMA), pair, strict=True)) for pair in scores]


def class_head(path: Path) -> torch.Tensor:
    weight: torch.Tensor = torch.load(path)["model"]["class_embed.weight"]
    return weight


def best_of(run: Any) -> BestModelCallback:
    return next(
        callback for callback in run.trainer.callbacks if isinstance(callback, BestModelCallback)
    )


@pytest.mark.parametrize(
    ("scores", "winner"),
    [
        ([(0.3, 0.1), (0.2, 0.2), (0.1, 0.25)], "regular"),
        ([(0.3, 0.1), (0.2, 0.4), (0.1, 0.3)], "ema"),
    ],
)
def test_the_better_weights_become_the_total_and_the_modules(
    make_scripted: Callable[..., Any], scores: Scores, winner: str
) -> None:
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def remember(trainer: Any, module: Any) -> None:
        average = next(
            callback for callback in trainer.callbacks if hasattr(callback, "averaged")
        ).averaged()
        models = {"regular": module.model, "ema": average}
        kept[trainer.current_epoch] = {
            kind: m.class_head.weight.detach().clone() for kind, m in models.items()
        }

    run = make_scripted(scored(*scores), {"on_train_epoch_end": remember}, epochs=3).fit()
    for kind, column in (("regular", 0), ("ema", 1)):
        epoch = max(range(3), key=lambda epoch: scores[epoch][column])
        assert torch.equal(
            class_head(run.output / f"checkpoint_best_{kind}.pth"), kept[epoch][kind]
        )
    total = class_head(run.output / "checkpoint_best_total.pth")
    assert torch.equal(total, class_head(run.output / f"checkpoint_best_{winner}.pth"))
    assert torch.equal(total, run.module.model.class_head.weight)
    assert best_of(run).best_kind == winner


RISING = scored((0.9, 0.8), (0.2, 0.3), (0.4, 0.1))  # but for an outlier in the first epoch


def test_first_epochs_may_be_left_out_of_the_contest(make_scripted: Callable[..., Any]) -> None:
    run = make_scripted(RISING, epochs=3, skip_best_epochs=1, run_test=False).fit()
    assert best_of(run).best == {
        "regular": {"score": pytest.approx(0.4), "epoch": 2},
        "ema": {"score": pytest.approx(0.3), "epoch": 1},
    }
    none = make_scripted(RISING, epochs=3, skip_best_epochs=3, run_test=False, output="none").fit()
    assert best_of(none).best == {}
    average = next(c for c in none.trainer.callbacks if hasattr(c, "averaged")).averaged()
    total = class_head(none.output / "checkpoint_best_total.pth")
    assert torch.equal(total, average.class_head.weight)


def test_the_score_may_be_smoothed_over_all_evaluations_and_a_resumed_run_goes_on_with_it(
    make_scripted: Callable[..., Any],
) -> None:
    settings = {"smooth_alpha": 0.5, "skip_best_epochs": 1, "run_test": False}
    make_scripted(RISING, epochs=2, **settings).fit()
    run = make_scripted(RISING, epochs=3, **settings).fit(ckpt_path="last")
    # 0.9, (0.9 + 0.2) / 2, (0.55 + 0.4) / 2: the first is skipped, and still counts.
    assert best_of(run).best["regular"] == {"score": pytest.approx(0.55), "epoch": 1}
    assert best_of(run).state_dict()["smoothed"] == pytest.approx({"regular": 0.475, "ema": 0.325})
    logged = [float(row[LIVE]) for row in read_rows(run.output / "metrics.csv") if row[LIVE]]
    assert logged == pytest.approx([0.9, 0.2, 0.4])  # as it is


def test_recall_may_choose_the_best_weights(make_scripted: Callable[..., Any]) -> None:
    scores = scored((0.1, 0.1), (0.2, 0.2))
    for row, recall in zip(scores, (0.7, 0.6), strict=True):
        row["val/mAR"] = recall
    run = make_scripted(scores, epochs=2, best_model_metric="mar", run_test=False).fit()
    assert best_of(run).best == {"regular": {"score": pytest.approx(0.7), "epoch": 0}}
    assert ("best mAR on valid", "0.7000, live weights of epoch 1") in run_summary(run.trainer, 0)


def test_best_files_hold_what_loading_needs_and_nothing_else(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1).fit()
    for kind in ("regular", "ema", "total"):
        content = torch.load(run.output / f"checkpoint_best_{kind}.pth", weights_only=True)
        readers = {"state_dict", "pytorch-lightning_version", "optimizer_states", "lr_schedulers"}
        assert set(content) == {"model", "args", "model_name", "model_config", *readers}
        model = content["model"]
        for name, tensor in content["state_dict"].items():  # the same tensors: no larger file
            assert tensor.data_ptr() == model[name.removeprefix("model.")].data_ptr()
        assert content["args"]["class_names"] == ["blue", "green", "red"]
        assert content["args"]["resolution"] == 64


def test_periodic_checkpoints_carry_everything(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=3, checkpoint_interval=2, run_test=False).fit()
    assert [path.name for path in run.output.glob("*.ckpt") if path.name != "last.ckpt"] == [
        "checkpoint_0002.ckpt"
    ]
    again = make_run(epochs=3, output="again", run_test=False)
    again.fit(ckpt_path=run.output / "checkpoint_0002.ckpt")
    ends = [
        torch.load(each.output / "last.ckpt")["state_dict"]["model.class_head.weight"]
        for each in (run, again)
    ]
    assert torch.equal(*ends)


def test_results_are_those_of_the_best_weights_on_valid_and_test(
    make_run: Callable[..., Any],
) -> None:
    run = make_run(epochs=2).fit()
    results = json.loads((run.output / "results.json").read_text())
    assert set(results["splits"]) == {"valid", "test"}
    best = best_of(run)
    valid = results["splits"]["valid"]["overall"]["mAP_50_95"]
    assert valid == pytest.approx(best.best[best.best_kind]["score"], abs=1e-6)
    (tested,) = run.trainer.test(run.module, run.datamodule, verbose=False)
    assert results["splits"]["test"]["overall"]["mAP_50_95"] == pytest.approx(
        tested["test/mAP_50_95"], abs=1e-6
    )


def test_the_test_split_is_left_alone_where_told(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1, run_test=False).fit()
    assert set(json.loads((run.output / "results.json").read_text())["splits"]) == {"valid"}


def test_a_run_in_another_folder_starts_a_new_contest(make_scripted: Callable[..., Any]) -> None:
    first = make_scripted(scored((0.9, 0.9)), output="first", epochs=1, run_test=False).fit()
    moved = make_scripted(scored((0, 0), (0.1, 0.2)), output="moved", epochs=2, run_test=False)
    moved.fit(ckpt_path=first.output / "last.ckpt")
    assert best_of(moved).best["ema"] == {"score": pytest.approx(0.2), "epoch": 1}
    assert (moved.output / "checkpoint_best_total.pth").exists()


def test_a_resumed_run_without_a_new_best_reports_the_old_one(
    make_scripted: Callable[..., Any],
) -> None:
    first = make_scripted(scored((0.9, 0.8)), epochs=1).fit()
    resumed = make_scripted(scored((0, 0), (0.1, 0.2)), epochs=2).fit(
        ckpt_path=first.output / "last.ckpt"
    )
    assert best_of(resumed).best["regular"]["epoch"] == 0
    assert set(best_of(resumed).results) == {"valid", "test"}


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), KeyboardInterrupt()])
def test_a_run_that_breaks_off_leaves_its_best_weights(
    make_run: Callable[..., Any], error: BaseException
) -> None:
    def fail(trainer: Any, _: Any) -> None:
        if trainer.current_epoch == 1:
            raise error

    run = make_run(epochs=3, watch={"on_train_batch_start": fail})
    lock = run.output / ".run.lock"
    held: list[bool] = []
    last = pl.Callback()
    last.on_exception = lambda *_: held.append(lock.exists())  # type: ignore[method-assign]
    run.trainer.callbacks.append(last)
    with pytest.raises(type(error)):
        run.fit()
    # No other run may come before the last file is written.
    assert (held, lock.exists()) == (
        [True],
        False,
    )
    assert torch.load(run.output / "last.ckpt")["epoch"] == 1  # the one to go on with
    kinds = ("total", best_of(run).best_kind)
    assert torch.equal(*(class_head(run.output / f"checkpoint_best_{kind}.pth") for kind in kinds))
    assert not list(run.output.glob(".*.tmp"))


def test_a_run_that_was_never_evaluated_still_leaves_weights(make_run: Callable[..., Any]) -> None:
    run = make_run(trainer={"limit_val_batches": 0}, epochs=1, use_ema=False, run_test=False).fit()
    total = class_head(run.output / "checkpoint_best_total.pth")
    assert torch.equal(
        total, torch.load(run.output / "last.ckpt")["state_dict"]["model.class_head.weight"]
    )


def test_fast_dev_run_leaves_nothing(make_run: Callable[..., Any]) -> None:
    assert not make_run(trainer={"fast_dev_run": 2}).fit().output.exists()


def test_of_a_segmentation_model_the_masks_decide(
    make_run: Callable[..., Any], add_outlines: Callable[[], None]
) -> None:
    model = {"segmentation_head": True, "amp": False}
    run = make_run(model=model, epochs=1, run_test=False, lr=2e-3, ema_decay=0.5, ema_tau=0)
    dataset = run.module.train_config.dataset_dir
    add_outlines()
    run.fit()
    figures = run.trainer.callback_metrics
    callback = best_of(run)
    assert callback.best["regular"]["score"] == pytest.approx(float(figures["val/segm_mAP_50_95"]))
    assert callback.best["ema"]["score"] == pytest.approx(float(figures["val/ema_segm_mAP_50_95"]))
    written = json.loads((run.output / "results.json").read_text())["splits"]["valid"]
    again = RFDETR.from_checkpoint(run.output / "checkpoint_best_total.pth", amp=False)
    metrics = again.evaluate(dataset, split="valid", num_workers=0)
    assert as_record(metrics) == written and written["masks"]["boxes"] == written["boxes"] > 0


def test_best_weights_outlive_a_lost_checksums_file(make_scripted: Callable[..., Any]) -> None:
    first = make_scripted(scored((0.9, 0.8)), epochs=1, run_test=False).fit()
    (first.output / "checksums.json").unlink()
    before = (first.output / "checkpoint_best_regular.pth").read_bytes()
    resumed = make_scripted(scored((0, 0), (0.1, 0.2)), epochs=2, run_test=False).fit(
        ckpt_path=first.output / "last.ckpt"
    )
    assert best_of(resumed).best["regular"] == {"score": pytest.approx(0.9), "epoch": 0}
    assert (first.output / "checkpoint_best_regular.pth").read_bytes() == before
