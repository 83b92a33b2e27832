"""`kerasmtl serve` under concurrent clients on loopback: failures, latency, throughput, memory.

    python benchmarks/serving.py [--seconds 60] [--clients 32] [--write]

The model is the tiny backbone with the tasks of the street scenes, untrained: weights do not
change the speed. Each client sends one image of the street scenes per request, over one
connection, and waits for the answer. "One at a time" is one client, with and without batching.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HEADING = "## Serving: concurrent clients against one at a time"
IMAGES = Path(__file__).resolve().parent.parent / "datasets" / "street_scenes" / "images"
TASKS = ["pedestrian", "stop_sign", "traffic_light"]
ROUNDS = 6
WARM_UP = 10  # seconds
SERVE = "from kerasmtl.cli.serve import serve; serve()"


def exported(folder: Path, size: int) -> Path:
    import keras

    import kerasmtl as kt

    keras.utils.set_random_seed(0)
    kt.export_saved_model(kt.build_model("tiny", TASKS, size), folder, TASKS)
    return folder


class Server:
    """The server as a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-c", SERVE, str(folder), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(re.search(r":(\d+)\s*$", self.process.stdout.readline())[1])

    def memory(self) -> float:
        """MiB that are resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def asked(connection: socket.socket, request: bytes) -> bool:
    """Whether a request is answered with predictions; few steps: cores are shared."""
    connection.sendall(request)
    answer = connection.recv(65536)
    while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
        more = connection.recv(65536)
        if not more:
            raise OSError("the server hung up")
        answer += more
    return answer.startswith(b"HTTP/1.1 200") and b"predictions" in answer


def request(image: Path) -> bytes:
    instance = {"b64": base64.b64encode(image.read_bytes()).decode()}
    body = json.dumps({"instances": [instance]}).encode()
    head = f"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def load(port: int, requests: list[bytes], clients: int, seconds: float) -> tuple[list[float], int]:
    """Seconds of each request, and how many failed."""
    times: list[float] = []
    failed = [0]
    end = time.perf_counter() + seconds

    def client(first: int) -> None:
        connection, number = None, first
        while time.perf_counter() < end:
            number += 1
            began = time.perf_counter()
            try:
                connection = connection or socket.create_connection(("127.0.0.1", port), 60)
                right = asked(connection, requests[number % len(requests)])
            except OSError:
                right, connection = False, None
            times.append(time.perf_counter() - began)
            failed[0] += not right

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, failed[0]


def measured(
    folder: Path, servers: dict[str, tuple[int, tuple[str, ...]]], seconds: float
) -> dict[str, dict[str, float]]:
    """What each server does with its clients, by turns, so that all meet the same machine."""
    images = sorted(IMAGES.glob("*.jpg"))[:64]
    requests = [request(image) for image in images]
    running = {name: Server(folder, "--name", "m", *given) for name, (_, given) in servers.items()}
    times: dict[str, list[float]] = {name: [] for name in servers}
    failed = dict.fromkeys(servers, 0)
    try:
        for name, (clients, _) in servers.items():
            load(running[name].port, requests, clients, min(WARM_UP, seconds))
        before = {name: server.memory() for name, server in running.items()}
        for name, (clients, _) in list(servers.items()) * ROUNDS:
            more, wrong = load(running[name].port, requests, clients, seconds / ROUNDS)
            times[name] += more
            failed[name] += wrong
        after = {name: server.memory() for name, server in running.items()}
    finally:
        codes = {name: server.stop() for name, server in running.items()}
    cuts = {name: statistics.quantiles(taken, n=100) for name, taken in times.items()}
    return {
        name: {
            "clients": clients,
            "requests": len(times[name]),
            "failed": failed[name] + (codes[name] != 0),
            "rate": len(times[name]) / seconds,
            "p50": 1000 * cuts[name][49],
            "p99": 1000 * cuts[name][98],
            "before": before[name],
            "after": after[name],
        }
        for name, (clients, _) in servers.items()
    }


def section(rows: dict[str, dict[str, float]], seconds: float, machine: str) -> str:
    """The section of RESULTS.md."""
    lines = [
        "| server | clients | requests | failed | per second | p50 (ms) | p99 (ms) "
        "| RSS before (MiB) | after |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['clients']} | {row['requests']} | {row['failed']} "
            f"| {row['rate']:.0f} | {row['p50']:.1f} | {row['p99']:.1f} | {row['before']:.0f} "
            f"| {row['after']:.0f} |"
        )
    rates = [row["rate"] for row in rows.values()]
    return "\n\n".join(
        [
            HEADING,
            f"`python benchmarks/serving.py --write`, {time.strftime('%Y-%m-%d')}, {machine}, "
            f"Python {platform.python_version()}; one image a request, {seconds:g} s each in "
            f"{ROUNDS} turns, after {WARM_UP} s that do not count, clients "
            "and server on the same cores.",
            "\n".join(lines),
            f"Throughput against one at a time: {rates[0] / rates[1]:.1f} times the same server's, "
            f"{rates[0] / rates[2]:.1f} times that of a server that never waits (3.0 or more is "
            "wanted).",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--size", type=int, default=64, help="of the model's images, in pixels")
    parser.add_argument("--machine", default=f"{os.cpu_count()} cores {platform.machine()}")
    parser.add_argument("--write", action="store_true", help="keep the table in RESULTS.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        folder = exported(Path(base) / "street", args.size)
        alone = ("--batch-size", "1", "--batch-wait", "0")
        servers = {
            "batches": (args.clients, ()),
            "batches, one at a time": (1, ()),
            "no batches, one at a time": (1, alone),
        }
        rows = measured(folder, servers, args.seconds)
    text = section(rows, args.seconds, args.machine)
    print(text)
    if args.write:
        from results import keep

        keep(HEADING, text)


if __name__ == "__main__":
    main()
