"""Every benchmark in turn, as a table like the README's.

python benchmarks/run.py
python benchmarks/run.py --python other/bin/python     # another interpreter, and the ratios
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = {
    "import, first prediction": ["start.py"],
    "predict, float32": ["predict.py"],
    "predict, optimised bfloat16": ["predict.py", "--optimize", "bfloat16"],
    "training step, defaults": ["train_step.py"],
    "training step, both bfloat16": ["train_step.py", "--precision", "bfloat16"],
    "training step, both float32": ["train_step.py", "--precision", "float32"],
    "predict, segmentation": ["predict.py", "--variant", "seg-nano"],
    "predict, segmentation, 100 masks": ["predict.py", "--variant", "seg-nano", "--threshold", "0"],
    "training step, segmentation": ["train_step.py", "--variant", "seg-nano"],
    "training step, segmentation, 50 objects": [
        "train_step.py",
        "--variant",
        "seg-nano",
        "--objects",
        "50",
    ],
    "loader": ["loader.py"],
    "evaluation": ["evaluation.py"],
    "index of 100,000 images": ["index.py"],
}
OURS_ALONE = {"evaluation.py", "index.py"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="another interpreter to compare with, in alternation")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for name, (script, *options) in RUNS.items():
        command = [sys.executable, str(HERE / script), *options, "--rounds", str(args.rounds)]
        if args.python and script not in OURS_ALONE:
            command += ["--python", args.python]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        line = done.stdout.strip().splitlines()[-1]
        print(line, flush=True)
        result = json.loads(line)
        for key, value in result["ours"].items():
            other, ratio = (result.get(part, {}).get(key, "") for part in ("other", "ratio"))
            other = format(other, "g") if other != "" else other
            rows.append(f"| {name} | {key} | {value:g} | {other} | {ratio} |")
    print("\n| benchmark | figure | this project | other | ratio |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
