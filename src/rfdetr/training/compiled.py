"""`compile=True`: torch.compile runs the network of the training steps, by one graph a size."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rfdetr.errors import InputError
from rfdetr.models.detector import DetectorOutput, detector_in
from rfdetr.training import steps
from rfdetr.training.processes import is_sharded

if TYPE_CHECKING:
    from rfdetr.training.module import RFDETRModule

BACKEND = "inductor"


class CompiledNetwork:
    """Runs `network` compiled for at most `most` shapes of batches, and as it is for all others.

    The call is compiled, not the module, so that names, files and the average know nothing of it.
    A graph is made for one shape, and takes up to minutes; so the last batch of an epoch, of fewer
    than `images`, gets none. `device` is where rates of drop path are kept, which change with each
    step: as numbers, each would be a new graph; None: there are none.
    """

    def __init__(
        self, network: nn.Module, most: int, images: int, device: torch.device | None = None
    ) -> None:
        self.network, self.most, self.images = network, most, images
        self.shapes: set[Any] = set()
        self.blocks: list[Any] = list(detector_in(network).encoder.blocks)
        for block in self.blocks[1:]:  # the first one's rate is always 0
            block.drop_rate = None if device is None else torch.zeros((), device=device)

        def call(images: Tensor, mask: Tensor | None) -> DetectorOutput:
            return network(images, mask)  # type: ignore[no-any-return]

        self.compiled = _compile(call)

    def __call__(self, images: Tensor, mask: Tensor | None) -> DetectorOutput:
        """Normalised images (B, 3, H, W) and their padding, as the network takes them."""
        shape = (images.shape, mask is None)
        full = len(images) >= self.images
        if not full or (shape not in self.shapes and len(self.shapes) >= self.most):
            return self.network(images, mask)  # type: ignore[no-any-return]
        self.shapes.add(shape)
        for block in self.blocks:
            if block.drop_rate is not None:
                block.drop_rate.fill_(block.drop_path)
        known: Any = torch._dynamo.config
        limit = "recompile_limit" if hasattr(known, "recompile_limit") else "cache_size_limit"
        with known.patch({limit: self.most}):
            return self.compiled(images, mask)  # type: ignore[no-any-return]


def compiled_network(module: RFDETRModule) -> CompiledNetwork | None:
    """What runs the network in the training steps of a fit in place of `module.model`, if anything.

    Raises `InputError` where torch.compile does not work, or not with the trainer's strategy.
    """
    train, trainer = module.train_config, module.trainer
    if not train.compile:
        return None
    if is_sharded(trainer.strategy):
        raise InputError("compile=True with a sharded strategy: expected one device, or ddp")
    device = trainer.strategy.root_device
    check_compiler(device.type)
    most = len(set(steps.training_sizes(module.model_config, train)))
    if train.multi_scale == "per-sample":
        most *= 2  # a batch of images of one size has no mask
    ours = isinstance(trainer.datamodule, steps.LabelledData)  # type: ignore[attr-defined]
    images = train.batch_size if ours and isinstance(train.batch_size, int) else 1
    return CompiledNetwork(module.model, most, images, device if train.drop_path else None)


@functools.cache
def check_compiler(device: str) -> None:
    """Compiles a small function for a kind of device; an `InputError` says why that fails."""
    try:
        _compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:
        told = [line for line in str(error).splitlines() if line] or [type(error).__name__]
        why = " ".join(told[:2])
        raise InputError(
            f"compile=True, but torch.compile cannot make code for {device} here ({why}): "
            "expected a C++ compiler (Debian: apt install g++; macOS: xcode-select --install) and, "
            "for a GPU, triton; install it, or leave compile out"
        ) from error


def _compile(function: Any) -> Any:
    """A copy of `function` by torch.compile, which keeps and limits graphs by the code that they
    are of: those of an earlier run would count.
    """
    code, closure = function.__code__.replace(), function.__closure__
    copy = FunctionType(code, function.__globals__, closure=closure)
    return torch.compile(copy, backend=BACKEND, dynamic=False)
