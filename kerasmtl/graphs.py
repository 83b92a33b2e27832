"""Functions as parts of a graph, as they are written.

AutoGraph's conversion takes a second in each process: conditions and loops on tensors are written
as tf.cond and tf.while_loop instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def as_written(function: F) -> F:
    """For `Dataset.map`."""
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def traced(function: Callable[..., Any], on_call: bool = False) -> Callable[..., Any]:
    """A `tf.function`, of which all graphs that call it share the trace.

    `on_call`: in a graph it stays a function of its own, which takes time only once it is called.
    """
    import tensorflow as tf

    attributes = {"_noinline": True} if on_call else None
    return tf.function(function, autograph=False, experimental_attributes=attributes)
