"""`RFDETRModule`: the detector, its losses and its optimizer as a LightningModule.

The life of an update of A batches (accumulate_grad_batches), in the order of the calls:

    loader                     images of one size, drawn for the step (`datamodule`, `data.loaders`)
    transfer_batch_to_device   any loader's batch becomes [images, targets] on the device
    on_train_batch_start       callbacks: last.ckpt where it is due (`resume`), damaged images are
                               counted (`limits`), drop path is set; then here: torch is seeded
                               by (seed, epoch, batch), foreign loaders' images get the step's size
    training_step              normalise, network, `compute_losses`, their sum; logged, and added to
                               the means of the epoch
    on_before_backward         `nonfinite` keeps the loss; then Lightning goes backward, A times
    on_before_optimizer_step   `nonfinite` drops gradients that are not finite; then here: a window
                               that ended unannounced becomes a mean; then Lightning clips
    AdamW, LambdaLR            a step of the weights; a hook frees the gradients; the next rate
    on_train_batch_end         callbacks: the average follows, the epoch's means are logged
"""

# ruff: noqa: ARG002 - Lightning passes more than a hook may need

from __future__ import annotations

import functools
import operator
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import Self

from rfdetr.checks import check_kind
from rfdetr.config import ModelConfig, SegmentationTrainConfig, TrainConfig
from rfdetr.data.images import normalize
from rfdetr.errors import InputError
from rfdetr.losses.criterion import Criterion
from rfdetr.models.build import build_detector
from rfdetr.models.detector import Detector, DetectorOutput, detector_in, postprocess_outputs
from rfdetr.training import checkpoints, network, steps
from rfdetr.training.adapters import adapted, add_adapters, match_adapters
from rfdetr.training.compiled import CompiledNetwork, compiled_network
from rfdetr.training.lightning_state import is_watched, place_in_run, training_loader
from rfdetr.training.means import EpochMeansCallback
from rfdetr.training.optim import lr_factor, parameter_groups
from rfdetr.training.processes import LossMean, is_sharded, refuse_split_resume
from rfdetr.training.resume import check_shared
from rfdetr.weights.identify import class_names, config_from_checkpoint
from rfdetr.weights.labels import ClassNames, given_names, names_for_head, renamed
from rfdetr.weights.load import load_checkpoint, load_pretrained
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import Checkpoint, checkpoint_of
from rfdetr.weights.writing import description

Targets = Sequence[Mapping[str, Tensor]]
Results = list[dict[str, Tensor]]

# Fields of the configurations, by who takes them as arguments of the same names.
HOW_TRAINED = ("freeze_encoder", "backbone_lora", "gradient_checkpointing", "amp")
LOSSES = {"cls_loss_coef", "bbox_loss_coef", "giou_loss_coef"}
LOSSES |= {"mask_ce_loss_coef", "mask_dice_loss_coef", "mask_point_sample_ratio"}
RATES = {"lr", "lr_encoder", "weight_decay", "lr_vit_layer_decay", "lr_component_decay"}
SCHEDULE = {"lr_scheduler", "warmup_epochs", "lr_drop", "lr_min_factor"}


