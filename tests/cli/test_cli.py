"""The command line as a whole: start, examples, errors, and the syntax of --task."""

import json
import re
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from kerasmtl.cli import COMMANDS, main
from kerasmtl.cli.common import in_cli_words, read_task
from kerasmtl.tasks import Task


def run(*arguments, **options):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


def test_starting_does_not_import_tensorflow(tmp_path, labels_csv):
    """In one process: importing the library, help texts, a new project, vendoring."""
    code = f"""
        import sys
        import kerasmtl as kt
        from kerasmtl.cli import main
        assert dir(kt)

        def call(*words, code=0):
            try:
                main(list(words))
            except SystemExit as end:
                assert end.code == code, (words, end.code)
            heavy = {{"tensorflow", "keras", "tensorflow_hub"}} & set(sys.modules)
            assert not heavy, (words, heavy)

        call("--help")
        assert "pandas" not in sys.modules and "pydantic" not in sys.modules
        for command in ("new", "templates", "serve", "client", "deploy"):
            call(command, "--help")
        assert "starlette" not in sys.modules
        call("templates")
        call("new", "multitask-tabular", "made", "--no-input")
        call("new", "multitask-image", "own", "--labels", {str(labels_csv)!r}, "--backbone", "tiny")
        call("vendor", "no/such/folder", "copy", code=1)
    """
    command = [sys.executable, "-c", "if True:" + code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_can_be_imported():
    import kerasmtl as kt

    assert all(getattr(kt, name) is not None for name in kt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = kt.nope


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_parse(name):
    command = main.get_command(None, name)
    examples = re.findall(r"^ +kerasmtl (.+)$", run(name, "--help").output, re.MULTILINE)
    assert examples
    for example in examples:
        called, *words = shlex.split(example)
        assert called == name
        command.make_context(name, words).close()
    assert all(param.help for param in command.params if isinstance(param, click.Option))


@pytest.mark.parametrize("command", ["evaluate", "export", "predict", "check"])
def test_outside_of_a_project_commands_say_so(tmp_path, labels_csv, command):
    files = [labels_csv.with_name("0.jpg")] if command == "predict" else []
    result = run(command, *files, "--project", tmp_path)
    assert result.exit_code == 1
    assert "project.toml" in result.output and "Traceback" not in result.output


def test_before_training_commands_say_so(tmp_path, labels_csv):
    run("new", "multitask-image", tmp_path / "p", "--labels", labels_csv)
    for command in (["evaluate"], ["export"], ["predict", labels_csv.with_name("0.jpg")]):
        result = run(*command, "--project", tmp_path / "p")
        assert result.exit_code == 1
        assert "python train.py" in result.output


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    "command, message, said",
    [
        ("new", "`image_column` 'x' is not there.", "--image-column 'x' is not there."),
        ("new", "`target` /p exists.", "FOLDER /p exists."),
        ("new", "`labels` in a.csv must be 0", "--labels in a.csv must be 0"),
        ("check", "`labels` in a.csv must be 0", "LABELS in a.csv must be 0"),
        ("predict", "`files` a is a folder.", "FILES a is a folder."),
        ("new", "`nobody` is unknown, `a b` too", "`nobody` is unknown, `a b` too"),
    ],
)
def test_messages_name_options_instead_of_arguments(command, message, said):
    assert in_cli_words(message, main.get_command(None, command)) == said


def test_a_wrong_label_names_file_line_and_column(labels_csv):
    labels_csv.write_text(labels_csv.read_text().replace("5.jpg,1", "5.jpg,yes"))
    result = run("check", labels_csv)
    assert result.exit_code == 1
    assert "labels.csv" in result.output and "Traceback" not in result.output
    assert "line 7, column 'bright': 'yes'" in result.output


# ------------------------------------------------------------------ --task


@pytest.mark.parametrize(
    "word, task",
    [
        ("leak", Task("leak")),
        ("hours:regression", Task("hours", "regression")),
        ("leak:missing=-1,-9:weight=2", Task("leak", missing=("-1", "-9"), weight=2)),
        ("e:uncertain=-1:uncertain_as=one", Task("e", uncertain="-1", uncertain_as="one")),
        ("e:uncertain=-1:uncertain_as=0.5", Task("e", uncertain="-1", uncertain_as=0.5)),
        ("w:multiclass:classes=dry, wet", Task("w", "multiclass", classes=("dry", "wet"))),
        ("ratio:a:b", Task("ratio:a:b")),
        ("a:b:regression", Task("a:b", "regression")),
        ("regression", Task("regression")),
    ],
)
def test_kind_and_options_follow_the_name_of_a_task(word, task):
    assert read_task(word) == task


@pytest.mark.parametrize(
    "word, message",
    [
        ("a:regression:binary", "kind"),
        ("a:missing=1", "missing"),
        ("a:weight=heavy", "`weight`"),
        ("a:uncertain_as=maybe", "`uncertain_as`"),
        (":regression", "`name`"),
    ],
)
def test_what_is_wrong_with_a_task_is_named(word, message):
    with pytest.raises(ValueError, match=message):
        read_task(word)


def test_json_is_all_that_is_printed(labels_csv):
    assert json.loads(run("check", labels_csv, "--json").stdout)["rows"] == 8
