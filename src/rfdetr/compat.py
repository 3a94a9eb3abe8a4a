"""What people wrote for the published package (rfdetr 1.11.2), and what becomes of it here.

A keyword that is a field here needs no entry. Each other one is in a table below, by the call that
takes it, and has one of these fates; none is dropped without a word:

    Constant    absorbed at its values here, refused at others, with what to do instead
    Harmless    absorbed at its published default; else ignored, and one warning says why
    Moved       handed on to the model's configuration, to the trainer, or to another name
    Unpacked    a dict whose entries are fields here
    Translated  a field here has another name for each of its values
    Rewritten   a field here says the same in another form
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Container, Mapping
from typing import Any, Literal, NamedTuple

from rfdetr.checks import short
from rfdetr.datasets.albumentations import steps_from
from rfdetr.errors import InputError


class Constant(NamedTuple):
    """What the keyword must be, and what to do for another value."""

    values: tuple[Any, ...]
    instead: str


class Harmless(NamedTuple):
    """The published default, and why another value changes nothing that matters."""

    default: Any
    why: str


class Moved(NamedTuple):
    """Who takes the keyword of `train()`, and under which name where not under its own; "train" is
    the configuration of training."""

    to: Literal["model", "trainer", "train"]
    name: str = ""


class Unpacked(NamedTuple):
    """The fields that the entries of a dict are here, by their names in it."""

    fields: dict[str, str]


class Translated(NamedTuple):
    """The field that says the same, its value for each of the keyword's (None: leave it), and what
    to do for another value.
    """

    field: str
    values: dict[Any, Any]
    instead: str


class Rewritten(NamedTuple):
    """The field that says the same, and what makes its value of the keyword's."""

    field: str
    rewrite: Callable[[Any], Any]
    how: str


Fate = Constant | Harmless | Moved | Unpacked | Translated | Rewritten

_NO_KEYPOINTS = "keypoint models are not part of this package"
_BUILT_SO = "the network is built so and its published weights need it"
_OPTIMIZER = "override RFDETRModule.configure_optimizers (docs/custom-training.md)"
_LOSSES = "override RFDETRModule.compute_losses (docs/custom-training.md)"
_NO_HALF = 'weights are float32, and dtype="bfloat16" (OpenVINO) is the fast arithmetic'

MODEL: dict[str, Fate] = {
    **dict.fromkeys(
        ("two_stage", "layer_norm", "bbox_reparam", "lite_refpoint_refine", "ia_bce_loss"),
        Constant((True,), _BUILT_SO),
    ),
    "num_channels": Constant((3,), "images are read as RGB: give three channels"),
    "num_decoder_registers": Constant((0,), "no published detector has any"),
    **dict.fromkeys(
        ("dual_projector", "dual_projector_kp_only", "inter_instance_kp_attn"),
        Constant((False,), _NO_KEYPOINTS),
    ),
    "use_grouppose_keypoints": Constant((False,), _NO_KEYPOINTS),
    "num_keypoints_per_class": Constant(([], ()), _NO_KEYPOINTS),
    "keypoint_cross_attn": Harmless(True, "it is of keypoint models"),
    "grouppose_keypoint_dim_downscale": Harmless(1, "it is of keypoint models"),
    "postprocess_trace_alpha": Harmless(0.2, "it is of keypoint models"),
    "compile": Constant((False,), "train(compile=True) compiles the training steps"),
    "cuda_graphs": Constant((False,), "there is no such mode: leave it out"),
    "fused_optimizer": Harmless(True, "AdamW is fused wherever it can be"),
    "license": Harmless("Apache-2.0", "the package's own licence holds"),
    "model_name": Harmless(None, "the class says which model it is"),
    "accept_platform_model_license": Harmless(False, "no model here needs it"),
    "trust_checkpoint": Harmless(False, "no file's code is run, whoever wrote it"),
}

