"""Settings of the server; `kerasmtl serve` has an option for each.

The module imports no web server and no TensorFlow, so that `kerasmtl serve --help` is fast.
`server`, `batching`, `versions` and `page` read what concerns them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MIB = 2**20


def setting(default: Any, about: str, least: float | None = None) -> Any:
    """Return a dataclass field with what its option on the command line needs.

    Args:
        default: the value of the field; its type is that of the option.
        about: the help text, with the unit.
        least: the smallest value allowed; None for text and flags. Checked by the command line
            alone: a `ServerConfig` made in Python is trusted.
    """
    return field(default=default, metadata={"help": about, "min": least})


@dataclass(frozen=True)
class ServerConfig:
    """Address, limits, batching and reloading of a server.

    The command line is generated from these fields: their names, types, defaults and texts. The
    request bodies in memory are bounded by `max_body` times `max_queue`, whoever sends them.

    Example:
        >>> config = ServerConfig(max_body=0.5, batch_size=8)
        >>> config.max_bytes
        524288
    """

    host: str = setting(
        "127.0.0.1", "Address to listen on. Use 0.0.0.0 to accept remote connections."
    )
    port: int = setting(8501, "Port to listen on; 0 picks a free one, which is printed.", 0)
    max_body: float = setting(
        32.0, "Largest request body in MiB; larger ones get status 413.", 1 / MIB
    )
    max_queue: int = setting(
        128, "Requests that may be read, waiting or running; more get status 503.", 1
    )
    batch_size: int = setting(32, "Most examples in one call of the model.", 1)
    batch_wait: float = setting(
        2.0, "Milliseconds an example waits for others to share its call of the model.", 0
    )
    workers: int = setting(1, "Calls of the model that may run at the same time.", 1)
    keep: int = setting(2, "How many of the newest versions are served.", 1)
    poll: float = setting(1.0, "Seconds between two looks for new versions.", 0.01)
    drain: float = setting(30.0, "Seconds that running requests may take after SIGTERM.", 0)
    access_log: bool = setting(
        False, "Print a line for each request: client, path, status, time, X-Request-ID."
    )

    @property
    def max_bytes(self) -> int:
        """`max_body` in bytes."""
        return int(self.max_body * MIB)
