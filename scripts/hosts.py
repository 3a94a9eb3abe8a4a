"""Training on several hosts, tried on one machine: each host is a network namespace with an address
of its own, and a switch connects them.

python scripts/hosts.py [--hosts 2] [--folder FOLDER]; needs Linux, root and iproute2. A tiny model
is trained by one process, then by `torchrun --nnodes` on all hosts, three times: undisturbed; with
the last host on a slow wire and frozen for a while; and with the last host killed in the midst (all
of its processes at once, as by a power cut) and started again, while the others wait. All must end
with the figures of one process, and the last two with the first one's weights: to the bit, but on
more than two hosts after a restart in all but their last digits. The answer is a line for each run;
exit code 3: there are no namespaces here, and why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rfdetr.synthetic import generate

LIMIT = 400  # seconds of a run
IMAGES, EPOCHS, BATCH = 20, 3, 4
SAME = ("val/mAP_50_95", "val/loss", "train/loss", "val/F1")
# What a user's script says: the same the first time and after each restart.
SCRIPT = """
import json, sys
from rfdetr import RFDETRMini

settings = json.loads(sys.argv[1])
RFDETRMini(**settings["model"]).train(**settings["train"], resume="last")
"""
MODEL = {"resolution": 96, "num_queries": 50, "num_select": 50, "amp": False}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "eth0",
    # Else a host that joins again waits for an address that the first one has told once and for
    # all (PyTorch 2.13): the store of the rendezvous is not used for the processes too.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


def ip(*words: str) -> None:
    """Runs iproute2; its words are in the error."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip() or done.returncode}")


@contextlib.contextmanager
def network(hosts: int) -> Iterator[list[str]]:
    """Names of namespaces with the addresses 10.77.0.1, .2, ...; the last one's wire is slow if
    `slow_down` is called.
    """
    switch, *names = (f"rf{os.getpid()}-{place}" for place in ("switch", *range(hosts)))
    with contextlib.ExitStack() as stack:
        for name in (switch, *names):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge0", "up")
        for number, name in enumerate(names):
            port = f"port{number}"
            peer = ("peer", "name", port, "netns", switch)
            ip("link", "add", "eth0", "netns", name, "type", "veth", *peer)
            ip("-n", switch, "link", "set", port, "master", "bridge0", "up")
            ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield names


class Run:
    """A run of all hosts in a folder that they share."""

    def __init__(self, names: list[str], folder: Path, settings: dict[str, Any]) -> None:
        self.names, self.folder = names, folder
        self.settings = {**settings, "output_dir": str(folder / "output")}
        self.settings["batch_size"] = BATCH // max(len(names), 1)
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
        self.running = [self.start(number) for number in range(max(len(names), 1))]

    def start(self, number: int) -> subprocess.Popen[bytes]:
        """Starts a host's torchrun; without hosts, the script alone."""
        content = json.dumps({"model": MODEL, "train": self.settings})
        command = [sys.executable, "train.py", content]
        if self.names:
            command = [
                *("ip", "netns", "exec", self.names[number], sys.executable),
                *("-m", "torch.distributed.run", f"--nnodes={len(self.names)}"),
                *("--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"),
                *("--rdzv-id=hosts", "--rdzv-endpoint=10.77.0.1:29400"),
                f"--rdzv-conf=is_host={int(number == 0)}",  # all have the machine's name here
                *(f"--local-addr=10.77.0.{number + 1}", *command[1:]),
            ]
        environment = {**os.environ, **ENVIRONMENT}
        with (self.folder / f"host{number}.txt").open("ab") as log:
            how: dict[str, Any] = {"cwd": self.folder, "env": environment, "stdout": log}
            return subprocess.Popen(command, **how, stderr=log, start_new_session=True)

    def signal(self, number: int, what: signal.Signals) -> None:
        """All processes of a host at once: its workers have process groups of their own."""
        listed = ["ip", "netns", "pids", self.names[number]]
        found = subprocess.run(listed, capture_output=True, text=True, check=True)
        for process in map(int, found.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, what)

    def wait_for(self, steps: int) -> None:
        """Returns once so many optimizer steps are in the folder's figures."""
        path, until = self.folder / "output" / "metrics.jsonl", time.monotonic() + LIMIT
        while time.monotonic() < until:
            lines = path.read_text().splitlines() if path.exists() else []
            if any(json.loads(line).get("step", 0) >= steps for line in lines[:-1]):
                return
            if all(process.poll() is not None for process in self.running):
                break
            time.sleep(0.2)
        raise SystemExit(f"{path}: no step {steps}; see {self.folder}/host*.txt")

    def finish(self) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """The figures of the last epoch, and the weights."""
        for number, process in enumerate(self.running):
            if process.wait(LIMIT):
                text = (self.folder / f"host{number}.txt").read_text()[-3000:]
                raise SystemExit(f"host {number} ended with {process.returncode}:\n{text}")
        output = self.folder / "output"
        last = json.loads((output / "log.txt").read_text().splitlines()[-1])
        content = torch.load(output / "last.ckpt", map_location="cpu", weights_only=True)
        return {name: last[name] for name in SAME if name in last}, content["model"]

    def kill(self) -> None:
        for number, process in enumerate(self.running):
            if process.poll() is None:
                if self.names:
                    self.signal(number, signal.SIGKILL)
                process.kill()
                process.wait()


