"""The calls of the published package's `RFDETR` that have another name or another owner here."""

from __future__ import annotations

import logging
import os
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from rfdetr import compat
from rfdetr.checks import check_count, check_folder, check_kind, check_new_folder, short
from rfdetr.config import ExportConfig, ModelConfig, SegmentationTrainConfig, TrainConfig
from rfdetr.console import lines_shown
from rfdetr.data.images import IMAGENET_MEAN, IMAGENET_STD
from rfdetr.errors import InputError, RunError
from rfdetr.export import Subject, formats_in, options_of, writer_of
from rfdetr.files import atomic_write
from rfdetr.inference.engines import engine_of
from rfdetr.inference.predictor import NetworkPredictor
from rfdetr.models.detector import detector_in
from rfdetr.moved import no_attribute
from rfdetr.proof.prove import prove, reference_for
from rfdetr.weights.writing import checkpoint_args, published_tensors

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelContext(NetworkPredictor):
    """What predicts, as `model.model` of the published package: with the names of the classes."""

    @property
    def class_names(self) -> list[str]:
        return list(self.labels.values())

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, "ModelContext")


class PublishedCalls:
    """What scripts of rfdetr 1.4 to 1.11 call on a model beside train, evaluate and predict."""

    model: ModelContext
    model_config: ModelConfig
    _weights_file: Path | None
    means: ClassVar[list[float]] = list(IMAGENET_MEAN)
    stds: ClassVar[list[float]] = list(IMAGENET_STD)

    if TYPE_CHECKING:

        @property
        def class_names(self) -> list[str]: ...

    else:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, "RFDETR")

    def inference(  # noqa: PLR0913 - all but the last two are the published ones
        self,
        compile: bool = True,
        batch_size: int = 1,
        dtype: str | torch.dtype = torch.float32,
        *,
        inplace: bool = False,
        compile_backend: Literal["torchscript", "inductor"] = "torchscript",
        backend: Literal["torch", "onnx", "openvino"] = "torch",
        calibration: Any = None,
    ) -> None:
        """Predicts from now on with a private copy of the network, its weights as `dtype`.

        With `compile_backend="inductor"`, `compile` runs torch.compile. "torchscript" changes
        nothing: traced, the network is not faster. Every `batch_size` is served. With bfloat16,
        several times as fast on processors and GPUs made for it, confidences move by some
        thousandths. `inplace` converts the network itself, which then cannot be trained or undone;
        no other thread may predict meanwhile.
        `remove_optimized_model` undoes all else, and so does `train`.

        `backend="openvino"` (float32, bfloat16, int8) or "onnx" (float32) exports the present
        weights in memory, which takes some seconds, and predicts with that runtime on the CPU, at
        the model's resolution alone. int8 is measured on the images of `calibration`: a data set's
        folder or what `predict` takes; None: the run's own.
        """
        if backend not in ("torch", "onnx", "openvino"):
            raise InputError(f'backend {short(backend)}: expected "torch", "onnx" or "openvino"')
        if compile_backend not in ("torchscript", "inductor"):
            found = f"compile_backend {compile_backend!r}"
            raise InputError(f'{found}: expected "torchscript" or "inductor"')
        check_count("batch_size", batch_size)
        check_kind("compile", compile, bool)
        if inplace and compile:
            raise InputError("inplace=True needs compile=False")
        compiled = compile and compile_backend == "inductor"
        if backend != "torch":
            if inplace or compiled:
                raise InputError(f'backend="{backend}" takes no inplace and no "inductor"')
            return self._run_by(backend, dtype, calibration)
        wanted = _DTYPES.get(str(dtype).removeprefix("torch."))
        if wanted is None:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
        if calibration is not None:
            raise InputError('calibration is of dtype="int8", which needs backend="openvino"')
        self.weights()  # or an error: they were converted
        self.model.optimize(wanted, compiled, inplace)

    optimize_for_inference = inference  # its name before 1.11

    @lines_shown()
    def _run_by(self, backend: str, dtype: Any, calibration: Any) -> None:
        """Predicts from now on with the engine of another runtime, made of the present weights."""
        if (device := self.model.own_device.type) != "cpu":
            on = f'backend="{backend}" runs on the CPU, and this model is on {device}'
            raise InputError(f'{on}: load it with device="cpu"')
        how: dict[str, Any] = {"dtype": dtype, "calibration_data": calibration}
        config, subject = ExportConfig(input_dtype="uint8", **how), self._subject()
        if backend == "onnx" and config.dtype != "float32":
            raise InputError(f'backend="onnx" is float32, not {config.dtype}: use "openvino"')
        logger.info("making the engine: %s, %s; some seconds ...", backend, config.dtype)
        options = options_of(config, [backend], subject)
        self.model.use(engine_of(subject, options, backend))

    def _subject(self, notes: Any = None) -> Subject:
        """What is exported; `RunError` where `inference` has changed the weights."""
        self.weights()
        network, labels = detector_in(self.model.model), self.model.labels
        return Subject(network, self.model_config, labels, self._weights_file, notes)

    @property
    def is_optimized_inplace(self) -> bool:
        """Whether `inference(inplace=True)` has converted the network itself."""
        return self.model.converted

    def remove_optimized_model(self) -> None:
        """Predicts from now on with the network as it was loaded or trained."""
        if self.is_optimized_inplace:
            warnings.warn("inference(inplace=True) is not undone: load the model", stacklevel=2)
        else:
            self.model.optimize(torch.float32, False)

    def get_model_config(self, **settings: Any) -> ModelConfig:
        """The model's configuration, with `settings` in place of its own."""
        return type(self.model_config)(**{**self.model_config.model_dump(), **settings})

    def get_train_config(self, **settings: Any) -> TrainConfig:
        """The configuration with which `train(**settings)` would run."""
        return self.train_config_class(**compat.split_moved(settings)[0])

    @property
    def train_config_class(self) -> type[TrainConfig]:
        """`SegmentationTrainConfig` for a model of masks."""
        return SegmentationTrainConfig if self.model_config.segmentation_head else TrainConfig

    def maybe_download_pretrain_weights(self) -> None:
        """Does nothing: a model is built with its weights, which were downloaded then."""

    @lines_shown()
    def export(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        format: str | Sequence[str] = "onnx",
        patch_size: int | None = None,
        **settings: Any,
    ) -> Path | list[Path]:
        """Writes the model for other programs; gives the file to open, a list for several formats.

        `format` is "onnx", "openvino", "pt2" (torch.export), "hf" (a new folder of its own, which
        `transformers` reads as `rf_detr`), or several: "onnx,openvino". `output_dir` is "output" if
        None; of what is there, nothing is written over. `settings` are the fields of
        `ExportConfig` (`dtype`, `opset_version`, `shape`, `notes`, ...) and those of the published
        call; `patch_size` can only be the model's own.

        Beside an artifact lie its metadata, `NAME.rfdetr.json`, rfdetr_decode.py, which runs it
        without this package, and certificate.json, which compares it with the model (see
        `rfdetr.proof.prove`). `RunError` where it loses more than `max_loss` points of mAP 50:95.
        """
        formats = formats_in(format)
        self.model.check_patch_size(patch_size)
        of_hf = compat.OF_HF if formats == ["hf"] else {}
        config = ExportConfig(**compat.absorb(settings, of_hf))
        subject = self._subject(config.notes)
        default = "output/hf" if formats == ["hf"] else "output"
        folder = check_folder("output_dir", default if output_dir is None else output_dir)
        options = options_of(config, formats, subject)
        write = writer_of(subject, folder, formats, options)
        verify = False if formats == ["hf"] else config.verify
        reference = reference_for(subject, verify, options.size)
        written = write()
        if reference is not None:
            files = [path for path in written if path.is_file()]  # the folder of hf is none
            prove(subject, files, reference, config.max_loss)
        return written[0] if len(formats) == 1 else written

    def export_for_roboflow(self, output_dir: str | os.PathLike[str]) -> None:
        """Writes what Roboflow's uploader takes: weights.pt and class_names.txt, a name a line.

        A folder with something in it is an `InputError`.
        """
        model = published_tensors(self.weights())
        folder = check_new_folder("output_dir", output_dir)
        args = checkpoint_args(self.model_config, self.class_names)
        content = {"model": model, "args": types.SimpleNamespace(**args)}
        names = "\n".join(" ".join(name.splitlines()) for name in self.class_names)
        atomic_write(folder / "weights.pt", lambda stream: torch.save(content, stream))
        atomic_write(folder / "class_names.txt", lambda stream: stream.write(names.encode()))

    def weights(self) -> dict[str, Tensor]:
        """The network's tensors by its own names; `RunError` where `inference` has changed them."""
        if self.is_optimized_inplace:
            raise RunError("inference(inplace=True) has converted the weights: load the model")
        return detector_in(self.model.model).state_dict()

    def deploy_to_roboflow(self, *_: Any, **__: Any) -> None:
        """Always `InputError`: this package sends nothing; the message says what does."""
        raise InputError(
            "deploy_to_roboflow is not here, as nothing is sent anywhere. Write the files with "
            "export_for_roboflow(folder), then: pip install roboflow, and "
            "project.version(n).deploy(model_type='rfdetr-...', model_path=folder)"
        )
