"""Settings of the published package that reach loaders, class names and files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import TINY

from rfdetr import RFDETR, RFDETRMini
from rfdetr.config import TrainConfig
from rfdetr.data.dataset import collate
from rfdetr.training.resume import keep_settings, recorded_args
from rfdetr.training.steps import training_sizes

NAMES = ["azul", "verde", "rojo"]
SHORT = {"epochs": 1, "batch_size": 2, "grad_accum_steps": 1, "num_workers": 0, "run_test": False}


def test_evaluation_batches_have_a_size_of_their_own(make_run: Callable[..., Any]) -> None:
    sizes: list[int] = []
    run = make_run(epochs=1, batch_size=2, eval_batch_size=3, run_test=False)
    evaluate = run.module.evaluate
    run.module.evaluate = lambda batch: (sizes.append(len(batch[1])), evaluate(batch))[1]
    run.fit()
    assert sizes == [3, 1]  # of four images
    assert run.trainer.train_dataloader.batch_size == 2


def test_the_loaders_are_as_told(make_run: Callable[..., Any]) -> None:
    told = {"prefetch_factor": 3, "persistent_workers": False, "pin_memory": True}
    data = make_run(num_workers=1, **told).datamodule
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert {name: getattr(loader, name) for name in told} == told
    default = make_run(num_workers=1).datamodule.train_dataloader()
    wanted = {"prefetch_factor": 2, "persistent_workers": True}
    wanted["pin_memory"] = torch.cuda.is_available()
    assert {name: getattr(default, name) for name in wanted} == wanted
    alone = make_run(num_workers=0, prefetch_factor=3, persistent_workers=True).datamodule
    assert alone.train_dataloader().persistent_workers is False  # there is nothing to keep


@pytest.mark.scheduled
def test_processes_that_end_with_each_epoch_load_the_same(make_run: Callable[..., Any]) -> None:
    kept, ended = (
        make_run(output=str(keep), num_workers=1, persistent_workers=keep, run_test=False).fit()
        for keep in (True, False)
    )
    states = (torch.load(run.output / "last.ckpt")["state_dict"] for run in (kept, ended))
    assert torch.equal(*(state["model.class_head.weight"] for state in states))


def test_each_image_may_have_a_size_of_its_own(
    make_run: Callable[..., Any], add_outlines: Callable[[], None]
) -> None:
    model = {"segmentation_head": True, "amp": False}
    run = make_run(model=model, multi_scale="per-sample", epochs=2, batch_size=3, run_test=False)
    add_outlines()
    sides: list[list[int]] = []
    step = run.module.training_step

    def watched(batch: Any, batch_idx: int) -> Any:
        (images, mask), targets = batch
        shown = [~mask[i] if mask is not None else images[i, 0] >= 0 for i in range(len(images))]
        sides.append([int(inside[0].sum()) for inside in shown])
        for pixels, inside, target in zip(images, shown, targets, strict=True):
            assert inside.sum() == inside[0].sum() ** 2 and not pixels[:, ~inside].any()
            assert target["masks"].shape[1:] == images.shape[-2:]
            for objects, box in zip(target["masks"], target["boxes"], strict=True):
                rows, columns = (n.float() + 0.5 for n in objects.nonzero(as_tuple=True))
                centre = torch.stack((columns.mean(), rows.mean())) / inside[0].sum()
                torch.testing.assert_close(centre, box[:2], atol=0.02, rtol=0)
        return step(batch, batch_idx)

    run.module.training_step = watched
    run.fit()
    drawn = [side for batch in sides for side in batch]
    assert len(drawn) == 12 and len(set(drawn)) > 4 and any(len(set(b)) > 1 for b in sides)
    allowed = training_sizes(run.module.model_config, run.module.train_config)
    assert {(side, side) for side in drawn} <= set(allowed)
    dataset = run.datamodule.train_dataloader().dataset
    again = [dataset[0, image][0].shape[-1] for image in range(6)]
    assert sorted(again) == sorted(drawn[:6])  # it depends on epoch and image alone
    plain = dataclasses.replace(dataset, sizes=())
    for image in range(6):  # crop and flip are as without
        assert torch.equal(dataset[0, image][1]["boxes"], plain[0, image][1]["boxes"])


def test_padding_changes_nothing_of_what_is_seen_of_an_image(
    make_run: Callable[..., Any],
) -> None:
    """The boxes of a padded image are relative to the image, as they are alone."""
    run = make_run(model={"amp": False, "segmentation_head": False}, multi_scale="per-sample")
    dataset = run.datamodule.train_dataloader().dataset
    by_side = {(sample := dataset[0, i])[0].shape[-1]: sample for i in range(6)}
    (_, large), (side, small) = max(by_side.items()), min(by_side.items())
    (images, mask), targets = collate([large, small])
    assert torch.equal(images[1, :, :side, :side], small[0]) and mask is not None
    assert torch.equal(targets[1]["boxes"], small[1]["boxes"])
    network = run.module.model.eval()
    with torch.no_grad():
        memory = network.project(network.encode(images / 255))
        from rfdetr.models.transformer import cell_boxes, flatten_levels

        boxes, valid = cell_boxes(flatten_levels(memory, mask))
    centres = boxes[1][valid[1]][:, :2].numpy()
    cells = side // run.module.model_config.patch_size
    assert len(np.unique(centres[:, 0])) == cells and centres.max() == 1 - 0.5 / cells


def test_names_and_notes_stand_in_every_file_and_in_the_model(
    tiny_coco: Path, tmp_path: Path
) -> None:
    model = RFDETRMini(**TINY)
    given = {"notes": {"batch": [1, None]}, "class_names": NAMES, "save_safetensors": True}
    model.train(dataset_dir=tiny_coco, output_dir=tmp_path / "out", **SHORT, **given)
    assert model.class_names == NAMES
    for name in ("last.ckpt", "checkpoint_best_total.pth", "checkpoint_best_ema.pth"):
        args = torch.load(tmp_path / "out" / name, weights_only=True)["args"]
        assert (args["notes"], args["class_names"]) == ({"batch": [1, None]}, NAMES)
    file = tmp_path / "out" / "checkpoint_best_total.safetensors"
    assert RFDETR.from_checkpoint(file).class_names == NAMES
    assert "val/AP/rojo" in (tmp_path / "out" / "metrics.csv").read_text()
    figures = model.evaluate(tiny_coco, num_workers=0, class_names=NAMES)
    assert [row["name"] for row in figures.per_class] == NAMES  # as in the run's own figures
    with pytest.raises(
        ValueError, match=r"does not know: \['blue', 'green', 'red'\].*class_names="
    ):
        model.evaluate(tiny_coco, num_workers=0)


def test_a_renamed_run_is_validated_and_goes_on(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1, class_names=NAMES, notes="x", run_test=False).fit()
    (figures,) = run.trainer.validate(run.module, run.datamodule, verbose=False)
    assert "val/AP/azul" in figures
    resumed = make_run(epochs=2, class_names=NAMES, run_test=False).fit(ckpt_path="last")
    assert resumed.module.class_names == NAMES
    with pytest.raises(ValueError, match="its classes are azul, verde, rojo"):
        make_run(epochs=3, run_test=False).fit(ckpt_path="last")


def test_a_resumed_run_keeps_its_names_and_notes(tiny_coco: Path, tmp_path: Path) -> None:
    model, run = RFDETRMini(**TINY), {"dataset_dir": tiny_coco, "output_dir": tmp_path / "out"}
    model.train(**run, **SHORT, class_names=NAMES, notes=["mine"])
    model = RFDETRMini(**TINY)
    model.train(**run, **{**SHORT, "epochs": 2}, resume="last")
    assert model.class_names == NAMES
    args = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["args"]
    assert (args["notes"], args["class_names"]) == (["mine"], NAMES)
    best = tmp_path / "out" / "checkpoint_best_total.pth"
    config = TrainConfig(dataset_dir=tiny_coco, notes="new")
    keep_settings(config, recorded_args(best), ["blue", "green", "red"])
    assert (config.class_names, config.notes) == (NAMES, "new")  # what is given wins
    config = TrainConfig(dataset_dir=tiny_coco)
    keep_settings(config, recorded_args(best), ["blue", "green", "teal"])
    assert (config.class_names, config.notes) == (None, ["mine"])  # names of other classes


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"class_names": ["a", "b", "c"]}, "its classes are blue, green, red; the data has other"),
        ({"best_model_metric": "mar"}, "it chooses its best weights by 'map'"),
    ],
)
def test_a_refused_resume_prints_no_plan_and_leaves_no_folder(
    changed: dict[str, Any],
    told: str,
    tiny_coco: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = RFDETRMini(**TINY)
    model.train(dataset_dir=tiny_coco, output_dir=tmp_path / "out", **SHORT)
    assert "Training plan" in capsys.readouterr().out
    with pytest.raises(ValueError, match=told):
        model.train(
            dataset_dir=tiny_coco,
            output_dir=tmp_path / "new" / "run",
            resume=tmp_path / "out" / "last.ckpt",
            **{**SHORT, "epochs": 2},
            **changed,
        )
    assert "Training plan" not in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["blue", "red"], "expected a name of its own for each"),
        (["a", "a", "b"], "expected a name of its own for each"),
        (["red", "green", "blue"], "of these, some in another order"),
        (["green", "teal", "red"], "of these, some in another order"),
    ],
)
def test_names_that_would_misname_objects_are_refused(
    make_run: Callable[..., Any], names: list[str], told: str
) -> None:
    run = make_run(class_names=names)
    with pytest.raises(ValueError, match=told):
        run.fit()
    assert run.trainer.global_step == 0
