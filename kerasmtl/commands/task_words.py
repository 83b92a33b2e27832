"""Tasks as words of a command line: `leak`, `leak:missing=-1`, `weather:multiclass`."""

from __future__ import annotations

import re
from typing import Any

from kerasmtl.tasks import KINDS, Task

HELP = (
    "A column to learn, if not every 0/1/? one; with its kind or codes: hours:regression, "
    "weather:multiclass, leak:missing=-1, edema:uncertain=-1:uncertain_as=one."
)
_LISTS = ("missing", "uncertain", "classes")
_OPTION = re.compile(r"(missing|uncertain|classes|uncertain_as|weight)=(.*)", re.DOTALL)


def read_task(word: str) -> Task:
    """The task that a word of the command line describes.

    What follows the column's name, behind colons, is a kind, or `missing`, `uncertain` and
    `classes` with values between commas, `uncertain_as` or `weight`. A colon that nothing of this
    follows is one of the name.

    Raises:
        ValueError: an option that stands twice, or what `Task` refuses.
    """
    *_, name, options = _cut(word)
    fields: dict[str, Any] = {}
    for option in options:
        found = _OPTION.fullmatch(option)
        key, value = (found[1], _value(found[1], found[2])) if found else ("kind", option)
        if key in fields:
            raise ValueError(f"`task` names {key} twice. Expected it once. Received: {word!r}")
        fields[key] = value
    return Task(name, **fields)


def _cut(word: str) -> tuple[str, list[str]]:
    name, *parts = word.split(":")
    options: list[str] = []
    while parts and (parts[-1] in KINDS or _OPTION.fullmatch(parts[-1])):
        options.insert(0, parts.pop())
    return ":".join([name, *parts]), options


def _value(key: str, text: str) -> Any:
    if key in _LISTS:
        return tuple(part.strip() for part in text.split(","))
    try:
        return float(text)
    except ValueError:
        if key == "weight":
            raise ValueError(
                f"`weight` of a task is no number. Expected one, such as 0.1. Received: {text!r}"
            ) from None
        return text
