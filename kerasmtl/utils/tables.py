"""Names in a table's cells, and tables printed so that no number is cut off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.measure import Measurement
    from rich.text import Text


class Name:
    """A name in a table's cell, folded between its words where it is too long.

    Words end with a space, "_", "-", "/" or "."; one that is too long by itself is cut.
    """

    def __init__(self, name: str) -> None:
        self.words = re.findall(rf"[^{_ENDS}]+[{_ENDS}]*|[{_ENDS}]+", name)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.cells import cell_len
        from rich.text import Text

        lines = [""]
        for word in self.words:
            if lines[-1] and cell_len((lines[-1] + word).rstrip()) > options.max_width:
                lines.append("")
            lines[-1] += word
        yield Text("\n".join(line.rstrip() for line in lines), overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.cells import cell_len
        from rich.measure import Measurement

        longest = max((cell_len(word.rstrip()) for word in self.words), default=0)
        return Measurement(longest, cell_len("".join(self.words)))


_ENDS = r"\s_\-/."


def print_whole(table: RenderableType, console: Console) -> None:
    """Print a table, or a group of them, so that no number is cut off.

    Where nobody looks at it, in a pipe or a file, it is as wide as it is; on a terminal too narrow
    for it, it is drawn tighter, and then names fold.
    """
    from rich.measure import Measurement

    tables = getattr(table, "renderables", [table])
    free = console.options.update(max_width=10_000)
    for part in tables:
        needed = Measurement.get(console, free, part).maximum
        if needed > console.width and console.is_terminal:
            part.padding, part.pad_edge = (0, 0), False
        elif needed > console.width:
            console.width = needed
        console.print(part)
