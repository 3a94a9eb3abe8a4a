"""The command line: what it answers, its exit codes, and that it never overwrites."""

from __future__ import annotations

import errno
import json
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from rfdetr.cli import main
from rfdetr.cli.options import dashed, read_config_file, split_settings
from rfdetr.cli.predict import written
from rfdetr.config import ModelConfig, RFDETRMiniConfig, SegmentationTrainConfig, TrainConfig
from rfdetr.errors import MissingPackageError, RunError
from rfdetr.models.build import build_detector
from rfdetr.variants import RFDETRMini
from rfdetr.weights.writing import save_checkpoint

FAST = [
    "--resolution=96",
    "--pretrain-weights=none",
    "--num-select=40",
    "--num-workers=0",
    "--no-progress-bar",
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = RFDETRMiniConfig(pretrain_weights=None, resolution=96, num_classes=3, num_select=40)
    torch.manual_seed(0)
    save_checkpoint(
        tmp_path / "mini.pth", build_detector(config).state_dict(), config, ["blue", "green", "red"]
    )
    return tmp_path / "mini.pth"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], 'Did you mean "train"?'),
        (["train", "data", "--epoch", "3"], "Did you mean --epochs?"),
        (["train", "data", "resolutin=96"], "Did you mean --resolution?"),
        (["train", "data", "--epochs=many"], "epochs: Input should be a valid integer"),
        (["train", "data", "--lr=-1"], "lr: Input should be greater than 0"),
        (["train", "data", "--model=nanoo"], "did you mean 'nano'?"),
        (["train", "data", "--model=mini", "--resolution=100"], "resolution 100 is not a multiple"),
        (["train"], "which folder"),
        (["predict", "weights.pth"], "which images?"),
        (["evaluate", "weights.pth"], "requires an argument"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1 and not out


def test_files_that_cannot_be_used_are_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    for arguments in (
        ["info", tmp_path / "absent.pth"],
        ["info", tmp_path / "broken.pth"],
        ["info", tmp_path],
        ["predict", "absent.pth", tmp_path / "*.jpg"],
        ["train", tmp_path / "nowhere", "--model=mini", *FAST],
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and err.startswith("rfdetr: ") and err.count("\n") == 1, arguments


FAILURES = [
    RunError("lost"),
    MissingPackageError("lost"),
    FloatingPointError("lost"),
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    OSError(errno.ENOSPC, "No space left"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_failures_while_working_are_one_line_and_code_1(
    failure: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise failure

    monkeypatch.setattr(platform, "platform", fail)
    code, _, err = run(capsys, "info")
    assert code == 1 and err.startswith("rfdetr: ") and err.count("\n") == 1


BUGS = [
    ValueError,
    TypeError,
    RuntimeError,
    KeyError,
    ImportError,
    AttributeError,
    ZeroDivisionError,
    RecursionError,
]


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_told_with_its_traceback_and_code_1(
    bug: type[Exception], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise bug("lost")

    monkeypatch.setattr(platform, "platform", fail)
    code, out, err = run(capsys, "info")
    first, *_, error, last = err.splitlines()
    assert code == 1 and not out
    assert (
        first == "Traceback (most recent call last):"
        and "in fail" in err
        and error.startswith(f"{bug.__name__}: ")
    )
    assert last.startswith("rfdetr: this is a bug") and last.endswith(
        "please report this with the lines above"
    )


def test_an_interrupt_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(platform, "platform", interrupt)
    assert run(capsys, "info") == (130, "", "rfdetr: interrupted\n")


def test_help_lists_training_before_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "train", "--help")[1]
    assert (
        out.index("--model ")
        < out.index("--epochs ")
        < out.index("--progress-bar")
        < out.index("--encoder ")
    )


def test_every_field_is_an_option_with_its_note(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "train", "--help")
    words = out.split()
    assert code == 0
    for config in (SegmentationTrainConfig, ModelConfig):
        for name, field in config.model_fields.items():
            assert f"--{name.replace('_', '-')}" in words, name
            assert field.description and field.description.split()[0] in words, name


def test_key_value_is_an_option_unless_it_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=1.jpg").touch()
    tokens = "epochs=5 a=1.jpg --slice x=1 --lr=1 --slice x --report . --report"
    told = "--epochs=5 a=1.jpg --slice= --x=1 --lr=1 --slice x --report= . --report="
    assert dashed(tokens.split()) == told.split()
    assert dashed(["--tiles", "--epochs=2", "--tiles", "64"])[0] == "--tiles=true"


@pytest.mark.parametrize(
    ("given", "tiles"),
    [(["--tiles"], True), (["--tiles", "64"], [64, 64]), (["--tiles=48x64"], [48, 64])],
)
def test_tiles_are_pixels_both_sides_or_the_input(
    given: list[str], tiles: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(RFDETRMini, "train", lambda _, **settings: told.update(settings))
    assert main(["train", str(tmp_path), "--model=mini", *given, "--epochs=2"]) == 0
    assert TrainConfig(**told).model_dump(mode="json")["tiles"] == tiles


def test_settings_are_split_and_typos_answered() -> None:
    assert split_settings({"resolution": 96, "epochs": 2}) == ({"resolution": 96}, {"epochs": 2})
    compiled = {"compile": True}  # which published models have, too
    assert split_settings(compiled) == ({}, compiled)
    with pytest.raises(Exception, match="did you mean 'resolution'"):
        split_settings({"resolutoin": 96})


def test_train_takes_options_over_the_file_over_defaults(
    tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: mini\nepochs: 5\nbatch_size: 3\ngrad_accum_steps: 1\nlr: 5e-4\n"
    )
    out = tmp_path / "out"
    arguments = [
        "train",
        tiny_coco,
        "--config",
        tmp_path / "run.yaml",
        "epochs=1",
        f"output_dir={out}",
        *FAST,
    ]
    code, printed, err = run(capsys, *arguments)
    assert code == 0, err
    written = yaml.safe_load((out / "config.yaml").read_text())
    train = written["train"]
    assert (train["epochs"], train["batch_size"], train["lr"], train["lr_encoder"]) == (
        1,
        3,
        5e-4,
        1.5e-4,
    )
    assert (
        written["model"]["resolution"] == 96
        and written["model"]["encoder"] == "dinov2_windowed_mini"
    )
    assert "Training plan" in printed and "Training finished" in printed
    again = read_config_file(out / "config.yaml")  # what a run leaves can start the next one
    assert again.pop("model") == "mini" and split_settings(again) == (written["model"], train)
    assert main(["info", str(out / "checkpoint_best_total.pth")]) == 0
    assert "blue, green, red" in capsys.readouterr().out


def test_info_counts_the_boxes_of_each_split_by_name(
    tiny_coco: Path, edit_coco: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The valid split lists another class before the three, and lacks one of them."""
    rows = {}
    for split in ("train", "valid"):
        content = json.loads((tiny_coco / split / "_annotations.coco.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        rows[split] = Counter(
            names[annotation["category_id"]] for annotation in content["annotations"]
        )

    def change(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": -1, "name": "aa"}, *content["categories"][:3]]
        content["annotations"] = [one for one in content["annotations"] if one["category_id"] != 3]

    edit_coco(tiny_coco / "valid" / "_annotations.coco.json", change)
    code, out, _ = run(capsys, "info", tiny_coco)
    lines = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in out.splitlines()
        if line.startswith("│")
    ]
    cells = {name: counts for name, *counts in lines}
    train, valid = rows["train"], rows["valid"]
    assert code == 0 and valid["blue"] > 0
    assert cells["blue"][:2] == [str(train["blue"]), str(valid["blue"])]
    assert cells["red"][:2] == [str(train["red"]), "not listed"]
    assert cells["aa"][:2] == ["not listed", "0"]


def test_evaluate_prints_a_table_or_json(
    checkpoint: Path, tiny_coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "evaluate", checkpoint, tiny_coco, "--split", "valid", "--json")
    record = json.loads(out)
    assert code == 0 and record["split"] == "valid" and 0 <= record["overall"]["mAP_50_95"] <= 1
    code, out, _ = run(capsys, "evaluate", checkpoint, tiny_coco)
    assert code == 0 and all(name in out for name in ("blue", "green", "red"))


def test_predict_writes_pictures_and_json_and_overwrites_nothing(
    checkpoint: Path, tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sources = tmp_path / "found", [tiny_coco / "test", tiny_coco / "valid" / "0.jpg"]
    code, _, err = run(capsys, "predict", checkpoint, *sources, "--out", out, "--threshold", "0.01")
    assert code == 0, err
    record = json.loads((out / "predictions.json").read_text())
    assert [image["picture"] for image in record["images"]] == [
        "0.jpg",
        "1.jpg",
        "2.jpg",
        "0-2.jpg",
    ]
    first = record["images"][0]
    assert (first["width"], first["height"]) == (64, 48) and first["source"].endswith("0.jpg")
    assert first["detections"][0]["class_name"] in ("blue", "green", "red")
    with Image.open(out / first["picture"]) as picture:
        assert picture.size == (64, 48)

    before = {path: path.read_bytes() for path in out.iterdir()}
    code, _, err = run(capsys, "predict", checkpoint, *sources, "--out", out)
    assert code == 2 and "nothing is overwritten" in err
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_predict_and_evaluate_look_at_tiles(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tiny_coco: Path, tmp_path: Path
) -> None:
    command = ["predict", checkpoint, tiny_coco / "test", "--threshold", "0", "--no-pictures"]
    counts = []
    for number, tiles in enumerate(([], ["--slice", "32", "--slice-overlap", "0"], ["--slice"])):
        out = tmp_path / str(number)
        assert run(capsys, *command, *tiles, "--out", out)[0] == 0
        record = json.loads((out / "predictions.json").read_text())
        counts.append(sum(len(image["detections"]) for image in record["images"]))
        expected = {"slice": 32 if number == 1 else True, "overlap": [0.2, 0][number == 1]}
        assert record.get("tiles") == ({**expected, "whole": True} if number else None)
    assert counts[1] > counts[0] == counts[2]  # those are no larger than the network's input
    code, out, _ = run(capsys, "evaluate", checkpoint, tiny_coco, "--slice", "32,48", "--json")
    assert code == 0 and "mAP_50_95" in out
    code, _, err = run(capsys, *command, "--slice", "small", "--out", tmp_path / "none")
    assert code == 2 and "--slice small: expected pixels, or height,width" in err


def test_predict_takes_thresholds_by_class_as_json_or_file(
    checkpoint: Path, tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", checkpoint, tiny_coco / "test", "--threshold", "0", "--no-pictures"]
    text = '{"red": 1.0, "blue": 0.999}'
    (tmp_path / "thresholds.json").write_text(text)
    for number, given in enumerate((text, tmp_path / "thresholds.json")):
        out = tmp_path / f"found{number}"
        code, _, err = run(capsys, *command, "--out", out, "--thresholds", given)
        assert code == 0, err
        record = json.loads((out / "predictions.json").read_text())
        assert record["thresholds"] == {"red": 1.0, "blue": 0.999}
        found = [entry["class_name"] for image in record["images"] for entry in image["detections"]]
        assert set(found) == {"green"}
    for given, told in (("{", "cannot be read as JSON"), ('{"owl": 0.5}', "no class 'owl'")):
        code, _, err = run(capsys, *command, "--out", tmp_path / "no", "--thresholds", given)
        assert code == 2 and told in err
    code, _, err = run(capsys, *command, "--out", tmp_path / "no", "--thresholds", "absent.json")
    assert code == 2 and "absent.json" in err


def test_predict_records_what_it_cannot_read_and_writes_the_rest(
    checkpoint: Path, tiny_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, photos = tmp_path / "found", tiny_coco / "test"
    (photos / "1.png").write_bytes(b"no picture")
    code, _, err = run(capsys, "predict", checkpoint, photos, "--out", out, "--threshold", "0.01")
    assert code == 1 and "1 of 3 images could not be read" in err and "1.png" in err
    records = json.loads((out / "predictions.json").read_text())["images"]
    assert ["error" in record for record in records] == [False, True, False]
    assert "image 2 of 3" in records[1]["error"] and "detections" not in records[1]
    assert sorted(path.name for path in out.iterdir()) == ["0.jpg", "2.jpg", "predictions.json"]
    code, _, err = run(
        capsys, "predict", checkpoint, photos / "1.png", "--out", tmp_path / "nothing"
    )
    assert code == 2 and "1.png" in err and not (tmp_path / "nothing").exists()


def test_what_is_predicted_before_an_interrupt_is_kept(tmp_path: Path) -> None:
    path, records = tmp_path / "predictions.json", list[dict[str, Any]]()
    with pytest.raises(KeyboardInterrupt), written(path, {"threshold": 0.5}, records):
        records.append({"source": "a.jpg", "detections": []})
        raise KeyboardInterrupt
    found = json.loads(path.read_text())
    assert found == {"threshold": 0.5, "finished": False, "images": records}


def test_predict_chooses_a_free_folder(
    checkpoint: Path, tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["predict", str(checkpoint), str(tiny_coco / "test"), "--no-pictures"]) == 0
    assert sorted(path.name for path in tmp_path.glob("predictions*")) == [
        "predictions",
        "predictions-2",
    ]
    assert [path.name for path in (tmp_path / "predictions-2").iterdir()] == ["predictions.json"]


def test_info_shows_environment_and_dataset(
    tiny_yolo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "info")
    assert code == 0 and torch.__version__ in out
    code, out, _ = run(capsys, "info", tiny_yolo)
    assert code == 0 and "yolo" in out and "images" in out and "green" in out


def test_the_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "rfdetr", "trian"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2 and "train" in result.stderr


def test_a_renamed_model_is_evaluated_by_its_names(
    checkpoint: Path, tiny_coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = torch.load(checkpoint, weights_only=True)
    weights["args"]["class_names"] = ["bleu", "vert", "rouge"]
    torch.save(weights, renamed := checkpoint.with_name("renamed.pth"))
    code, _, err = run(capsys, "evaluate", renamed, tiny_coco)
    assert code == 2 and "class_names= gives the data's classes the model's names" in err
    code, out, _ = run(
        capsys, "evaluate", renamed, tiny_coco, "--class-names=bleu,vert,rouge", "--json"
    )
    assert code == 0
    assert [row["name"] for row in json.loads(out)["per_class"]] == ["bleu", "vert", "rouge"]
