"""The `rfdetr` command: thin over the Python interface, one file per verb. Exit codes: 1 failure, 2 bad input."""

from __future__ import annotations

import io
import logging
import sys

from cyclopts import App, CycloptsError
from rich.console import Console

from rfdetr._version import __version__
from rfdetr.cli.check import check
from rfdetr.cli.evaluate import evaluate
from rfdetr.cli.info import info
from rfdetr.cli.options import UsageError, dashed, one_line
from rfdetr.cli.predict import predict
from rfdetr.cli.train import train
from rfdetr.cli.verify import verify_resume

app = App(
    name="rfdetr",
    help="Fine-tune RF-DETR detectors: labelled images in, a trained detector and its proof out.",
    version=__version__,
    help_format="plaintext",
)
for verb in (train, evaluate, predict, check, verify_resume, info):
    app.command(verb)


# What the command line asks for, or a file it names, cannot be; everything else is a failure while working.
_BAD_INPUT = (
    *(CycloptsError, UsageError, ValueError, TypeError, ConnectionError),
    *(FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the result is the exit code. A failure is one line on the error stream, no traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("rfdetr").setLevel(logging.INFO)
    tokens = dashed(sys.argv[1:] if arguments is None else arguments)
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_none")
    except _BAD_INPUT as error:
        return _complain(error, 2)
    except (RuntimeError, OSError, ArithmeticError, MemoryError, ImportError) as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain(KeyboardInterrupt("interrupted"), 130)
    return 0


def _complain(error: BaseException, code: int) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"rfdetr: {one_line(error)}", markup=False)
    return code
