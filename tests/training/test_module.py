"""The LightningModule: gradients over accumulated batches, schedule, seeds, hooks, and its size."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from rfdetr.config import ModelConfig, TrainConfig
from rfdetr.data.dataset import NestedTensor
from rfdetr.data.images import normalize
from rfdetr.errors import InputError
from rfdetr.training import RFDETRDataModule, RFDETRModule
from rfdetr.training.optim import lr_factor
from rfdetr.training.steps import multi_scale_sizes, resize_batch, without_crowds
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import read_checkpoint
from rfdetr.weights.writing import save_checkpoint

FULL_PRECISION = {"amp": False}


def mean_loss_gradient(module: RFDETRModule, batches: list[Any]) -> Tensor:
    module.zero_grad()
    for images, targets in batches:
        losses = module.criterion(module.model(normalize(images.tensors)), targets)
        (torch.stack(list(losses.values())).sum() / len(batches)).backward()
    return flat_gradient(module)


def flat_gradient(module: RFDETRModule) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.model.parameters() if p.grad is not None])


def test_an_update_takes_the_mean_gradient_of_its_batches_once(
    make_run: Callable[..., Any],
) -> None:
    """Three batches, two a window: the second has one batch, whose gradient is not halved."""
    gradients: list[Tensor] = []
    run = make_run(
        model=FULL_PRECISION,
        watch={
            "on_before_optimizer_step": lambda _, module: gradients.append(flat_gradient(module))
        },
        epochs=1,
        lr=1e-9,
        lr_encoder=0,
        weight_decay=0,
        clip_max_norm=0,
        use_ema=False,
        run_test=False,
    )
    batches = list(run.datamodule.train_dataloader())
    expected = [
        mean_loss_gradient(run.module, batches[:2]),
        mean_loss_gradient(run.module, batches[2:]),
    ]
    run.module.zero_grad()
    run.fit()
    assert len(gradients) == 2
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_learning_rate_moves_at_every_optimizer_step(make_run: Callable[..., Any]) -> None:
    rates: list[float] = []
    watch = {"on_before_optimizer_step": lambda trainer, _: rates.append(head_rate(trainer))}
    run = make_run(
        watch=watch, epochs=4, warmup_epochs=1, lr_scheduler="cosine", lr_min_factor=0.1
    ).fit()
    schedule: dict[str, Any] = {
        "lr_scheduler": "cosine",
        "warmup_epochs": 1,
        "lr_min_factor": 0.1,
        "steps_per_epoch": 2,
    }
    assert run.module.total_steps == 8
    assert rates == pytest.approx(
        [1e-3 * lr_factor(step, total_steps=8, **schedule) for step in range(8)]
    )


def head_rate(trainer: Any) -> float:
    return float(
        next(group["lr"] for group in trainer.optimizers[0].param_groups if group["name"] == "head")
    )


def steps_from_the_output(name: str) -> int | None:
    """Decays of the rate of one of the Mini's encoder weights; None outside of the encoder."""
    part, *rest = name.split(".")
    if part != "encoder":
        return None
    return 6 - int(rest[1]) if rest[0] == "blocks" else 0 if rest[0] == "norm" else 7


def test_every_parameter_has_its_own_rate_at_every_step(make_run: Callable[..., Any]) -> None:
    """Warm-up over two steps, then "step" with its drop at the third epoch; five blocks that decay
    by 0.5 each.
    """
    seen: list[dict[str, float]] = []

    def look(trainer: Any, module: RFDETRModule) -> None:
        names = {id(parameter): name for name, parameter in module.model.named_parameters()}
        groups = trainer.optimizers[0].param_groups
        seen.append(
            {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
        )

    run = make_run(
        watch={"on_before_optimizer_step": look},
        epochs=3,
        warmup_epochs=1,
        lr_drop=2,
        lr=1e-3,
        lr_encoder=8e-4,
        lr_vit_layer_decay=0.5,
        lr_component_decay=0.5,
        run_test=False,
    )
    trained = [
        name for name, parameter in run.module.model.named_parameters() if parameter.requires_grad
    ]
    run.fit()
    factors = [0.0, 0.5, 1.0, 1.0, 0.1, 0.1]
    assert len(seen) == len(factors)
    for rates, factor in zip(seen, factors, strict=True):
        for name in trained:
            decays = steps_from_the_output(name)
            base = (
                8e-4 * 0.25 * 0.5**decays
                if decays is not None
                else 5e-4
                if name.startswith("decoder.")
                else 1e-3
            )
            assert rates.pop(name) == pytest.approx(base * factor, rel=1e-9), name
        assert not rates


def test_a_run_stops_when_nothing_improves_any_more(make_run: Callable[..., Any]) -> None:
    stopping = {
        "early_stopping": True,
        "early_stopping_patience": 2,
        "early_stopping_min_delta": 1.0,
    }
    run = make_run(epochs=9, batch_size=6, grad_accum_steps=1, run_test=False, **stopping).fit()
    assert run.trainer.current_epoch == 3  # the first sets the mark, and no mAP rises by 1


def test_the_same_seed_gives_the_same_weights(
    tiny_model: Callable[..., ModelConfig], train_config: Callable[..., TrainConfig]
) -> None:
    before = torch.random.get_rng_state()
    first, second, other = (
        RFDETRModule(tiny_model(), train_config(seed=seed)).model.class_head for seed in (1, 1, 2)
    )
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)
    # Building a module is nobody else's business.
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_seed_each_module_draws_its_own(
    tiny_model: Callable[..., ModelConfig], train_config: Callable[..., TrainConfig]
) -> None:
    seeds = {RFDETRModule(tiny_model(), train_config(seed=None)).seed for _ in range(3)}
    assert len(seeds) == 3


