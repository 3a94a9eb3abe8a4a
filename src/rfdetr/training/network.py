"""`module.model` as a user may leave it: compiled, wrapped, or in another precision."""

from __future__ import annotations

import warnings
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision

from rfdetr.errors import InputError
from rfdetr.models.detector import detector_in
from rfdetr.training.processes import is_sharded


def hide_wrapper(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """State dict hook: the detector's tensors are "model.<name>", whatever wraps it."""
    _rename(state, prefix + _wrapped_prefix(module), f"{prefix}model.")


def add_wrapper(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The inverse, before a state dict is loaded."""
    _rename(state, f"{prefix}model.", prefix + _wrapped_prefix(module))


def _wrapped_prefix(module: Any) -> str:
    """What PyTorch's names of the detector's tensors start with, such as "model._orig_mod."."""
    detector = module.detector
    inside = next(name for name, part in module.model.named_modules() if part is detector)
    return f"model.{inside}." if inside else "model."


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in state if name.startswith(old) and old != new]:
        state[new + name.removeprefix(old)] = state.pop(name)


def check_wrapper(module: Any) -> None:
    """Refuses a wrapper with weights of its own, which nothing would train or save, or one that
    cannot be sharded.
    """
    detector = detector_in(module.model)
    inside, kind = set(detector.parameters()), type(module.model).__name__
    if own := [
        name for name, parameter in module.model.named_parameters() if parameter not in inside
    ]:
        raise InputError(
            f"module.model is a {kind} with weights of its own ({', '.join(own[:3])}), which no optimizer group and no "
            "file would hold: wrap the network without any"
        )
    if module.model is not detector and is_sharded(module.trainer.strategy):
        raise InputError(
            f"a sharded strategy takes the plain network, not a {kind}: use module.model.compile()"
        )


def take_precision(module: LightningModule, stage: str) -> None:
    """Gives the weights the type of a "true" precision, before a checkpoint is restored, which
    would be rounded.
    """
    plugin: Any = module.trainer.precision_plugin
    if isinstance(plugin, HalfPrecision | DoublePrecision):
        plugin.convert_module(module)
    if not isinstance(plugin, HalfPrecision):
        return
    plugin.convert_input = _unchanged  # type: ignore[assignment, method-assign] # it would round boxes
    if stage == "fit" and plugin.precision == "16-true":
        raise InputError(
            'precision="16-true" cannot train: AdamW divides by what float16 rounds to 0; use "16-mixed"'
        )
    if stage == "fit":
        warnings.warn(
            'precision="bf16-true" rounds weights to 8 bits, and small updates away: "bf16-mixed" learns better',
            stacklevel=2,
        )


def _unchanged(batch: Any) -> Any:
    return batch
