"""The network itself, in torch, as the engine of a predictor, and its optimised forms."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rfdetr.data.images import normalize
from rfdetr.errors import InputError
from rfdetr.inference.engines import Engine, Outputs
from rfdetr.inference.packing import can_pack, pack_linears
from rfdetr.inference.predictor import Predictor
from rfdetr.models.detector import Detector, detector_in


class TorchEngine(NamedTuple):
    """A network in torch, under `autocast` if that is given."""

    network: nn.Module
    device: torch.device
    autocast: torch.dtype | None = None
    name: str = "torch"

    @property
    def patch_size(self) -> int:
        return detector_in(self.network).encoder.patch_size

    def check_size(self, height: int, width: int) -> None:
        encoder = detector_in(self.network).encoder
        encoder.grid_of(torch.empty(1, 3, height, width, device="meta"))

    def __call__(self, pixels: Tensor) -> Outputs:
        enabled = self.autocast is not None
        with torch.autocast(self.device.type, self.autocast, enabled=enabled):
            outputs = self.network(normalize(pixels.to(self.device)))
        last = len(outputs.logits) - 1
        masks = None if outputs.masks is None else outputs.masks.mask_logits(last)
        return outputs.boxes[last], outputs.logits[last], masks


class NetworkPredictor(Predictor):
    """Predicts with `model`, or with what it is optimised to.

    Threads may predict while `optimize` runs: a batch runs wholly before or after the change.
    """

    def __init__(
        self,
        model: Detector,
        *,
        resolution: int,
        num_select: int,
        labels: Mapping[int, str],
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.resolution = resolution
        self.own_device = device
        self._optimized: Engine | None = None
        self._settings: tuple[torch.dtype, bool] | None = (torch.float32, False)
        """What `optimize` made it with; None for an engine of `use`."""
        self.converted = False
        """Whether `optimize` has changed the network itself."""
        size = resolution, resolution
        super().__init__(self.engine(), size=size, num_select=num_select, labels=labels)

    def engine(self, autocast: torch.dtype | None = None) -> Engine:
        return self._optimized or TorchEngine(self.model, self.own_device, autocast)

    def optimize(self, dtype: torch.dtype, compiled: bool, in_place: bool = False) -> None:
        """Predict with a private copy of the network, its weights as `dtype`, compiled if asked.

        (torch.float32, False) undoes it. What needs float32 (boxes, references, sampling locations,
        scores) the network itself computes in float32. With `in_place`, the network itself is
        converted, for good.
        """
        network: Any = detector_in(self.model)
        if in_place:
            network = self.model = network.to(dtype)
            self.converted = True
        elif dtype != torch.float32:
            network = copy.deepcopy(network).to(dtype)
        packs = dtype == torch.bfloat16 and self.device.type == "cpu"
        if packs and not compiled and not in_place and can_pack():
            pack_linears(network)
        self._settings = dtype, compiled
        changed: Any = torch.compile(network) if compiled else network
        is_plain = dtype == torch.float32 and not compiled
        self._optimized = None if is_plain else TorchEngine(changed, self.own_device)

    def use(self, engine: Engine) -> None:
        """Predict with `engine`, which was made of the network, until `optimize` is called."""
        self._settings = None
        self._optimized = engine

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: an optimised network cannot leave, and is made again there. An
        engine of another runtime can.
        """
        return {**self.__dict__, "_optimized": None} if self._settings else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._settings:
            self.optimize(*self._settings)


def best_device(name: str | None) -> torch.device:
    """The named device, or the best there is; `InputError` for one that cannot be computed on."""
    has_mps = torch.backends.mps.is_available()
    best = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name or best)
        torch.zeros(1, device=device).item()  # it may not be here, or hold no data ("meta")
    except (RuntimeError, AssertionError) as error:
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        there = ", ".join(["cpu", *gpus, *["mps"] * has_mps])
        raise InputError(f"device {name!r} cannot be used here; there is {there}") from error
    return device
