"""The `rfdetr` command: thin over the Python interface, one file per verb.

Exit codes: 0 done, 1 the work failed, 2 what was asked for cannot be, 130 interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

from cyclopts import App, CycloptsError
from rich.console import Console

from rfdetr._version import __version__
from rfdetr.cli.benchmark import benchmark
from rfdetr.cli.check import check
from rfdetr.cli.convert import convert
from rfdetr.cli.evaluate import evaluate
from rfdetr.cli.export import export
from rfdetr.cli.info import info
from rfdetr.cli.options import dashed, one_line
from rfdetr.cli.pack import pack
from rfdetr.cli.predict import predict
from rfdetr.cli.report import report
from rfdetr.cli.serve import serve
from rfdetr.cli.train import train
from rfdetr.cli.verify import verify_resume
from rfdetr.cli.watch import watch
from rfdetr.console import LineHandler
from rfdetr.errors import InputError, MissingPackageError, RunError

app = App(
    name="rfdetr",
    help="Fine-tune RF-DETR detectors: labelled images in, a trained detector and its proof out.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `main` answers it
)
VERBS = (train, watch, evaluate, report, predict, serve, export, benchmark)
for verb in (*VERBS, check, convert, pack, verify_resume, info):
    app.command(verb)

# What the command line asks for, or a file it names, cannot be: exit code 2.
_BAD_INPUT = (
    *(CycloptsError, InputError, ConnectionError),
    *(FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError),
)
# Work has failed for a reason that the message explains: exit code 1.
_FAILED = RunError, MissingPackageError, OSError, FloatingPointError, MemoryError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line `arguments` (`sys.argv` by default); the result is the exit code.

    A failure is one line on the error stream. An error that is none of ours (`rfdetr.errors`), nor
    the system's about a file, the network or memory, is a bug: its traceback is shown too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[LineHandler()])
    logging.getLogger("rfdetr").setLevel(logging.INFO)
    if arguments is None:
        signal.signal(signal.SIGTERM, _end)
    tokens = dashed(sys.argv[1:] if arguments is None else arguments)
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_none")
        return 0
    except BrokenPipeError:  # whoever read the output has gone: `rfdetr predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except _BAD_INPUT as error:
        text, code = one_line(error), 2
    except KeyboardInterrupt as error:
        if isinstance(error, SystemExit):  # a run that was stopped has told its line
            return 130
        text, code = "interrupted", 130
    except Exception as error:  # noqa: BLE001 - told, and ends the process
        text, code, expected = one_line(error), 1, isinstance(error, _FAILED)
        if not expected and isinstance(error, RuntimeError):
            from rfdetr.training.memory import is_out_of_memory  # of a CPU: it has no class

            expected = is_out_of_memory(error)
        if not expected:
            traceback.print_exception(error)
            text = "this is a bug, not a fault of yours: please report this with the lines above"
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"rfdetr: {text}", markup=False)
    return code


def _end(number: int, _frame: Any) -> NoReturn:
    """Ends as by an error, so that temporary files go; what saves its state first has its own."""
    raise SystemExit(128 + number)
