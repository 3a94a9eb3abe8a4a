"""`rfdetr serve`: a model behind HTTP, with a page. Every field of `ServeConfig` is an option."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from cyclopts import Group
from pydantic import BaseModel

from rfdetr.cli.options import Device, Predicting, open_model, options_of
from rfdetr.config import ServeConfig
from rfdetr.errors import InputError, MissingPackageError, needs_extra

if TYPE_CHECKING:
    Limits: TypeAlias = BaseModel | None
else:
    Limits = options_of(ServeConfig, Group("Limits", sort_key=1))


def serve(  # noqa: PLR0913 - each is an option of the command
    checkpoint: Predicting,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    backend: Literal["torch", "onnx", "openvino"] = "torch",
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32",
    calibration: str | None = None,
    device: Device = None,
    limits: Limits = None,
) -> None:
    """Serve a model: a page to try it with images, and POST /predict for programs.

    Ctrl-C or SIGTERM ends it after what is in hand. Images stay in memory, nothing is kept.

    Args:
        host: Address to listen on; 0.0.0.0 lets other machines in.
        port: 0 is any free one.
        backend: What runs the network; an exported model has its own.
        dtype: Arithmetic of the network; int8 is of openvino.
        calibration: Images for int8: a data set's folder; the run's own by default.
    """
    from rfdetr.serving.sockets import address_of, is_open_to_others, open_socket

    config = ServeConfig(**({} if limits is None else limits.model_dump(exclude_unset=True)))
    with open_socket(host, port) as bound:
        try:
            with needs_extra("serve", "rfdetr serve"):
                from rfdetr.serving.server import run
                from rfdetr.serving.service import Service
        except MissingPackageError as error:  # before any work: what is asked for cannot be
            raise InputError(str(error)) from error
        from rfdetr.inference.engines import is_artifact

        changed = (backend, dtype, calibration) != ("torch", "float32", None)
        if changed and is_artifact(checkpoint):
            as_it_is = "an exported model, which is served as it is"
            options = "--backend, --dtype and --calibration"
            raise InputError(f"{checkpoint} is {as_it_is}: leave out {options}")
        detector = open_model(checkpoint, device or ("cpu" if backend != "torch" else None))
        if changed:
            detector.optimize_for_inference(
                compile=False, backend=backend, dtype=dtype, calibration=calibration
            )
        service = Service(detector, config, dtype)
        service.warm_up()
        told = service.info
        name = f"{told.variant or 'own design'}, {len(told.classes)} classes"
        bound.listen()  # so that who reads the line may come
        engine = f"{told.engine} {told.dtype} on {told.device}"
        print(f"{address_of(bound)} serves {checkpoint} ({name}) by {engine}", flush=True)
        if is_open_to_others(bound):
            print("anyone who reaches this address may use the model", flush=True)
        run(service, bound)
