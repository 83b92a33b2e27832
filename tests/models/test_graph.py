"""The order of variables read from a graph, against modules whose order is known."""

import pytest
import tensorflow as tf
from modules import shared

from kerasmtl.models.graph import variable_order
from kerasmtl.models.hub.embedded import extractor_folder

ROWS = tf.TensorSpec((None, 4), tf.float32)


def saved(module, path):
    """The module as it is after saving and loading."""
    tf.saved_model.save(module, str(path))
    return tf.saved_model.load(str(path))


def inference(module):
    """The concrete function for inference: the one that is not traced for training."""
    calls = module.__call__.concrete_functions
    return next(f for f in calls if True not in f.structured_input_signature[0])


def ordered(function, variables):
    """The names of the variables in the order found, which may not hang on their listing."""
    variables = list(variables)
    names = [variables[k].name for k in variable_order(function, variables)]
    turned = variables[::-1]
    assert names == [turned[k].name for k in variable_order(function, turned)]
    return [name.removesuffix(":0") for name in names]


class Network(tf.Module):
    """Dense layers whose attributes sort in the order opposite to their depth."""

    def __init__(self, forward):
        super().__init__()
        depth = ("first", "second", "third", "fourth", "fifth")
        for letter, name in zip("edcba", depth, strict=True):
            kernel = tf.random.stateless_normal((4, 4), seed=(1, ord(letter)))
            setattr(self, letter, tf.Variable(kernel, name=name))
        self._forward = forward

    @tf.function(input_signature=[ROWS])
    def __call__(self, x):
        return self._forward(self, x)


def straight(m, x):
    for kernel in (m.e, m.d, m.c, m.b, m.a):
        x = tf.nn.relu(x @ kernel)
    return x


def read_late_first(m, x):
    """The last kernels are read, and their product made, before the first is used."""
    late = tf.cast(tf.cast(m.a, tf.float64), tf.float32) + 0.0 * tf.identity(m.b)
    return (x @ m.e @ m.d @ m.c) @ late


def nested(m, x):
    @tf.function
    def inner(y, kernel):
        return y @ kernel

    @tf.function
    def block(kernels, y):
        return inner(inner(y, kernels[0]), kernels[1])

    return inner(block([m.c, m.b], block([m.e, m.d], x)), m.a)


def residual(m, x):
    """The sum needs both branches, so that what follows comes last."""
    y = x @ m.e
    return (y + tf.nn.relu(y @ m.d) @ m.c @ m.b) @ m.a


def shared_twice(m, x):
    return ((x @ m.e @ m.d) @ m.e) @ m.c @ m.b @ m.a


def conditional(m, x):
    y = tf.cond(tf.reduce_sum(x) > 0, lambda: x @ m.e @ m.d, lambda: x @ m.e)
    return y @ m.c @ m.b @ m.a


def loop(m, x):
    y = x @ m.e
    for _ in tf.range(3):
        y = y @ m.d
    return y @ m.c @ m.b @ m.a


@pytest.mark.parametrize(
    "forward",
    [straight, nested, residual, shared_twice, conditional, loop],
    ids=lambda f: f.__name__,
)
def test_variables_are_in_the_order_of_depth_whatever_their_listing(tmp_path, forward):
    module = Network(forward)
    depth = ["first", "second", "third", "fourth", "fifth"]
    assert [v.name for v in module.variables] == [f"{name}:0" for name in depth[::-1]]
    assert ordered(module.__call__.get_concrete_function(), module.variables) == depth
    loaded = saved(module, tmp_path / "module")
    names = {id(getattr(loaded, letter)): letter for letter in "abcde"}
    listed = [getattr(loaded, letter) for letter in "abcde"]
    for function in (inference(loaded), *loaded.signatures.values()):
        found = [names[id(listed[k])] for k in variable_order(function, listed)]
        assert "".join(found) == "edcba"


def test_a_variable_is_placed_where_it_meets_the_data(tmp_path):
    module = Network(read_late_first)
    found = ordered(module.__call__.get_concrete_function(), module.variables)
    assert found == ["first", "second", "third", "fifth", "fourth"]


def test_variables_that_are_not_used_come_last_in_their_order(tmp_path):
    module = Network(lambda m, x: (x @ m.e @ m.c, tf.reduce_sum(m.b))[0])
    function = module.__call__.get_concrete_function()
    strange = tf.Variable(1.0, name="of another module")
    variables = [module.a, strange, module.b, module.c, module.d, module.e]
    assert variable_order(function, variables) == [5, 3, 0, 1, 2, 4]
    assert variable_order(function, []) == []


def test_a_loop_of_the_first_tensorflow_is_read_as_well(tmp_path):
    v1 = tf.compat.v1
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            start = tf.eye(4)
            names = ("late", "looped", "early")
            late, looped, early = (v1.Variable(start, name=n, use_resource=True) for n in names)
            x = v1.placeholder(tf.float32, (None, 4))
            y = v1.while_loop(lambda y: tf.norm(y) < 9, lambda y: 2.0 * y @ looped, [x @ early])
            session.run(v1.global_variables_initializer())
            v1.saved_model.simple_save(session, str(tmp_path / "v1"), {"x": x}, {"y": y @ late})
    finally:
        v1.enable_control_flow_v2()
    loaded = tf.saved_model.load(str(tmp_path / "v1"))
    function = loaded.signatures["serving_default"]
    assert "NextIteration" in {operation.type for operation in function.graph.get_operations()}
    assert ordered(function, loaded.variables) == ["early", "looped", "late"]


@pytest.mark.slow
def test_real_mobilenet_is_in_the_order_of_its_layers():
    loaded = tf.saved_model.load(str(shared("models", "mobilenet_v1_025_224")))
    found = ordered(inference(loaded), sorted(loaded.variables, key=lambda v: v.name))
    blocks = ["conv1"] + [f"conv_{part}_{k}" for k in range(1, 14) for part in ("dw", "pw")]
    assert list(dict.fromkeys(name.split("/")[0].removesuffix("_bn") for name in found)) == blocks
    assert len(found) == 135


def test_the_embedded_extractor_is_in_the_order_of_its_blocks():
    loaded = tf.saved_model.load(str(extractor_folder("tiny")))
    found = ordered(inference(loaded), loaded.variables)
    assert [name.split("/")[0] for name in found] == [
        f"block_{k}" for k in range(1, 9) for _ in range(5)
    ]
    assert [name.split("/")[1] for name in found[:2]] == ["conv", "bn"]
