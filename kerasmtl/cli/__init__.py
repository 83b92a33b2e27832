"""The command line. The module of a command is imported when that command is called.

    common     options, errors and tables that commands share
    new        projects from templates
    check      labels files
    tune       a search of better settings
    report     the report of a training, as HTML
    compare    advice, and trainings that measure what transfer and several tasks bring
    predict    evaluate and predict, with a trained model or an export
    export     SavedModels, LiteRT and ONNX
    vendor     backbones: copied and pinned, or described
    cache      the features of frozen backbones
    serve      a server, its client, and the files of other servers

Commands read options, call the library, and print. Two things are theirs alone: errors as one line,
in the words of the command line (`common.plain_errors`), and speed before the work begins:
`kerasmtl --help` must not import pandas or TensorFlow, which take seconds, so that `COMMANDS` has
its lines as text.

Results go to standard output, errors and warnings to standard error, so that results can be piped.
"""

from __future__ import annotations

import importlib
import os

import click

from kerasmtl._version import __version__
from kerasmtl.utils.tf import quiet_tensorflow

# Of each command: its module and function, and its line in `kerasmtl --help`.
COMMANDS = {
    "new": ("new:new", "Make a project FOLDER from TEMPLATE."),
    "templates": ("new:list_templates", "List the templates."),
    "check": ("check:check", "Check a labels file: rows, broken images, missing labels."),
    "advise": ("compare:advise", "Say what labels and features suffice for, before training."),
    "compare": ("compare:compare", "Measure whether transfer, several tasks, or width pays."),
    "tune": ("tune:tune", "Search better settings by training on the project's own data."),
    "evaluate": ("predict:evaluate", "Score the trained model, or an export, on known labels."),
    "report": ("report:report", "Write the report of a training as one HTML file."),
    "export": ("export:export", "Write the trained model as a SavedModel."),
    "predict": ("predict:predict", "Predict for files, with the trained model or an export."),
    "vendor": ("vendor:vendor_module", "Copy a TF-Hub or Kaggle module into the project."),
    "inspect": ("vendor:inspect", "Summarize a backbone's inputs, outputs and weights."),
    "cache": ("cache:cache", "List or clear the cached features of frozen backbones."),
    "serve": ("serve:serve", "Serve exported models over HTTP, with a page to try them."),
    "convert": ("export:convert", "Convert a model to LiteRT or ONNX."),
    "deploy": ("serve:deploy", "Write the files for TensorFlow Serving or KServe."),
    "client": ("serve:client", "Predict for files, with a server."),
}


class Commands(click.Group):
    """A group whose commands are imported on use, so that `--help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by its name.

        Args:
            ctx: of the group.
            cmd_name: as the user typed it.

        Returns:
            The command, which also takes --verbose; None for an unknown name, of which click then
            says so.
        """
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"kerasmtl.cli.{module}"), name)
        # The object lives as long as its module: a second call in one process must not add the
        # option twice.
        if verbose not in command.params:
            command.params.append(verbose)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _set_log_level(context: click.Context, option: click.Parameter, verbose: bool) -> None:
    """Silence TensorFlow's log before it is imported, unless --verbose is given.

    A callback of the option, since options are processed before the body of the command, which
    imports TensorFlow: its C++ part reads the variable once, when it is loaded.
    """
    if verbose:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    if not isinstance(context.command, click.Group):  # whose commands may have --verbose themselves
        quiet_tensorflow()


verbose = click.Option(
    ["--verbose"],
    is_flag=True,
    expose_value=False,
    callback=_set_log_level,
    help="Show TensorFlow's own log lines.",
)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, params=[verbose]
)
@click.version_option(__version__, prog_name="kerasmtl")
def main() -> None:
    """From a CSV with missing labels to a served model.

    Make a project with `kerasmtl new`, train it with `python train.py`; inside the project `check`,
    `evaluate` and `export` need no arguments, and `predict` only the files.

    \b
    Examples:
      kerasmtl new multitask-image street --labels photos/labels.csv
      kerasmtl check
      kerasmtl COMMAND --help
    """
