"""Functions as parts of a graph, as they are written.

AutoGraph's conversion takes a second in each process: conditions and loops on tensors are written
as tf.cond and tf.while_loop instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def as_written(function: F) -> F:
    """The function, which AutoGraph shall leave alone: for `Dataset.map`."""
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def traced(function: Callable[..., Any], on_call: bool = False) -> Callable[..., Any]:
    """A `tf.function`; the graphs that call the same one share its trace, so keep it.

    `on_call`: in a graph it stays a function of its own, which is made ready at its first call. As
    a branch, all its operations would be made ready at once, and passed through, idle.
    """
    import tensorflow as tf

    attributes = {"_noinline": True} if on_call else None
    return tf.function(function, autograph=False, experimental_attributes=attributes)
