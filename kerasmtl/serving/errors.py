"""What a request can do wrong, as HTTP says it."""

from __future__ import annotations

from collections.abc import Mapping

SHOWN = 5  # examples named in a message


class Refused(ValueError):
    """A request that is answered with a status and one sentence.

    `reasons`: of bad examples, by their number, for programs and the page, which have no use for
    the sentence around them.
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


class BadRows(ValueError):
    """Examples, by their number in the request or batch, that cannot be used, each with why."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        self.reasons = dict(sorted(reasons.items()))
        super().__init__("; ".join(f"{row}: {why}" for row, why in self.reasons.items()))

    def named(self, where: str) -> Refused:
        """The answer to a request whose list of examples is called `where`."""
        shown = [f"`{where}`[{row}]: {why}" for row, why in self.reasons.items()]
        more = f"; and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        message = f"Some examples cannot be used. {'; '.join(shown[:SHOWN])}{more}"
        return Refused(message, reasons=self.reasons)
