"""Around the application: each request gets a name, is counted, and perhaps printed."""

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

log = logging.getLogger("kerasmtl.serving")
access = logging.getLogger("kerasmtl.serving.access")
HEADER = "X-Request-ID"
_NAME = re.compile(r"[\w.:=+/-]{1,128}", re.ASCII)  # else a log could be made to lie
_GONE = 499  # who asked has left

Scope = MutableMapping[str, Any]


class Observed:
    """ASGI middleware: `X-Request-ID`, taken over or made; counts; failures with a traceback.

    Args:
        app: what answers.
        count: called with endpoint, status and seconds.
        failed: the answer to a request that met an error of ours, given the request's name.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        count: Callable[[str, int, float], None],
        failed: Callable[[str], Response],
    ) -> None:
        self.app, self.count, self.failed = app, count, failed

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _NAME.fullmatch(given) else uuid.uuid4().hex
        began, status = time.perf_counter(), 0

        async def marked(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        try:
            await self.app(scope, receive, marked)
        except Exception:
            log.exception("request %s failed", name)
            if status:
                raise  # half an answer is out: only to hang up is left
            await self.failed(name)(scope, receive, marked)
        finally:
            self._note(scope, name, status or _GONE, time.perf_counter() - began)

    def _note(self, scope: Scope, name: str, status: int, seconds: float) -> None:
        endpoint = scope.get("endpoint")
        self.count(getattr(endpoint, "__name__", "unknown"), status, seconds)
        client = (scope.get("client") or ("-",))[0]
        path = quote(scope["path"], safe="/:@,")[:500]
        access.info(
            "%s %s %s %d %.1f ms %s", client, scope["method"], path, status, 1000 * seconds, name
        )
