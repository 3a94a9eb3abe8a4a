"""A resumed run is the same run: each image once, and one clear error or warning where it cannot
be.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rfdetr.training import RFDETREMACallback, RFDETRModule, build_trainer
from rfdetr.training.callbacks import BestModelCallback, RFDETREarlyStopping
from rfdetr.training.checkpoints import checkpoint_to_resume
from rfdetr.weights.names import to_published
from rfdetr.weights.reading import CheckpointError

Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]


class Stop(Exception):
    pass


class Seen:
    """The images of each update, in order, of a run that may end after some batches."""

    def __init__(self, most_batches: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.most = most_batches

    def __call__(self, trainer: Any, *_: Any) -> None:
        if len(self.batches) == self.most:
            raise Stop

    @property
    def images(self) -> list[int]:
        return [image for batch in self.batches for image in batch]


def run_epoch(
    make_run: Callable[..., Any], most: int | None = None, resume: Path | None = None, **train: Any
) -> Seen:
    """One epoch, or the first `most` batches of it, of a run that saves after every update."""
    seen = Seen(most)
    settings = {"epochs": 1, "grad_accum_steps": 1, "checkpoint_every_n_steps": 1, **train}
    run = make_run(watch={"on_train_batch_start": seen}, **settings)
    step = run.module.training_step

    def watched(batch: Any, batch_idx: int) -> Any:
        seen.batches.append([int(target["image_id"]) for target in batch[1]])
        return step(batch, batch_idx)

    run.module.training_step = watched
    if most is None:
        run.fit(ckpt_path=resume)
    else:
        with pytest.raises(Stop):
            run.fit(ckpt_path=resume)
        seen.batches.pop()  # its save would have come after the stop: it is trained again
    return seen


@pytest.fixture
def sixteen(make_tiny_coco: Callable[..., Path]) -> Path:
    return make_tiny_coco({"train": 16, "valid": 2}, "sixteen")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "accumulate"),
    [
        (4, 2, 1),
        *(
            pytest.param(*case, marks=pytest.mark.scheduled)
            for case in ((2, 4, 1), (4, 4, 1), (2, 3, 2))
        ),
        (3, 5, 3),
    ],
)
def test_another_batch_size_neither_repeats_nor_skips_an_image(
    make_run: Callable[..., Any], sixteen: Path, before: int, after: int, accumulate: int
) -> None:
    whole = run_epoch(make_run, output="whole", dataset_dir=sixteen, batch_size=4)
    first = run_epoch(make_run, 3, output="parts", dataset_dir=sixteen, batch_size=before)
    last = checkpoint_to_resume("last", sixteen.parent / "parts")
    rest = run_epoch(
        make_run,
        resume=last,
        output="parts",
        dataset_dir=sixteen,
        batch_size=after,
        grad_accum_steps=accumulate,
    )
    assert first.images + rest.images == whole.images
    assert sorted(whole.images) == list(range(1, 17))


def test_images_are_loaded_in_the_size_of_their_update_with_another_accumulation(
    make_run: Callable[..., Any], sixteen: Path
) -> None:
    """Two updates of two batches, then updates of three: the first of these has the two left of its
    window.
    """
    settings = {"dataset_dir": sixteen, "batch_size": 2, "multi_scale": True, "output": "parts"}
    run_epoch(make_run, 5, grad_accum_steps=2, **settings)
    run = make_run(epochs=1, grad_accum_steps=3, **settings)
    resize = run.module.on_train_batch_start
    loaded: dict[int, list[tuple[int, int]]] = {}

    def watched(batch: Any, batch_idx: int) -> None:
        before = batch[0].tensors.shape[-1]
        resize(batch, batch_idx)
        loaded.setdefault(run.trainer.global_step, []).append((before, batch[0].tensors.shape[-1]))

    run.module.on_train_batch_start = watched
    run.fit(ckpt_path="last")
    assert [len(sizes) for sizes in loaded.values()] == [2, 2]
    assert len({size for sizes in loaded.values() for size in sizes}) == 2
    assert all(before == after for sizes in loaded.values() for before, after in sizes)


@pytest.mark.slow
@pytest.mark.usefixtures("with_repetition")
def test_an_epoch_that_becomes_shorter_is_still_judged(make_run: Callable[..., Any]) -> None:
    """Six images are repeated to 40 an epoch in updates of 8, and to 10 in updates of 2."""
    run_epoch(make_run, 9, output="parts", batch_size=4, grad_accum_steps=2)
    run = make_run(output="parts", epochs=2, batch_size=2, grad_accum_steps=1, run_test=False).fit(
        ckpt_path="last"
    )
    records = [json.loads(line) for line in (run.output / "log.txt").read_text().splitlines()]
    assert [(record["epoch"], "val/mAP_50_95" in record) for record in records] == [
        (0, True),
        (1, True),
    ]
    assert run.trainer.global_step == 4 + 5


def test_the_first_update_of_another_batch_size_is_a_mean_over_its_own_batches() -> None:
    from rfdetr.training.steps import share_of_window

    class Four:
        accumulate_grad_batches, num_training_batches = 4, 10

    shares = [share_of_window(batch, Four(), first=3) / 4 for batch in range(3, 10)]  # type: ignore[arg-type]
    assert shares == [1, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5]


def rename(names: dict[str, str]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["name"] = names.get(category["name"], category["name"])

    return change


def reorder(content: dict[str, Any]) -> None:
    """Exchanges blue and red, names and numbers alike: no box changes its class, in whatever order
    classes are.
    """
    first, last = content["categories"][1], content["categories"][3]
    first["name"], last["name"] = last["name"], first["name"]
    for annotation in content["annotations"]:
        annotation["category_id"] = 4 - annotation["category_id"]


def drop_one(content: dict[str, Any]) -> None:
    content["annotations"].pop()


def move_one(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"][0] += 1


def change_data(
    config: Any, edit: Edit, change: Callable[[dict[str, Any]], object], *splits: str
) -> None:
    for split in splits or ("train", "valid", "test"):
        edit(config.dataset_dir / split / "_annotations.coco.json", change)


@pytest.mark.parametrize(
    ("model", "found", "expected"),
    [
        ({"resolution": 96}, "resolution is 64 in the checkpoint", "96 in the model"),
        ({"hidden_dim": 64}, "hidden_dim is 32 in the checkpoint", "64 in the model"),
        ({"dec_layers": 2}, "dec_layers is 1 in the checkpoint", "2 in the model"),
        ({"num_classes": 4}, "its classes are blue, green, red", "blue, green, red, 3"),
        ({"num_windows": 1}, "num_windows is 2 in the checkpoint", "1 in the model"),
        (
            {"freeze_encoder": True},
            "freeze_encoder is False in the checkpoint",
            "True in the model",
        ),
    ],
)
def test_another_model_is_one_clear_error(
    make_run: Callable[..., Any], model: dict[str, Any], found: str, expected: str
) -> None:
    last = make_run(epochs=1).fit().output / "last.ckpt"
    with pytest.raises(CheckpointError) as error:
        make_run(epochs=2, model=model).fit(ckpt_path=last)
    text = str(error.value)
    assert str(last) in text and found in text and expected in text and "pretrain_weights=" in text
    assert "size mismatch" not in text and len(text) < 600


@pytest.mark.parametrize("kind", ["last.ckpt", "legacy"])
def test_classes_in_another_order_are_not_gone_on_from(
    make_run: Callable[..., Any],
    edit_coco: Edit,
    train_config: Callable[..., Any],
    tmp_path: Path,
    kind: str,
) -> None:
    first = make_run(epochs=1).fit()
    path = first.output / "last.ckpt"
    if kind == "legacy":
        path = tmp_path / "checkpoint.pth"
        names = list(reversed(first.module.class_names))
        torch.save(
            {
                "model": to_published(first.module.model.state_dict()),
                "args": {"class_names": names},
            },
            path,
        )
    else:
        content = torch.load(path, weights_only=True)
        content["args"]["class_names"].reverse()
        (first.output / "checksums.json").unlink()
        torch.save(content, path)
    with pytest.raises(
        CheckpointError,
        match="classes are red, green, blue; the data has the same in another order",
    ):
        make_run(epochs=2).fit(ckpt_path=path)


@pytest.mark.parametrize(
    ("change", "splits", "said"),
    [
        (drop_one, ["train"], r"train: \d+ boxes of \w+ \(was \d+\)"),
        (move_one, ["valid"], "valid: other labels of the same images"),
        (lambda content: content["images"].pop(0), ["train"], r"train: 5 images \(was 6\)"),
    ],
)
def test_changed_data_is_an_error_that_says_what_changed(
    make_run: Callable[..., Any],
    edit_coco: Edit,
    train_config: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    change: Callable[[dict[str, Any]], object],
    splits: list[str],
    said: str,
) -> None:
    last = make_run(epochs=1).fit().output / "last.ckpt"
    change_data(train_config(), edit_coco, change, *splits)
    with pytest.raises(CheckpointError, match=f"{said}.*allow_changed_data=True"):
        make_run(epochs=2).fit(ckpt_path=last)
    with caplog.at_level(logging.WARNING):
        run = make_run(epochs=2, allow_changed_data=True).fit(ckpt_path=last)
    assert run.trainer.current_epoch == 2
    assert [
        record for record in caplog.records if "was trained on other data" in record.getMessage()
    ]


def test_other_class_names_are_told_before_other_labels(
    make_run: Callable[..., Any], edit_coco: Edit, train_config: Callable[..., Any]
) -> None:
    last = make_run(epochs=1).fit().output / "last.ckpt"
    change_data(train_config(), edit_coco, rename({"red": "rouge"}))
    with pytest.raises(CheckpointError, match="the data has other ones: blue, green, rouge"):
        make_run(epochs=2, allow_changed_data=True).fit(ckpt_path=last)


def test_the_order_of_images_stays_that_of_the_checkpoints_seed(
    make_run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    last = make_run(epochs=1, seed=7).fit().output / "last.ckpt"
    with caplog.at_level(logging.WARNING):
        run = make_run(epochs=2, seed=8).fit(ckpt_path=last)
    assert run.trainer.train_dataloader.sampler.seed == 7
    assert "goes on with its seed 7, not with 8" in caplog.text


def test_a_second_fit_starts_its_own_average_and_contest(make_run: Callable[..., Any]) -> None:
    started: list[tuple[int, dict[str, Any], float]] = []

    def look(trainer: Any, module: Any) -> None:
        callbacks = {type(callback): callback for callback in trainer.callbacks}
        average, best = callbacks[RFDETREMACallback], callbacks[BestModelCallback]
        assert torch.equal(average.model.class_head.weight, module.model.class_head.weight)
        started.append((average.updates, dict(best.best), callbacks[RFDETREarlyStopping].best))

    run = make_run(epochs=1, early_stopping=True, watch={"on_train_start": look}).fit()
    run.trainer.fit_loop.max_epochs = 2
    run.fit()
    assert started == [(0, {}, float("-inf"))] * 2
    best = next(
        callback for callback in run.trainer.callbacks if isinstance(callback, BestModelCallback)
    )
    assert {entry["epoch"] for entry in best.best.values()} <= {1}


def state_of(folder: Path) -> dict[str, Any]:
    paths = [folder, *sorted(folder.rglob("*"))]
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in paths
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "raise epochs"),
        (
            {"early_stopping": True, "early_stopping_min_delta": 1.0},
            "raise early_stopping_patience",
        ),
    ],
)
def test_a_finished_run_is_left_alone_and_says_so(
    make_run: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    said: str,
) -> None:
    settings = {"epochs": 4, "early_stopping_patience": 1, **settings}
    first = make_run(**settings).fit()
    before = state_of(first.output)
    again = make_run(**settings).fit(ckpt_path="last")
    assert state_of(first.output) == before
    told = [message for message in caplog.messages if "nothing is left" in message]
    assert len(told) == 1 and said in told[0] and "\n" not in told[0] and "last.ckpt" in told[0]
    assert torch.equal(again.module.model.class_head.weight, first.module.model.class_head.weight)


def test_an_end_that_was_killed_is_made_up_for(make_run: Callable[..., Any]) -> None:
    first = make_run(epochs=1).fit()
    (first.output / "results.json").unlink()
    make_run(epochs=1).fit(ckpt_path="last")
    assert json.loads((first.output / "results.json").read_text())["splits"].keys() == {
        "valid",
        "test",
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["last.ckpt", "checkpoint_0010.ckpt", "checkpoint.pth"], "last.ckpt"),
        (
            ["checkpoint_0010.ckpt", "checkpoint_0020.ckpt", "checkpoint_best_total.pth"],
            "checkpoint_0020.ckpt",
        ),
        (["checkpoint.pth", "checkpoint_9.pth"], "checkpoint.pth"),
        (["checkpoint_9.pth", "checkpoint_10.pth", "checkpoint_best_ema.pth"], "checkpoint_10.pth"),
        (["checkpoint0009.pth"], "checkpoint0009.pth"),
        (["checkpoint_best_total.pth"], None),
    ],
)
def test_last_and_a_missing_file_mean_the_newest_with_an_optimizer(
    tmp_path: Path, names: list[str], expected: str | None
) -> None:
    for name in names:
        (tmp_path / name).touch()
    found = checkpoint_to_resume("last", tmp_path)
    assert found == (tmp_path / expected if expected else None)
    with pytest.raises(FileNotFoundError) as error:
        checkpoint_to_resume(tmp_path / "gone.ckpt", tmp_path)
    assert str(error.value).endswith(f"to go on from is {found}" if found else "gone.ckpt")


@pytest.mark.parametrize("address", ["http://host/last.ckpt", "s3://bucket/a.pth", "gs://b/c.ckpt"])
def test_an_address_is_told_to_be_one(make_run: Callable[..., Any], address: str) -> None:
    with pytest.raises(CheckpointError, match=r"is an address, not a file: download it"):
        make_run().fit(ckpt_path=address)


def test_configurations_come_from_the_file(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run(epochs=1, lr=3e-4, model={"amp": False}).fit()
    last = run.output / "last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    module = RFDETRModule.load_from_checkpoint(last)
    assert module.model_config == run.module.model_config
    assert module.train_config.lr == 3e-4
    assert module.class_names == ["blue", "green", "red"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    other = run.module.train_config.model_copy(update={"lr": 1e-5})
    assert RFDETRModule.load_from_checkpoint(last, train_config=other).train_config.lr == 1e-5
    best = RFDETRModule.load_from_checkpoint(run.output / "checkpoint_best_total.pth")
    assert torch.equal(best.model.class_head.weight, run.module.model.class_head.weight)
    build_trainer(module.train_config, module.model_config).fit(
        module, run.datamodule, ckpt_path=last
    )


@pytest.mark.slow
def test_a_run_on_tiles_goes_on_with_the_next_one(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    on = {"tiles": (32, 48), "tile_overlap": 0.1, "batch_size": 5}
    whole = run_epoch(make_run, output="whole", **on)
    assert len(set(whole.images)) == len(whole.images) > 12  # each once; of 6 images
    first = run_epoch(make_run, 2, output="parts", **on)
    resume = checkpoint_to_resume("last", tmp_path / "parts")
    rest = run_epoch(make_run, resume=resume, output="parts", **on)
    assert first.images + rest.images == whole.images
    paths = (tmp_path / name / "last.ckpt" for name in ("whole", "parts"))
    one, other = (torch.load(path, weights_only=True)["model"] for path in paths)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert resume is not None
    with pytest.raises(CheckpointError, match=r"tiles was \[32, 48\], is \[32, 32\]; "):
        make_run(output="parts", **{**on, "tiles": 32, "epochs": 2}).fit(ckpt_path=resume)
