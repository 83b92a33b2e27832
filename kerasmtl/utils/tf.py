"""Helpers around TensorFlow: tracing without AutoGraph, errors of graphs, a quiet start."""

from __future__ import annotations

import codecs
import gc
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kerasmtl.utils.registration import wrap_import

F = TypeVar("F", bound=Callable[..., Any])


def as_written(function: F) -> F:
    """Return a function that AutoGraph does not convert, for `Dataset.map`."""
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def traced(function: Callable[..., Any], on_call: bool = False) -> Callable[..., Any]:
    """Return a `tf.function`; the graphs that call the same one share its trace, so keep it.

    Args:
        function: converted without AutoGraph.
        on_call: whether it stays a function of its own in a graph, prepared at its first call. As
            a branch, all its operations would be prepared at once, and passed through, idle.
    """
    import tensorflow as tf

    attributes = {"_noinline": True} if on_call else None
    return tf.function(function, autograph=False, experimental_attributes=attributes)


_ASSERTED = re.compile(r"assertion failed: \[(.*)\]")
# Where in the graph an error occurred, which nobody who sends data can use.
_NODE = re.compile(r"\{\{.*?\}\}\s*|\[\[?\{.*|\[Op:.*", re.DOTALL)
_PLACES = ("Graph execution error:", "Detected at node", "<stack traces", "File ", "node Assert")


def error_text(error: BaseException) -> str:
    """Return the first sentence of an error of TensorFlow, without the places in the graph.

    Of a failed assertion it is what was asserted. Also takes other errors.

    Example:
        >>> error_text(ValueError("{{node decode}} image 3 is truncated [Op:DecodeImage]"))
        'image 3 is truncated'
    """
    message = str(getattr(error, "message", error))
    asserted = _ASSERTED.search(message)
    if asserted:  # TensorFlow shows the bytes of strings with C's escapes
        return codecs.escape_decode(asserted[1].encode())[0].decode("utf-8", "replace")
    lines = [line.strip() for line in _NODE.sub("", message).splitlines()]
    said = [line for line in lines if line and not line.startswith(_PLACES)]
    return said[0][:300] if said else type(error).__name__


def graph_fault(error: BaseException | None) -> str | None:
    """Return what TensorFlow found wrong with the data it was given, or None for other errors."""
    tensorflow = sys.modules.get("tensorflow")  # not imported for this alone
    if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
        return None
    hint = "If it is an image: `kerasmtl check` lists those that cannot be used."
    return f"{error_text(error)}. {hint}"


def quiet_tensorflow() -> None:
    """Hide the log lines of TensorFlow's C++ code; call it before importing Keras.

    They tell of oneDNN, of CPU instructions and, on a machine without a GPU, of CUDA libraries that
    are not needed; real errors are raised as exceptions as well. An import that fails shows all
    that was written. Objects that TensorFlow's import creates are left out of garbage collection
    (`gc.freeze`), which saves seconds in a short program. Does nothing if TensorFlow is imported
    already or `TF_CPP_MIN_LOG_LEVEL` is 0.

    Example:
        >>> import kerasmtl as kt
        >>> kt.quiet_tensorflow()
        >>> import keras
    """
    if "tensorflow" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    wrap_import("tensorflow", _start_quietly)


def _start_quietly(execute: Any, tensorflow: Any) -> None:
    with _stderr_aside():
        was_on = gc.isenabled()
        gc.disable()
        try:
            execute(tensorflow)
        finally:
            if was_on:
                gc.enable()
            # To look through TensorFlow's million objects again and again takes a fifth of the
            # time of `kerasmtl evaluate` on a few images.
            gc.freeze()
        tensorflow.config.list_physical_devices()  # looks for a GPU, and logs that


@contextmanager
def _stderr_aside() -> Iterator[None]:
    """Hold back what C++ writes to file descriptor 2; show it after all if there is an error.

    The environment variable alone does not help: the first lines come before it is read.
    """
    try:
        shown = os.dup(2)
    except OSError:  # closed: nobody reads it
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(shown, held.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)
