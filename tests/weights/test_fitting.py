from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rfdetr.config import EncoderDims, RFDETRNanoConfig, RFDETRSmallConfig
from rfdetr.models.build import build_detector
from rfdetr.models.encoder import resample_positions
from rfdetr.weights.load import load_checkpoint, load_weights
from rfdetr.weights.names import CLASS_HEADS, to_published
from rfdetr.weights.reading import Checkpoint, CheckpointError

UNUSED = "_kp_active_mask"
POSITIONS = "backbone.0.encoder.encoder.embeddings.position_embeddings"


def _file(tiny: Any, seed: int = 1, **changes: Any) -> dict[str, Tensor]:
    """Tensors of a published file, other than those of the detector they are loaded into."""
    state: dict[str, Tensor] = to_published(
        tiny.detector(tiny.config(**changes), seed).state_dict()
    )
    return state


def _load(tiny: Any, file: dict[str, Tensor], **changes: Any) -> tuple[dict[str, Tensor], Any]:
    config = tiny.config(**changes)
    detector = tiny.detector(config)
    report = load_weights(detector, file, config, "a.pth")
    return to_published(detector.state_dict()), report


def test_a_file_that_fits_is_copied_whole(tiny: Any) -> None:
    file = _file(tiny)
    loaded, report = _load(tiny, file)
    torch.testing.assert_close(loaded, file, rtol=0, atol=0)
    assert set(report.loaded) == set(file) - {UNUSED}
    assert report.lines()[1:] == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_become_the_models_dtype(tiny: Any, dtype: torch.dtype) -> None:
    file = {name: tensor.to(dtype) for name, tensor in _file(tiny, resolution=96).items()}
    loaded, _ = _load(tiny, file)
    assert {tensor.dtype for name, tensor in loaded.items() if name != UNUSED} == {torch.float32}
    torch.testing.assert_close(
        loaded["bbox_embed.layers.0.weight"], file["bbox_embed.layers.0.weight"].float()
    )


@pytest.mark.parametrize("num_classes", [1, 2, 9, 20])
def test_class_heads_take_the_rows_there_are(tiny: Any, num_classes: int) -> None:
    """The file has 5 logits; the heads of the decoder and of each of the three groups as many as
    wanted.
    """
    file = _file(tiny)
    loaded, report = _load(tiny, file, num_classes=num_classes)
    heads = ["class_embed", *(f"transformer.enc_out_class_embed.{group}" for group in range(3))]
    for name in (f"{head}.{leaf}" for head in heads for leaf in ("weight", "bias")):
        assert len(loaded[name]) == num_classes + 1
        for row in range(num_classes + 1):
            torch.testing.assert_close(loaded[name][row], file[name][row % 5], rtol=0, atol=0)
        assert report.adapted[name] == f"class head 5 -> {num_classes + 1} logits, to be trained"
    assert len(report.adapted) == 8