OLDER: dict[str, Fate] = {  # keywords of `train()` in releases before 1.7
    "ema": Moved("train", "use_ema"),
    "num_classes": Harmless(None, "the classes of the data count"),
    **dict.fromkeys(("rms_norm", "use_cls_token"), Constant((False,), _BUILT_SO)),
    "position_embedding": Constant(("sine",), _BUILT_SO),
    "decoder_norm": Constant(("LN",), _BUILT_SO),
    "window_block_indexes": Constant((None,), "the model's out_feature_indexes= decides"),
    "vit_encoder_num_layers": Constant((12,), "the model's encoder= decides"),
    "freeze_batch_norm": Harmless(False, "the network has no batch norm"),
    "dropout": Constant((0,), "drop_path= is what the encoder has"),
    "drop_mode": Constant(("standard",), "drop_path= has one mode"),
    "drop_schedule": Constant(("constant",), "drop_path= does not change over a run"),
    "cutoff_epoch": Constant((0,), "drop_path= does not change over a run"),
    "set_cost_class": Constant((2,), _LOSSES),
    "set_cost_bbox": Constant((5,), _LOSSES),
    "set_cost_giou": Constant((2,), _LOSSES),
    "focal_alpha": Constant((0.25,), _LOSSES),
    "aux_loss": Constant((True,), _LOSSES),
    **dict.fromkeys(
        ("sum_group_losses", "use_varifocal_loss", "use_position_supervised_loss"),
        Constant((False,), _LOSSES),
    ),
    **dict.fromkeys(
        ("pretrained_encoder", "pretrained_distiller"),
        Constant((None,), "the model's pretrain_weights= names the file to start from"),
    ),
    **dict.fromkeys(
        ("pretrain_exclude_keys", "pretrain_keys_modify_to_load"),
        Constant((None,), "a file's tensors are fitted to the network by themselves"),
    ),
    "force_no_pretrain": Constant((False,), "build the model with pretrain_weights=None"),
    **dict.fromkeys(
        ("encoder_only", "backbone_only"), Constant((False,), "the whole network is trained")
    ),
    "coco_path": Constant((None,), "dataset_dir= names the folder"),
    "start_epoch": Constant((0,), "resume= goes on with the epoch of its checkpoint"),
    "eval": Constant((False,), "call evaluate()"),
    "world_size": Constant((1,), "give devices= and num_nodes=, or start it by torchrun"),
    "dist_url": Harmless("env://", "Lightning brings the processes together"),
    "do_benchmark": Harmless(False, "no speed is measured"),
    "print_freq": Harmless(10, "each step is logged, and each epoch has its line"),
    "subcommand": Harmless(None, "it is of the command line"),
}

TRAIN: dict[str, Fate] = {
    **OLDER,
    **dict.fromkeys(("device", "resolution", "gradient_checkpointing"), Moved("model")),
    **dict.fromkeys(("devices", "strategy", "num_nodes", "num_sanity_val_steps"), Moved("trainer")),
    "amp_dtype": Moved("trainer", "precision"),
    "fp16_eval": Harmless(False, "evaluation has the precision of training"),
    "eval_backend": Harmless("vernier", "COCO's figures are the same, from hotcoco"),
    "eval_masks_head_resolution": Harmless(False, "masks are judged at full size, as COCO does"),
    "pack_targets": Harmless(True, "targets are packed in the loss"),
    "pad_targets_to": Harmless(None, "targets need no padding here"),
    "train_log_on_step": Harmless(False, "the loss of each step is always logged"),
    "train_log_sync_dist": Harmless(False, "logged means are those of all devices"),
    "compact_train_metrics": Harmless(True, "each term of the loss has one column"),
    "compute_test_loss": Harmless(True, "compute_val_loss= decides for test too"),
    "lr_scheduler_monitor": Harmless("val/loss", "no schedule here watches a figure"),
    "auto_batch_max_targets_per_image": Harmless(100, "the trial runs the densest images"),
    "auto_batch_ema_headroom": Harmless(0.7, "the trial runs with the average in memory"),
    "auto_batch_target_effective": Constant((16,), "give batch_size and grad_accum_steps"),
    "compute_train_metrics": Constant((False,), 'use evaluate(dataset_dir, split="train")'),
    "clearml": Constant((False,), "use tensorboard=, wandb= or mlflow=, or pass logger="),
    "dont_save_weights": Constant((False,), "a run keeps its best weights: give an output_dir"),
    "optimizer": Constant(("adamw", "AdamW", "torch.optim.AdamW"), _OPTIMIZER),
    "optimizer_kwargs": Constant(({},), f"weight_decay= is a field; for more, {_OPTIMIZER}"),
    "lr_scheduler_kwargs": Unpacked({"lr_drop": "lr_drop", "min_factor": "lr_min_factor"}),
    "lr_scheduler_interval": Constant(("step",), "schedules here move with each step"),
    "square_resize_div_64": Constant((True,), "images are stretched to the resolution"),
    "scale_jitter": Constant((True,), "crops of several scales are part of the recipe"),
    "aug_config": Rewritten("augment", steps_from, "a dict of Albumentations' names and arguments"),
    "augmentation_backend": Harmless("cpu", "the loader's processes augment"),
    "keypoint_flip_pairs": Constant(([], ()), _NO_KEYPOINTS),
    "keypoint_oks_sigmas": Constant((None,), _NO_KEYPOINTS),
    **dict.fromkeys(
        (
            "keypoint_l1_loss_coef",
            "keypoint_findable_loss_coef",
            "keypoint_visible_loss_coef",
            "keypoint_nll_loss_coef",
        ),
        Constant((0,), _NO_KEYPOINTS),
    ),
}

