"""Reference numbers of training: assignment, every loss, gradient norms, parameter groups, one
AdamW step.

`RFDETR_GOLDEN_DIR` names another directory of cases; float32 against float32, so 1e-4 relative is
rounding.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

import rfdetr.config
from rfdetr.config import EncoderDims, ModelConfig
from rfdetr.losses.criterion import Criterion
from rfdetr.losses.matcher import match
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector, DetectorOutput
from rfdetr.training.optim import parameter_groups
from rfdetr.weights.names import from_published, to_published

GOLDEN = Path(os.environ.get("RFDETR_GOLDEN_DIR", Path(__file__).parent / "golden"))
CASES = [
    path.stem for path in sorted(GOLDEN.glob("*.json")) if "losses" in json.loads(path.read_text())
]
LOGGING_EXTRAS = ("class_error", "cardinality_error")
RTOL, ATOL = 1e-4, 1e-5


class Case(NamedTuple):
    facts: dict[str, Any]
    tensors: dict[str, Tensor]
    config: ModelConfig

    def untrained(self) -> set[str]:
        """What is in no group of ours: the mask token is not used, blocks after the last output are
        not run.
        """
        blocks = {
            name: re.search(r"^backbone.*\.layer\.(\d+)\.", name)
            for name in self.facts["param_groups"]
        }
        last = self.config.out_feature_indexes[-1]
        not_run = {name for name, found in blocks.items() if found and int(found[1]) >= last}
        return {"backbone.0.encoder.encoder.embeddings.mask_token", *not_run}

    def targets(self) -> list[dict[str, Tensor]]:
        part = ("labels", "boxes")
        return [
            {k: self.tensors[f"target.{b}.{k}"] for k in part} for b in range(self.facts["batch"])
        ]

    def outputs(self) -> DetectorOutput:
        layers = [*(f"train.aux{i}" for i in range(self.config.dec_layers - 1)), "train"]
        return DetectorOutput(
            logits=torch.stack([self.tensors[f"{layer}.pred_logits"] for layer in layers]),
            boxes=torch.stack([self.tensors[f"{layer}.pred_boxes"] for layer in layers]),
            proposal_logits=self.tensors["train.enc.pred_logits"],
            proposal_boxes=self.tensors["train.enc.pred_boxes"],
        )

    def criterion(self) -> Criterion:
        return Criterion(group_detr=self.config.group_detr)

    def detector(self) -> Detector:
        dims = self.facts["encoder_dims"]
        detector = build_detector(
            self.config, EncoderDims(dims["width"], dims["layers"], dims["heads"])
        )
        published = {
            k[8:]: v for k, v in self.tensors.items() if k.startswith(("weights.", "buffers."))
        }
        detector.load_state_dict(from_published(published))
        return detector.train()

    def groups(self, detector: Detector) -> list[dict[str, Any]]:
        rates = {"lr": 1e-3, "lr_encoder": 1.5e-3, "weight_decay": 1e-4}
        decays = {"lr_vit_layer_decay": 0.8, "lr_component_decay": 0.7}
        return parameter_groups(detector, **rates, **decays)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    facts = json.loads((GOLDEN / f"{request.param}.json").read_text())
    known = {k: v for k, v in facts["config"].items() if k in ModelConfig.model_fields}
    config = getattr(rfdetr.config, facts["config_class"]).model_construct(**known)
    return Case(facts, load_file(GOLDEN / f"{request.param}.safetensors"), config)


def test_there_are_cases() -> None:
    assert CASES, f"no training cases in {GOLDEN}"


def test_assignment_of_the_last_layer(case: Case) -> None:
    outputs = case.outputs()
    groups, queries = case.config.group_detr, outputs.logits.shape[2]
    targets = case.targets()
    found = match(outputs.logits[-1], outputs.boxes[-1], targets, [queries // groups] * groups)
    first = 0
    for image, target in enumerate(targets):
        mine = found.image == image
        pairs = set(
            zip(found.candidate[mine].tolist(), (found.target[mine] - first).tolist(), strict=True)
        )
        queries, of_target = (
            case.tensors[f"match.{image}.query"],
            case.tensors[f"match.{image}.target"],
        )
        assert pairs == set(zip(queries.tolist(), of_target.tolist(), strict=True))
        first += len(target["labels"])


def test_every_loss_and_the_total(case: Case) -> None:
    losses = case.criterion()(case.outputs(), case.targets())
    weights = case.facts["weight_dict"]
    expected = {
        k: v * weights[k]
        for k, v in case.facts["losses"].items()
        if not k.startswith(LOGGING_EXTRAS)
    }
    assert_close({k: v.item() for k, v in losses.items()}, expected, rtol=RTOL, atol=ATOL)
    assert_close(sum(losses.values()).item(), case.facts["total_loss"], rtol=RTOL, atol=ATOL)


def test_gradient_norms_and_one_step_of_adamw(case: Case) -> None:
    detector = case.detector()
    losses = case.criterion()(detector(case.tensors["images"]), case.targets())
    sum(losses.values()).backward()
    norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), 0.1)
    assert_close(norm.item(), case.facts["grad_norm"], rtol=RTOL, atol=ATOL)

    gradients = to_published(
        {k: v.grad for k, v in detector.named_parameters() if v.grad is not None}
    )
    expected = {
        k.split(".", 1)[1]: v for k, v in case.tensors.items() if k.startswith("grad_norm_clipped.")
    }
    for name, value in expected.items():
        assert_close(
            gradients[name].norm(),
            value.reshape(()),
            rtol=RTOL,
            atol=ATOL,
            msg=lambda m, n=name: f"{n}: {m}",
        )

    torch.optim.AdamW(case.groups(detector), lr=1e-3, weight_decay=1e-4).step()
    state = to_published(detector.state_dict())
    for name, value in case.tensors.items():
        if name.startswith("after_step."):
            published = name.removeprefix("after_step.")
            # The step is lr * g / (|g| + 1e-8): a g near 1e-8 turns rounding into visible steps,
            # though never over lr.
            settled = (
                gradients[published].abs() > 1e-7
                if published in gradients
                else torch.ones_like(value).bool()
            )
            assert_close(
                state[published], value, rtol=RTOL, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
            )
            mine = torch.where(settled, state[published], value)
            assert_close(mine, value, rtol=RTOL, atol=ATOL, msg=lambda m, n=name: f"{n}: {m}")


def test_rates_and_decays_of_every_parameter(case: Case) -> None:
    detector = case.detector()
    names = {parameter: name for name, parameter in detector.named_parameters()}
    found: dict[str, dict[str, float]] = {}
    for key in ("lr", "weight_decay"):
        filled = {
            names[p]: torch.full_like(p, group[key])
            for group in case.groups(detector)
            for p in group["params"]
        }
        for name in case.facts["param_groups"].keys() - case.untrained():
            lowest, highest = to_published(filled)[name].aminmax()
            assert lowest == highest
            found.setdefault(name, {})[key] = highest.item()
    expected = {
        name: {
            "lr": group["lr"],
            "weight_decay": 1e-4 if group["weight_decay"] == "default" else group["weight_decay"],
        }
        for name, group in case.facts["param_groups"].items()
        if name not in case.untrained()
    }
    assert_close(found, expected, rtol=1e-6, atol=0)
