"""Whether XLA can compile a module's call and its gradient."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from kerasmtl.backbones.graph import xla_obstacle
from kerasmtl.graphs import as_written

PARAMETER = re.compile(r"= (?:pred|[a-z]+\d+)\[([\d,]*)\]\S* parameter\(\d+\)")


def obstacle(
    function: Any,
    call: Callable[[Any], Any],
    example: Any,
    variables: Sequence[tf.Variable],
) -> str:
    """Why training a model with a module should not be compiled by XLA, or "" if it may.

    Where the shapes in a gradient are computed from the inputs, XLA takes the inputs themselves for
    constants, and compiles anew for every batch: seconds a step. It shows in the compiled program,
    which then has no parameter for the inputs.

    Args:
        function: the concrete function of the call, looked through for what XLA lacks.
        call: the module, inputs → outputs.
        example: inputs of shapes that the module takes; no values are computed from them.
        variables: those that a gradient tape watches.
    """
    known = xla_obstacle(function)
    if known:
        return known
    inputs = tf.nest.flatten(example)

    @as_written
    def step(*flat: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(call(tf.nest.pack_sequence_as(example, flat)))
            loss = tf.add_n([tf.reduce_sum(tf.cast(o, tf.float32)) for o in outputs])
        return loss, [g for g in tape.gradient(loss, list(variables)) if g is not None]

    try:
        compiled = tf.function(step, jit_compile=True)
        program = compiled.experimental_get_compiler_ir(*inputs)(stage="hlo")
    except (tf.errors.OpError, ValueError, TypeError, NotImplementedError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    found = PARAMETER.findall(program[program.index("ENTRY") :])
    expected = [shape for t in (*inputs, *variables) if (shape := _text(t.shape)) in _texts(inputs)]
    if any(found.count(shape) < expected.count(shape) for shape in expected):
        return "its gradient would be compiled anew for every batch"
    return ""


def _texts(tensors: Sequence[tf.Tensor]) -> set[str]:
    return {_text(tensor.shape) for tensor in tensors}


def _text(shape: Any) -> str:
    return ",".join(str(int(n)) for n in shape)
