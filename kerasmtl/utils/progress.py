"""Progress bars, shown on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    title: str, total: int | None, wanted: bool = True, transient: bool = True
) -> Iterator[Callable[..., None]]:
    """Show a bar with a title, counts and the remaining time; yield a function that advances it.

    Args:
        title: of the bar.
        total: steps until the end; None if unknown.
        wanted: False shows nothing.
        transient: whether the bar vanishes at the end.

    Example:
        >>> with progress_bar("reading", 2) as advance:
        ...     advance()
        ...     advance(1)
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not wanted or not console.is_terminal:
        yield lambda count=1: None
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=transient) as shown:
        task = shown.add_task(title, total=total)
        yield lambda count=1: shown.advance(task, count)
