"""Pre-trains RFDETRMini on synthetic scenes: makes src/rfdetr/weights/rf-detr-mini.safetensors.

    python scripts/pretrain_mini.py --minutes 80
    python scripts/pretrain_mini.py --minutes 45 --masks --lr 5e-4   # RFDETRSegMini, from those
    python scripts/pretrain_mini.py --minutes 76 --start rf-detr-seg-mini.safetensors --lr 5e-4

The last goes on from a file: so were the package's weights of RFDETRMini made. Every scene is new,
rendered as it is needed. On a CPU two processes of one thread each share a step: they average their
gradients once, where one process of two threads would meet at every operation. The learning rate
follows the clock, so that the run ends when it should on any machine. SIGTERM ends it early with a
file; `--state` resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pretrain.scenes import (
    LATER_LEVELS,
    LEVELS,
    MASK_LEVELS,
    PRETRAIN_CLASSES,
    Batch,
    SceneBatches,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rfdetr.config import RFDETRMiniConfig, RFDETRSegMiniConfig
from rfdetr.data.images import normalize
from rfdetr.evaluation.evaluator import CocoEvaluator
from rfdetr.files import atomic_write
from rfdetr.geometry.rle import encode_bitmaps, pack_rles
from rfdetr.losses.criterion import Criterion
from rfdetr.models.build import build_detector
from rfdetr.models.detector import postprocess, postprocess_outputs
from rfdetr.models.encoder import Encoder
from rfdetr.weights.load import load_pretrained, open_weights
from rfdetr.weights.writing import save_safetensors

WEIGHTS = Path(__file__).resolve().parents[1] / "src/rfdetr/weights"
HELD_OUT_SEED = 1_000_003
LOG = logging.getLogger("pretrain_mini")


@torch.no_grad()
def mimic_trained(encoder: Encoder) -> None:
    """Initial weights of the form that trained transformers have: learns about a fifth faster from
    raw pixels.

    Queries meet like keys, Q K^T ~ 0.7 (Z + I), and attention takes away what it sees, V O ~ 0.4 (Z
    - I), Z random (Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023,
    section 4). MLPs: 1 / sqrt(inputs).
    """
    for block in encoder.blocks:
        width, head = block.out.in_features, block.out.in_features // block.heads
        noise, identity = (
            torch.randn(block.heads + 1, width, width) / math.sqrt(width),
            torch.eye(width),
        )
        left, values, right = torch.linalg.svd(0.7 * (noise[1:] + identity))
        root = values[:, None, :head].sqrt()
        # (heads, head, width) each.
        queries, keys = (
            (left[:, :, :head] * root).mT,
            (right.mT[:, :, :head] * root).mT,
        )
        out, values, value = torch.linalg.svd(0.4 * (noise[0] - identity))
        rows = queries.flatten(0, 1), keys.flatten(0, 1), values.sqrt()[:, None] * value
        block.qkv.weight.copy_(torch.cat(rows))
        block.out.weight.copy_(out * values.sqrt())
        for linear in (block.fc1, block.fc2):
            nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)


class DenseHead(nn.Module):
    """Classes of what shows in each quarter of each patch, from the projected features: in
    pre-training alone.

    From random weights the detection loss teaches boxes long before classes; this one teaches
    features that tell classes apart at every place at once.
    """

    def __init__(self, projector: nn.Module, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 4 * (len(PRETRAIN_CLASSES) + 1))
        self.weight = nn.Parameter(torch.ones(len(PRETRAIN_CLASSES) + 1), requires_grad=False)
        self.weight.data[-1] = 0.2  # most places show nothing
        self.features = torch.empty(0)
        projector.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, levels: list[Tensor]) -> None:
        self.features = levels[0]

    def loss(self, shown: Tensor) -> Tensor:
        """Cross-entropy of the batch last seen by the projector; `shown` (B, 2 h, 2 w)."""
        logits = self.linear(self.features.permute(0, 2, 3, 1)).float()  # B h w (2 2 K)
        batch, height, width = logits.shape[:3]
        quarters = shown.view(batch, height, 2, width, 2).transpose(2, 3)  # B h w 2 2
        return F.cross_entropy(logits.view(quarters.numel(), -1), quarters.flatten(), self.weight)


class Pretraining:
    """All that changes while training, one in each process; everything but the scenes is the same
    in all.
    """

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        torch.manual_seed(options.seed)
        self.options, self.rank = options, rank
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        start = options.start or ("rf-detr-mini.safetensors" if options.masks else None)
        self.levels = MASK_LEVELS if options.masks else LATER_LEVELS if start else LEVELS
        config_class = RFDETRSegMiniConfig if options.masks else RFDETRMiniConfig
        self.config = config_class(num_classes=len(PRETRAIN_CLASSES), pretrain_weights=start)
        self.detector = build_detector(self.config).to(self.device)
        mimic_trained(self.detector.encoder)
        if start:
            weights = open_weights(start)
            if not options.masks:  # goes on from a file with a mask head, too
                parts = weights.model.items()
                model = {n: t for n, t in parts if not n.startswith("segmentation_head.")}
                weights = replace(weights, model=model)
            load_pretrained(self.detector, self.config, weights)
        self.average = build_detector(self.config).to(self.device)
        self.average.load_state_dict(self.detector.state_dict())
        self.criterion = Criterion(
            group_detr=self.config.group_detr, cls_loss_coef=options.cls_loss_coef
        )
        self.dense_head = DenseHead(self.detector.projector, self.config.hidden_dim).to(self.device)
        trained = nn.ModuleList([self.detector, self.dense_head])
        self.parameters = [p for p in trained.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            _groups(self.parameters), lr=options.lr, betas=(0.9, 0.99), fused=True
        )
        self.step, self.images, self.seconds = 0, 0, 0.0
        self.history = list[dict[str, float]]()
        self.level, self.dense_loss, self.stop = 0, math.nan, False
        if options.state and options.state.is_file():
            self._restore(torch.load(options.state, map_location=self.device, weights_only=True))

    def _restore(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.average.load_state_dict(state["average"])
        self.dense_head.load_state_dict(state["dense_head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.images = state["step"], state["images"]
        self.seconds, self.history = state["seconds"], state["history"]
        LOG.info("continues from %s: step %d, %.0f s", self.options.state, self.step, self.seconds)

    def save_state(self) -> None:
        """Everything a later run needs to go on from here."""
        state = {
            "detector": self.detector.state_dict(), "average": self.average.state_dict(),
            "dense_head": self.dense_head.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "images": self.images,
            "seconds": self.seconds, "history": self.history,
        }  # fmt: skip
        atomic_write(self.options.state, lambda stream: torch.save(state, stream))

    def train_step(
        self, images: Tensor, targets: list[dict[str, Tensor]], shown: Tensor
    ) -> tuple[float, bool]:
        """One update from all processes' batches: the loss, and whether the run is over."""
        images = normalize(images.to(self.device, non_blocking=True))
        targets = [
            {name: value.to(self.device) for name, value in target.items()} for target in targets
        ]
        with torch.autocast(self.device.type, torch.bfloat16):
            if self.levels[self.level].detects:
                outputs = self.detector(images)
            else:
                self.detector.project(self.detector.encode(images))
            dense_loss = self.dense_head.loss(shown.to(self.device))
        loss = self.options.dense_loss_coef * dense_loss
        if self.levels[self.level].detects:
            loss = loss + torch.stack(list(self.criterion(outputs, targets).values())).sum()
        loss.backward()
        mean_loss, seconds, stop = self._agree(loss.detach(), self.seconds, self.stop)
        progress = min(seconds / (60 * self.options.minutes), 1.0)
        self.level = sum(progress >= level.until for level in self.levels[:-1])
        warm_up = min((self.step + 1) / self.options.warm_up, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = (
                self.options.lr * warm_up * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
            )
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.images += len(images) * self.options.processes
        with torch.no_grad():
            keep = self.options.ema * (1 - math.exp(-self.step / 500))
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.detector.parameters()), 1 - keep
            )
        self.dense_loss = float(dense_loss.detach())
        return mean_loss, stop > 0 or progress >= 1

    def _agree(self, loss: Tensor, seconds: float, stop: bool) -> tuple[float, float, float]:
        """Averages over the processes: gradients in place, then what they must decide alike."""
        said = torch.tensor([float(loss), seconds, float(stop)])
        if dist.is_initialized():
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            flat = torch.cat([*(g.view(-1) for g in gradients), said]) / dist.get_world_size()
            dist.all_reduce(flat)
            *parts, said = flat.split([*(g.numel() for g in gradients), len(said)])  # type: ignore[no-untyped-call]
            torch._foreach_copy_(
                gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
            )
        mean_loss, mean_seconds, mean_stop = said.tolist()
        return mean_loss, mean_seconds, mean_stop

    def evaluate(self) -> dict[str, float]:
        """The averaged weights on scenes of the present level that are never trained on, at the
        nominal resolution.
        """
        evaluator = CocoEvaluator(PRETRAIN_CLASSES, masks=self.options.masks)
        any_class = CocoEvaluator(["object"])
        self.average.eval()
        scenes = SceneBatches(HELD_OUT_SEED, 10, self.levels, self.config, self.config.resolution)
        for index in range(self.options.eval_scenes // 10):
            images, targets, _ = scenes[index, self.level]
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16):
                outputs = self.average(normalize(images.to(self.device)))
            sizes = torch.stack([target["orig_size"] for target in targets]).to(self.device)
            scores, boxes = outputs.logits[-1].amax(-1, keepdim=True), outputs.boxes[-1]
            for target in targets if outputs.masks else ():
                target.update(pack_rles(encode_bitmaps(target["masks"])))
            evaluator.update(postprocess_outputs(outputs, sizes, self.config.num_select), targets)
            objectness = postprocess(scores, boxes, sizes, self.config.num_select)
            any_class.update(
                objectness, [{**target, "labels": target["labels"] * 0} for target in targets]
            )
        metrics, whatever = evaluator.compute(), any_class.compute().overall
        overall = metrics.overall
        figures = {
            name: overall[name] for name in ("mAP_50_95", "mAP_50", "mAP_small", "mAP_large")
        }
        figures["any_class_mAP_50_95"] = whatever["mAP_50_95"]
        if metrics.masks:
            figures["segm_mAP_50_95"] = metrics.masks.overall["mAP_50_95"]
        return {name: round(float(value), 4) for name, value in figures.items()}

    def write_weights(self) -> None:
        """The averaged weights in bfloat16, with a record of how they were made."""
        settings = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(self.options).items()
            if name not in ("state", "output", "log_every")
        }
        notes = {
            "made_by": "scripts/pretrain_mini.py on rfdetr.synthetic.generate scenes",
            "steps": self.step,
            "images": self.images,
            "levels": [level._asdict() for level in self.levels],
            "settings": settings,
            "held_out": self.history[-1] if self.history else None,
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        save_safetensors(
            self.options.output,
            self.average.state_dict(),
            self.config,
            PRETRAIN_CLASSES,
            dtype=torch.bfloat16,
            notes=notes,
        )
        LOG.info(
            "wrote %s (%.2f MB)", self.options.output, self.options.output.stat().st_size / 1e6
        )

    def report(self) -> None:
        """Evaluates, keeps the figures, saves the state."""
        figures = self.evaluate()
        self.history.append(
            {"step": self.step, "seconds": round(self.seconds), "level": self.level, **figures}
        )
        LOG.info("held out: %s", json.dumps(self.history[-1]))
        if self.options.state:
            self.save_state()

    def run(self) -> None:
        """Trains until the time is up or a signal asks to stop."""
        options, losses = self.options, list[float]()
        loader = iter(self._loader())
        clock, next_report = (
            time.monotonic() - self.seconds,
            self.seconds + 60 * options.report_minutes,
        )
        over = False
        while not over:
            loss, over = self.train_step(*next(loader))
            self.seconds = time.monotonic() - clock
            losses.append(loss)
            if self.rank == 0 and self.step % options.log_every == 0:
                mean_loss = float(np.mean(losses))
                LOG.info(
                    "step %d  loss %.3f  dense %.3f  %.0f s",
                    self.step,
                    mean_loss,
                    self.dense_loss,
                    self.seconds,
                )
                losses.clear()
            if self.rank == 0 and (
                (self.seconds >= next_report and self.levels[self.level].detects) or over
            ):
                self.report()
                next_report = self.seconds + 60 * options.report_minutes
        if self.rank == 0:
            self.write_weights()

    def _loader(self) -> DataLoader[Batch]:
        options = self.options
        return DataLoader(
            SceneBatches(
                options.seed, options.batch_size, self.levels, self.config, alike=options.processes
            ),
            sampler=_Endless(self),
            batch_size=None,
            num_workers=options.workers,
        )


class _Endless(torch.utils.data.Sampler[tuple[int, int]]):
    """Every process's own indexes without end, at the run's present level."""

    def __init__(self, training: Pretraining) -> None:
        self.training = training

    def __iter__(self) -> Iterator[tuple[int, int]]:
        stride = self.training.options.processes
        for index in itertools.count(self.training.step * stride + self.training.rank, stride):
            yield index, self.training.level


def _groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels alone."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.02},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _process(rank: int, options: argparse.Namespace, meeting_point: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.processes > 1:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", f"file://{meeting_point}", rank=rank, world_size=options.processes
        )
    training = Pretraining(options, rank)
    if rank == 0:
        LOG.info("%.3f M parameters", sum(p.numel() for p in training.detector.parameters()) / 1e6)

    def stop(*_: object) -> None:
        training.stop = rank == 0  # the others hear of it through the average

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    training.run()
    if dist.is_initialized():
        dist.destroy_process_group()


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=120, help="time to train, all runs of a state together"
    )
    parser.add_argument(
        "--masks", action="store_true", help="RFDETRSegMini, from the weights of RFDETRMini"
    )
    parser.add_argument("--start", help="weights to go on from, with the last level alone")
    parser.add_argument("--output", type=Path, help="file to write; the package's own unless given")
    parser.add_argument("--state", type=Path, help="file to resume from and to save to")
    parser.add_argument("--seed", type=int, default=0)
    gpu = torch.cuda.is_available()
    parser.add_argument(
        "--processes", type=int, default=1 if gpu else os.cpu_count() or 1, help="that share a step"
    )
    parser.add_argument(
        "--workers", type=int, default=12 if gpu else 0, help="that render, for each process"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="scenes per process and step")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--warm-up", type=int, default=150, help="steps")
    parser.add_argument("--cls-loss-coef", type=float, default=2.5)
    parser.add_argument("--dense-loss-coef", type=float, default=2.0)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--eval-scenes", type=int, default=200)
    parser.add_argument("--report-minutes", type=float, default=5)
    parser.add_argument("--log-every", type=int, default=100)
    options = parser.parse_args()
    options.output = options.output or WEIGHTS / f"rf-detr-{'seg-' * options.masks}mini.safetensors"
    return options


def main() -> None:
    """Start the other processes and be the first one, so that a signal to it ends the run."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        arguments = (options, f"{folder}/meeting")
        others = [
            context.Process(target=_process, args=(rank, *arguments))
            for rank in range(1, options.processes)
        ]
        for other in others:
            other.start()
        _process(0, *arguments)
        for other in others:
            other.join()


if __name__ == "__main__":
    main()
