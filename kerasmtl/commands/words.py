"""Messages of the library in the words of the command line."""

from __future__ import annotations

import re

import click

_TEXT = r"'[^']*'|\"[^\"]*\""
_LIST = r"\[[^\]]*\]|\([^)]*\)"
_CALL = re.compile(rf"Task\(({_TEXT}|name)((?:, \w+=(?:{_TEXT}|{_LIST}|[^,)]+))*)\)")
_SETTING = re.compile(rf", (\w+)=({_TEXT}|{_LIST}|[^,]+)")
# "Call with image_column=… (command line: --image-column)", "tasks=[…] (command line: --task)".
_BOTH = re.compile(r"(?:\w+=\S* )?\((?:[^()]*; )?command line: (--[\w-]+)\)")
_IN_TOML = re.compile(r" In project\.toml: \{[^}]*\}\.")
# Arguments of the library that are called otherwise on the command line.
_OTHERWISE = {
    "export": "export_",
    "tasks": "task",
    "target": "folder",
    "images": "labels",
    "path": "labels",
}


def in_cli_words(message: str, command: click.Command) -> str:
    """Say a message of the library in the words of a command: its options and its arguments.

    `image_column` becomes --image-column, Task('a', missing=-1) becomes --task a:missing=-1.

    Args:
        message: of an exception.
        command: that was called.
    """
    named = {param.name: _name(param) for param in command.params if param.name}
    if "tasks" in named:
        message = _CALL.sub(_task_words, _IN_TOML.sub("", message))
    message = _BOTH.sub(r"\1", message)

    def argument(found: re.Match[str]) -> str:
        name = found[1] if found[1] in named else _OTHERWISE.get(found[1], found[1])
        name = "tasks" if name == "task" else name
        return named.get(name, found[0])

    return re.sub(r"`(\w+)`", argument, message)


def _name(param: click.Parameter) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return str(param.name).upper()


def _task_words(call: re.Match[str]) -> str:
    name, settings = call[1].strip("'\""), _SETTING.findall(call[2])
    words = ["NAME" if name == "name" else name]
    for key, value in settings:
        plain = value.strip("'\"")
        if value[0] in "[(":
            parts = re.findall(r"'([^']*)'", value)
            plain = ",".join(parts) or "A,B"
        words.append(plain if key == "kind" else f"{key}={plain}")
    return "--task " + _quoted(":".join(words))


def _quoted(word: str) -> str:
    return f"'{word}'" if re.search(r"[^\w:=.,-]", word) else word
