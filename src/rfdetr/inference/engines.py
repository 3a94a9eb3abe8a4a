"""What runs a network on a batch of images, and the engines of exported artifacts.

`open_artifact` opens a file. The network itself in torch is `TorchEngine` of predictor.py.
"""

from __future__ import annotations

import abc
import io
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rfdetr.checks import check_path
from rfdetr.data.images import normalize
from rfdetr.errors import InputError, MissingPackageError, needs_extra
from rfdetr.export import Options, Subject
from rfdetr.export.artifacts import Work
from rfdetr.export.metadata import KEY, Metadata
from rfdetr.export.openvino import PRECISIONS, core, openvino_model
from rfdetr.export.program import quiet
from rfdetr.files import CHECKSUMS_FILE, is_damaged

if TYPE_CHECKING:
    import openvino
    from onnxruntime import InferenceSession

Shape: TypeAlias = "Sequence[int | str | None]"
"""Of a batch; a size that is no number may be any."""
Outputs: TypeAlias = "tuple[Tensor, Tensor, Tensor | None]"
_CPU = torch.device("cpu")


class Engine(Protocol):
    """A network made ready to run: any number of threads may call it at once."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def patch_size(self) -> int: ...

    def check_size(self, height: int, width: int) -> None:
        """`InputError` where an image of this size is none that it takes."""

    def __call__(self, pixels: Tensor) -> Outputs:
        """uint8 RGB (B, 3, H, W) to boxes (B, Q, 4) cxcywh relative to the image, logits (B, Q, K)
        and, with a segmentation head, mask logits (B, Q, h, w).
        """


class ArtifactEngine(abc.ABC):
    """The engines of artifacts: on the CPU, for images of one size, as the metadata says.

    They use as many cores as torch does: those of this process, unless OMP_NUM_THREADS or
    `torch.set_num_threads` allows fewer.
    """

    name: str
    device = _CPU

    def __init__(
        self, metadata: Metadata, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]
    ) -> None:
        """`inputs` and `outputs` are the names and shapes that are in the file."""
        self.metadata = metadata
        self.patch_size = metadata.patch_size
        self.outputs = [name for name in metadata.outputs.model_dump().values() if name]
        told = metadata.shapes()
        found = {**inputs, **outputs}
        named = [*inputs] == [metadata.input.name] and {*self.outputs} <= {*outputs}
        if not named or any(differ(found[name][1:], told[name]) for name in told):
            raise InputError(
                f"the artifact takes {dict(inputs)} and gives {dict(outputs)}, but its metadata "
                f"says {told}, of each image: export it again"
            )

    def check_size(self, height: int, width: int) -> None:
        own = self.metadata.input.height, self.metadata.input.width
        if (height, width) != own:
            found = f"an image of {height} x {width} (height x width)"
            raise InputError(
                f"{found} for an engine made for {own[0]} x {own[1]}, which takes no other: leave "
                f"shape out, or export with shape=({height}, {width})"
            )

    def __call__(self, pixels: Tensor) -> Outputs:
        size = self.metadata.input.batch
        if size == "dynamic":
            return self.run(pixels)
        parts: list[Outputs] = []
        for part in pixels.split(size):  # type: ignore[no-untyped-call]
            filling = part[-1:].expand(size - len(part), -1, -1, -1)
            parts.append(self.run(torch.cat((part, filling))))
        boxes, logits, masks = zip(*parts, strict=True)
        joined = None if masks[0] is None else torch.cat(masks)[: len(pixels)]
        return torch.cat(boxes)[: len(pixels)], torch.cat(logits)[: len(pixels)], joined

    @abc.abstractmethod
    def run(self, pixels: Tensor) -> Outputs:
        """A batch of the size that the artifact takes; what it gives is nobody else's memory."""

    def as_input(self, pixels: Tensor) -> Tensor:
        """The pixels as the artifact itself takes them."""
        if self.metadata.input.dtype == "float32":
            pixels = normalize(pixels)
        return pixels.contiguous()

    def __deepcopy__(self, _: Any) -> ArtifactEngine:
        return self  # nothing in it changes


