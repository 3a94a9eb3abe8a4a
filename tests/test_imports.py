"""Rooms import downwards only, and what is imported lazily stays unimported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rfdetr

PACKAGE = Path(rfdetr.__file__).parent
ROOMS = [  # from the ground up
    "_version",
    "errors",
    "moved",
    "main",
    "engine",
    "deploy",
    "visualize",
    "platform",
    "checks",
    "files",
    "assets",
    "datasets",
    "console",
    "compat",
    "config",
    "geometry",
    "models",
    "weights",
    "losses",
    "data",
    "utilities",
    "util",
    "doctor",
    "synthetic",
    "evaluation",
    "report",
    "training",
    "export",
    "inference",
    "predicting",
    "proof",
    "published",
    "detector",
    "variants",
    "detr",
    "serving",
    "cli",
    "__main__",
]
ALIASES = {
    "data/__init__.py": "doctor",  # earlier import paths
    "data/synthetic.py": "synthetic",
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
HEAVY = (
    "pytorch_lightning",
    "lightning",
    "matplotlib",
    "supervision",
    "scipy",
    "torch._dynamo",
    "torch._inductor",
)


def imported_names(source: str) -> Iterator[str]:
    """Absolute dotted names of every import statement, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(source: str) -> set[str]:
    parts = (name.split(".") for name in imported_names(source))
    return {
        names[1]
        for names in parts
        if names[0] == "rfdetr" and len(names) > 1 and names[1] != "__version__"
    }


def rooms_above(source: str, room: str) -> set[str]:
    return {other for other in imported_rooms(source) if ROOMS.index(other) > ROOMS.index(room)}


def offenders(broken: Callable[[Path], object]) -> dict[str, object]:
    """What `broken` finds, by module; those in which it finds nothing are left out."""
    found = {path.relative_to(PACKAGE).as_posix(): broken(path) for path in MODULES}
    return {name: what for name, what in found.items() if what}


def test_errors_for_the_user_have_classes_of_their_own() -> None:
    """Built-in ones are what a bug raises, and the command line tells them apart."""
    built_in = {"Exception", "ValueError", "TypeError", "RuntimeError", "ImportError"}

    def raised(path: Path) -> set[str]:
        errors = [
            node.exc
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Raise)
        ]
        calls = (error.func if isinstance(error, ast.Call) else error for error in errors if error)
        return {ast.unparse(call) for call in calls} & built_in

    assert offenders(raised) == {}


def test_an_upward_import_is_seen() -> None:
    inside = "def f():\n    from rfdetr.cli.train import train\n"
    source = f"{inside}import rfdetr.config\nfrom rfdetr import data"
    assert rooms_above(source, "models") == {"cli", "data"}
    assert rooms_above(source, "cli") == set()


def test_rooms_import_downwards_only() -> None:
    def upward(path: Path) -> set[str]:
        name = path.relative_to(PACKAGE)
        room = name.parts[0].removesuffix(".py")
        return rooms_above(path.read_text(), room) - {ALIASES.get(name.as_posix())}

    assert offenders(upward) == {}


def test_no_module_imports_torchvision_or_opencv() -> None:
    assert (
        offenders(
            lambda path: (
                {"torchvision", "cv2"}
                & {name.split(".")[0] for name in imported_names(path.read_text())}
            )
        )
        == {}
    )


def modules_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint('MODULES', *sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return set(result.stdout.rpartition("MODULES ")[2].split())


def test_import_rfdetr_imports_no_torch() -> None:
    assert "torch" not in modules_after("import rfdetr")


def test_the_face_imports_nothing_heavy() -> None:
    modules = modules_after("from rfdetr import RFDETRNano")
    assert "torch" in modules
    assert not modules & set(HEAVY)


def test_what_train_refuses_is_told_before_heavy_imports(tmp_path: Path) -> None:
    modules = modules_after(f"""
from rfdetr import RFDETRMini
from rfdetr.errors import InputError
model = RFDETRMini(pretrain_weights=None)
for wrong in ({{"dataset_dir": {str(tmp_path)!r}}}, {{"dataset_dir": "no-such-folder"}},
              {{"dataset_dir": ".", "epoch": 3}}, {{"dataset_dir": ".", "epochs": -1}}):
    try:
        model.train(**wrong)
    except InputError:
        continue
    raise AssertionError(wrong)
""")
    assert "rfdetr.data.layout" in modules
    assert not modules & set(HEAVY)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["predict", "--help"], ["--version"]]
)
def test_help_imports_no_torch(arguments: list[str]) -> None:
    assert "torch" not in modules_after(
        f"from rfdetr.cli import main\nassert main({arguments}) == 0"
    )


STATE = """
import logging, os, signal, sys, warnings
import numpy, PIL.Image, torch
def state():
    return [
        list(warnings.filters), dict(os.environ), sys.excepthook, sys.getrecursionlimit(),
        PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES, numpy.geterr(),
        torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_default_dtype(),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        logging.getLogger().handlers[:], logging.getLogger().level,
    ]
import PIL.ImageFile, supervision, pytorch_lightning, matplotlib
matplotlib.use("svg")
before = state()
"""


@pytest.mark.slow
def test_imports_change_nothing_process_wide() -> None:
    everything = (
        "import rfdetr, rfdetr.training\n[getattr(rfdetr, name) for name in rfdetr.__all__]\n"
    )
    check = (
        "after = state()\nassert after == before, (before, after)\n"
        "assert matplotlib.get_backend() == 'svg'"
    )
    assert "rfdetr.training.trainer" in modules_after(
        f"{STATE}{everything}import rfdetr.training.trainer\n{check}"
    )


def test_public_names_are_listed_and_resolve() -> None:
    assert set(rfdetr.__all__) <= set(dir(rfdetr))
    assert all(getattr(rfdetr, name) is not None for name in rfdetr.__all__)
    with pytest.raises(AttributeError, match="RFDETRHuge"):
        _ = rfdetr.RFDETRHuge
