"""Training by several processes (ranks): what they agree on, gather and shard.

`gather`, `merge_evaluators` and the two functions of whole weights are collective: all ranks must
call them, and in the same order, or they wait for each other forever.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor
from torchmetrics import Metric

from rfdetr.evaluation.evaluator import CocoEvaluator
from rfdetr.weights.reading import CheckpointError

ValueT = TypeVar("ValueT")


def is_sharded(strategy: Any) -> bool:
    """Whether a strategy, by name or as an object, splits the weights over devices."""
    classes = [kind.__name__ for kind in type(strategy).__mro__]
    named = strategy if isinstance(strategy, str) else " ".join(classes)
    return any(kind in named.lower() for kind in ("fsdp", "deepspeed", "sharded", "modelparallel"))


def launched_settings() -> dict[str, str]:
    """The trainer's settings with which all processes train together that torchrun has started."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1
    return {"strategy": "ddp", "devices": "auto"} if several else {}


def process_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the name "fsdp" and a launch by torchrun change in a trainer's settings.

    Warns where each of torchrun's processes would train alone.
    """
    changed: dict[str, Any] = {}
    if settings.get("strategy") == "fsdp":
        changed["strategy"] = ShardedStrategy()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return changed
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if settings["devices"] in ("auto", -1, "-1"):
        changed["devices"] = local  # Lightning would count a CPU once, and idle GPUs too
    elif settings["devices"] == 1 and local > 1 and settings.get("strategy", "auto") == "auto":
        text = f"torchrun started {world} processes, but the trainer has one device: each will "
        text += "train alone, and write to the same files. Pass strategy='ddp', devices='auto' to "
        warnings.warn(text + "build_trainer", stacklevel=3)
    if "num_nodes" not in settings:
        changed["num_nodes"] = world // local
    return changed


def gather(trainer: Trainer, value: ValueT) -> list[ValueT]:
    """The `value` of every rank, in their order; before they are connected, the own value alone."""
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def refuse_split_resume(trainer: Trainer, place: tuple[int, int]) -> None:
    """Raises `CheckpointError` on every rank where they do not all go on from one `place`, epoch
    and batch: some do not see the folder of the first one, or see another.
    """
    places = gather(trainer, None if trainer.ckpt_path is None else place)
    if odd := [rank for rank, other in enumerate(places) if other != places[0]]:
        told = f"processes {odd} do not go on from the checkpoint of process 0, or have none"
        raise CheckpointError(f"{told}: output_dir must be a folder that all hosts share")


def merge_evaluators(trainer: Trainer, evaluator: CocoEvaluator) -> CocoEvaluator:
    """One evaluator over the images of all ranks, the same on each: all take the same decisions."""
    parts = gather(trainer, evaluator)
    return CocoEvaluator.merge(parts) if len(parts) > 1 else evaluator


def whole_weights(trainer: Trainer, module: Any) -> dict[str, Tensor]:
    """State dict of the module's detector; a sharded one is whole on rank 0, empty elsewhere."""
    if not is_sharded(trainer.strategy):
        return dict(module.detector.state_dict())
    state = trainer.strategy.lightning_module_state_dict().items()
    return {n.removeprefix("model."): value for n, value in state if n.startswith("model.")}


def load_whole_weights(trainer: Trainer, module: Any, weights: Mapping[str, Tensor] | None) -> None:
    """Gives rank 0's `weights` to the detector of every rank, whose own `weights` are ignored.

    The inverse of `whole_weights`: only rank 0 need be able to read the file.
    """
    if isinstance(trainer.strategy, ShardedStrategy):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(module.detector, dict(weights or {}), options=options)
    else:
        module.detector.load_state_dict(trainer.strategy.broadcast(weights))


class ShardedStrategy(ModelParallelStrategy):
    """`strategy="fsdp"`: parameters, gradients and optimizer state split over all ranks (FSDP2).

    Unlike Lightning's own "fsdp" it clips gradients by their norm, keeps norms and box arithmetic
    in float32 under mixed precision, and runs on CPUs too. Files hold the whole state, as one
    process would have written it.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Lightning's own, but that it shards our detector and leaves the rest of the module."""
        from torch.distributed.fsdp import FSDPModule, fully_shard

        module: Any = self.lightning_module
        if not isinstance(detector := module.detector, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            for part in (*detector.encoder.blocks, *detector.decoder.layers, detector):
                fully_shard(part, mesh=mesh)
        self.model = module
        if self.accelerator is not None:
            self.accelerator.setup(trainer)
        self.model_to_device()
        self.barrier()
        if trainer.state.fn == "fit":
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()


class LossMean(Metric):
    """Mean loss per box over all batches and ranks, however the images were dealt out to them."""

    full_state_update = False
    total: Tensor
    boxes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "boxes"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, loss: Tensor, boxes: int) -> None:
        """Takes a batch: the criterion's loss, a mean over its `boxes` (at least 1)."""
        # Not in place: after trainer.validate() they are inference tensors, and a fit may follow.
        # In float32: half precision, which a module's metrics take on, cannot count past 256.
        self.total = self.total.float() + loss.detach() * max(boxes, 1)
        self.boxes = self.boxes.float() + boxes

    def compute(self) -> Tensor:
        return self.total / self.boxes.clamp(min=1)