EXPORT: dict[str, Fate] = {
    "backbone_only": Constant((False,), "the whole network is written"),
    "quantization": Translated("dtype", {None: None, "fp32": "float32", "int8": "int8"}, _NO_HALF),
    "openvino_precision": Translated("dtype", {None: None, "float32": "float32"}, _NO_HALF),
    "max_batch_size": Harmless(None, "any number of images is taken"),
    "fp16": Harmless(True, "it is of TensorRT"),
    "infer_dir": Harmless(None, "no sample images are needed"),
    "verbose": Harmless(True, "little is told"),
    "simplify": Harmless(True, "constants are folded and the graph is pruned"),
    "force": Harmless(False, "overwrite=True writes over an artifact"),
    **dict.fromkeys(("backend", "soc"), Harmless(None, "it is of ExecuTorch")),
    "coreml_precision": Harmless(None, "it is of Core ML"),
    "coreai_precision": Harmless(None, "it is of Core AI"),
}

_ANY_NUMBER, _NO_SAMPLES = "any number of images is taken", "no sample images are needed"
OF_HF: dict[str, Fate] = {
    "shape": Constant((None,), "load the model with another resolution= and export that"),
    **dict.fromkeys(("dtype", "input_dtype"), Constant(("float32",), "the files are of float32")),
    "batch_size": Harmless(1, _ANY_NUMBER),
    "dynamic_batch": Harmless(False, _ANY_NUMBER),
    "opset_version": Harmless(17, "it is of ONNX"),
    "calibration_data": Harmless(None, _NO_SAMPLES),
    "max_images": Harmless(100, _NO_SAMPLES),
    "output_name": Harmless(None, "the files have the names that transformers looks for"),
    "overwrite": Constant((False,), "give another output_dir"),
    "verify": Constant((None, False), "the files are run by transformers alone"),
    "max_loss": Harmless(0.5, "nothing is compared"),
}
"""Of `ExportConfig`, what the folder for transformers has no use for."""

TRAINER = {
    name: fate.name or name
    for name, fate in TRAIN.items()
    if isinstance(fate, Moved) and fate.to == "trainer"
}
"""Keywords of `train()` that `build_trainer` takes, and their names there."""
PRECISIONS = {"auto": "", "bf16": "bf16-mixed", "fp16": "16-mixed", None: "32-true"}
"""Of Lightning's trainer, by published `amp_dtype`; "auto" is left to `build_trainer`."""


def absorb(settings: Mapping[str, Any], fates: Mapping[str, Fate]) -> dict[str, Any]:
    """The settings without those that need nothing done; the others, `Moved` ones too, are left.

    Raises `InputError` for a value that cannot be, and warns once of all that are ignored.
    """
    left: dict[str, Any] = {}
    ignored = []
    for name, value in settings.items():
        fate = fates.get(name)
        if isinstance(fate, Constant) and not any(_same(value, one) for one in fate.values):
            known = " or ".join(map(repr, fate.values))
            found = f"{name}={short(value)} of the published package has no equivalent here"
            raise InputError(f"{found} (only {known}): {fate.instead}")
        if isinstance(fate, Harmless) and not _same(value, fate.default):
            ignored.append(f"{name}={short(value)} ({fate.why})")
        if isinstance(fate, Unpacked):
            left |= _unpacked(name, value, fate.fields, settings)
        if isinstance(fate, Translated):
            left |= _unpacked(
                name, _translated(name, value, fate), {fate.field: fate.field}, settings
            )
        if isinstance(fate, Rewritten) and value is not None:
            new = {fate.field: fate.rewrite(value)}
            left |= _unpacked(name, new, {fate.field: fate.field}, settings)
        if fate is None or isinstance(fate, Moved):
            left[name] = value
    if ignored:
        warnings.warn(f"without effect here: {'; '.join(ignored)}", stacklevel=3)
    return left


