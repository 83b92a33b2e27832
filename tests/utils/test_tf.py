"""TensorFlow's start-up lines are hidden, and what matters is not.

That the real ones are hidden is tested in test_registration.py, in the process it starts.
"""

import os
import subprocess
import sys

import pytest

from kerasmtl.utils.tf import error_text

# Instead of TensorFlow, which takes seconds to start.
FAKE = """
import contextlib, os
def write(line):
    with contextlib.suppress(OSError):
        os.write(2, line)
write(b"a line of C++\\n")
if "FAILS" in os.environ:
    raise ImportError("no")
class config:
    list_physical_devices = staticmethod(lambda: write(b"no GPU\\n"))
"""
QUIET = "import sys, kerasmtl as kt; kt.quiet_tensorflow(); "


def run(code, **environment):
    others = {k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=others | environment
    )
    assert done.stdout == ""
    return done


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "tensorflow.py").write_text(FAKE)
    return {"PYTHONPATH": str(tmp_path)}


def test_what_is_written_before_and_after_is_shown(fake):
    said = "print({!r}, file=sys.stderr); "
    code = QUIET + said.format("before") + "import tensorflow; " + said.format("after")
    assert run(code, **fake).stderr == "before\nafter\n"


@pytest.mark.parametrize(
    ("code", "environment", "expected"),
    [
        (QUIET + "import tensorflow", {"FAILS": "1"}, ["a line of C++", "ImportError: no"]),
        (QUIET + "import tensorflow", {"TF_CPP_MIN_LOG_LEVEL": "0"}, ["a line of C++"]),
        ("import tensorflow; " + QUIET, {}, ["a line of C++"]),
        ("import os; os.close(2); " + QUIET + "import tensorflow", {}, []),
    ],
    ids=["a failing import", "on demand", "a late call", "a closed stderr"],
)
def test_lines_are_hidden_only_where_that_can_be_done(fake, code, environment, expected):
    done = run(code, **fake, **environment)
    assert done.returncode == int("FAILS" in environment)
    assert all(text in done.stderr for text in expected)


def test_nothing_is_imported_by_it():
    assert run(QUIET + "assert not {'keras', 'tensorflow', 'numpy'} & {*sys.modules}").stderr == ""


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("{{node f}} assertion failed: [a.png is empty]\n\t [[{{node A}}]]", "a.png is empty"),
        ("{{node d}} Unknown image [Op:Decode]", "Unknown image"),
        ("Graph execution error:\n\nDetected at node x\nbad bytes\n\t [[{{node x}}]]", "bad bytes"),
        ("", "ValueError"),
    ],
)  # fmt: skip
def test_an_error_of_the_graph_is_one_sentence(message, text):
    assert error_text(ValueError(message)) == text
