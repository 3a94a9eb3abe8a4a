"""Metrics in the loop: logged names, one pass for both sets of weights, and what does not count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping

from rfdetr.data import dataset as dataset_module
from rfdetr.training import COCOEvalCallback
from rfdetr.training.callbacks.validation import evaluate_loader
from rfdetr.training.records import read_rows
from rfdetr.weights.names import from_published

FIGURES = {"mAP_50_95", "mAP_50", "mAP_75", "mAR", "F1", "precision", "recall"}


def test_live_and_averaged_weights_are_logged_after_every_epoch(
    make_run: Callable[..., Any],
) -> None:
    run = make_run(epochs=1).fit()
    names = set(run.trainer.callback_metrics)
    assert {f"val/{figure}" for figure in FIGURES} <= names
    assert {f"val/ema_{figure}" for figure in FIGURES} <= names
    assert "val/loss" in names
    assert any(name.startswith("val/AP/") for name in names)
    assert {"train/loss", "train/loss_bbox", "train/loss_ce_enc", "train/lr"} <= names


@pytest.mark.parametrize(
    ("setting", "absent"),
    [
        ({"compute_val_loss": False}, "val/loss"),
        ({"log_per_class_metrics": False}, "val/AP/"),
        ({"use_ema": False}, "val/ema_"),
    ],
)
def test_what_is_switched_off_is_not_logged(
    make_run: Callable[..., Any], setting: dict[str, Any], absent: str
) -> None:
    run = make_run(epochs=1, run_test=False, **setting).fit()
    assert "val/mAP_50_95" in run.trainer.callback_metrics
    assert not [name for name in run.trainer.callback_metrics if name.startswith(absent)]


def test_both_sets_of_weights_share_one_pass_over_the_images(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = dataset_module.decode_image

    def count(path: Path) -> Any:
        decoded.append(path.parent.name)
        return decode(path)

    monkeypatch.setattr(dataset_module, "decode_image", count)
    run = make_run(epochs=1, run_test=False).fit()
    assert decoded.count("valid") == 4
    assert "val/ema_mAP_50_95" in run.trainer.callback_metrics


def test_the_average_is_judged_by_its_own_detections(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1, model={"amp": False}, ema_decay=0.9, ema_tau=0, lr=1e-2).fit()
    callback = next(
        callback for callback in run.trainer.callbacks if isinstance(callback, COCOEvalCallback)
    )
    logged = callback.metrics["val/ema_"]
    average = torch.load(run.output / "checkpoint_best_ema.pth")["model"]
    run.module.model.load_state_dict(from_published(average))
    (again,) = evaluate_loader(run.trainer, run.module, run.datamodule.val_dataloader())
    assert again.overall == pytest.approx(logged.overall, nan_ok=True)


@pytest.mark.parametrize("setting", [{"eval_ema_only": True}, {"eval_base_model": False}])
def test_the_average_may_be_validated_alone(
    make_run: Callable[..., Any], setting: dict[str, bool]
) -> None:
    settings = {"epochs": 1, "model": {"amp": False}, "ema_decay": 0.9, "ema_tau": 0, "lr": 1e-2}
    both = make_run(**settings, output="both").fit()
    forwards: list[bool] = []
    alone = make_run(**settings, **setting, run_test=False)
    live = alone.module.model  # of which the average is a copy, with its hooks
    live.register_forward_pre_hook(
        lambda model, _: forwards.append(model.training) if model is live else None
    )
    alone.fit()
    assert forwards and all(forwards)  # live weights were trained, and nothing else
    figures, wanted = alone.trainer.callback_metrics, both.trainer.callback_metrics
    assert [name for name in figures if name.startswith("val/m")] == []
    assert figures["val/ema_mAP_50"] == wanted["val/ema_mAP_50"]
    assert figures["val/loss"] != wanted["val/loss"]  # it is the average's
    assert any(name.startswith("val/ema_AP/") for name in figures)
    assert not (alone.output / "checkpoint_best_regular.pth").exists()
    files = [run.output / "checkpoint_best_ema.pth" for run in (both, alone)]
    assert torch.equal(*(torch.load(file)["model"]["class_embed.weight"] for file in files))
    (again,) = alone.trainer.validate(alone.module, alone.datamodule, verbose=False)
    assert {"val/mAP_50", "val/ema_mAP_50"} <= again.keys()  # what is given is what is validated


def test_without_an_average_the_live_weights_are_validated(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1, use_ema=False, eval_ema_only=True, run_test=False).fit()
    assert "val/mAP_50" in run.trainer.callback_metrics


@pytest.mark.parametrize("watched", ["val/loss", "val/mAP_50_95"])
def test_the_loss_is_evaluated_where_something_watches_it(
    make_run: Callable[..., Any], watched: str
) -> None:
    run = make_run(epochs=1, compute_val_loss="auto", run_test=False)
    run.trainer.callbacks.append(EarlyStopping(watched, patience=9))
    run.fit()
    assert ("val/loss" in run.trainer.callback_metrics) == (watched == "val/loss")


def test_the_sanity_check_counts_for_nothing(make_run: Callable[..., Any]) -> None:
    before: list[set[str]] = []
    watch = {"on_train_start": lambda trainer, _: before.append(set(trainer.callback_metrics))}
    make_run(trainer={"num_sanity_val_steps": 1}, watch=watch, epochs=1).fit()
    assert before == [set()]


def test_only_some_epochs_are_evaluated(make_run: Callable[..., Any]) -> None:
    epochs: list[int] = []
    watch = {"on_validation_end": lambda trainer, _: epochs.append(trainer.current_epoch)}
    make_run(epochs=5, eval_interval=2, watch=watch, run_test=False).fit()
    assert epochs == [1, 3]


def test_a_test_mirrors_the_names(make_run: Callable[..., Any]) -> None:
    run = make_run()
    (figures,) = run.trainer.test(run.module, run.datamodule, verbose=False)
    assert {f"test/{figure}" for figure in FIGURES} | {"test/loss"} <= set(figures)
    assert not [name for name in figures if name.startswith("test/ema_")]  # nothing was averaged


@pytest.mark.parametrize("winner", ["val/", "val/ema_"])
def test_after_fit_the_test_split_has_all_names_of_validation(
    make_run: Callable[..., Any], winner: str
) -> None:
    def choose(trainer: Any, module: Any) -> None:
        module.log(winner + "mAP_50_95", 0.9, prog_bar=True)

    run = make_run(
        watch={"on_validation_epoch_end": choose}, epochs=1, lr=1e-2, ema_decay=0.9, ema_tau=0
    )
    run.trainer.callbacks.append(run.trainer.callbacks.pop(0))  # its figure is the last word
    run.fit()
    rows = read_rows(run.output / "metrics.csv")
    logged = {name for row in rows for name, value in row.items() if value}
    beside = {"val/AP/", "val/ema_AP/"}  # a class may have objects in one split alone
    mirrored = {
        name for name in logged if name.startswith("val/") and not name.startswith(tuple(beside))
    }
    assert {"val/loss", "val/ema_mAP_50_95", "val/F1"} <= mirrored
    assert {name.replace("val/", "test/") for name in mirrored} <= logged
    (tested,) = run.trainer.test(run.module, run.datamodule, verbose=False)
    last = {
        name: float(value)
        for row in rows
        for name, value in row.items()
        if value and name.startswith("test/")
    }
    assert tested == pytest.approx(last, abs=1e-5)


def test_loaders_without_a_datamodule_number_the_classes(make_run: Callable[..., Any]) -> None:
    run = make_run()
    (figures,) = run.trainer.validate(
        run.module, dataloaders=run.datamodule.val_dataloader(), verbose=False
    )
    # No 1.
    assert [name for name in figures if name.startswith("val/AP/")] == [
        "val/AP/0",
        "val/AP/2",
    ]
