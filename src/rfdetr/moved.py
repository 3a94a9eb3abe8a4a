"""Names of the published package that are not here, and what is in their place: one table.

A module that held some has a `__getattr__` that raises `missing`; one that is gone raises `gone`.
"""

from __future__ import annotations

from rfdetr.errors import MovedError

_NAMES = {  # what to do: names, of modules and in them, and of a model's attributes ("RFDETR.x")
    "pass Lightning's callbacks to the trainer: trainer = build_trainer(train_config, "
    "model_config), then trainer.callbacks.append(...) (docs/custom-training.md)": """
        RFDETR.callbacks""",
    "build_detector(model_config) of rfdetr.models.build makes a network, and a class such as "
    "RFDETRNano(...) one that predicts": """
        RFDETR.get_model rfdetr.main rfdetr.models.lwdetr rfdetr.models.build_model
        rfdetr.models.build_model_from_config rfdetr.models.MLP""",
    "inference() keeps what it has optimised to itself: call predict(), or take the network itself "
    "as model.model.model": "ModelContext.inference_model",
    "model.model_config has the model's settings": "ModelContext.args",
    "train() fits the head to the data's classes, and num_classes= of a constructor gives another "
    "number": "ModelContext.reinitialize_detection_head",
    "postprocess_outputs of rfdetr.models.detector turns outputs into detections": """
        ModelContext.postprocess rfdetr.models.PostProcess""",
    "Criterion of rfdetr.losses.criterion has the losses": """
        rfdetr.models.SetCriterion rfdetr.models.build_criterion_from_config""",
    "a constructor loads the weights that pretrain_weights= names": """
        rfdetr.models.load_pretrain_weights""",
    "backbone_lora=True of a constructor adds adapters": "rfdetr.models.apply_lora",
    "ModelConfig of rfdetr.config has the defaults": """
        rfdetr.models.MODEL_DEFAULTS rfdetr.models.ModelDefaults rfdetr.models.BuilderArgs""",
    "RFDETRModule of rfdetr.training has the steps, build_trainer the loop "
    "(docs/custom-training.md)": "rfdetr.engine",
    "model.export() writes a model for other programs": "rfdetr.deploy",
    "supervision draws detections; a run draws its own figures (metrics.png, pr_curve.png), and "
    "save_dataset_grids=True its batches": "rfdetr.visualize",
    "the models of the extra 'plus' are not part of this package: RFDETRLarge is the largest": """
        rfdetr.platform rfdetr.RFDETRXLarge rfdetr.RFDETR2XLarge""",
    "keypoint models are not part of this package": """
        rfdetr.RFDETRKeypointPreview rfdetr.detr.RFDETRKeypointPreview
        rfdetr.variants.RFDETRKeypointPreview rfdetr.config.RFDETRKeypointPreviewConfig
        rfdetr.config.KeypointTrainConfig rfdetr.datasets.infer_coco_keypoint_schema
        rfdetr.datasets.infer_yolo_keypoint_schema rfdetr.utilities.schemas_semantically_equal
        rfdetr.utilities.precision_cholesky_to_pixel_covariance""",
    "model.model_config.segmentation_head tells whether a model has masks": """
        rfdetr.detr.RFDETRSeg rfdetr.variants.RFDETRSeg""",
    "give the setting as text, such as \"bf16\", \"per-batch\" or \"coco\"": """
        rfdetr.config.AmpDtype rfdetr.config.AugmentationBackend rfdetr.config.CocoEvalBackend
        rfdetr.config.DatasetFile rfdetr.config.MultiScale""",
    "device=None of a constructor takes the best device there is": "rfdetr.config.DEVICE",
    "a file that does not fit is an InputError": """
        rfdetr.config.PretrainWeightsCompatibilityWarning""",
    "fetch(name) of rfdetr.weights.download loads a published file once, PUBLISHED lists them, and "
    "cache_dir() says where they are": """
        rfdetr.assets.model_weights rfdetr.assets.ModelWeights rfdetr.assets.ModelWeightAsset
        rfdetr.assets.ModelWeightsBase rfdetr.assets.get_model_cache_dir""",
    "RFDETRDataModule of rfdetr.training reads COCO and YOLO folders": """
        rfdetr.datasets.build_dataset rfdetr.datasets.build_coco rfdetr.datasets.build_roboflow
        rfdetr.datasets.build_roboflow_from_coco rfdetr.datasets.build_roboflow_from_yolo
        rfdetr.datasets.build_o365 rfdetr.datasets.build_webdataset
        rfdetr.datasets.detect_roboflow_format rfdetr.datasets.find_yolo_data_file
        rfdetr.datasets.find_yolo_train_images rfdetr.datasets.YoloDetection
        rfdetr.datasets.get_coco_api_from_dataset""",
    "progress_bar=\"tqdm\" or \"rich\" chooses the bar": """
        rfdetr.training.GPUMemoryTQDMProgressBar rfdetr.training.GPUMemoryRichProgressBar""",
    "`rfdetr train` is the command line": "rfdetr.training.RFDETRCli",
    "pytorch_lightning.seed_everything does it, and seed= of train()": """
        rfdetr.utilities.seed_all""",
    "torch.distributed has it": """
        rfdetr.utilities.all_gather rfdetr.utilities.get_rank rfdetr.utilities.get_world_size
        rfdetr.utilities.is_dist_avail_and_initialized rfdetr.utilities.is_main_process
        rfdetr.utilities.reduce_dict rfdetr.utilities.save_on_master""",
    "targets are a list of dicts, one an image": """
        rfdetr.utilities.PackedTargets rfdetr.utilities.pack_targets
        rfdetr.utilities.make_collate_fn rfdetr.utilities.nested_tensor_from_tensor_list""",
    "logging.getLogger(\"rfdetr\") is the logger": "rfdetr.utilities.get_logger",
    "rfdetr.__version__ is the version": "rfdetr.utilities.get_version rfdetr.utilities.get_sha",
    "read_checkpoint of rfdetr.weights.reading reads any file, and checkpoint_best_total.pth has "
    "no more than the weights and what they are": """
        rfdetr.utilities.clean_state_dict rfdetr.utilities.strip_checkpoint""",
}  # fmt: skip
NOT_HERE = {name: advice for advice, names in _NAMES.items() for name in names.split()}
"""What to do by published name."""


def gone(name: str) -> MovedError:
    """The error for a name of the table."""
    return MovedError(f"{name} of the published package is not here: {NOT_HERE[name]}")


def missing(module: str, name: str) -> Exception:
    """The error for what a module does not have: of the table, or any other."""
    if (path := f"{module}.{name}") in NOT_HERE:
        return gone(path)
    return AttributeError(f"module {module!r} has no attribute {name!r}")


def no_attribute(owner: object, name: str, kind: str) -> AttributeError:
    """The error for an attribute that `owner` does not have; `kind` is its class in the table."""
    advice = NOT_HERE.get(f"{kind}.{name}")
    told = f"{type(owner).__name__!r} object has no attribute {name!r}"
    return AttributeError(f"{told}: {advice}" if advice else told, name=name, obj=owner)
