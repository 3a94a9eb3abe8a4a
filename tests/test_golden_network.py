"""Reference numbers of the network at every depth they give, in evaluation and in training mode.

`RFDETR_GOLDEN_DIR` names another directory of cases; float32 against float32, so 1e-4 relative is
rounding.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

import rfdetr.config
from rfdetr.config import EncoderDims, ModelConfig
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector, DetectorOutput, full_size_masks, postprocess_outputs
from rfdetr.weights.names import from_published, to_published

GOLDEN = Path(os.environ.get("RFDETR_GOLDEN_DIR", Path(__file__).parent / "golden"))
CASES = [path.stem for path in sorted(GOLDEN.glob("*.safetensors"))]
RTOL, ATOL = 1e-4, 1e-5


class Case(NamedTuple):
    tensors: dict[str, Tensor]
    config: ModelConfig
    detector: Detector

    @property
    def weights(self) -> dict[str, Tensor]:
        return {
            k.split(".", 1)[1]: v
            for k, v in self.tensors.items()
            if k.startswith(("weights.", "buffers."))
        }

    def layers(self, mode: str) -> list[str]:
        """Key prefixes of the decoder's layers, first to last."""
        return [*(f"{mode}.aux{i}" for i in range(self.config.dec_layers - 1)), mode]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    facts = json.loads((GOLDEN / f"{request.param}.json").read_text())
    known = {k: v for k, v in facts["config"].items() if k in ModelConfig.model_fields}
    config = getattr(rfdetr.config, facts["config_class"]).model_construct(**known)
    dims = facts["encoder_dims"]
    detector = build_detector(config, EncoderDims(dims["width"], dims["layers"], dims["heads"]))
    case = Case(load_file(GOLDEN / f"{request.param}.safetensors"), config, detector)
    detector.load_state_dict(from_published(case.weights))
    return case


def close(actual: Tensor, case: Case, key: str) -> None:
    assert_close(actual, case.tensors[key], rtol=RTOL, atol=ATOL, msg=lambda text: f"{key}: {text}")


@torch.no_grad()
def outputs(case: Case, mode: str) -> DetectorOutput:
    output: DetectorOutput = case.detector.train(mode == "train")(case.tensors["images"])
    return output


def test_there_are_cases() -> None:
    assert CASES, f"no cases in {GOLDEN}"


def test_weights_keep_their_published_names_and_values(case: Case) -> None:
    back = to_published(case.detector.state_dict())
    assert set(back) - set(case.weights) <= {"_kp_active_mask"}
    assert_close({name: back[name] for name in case.weights}, case.weights, rtol=0, atol=0)


@torch.no_grad()
def test_encoder_and_projector_maps(case: Case) -> None:
    maps = case.detector.eval().encode(case.tensors["images"])
    levels = case.detector.project(maps)
    assert {f"encoder.{i}" for i in range(len(maps))} == {
        k for k in case.tensors if k.startswith("encoder.")
    }
    assert {f"projector.{i}" for i in range(len(levels))} == {
        k for k in case.tensors if k.startswith("projector.")
    }
    for index, feature_map in enumerate(maps):
        close(feature_map, case, f"encoder.{index}")
    for index, level in enumerate(levels):
        close(level, case, f"projector.{index}")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_logits_and_boxes_of_the_encoder_stage_and_of_every_layer(case: Case, mode: str) -> None:
    output = outputs(case, mode)
    close(output.proposal_logits, case, f"{mode}.enc.pred_logits")
    close(output.proposal_boxes, case, f"{mode}.enc.pred_boxes")
    for index, layer in enumerate(case.layers(mode)):
        close(output.logits[index], case, f"{layer}.pred_logits")
        close(output.boxes[index], case, f"{layer}.pred_boxes")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_masks(case: Case, mode: str) -> None:
    masks = outputs(case, mode).masks
    assert (masks is not None) == case.config.segmentation_head
    if masks is None:
        return
    for index, layer in enumerate([*case.layers(mode), f"{mode}.enc"]):
        if mode == "eval":
            close(masks.mask_logits(index), case, f"{layer}.pred_masks")
        else:
            name = f"{layer}.pred_masks"
            close(
                case.detector.segmentation_head.spatial_proj(masks.spatial[index]),
                case,
                f"{name}.spatial_features",
            )
            parts = [
                case.tensors[f"{name}.{part}"]
                for part in ("query_features", "spatial_features", "bias")
            ]
            product = torch.einsum("bqc,bchw->bqhw", *parts[:2]) + parts[2]
            # Two ways to one product: how their sums are rounded depends on the processor (with AMX
            # or without).
            assert_close(masks.mask_logits(index), product, rtol=1e-5, atol=1e-5)


def test_postprocessing(case: Case) -> None:
    output = outputs(case, "eval")
    sizes = case.tensors["orig_sizes"]
    detections = postprocess_outputs(output, sizes, case.config.num_select)
    for image, detection in enumerate(detections):
        close(detection["scores"], case, f"post.{image}.scores")
        close(detection["labels"], case, f"post.{image}.labels")
        close(detection["boxes"], case, f"post.{image}.boxes")
        if output.masks is not None:
            size = tuple(sizes[image].tolist())
            masks = torch.cat(list(full_size_masks(detection["mask_logits"], size)))
            assert torch.equal(masks, case.tensors[f"post.{image}.masks"].squeeze(1).bool())
