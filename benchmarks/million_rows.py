"""How long a CSV of 1,000,000 rows and 20 tasks takes: to read, check and split, and what memory.

    python benchmarks/million_rows.py [--rows 1000000] [--tasks 20] [--write]

The file is generated in a temporary folder; a child process does the work. The images do not
exist: what is checked is every cell, duplicates, coverage and the audit of missing labels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HEADING = "## A CSV of a million rows"
SECONDS, GIGABYTES = 60, 2
BLOCK = 50_000


def write_csv(path: Path, rows: int, tasks: int) -> None:
    """Binary tasks, 1 % to 50 % positive, 5 % to 95 % known, with groups of about ten rows."""
    rng = np.random.default_rng(0)
    positive = np.geomspace(0.01, 0.5, tasks)
    known = rng.permutation(np.linspace(0.05, 0.95, tasks))
    with path.open("w") as file:
        file.write(",".join(["image", "patient", *(f"task{at}" for at in range(tasks))]) + "\n")
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            cells = np.where(rng.random((count, tasks)) < positive, "1", "0")
            cells[rng.random((count, tasks)) >= known] = "?"
            patients = rng.integers(0, max(rows // 10, 1), count)
            file.writelines(
                f"images/{start + at:07d}.jpg,p{patients[at]},{','.join(row)}\n"
                for at, row in enumerate(cells)
            )


def work(path: str) -> None:
    """The child: prints seconds by step, the worst deviation of a share, and peak memory."""
    steps: dict[str, float] = {}
    began = time.perf_counter()

    def done(step: str) -> None:
        nonlocal began
        steps[step] = time.perf_counter() - began
        began = time.perf_counter()

    from kerasmtl.data.manifest import Manifest

    done("import")
    manifest = Manifest.from_csv(path, group_column="patient")
    done("read, every cell and duplicates checked")
    manifest.coverage()
    manifest.class_faults()
    manifest.audit()
    done("coverage and audit")
    from dataclasses import replace

    worst = {}
    for name, by, source in [
        ("stratified", "stratified", replace(manifest, groups=None)),
        ("stratified, groups", "stratified", manifest),
        ("hash", "hash", manifest),
    ]:
        began = time.perf_counter()
        parts = source.split(by=by)
        done(f"split, {name}")
        worst[name] = deviation(manifest.labels, [part.labels for part in parts])
        del parts
    began = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"steps": steps, "peak": peak, "worst": worst}))


def deviation(labels: np.ndarray, parts: list[np.ndarray]) -> int:
    """The largest difference, in rows, of a part's positives or negatives from its share."""
    return max(
        round(
            float(np.abs((part == a).sum(0) - (labels == a).sum(0) * len(part) / len(labels)).max())
        )
        for part in parts
        for a in (0, 1)
    )


def section(rows: int, tasks: int, size: int, found: dict, machine: str) -> str:
    """The section of RESULTS.md."""
    lines = ["| step | seconds |", "| --- | ---: |"]
    lines += [f"| {step} | {seconds:.1f} |" for step, seconds in found["steps"].items()]
    whole = sum(found["steps"].values())
    lines.append(f"| **all, with every split** ({SECONDS} or less is wanted) | {whole:.1f} |")
    worst = "; ".join(f"{name} {rows_:,}" for name, rows_ in found["worst"].items())
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/million_rows.py --write`, {time.strftime('%Y-%m-%d')}, {machine}, "
            f"Python {platform.python_version()}. {rows:,} rows, {tasks} tasks, "
            f"{size / 2**20:.0f} MiB of text.",
            "\n".join(lines),
            f"Peak memory: {found['peak']:.2f} GiB ({GIGABYTES} or less is wanted). Largest "
            f"deviation of a part's positives or negatives from its share, in rows: {worst}.",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return work(args.child)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.csv"
        write_csv(path, args.rows, args.tasks)
        size = path.stat().st_size
        command = [sys.executable, __file__, "--child", str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    text = section(args.rows, args.tasks, size, json.loads(done.stdout), args.machine)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
