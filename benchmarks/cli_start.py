"""How long `kerasmtl --help` takes, against importing cookiecutter alone.

    python benchmarks/cli_start.py [--runs 15]

Runs both in turn, whole processes, and prints a markdown table of medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "kerasmtl --help": [str(Path(sys.executable).parent / "kerasmtl"), "--help"],
    'python -c "import cookiecutter.main"': [sys.executable, "-c", "import cookiecutter.main"],
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    for command in COMMANDS.values():
        seconds(command)
    rounds = [[seconds(command) for command in COMMANDS.values()] for _ in range(runs)]
    print("| command | median of", runs, "runs (s) | min | max |")
    print("|---|---|---|---|")
    for name, times in zip(COMMANDS, zip(*rounds, strict=True), strict=True):
        print(
            f"| `{name}` | {statistics.median(times):.3f} | {min(times):.3f} | {max(times):.3f} |"
        )
    ratio = statistics.median(first / second for first, second in rounds)
    print(f"| ratio, median of pairs | {ratio:.2f} | | |")


if __name__ == "__main__":
    main()
