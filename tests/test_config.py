"""The option surface: every field is written out here, so that a new one is a decision and not an
accident.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, get_args

import pydantic
import pytest

from rfdetr import config as configs
from rfdetr.config import (
    ENCODERS,
    VARIANTS,
    Architecture,
    ConfigError,
    ModelConfig,
    RFDETRBaseConfig,
    RFDETRNanoConfig,
    SegmentationTrainConfig,
    ServeConfig,
    TrainConfig,
    adds_masks_to,
    variant_name,
)
from rfdetr.config.augment import in_words
from rfdetr.config.model import EncoderName

MODEL_FIELDS = """
    encoder out_feature_indexes patch_size num_windows resolution positional_encoding_size
    projector_scale hidden_dim dec_layers sa_nheads ca_nheads dec_n_points dim_feedforward
    num_queries num_select group_detr num_classes segmentation_head mask_downsample_ratio
    pretrain_weights freeze_encoder backbone_lora gradient_checkpointing amp device
"""
TRAIN_FIELDS = """
    dataset_dir dataset_file classes output_dir epochs minutes batch_size eval_batch_size
    grad_accum_steps
    lr lr_encoder lr_vit_layer_decay lr_component_decay weight_decay lr_scheduler lr_drop
    lr_min_factor warmup_epochs clip_max_norm drop_path use_ema ema_decay ema_tau
    ema_update_interval multi_scale expanded_scales tiles tile_overlap augment color_jitter
    cls_loss_coef bbox_loss_coef giou_loss_coef num_workers prefetch_factor persistent_workers
    pin_memory cache seed accelerator compile sync_bn resume allow_changed_data run_test
    eval_interval eval_max_dets early_eval_share early_eval_epochs eval_ema_only eval_base_model
    compute_val_loss log_per_class_metrics best_model_metric smooth_alpha skip_best_epochs
    average_best early_stopping early_stopping_patience early_stopping_min_delta
    early_stopping_use_ema checkpoint_interval checkpoint_every_n_steps checkpoint_every_minutes
    save_safetensors save_dataset_grids class_names notes overwrite tensorboard wandb mlflow project
    run progress_bar