class RFDETRModule(pl.LightningModule):
    """Owns the weights (`model`, the network), the criterion, post-processing and the optimizer.

    `weights` is what the network starts from, in place of the file `pretrain_weights`: a checkpoint
    (of `read_checkpoint`), or tensors by published name; what they lack is drawn from the seed.
    `class_names` are the data's, in order of label: classes that a file knows by these names start
    from its own. `model` may be compiled (`torch.compile`, `model.compile()`) or wrapped before
    fit; `detector` is the plain network inside, whose names state dicts and files have.

    A batch is [images, targets]: images a `NestedTensor` of uint8 (B, 3, H, W), normalised here on
    the device (float images are taken as normalised), targets one dict per image. Random numbers
    come from `seed`: the configuration's, or one drawn here; checkpoints keep it.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        train_config: TrainConfig,
        weights: Mapping[str, Tensor] | Checkpoint | None = None,
        class_names: ClassNames | None = None,
    ) -> None:
        super().__init__()
        check_kind("model_config", model_config, ModelConfig)
        check_kind("train_config", train_config, TrainConfig)
        self.model_config, self.train_config = model_config, train_config
        self.seed = secrets.randbits(31) if train_config.seed is None else train_config.seed
        _, names = given_names(class_names)
        self.class_names = names and names_for_head(names, model_config.num_classes)
        self.judged: tuple[nn.Module, ...] = ()
        """What validation evaluates in place of `model`, if anything; no part of the weights."""
        self.data_record: dict[str, Any] = {}  # checkpoints have it, and the user's notes in it
        self.total_steps = 0
        self.time_share = 0.0
        """Share of `minutes` that is spent: the schedule is as far, if the steps are not."""
        self.resumed_at = (0, 0)
        """Epoch and batch that a resumed run has begun with."""
        self.last_losses: dict[str, Tensor] = {}  # of the last training batch: "loss" and its terms
        self.evaluation_loss = LossMean()
        self.epoch_means = EpochMeansCallback()
        self.compiled: CompiledNetwork | None = None  # in a fit with compile=True
        self._moments: checkpoints.Moments = {}  # of another training loop's optimizer, for ours
        report = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.model = build_detector(model_config, drop_path=train_config.drop_path)
            if isinstance(weights, Mapping):
                weights = Checkpoint(Path("the weights"), dict(weights), {})
            if weights is None:
                report = load_pretrained(self.model, model_config, None, names)
            elif weights.model:
                report = load_checkpoint(self.model, model_config, weights, names)
        self.changes = report.changes() if report else []
        """What was done to weights that did not fit, for the training plan."""
        self.weights_file = report.file if report else None
        if report and len(report.class_names or ()) == model_config.num_classes:
            self.class_names = self.class_names or report.class_names
        self.register_state_dict_post_hook(network.hide_wrapper)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(network.add_wrapper)  # type: ignore[no-untyped-call]
        self.choose_trained()
        # A plain `TrainConfig` leaves the weights of the mask terms at the criterion's defaults.
        given = train_config.model_dump(include=LOSSES)
        self.criterion = Criterion(group_detr=model_config.group_detr, **given)

    @property
    def detector(self) -> Detector:
        """The plain network, whatever wraps it in `model`."""
        return detector_in(self.model)

    def choose_trained(self) -> None:
        """Chooses what learns, as configured: all weights, all but the encoder, or its adapters."""
        if self.model_config.freeze_encoder:
            self.detector.encoder.requires_grad_(False)
        if self.model_config.backbone_lora and not adapted(self.detector):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                add_adapters(self.detector)

    def configure_callbacks(self) -> list[pl.Callback]:
        # Lightning would remark on one that the trainer has from an earlier run.
        known = self.epoch_means in self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if known else [self.epoch_means]

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        if trainer.world_size > 1 and self.train_config.seed is None:  # every process drew one
            start = (self.seed, self.model.state_dict())
            self.seed, weights = trainer.strategy.broadcast(start)
            self.model.load_state_dict(weights)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = checkpoints.PlainCheckpointIO()
        network.take_precision(self, stage)
        if stage == "fit":
            network.check_wrapper(self)
            steps.check_batch_size(self.train_config.batch_size)
            self.compiled = compiled_network(self)
            self.resumed_at, self._moments, self.time_share = (0, 0), {}, 0.0

    def on_fit_start(self) -> None:
        refuse_split_resume(self.trainer, self.resumed_at)
        self.class_names = data_class_names(self)
        datamodule, num_classes = self.trainer.datamodule, self.model_config.num_classes  # type: ignore[attr-defined]
        if isinstance(datamodule, steps.LabelledData):
            self.data_record = datamodule.data_record()
            if (found := len(datamodule.class_names or ())) < num_classes:
                rank_zero_warn(f"num_classes={num_classes}, but the data has only {found} classes")
        if self.train_config.notes is not None:
            self.data_record = {**self.data_record, "notes": self.train_config.notes}
        if self.train_config.seed is not None:
            pl.seed_everything(self.seed, verbose=False)

    def on_train_batch_start(self, batch: list[Any], batch_idx: int) -> None:
        # Stochastic depth draws from torch's own generator: a resumed run, so seeded, draws what
        # the whole one would.
        seed = steps.mix_seed(self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(seed)
        if self.train_config.multi_scale is True:
            sizes = steps.training_sizes(self.model_config, self.train_config)
            size = steps.draw_size(sizes, self.seed, self.global_step)
            batch[0] = steps.resize_batch(batch[0], size)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> list[Any]:
        return steps.as_batch(batch, device)

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        images, targets = batch
        outputs = (self.compiled or self.model)(normalize(images.tensors), images.mask)
        losses = self.compute_losses(outputs, targets)
        loss: Tensor = torch.stack(list(losses.values())).sum()
        terms = {"loss": loss, **losses}
        self.last_losses = {name: value.detach() for name, value in terms.items()}
        for name, value in self.last_losses.items():
            self.log(f"train/{name}_step", value, prog_bar=name == "loss")
        means = {f"train/{name}": value for name, value in self.last_losses.items()}
        self.epoch_means.add(means, len(targets))
        epoch, done = self.resumed_at
        first = done if epoch == self.current_epoch else 0
        return loss * steps.share_of_window(batch_idx, self.trainer, first)

    def compute_losses(self, outputs: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """The weighted terms of the loss by name. A subclass may add some; all are summed."""
        terms: dict[str, Tensor] = self.criterion(outputs, targets)
        return terms

    def validation_step(self, batch: list[Any], batch_idx: int) -> dict[str, Any]:
        found = self.evaluate(batch)
        if self.judges_loss:
            self.log(f"{self.judging}/loss", self.evaluation_loss, batch_size=len(batch[1]))
        return found

    def test_step(self, batch: list[Any], batch_idx: int) -> dict[str, Any]:
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: list[Any], batch_idx: int) -> Results:
        return self.detect(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.train_config
        groups = parameter_groups(self.detector, **config.model_dump(include=RATES))
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        # Lightning would keep the gradients through the next forward pass, at the peak of memory.
        optimizer.register_step_post_hook(lambda stepped, *_: stepped.zero_grad())
        # Lightning clips no gradients that the optimizer might still unscale; this one is left
        # nothing to unscale.
        optimizer._step_supports_amp_scaling = False
        for name, parameter in self.detector.named_parameters():
            if parameter.requires_grad and name in self._moments:
                optimizer.state[parameter] = dict(self._moments[name])
        batches = operator.length_hint(training_loader(self.trainer), steps.UNKNOWN)
        per_epoch, total = steps.count_steps(self.trainer, batches, config.epochs)
        if total == steps.UNKNOWN and (needing := steps.needing_steps(config)):
            told = "the training loader does not tell how many batches it has, and "
            told += f"{' and '.join(needing)} must know: give the trainer max_steps or "
            raise InputError(told + "limit_train_batches, or the dataset __len__")
        self.total_steps = total
        schedule = config.model_dump(include=SCHEDULE)
        schedule |= {"total_steps": total, "steps_per_epoch": per_epoch}
        factor = functools.partial(lr_factor_now, self, **schedule)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        # A checkpoint with the schedule's own state overwrites where it starts.
        before = self.resumed_at[0] * per_epoch
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, factor, last_epoch=before - 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        accumulate = self.trainer.accumulate_grad_batches
        window = (self.trainer.fit_loop.batch_idx + 1) % accumulate
        if self.trainer.num_training_batches == float("inf") and window:
            # Nothing told that the epoch would end here: its last gradients become their mean now.
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(accumulate / window)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The same tensors under published names: a file holds them once, and what reads .pth files
        # reads this one.
        state = checkpoint["state_dict"]
        checkpoint["model"] = to_published({n.removeprefix("model."): state[n] for n in state})
        checkpoint.update(description(self.model_config, self.class_names, self.data_record))
        checkpoint["seed"] = self.seed
        of_folder = {"output_dir", "overwrite", "resume"}
        checkpoint["train_config"] = self.train_config.model_dump(mode="json", exclude=of_folder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Brings a known file's content into the form of this module, and of its trainer's run."""
        trainer = self._trainer
        trains = trainer is not None and trainer.state.fn == "fit"
        source = Path((trainer and trainer.ckpt_path) or "the checkpoint")
        checkpoints.convert_content(checkpoint, source)
        if trainer is not None:
            check_shared(checkpoint, source, self, data_class_names(self))
        checkpoint["state_dict"] = match_adapters(self.detector, checkpoint["state_dict"], trains)
        self.seed = checkpoint.get("seed", self.seed)
        if trainer is None or not trains:
            return
        self.resumed_at = place_in_run(checkpoint, source, trainer)
        lost = checkpoint.get("moments_lost", "")
        self._moments = checkpoint.get("moments", {})
        if self._moments and is_sharded(trainer.strategy):
            self._moments, lost = {}, "its state cannot be split over devices"
        if lost:
            rank_zero_warn(f"{source}: the optimizer starts afresh: {lost}")

    @classmethod
    def load_from_checkpoint(  # type: ignore[override] # less hparams_file: the file has it all
        cls,
        checkpoint_path: str | os.PathLike[str],
        map_location: str | torch.device | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """The module of a file, on the CPU or `map_location`; `model_config` and `train_config` win
        over the file's.

        Takes `.ckpt`, `.pth` and `.safetensors`. A file that does not tell how it was trained gets
        the defaults.
        """
        path, access = Path(checkpoint_path), checkpoints.AtomicCheckpointIO()
        checkpoint = access.load_checkpoint(path, weights_only=weights_only)
        file = checkpoint_of(path, checkpoint)
        if "model_config" not in kwargs:
            config = config_from_checkpoint(file)[0]
            trained = {name: file.args[name] for name in HOW_TRAINED if "seed" in checkpoint}
            fields = {**config.model_dump(), **trained, "pretrain_weights": None}
            kwargs["model_config"] = type(config)(**fields)
        if "train_config" not in kwargs:
            masks = kwargs["model_config"].segmentation_head
            kind = SegmentationTrainConfig if masks else TrainConfig
            known = checkpoint.get("train_config", {})
            known = {name: known[name] for name in known if name in kind.model_fields}
            known = {"dataset_dir": ".", **known, "output_dir": path.parent}
            kwargs["train_config"] = kind(**known)
        module = cls(**kwargs)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=strict)
        module.class_names = class_names(file)
        return module.to(map_location)

    @property
    def judging(self) -> str:
        """What names of figures start with: "test", "val", or "val_share" (`early_eval_share`)."""
        early = getattr(self.trainer.datamodule, "on_share", False)  # type: ignore[attr-defined]
        return "test" if self.trainer.testing else "val_share" if early else "val"

    @property
    def judges_loss(self) -> bool:
        """Whether evaluation computes the loss; `compute_val_loss` "auto": where it is watched."""
        chosen = self.train_config.compute_val_loss
        return is_watched(self.trainer, "val/loss") if chosen == "auto" else chosen

    def detect(self, batch: list[Any], model: nn.Module | None = None) -> Results:
        """Detections in pixels of the original images, of `model` or the module's own."""
        return detect_batch(self, batch, self.model if model is None else model)[1]

    def evaluate(self, batch: list[Any]) -> dict[str, Any]:
        """The detections and targets of a batch; `judges_loss` updates `evaluation_loss`."""
        targets = batch[1]
        outputs, results = detect_batch(self, batch, *(self.judged or (self.model,)))
        if self.judges_loss:
            objects = [steps.without_crowds(target) for target in targets]
            loss = torch.stack(list(self.compute_losses(outputs, objects).values())).sum()
            self.evaluation_loss.update(loss, sum(len(target["labels"]) for target in objects))
        return {"results": results, "targets": targets}