def test_a_segmentation_head_that_the_file_has_nothing_of_stays_as_it_is_and_is_warned_of(
    tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = _file(tiny)
    before = to_published(tiny.detector(tiny.config(segmentation_head=True)).state_dict())
    loaded, report = _load(tiny, file, segmentation_head=True)
    head = {name for name in loaded if name.startswith("segmentation_head.")}
    assert set(report.fresh) == head and head.isdisjoint(file)
    report.log(logging.getLogger("rfdetr"), "a.pth")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(
        f"a.pth: {len(head)} tensors stay random, as the file is of a model without"
    )
    assert all(name in warning for name in report.fresh[:3])
    torch.testing.assert_close(loaded, {**before, **file}, rtol=0, atol=0)


def test_a_part_of_a_segmentation_head_is_refused(tiny: Any) -> None:
    file = _file(tiny, segmentation_head=True)
    del file["segmentation_head.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: segmentation_head\.bias"):
        _load(tiny, file, segmentation_head=True)


def test_fewer_queries_and_groups_keep_the_first_of_each(tiny: Any) -> None:
    file = _file(tiny)
    for name in ("refpoint_embed.weight", "query_feat.weight"):
        width = file[name].shape[1]
        group, query = torch.meshgrid(torch.arange(3.0), torch.arange(6.0), indexing="ij")
        file[name] = (10 * group + query).reshape(18, 1).expand(18, width)
    loaded, report = _load(tiny, file, num_queries=4, num_select=4, group_detr=2)
    for name in ("refpoint_embed.weight", "query_feat.weight"):
        assert loaded[name][:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
        assert report.adapted[name] == "queries 3 x 6 -> 2 x 4"
    torch.testing.assert_close(
        loaded["transformer.enc_output.1.weight"], file["transformer.enc_output.1.weight"]
    )
    assert set(report.left) == {
        name for name in file if name.startswith("transformer.enc_") and ".2." in name[:36]
    }


def test_fewer_decoder_layers_are_the_whole_network_cut_short(tiny: Any) -> None:
    settings = {"dec_layers": 3, "segmentation_head": True}
    config = tiny.config(**settings)
    whole, cut = (
        tiny.detector(tiny.config(**{**settings, "dec_layers": n})).eval() for n in (3, 2)
    )
    file = to_published(whole.state_dict())
    report = load_weights(cut, file, config.model_copy(update={"dec_layers": 2}))
    assert report.left and all(".layers.2." in name or ".blocks.2." in name for name in report.left)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = whole(images), cut(images)
    torch.testing.assert_close(found.logits[-1], expected.logits[1])
    torch.testing.assert_close(found.boxes[-1], expected.boxes[1])
    torch.testing.assert_close(found.masks.mask_logits(1), expected.masks.mask_logits(1))


def test_queries_are_not_mixed_up_where_the_row_counts_agree(tiny: Any) -> None:
    """Of 3 groups of 4 (12 rows), 2 of 4 are kept; 2 of 6, also 12 rows, are no copy."""
    file = _file(tiny, num_queries=4, num_select=4)
    loaded, _ = _load(tiny, file, num_queries=4, num_select=4, group_detr=2)
    torch.testing.assert_close(
        loaded["query_feat.weight"], file["query_feat.weight"][:8], rtol=0, atol=0
    )
    loaded, _ = _load(tiny, file, num_queries=6, group_detr=2)
    groups = loaded["query_feat.weight"].reshape(2, 6, -1)
    expected = file["query_feat.weight"].reshape(3, 4, -1)[:2]
    torch.testing.assert_close(groups[:, :4], expected, rtol=0, atol=0)


def test_more_queries_than_the_file_has_are_its_own_again_with_a_little_noise(
    tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """6 queries a group become 15: each row is its row of 6, moved by hundredths of the spread."""
    file = _file(tiny)
    loaded, report = _load(tiny, file, num_queries=15)
    change = "queries 3 x 6 -> 3 x 15, the last 9 of each group repeated with noise"
    for name in ("query_feat.weight", "refpoint_embed.weight"):
        have, rows = file[name].reshape(3, 6, -1), loaded[name].reshape(3, 15, -1)
        torch.testing.assert_close(rows[:, :6], have, rtol=0, atol=0)
        moved = (rows[:, 6:] - have[:, [0, 1, 2, 3, 4, 5, 0, 1, 2]]) / have.std()
        assert 0.005 < moved.std() < 0.015 and moved.abs().max() < 0.06
        assert len(rows.flatten(0, 1).unique(dim=0)) == 45
        assert report.adapted[name] == change
        torch.testing.assert_close(report.originals[name], file[name], rtol=0, atol=0)
    assert report.changes() == [f"{change} (2)"]
    report.log(logging.getLogger("rfdetr"), "a.pth")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("a.pth: 9 queries of each group repeat the file's")
    config, drawn = tiny.config(num_queries=15), []
    for seed in (5, 5, 6):
        detector = tiny.detector(config)
        torch.manual_seed(seed)
        load_weights(detector, file, config)
        drawn.append(detector.query_content)
    assert drawn[0].equal(drawn[1]) and not drawn[1].equal(drawn[2])


def test_what_was_adapted_is_kept_as_it_was_in_groups_that_the_model_has(tiny: Any) -> None:
    file = _file(tiny)
    _, report = _load(tiny, file, num_queries=8, num_classes=2, group_detr=2)
    assert report.originals.keys() == report.adapted.keys()
    for name, original in report.originals.items():
        rows = 12 if name in ("query_feat.weight", "refpoint_embed.weight") else 5
        torch.testing.assert_close(original, file[name][:rows], rtol=0, atol=0)


def _heads(published: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: rows for name, rows in published.items() if CLASS_HEADS.fullmatch(name)}


def _load_named(
    tiny: Any, names: list[str], data: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """The class heads of a file with `names`, those of a model loaded for `data`, the report."""
    file = _file(tiny, num_classes=len(names))
    config = tiny.config(num_classes=len(data))
    detector = tiny.detector(config)
    checkpoint = Checkpoint(Path("a.pth"), file, {"class_names": names})
    report = load_checkpoint(detector, config, checkpoint, data)
    return _heads(file), _heads(to_published(detector.state_dict())), report


def test_classes_of_the_same_name_start_from_the_files_rows(tiny: Any) -> None:
    """Of decoder and all groups, weight and bias; the last logit too; "owl" has the row that it has
    without names.
    """
    file, loaded, report = _load_named(tiny, ["bus", "dog", "cat"], ["Cats", "owl", "bus", "DOG"])
    assert len(loaded) == 8
    for name, rows in loaded.items():
        torch.testing.assert_close(rows, file[name][[2, 1, 0, 1, 3]], rtol=0, atol=0)
    expected = "class head 4 -> 5 logits, 3 of 4 classes by name, to be trained"
    assert report.changes() == [f"{expected} (8)"]


def test_the_same_classes_in_another_order_are_put_in_order(tiny: Any) -> None:
    file, loaded, report = _load_named(tiny, ["bus", "dog", "cat"], ["cat", "bus", "dog"])
    for name, rows in loaded.items():
        torch.testing.assert_close(rows, file[name][[2, 0, 1, 3]], rtol=0, atol=0)
    assert "3 of 3 classes by name" in report.changes()[0]
    file, loaded, report = _load_named(tiny, ["bus", "dog", "cat"], ["bus", "dog", "cat"])
    torch.testing.assert_close(loaded, file, rtol=0, atol=0)
    assert report.changes() == []


def test_names_that_agree_with_none_change_nothing(tiny: Any) -> None:
    file, loaded, report = _load_named(tiny, ["bus", "dog", "cat"], ["a", "b", "c"])
    torch.testing.assert_close(loaded, file, rtol=0, atol=0)
    assert report.changes() == []


def test_a_published_file_knows_cocos_names_by_category_id(tiny: Any) -> None:
    """Its logits are 0 to 90: "zebra" is 24, "toothbrush" the last, and 0 stands for nothing."""
    file = _file(tiny, num_classes=90)
    config = tiny.config(num_classes=2)
    detector = tiny.detector(config)
    load_checkpoint(detector, config, Checkpoint(Path("a.pth"), file, {}), ["toothbrush", "Zebras"])
    loaded = to_published(detector.state_dict())["class_embed.bias"]
    torch.testing.assert_close(loaded, file["class_embed.bias"][[90, 24, 0]], rtol=0, atol=0)


def test_more_groups_than_the_file_has_are_an_error(tiny: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"a\.pth has 3 query groups, the model wants group_detr=5"
    ):
        _load(tiny, _file(tiny), group_detr=5)


@pytest.mark.parametrize(("resolution", "grid"), [(96, 6), (32, 2)])
def test_position_grids_are_resampled(tiny: Any, resolution: int, grid: int) -> None:
    file = _file(tiny)
    loaded, report = _load(tiny, file, resolution=resolution)
    assert report.adapted == {POSITIONS: f"position grid 4 x 4 -> {grid} x {grid}"}
    cells = file[POSITIONS][:, 1:].reshape(1, 4, 4, -1)
    expected = resample_positions(cells, (grid, grid)).flatten(1, 2)
    torch.testing.assert_close(loaded[POSITIONS][:, 1:], expected)
    torch.testing.assert_close(loaded[POSITIONS][:, 0], file[POSITIONS][:, 0])


@pytest.mark.parametrize("grid", [3, 5, 8, 13])
def test_resampling_is_bicubic_with_antialiasing(grid: int) -> None:
    """Pillow's bicubic filter, which widens with the reduction, is the independent measure."""
    torch.manual_seed(0)
    embeddings = torch.randn(1, 8, 8, 2)
    found = resample_positions(embeddings, (grid, grid))[0].permute(2, 0, 1)
    for channel, plane in enumerate(embeddings[0].permute(2, 0, 1)):
        expected = np.array(
            Image.fromarray(plane.numpy(), mode="F").resize((grid, grid), Image.Resampling.BICUBIC)
        )
        torch.testing.assert_close(found[channel], torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


def test_resampling_moves_along_the_right_axes(tiny: Any) -> None:
    """Rows of the sequence run along x first: a ramp in x stays one in x."""
    file = _file(tiny)
    file[POSITIONS][:, 1:] = torch.arange(4.0).repeat(4)[None, :, None]
    loaded, _ = _load(tiny, file, resolution=128)
    wider = loaded[POSITIONS][0, 1:, 0].reshape(8, 8)
    torch.testing.assert_close(wider, wider[:1].expand(8, 8))
    assert (wider.diff(dim=1) > 0).all()


def test_tensors_without_a_meaning_may_be_missing_or_extra(tiny: Any) -> None:
    file = _file(tiny)
    file.pop("backbone.0.encoder.encoder.embeddings.mask_token", None)
    file.pop(UNUSED, None)
    _, report = _load(tiny, file)
    assert len(report.loaded) == len(file)
    _, report = _load(tiny, {**file, UNUSED: torch.zeros(2, 17)})
    assert report.left == ()


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tiny: Any) -> None:
    file = _file(tiny)
    del file["bbox_embed.layers.2.bias"]
    file["extra.weight"] = torch.zeros(1)
    file["transformer.decoder.norm.weight"] = torch.zeros(7)
    detector = tiny.detector(tiny.config())
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(detector, file, tiny.config(), "a.pth")
    assert str(caught.value) == (
        "a.pth does not fit this model; tensors 1 missing: bbox_embed.layers.2.bias; "
        "1 unexpected: extra.weight; 1 of another shape: transformer.decoder.norm.weight "
        "(file 7, model 16)"
    )
    torch.testing.assert_close(detector.state_dict(), before, rtol=0, atol=0)


def test_long_lists_are_cut_and_counted(tiny: Any) -> None:
    file = _file(tiny) | {f"extra.{index}": torch.zeros(1) for index in range(25)}
    with pytest.raises(CheckpointError, match=r"25 unexpected: extra\.0, .*extra\.9 and 15 more$"):
        _load(tiny, file)


@pytest.mark.parametrize("name", ["query_feat.weight", "class_embed.bias", POSITIONS])
@pytest.mark.parametrize(
    "shape", [(), (0,), (5,), (0, 3), (17, 5), (1, 2, 3), (1, 10, 7), (1, 12, 24)]
)
def test_misshapen_tensors_that_could_have_been_adapted_are_an_error(
    tiny: Any, name: str, shape: tuple[int, ...]
) -> None:
    file = _file(tiny, num_classes=7)
    file[name] = torch.zeros(shape)
    if name == "class_embed.bias" and shape == (5,):
        file[name] = torch.zeros(5, 1)
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        _load(tiny, file)


def test_a_file_of_another_variant_is_called_by_its_name(
    layouts: dict[str, Any], weightless: Any
) -> None:
    config = RFDETRNanoConfig()
    detector = build_detector(config, EncoderDims(width=24, depth=12, heads=3))
    with pytest.raises(
        CheckpointError, match=r"a\.pth \(variant 'small', where the model is 'nano'\) does not fit"
    ):
        load_weights(detector, weightless(layouts["RFDETRSmallConfig"]), config, "a.pth")
    with pytest.raises(CheckpointError, match=r"variant 'seg-nano'.* does not fit this model"):
        load_weights(detector, weightless(layouts["RFDETRSegNanoConfig"]), config, "a.pth")


def test_a_file_that_is_no_detector_is_refused(tiny: Any) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pth holds no RF-DETR detector"):
        _load(tiny, {"layer1.conv.weight": torch.zeros(3)})


def test_a_published_file_fits_its_variant_with_fewer_queries_and_layers(
    layouts: dict[str, Any], weightless: Any
) -> None:
    config = RFDETRSmallConfig(num_queries=100, dec_layers=2)
    file = weightless(layouts["RFDETRSmallConfig"])
    report = load_weights(build_detector(config), file, config)
    assert report.lines()[1] == "adapted 2 tensors: queries 13 x 300 -> 13 x 100 (2)"
    assert report.left and all("transformer.decoder.layers.2." in name for name in report.left)


def test_a_published_file_fits_its_variant(layouts: dict[str, Any], weightless: Any) -> None:
    config = RFDETRSmallConfig(num_classes=7)
    detector = build_detector(config)
    report = load_weights(detector, weightless(layouts["RFDETRSmallConfig"]), config)
    assert report.lines()[1] == "adapted 28 tensors: class head 91 -> 8 logits, to be trained (28)"
    assert not any(parameter.any() for parameter in detector.parameters())