class OnnxEngine(ArtifactEngine):
    """An ONNX model in ONNX Runtime, in float32."""

    name = "onnx"

    def __init__(self, content: bytes, source: str = "the ONNX model") -> None:
        with needs_extra("export", "ONNX Runtime"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        how = {"sess_options": options, "providers": ["CPUExecutionProvider"]}
        with unreadable(source, "an ONNX model that ONNX Runtime runs"):
            session: InferenceSession = onnxruntime.InferenceSession(content, **how)
        self._session, self._content = session, content
        metadata = metadata_in(session.get_modelmeta().custom_metadata_map.get(KEY), source)
        both = session.get_inputs(), session.get_outputs()
        super().__init__(metadata, *({one.name: one.shape for one in part} for part in both))

    @classmethod
    def open(cls, path: Path) -> OnnxEngine:
        return cls(path.read_bytes(), str(path))

    def run(self, pixels: Tensor) -> Outputs:
        array = self.as_input(pixels).numpy()
        found = self._session.run(self.outputs, {self.metadata.input.name: array})
        boxes, logits, *masks = map(torch.from_numpy, found)
        return boxes, logits, masks[0] if masks else None

    def __reduce__(self) -> Any:
        return OnnxEngine, (self._content,)


class OpenVinoEngine(ArtifactEngine):
    """A model in OpenVINO, in the arithmetic that its metadata names."""

    name = "openvino"

    def __init__(self, model: openvino.Model, source: str = "the OpenVINO model") -> None:
        text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
        both = (
            {one.any_name: [*map(_length, one.partial_shape)] for one in part}
            for part in (model.inputs, model.outputs)
        )
        super().__init__(metadata_in(text, source), *both)
        self._model = model
        self._compiled: dict[str, Compiled] = {}
        self._lock = threading.Lock()
        with unreadable(source, "a model that OpenVINO runs on the CPU"):
            self._compiled_for(1)

    @classmethod
    def open(cls, path: Path) -> OpenVinoEngine:
        with needs_extra("export", "OpenVINO"):
            import openvino  # noqa: F401
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise InputError(f"{path}: its weights, {weights.name}, are not beside it")
        with unreadable(str(path), "a model of OpenVINO"):
            if not re.search(rb"<net\s[^>]*version=", path.read_bytes()[:4096]):
                # Else readers of other formats look at it, and print lines.
                raise InputError(f"{path}: expected a model of OpenVINO, found no <net version=")
            model = core().read_model(path)
        return cls(model, str(path))

    def run(self, pixels: Tensor) -> Outputs:
        compiled = self._compiled_for(len(pixels))
        array = pixels.permute(0, 2, 3, 1).contiguous().numpy()  # how `resize` leaves them: no copy
        by_image = self.metadata.input.batch == "dynamic"
        parts = [array[n : n + 1] for n in range(len(array))] if by_image else [array]
        requests = [compiled.request() for _ in parts]
        for request, part in zip(requests, parts, strict=True):
            request.start_async({0: part}, share_inputs=True)
        for request in requests:
            request.wait()
        boxes, logits, *masks = (
            torch.from_numpy(np.concatenate([one.get_tensor(name).data for one in requests]))
            for name in self.outputs
        )
        compiled.resting.extend(requests)
        return boxes, logits, masks[0] if masks else None

    def _compiled_for(self, images: int) -> Compiled:
        """The model compiled, at first use, for one image at a time or for several.

        Several are faster side by side, on fewer cores each, than as one batch: their activations
        stay in the cache, and no core waits for another.
        """
        overlap = images > 1 and self.metadata.input.batch == "dynamic"
        hint = "THROUGHPUT" if overlap else "LATENCY"
        with self._lock:
            if hint not in self._compiled:
                self._compiled[hint] = compiled(self._model, self.metadata, hint)
            return self._compiled[hint]

    def __reduce__(self) -> Any:
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.xml")
            openvino.save_model(self._model, path, compress_to_fp16=False)
            return restored, (path.read_bytes(), path.with_suffix(".bin").read_bytes())


def differ(found: Shape, told: Shape) -> bool:
    """Whether two shapes cannot be of one array."""
    fixed = ((one, other) for one, other in zip(found, told, strict=False) if isinstance(one, int))
    return len(found) != len(told) or any(one != other for one, other in fixed)


def _length(size: openvino.Dimension) -> int | None:
    return size.get_length() if size.is_static else None


class Compiled(NamedTuple):
    """A compiled model, and its requests at rest: one thread at a time uses each."""

    model: openvino.CompiledModel
    resting: list[openvino.InferRequest]

    def request(self) -> openvino.InferRequest:
        """One at rest, or a new one."""
        try:
            return self.resting.pop()
        except IndexError:
            return self.model.create_infer_request()


def compiled(model: openvino.Model, metadata: Metadata, hint: str) -> Compiled:
    """`model` for uint8 images (B, H, W, 3), of which it takes one where it may take any number; it
    normalises them itself. `hint` is OpenVINO's: whether requests follow one another or overlap.
    """
    import openvino
    from openvino.preprocess import PrePostProcessor

    told = metadata.input
    prepared = PrePostProcessor(model.clone())
    images = prepared.input()
    images.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    images.model().set_layout(openvino.Layout(told.layout))
    if told.dtype == "float32":
        mean, deviation = (
            [255 * x for x in part] for part in (metadata.input.mean, metadata.input.std)
        )
        images.preprocess().convert_element_type(openvino.Type.f32).mean(mean).scale(deviation)
    built = prepared.build()
    if told.batch == "dynamic":
        built.reshape([1, told.height, told.width, 3])
    precision = PRECISIONS[metadata.dtype]
    if precision.upper() not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        precision = "f32"  # "FP32" is told of every processor
    settings = {
        "INFERENCE_PRECISION_HINT": precision,  # else it depends on the processor
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return Compiled(core().compile_model(built, "CPU", settings), [])


def restored(content: bytes, weights: bytes) -> OpenVinoEngine:
    """The engine of a pickle."""
    return OpenVinoEngine(core().read_model(content, weights))


class ProgramEngine(ArtifactEngine):
    """A program of `torch.export`, in float32.

    Reading one may run what is in it, unlike a checkpoint, an ONNX or an OpenVINO file.
    """

    name = "pt2"

    def __init__(self, content: bytes, source: str = "the program") -> None:
        extra = {KEY: ""}
        with unreadable(source, "a program of torch.export"), quiet():
            program = torch.export.load(io.BytesIO(content), extra_files=extra)
        metadata = metadata_in(extra[KEY] or None, source)
        nodes = {node.name: node for node in program.graph.nodes}
        signature = program.graph_signature
        names = filter(None, metadata.outputs.model_dump().values())
        outputs = zip(names, signature.user_outputs, strict=False)
        super().__init__(
            metadata,
            {metadata.input.name: nodes[signature.user_inputs[0]].meta["val"].shape},
            {name: nodes[one].meta["val"].shape for name, one in outputs},
        )
        self._run, self._content = program.module(), content

    @classmethod
    def open(cls, path: Path) -> ProgramEngine:
        return cls(path.read_bytes(), str(path))

    def run(self, pixels: Tensor) -> Outputs:
        boxes, logits, *masks = self._run(self.as_input(pixels))
        return boxes, logits, masks[0] if masks else None

    def __reduce__(self) -> Any:
        return ProgramEngine, (self._content,)


def engine_of(subject: Subject, options: Options, backend: str) -> ArtifactEngine:
    """The engine "onnx" or "openvino" of a model in memory; it takes some seconds to make."""
    work = Work(subject, options)
    if backend == "onnx":
        return OnnxEngine(work.onnx.SerializeToString())
    how: dict[str, Any] = {"dtype": options.dtype, "calibration": options.calibration}
    return OpenVinoEngine(openvino_model(work.onnx, work.metadata, **how))


ENGINES: dict[str, Callable[[Path], ArtifactEngine]] = {
    ".onnx": OnnxEngine.open,
    ".xml": OpenVinoEngine.open,
    ".pt2": ProgramEngine.open,
}
"""What opens an artifact, by the ending of its name."""


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of an artifact, or of a folder with one."""
    place = Path(path)
    names = place.iterdir() if place.is_dir() else [place]
    return any(name.suffix.lower() in ENGINES for name in names)


def open_artifact(path: str | os.PathLike[str]) -> tuple[Engine, Metadata]:
    """The engine of a .onnx, .xml (OpenVINO) or .pt2 file, or of the only one in a folder.

    `InputError` for a file that no engine can run, of another program, or without metadata;
    `FileNotFoundError` where there is none; `MissingPackageError` without its runtime.
    """
    file = check_path("the artifact", path)
    if file.is_dir():
        found = sorted(one.name for one in file.iterdir() if one.suffix.lower() in ENGINES)
        if len(found) != 1:
            there = f"holds {', '.join(found)}: name one of them" if found else "holds none"
            raise InputError(f"{file}: expected a file ending in {', '.join(ENGINES)}; it {there}")
        file /= found[0]
    if file.suffix.lower() not in ENGINES:
        raise InputError(f"{file}: expected the name of a file ending in {', '.join(ENGINES)}")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    for part in (file, *[file.with_suffix(".bin")] * (file.suffix.lower() == ".xml")):
        if is_damaged(part):
            raise InputError(
                f"{part} is damaged: it is not what {CHECKSUMS_FILE} beside it says (delete its "
                "line there if you changed it yourself); export it again"
            )
    engine = ENGINES[file.suffix.lower()](file)
    return engine, engine.metadata


def metadata_in(text: str | None, source: str) -> Metadata:
    """The metadata that an artifact holds as `text`, or that lies beside it."""
    beside = Path(source).with_suffix(".rfdetr.json")
    if text is None and beside.is_file():
        text, source = beside.read_text(encoding="utf-8"), str(beside)
    if text is None:
        raise InputError(
            f"{source}: no metadata of rfdetr in it, and no {beside.name} beside it: expected an "
            "artifact that export() or `rfdetr export` of this package wrote"
        )
    return Metadata.from_json(text, source)


@contextmanager
def unreadable(source: str, expected: str) -> Iterator[None]:
    """Makes every error of a runtime that opens `source` one `InputError`.

    They are of no common class, and what a damaged file brings about has no end.
    """
    try:
        yield
    except (InputError, MissingPackageError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise InputError(f"{source}: cannot be opened as {expected}: {reason[0]}") from error
