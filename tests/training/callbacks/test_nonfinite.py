"""Faults while training: steps without finite numbers, undecodable images, too little memory."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rfdetr.training.callbacks import NonFiniteCallback, UndecodableCallback

MakeRun = Callable[..., Any]
SCRIPT = Path(__file__).parents[1] / "scripts" / "skip.py"
PLAIN = {"epochs": 1, "use_ema": False, "run_test": False}


def spoil(module: Any, *steps: int, to: float = float("nan")) -> None:
    """Makes the module's loss `to` in these optimizer steps."""
    whole = module.compute_losses

    def compute_losses(*args: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = whole(*args)
        factor = to if module.global_step in steps else 1.0
        return {name: value * factor for name, value in losses.items()}

    module.compute_losses = compute_losses


def faults(run: Any) -> NonFiniteCallback:
    return next(
        callback for callback in run.trainer.callbacks if isinstance(callback, NonFiniteCallback)
    )


@pytest.mark.parametrize("to", [float("nan"), float("inf")])
def test_a_step_without_a_finite_loss_changes_nothing_and_leaves_its_batches(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture, to: float
) -> None:
    weights: list[Tensor] = []
    watch = {
        "on_train_batch_start": lambda _, module: weights.append(
            module.model.class_head.weight.clone()
        )
    }
    run = make_run(**PLAIN, watch=watch)  # three batches, two a window: two steps
    spoil(run.module, 0, to=to)
    images, targets = next(iter(run.datamodule.train_dataloader()))
    run.fit()
    assert torch.equal(weights[0], weights[2]) and not torch.equal(
        weights[2], run.module.model.class_head.weight
    )
    assert (faults(run).skipped, faults(run).in_a_row) == (1, 0)
    saved = torch.load(run.output / "nonfinite-step-0000000.pt", weights_only=True)
    assert (saved["step"], saved["epoch"], saved["seed"], len(saved["batches"])) == (0, 0, 7, 2)
    assert torch.equal(saved["batches"][0]["images"], images.tensors)
    assert torch.equal(saved["batches"][0]["targets"][0]["boxes"], targets[0]["boxes"])
    assert not saved["losses"].isfinite().any()
    assert "optimizer step 0 skipped" in caplog.text and "nonfinite-step-0000000.pt" in caplog.text
    assert all(weight.isfinite().all() for weight in run.module.model.parameters())


def test_a_gradient_that_is_not_finite_is_enough(make_run: MakeRun) -> None:
    run = make_run(**PLAIN)
    weight = run.module.model.class_head.weight
    weight.register_hook(
        lambda gradient: gradient * (float("inf") if run.module.global_step == 1 else 1)
    )
    run.fit()
    assert faults(run).skipped == 1 and weight.isfinite().all()


def test_ten_skipped_steps_in_a_row_stop_the_run_with_the_files_name(make_run: MakeRun) -> None:
    run = make_run(**{**PLAIN, "epochs": 9}, grad_accum_steps=1, eval_interval=9)
    spoil(run.module, *range(4, 27))
    with pytest.raises(
        FloatingPointError,
        match=r"10 optimizer steps in a row.* step 13; .*nonfinite-step-0000013\.pt",
    ):
        run.fit()
    assert len(list(run.output.glob("nonfinite-*.pt"))) == 10


def test_a_good_step_between_starts_the_count_anew(make_run: MakeRun) -> None:
    run = make_run(**{**PLAIN, "epochs": 7}, grad_accum_steps=1, eval_interval=7)
    spoil(run.module, *range(9), *range(10, 19))
    run.fit()
    assert (faults(run).skipped, faults(run).in_a_row) == (18, 0)


@pytest.mark.parametrize("lr", [1e4, 1e12, 1e39])
@pytest.mark.parametrize("interval", [1, 4])
def test_a_rate_that_explodes_ends_in_one_error_and_leaves_the_last_good_file(
    make_run: MakeRun, lr: float, interval: int
) -> None:
    run = make_run(
        epochs=4, run_test=False, lr=lr, lr_encoder=lr, grad_accum_steps=1, eval_interval=interval
    )
    with pytest.raises(
        FloatingPointError, match=r"step \d+.*[Ll]ast losses: .*loss_\w+ .*Lower lr"
    ):
        run.fit()
    if (last := run.output / "last.ckpt").exists():
        weights = torch.load(last, weights_only=True)["state_dict"]
        assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize(
    ("name", "moment"), [("weights", "on_train_epoch_end"), ("boxes", "on_validation_start")]
)
def test_what_breaks_between_training_and_validation_is_told(
    make_run: MakeRun, name: str, moment: str
) -> None:
    def spoil_weights(_: Any, module: Any) -> None:
        module.detector.box_head.layers[-1].bias.data.fill_(
            float("inf") if name == "weights" else 1e4
        )

    run = make_run(**PLAIN, watch={moment: spoil_weights})
    with pytest.raises(
        FloatingPointError, match=rf"after optimizer step 2 the .*{name} are not finite"
    ):
        run.fit()


def damage(dataset: Path, *names: str) -> None:
    for name in names:
        data = (dataset / name).read_bytes()
        (dataset / name).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_replaced_counted_and_named(
    make_run: MakeRun,
    make_tiny_coco: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    workers: int,
) -> None:
    dataset = make_tiny_coco({"train": 6, "valid": 4}, name="damaged")
    damage(dataset, "train/3.png", "valid/1.png")
    run = make_run(**PLAIN, dataset_dir=dataset, num_workers=workers).fit()
    counted = next(c for c in run.trainer.callbacks if isinstance(c, UndecodableCallback))
    assert dict(counted.images) == {"train": {3}, "valid": {1}}
    if not workers:  # those of a worker go straight to the error stream
        assert (
            "train/3.png" in caplog.text
            and "replaced by" in caplog.text
            and "valid/1.png" in caplog.text
        )
    loader = run.datamodule.train_dataloader().dataset
    _, target = loader[3]
    _, twin = loader[4]
    assert target["image_id"] == twin["image_id"] and target["undecodable"].tolist() == [3, 6]
    gray, missed = run.datamodule.val_dataloader().dataset[1]
    assert (gray == 128).all() and missed["image_id"] == 2 and len(missed["labels"]) == 1


def test_too_many_undecodable_images_stop_the_run(
    make_run: MakeRun, make_tiny_coco: Callable[..., Path]
) -> None:
    dataset = make_tiny_coco({"train": 6, "valid": 4}, name="damaged")
    damage(dataset, "train/3.png", "train/5.png")
    with pytest.raises(
        RuntimeError, match=r"2 of 6 train images cannot be decoded, more than 1%.*rfdetr check"
    ):
        make_run(**PLAIN, dataset_dir=dataset).fit()


def test_too_little_memory_says_what_to_lower_and_what_fitted(make_run: MakeRun) -> None:
    def exhaust(trainer: Any, _: Any) -> None:
        if trainer.global_step == 1:
            torch.empty(2**58)

    run = make_run(**PLAIN, watch={"on_train_batch_start": exhaust})
    with pytest.raises(
        torch.OutOfMemoryError, match=r"fitted: 2 images at 64 x 64 pixels. Lower batch_size"
    ):
        run.fit()


def test_counts_survive_a_checkpoint() -> None:
    first, second = NonFiniteCallback("a"), NonFiniteCallback("b")
    first.skipped, first.in_a_row = 5, 3
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() == {"skipped": 5, "in_a_row": 3}
    assert second.state_key == "FaultsCallback"  # as checkpoints of earlier versions have it
    images, restored = UndecodableCallback(), UndecodableCallback()
    images.images["train"].add(9)
    restored.load_state_dict(images.state_dict())
    assert restored.state_dict() == images.state_dict() == {"train": [9]}


def test_warnings_of_the_labels_are_logged_before_training(
    make_run: MakeRun,
    make_tiny_coco: Callable[..., Path],
    edit_coco: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = make_tiny_coco({"train": 6, "valid": 4}, name="odd")
    edit_coco(
        dataset / "train" / "_annotations.coco.json",
        lambda c: c["annotations"][0].update(bbox=[-4, 1, 9, 9]),
    )
    with caplog.at_level(logging.WARNING):
        make_run(**PLAIN, dataset_dir=dataset).datamodule.setup("fit")
    assert "1 x box-clipped" in caplog.text and "annotation id 1" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_skip_a_step_together(
    make_tiny_coco: Callable[..., Path], tmp_path: Path, ranks: Any, strategy: str
) -> None:
    """The second rank alone has no loss in the second step, in a window of two batches."""
    train = {
        "dataset_dir": str(make_tiny_coco({"train": 8, "valid": 2})),
        "output_dir": str(tmp_path / "output"), "epochs": 1, "batch_size": 1,
        "grad_accum_steps": 2, "num_workers": 0, "seed": 7, "use_ema": False, "run_test": False,
    }  # fmt: skip
    settings = {
        "train": train,
        "strategy": strategy,
        "model": {"resolution": 64, "num_classes": 3, "amp": False, "pretrain_weights": None},
    }
    done = ranks(2, SCRIPT, settings, tmp_path)
    assert done.returncode == 0, done.stderr[-9000:]
    first, second = (
        json.loads((tmp_path / "output" / f"rank{rank}.json").read_text()) for rank in (0, 1)
    )
    assert (first["skipped"], first["step"], second["skipped"], second["step"]) == (1, 2, 1, 2)
    assert math.isfinite(first["sum"]) and (strategy == "fsdp" or first["sum"] == second["sum"])
    assert len(list((tmp_path / "output").glob("nonfinite-step-0000001-rank*.pt"))) == 2