def test_multi_scale_gives_every_batch_of_an_update_one_size(make_run: Callable[..., Any]) -> None:
    run = make_run(multi_scale=True, expanded_scales=True, epochs=1, batch_size=1)
    seen: list[tuple[int, Any]] = []
    run.module.model.register_forward_pre_hook(
        lambda model, inputs: (
            seen.append((run.trainer.global_step, tuple(inputs[0].shape[-2:])))
            if model.training
            else None
        )
    )
    run.fit()
    config = run.module.model_config
    window = config.patch_size * config.num_windows
    allowed = multi_scale_sizes(config.input_size, config.square, window, True)
    by_step: dict[int, set[Any]] = {}
    for step, size in seen:
        by_step.setdefault(step, set()).add(size)
    assert [len(sizes) for sizes in by_step.values()] == [1, 1, 1]
    assert {size for _, size in seen} <= set(allowed)


@pytest.mark.parametrize("ours", [True, False])
def test_our_loader_gives_the_size_of_the_step_and_the_hook_resizes_what_others_give(
    ours: bool, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []  # widths

    def watched(images: Any, size: tuple[int, int]) -> Any:
        sizes.append((images.tensors.shape[-1], size[1]))
        return resize_batch(images, size)

    monkeypatch.setattr("rfdetr.training.steps.resize_batch", watched)
    run = make_run(multi_scale=True, batch_size=1, grad_accum_steps=4, epochs=3, run_test=False)
    loader = run.datamodule.train_dataloader()
    loader.sampler.sizes = None
    run.trainer.fit(
        run.module, **({"datamodule": run.datamodule} if ours else {"train_dataloaders": loader})
    )
    given, wanted = zip(*sizes, strict=True)
    assert len(given) == 18 and len(set(wanted)) > 2
    assert given == (wanted if ours else (64,) * 18)


def test_fewer_classes_in_the_model_than_in_the_data_is_an_error_before_training(
    make_run: Callable[..., Any],
) -> None:
    run = make_run(model={"num_classes": 2})
    with pytest.raises(ValueError, match=r"num_classes=2.*3 classes \(blue, green, red\)"):
        run.fit()
    assert run.trainer.global_step == 0


def test_more_classes_in_the_model_than_in_the_data_is_a_warning(
    make_run: Callable[..., Any],
) -> None:
    with pytest.warns(UserWarning, match="num_classes=5, but the data has only 3"):
        make_run(model={"num_classes": 5}, trainer={"fast_dev_run": 1}).fit()


def test_predict_gives_detections_in_pixels_of_the_original(make_run: Callable[..., Any]) -> None:
    run = make_run()
    run.datamodule.setup("fit")
    found = run.trainer.predict(run.module, dataloaders=run.datamodule.val_dataloader())
    detections = [detection for batch in found for detection in batch]
    assert len(detections) == 4
    assert all(detection["boxes"].shape == (10, 4) for detection in detections)
    # Width of the images.
    assert max(float(detection["boxes"][:, 2].max()) for detection in detections) <= 64
    assert max(float(detection["boxes"][:, 3].max()) for detection in detections) <= 48


def test_validation_returns_results_and_targets(make_run: Callable[..., Any]) -> None:
    run = make_run(compute_val_loss=False)
    batch = run.module.transfer_batch_to_device(
        next(iter(run.datamodule.val_dataloader())), torch.device("cpu"), 0
    )
    run.module.eval()
    output = run.module.validation_step(batch, 0)
    assert set(output) == {"results", "targets"}
    assert set(output["results"][0]) == {"scores", "labels", "boxes"}


def test_float_images_are_taken_as_normalised(make_run: Callable[..., Any]) -> None:
    run = make_run(model=FULL_PRECISION)
    images, targets = next(iter(run.datamodule.val_dataloader()))
    run.module.eval()
    ready = run.module.detect([NestedTensor(normalize(images.tensors)), targets])
    torch.testing.assert_close(run.module.detect([images, targets]), ready)


def test_crowds_take_no_part_in_the_validation_loss() -> None:
    target = {
        "labels": torch.tensor([0, 1]),
        "boxes": torch.rand(2, 4),
        "iscrowd": torch.tensor([True, False]),
        "area": torch.ones(2),
    }
    assert without_crowds(target)["labels"].tolist() == [1]
    assert without_crowds({name: target[name] for name in ("labels", "boxes")})[
        "labels"
    ].tolist() == [0, 1]
    outlined = {
        **target,
        "masks": torch.eye(2).bool()[:, None],
        "has_mask": torch.tensor([True, False]),
    }
    assert without_crowds(outlined)["masks"].tolist() == [[[False, True]]]
    assert without_crowds(outlined)["has_mask"].tolist() == [False]


def test_beside_lightnings_hooks_the_module_has_what_others_call_alone() -> None:
    """What is added to a training belongs into a callback. The methods that are no hooks are called
    by callbacks, or overridden by users; of hooks there is one for each thing that the module owns.
    """
    methods = {name for name, value in vars(RFDETRModule).items() if inspect.isfunction(value)}
    hooks = {name for name in methods if hasattr(pl.LightningModule, name)}
    assert methods - hooks == {"choose_trained", "compute_losses", "detect", "evaluate"}
    assert len(hooks) <= 14
    assert len(inspect.getsource(RFDETRModule.training_step).splitlines()) <= 20


def test_weights_are_loaded_before_adapters_and_the_rest_is_drawn_from_the_seed(
    tiny_model: Callable[..., ModelConfig], train_config: Callable[..., TrainConfig]
) -> None:
    config, train = tiny_model(), train_config()
    drawn = to_published(RFDETRModule(config, train).model.state_dict())
    given = to_published(RFDETRModule(config, train_config(seed=8)).model.state_dict())
    module = RFDETRModule(tiny_model(pretrain_weights="absent.pth"), train, weights=given)
    torch.testing.assert_close(to_published(module.model.state_dict()), given, rtol=0, atol=0)
    assert module.changes == []
    random = RFDETRModule(tiny_model(pretrain_weights="absent.pth"), train, weights={})
    torch.testing.assert_close(to_published(random.model.state_dict()), drawn, rtol=0, atol=0)
    more = RFDETRModule(tiny_model(num_classes=5), train, weights=given)
    assert "class head 4 -> 6 logits" in more.changes[0]


def test_names_of_the_data_put_the_rows_of_a_file_in_their_order(
    tiny_model: Callable[..., ModelConfig], train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Of a configured file and of a checkpoint that was read; a head for more classes than there
    are names has numbers for the others.
    """
    config, train, path = tiny_model(), train_config(), tmp_path / "mine.pth"
    file = RFDETRModule(config, train_config(seed=8)).detector
    save_checkpoint(path, file.state_dict(), config, ["red", "green", "blue"])
    datamodule = RFDETRDataModule(config, train)
    datamodule.setup("fit")
    names = datamodule.class_names
    from_path = tiny_model(pretrain_weights=str(path))
    for module in (
        RFDETRModule(from_path, train, class_names=names),
        RFDETRModule(config, train, read_checkpoint(path), class_names=names),
    ):
        assert module.detector.class_head.weight.equal(file.class_head.weight[[2, 1, 0, 3]])
        assert module.class_names == ["blue", "green", "red"]
        assert module.changes == [
            "class head 4 -> 4 logits, 3 of 3 classes by name, to be trained (6)"
        ]
        assert module.weights_file == path
    more = RFDETRModule(tiny_model(num_classes=5), train, read_checkpoint(path), names)
    assert more.detector.class_head.bias.equal(file.class_head.bias[[2, 1, 0, 3, 0, 3]])
    assert more.class_names == ["blue", "green", "red", "3", "4"]
    with pytest.raises(InputError, match=r"num_classes=2, but the data has 3 classes"):
        RFDETRModule(tiny_model(num_classes=2), train, class_names=names)
    with pytest.raises(InputError, match="expected a list of names"):
        RFDETRModule(config, train, class_names="red")
