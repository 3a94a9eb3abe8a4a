"""The benchmark: rows of every engine and precision, or why there are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rfdetr import RFDETRMini
from rfdetr.cli import main
from rfdetr.proof.agreement import Labelled
from rfdetr.proof.benchmark import Candidate, measure
from rfdetr.synthetic import generate

MINI = "rf-detr-mini.safetensors"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    return generate(folder, 10, classes=["disc", "kite", "pentagon"], plain=True)


def test_rows_have_costs_and_accuracy_and_reasons_stay(drawn: Path) -> None:
    model = RFDETRMini()
    fewer = RFDETRMini(num_queries=50, dec_layers=1)
    candidates = [
        Candidate({"engine": "torch"}, model.model),
        Candidate({"engine": "none"}, reason="it is not there"),
        Candidate({"engine": "torch", "queries": 50}, fewer.model),
    ]
    labelled = Labelled.open(drawn)
    rows = measure(candidates, [1, 2], labelled.paths(), labelled, turns=1)
    assert [(row["engine"], row.get("batch")) for row in rows] == [
        *(("torch", 1), ("torch", 2), ("none", None), ("torch", 1), ("torch", 2)),
    ]
    assert rows[2] == {"engine": "none", "reason": "it is not there"}
    for row in (rows[0], rows[1], *rows[3:]):
        assert all(
            row[name]["p95"] >= row[name]["median"] > 0 for name in ("predict_ms", "engine_ms")
        )
        expected = 1e3 * row["batch"] / row["predict_ms"]["median"]
        assert row["images_per_second"] == pytest.approx(expected, rel=1e-2)
        assert row["memory_mib"] == "not measured: the model is in no file"
        assert 0 < row["mAP_50_95"] <= row["mAP_50"] <= 1
    assert rows[0]["mAP_50_95"] == rows[1]["mAP_50_95"] != rows[3]["mAP_50_95"]


@pytest.mark.scheduled
def test_the_command_prints_a_table_and_why_rows_are_missing_and_writes_json(
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in ("openvino", "onnx"):  # as if they were not installed
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "table.json"
    command = ["benchmark", MINI, str(drawn), "--turns", "1", "--images", "1", "--out", str(out)]
    assert main([*command, "--dtypes", "float32,int8", "--layers", "2,1"]) == 0
    printed = capsys.readouterr().out
    for heading in ("predict", "engine", "images", "50:95"):
        assert heading in printed, printed
    assert max(map(len, printed.partition("not measured")[0].splitlines())) <= 80
    for reason in ("torch int8: dtype 'int8'", "onnx float32: ", "openvino int8: "):
        assert printed.count(f"not measured: {reason}") == 1
    assert "pip install 'rfdetr-finetune[export]'" in printed
    content = json.loads(out.read_bytes())
    rows = content["rows"]
    assert len(rows) == 3 * 2 * 2
    first, second = (row for row in rows if "reason" not in row)
    assert (first["layers"], second["layers"]) == (2, 1) and first["queries"] == 100
    assert isinstance(first["memory_mib"], float) and first["file_bytes"] > 5 * 10**6
    assert content["data"]["images"] == 1 and content["versions"] and content["machine"]
    assert main(command) == 2  # nothing is written over
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "--batch is '0'"),
        (["--batch", "many"], "--batch is 'many'"),
        (["--turns", "0"], "--turns"),
        (["--engines", "openvin"], "--engines openvin; did you mean 'openvino'?"),
        (["--dtypes", "float64"], "--dtypes float64"),
        (["--queries", "101"], "--queries 101: rf-detr-mini.safetensors has 100, and no more"),
        (["--layers", "3"], "--layers 3: rf-detr-mini.safetensors has 2, and no more"),
        (["absent"], "absent: no such folder"),
    ],
)
def test_what_cannot_be_is_one_line_and_code_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    positional = [option for option in options if not option.startswith("-")][:1]
    arguments = options if options[0].startswith("-") else positional
    assert main(["benchmark", MINI, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
