"""`module.model` as a user may leave it: compiled, wrapped, or in another precision."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision

from rfdetr.errors import InputError
from rfdetr.models.detector import detector_in
from rfdetr.training.processes import is_sharded

if TYPE_CHECKING:
    from rfdetr.training.module import RFDETRModule


def hide_wrapper(module: RFDETRModule, state: dict[str, Any], prefix: str, _: Any) -> None:
    """State dict hook: the detector's tensors are "model.<name>", whatever wraps it."""
    _rename(state, prefix + _wrapped_prefix(module), f"{prefix}model.")


def add_wrapper(module: RFDETRModule, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The inverse, before a state dict is loaded."""
    _rename(state, f"{prefix}model.", prefix + _wrapped_prefix(module))


def _wrapped_prefix(module: RFDETRModule) -> str:
    """What PyTorch's names of the detector's tensors start with, such as "model._orig_mod."."""
    parts = module.model.named_modules(prefix="model")
    return next(f"{name}." for name, part in parts if part is module.detector)


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in state if name.startswith(old) and old != new]:
        state[new + name.removeprefix(old)] = state.pop(name)


def check_wrapper(module: RFDETRModule) -> None:
    """Refuses a wrapper with weights of its own, which nothing would train or save."""
    detector, kind = detector_in(module.model), type(module.model).__name__
    inside = set(detector.parameters())
    if own := [name for name, value in module.model.named_parameters() if value not in inside]:
        raise InputError(
            f"module.model is a {kind} with weights of its own ({', '.join(own[:3])}), which no "
            "optimizer group and no file would hold: wrap the network without any"
        )
    if module.model is not detector and is_sharded(module.trainer.strategy):
        told = f"a sharded strategy takes the plain network, not a {kind}"
        raise InputError(f"{told}: use module.model.compile()")


def take_precision(module: RFDETRModule, stage: str) -> None:
    """Gives the weights the type of a "true" precision, before a checkpoint is restored."""
    plugin: Any = module.trainer.precision_plugin
    if isinstance(plugin, HalfPrecision | DoublePrecision):
        plugin.convert_module(module)
    if not isinstance(plugin, HalfPrecision):
        return
    plugin.convert_input = lambda batch: batch  # type: ignore[method-assign, assignment] # it would round boxes
    if stage == "fit" and plugin.precision == "16-true":
        told = 'precision="16-true" cannot train: AdamW divides by what float16 rounds to 0'
        raise InputError(f'{told}; use "16-mixed"')
    if stage == "fit":
        told = 'precision="bf16-true" rounds weights to 8 bits, and small updates away'
        warnings.warn(f'{told}: "bf16-mixed" learns better', stacklevel=2)
