"""Training state on disk: whole files only, no code from them, exact resume, weights files as a
start.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from rfdetr.files import CHECKSUMS_FILE
from rfdetr.training.checkpoints import AtomicCheckpointIO, lightning_checkpoint
from rfdetr.training.verify import content_hashes
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import CheckpointError, read_checkpoint

EVERYTHING_ON = {"drop_path": 0.2, "multi_scale": True, "early_stopping": True}
PUBLISHED = {
    "multi_scale": "per-sample", "smooth_alpha": 0.5, "skip_best_epochs": 1, "eval_ema_only": True,
    "ema_update_interval": 2, "ema_tau": 0, "best_model_metric": "mar", "early_stopping": True,
    "notes": "one", "class_names": ["a", "b", "c"], "save_dataset_grids": True,
}  # fmt: skip


class Unsafe:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code from a checkpoint",)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": 1}, path)
    with pytest.raises(AttributeError):
        # A local function cannot be written.
        AtomicCheckpointIO().save_checkpoint({"state_dict": lambda: 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["state_dict"] == 1
    assert sorted(tmp_path.iterdir()) == [tmp_path / CHECKSUMS_FILE, path]


def test_code_in_a_file_is_not_run_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": Unsafe()}, path)
    with pytest.raises(CheckpointError, match=r"foreign\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(path)
    assert capsys.readouterr().out == ""
    AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert "code" in capsys.readouterr().out


def stop_after(epoch: int) -> Callable[..., None]:
    def stop(trainer: Any, _: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.current_epoch == epoch

    return stop


@pytest.mark.parametrize(
    "chosen",
    [EVERYTHING_ON, pytest.param(PUBLISHED, marks=pytest.mark.slow)],
    ids=["ours", "published"],
)
def test_a_resumed_run_is_the_whole_run_bit_for_bit(
    make_run: Callable[..., Any], chosen: dict[str, Any]
) -> None:
    settings = {**chosen, "epochs": 4}
    whole = make_run(output="whole", **settings).fit()
    make_run(output="parts", watch={"on_train_epoch_end": stop_after(1)}, **settings).fit()
    resumed = make_run(output="parts", **settings).fit(
        ckpt_path=whole.output.parent / "parts" / "last.ckpt"
    )

    assert content_hashes(resumed.output) == content_hashes(whole.output)
    assert_same(*(torch.load(run.output / "checkpoint_best_total.pth") for run in (whole, resumed)))
    assert_same(*((run.output / "metrics.csv").read_text() for run in (whole, resumed)))
    assert_same(*([without_time(line) for line in read_log(run)] for run in (whole, resumed)))
    assert [record["epoch"] for record in read_log(resumed)] == [0, 1, 2, 3]


def assert_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for pair in zip(found, wanted, strict=True):
            assert_same(*pair)
    else:
        assert found == wanted


def read_log(run: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.output / "log.txt").read_text().splitlines()]


def without_time(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "seconds"}


def test_a_drawn_seed_is_resumed_too(make_run: Callable[..., Any]) -> None:
    first = make_run(seed=None, epochs=1).fit()
    second = make_run(seed=None, epochs=2).fit(ckpt_path=first.output / "last.ckpt")
    assert second.module.seed == first.module.seed
    assert second.trainer.train_dataloader.sampler.seed == first.module.seed


def test_last_ckpt_names_the_model_and_its_classes(make_run: Callable[..., Any]) -> None:
    content = torch.load(make_run(epochs=1).fit().output / "last.ckpt", weights_only=True)
    assert content["args"]["class_names"] == ["blue", "green", "red"]
    assert content["args"]["variant"] == "mini"
    assert content["seed"] == 7


def test_a_legacy_file_goes_on_at_its_epoch_with_its_average(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    donor = make_run(seed=1)
    live = to_published(donor.module.model.state_dict())
    average = {
        name: tensor * 0.5 if tensor.is_floating_point() else tensor
        for name, tensor in live.items()
    }
    torch.save(
        {"model": live, "ema_model": average, "epoch": 1, "optimizer": {}},
        tmp_path / "checkpoint.pth",
    )

    started: dict[str, Any] = {}

    def look(trainer: pl.Trainer, module: Any) -> None:
        if not started:
            started.update(
                epoch=trainer.current_epoch, live=module.model.class_head.weight.detach().clone()
            )
            started["average"] = next(
                c for c in trainer.callbacks if hasattr(c, "averaged")
            ).averaged()
            started["average"] = started["average"].class_head.weight.detach().clone()

    run = make_run(epochs=3, watch={"on_train_batch_start": look}).fit(
        ckpt_path=tmp_path / "checkpoint.pth"
    )
    assert started["epoch"] == 2
    assert torch.equal(started["live"], live["class_embed.weight"])
    assert torch.equal(started["average"], average["class_embed.weight"])
    assert [record["epoch"] for record in read_log(run)] == [2]


def test_weights_that_are_not_finite_are_not_gone_on_from(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    content = torch.load(make_run(epochs=1).fit().output / "last.ckpt", weights_only=True)
    content["state_dict"]["model.class_head.bias"][0] = float("nan")
    torch.save(content, tmp_path / "broken.ckpt")
    with pytest.raises(
        CheckpointError, match=r"broken\.ckpt holds NaN .* in 1 of .*: model\.class_head\.bias"
    ):
        make_run(output="again").fit(ckpt_path=tmp_path / "broken.ckpt")


def test_a_file_of_weights_alone_starts_at_the_first_epoch(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    torch.save(
        {"model": to_published(make_run().module.model.state_dict())}, tmp_path / "weights.pth"
    )
    content = lightning_checkpoint(read_checkpoint(tmp_path / "weights.pth"))
    assert content["epoch"] == 0
    assert content["callbacks"] == {}


def test_best_weights_can_be_tested_by_name_and_by_path(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1).fit()
    by_name = run.trainer.test(run.module, run.datamodule, ckpt_path="best", verbose=False)
    other = make_run(seed=99)
    path = run.output / "checkpoint_best_total.pth"
    by_path = other.trainer.test(other.module, other.datamodule, ckpt_path=path, verbose=False)
    # Which has test/ema_* too: that run has an average.
    assert by_path[0].items() <= by_name[0].items()
