"""Checkpoints of other versions: the form the published package writes now, and the one its old
training loop wrote.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch.utils.data import DataLoader, IterableDataset

from rfdetr.training import RFDETREMACallback, RFDETRModule, convert_legacy_checkpoint
from rfdetr.training.checkpoints import names_in_groups
from rfdetr.training.optim import group_name
from rfdetr.weights.names import from_published, our_name, to_published
from rfdetr.weights.reading import read_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
ORDER = list(json.loads((GOLDEN / "layouts.json").read_text())["RFDETRNanoConfig"]["state_dict"])
"""Published names in the order of the published model, more of each kind than the tiny model has.
"""


@pytest.fixture
def donor(make_run: Callable[..., Any]) -> dict[str, torch.Tensor]:
    """Weights of a tiny model under published names."""
    return to_published(make_run(seed=1, output="donor").module.model.state_dict())


def halved(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: tensor * 0.5 if tensor.is_floating_point() else tensor
        for name, tensor in model.items()
    }


def published_ckpt(model: dict[str, torch.Tensor], config: Any, epochs: int = 2) -> dict[str, Any]:
    """What rfdetr 1.11.2 was seen to write after `epochs` epochs of 5 steps: names, nesting and
    kinds of values.
    """
    average = {f"module.model.{name}": tensor for name, tensor in halved(model).items()}
    progress = {
        "total": {},
        "current": {
            "ready": epochs,
            "completed": epochs - 1,
            "started": epochs,
            "processed": epochs,
        },
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
        average = next(
            callback for callback in trainer.callbacks if isinstance(callback, RFDETREMACallback)
        )
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
    make_run: Callable[..., Any],
    donor: dict[str, torch.Tensor],
    tmp_path: Path,
    tiny_model: Callable[..., Any],
) -> None:
    path = tmp_path / "checkpoint_1.ckpt"
    torch.save(published_ckpt(donor, tiny_model()), path)
    start = fit_from(make_run, path)
    assert (start.epoch, start.updates) == (2, 10)
    assert torch.equal(start.live, donor["class_embed.weight"])
    assert torch.equal(start.average, donor["class_embed.weight"] * 0.5)


def test_a_best_pth_of_the_published_package_tells_its_model_and_epoch(
    make_run: Callable[..., Any],
    donor: dict[str, torch.Tensor],
    tmp_path: Path,
    tiny_model: Callable[..., Any],
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
    torch.save(
        {"model": donor, "ema_model": halved(donor), "epoch": 1, "args": {"class_names": ["a"]}},
        old,
    )
    convert_legacy_checkpoint(old, new)
    start = fit_from(make_run, new)
    assert start.epoch == 2
    assert torch.equal(start.average, donor["class_embed.weight"] * 0.5)
    assert torch.load(new, weights_only=True)["args"]["class_names"] == ["a"]

    run, start = make_run(output="plain"), Start()
    trainer = own_trainer(tmp_path, RFDETREMACallback(), start)
    trainer.fit(run.module, run.datamodule, ckpt_path=new)
    assert (start.epoch, trainer.current_epoch) == (2, 3)


def test_last_ckpt_is_read_under_published_names(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1).fit()
    content = torch.load(run.output / "last.ckpt", weights_only=True)
    found = read_checkpoint(run.output / "last.ckpt").model
    assert found.keys() == content["model"].keys() - {"_kp_active_mask"}
    storages = {tensor.untyped_storage().data_ptr() for tensor in content["state_dict"].values()}
    stored = [tensor for tensor in content["model"].values() if tensor.numel()]
    # The names cost no space.
    assert all(tensor.untyped_storage().data_ptr() in storages for tensor in stored)


def in_published_order(donor: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: donor[name] for name in ORDER if name in donor}


def published_optimizer(
    model: dict[str, torch.Tensor], grouped: bool, steps: int = 6
) -> tuple[dict[str, Any], Any]:
    """The state dict of an AdamW after some steps in the published layout, and its state by
    published name.

    One group for each parameter (the old training loop) or one for those of equal rate and decay
    (the present package).
    """
    names = [name for name in model if name != "_kp_active_mask"]
    parts = [
        [
            name
            for name in names
            if not name.startswith(("transformer.decoder.", "backbone.0.encoder."))
        ],
        [name for name in names if name.startswith("backbone.0.encoder.")],
        [name for name in names if name.startswith("transformer.decoder.")],
    ]
    groups: dict[str, list[str]] = {}
    for name in [name for part in parts for name in part]:
        groups.setdefault(group_name(our_name(name)) if grouped else name, []).append(name)
    parameters = {name: torch.nn.Parameter(model[name].clone()) for name in names}
    rates = {
        group: 1e-4 * (1 + i)
        for i, group in enumerate(dict.fromkeys(group_name(our_name(n)) for n in names))
    }
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [parameters[name] for name in members],
                "lr": rates[group_name(our_name(members[0]))],
            }
            for members in groups.values()
        ]
    )
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for name, parameter in parameters.items():
            if "mask_token" not in name:  # no part of the computation
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer.state_dict(), {name: optimizer.state[parameters[name]] for name in names}


def old_file(
    donor: dict[str, torch.Tensor], optimizer: dict[str, Any], epoch: int = 1
) -> dict[str, Any]:
    """What the old training loop wrote after `epoch` + 1 epochs."""
    model = in_published_order(donor)
    return {
        "model": model, "optimizer": optimizer, "epoch": epoch, "ema_model": halved(model),
        "args": argparse.Namespace(resolution=64, class_names=["blue", "green", "red"], lr=1e-4),
        "lr_scheduler": {
            "base_lrs": [1e-4], "last_epoch": 10, "_step_count": 11, "lr_lambdas": [None],
        },
    }  # fmt: skip


def assert_taken_over(module: Any, optimizer: Any, published: dict[str, Any]) -> None:
    kinds = ("exp_avg", "exp_avg_sq")
    wanted = {
        kind: from_published({name: state[kind] for name, state in published.items() if state})
        for kind in kinds
    }
    taken = {
        name: optimizer.state[p]
        for name, p in module.model.named_parameters()
        if p in optimizer.state
    }
    assert taken.keys() == {name for name, p in module.model.named_parameters() if p.requires_grad}
    for name, state in taken.items():
        assert float(state["step"]) == 6
        assert all(torch.equal(state[kind], wanted[kind][name]) for kind in kinds), name


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", ["pth", "converted", "published ckpt"])
def test_the_optimizer_of_another_training_loop_goes_on(
    make_run: Callable[..., Any],
    donor: dict[str, torch.Tensor],
    tiny_model: Callable[..., Any],
    tmp_path: Path,
    grouped: bool,
    kind: str,
) -> None:
    model = in_published_order(donor)
    optimizer, states = published_optimizer(model, grouped)
    path = tmp_path / ("checkpoint.pth" if kind == "pth" else "checkpoint_1.ckpt")
    torch.save(old_file(donor, optimizer), path)
    if kind == "converted":
        path = tmp_path / "new.ckpt"
        convert_legacy_checkpoint(tmp_path / "checkpoint_1.ckpt", path)
    elif kind == "published ckpt":
        torch.save({**published_ckpt(model, tiny_model()), "optimizer_states": [optimizer]}, path)
    seen: dict[str, Any] = {}

    def look(trainer: Any, module: Any) -> None:
        assert_taken_over(module, trainer.optimizers[0], states)
        rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
        seen.update(step=trainer.global_step, epoch=trainer.current_epoch, rate=rates["head"])

    run = make_run(epochs=3, lr=1e-3, lr_scheduler="cosine", watch={"on_train_start": look})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*starts afresh")
        run.fit(ckpt_path=path)
    assert (seen["epoch"], seen["step"]) == (2, 4)  # two updates an epoch
    assert seen["rate"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 4 / 6)))
    assert run.trainer.global_step == 6


def regrouped(optimizer: dict[str, Any]) -> None:
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    optimizer["param_groups"] = [{**optimizer["param_groups"][0], "params": numbers}]


def exchanged(optimizer: dict[str, Any]) -> None:
    groups = optimizer["param_groups"]
    groups[-1]["lr"], groups[-2]["lr"] = 1.0, 2.0  # of two parameters of the decoder


def of_sgd(optimizer: dict[str, Any]) -> None:
    optimizer["state"] = {
        number: {"momentum_buffer": torch.ones(1)} for number in optimizer["state"]
    }


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (regrouped, "are in no published layout"),
        (exchanged, "learning rates in it are not those of the published order"),
        (of_sgd, "no state of AdamW"),
        (lambda optimizer: optimizer.clear(), "no state of an optimizer"),
    ],
)
def test_an_optimizer_that_is_not_known_again_is_one_warning(
    make_run: Callable[..., Any],
    donor: dict[str, torch.Tensor],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    why: str,
) -> None:
    optimizer, _ = published_optimizer(in_published_order(donor), grouped=False)
    change(optimizer)
    path = tmp_path / "checkpoint.pth"
    torch.save(old_file(donor, optimizer), path)
    with pytest.warns(UserWarning, match=f"checkpoint.pth: the optimizer starts afresh: .*{why}"):
        run = make_run(epochs=3).fit(ckpt_path=path)
    assert run.trainer.current_epoch == 3


def test_the_order_in_the_optimizer_is_the_published_one() -> None:
    golden = json.loads((GOLDEN / "det_p16_w2.json").read_text())
    names = list(golden["param_groups"])
    model = {name: torch.zeros(1) for name in ORDER if name in golden["param_groups"]}
    model |= {name: torch.zeros(1) for name in names if name not in model}
    sizes = [
        len(list(group))
        for _, group in itertools.groupby(names, key=lambda name: group_name(our_name(name)))
    ]
    assert names_in_groups(model, sizes) == names


def own_trainer(tmp_path: Path, *callbacks: pl.Callback, **more: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=list(callbacks), default_root_dir=tmp_path, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["own trainer", "own file access", "plugins", "plugins with file access"]
)
def test_any_trainer_goes_on_from_a_legacy_file(
    make_run: Callable[..., Any], donor: dict[str, torch.Tensor], tmp_path: Path, kind: str
) -> None:
    optimizer, states = published_optimizer(in_published_order(donor), grouped=False)
    path = tmp_path / "checkpoint.pth"
    torch.save(old_file(donor, optimizer), path)
    io, precision = TorchCheckpointIO(), pl.plugins.MixedPrecision("bf16-mixed", "cpu")
    settings = {
        "own trainer": {}, "own file access": {"plugins": [io]},
        "plugins": {"plugins": [precision], "precision": None},
        "plugins with file access": {"plugins": io},
    }[kind]  # fmt: skip
    built = kind.startswith("plugins")
    run = make_run(epochs=3, trainer=settings if built else None)
    trainer = run.trainer if built else own_trainer(tmp_path, **settings)
    trainer.callbacks.append(
        Watch("on_train_start", lambda trainer, module: assert_start(trainer, module, states))
    )
    trainer.fit(run.module, run.datamodule, ckpt_path=path)
    assert trainer.current_epoch == 3


@pytest.mark.parametrize("epoch", [-1, 1])
def test_a_legacy_file_goes_on_with_a_loader_that_tells_no_length(
    make_run: Callable[..., Any], donor: dict[str, torch.Tensor], tmp_path: Path, epoch: int
) -> None:
    """How many updates its epochs had is not known then: they are counted from 0."""

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(list(run.datamodule.train_dataloader()))

    path = tmp_path / "checkpoint.pth"
    torch.save({"model": donor, "epoch": epoch}, path)
    begun: list[int] = []
    watch = {"on_train_start": lambda trainer, _: begun.append(trainer.current_epoch)}
    run = make_run(epochs=epoch + 3, run_test=False, trainer={"max_steps": 2}, watch=watch)
    run.datamodule.setup("fit")
    loader = DataLoader(Endless(), batch_size=None)
    run.trainer.fit(run.module, loader, run.datamodule.val_dataloader(), ckpt_path=path)
    assert (begun, run.trainer.global_step) == ([epoch + 1], 2)


class Watch(pl.Callback):
    def __init__(self, hook: str, look: Callable[..., None]) -> None:
        setattr(self, hook, look)


def assert_start(trainer: Any, module: Any, states: dict[str, Any]) -> None:
    assert trainer.current_epoch == 2
    assert_taken_over(module, trainer.optimizers[0], states)


def test_a_module_converts_what_it_is_given_outside_of_a_trainer(
    make_run: Callable[..., Any], donor: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(old_file(donor, {}), path)
    content = torch.load(path, weights_only=False)
    module = make_run(seed=5).module
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    assert torch.equal(module.model.class_head.weight, donor["class_embed.weight"])
    loaded = RFDETRModule.load_from_checkpoint(path, model_config=module.model_config)
    assert torch.equal(loaded.model.class_head.weight, donor["class_embed.weight"])
    assert loaded.class_names == ["blue", "green", "red"]


def test_figures_of_the_epochs_before_stay_where_a_legacy_file_is_gone_on_from(
    make_run: Callable[..., Any],
) -> None:
    first = make_run(epochs=2).fit()
    rows = (first.output / "metrics.csv").read_text().splitlines()
    path = first.output / "checkpoint.pth"
    torch.save({"model": to_published(first.module.model.state_dict()), "epoch": 0}, path)
    make_run(epochs=2).fit(ckpt_path=path)
    again = (first.output / "metrics.csv").read_text().splitlines()
    of_first = [row for row in rows if row.split(",")[rows[0].split(",").index("epoch")] == "0"]
    assert len(of_first) > 3 and again[1 : 1 + len(of_first)] == of_first
    assert [
        json.loads(line)["epoch"] for line in (first.output / "log.txt").read_text().splitlines()
    ] == [0, 1]

    # No epoch: all that is there stays.
    torch.save({"model": to_published(first.module.model.state_dict())}, path)
    before = (first.output / "metrics.csv").read_text()
    make_run(epochs=1).fit(ckpt_path=path)
    assert (first.output / "metrics.csv").read_text().startswith(before)
    epochs = [
        json.loads(line)["epoch"] for line in (first.output / "log.txt").read_text().splitlines()
    ]
    assert epochs == [0, 1, 0]
