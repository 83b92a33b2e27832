"""Messages in the words of the command line."""

import pytest

from kerasmtl.cli import main
from kerasmtl.cli.common import in_cli_words


@pytest.mark.parametrize(
    "command, message, said",
    [
        ("new", "`image_column` 'x' is not there.", "--image-column 'x' is not there."),
        ("new", "`target` /p exists.", "FOLDER /p exists."),
        ("new", "`labels` in a.csv must be 0", "--labels in a.csv must be 0"),
        ("check", "`labels` in a.csv must be 0", "LABELS in a.csv must be 0"),
        ("predict", "`files` a is a folder.", "FILES a is a folder."),
        ("new", "Task('a', missing=-1).", "--task a:missing=-1."),
        (
            "new",
            "Task('a', uncertain=-1, uncertain_as='ignore')",
            "--task a:uncertain=-1:uncertain_as=ignore",
        ),
        (
            "new",
            "Task('stop sign', kind='regression', missing=['x', 'y'])",
            "--task 'stop sign:regression:missing=x,y'",
        ),
        (
            "new",
            "Task('a', kind=\"multiclass\", classes=(…)).",
            "--task a:multiclass:classes=A,B.",
        ),
        ("new", 'Task(name, kind="multiclass") or', "--task NAME:multiclass or"),
        ("new", "name those: tasks=[…] (command line: --task).", "name those: --task."),
        (
            "new",
            "If so: allow_outside=True (in a project: x; command line: --allow-outside).",
            "If so: --allow-outside.",
        ),
        ("new", "A. In project.toml: {name = 'a', …}. B", "A. B"),
        ("evaluate", "Task('a', missing=-1).", "Task('a', missing=-1)."),
        ("new", "`nobody` is unknown, `a b` too", "`nobody` is unknown, `a b` too"),
    ],
)
def test_the_library_speaks_as_the_command_line(command, message, said):
    assert in_cli_words(message, main.commands[command]) == said
