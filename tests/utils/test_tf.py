"""TensorFlow's start-up lines are hidden, and what matters is not."""

import os
import subprocess
import sys

FITTED = """
import keras, numpy as np
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("adam", "mse", jit_compile=True)
model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
"""


def run(code, **environment):
    others = {k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=others | environment
    )
    assert done.stdout == ""
    return done.stderr


def test_not_a_line_of_tensorflows_start_is_shown():
    # Others ask whether a package is installed before they import it.
    look = "import importlib.util; importlib.util.find_spec('tensorflow')"
    assert run(f"import kerasmtl as kt; kt.quiet_tensorflow(); {look}\n{FITTED}") == ""


def test_whoever_wants_them_sees_them():
    code = f"import kerasmtl as kt; kt.quiet_tensorflow()\n{FITTED}"
    assert "oneDNN" in run(code, TF_CPP_MIN_LOG_LEVEL="0")


def test_a_closed_stderr_is_no_obstacle():
    code = "import os; os.close(2); import kerasmtl as kt; kt.quiet_tensorflow(); import tensorflow"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert done.returncode == 0


def test_what_is_written_before_and_after_is_shown():
    code = (
        "import sys, kerasmtl as kt\nkt.quiet_tensorflow()\nprint('before', file=sys.stderr)\n"
        "import tensorflow as tf\nprint('after', file=sys.stderr)\n"
        "tf.get_logger().warning('told')\n"
    )
    lines = run(code).splitlines()
    assert lines[:2] == ["before", "after"] and "told" in lines[2]


def test_a_tensorflow_that_fails_shows_all_it_said(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'a library is missing\\n')\nraise ImportError('no')\n"
    )
    code = "import kerasmtl as kt\nkt.quiet_tensorflow()\nimport tensorflow"
    said = run(code, PYTHONPATH=str(tmp_path))
    assert "a library is missing" in said and "ImportError: no" in said


def test_nothing_is_imported_by_it_and_a_late_call_does_no_harm():
    run("import sys, kerasmtl as kt\nkt.quiet_tensorflow()\nassert 'tensorflow' not in sys.modules")
    assert "Traceback" not in run("import keras, kerasmtl as kt\nkt.quiet_tensorflow()")


def test_garbage_collection_goes_on_without_what_tensorflow_made():
    run(
        "import gc, kerasmtl as kt\nkt.quiet_tensorflow()\nimport tensorflow\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000"
    )