RFDETRModelModule = RFDETRModule
"""The name under which later published releases have it."""


def lr_factor_now(module: RFDETRModule, step: int, *, total_steps: int, **schedule: Any) -> float:
    """`lr_factor` at an optimizer step, or at the share of the run's time if that is more."""
    place = max(step, module.time_share * total_steps)
    return lr_factor(place, total_steps=total_steps, **schedule)


def detect_batch(
    module: RFDETRModule, batch: list[Any], model: nn.Module
) -> tuple[DetectorOutput, Results]:
    """What `model` gives for a batch, and of that the best detections of each image.

    Raises `FloatingPointError` where it is not finite: its figures would mean nothing.
    """
    (images, mask), targets = batch
    outputs: DetectorOutput = model(normalize(images), mask)
    if bad := outputs.not_finite():
        raise FloatingPointError(
            f"after optimizer step {module.global_step} the network's {' and '.join(bad)} are not "
            f"finite: it has diverged. {steps.losses_in_words(module.last_losses)}"
        )
    sizes = torch.stack([target["orig_size"] for target in targets])
    return outputs, postprocess_outputs(outputs, sizes, module.model_config.num_select)


def data_class_names(module: RFDETRModule) -> list[str] | None:
    """Names of the classes of the trainer's data, or those that the configuration gives them, with
    numbers for classes that the model has beyond these.

    None where loaders were given without our datamodule.
    """
    datamodule, num_classes = module.trainer.datamodule, module.model_config.num_classes  # type: ignore[attr-defined]
    names = datamodule.class_names if isinstance(datamodule, steps.LabelledData) else None
    if names is None:
        return None
    return names_for_head(renamed(names, module.train_config.class_names), num_classes)
