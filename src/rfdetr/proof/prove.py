"""The proof of an export: on which images it is measured, and where its certificate goes."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rfdetr.console import show_rows
from rfdetr.errors import InputError, MissingPackageError, RunError
from rfdetr.export.artifacts import annotate
from rfdetr.export.calibration import data_of_run
from rfdetr.export.card import Subject
from rfdetr.export.metadata import Metadata
from rfdetr.files import atomic_write
from rfdetr.inference.engines import open_artifact
from rfdetr.inference.predictor import NetworkPredictor, Predictor
from rfdetr.proof.agreement import Labelled
from rfdetr.proof.certificate import Certificate, Reference, certify
from rfdetr.proof.measuring import Loading
from rfdetr.weights.writing import save_checkpoint

logger = logging.getLogger(__name__)

FILE = "certificate.json"
_NOT = "the export is not proven: %s; verify=FOLDER (--verify) takes labelled images of its classes"


def reference_for(subject: Subject, verify: Any, size: tuple[int, int]) -> Reference | None:
    """What `subject` finds, in images of `size`, in the valid split of the data set `verify`, a
    field of `ExportConfig`, or in 32 images of the run's that left the weights.

    Where nothing can be proven (no images, classes that it does not know, random weights), it is an
    error if `verify` asks for a proof, else None and a line that says why.
    """
    masks = subject.config.segmentation_head
    if verify is False:
        return None
    try:
        if verify in (None, True):
            labelled = Labelled.open(**data_of_run(subject.weights), masks=masks)
        else:
            labelled = Labelled.open(verify, None, masks=masks)
        model = NetworkPredictor(
            copy.deepcopy(subject.detector).float(),
            resolution=size,
            num_select=subject.config.num_select,
            labels=subject.labels,
            device=torch.device("cpu"),
        )
        logger.info("export: what the model finds in %d images", len(labelled.numbers))
        return Reference.of(model, labelled)
    except (InputError, MissingPackageError) as error:
        if verify is not None:
            raise
        logger.warning(_NOT, error)
        return None


def prove(
    subject: Subject, artifacts: Sequence[Path], reference: Reference, max_loss: float
) -> None:
    """Compares `artifacts` with the `subject` that they were made of. Each gets its certificate in
    a file beside it and, in short, inside.

    Raises `RunError` for artifacts that lose more than `max_loss` points of mAP 50:95: they stay,
    marked so.
    """
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder, "original.pth")
        settings = subject.config.model_dump() | {"resolution": reference.model.size}
        save_checkpoint(original, subject.state, type(subject.config)(**settings), None)
        found = {path: proven(reference, path, original, max_loss) for path in artifacts}
    lost = [f"{path.name} {one.loss:.2f}" for path, one in found.items() if not one.passed]
    if lost:
        raise RunError(
            f"points of mAP 50:95 lost: {', '.join(lost)}, where max_loss allows {max_loss:g}. "
            "What was written stays, marked as not passed: use a dtype of more bits, or allow more"
        )


def proven(reference: Reference, artifact: Path, original: Path, max_loss: float) -> Certificate:
    """The certificate of one artifact, written and shown; `original` is the reference's file."""
    engine, metadata = open_artifact(artifact)
    exported = Predictor(
        engine,
        size=(metadata.input.height, metadata.input.width),
        num_select=metadata.num_select,
        labels=metadata.classes,
    )
    facts: dict[str, Any] = {"engine": engine.name, "dtype": metadata.dtype, "file": artifact.name}
    facts["weights_sha256"] = metadata.weights_sha256
    loading = Loading(original, False), Loading(artifact, True)
    count = len(reference.labelled.numbers)
    logger.info("export: comparing %s on %d images, then time and memory", artifact.name, count)
    certificate = certify(reference, exported, facts, loading, max_loss=max_loss)
    stamp(artifact, metadata, certificate)
    show_rows(f"Certificate of {artifact.name} (checkpoint -> artifact)", certificate.rows())
    return certificate


def stamp(artifact: Path, metadata: Metadata, certificate: Certificate) -> None:
    """Writes the certificate beside the artifact, and its short form into the artifact.

    The file is certificate.json, and inference_model.xml.certificate.json beside another one's.
    """
    annotate(artifact, metadata.model_copy(update={"certificate": certificate.short()}))
    path = artifact.with_name(FILE)
    if path.exists():
        try:
            of = json.loads(path.read_bytes())["models"]["exported"]["file"]
        except (OSError, ValueError, KeyError, TypeError):  # another program's
            of = None
        if of != artifact.name:
            path = artifact.with_name(f"{artifact.name}.{FILE}")
    atomic_write(path, lambda stream: stream.write(certificate.to_json().encode()))