def disturb(run: Run, how: str) -> None:
    """What happens to the last host after the first epoch."""
    last = len(run.names) - 1
    if how == "slow":
        shape = "root", "tbf", "rate", "50mbit", "burst", "64kb", "latency", "400ms"
        wire = ["tc", "-n", run.names[last], "qdisc", "add", "dev", "eth0", *shape]
        subprocess.run(wire, check=True)
    run.wait_for(IMAGES // BATCH)
    if how == "slow":
        run.signal(last, signal.SIGSTOP)
        time.sleep(10)
        run.signal(last, signal.SIGCONT)
    if how == "killed":
        run.signal(last, signal.SIGKILL)
        run.running[last].wait()
        time.sleep(5)
        run.running[last] = run.start(last)


def compare(hosts: int, folder: Path) -> None:
    """All runs; `SystemExit` where one differs."""
    data = generate(folder / "data", IMAGES * 10 // 7, sides=(96, 128), plain=True)
    settings = {
        "dataset_dir": str(data), "epochs": EPOCHS, "grad_accum_steps": 1, "num_workers": 0,
        "seed": 7, "lr": 1e-5, "lr_encoder": 1e-5, "multi_scale": False, "accelerator": "cpu",
        "run_test": False, "checkpoint_every_n_steps": 1, "progress_bar": False,
    }  # fmt: skip
    expected: dict[str, float] = {}
    weights: dict[str, torch.Tensor] = {}
    for how in ("alone", "undisturbed", "slow", "killed"):
        with network(hosts if how != "alone" else 0) as names:
            started = time.monotonic()
            run = Run(names, folder / how, settings)
            try:
                if how in ("slow", "killed"):
                    disturb(run, how)
                figures, found = run.finish()
            finally:
                run.kill()
        row: dict[str, Any] = {"run": how, "hosts": max(len(names), 1)}
        print(json.dumps({**row, **figures, "seconds": round(time.monotonic() - started)}))
        expected = expected or figures
        for name, value in expected.items():
            if not abs(figures[name] - value) <= 1e-5 * abs(value) + 1e-7:
                raise SystemExit(f"{how}: {name} is {figures[name]}, alone it was {value}")
        weights = found if how == "undisturbed" else weights
        # Of more than two summands the order counts, and the first step of a restart adds up
        # gradients in other groups than those that DDP has formed by then.
        slack = 1e-6 if how == "killed" and hosts > 2 else 0.0
        for name, tensor in weights.items():
            if not torch.allclose(tensor.double(), found[name].double(), rtol=0, atol=slack):
                raise SystemExit(f"{how}: {name} is not that of the undisturbed hosts")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=2, choices=(2, 4))
    parser.add_argument("--folder", type=Path, help="new folder for what the runs leave")
    args = parser.parse_args()
    try:
        with network(1):
            pass
    except OSError as error:
        print(f"no network namespaces here: {error}")
        return 3
    with tempfile.TemporaryDirectory() as place:
        compare(args.hosts, args.folder or Path(place))
    return 0


if __name__ == "__main__":
    sys.exit(main())
