"""The figures of the house and its limits: prints the figures, exits with 1 where one is passed.

    python scripts/house.py

Lines by room (blank lines and notes included), notes (docstrings and comments) as a share of the
lines that are not blank, wide lines, short private functions with a single caller, and the two
walks, traced on a real run: the own frames from `train()` down to the class loss, and the own files
that a `predict()` enters.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import logging
import re
import sys
import tempfile
import threading
import tokenize
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import rfdetr

PACKAGE = Path(rfdetr.__file__).parent

MOST_LINES = {  # by room, none of which may grow; the files beside the rooms are together "top"
    "assets": 40,
    "cli": 1555,
    "config": 1399,
    "data": 3803,
    "data/augmentation": 515,
    "data/formats": 1306,
    "datasets": 200,
    "doctor": 1395,
    "evaluation": 1750,
    "export": 1388,
    "geometry": 465,
    "inference": 1352,
    "losses": 455,
    "models": 1205,
    "proof": 745,
    "report": 2170,
    "serving": 800,
    "synthetic": 665,
    "top": 1992,
    "training": 4187,
    "training/callbacks": 1878,
    "util": 20,
    "utilities": 30,
    "weights": 1405,
}
LONGEST = 400  # lines of a file
WIDEST = 100
PRAGMA = re.compile(r"  # (type: ignore|noqa|fmt: skip).*")  # may stand past the last column
NOTES = (0.15, 0.20)
SHORT = 6  # lines of a private function that must have more than one caller
MOST_FRAMES = 6
MOST_FILES = 10

KEPT = {
    "_normalization": "is cached, once for each device and dtype",
    "_grain": "names the noise that its formula makes",
    "_is_temporary": "names the errors after which another attempt may help",
}
"""Short private functions with one caller that stay, and why."""


class Figures(NamedTuple):
    """What is counted in one file or room."""

    files: int
    lines: int
    filled: int  # not blank
    notes: int
    wide: int
    functions: int

    def __add__(self, other: Figures) -> Figures:  # type: ignore[override]
        return Figures(*map(sum, zip(self, other, strict=True)))


def figures_of(path: Path) -> Figures:
    """Counts one file."""
    source = path.read_text()
    lines, tree = source.splitlines(), ast.parse(source)
    notes = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            notes |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            notes.add(token.start[0])
    filled = {number for number, line in enumerate(lines, 1) if line.strip()}
    functions = sum(isinstance(node, ast.FunctionDef) for node in ast.walk(tree))
    wide = sum(len(PRAGMA.sub("", line)) > WIDEST for line in lines)
    return Figures(1, len(lines), len(filled), len(notes & filled), wide, functions)


def room_of(path: Path) -> str:
    """The folder of a file under the package; files without one are together "top"."""
    return path.parent.relative_to(PACKAGE).as_posix().replace(".", "top", 1)


def figures_by_room() -> dict[str, Figures]:
    rooms: dict[str, Figures] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room, figures = room_of(path), figures_of(path)
        rooms[room] = rooms[room] + figures if room in rooms else figures
    return rooms


def short_hops() -> list[str]:
    """Private functions of `SHORT` lines or fewer that are used once, by a call: "file:line name".

    A function that a table names, or that overrides another's, is no hop.
    """
    places, uses, called = {}, Counter[str](), set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and re.match(r"_[^_]", node.name):
                if (node.end_lineno or node.lineno) - node.lineno < SHORT:
                    places[node.name] = f"{path.relative_to(PACKAGE)}:{node.lineno}"
            elif isinstance(node, ast.Name | ast.Attribute):
                uses[name_of(node)] += 1
            elif isinstance(node, ast.Call) and not ast.unparse(node.func).startswith("super()"):
                called.add(name_of(node.func))
    hops = (name for name in places if uses[name] == 1 and name in called - KEPT.keys())
    return [f"{places[name]} {name}" for name in hops]


def name_of(node: ast.AST) -> str:
    """The last part of a dotted name; empty for what is none."""
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def own_file(frame: FrameType) -> str | None:
    """A frame's file under the package; None where it is another's."""
    name = frame.f_code.co_filename
    return name[len(str(PACKAGE)) + 1 :] if name.startswith(str(PACKAGE)) else None


def traced(work: Callable[[], object], enter: Callable[[FrameType, str], object]) -> None:
    """Runs `work`; calls `enter(frame, file)` for each own function it enters, in any thread."""

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (file := own_file(frame)) is not None:
            enter(frame, file)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def stack_of(frame: FrameType | None) -> Iterator[str]:
    """The own functions on the stack, innermost first, without comprehensions."""
    while frame is not None:
        if own_file(frame) is not None and not frame.f_code.co_name.startswith("<"):
            yield frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name
        frame = frame.f_back


class Reached(Exception):
    """Ends a traced run: what it was for has been seen."""


def walks(folder: Path) -> tuple[list[str], dict[str, set[str]]]:
    """Own frames from `train()` to the class loss; functions by file that a `predict()` enters."""
    from rfdetr import RFDETRMini
    from rfdetr.synthetic.generate import generate

    data = generate(folder / "data", 8)
    deepest: list[str] = []

    def enter_training(frame: FrameType, file: str) -> None:
        if file == "losses/criterion.py" and "class_loss" in frame.f_code.co_name:
            deepest.extend(reversed([*stack_of(frame)]))
            raise Reached

    model = RFDETRMini(pretrain_weights=None, resolution=64)
    run = {"dataset_dir": data, "output_dir": folder / "run", "epochs": 1, "num_workers": 0}
    with contextlib.suppress(Reached):
        traced(lambda: model.train(**run, batch_size=1), enter_training)

    entered: dict[str, set[str]] = defaultdict(set)
    image = next((data / "test").glob("*.jpg"))
    model.predict(image)  # what loads at the first time only is no part of a request
    traced(
        lambda: model.predict(image),
        lambda frame, file: entered[file].add(frame.f_code.co_name),
    )
    return deepest, dict(entered)


def main() -> int:
    parser = argparse.ArgumentParser(description="figures and limits of the package's source")
    parser.add_argument("--no-walks", action="store_true", help="count only: nothing is run")
    arguments = parser.parse_args()
    wrong = []

    rooms = figures_by_room()
    print(
        f"{'room':20}{'files':>7}{'lines':>8}{'limit':>8}{'notes':>8}{'wide':>6}{'functions':>11}"
    )
    for room, figures in [*sorted(rooms.items()), ("all", sum(rooms.values(), Figures(*[0] * 6)))]:
        limit = MOST_LINES.get(room, sum(MOST_LINES.values()))
        share = figures.notes / figures.filled
        row = f"{figures.lines:8,}{limit:8,}{share:8.1%}{figures.wide:6}{figures.functions:11}"
        print(f"{room:20}{figures.files:7}{row}")
        wrong += [f"{room} has {figures.lines} lines"] * (figures.lines > limit)
        wrong += [f"{room} has {figures.wide} lines wider than {WIDEST}"] * bool(figures.wide)
    if not NOTES[0] <= share <= NOTES[1]:
        wrong.append(f"{share:.1%} of the lines are notes")

    for path in sorted(PACKAGE.rglob("*.py")):
        if (lines := len(path.read_text().splitlines())) > LONGEST:
            wrong.append(f"{path.relative_to(PACKAGE)} has {lines} lines: split it")

    hops = short_hops()
    print(f"private functions of {SHORT} lines or fewer with one caller: {len(hops)}")
    wrong += [f"{hop} has one caller and {SHORT} lines or fewer: inline it" for hop in hops]

    if not arguments.no_walks:
        logging.disable()
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            frames, entered = walks(Path(folder))
        functions = sum(map(len, entered.values()))
        print(f"own frames from train() to the class loss: {len(frames)}: {' > '.join(frames)}")
        print(
            f"own files of a predict: {len(entered)}, {functions} functions: {', '.join(entered)}"
        )
        wrong += [f"{len(frames)} frames from train() to the class loss"] * (
            len(frames) > MOST_FRAMES
        )
        wrong += [f"{len(entered)} files on the way of a predict"] * (len(entered) > MOST_FILES)

    print(*(f"over the limit: {line}" for line in wrong), sep="\n", end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
