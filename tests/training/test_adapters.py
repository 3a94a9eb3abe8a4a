"""What learns: adapters in place of the encoder, or nothing of it; merged wherever weights leave
the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rfdetr import RFDETR
from rfdetr.config import RFDETRNanoConfig
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector
from rfdetr.training.adapters import adapted, add_adapters, remove_adapters, trained_parameters
from rfdetr.training.plan import training_plan
from rfdetr.weights.names import from_published, has_adapters, merge_adapters, to_published
from rfdetr.weights.reading import CheckpointError, read_checkpoint

LORA = {"backbone_lora": True}


@pytest.fixture
def detector(tiny_model: Callable[..., Any]) -> Detector:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    return build_detector(tiny_model()).eval()


def logits(detector: Detector) -> torch.Tensor:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return detector.eval()(images).logits


def move_adapters(detector: Detector) -> None:
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def test_adapters_change_nothing_until_they_learn_and_merge_to_the_same(detector: Detector) -> None:
    names, before = set(detector.state_dict()), logits(detector)
    add_adapters(detector)
    assert torch.allclose(logits(detector), before, atol=1e-5)
    move_adapters(detector)
    moved = logits(detector)
    assert (moved - before).abs().max() > 0.1
    remove_adapters(detector)
    assert set(detector.state_dict()) == names
    assert torch.allclose(logits(detector), moved, atol=1e-4)


def test_merging_is_pefts_own(detector: Detector) -> None:
    add_adapters(detector)
    move_adapters(detector)
    ours = merge_adapters(detector.state_dict())["encoder.blocks.1.qkv.key.weight"]
    layer: Any = detector.encoder.blocks[1].qkv.key
    layer.merge()
    assert torch.allclose(ours, layer.base_layer.weight, atol=1e-6)


def test_only_the_adapters_and_the_rest_outside_the_encoder_learn(detector: Detector) -> None:
    outside = sum(
        p.numel() for name, p in detector.named_parameters() if not name.startswith("encoder.")
    )
    add_adapters(detector)
    learning = {
        name
        for name, p in detector.named_parameters()
        if p.requires_grad and name.startswith("encoder.")
    }
    assert learning == {
        f"encoder.blocks.{block}.qkv.{part}.{kind}.default.weight"
        for block in range(5)
        for part in ("query", "key", "value")
        for kind in ("lora_A", "lora_B", "lora_magnitude_vector")
    }
    # Rank 16, width 160.
    assert trained_parameters(detector) == outside + 5 * 3 * (2 * 16 * 160 + 160)


def test_blocks_that_never_run_get_no_adapters(tiny_model: Callable[..., Any]) -> None:
    pytest.importorskip("peft")
    detector = build_detector(tiny_model(out_feature_indexes=[1, 2, 4]))
    add_adapters(detector)
    assert {name.split(".")[2] for name in detector.state_dict() if "lora_" in name} == {
        "0",
        "1",
        "2",
        "3",
    }


def test_a_run_with_adapters_leaves_plain_weights(make_run: Callable[..., Any]) -> None:
    pytest.importorskip("peft")
    start: dict[str, torch.Tensor] = {}

    def look(_: Any, module: Any) -> None:
        start.update({name: tensor.clone() for name, tensor in module.model.state_dict().items()})

    run = make_run(model=LORA, watch={"on_train_start": look}, epochs=1, lr_encoder=0.1).fit()
    for name in ("checkpoint_best_total", "checkpoint_best_regular", "checkpoint_best_ema"):
        content = torch.load(run.output / f"{name}.pth", weights_only=True)
        assert not [key for key in content["model"] if "lora" in key or "base_layer" in key]
    assert not adapted(run.module.model)
    best = from_published(content["model"])
    assert not torch.equal(
        best["encoder.blocks.0.qkv.weight"][:160],
        start["encoder.blocks.0.qkv.query.base_layer.weight"],
    )
    assert torch.equal(best["encoder.blocks.0.fc1.weight"], start["encoder.blocks.0.fc1.weight"])
    assert (
        RFDETR.from_checkpoint(run.output / "checkpoint_best_total.pth").model_config.backbone_lora
        is False
    )


def test_adapters_are_resumed(make_run: Callable[..., Any]) -> None:
    pytest.importorskip("peft")
    first = make_run(model=LORA, epochs=1).fit()
    last = torch.load(first.output / "last.ckpt", weights_only=True)["state_dict"]
    assert has_adapters(last)
    resumed: dict[str, torch.Tensor] = {}

    def look(_: Any, module: Any) -> None:
        resumed.update(
            {f"model.{name}": tensor.clone() for name, tensor in module.model.state_dict().items()}
        )

    make_run(model=LORA, epochs=2, watch={"on_train_start": look}).fit(
        ckpt_path=first.output / "last.ckpt"
    )
    assert resumed.keys() == last.keys()
    assert all(torch.equal(resumed[name], last[name]) for name in last)
    merged = read_checkpoint(first.output / "last.ckpt").model  # for inference
    assert merged.keys() == to_published(make_run().module.model.state_dict()).keys() - {
        "_kp_active_mask"
    }


def test_a_run_goes_on_in_the_form_it_began(make_run: Callable[..., Any]) -> None:
    pytest.importorskip("peft")
    with_adapters = make_run(model=LORA, epochs=1, output="lora").fit()
    with pytest.raises(CheckpointError, match="backbone_lora=True"):
        make_run(epochs=2, output="plain").fit(ckpt_path=with_adapters.output / "last.ckpt")
    other = make_run(model=LORA, output="other")
    path = with_adapters.output / "checkpoint_best_total.pth"
    with pytest.raises(CheckpointError, match="pretrain_weights"):
        make_run(model=LORA, epochs=2, output="third").fit(ckpt_path=path)
    (figures,) = other.trainer.test(other.module, other.datamodule, ckpt_path=path, verbose=False)
    assert "test/mAP_50_95" in figures


def test_a_frozen_encoder_stays_as_it_is(make_run: Callable[..., Any]) -> None:
    run = make_run(model={"freeze_encoder": True}, epochs=1)
    before = {name: tensor.clone() for name, tensor in run.module.model.state_dict().items()}
    run.fit()
    changed = {
        name
        for name, tensor in run.module.model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed
    assert not [name for name in changed if name.startswith("encoder.")]


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ({}, "all"),
        ({"freeze_encoder": True}, "all but the encoder"),
        (LORA, "adapters in place of the encoder"),
    ],
)
def test_the_plan_counts_what_learns(
    make_run: Callable[..., Any], model: dict[str, Any], part: str
) -> None:
    if model == LORA:
        pytest.importorskip("peft")
    run = make_run(model=model)
    row = dict(training_plan(*run[:3]))["trained"]
    assert row == f"{trained_parameters(run.module.model):,} parameters: {part}"


def test_frozen_and_adapted_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one"):
        RFDETRNanoConfig(freeze_encoder=True, backbone_lora=True)


def test_the_face_trains_with_adapters_and_predicts(
    tiny_model: Callable[..., Any],
    train_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("peft")
    from rfdetr import RFDETRMini

    settings = tiny_model().model_dump() | LORA | {"device": "cpu"}
    model = RFDETRMini(**settings)
    model.train(**train_config(epochs=1).model_dump())
    assert not adapted(model.model.model)
    assert model.predict(torch.zeros(3, 64, 64), threshold=0.0) is not None
