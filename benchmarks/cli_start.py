"""How long `kerasmtl --help` takes, against importing cookiecutter alone.

    python benchmarks/cli_start.py [--runs 15] [--write]

Runs both in turn, whole processes; medians and the ratio pair by pair.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

HEADING = "## Command line: how long until `--help`"
COMMANDS = {
    "kerasmtl --help": [str(Path(sys.executable).parent / "kerasmtl"), "--help"],
    'python -c "import cookiecutter.main"': [sys.executable, "-c", "import cookiecutter.main"],
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def section(rounds: list[list[float]], machine: str) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"| command | median of {len(rounds)} runs (s) | min | max |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, times in zip(COMMANDS, zip(*rounds, strict=True), strict=True):
        middle = statistics.median(times)
        lines.append(f"| `{name}` | {middle:.3f} | {min(times):.3f} | {max(times):.3f} |")
    ratio = statistics.median(first / second for first, second in rounds)
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/cli_start.py --write`, {time.strftime('%Y-%m-%d')}, {machine}, "
            f"Python {platform.python_version()}.",
            "\n".join(lines),
            f"Ratio, median of the pairs: {ratio:.2f} (2.00 or less is wanted).",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    for command in COMMANDS.values():
        seconds(command)
    rounds = [[seconds(command) for command in COMMANDS.values()] for _ in range(args.runs)]
    text = section(rounds, args.machine)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
