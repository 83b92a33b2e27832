"""What commands share: errors of a graph and warnings as plain lines."""

import warnings

import click
import pytest
import tensorflow as tf
from click.testing import CliRunner

from kerasmtl.cli.common import plain_errors


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "{{function_node f}} assertion failed: [l.csv, line 7: gr\\303\\266\\303\\237e.png is "
            "truncated]\n\t [[{{node Assert/Assert}}]]",
            "Error: l.csv, line 7: größe.png is truncated. ",
        ),
        ("{{function_node f}} {{node g}} Invalid PNG data\n\t [[{{node x}}]]", "`kerasmtl check`"),
    ],
)
def test_what_a_graph_cannot_take_is_a_plain_line(message, shown):
    @click.command()
    @plain_errors
    def command():
        raise tf.errors.InvalidArgumentError(None, None, message)

    result = CliRunner().invoke(command)
    assert result.exit_code == 1 and shown in result.output and "{{" not in result.output


def test_a_warning_is_printed_once():
    @click.command()
    @plain_errors
    def command():
        for text in ("again", "again", "other"):
            warnings.warn(text, UserWarning, stacklevel=1)

    for _ in range(2):
        said = CliRunner().invoke(command).output
        assert said == "Warning: again\nWarning: other\n"
