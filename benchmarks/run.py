"""Every benchmark in turn, as the README's table: figure, spread, command; and the machine.

python benchmarks/run.py
python benchmarks/run.py --python other/bin/python      # another interpreter, and the ratios
python benchmarks/run.py --only loader --rounds 1       # what has the word in its command
python benchmarks/run.py --write README.md              # into the page, between its two marks

The marks are the lines `<!-- figures -->` and `<!-- end of figures -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
MARKED = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)
DEFAULTS = "defaults (here bfloat16 where the processor has it)"


class Row(NamedTuple):
    """A line of the table: what it is, the figure's key in the script's answer, its command."""

    name: str
    key: str
    command: str


STEP, SEG = "train_step.py", "train_step.py --variant seg-nano"
PREDICT = "predict.py --variant seg-nano"
ROWS = [
    Row("`import rfdetr`, s", "import_s", "start.py"),
    Row("start to first prediction, s", "first_prediction_s", "start.py"),
    Row("`predict`, float32, ms", "predict_ms", "predict.py"),
    Row("`predict`, optimised bfloat16, ms", "predict_ms", "predict.py --optimize bfloat16"),
    Row("memory of a process that predicts, GB", "peak_memory_gb", "predict.py"),
    Row(f"training step, {DEFAULTS}, s", "step_s", STEP),
    Row("its peak memory, GB", "peak_memory_gb", STEP),
    Row("training step, both bfloat16, s", "step_s", f"{STEP} --precision bfloat16"),
    Row("training step, both float32, s", "step_s", f"{STEP} --precision float32"),
    Row("peak memory of it, float32, GB", "peak_memory_gb", f"{STEP} --precision float32"),
    Row("`RFDETRSegNano` `predict`, float32, ms", "predict_ms", PREDICT),
    Row("the same, of 100 masks, ms", "predict_ms", f"{PREDICT} --threshold 0"),
    Row("`RFDETRSegNano` training step, defaults, s", "step_s", SEG),
    Row("the same, of 50 objects, s", "step_s", f"{SEG} --objects 50"),
    Row("its peak memory, GB", "peak_memory_gb", f"{SEG} --objects 50"),
    Row("loader, 640x480, images/s", "images_per_s_640x480", "loader.py"),
    Row("loader, 1920x1080, images/s", "images_per_s_1920x1080", "loader.py"),
    Row("evaluation of 5,000 images, s", "evaluate_s", "evaluation.py"),
    Row("its memory, GB", "peak_gb", "evaluation.py"),
    Row("index of 100,000 images, s", "index_s", "index.py"),
    Row("the index, MB", "index_mb", "index.py"),
    Row("server, 64 clients, answers/s", "per_s", "serve.py"),
    Row("its share of the bare network", "of_network", "serve.py"),
    Row("its slowest of a hundred, ms", "p99_ms", "serve.py"),
]
OURS_ALONE = {"evaluation.py", "index.py", "serve.py"}


def machine() -> str:
    """The processor and what computes, in a sentence."""
    import torch

    from rfdetr.proof.measuring import machine as facts_of
    from rfdetr.proof.measuring import versions

    facts = facts_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    about = ", ".join(facts["instructions"]) or "no vector instructions that are told"
    where = f"{facts['processor']} ({facts['cores']} cores; {about})"
    where += f" and {facts['gpu']}" if "gpu" in facts else ""
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"Measured on {where}, with {used}."


def measure(command: str, rounds: int, python: str | None) -> dict[str, Any] | None:
    """The answer of a script, which is printed too; None where it fails, which is told."""
    script, *options = command.split()
    line = [sys.executable, str(HERE / script), *options, "--rounds", str(rounds)]
    if python and script not in OURS_ALONE:
        line += ["--python", python]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{' '.join(line)} failed:\n{done.stderr[-3000:]}", file=sys.stderr, flush=True)
        return None
    answer = done.stdout.strip().splitlines()[-1]
    print(answer, file=sys.stderr, flush=True)
    result: dict[str, Any] = json.loads(answer)
    return result


def shown(value: float) -> str:
    """Three digits, but no power of ten."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def line_of(row: Row, result: dict[str, Any], compared: bool) -> str:
    """A line of the table."""
    least, most = map(shown, result["spread"][row.key])
    cells = [row.name, shown(result["ours"][row.key]), f"{least} to {most}"]
    if compared:
        other, ratio = (result.get(part, {}).get(row.key, "") for part in ("other", "ratio"))
        cells += [shown(other) if other != "" else "", str(ratio)]
    return f"| {' | '.join([*cells, f'`{row.command}`'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="another interpreter to compare with, in alternation")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each")
    parser.add_argument("--only", default="", help="a word of the commands to run")
    parser.add_argument("--write", type=Path, help="page that gets the table between its marks")
    args = parser.parse_args()
    page = args.write.read_text(encoding="utf-8") if args.write else ""
    if args.write and not MARKED.search(page):
        print(f"{args.write} has no marks: the table is printed only", file=sys.stderr)
    rows = [row for row in ROWS if args.only in row.command]
    results: dict[str, dict[str, Any]] = {}
    for command in dict.fromkeys(row.command for row in rows):
        if answer := measure(command, args.rounds, args.python):
            results[command] = answer
    heads = ["figure", "this project", "spread", *["other", "ratio"] * bool(args.python), "command"]
    table = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    measured = [row for row in rows if row.command in results]
    table += [line_of(row, results[row.command], bool(args.python)) for row in measured]
    told = f"{machine()} Medians of {args.rounds} processes each; commands are in `benchmarks/`."
    text = "\n".join([textwrap.fill(told, 125), "", *table])
    print(text)
    if args.write:
        written = MARKED.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)
        args.write.write_text(written, encoding="utf-8")
    if failed := sorted({row.command for row in rows} - results.keys()):
        sys.exit(f"failed, and not in the table: {', '.join(failed)}")


if __name__ == "__main__":
    main()
