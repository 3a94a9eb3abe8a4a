"""A device that is not there: tensors carry a tag, and everything that is done to them is watched.

What has the tag counts as on the device, and so does whatever is made of it. The values are real
ones, on the CPU, so a whole training run may be watched.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten._unique2, aten.masked_select}
WAITING |= {aten.unique_dim, aten.unique_consecutive, aten.equal, aten.is_nonzero}
TO_HOST = {"cpu", "numpy", "tolist"}  # which do nothing below Python where a tensor is there
HERE = Path(__file__)


class Device:
    """`waits` has where the host waited for the device, `mixed` where tensors of both met."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.mixed: list[str] = []
        self._storages: dict[int, StorageWeakRef] = {}  # weak, so that no address is used again

    def put(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self._storages[reference.cdata] = reference

    def has(self, tensor: Tensor) -> bool:
        return StorageWeakRef(tensor.untyped_storage()).cdata in self._storages

    def watched(self) -> tuple[_Functions, _Operators]:
        """The two modes to enter: of calls from Python, and of what these come down to."""
        return _Functions(self), _Operators(self)


def where() -> str:
    """The nearest function that is neither PyTorch's nor of this file."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and Path(frame.filename) != HERE:
            return f"{Path(frame.filename).stem}.{frame.name}"
    return "?"


class _Functions(TorchFunctionMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        on_device = bool(args) and isinstance(args[0], Tensor) and self.device.has(args[0])
        if on_device and name in TO_HOST:
            self.device.waits.append(where())
            host = args[0].detach().clone()
            self.device._storages.pop(StorageWeakRef(host.untyped_storage()).cdata, None)
            return host if name == "cpu" else function(host, *args[1:], **kwargs)
        result = function(*args, **kwargs)
        devices = [x for x in (*args[1:], kwargs.get("device")) if isinstance(x, torch.device)]
        like = [x for x in args[1:] if isinstance(x, Tensor) and name == "to"]
        made = on_device and name.startswith("new_")
        if isinstance(result, Tensor) and (made or devices or any(map(self.device.has, like))):
            self.device.put([result])
        return result


class _Operators(TorchDispatchMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, device = kwargs or {}, self.device
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [tensor for tensor in given if device.has(tensor)]
        result = function(*args, **kwargs)
        if not there:
            return result
        packet = function.overloadpacket
        indexes = [x for x in tree_leaves(args[1:2]) if isinstance(x, Tensor)]
        by_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            index.dtype in (torch.bool, torch.uint8) for index in indexes
        )
        if packet in WAITING or by_mask:
            device.waits.append(where())
        # A number may come from the host, and a copy goes from one to the other.
        elsewhere = [x for x in given if x.dim() > 0 and not device.has(x)]
        if elsewhere and packet is not aten.copy_:
            device.mixed.append(f"{where()}: {function}")
        device.put(tree_leaves(result))
        return result
