"""Errors of requests, with their HTTP status and one sentence for the client.

`served_model`, `protocols` and `versions` raise them, `batching` splits batches by them, and
`server` turns them into answers. Anything else that is raised is an error of the server: status
500, a traceback in the log, and nothing of it in the answer.
"""

from __future__ import annotations

from collections.abc import Mapping

SHOWN = 5  # examples named in a message


class RequestError(ValueError):
    """A request that is answered with a status other than 200.

    Args:
        message: one sentence; the answer's "error".
        status: the HTTP status.
        retry_after: seconds after which the client may try again.
        reasons: by number of an invalid example, what is wrong with it; the answer's "reasons".
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        retry_after: int | None = None,
        reasons: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.reasons = reasons


class InvalidExamples(ValueError):
    """Examples that the model cannot use.

    Args:
        reasons: by the number of an example in its request or batch, what is wrong with it.

    Example:
        >>> error = InvalidExamples({2: "truncated"}).named("instances")
        >>> error.status, str(error)
        (400, 'Some examples are invalid. `instances`[2]: truncated')
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        self.reasons = dict(sorted(reasons.items()))
        super().__init__("; ".join(f"{number}: {why}" for number, why in self.reasons.items()))

    def named(self, where: str) -> RequestError:
        """Return the answer to a request whose list of examples is called `where`.

        It names the first `SHOWN` of them; `reasons` has all.

        Args:
            where: "instances" or "inputs", as in the request.
        """
        shown = [f"`{where}`[{number}]: {why}" for number, why in self.reasons.items()]
        more = f"; and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        message = f"Some examples are invalid. {'; '.join(shown[:SHOWN])}{more}"
        return RequestError(message, reasons=self.reasons)
