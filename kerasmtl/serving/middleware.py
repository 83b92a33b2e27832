"""ASGI middleware: request ids, request counts and the access log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

HEADER = "X-Request-ID"
_ID = re.compile(r"[\w.:=+/-]{1,128}", re.ASCII)  # others could forge lines of the log
_GONE = 499  # the client left before its answer

log = logging.getLogger("kerasmtl.serving")
access_log = logging.getLogger("kerasmtl.serving.access")


class RequestLog:
    """Gives each request an id, counts it, and logs it if the access log is on.

    The id is the client's `X-Request-ID`, or a new one; it is in the answer, the access log, and
    beside the traceback of an unexpected error.

    Args:
        app: the application that answers.
        count: called with the name of the endpoint, the status and the seconds.
        failed: returns the answer to a request that met an unexpected error, given its id.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        count: Callable[[str, int, float], None],
        failed: Callable[[str], Response],
    ) -> None:
        self.app, self.count, self.failed = app, count, failed

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        began, status = time.perf_counter(), 0

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s failed", name)
            if status:
                raise  # the response has started: the connection can only be closed
            await self.failed(name)(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - began
            endpoint = getattr(scope.get("endpoint"), "__name__", "unknown")
            self.count(endpoint, status or _GONE, seconds)
            client = (scope.get("client") or ("-",))[0]
            path = quote(scope["path"], safe="/:@,")[:500]
            what = (client, scope["method"], path, status or _GONE, 1000 * seconds, name)
            access_log.info("%s %s %s %d %.1f ms %s", *what)