"""
SERVE_FIELDS = "batch_size queue max_bytes max_pixels timeout stop_timeout"
SEGMENTATION_FIELDS = "mask_ce_loss_coef mask_dice_loss_coef mask_point_sample_ratio"
# 70 were planned. The ten above: masks (the 3 fields of their losses), loggers (tensorboard, wandb,
# mlflow, project, run), and the encoder's training (freeze_encoder, backbone_lora). 13 more are
# settings of the published package that change how a run goes, and `minutes` ends one in time.
# Two are for small objects in large images: tiles, tile_overlap. One takes or merges classes. Four
# spare time or use it better: cache, early_eval_share, early_eval_epochs, average_best. `augment`
# names its steps. `compile` may spare time on a GPU.
MOST_FIELDS = 103


def _train(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"dataset_dir": "data", **settings})


@pytest.mark.parametrize("name", ["dataset_dir", "output_dir"])
def test_an_empty_folder_is_not_the_working_directory(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is empty: expected a path"):
        TrainConfig(**{"dataset_dir": "data", name: ""})
    assert TrainConfig(**{"dataset_dir": "data", name: "~"}).model_dump()[name] == Path.home()


def test_the_options_are_these_and_within_the_budget() -> None:
    model, train, masks = map(str.split, (MODEL_FIELDS, TRAIN_FIELDS, SEGMENTATION_FIELDS))
    assert list(ModelConfig.model_fields) == model
    assert list(TrainConfig.model_fields) == train
    assert list(SegmentationTrainConfig.model_fields) == train + masks
    assert list(ServeConfig.model_fields) == SERVE_FIELDS.split()
    assert len({*model, *train, *masks}) <= MOST_FIELDS


@pytest.mark.parametrize(
    ("augment", "told"),
    [
        ("stron", "did you mean 'strong'?; or give a mapping of steps, or a .yaml file"),
        (5, "expected a preset (default, strong"),
        ({"rotat": 1}, "no step 'rotat': did you mean 'rotate'?"),
        ({"preset": "areal"}, "preset 'areal': did you mean 'aerial'?"),
        ({"rotate": {"degres": 3}}, "rotate has no 'degres': did you mean 'degrees'?"),
        ({"rotate": {"degrees": [5, -5]}}, "rotate.degrees: expected the smaller number first"),
        ({"rotate": {"degrees": [0, 400]}}, "rotate.degrees.1: Input should be less than"),
        ({"blur": 1.5}, "blur.p: Input should be less than or equal to 1; found 1.5"),
        ({"jpeg": True}, "jpeg: expected its parameters or its probability, found True"),
        ("gone.yaml", "cannot be read as YAML"),
    ],
)
def test_steps_that_cannot_be_are_told_with_the_nearest(augment: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^augment: {re.escape(told)}"):
        _train(augment=augment)


def test_steps_have_one_form_which_files_keep(tmp_path: Path) -> None:
    path = tmp_path / "steps.yaml"
    path.write_text("preset: aerial\nquarter_turn: 0.1\nrotate: {degrees: 5}\nmosaic:\n")
    config = _train(augment=path)
    assert isinstance(config.augment, dict)
    assert config.augment["rotate"] == {"p": 0.5, "degrees": [-5.0, 5.0]}
    assert config.augment["quarter_turn"] == {"p": 0.1}
    assert config.augment["mosaic"]["until"] == 0.85
    again = TrainConfig(**json.loads(config.model_dump_json()))
    assert again.augment == config.augment == _train(augment=str(path)).augment
    assert in_words(config.augment).startswith("own steps: crop 0.5, horizontal_flip 0.5, vert")
    assert in_words("dense").endswith(
        "mosaic 0.5 until 85%, copy_paste 0.3 until 85%, mixup 0.3 until 50%"
    )


@pytest.mark.parametrize("config", [ModelConfig, SegmentationTrainConfig, ServeConfig])
def test_every_field_has_a_description(config: type[pydantic.BaseModel]) -> None:
    assert [name for name, field in config.model_fields.items() if not field.description] == []


def test_the_network_itself_is_told_apart_from_how_it_is_run() -> None:
    run = set(ModelConfig.model_fields) - set(Architecture.model_fields)
    trained = {"freeze_encoder", "backbone_lora", "gradient_checkpointing", "amp"}
    assert run == {"pretrain_weights", "device", *trained}


def test_each_encoder_has_its_size() -> None:
    assert {name: tuple(dims) for name, dims in ENCODERS.items()} == {
        "dinov2_windowed_mini": (160, 5, 5, 0),
        "dinov2_windowed_small": (384, 12, 6, 0),
        "dinov2_windowed_base": (768, 12, 12, 0),
        "dinov2_registers_windowed_small": (384, 12, 6, 4),
        "dinov2_registers_windowed_base": (768, 12, 12, 4),
    }
    assert set(get_args(EncoderName)) == set(ENCODERS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_adds_no_field_and_knows_its_name(variant: str) -> None:
    assert list(VARIANTS[variant].model_fields) == MODEL_FIELDS.split()
    assert variant_name(VARIANTS[variant]()) == variant_name(VARIANTS[variant]) == variant
    assert variant_name(ModelConfig()) is None


def test_one_variant_is_another_with_a_segmentation_head() -> None:
    pairs = [
        (one, other)
        for one in VARIANTS
        for other in VARIANTS
        if adds_masks_to(VARIANTS[one], VARIANTS[other])
    ]
    assert pairs == [("mini", "seg-mini")]


def test_every_published_variant_is_as_published() -> None:
    layouts = json.loads((Path(__file__).parent / "golden" / "layouts.json").read_text())
    published = {
        name: layout["config"] for name, layout in layouts.items() if "Keypoint" not in name
    }
    assert {cls.__name__ for cls in VARIANTS.values()} - published.keys() == {
        "RFDETRMiniConfig",
        "RFDETRSegMiniConfig",
    }
    for name, values in published.items():
        config = getattr(configs, name)()
        ours = config.model_dump() | {"positional_encoding_size": config.position_grid}
        shared = ours.keys() & values.keys() - {"pretrain_weights"}
        assert len(shared) > 15
        assert {field: ours[field] for field in shared} == {
            field: values[field] for field in shared
        }, name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("field", ["resolution", "num_queries", "dec_layers", "num_classes"])
def test_variants_keep_the_ranges_of_their_fields(variant: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){field}.*greater than or equal to 1"):
        VARIANTS[variant](**{field: -4032})  # a multiple of every patch_size x num_windows


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"resolution": 400}, ["resolution 400", "num_windows 2 = 32", "384 and 416"]),
        ({"resolution": 16}, ["resolution 16", "32 and 64"]),
        ({"resolution": (64, 100)}, ["resolution 100 of (64, 100)", "96 and 128"]),
        ({"resolution": (64, 0)}, ["resolution.1", "greater than or equal to 1"]),
        ({"resolution": (64,)}, ["resolution.1: Field required"]),
        ({"out_feature_indexes": [3, 13]}, ["out_feature_indexes [3, 13]", "12 blocks"]),
        ({"out_feature_indexes": [6, 3]}, ["[6, 3]", "ascending"]),
        ({"out_feature_indexes": [0, 3]}, ["[0, 3]", "at least 1"]),
        ({"out_feature_indexes": []}, ["[]"]),
        ({"hidden_dim": 100}, ["hidden_dim 100", "sa_nheads 8"]),
        ({"hidden_dim": 264}, ["hidden_dim 264", "ca_nheads 16"]),
        ({"hidden_dim": 6, "sa_nheads": 1, "ca_nheads": 1}, ["hidden_dim 6", "multiple of 4"]),
        ({"projector_scale": []}, ["projector_scale []"]),
        ({"projector_scale": ["P4", "P4"]}, ["projector_scale ['P4', 'P4']"]),
        ({"projector_scale": ["P6"]}, ["projector_scale", "P3"]),
        (
            {"num_select": 300, "num_queries": 3, "num_classes": 9},
            ["num_select 300", "num_queries 3", "= 30"],
        ),
        ({"encoder": "dinov3"}, ["encoder", "dinov2_windowed_small"]),
        ({"num_classes": 0}, ["num_classes"]),
    ],
)
def test_models_that_cannot_be_are_refused_with_the_values_named(
    settings: dict[str, Any], values: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        RFDETRNanoConfig(**settings)
    for value in values:
        assert value in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"lr": -1e-4}, ["lr", "greater than 0"]),
        ({"lr": math.nan}, ["lr", "finite"]),
        ({"lr_encoder": math.inf}, ["lr_encoder", "finite"]),
        ({"weight_decay": -1}, ["weight_decay"]),
        ({"drop_path": 1.0}, ["drop_path", "less than 1"]),
        ({"ema_decay": 1.5}, ["ema_decay", "less than 1"]),
        ({"lr_component_decay": 0}, ["lr_component_decay"]),
        ({"epochs": 0}, ["epochs"]),
        ({"epochs": 2.5}, ["epochs"]),
        ({"batch_size": "many"}, ["batch_size"]),
        ({"lr_scheduler": "linear"}, ["lr_scheduler", "cosine"]),
        ({"epochs": 5, "warmup_epochs": 5}, ["warmup_epochs 5", "epochs 5"]),
        (
            {"early_stopping_use_ema": True, "use_ema": False},
            ["early_stopping_use_ema True", "use_ema False"],
        ),
        (
            {"eval_base_model": True, "eval_ema_only": True},
            ["eval_base_model True", "eval_ema_only True"],
        ),
        ({"dataset_dir": {"a": 0}}, ["dataset_dir", "share of a must be above 0"]),
        ({"dataset_dir": ["a", "b@2"]}, ["dataset_dir", "share of b", "at most 1", "'b@2'"]),
        ({"dataset_dir": {"a": True}}, ["dataset_dir", "share of a"]),
        ({"tiles": 16}, ["tiles", "greater than or equal to 32"]),
        ({"classes": [1, 2]}, ["classes", "expected names of classes"]),
        ({"dataset_dir": ["a", "a@0.5"]}, ["dataset_dir", "each once", "'a@0.5'"]),
        ({"dataset_dir": []}, ["dataset_dir", "expected folders"]),
        ({"dataset_dir": ["a", 3]}, ["dataset_dir", "path"]),
        ({"classes": {"a": ["x"], "b": ["x"]}}, ["classes", "each once"]),
        ({"classes": []}, ["classes", "expected names of classes"]),
        ({"classes": {"a": 3}}, ["classes"]),
        ({"classes": {"a": [["x"]]}}, ["classes", "string"]),
        ({"average_best": 1}, ["average_best", "greater than or equal to 2"]),
        ({"cache": 0}, ["cache", "'ram'", "greater than 0"]),
        (
            {"average_best": 2, "epochs": 7, "eval_interval": 2, "skip_best_epochs": 5},
            ["average_best 2", "of epochs 7, 1 can choose weights"],
        ),
        ({"early_eval_epochs": 3}, ["early_eval_epochs is for early_eval_share"]),
        ({"early_eval_share": 0.5, "minutes": 5}, ["minutes needs early_eval_epochs"]),
        (
            {"early_eval_share": 0.5, "epochs": 7, "eval_interval": 5, "early_eval_epochs": 5},
            ["early_eval_epochs 5 of epochs 7", "no weights could be chosen"],
        ),
        ({"notes": {"when": {1, 2}}}, ["notes", "no JSON value", "set"]),
        ({"notes": [math.nan]}, ["notes", "no JSON value"]),
        ({"multi_scale": "per-epoch"}, ["multi_scale", "'per-sample'"]),
        ({"lr_scheduler_kwargs": {"gamma": 0.1}}, ["{'gamma': 0.1}", "'min_factor' (here lr_min"]),
        (
            {"lr_scheduler_kwargs": {"lr_drop": 3}, "lr_drop": 4},
            ["lr_scheduler_kwargs says lr_drop 3", "lr_drop is 4"],
        ),
    ],
)
def test_runs_that_cannot_be_are_refused_with_the_values_named(
    settings: dict[str, Any], values: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        _train(**settings)
    for value in values:
        assert value in str(caught.value)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("epoch", "epochs"),
        ("learning_rate", None),
        ("lr_enc", "lr_encoder"),
        ("batchsize", "batch_size"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(typo: str, meant: str | None) -> None:
    answer = f"did you mean '{meant}'" if meant else "known names: dataset_dir, "
    with pytest.raises(ValueError, match=f"TrainConfig has no field '{typo}'; {answer}"):
        _train(**{typo: 1})
    with pytest.raises(ValueError, match=f"TrainConfig has no field '{typo}'; {answer}"):
        setattr(_train(), typo, 1)


def test_an_unknown_name_of_a_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match="RFDETRNanoConfig has no field 'num_class'; did you mean 'num_classes'"
    ):
        RFDETRNanoConfig(num_class=3)


def test_a_field_of_another_configuration_is_sent_there() -> None:
    with pytest.raises(
        ValueError, match=re.escape("resolution belongs to the model: ModelConfig(resolution=512)")
    ):
        _train(resolution=512)
    with pytest.raises(
        ValueError, match=re.escape("epochs belongs to train(epochs=5) or TrainConfig(epochs=5)")
    ):
        RFDETRNanoConfig(epochs=5)
    for build in (_train, RFDETRNanoConfig):
        with pytest.raises(
            ValueError, match="mask_ce_loss_coef belongs to the training of a segmentation model"
        ):
            build(mask_ce_loss_coef=1.0)


def test_an_error_is_a_line_for_each_wrong_field_and_names_no_pydantic() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(epochs=0, batch_size="many", resolution=512, epoch=3)
    assert isinstance(caught.value, ValueError) and isinstance(
        caught.value, pydantic.ValidationError
    )
    assert str(caught.value).splitlines() == [
        "dataset_dir: Field required",
        "epochs: Input should be greater than or equal to 1; found 0 (int)",
        "batch_size: Input should be a valid integer, unable to parse string as an integer or "
        "Input should be 'auto'; found 'many' (str)",
        "resolution belongs to the model: ModelConfig(resolution=512)",
        "TrainConfig has no field 'epoch'; did you mean 'epochs'?",
    ]
    with pytest.raises(ConfigError) as caught:
        RFDETRNanoConfig(projector_scale=["P4", "P6"])
    assert (
        str(caught.value)
        == "projector_scale.1: Input should be 'P3', 'P4' or 'P5'; found 'P6' (str)"
    )
    with pytest.raises(ConfigError) as caught:
        _train().lr = -1
    assert str(caught.value) == "lr: Input should be greater than 0; found -1 (int)"


@pytest.mark.parametrize("name", ["strategy", "devices", "callbacks"])
def test_what_the_trainer_takes_is_sent_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"no field '{name}': pass {name}= to build_trainer"):
        _train(**{name: "ddp"})
    with pytest.raises(ValueError, match="build_trainer"):
        setattr(_train(), name, "ddp")


def test_assignments_are_checked_and_a_refused_one_changes_nothing() -> None:
    config = RFDETRNanoConfig()
    with pytest.raises(ValueError, match="resolution 100 is not a multiple"):
        config.resolution = 100
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        config.num_classes = 0
    assert config == RFDETRNanoConfig()
    config.num_classes = 3
    assert config == RFDETRNanoConfig(num_classes=3)


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        ({"multi_scale": "per-batch"}, "multi_scale", True),
        ({"multi_scale": "off"}, "multi_scale", False),
        ({"multi_scale": "per-sample"}, "multi_scale", "per-sample"),
        ({"progress_bar": "tqdm"}, "progress_bar", True),
        ({"progress_bar": None}, "progress_bar", False),
        ({"progress_bar": "rich"}, "progress_bar", "rich"),
        ({"lr_scheduler_kwargs": {"min_factor": 0.1}}, "lr_min_factor", 0.1),
        ({"lr_scheduler_kwargs": {"lr_drop": 3}, "lr_drop": 3}, "lr_drop", 3),
        ({"notes": {"by": ("me", 1)}}, "notes", {"by": ["me", 1]}),
        ({"dataset_dir": ["a", Path("b")]}, "dataset_dir", {Path("a"): 1.0, Path("b"): 1.0}),
        ({"dataset_dir": ["a", "b@.25"]}, "dataset_dir", {Path("a"): 1.0, Path("b"): 0.25}),
        ({"dataset_dir": {"a": 1}}, "dataset_dir", Path("a")),
        ({"dataset_dir": "a@0.5"}, "dataset_dir", {Path("a"): 0.5}),
        ({"classes": ["cat", "dog"]}, "classes", {"cat": ["cat"], "dog": ["dog"]}),
        ({"classes": "cat,pet=dog+cow"}, "classes", {"cat": ["cat"], "pet": ["dog", "cow"]}),
        ({"classes": {"pet": "dog"}}, "classes", {"pet": ["dog"]}),
        ({}, "validates_average_alone", False),
        ({"eval_base_model": True}, "validates_average_alone", False),
        ({"eval_base_model": False}, "validates_average_alone", True),
        ({"eval_base_model": False, "eval_ema_only": False}, "validates_average_alone", True),
        ({"eval_ema_only": True}, "validates_average_alone", True),
    ],
)
def test_published_values_have_one_form(settings: dict[str, Any], field: str, value: Any) -> None:
    found = getattr(_train(**settings), field)
    assert found == value and type(found) is type(value)
    config = _train()
    for name, given in settings.items():
        if name != "lr_scheduler_kwargs":
            setattr(config, name, given)
            assert getattr(config, field) == getattr(_train(**settings), field)


def test_paths_are_taken_as_text_or_as_paths() -> None:
    assert RFDETRNanoConfig(pretrain_weights=Path("a.pth")).pretrain_weights == "a.pth"
    assert _train(resume=Path("last.ckpt")).resume == "last.ckpt"
    assert TrainConfig(dataset_dir="~/data", output_dir="~/out").output_dir == Path.home() / "out"


def test_a_resolution_is_a_side_or_a_height_and_a_width() -> None:
    square = RFDETRNanoConfig(resolution=384)
    for same in ((384, 384), [384, 384], "384", "384x384", 384.0):
        found = RFDETRNanoConfig(resolution=same)
        assert found == square and type(found.resolution) is int
        assert found.model_dump_json() == square.model_dump_json()
    for given in ((320, 480), [320, 480], "320x480"):
        wide = RFDETRNanoConfig(resolution=given)
        assert wide.resolution == wide.input_size == (320, 480)
        assert (wide.square, wide.position_grid) == (384, 24)  # of about as many pixels
    assert RFDETRNanoConfig(**json.loads(wide.model_dump_json())) == wide
    with pytest.raises(ValueError, match=r"chosen from training images: train"):
        RFDETRNanoConfig(resolution="auto")


def test_the_position_grid_follows_the_resolution_unless_it_is_set() -> None:
    assert RFDETRNanoConfig(resolution=448).position_grid == 28
    assert RFDETRBaseConfig(resolution=448).position_grid == 37


def test_defaults_are_not_shared_between_configurations() -> None:
    RFDETRNanoConfig().out_feature_indexes.append(99)
    assert RFDETRNanoConfig().out_feature_indexes == [3, 6, 9, 12]
