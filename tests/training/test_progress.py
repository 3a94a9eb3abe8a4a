"""What a run shows: to a program that has not set up logging, to one that has, and on a terminal of
80 columns.
"""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from rfdetr.console import lines_shown

SCRIPT = """
import logging
from rfdetr import RFDETRMini
RFDETRMini(resolution=64, num_select=20).train(
    dataset_dir={data!r}, output_dir={out!r}, epochs=9, batch_size=2, grad_accum_steps=1,
    num_workers=0, run_test=False,
    early_stopping=True, early_stopping_patience=1, early_stopping_min_delta=0.9,
)
print("after", logging.getLogger("rfdetr").handlers, logging.getLogger("rfdetr").level)
"""
LINE = r"epoch {}/9, loss \d+\.\d+, mAP \d\.\d+, EMA mAP \d\.\d+, 0:\d\d:\d\d"


@pytest.fixture
def script(tiny_coco: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "script.py").write_text(
        SCRIPT.format(data=str(tiny_coco), out=str(tmp_path / "out"))
    )
    return [sys.executable, str(tmp_path / "script.py")]


@pytest.mark.scheduled
def test_a_plain_script_off_a_terminal_is_told_all(script: list[str]) -> None:
    run = subprocess.run(script, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    wanted = [
        "class-missing",  # a warning of the data
        "Training plan",
        r"adapted +position grid 16 x 16 -> 4 x 4 \(1\), class head 111 -> 4 logits",
        LINE.format(1) + r", about 0:\d\d:\d\d left\n",
        r"stopping early: in 1 evaluations mAP has not risen by more than 0.9",
        LINE.format(2) + r"\n",
        "Training finished",
        r"after \[\] 0",
    ]
    assert re.search(".*".join(wanted), run.stdout, re.DOTALL), run.stdout
    assert len(re.findall(r"epoch \d/9", run.stdout)) == 2 and "epoch 1/9" not in run.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_shows_a_bar_within_80_columns_and_keeps_a_line_of_each_epoch(
    script: list[str],
) -> None:
    shown = _on_terminal(script)
    bars = [part for part in re.split(r"[\r\n]", shown) if "%|" in part]
    widths = [len(re.sub(r"\x1b\[\w", "", bar)) for bar in bars]
    assert max(widths) <= 80
    assert any(
        re.match(r"epoch 1/9: 100%\|█+\| 5/5 \[00:\d\d<00:00, loss=", bar) for bar in bars
    ), bars
    assert {bar[:9] for bar in bars if bar.startswith("epoch")} == {"epoch 1/9", "epoch 2/9"}
    for epoch in (1, 2):  # on a line that was blank, and nothing writes over it
        assert re.search(rf"\r *\r{LINE.format(epoch)}[^\r\n]*\r\n", shown), shown
    assert shown.index("mAP has not risen") < shown.index("Training finished")


def _on_terminal(command: list[str]) -> str:
    import fcntl
    import pty
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower) as process:
        os.close(follower)
        parts = []
        try:
            while part := os.read(leader, 65536):
                parts.append(part)
        except OSError:  # the way in which Linux says that nobody writes there any more
            pass
    os.close(leader)
    assert process.returncode == 0
    return b"".join(parts).decode()


def test_a_line_stands_above_a_bar_of_rich(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    screen = io.StringIO()
    with lines_shown(), Progress(console=Console(file=screen, force_terminal=True)):
        logging.getLogger("rfdetr").warning("epoch 1/9")
    assert "epoch 1/9\n" in screen.getvalue()
    assert "epoch 1/9" not in capsys.readouterr().out  # where the bar would write over it


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_a_program_that_has_set_up_logging_sees_its_own_lines_alone(
    make_run: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    level: int,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(stream)])
    monkeypatch.setattr(logging.root, "level", level)
    # A test of the command line sets it.
    monkeypatch.setattr(logging.getLogger("rfdetr"), "level", logging.NOTSET)
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]  # of the levels in force
    make_run(epochs=1, run_test=False).fit()
    assert stream.getvalue().count("epoch 1/1") == (level == logging.INFO)
    assert "epoch 1/1" not in capsys.readouterr().out


def test_own_objects_show_their_lines_too(
    make_run: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    run = make_run(epochs=1, run_test=False, progress_bar=False).fit()
    assert capsys.readouterr().out.count("epoch 1/1, loss") == 1
    assert run.trainer.progress_bar_callback is None
    assert logging.getLogger("rfdetr").handlers == []