def _translated(name: str, value: Any, fate: Translated) -> dict[str, Any]:
    """The field and its value; `InputError` for a value that has no equivalent."""
    known = [one for one in fate.values if _same(value, one)]
    if not known:
        found = f"{name}={short(value)} of the published package has no equivalent here"
        raise InputError(f"{found} (only {' or '.join(map(repr, fate.values))}): {fate.instead}")
    new = fate.values[known[0]]
    return {} if new is None else {fate.field: new}


def _same(value: Any, known: Any) -> bool:
    """Whether two values are equal; arrays, whose comparison is no truth value, never are."""
    try:
        return bool(value == known)
    except (ValueError, TypeError):
        return False


def _unpacked(
    name: str, entries: Any, fields: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The entries under the names of `fields`; `InputError` for others, and where both differ."""
    if not isinstance(entries, Mapping) or entries.keys() - fields.keys():
        expected = ", ".join(f"{key!r} (here {fields[key]}=)" for key in fields)
        raise InputError(f"{name}={short(entries)}: expected a dict of {expected}")
    for key, field in fields.items():
        if key in entries and settings.get(field, entries[key]) != entries[key]:
            told = f"{name} says {key} {short(entries[key])}"
            raise InputError(f"{told}, but {field} is {short(settings[field])}: give one of them")
    return {fields[key]: value for key, value in entries.items()}


def split_moved(settings: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Settings of `train()` as (training's, the model's, the trainer's), as each takes them.

    `device` "cuda:1" is also `accelerator` "gpu" and `devices` [1] where these are not given; None
    and "auto" leave the choice.
    """
    parts: dict[str, dict[str, Any]] = {"train": {}, "model": {}, "trainer": {}}
    for name, value in absorb(settings, TRAIN).items():
        fate = TRAIN.get(name)
        owner, renamed = fate if isinstance(fate, Moved) else ("train", "")
        known = parts[owner].setdefault(renamed or name, value)
        if known is not value and not _same(known, value):
            raise InputError(f"{name} and {renamed or name} are one setting: give one of them")
    train, model, trainer = parts.values()
    device = model.pop("device", None)
    if device is not None and device != "auto":
        found = re.fullmatch(r"(cpu|cuda|mps)(?::(\d+))?", str(device))
        if found is None:
            raise InputError(f'device={short(device)}: expected "cpu", "cuda", "cuda:1" or "mps"')
        model["device"], accelerator = str(device), found[1].replace("cuda", "gpu")
        if train.get("accelerator", "auto") not in ("auto", found[1], accelerator):
            told = f"device={short(device)}, but accelerator={short(train['accelerator'])}"
            raise InputError(f"{told}: give one of them")
        train["accelerator"] = accelerator
        if found[1] == "cuda" and found[2]:
            trainer.setdefault("devices", [int(found[2])])
    precision = trainer.pop("precision", "auto")
    if not isinstance(precision, str | None) or precision not in PRECISIONS:
        raise InputError(f'amp_dtype={short(precision)}: expected "auto", "bf16", "fp16" or None')
    if PRECISIONS[precision]:
        trainer["precision"] = PRECISIONS[precision]
    return train, model, trainer


def of_evaluation(
    settings: Mapping[str, Any], device: str, fields: Container[str]
) -> dict[str, Any]:
    """What `evaluate` does with settings of `train()`: `batch_size`, `max_dets`, `resolution`.

    The published call takes all of them. What trains (one of `fields`) is ignored, and one warning
    names it; any other name is an `InputError`.
    """
    train, model, trainer = split_moved(settings)
    if unknown := [name for name in train if name not in fields]:
        raise InputError(f"evaluate() has no keyword {', '.join(map(repr, unknown))}")
    if str(model.pop("device", device)).split(":")[0] != device:
        raise InputError(f"device={settings['device']!r}: this model is on {device}; load it there")
    renamed = {"eval_batch_size": "batch_size", "eval_max_dets": "max_dets"}
    used = {new: train.pop(name) for name, new in renamed.items() if train.get(name) is not None}
    used |= {"resolution": model.pop("resolution")} if "resolution" in model else {}
    if unused := [name for name in (*train, *model, *trainer) if name in settings]:
        names = ", ".join(unused)
        warnings.warn(f"evaluate() trains nothing; without effect: {names}", stacklevel=3)
    return used
