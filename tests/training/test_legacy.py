"""Checkpoints of other versions: the form the published package writes now, and the one its old training loop wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from rfdetr.training import RFDETREMACallback, convert_legacy_checkpoint
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import read_checkpoint


@pytest.fixture
def donor(make_run: Callable[..., Any]) -> dict[str, torch.Tensor]:
    """Weights of a tiny model under published names."""
    return to_published(make_run(seed=1, output="donor").module.model.state_dict())


def halved(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in model.items()}


def published_ckpt(model: dict[str, torch.Tensor], config: Any, epochs: int = 2) -> dict[str, Any]:
    """What rfdetr 1.11.2 was seen to write after `epochs` epochs of 5 steps: names, nesting and kinds of values."""
    average = {f"module.model.{name}": tensor for name, tensor in halved(model).items()}
    progress = {
        "total": {},
        "current": {"ready": epochs, "completed": epochs - 1, "started": epochs, "processed": epochs},
    }
    return {
        "epoch": epochs - 1,
        "global_step": epochs * 5,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": tensor for name, tensor in model.items()},
        "loops": {"fit_loop": {"epoch_progress": progress}},
        "callbacks": {
            "RFDETREMACallback": {
                "latest_update_step": epochs * 5,
                "average_model_state_dict": {"n_averaged": torch.tensor(10), **average},
            },
            "BestModelCallback{'monitor': 'val/mAP_50_95', 'mode': 'max'}": {"best_k_models": {}},
        },
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
        "lr_schedulers": [{"base_lrs": [1e-4]}],
        "args": {"lr": 1e-4, "multi_scale": "off", "class_names": ["blue", "green", "red"]},
        "model_name": "RFDETRNano",
        "model_config": {**config.model_dump(), "resolution": 64, "two_stage": True},
        "rfdetr_version": "1.11.2",
    }


class Start(pl.Callback):
    """What a run starts from."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        average = next(callback for callback in trainer.callbacks if isinstance(callback, RFDETREMACallback))
        self.epoch = trainer.current_epoch
        self.live = pl_module.model.class_head.weight.detach().clone()
        self.average = average.averaged().class_head.weight.clone()
        self.updates = average.updates


def fit_from(make_run: Callable[..., Any], path: Path, epochs: int = 3) -> Start:
    run, start = make_run(epochs=epochs), Start()
    run.trainer.callbacks.append(start)
    run.fit(ckpt_path=path)
    assert run.trainer.current_epoch == epochs
    return start


def test_a_ckpt_of_the_published_package_goes_on_with_its_average(
    make_run: Callable[..., Any], donor: dict[str, torch.Tensor], tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    path = tmp_path / "checkpoint_1.ckpt"
    torch.save(published_ckpt(donor, tiny_model()), path)
    start = fit_from(make_run, path)
    assert (start.epoch, start.updates) == (2, 10)
    assert torch.equal(start.live, donor["class_embed.weight"])
    assert torch.equal(start.average, donor["class_embed.weight"] * 0.5)


def test_a_best_pth_of_the_published_package_tells_its_model_and_epoch(
    make_run: Callable[..., Any], donor: dict[str, torch.Tensor], tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    path = tmp_path / "checkpoint_best_ema.pth"
    torch.save({**published_ckpt(donor, tiny_model()), "model": donor, "epoch": 2}, path)
    file = read_checkpoint(path)
    assert (file.args["resolution"], file.args["class_names"]) == (64, ["blue", "green", "red"])
    assert fit_from(make_run, path).epoch == 2


def test_conversion_writes_what_any_trainer_goes_on_from(
    make_run: Callable[..., Any], donor: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    old, new = tmp_path / "old_checkpoint.pth", tmp_path / "new_checkpoint.ckpt"
    torch.save({"model": donor, "ema_model": halved(donor), "epoch": 1, "args": {"class_names": ["a"]}}, old)
    convert_legacy_checkpoint(old, new)
    start = fit_from(make_run, new)
    assert start.epoch == 2
    assert torch.equal(start.average, donor["class_embed.weight"] * 0.5)
    assert torch.load(new, weights_only=True)["args"]["class_names"] == ["a"]

    run, start = make_run(output="plain"), Start()
    average = RFDETREMACallback()
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, callbacks=[average, start],
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(run.module, run.datamodule, ckpt_path=new)
    assert (start.epoch, trainer.current_epoch) == (2, 3)


def test_last_ckpt_is_read_under_published_names(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1).fit()
    content = torch.load(run.output / "last.ckpt", weights_only=True)
    found = read_checkpoint(run.output / "last.ckpt").model
    assert found.keys() == content["model"].keys() - {"_kp_active_mask"}
    storages = {tensor.untyped_storage().data_ptr() for tensor in content["state_dict"].values()}
    stored = [tensor for tensor in content["model"].values() if tensor.numel()]
    assert all(tensor.untyped_storage().data_ptr() in storages for tensor in stored)  # the names cost no space
