"""The command line. TensorFlow is imported by the commands that need it, and by no other."""

from __future__ import annotations

import os

import click

from kerasmtl._version import __version__
from kerasmtl.cache_command import cache
from kerasmtl.commands import client, deploy
from kerasmtl.commands.data import check, list_templates, new
from kerasmtl.commands.exports import export
from kerasmtl.commands.formats import convert
from kerasmtl.commands.models import evaluate, predict
from kerasmtl.commands.modules import inspect, vendor_module
from kerasmtl.quiet import quiet_tensorflow
from kerasmtl.serve_command import serve


def _start(context: click.Context, option: click.Parameter, verbose: bool) -> None:
    if verbose:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    if not isinstance(context.command, click.Group):  # whose commands may say --verbose themselves
        quiet_tensorflow()


verbose = click.Option(
    ["--verbose"],
    is_flag=True,
    expose_value=False,
    callback=_start,
    help="Show TensorFlow's own log lines.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, params=[verbose])
@click.version_option(__version__, prog_name="kerasmtl")
def main() -> None:
    """From a CSV with holes in it to a served model.

    Make a project with `kerasmtl new`, train it with `python train.py`; inside the project `check`,
    `evaluate` and `export` need no arguments, and `predict` only the files.
    """


for command in (
    new,
    list_templates,
    check,
    evaluate,
    export,
    predict,
    vendor_module,
    inspect,
    cache,
    serve,
    convert,
    deploy,
    client,
):
    command.params.append(verbose)
    main.add_command(command)
