"""Runs scripts in processes that fork from this one, which has imported what takes longest: that is
longer than the tiny runs take themselves.

Each line it reads is a JSON object: "command" (script and arguments), "folder", "output" (the path
of a file for all that is printed) and "ranks", the environment of each process. The line that it
answers is 0 where all succeeded; else all are ended, as torchrun does it, and it is 1.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import traceback

import pytorch_lightning as pl
import torch.distributed.fsdp

import rfdetr.detector
import rfdetr.training

IMPORTED = pl, torch.distributed.fsdp, rfdetr.detector, rfdetr.training


def run(command: list[str], folder: str, output: str, environment: dict[str, str]) -> None:
    """The script as the main program of this process, which ends with it."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    code = 1
    try:
        os.chdir(folder)
        os.environ.update(environment)
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)


def run_all(command: list[str], folder: str, output: str, ranks: list[dict[str, str]]) -> int:
    running = set()
    for environment in ranks:
        process = os.fork()
        if process == 0:
            run(command, folder, output, environment)
        running.add(process)
    failed = 0
    while running:
        process, status = os.wait()
        running.discard(process)
        if status and not failed:
            failed = 1
            for other in running:
                os.kill(other, signal.SIGKILL)
    return failed


for line in sys.stdin:
    print(run_all(**json.loads(line)), flush=True)
