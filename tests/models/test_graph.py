"""Facts read from the graph of a module's call, against modules whose facts are known."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import save_dict_module, save_reusable, shared

from kerasmtl.models.graph import input_range, variable_order, xla_obstacle
from kerasmtl.models.hub.embedded import extractor_folder

IMAGES = tf.TensorSpec((None, 8, 8, 3), tf.float32)
ROWS = tf.TensorSpec((None, 4), tf.float32)
MEAN, STD = np.array([0.485, 0.456, 0.406], "float32"), np.array([0.229, 0.224, 0.225], "float32")
CAFFE = np.array([103.939, 116.779, 123.68], "float32")


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


def test_a_variable_stands_where_it_meets_the_data_not_where_it_is_read(tmp_path):
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


def test_batch_statistics_stand_with_their_block(tmp_path):
    loaded = tf.saved_model.load(str(save_reusable(tmp_path / "reusable")))
    found = ordered(inference(loaded), loaded.variables)
    assert found == ["block_1/conv/kernel", "block_1/bn/moving_mean", "scale", "block_1/bn/beta"]


def test_an_exported_keras_model_with_an_embedding_and_a_recurrent_layer(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            keras.layers.Embedding(11, 4, name="words"),
            keras.layers.GRU(3, name="memory"),
            keras.layers.Dense(2, name="top"),
        ]
    )
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    weights = [v for v in loaded.variables if v.dtype.is_floating]
    found = ordered(loaded.signatures["serving_default"], weights)
    layers = [name.split("/")[1] for name in found]
    assert layers == ["words", "memory", "memory", "memory", "top", "top"]


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


def test_a_large_graph_is_read():
    kernels = [tf.Variable(tf.eye(4), name=f"k{k}") for k in range(400)]

    @tf.function(input_signature=[ROWS])
    def call(x):
        for kernel in kernels:
            for _ in range(7):
                x = tf.nn.relu(x + 1.0)
            x = x @ kernel
        return x

    function = call.get_concrete_function()
    assert len(function.graph.get_operations()) > 9000
    assert variable_order(function, kernels[::-1]) == list(range(400))[::-1]


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


class Images(tf.Module):
    """A preprocessing before a convolution."""

    def __init__(self, prepare, spec=IMAGES):
        super().__init__()
        self.kernel = tf.Variable(tf.ones((3, 3, 3, 2)), name="kernel")
        self.third = tf.Variable(tf.constant(1 / 255), trainable=False)
        self._prepare = prepare
        self.__call__ = tf.function(self._call, input_signature=[spec])

    def _call(self, images):
        return tf.nn.conv2d(
            tf.cast(self._prepare(self, images), tf.float32), self.kernel, 1, "SAME"
        )


def in_a_function(_, x):
    scale = tf.function(lambda y, factor: y * factor)
    shift = tf.function(lambda y: scale(y, 2.0) - 1.0)
    return shift(x)


def by_a_sum_with_many_paths(_, x):
    total = tf.reduce_mean(x)
    for _ in range(40):  # 2 ** 40 paths lead back to the image
        total = total + total
    return x * total


BYTES, UNIT, SYMMETRIC = (0.0, 255.0), (0.0, 1.0), (-1.0, 1.0)
PREPARATIONS = {
    "to [0, 1]": (lambda m, x: x / 255.0, BYTES),
    "by a product": (lambda m, x: x * (1 / 255), BYTES),
    "to [-1, 1]": (lambda m, x: x / 127.5 - 1.0, BYTES),
    "by 128": (lambda m, x: (x - 128.0) / 128.0, BYTES),
    "less means": (lambda m, x: x[..., ::-1] - CAFFE, BYTES),
    "reversed by tf.reverse": (lambda m, x: tf.nn.bias_add(tf.reverse(x, [-1]), -CAFFE), BYTES),
    "reversed by tf.gather": (lambda m, x: tf.gather(x, [2, 1, 0], axis=-1) - CAFFE, BYTES),
    "channel by channel": (
        lambda m, x: tf.concat([x[..., k : k + 1] - CAFFE[k] for k in range(3)], axis=-1), BYTES,
    ),
    "cut": (lambda m, x: x[:, 1:-1, 1:-1, :] / 255.0, BYTES),
    "bytes in deviations": (lambda m, x: (x / 255.0 - MEAN) / STD, BYTES),
    "resized and padded": (
        lambda m, x: tf.pad(
            tf.image.resize(x, (6, 6)) / 127.5 - 1.0, [(0, 0), (1, 1), (1, 1), (0, 0)]
        ),
        BYTES,
    ),
    "clipped": (lambda m, x: tf.clip_by_value(x, 0.0, 255.0) / 255.0, BYTES),
    "negative": (lambda m, x: 1.0 - x / 255.0, BYTES),
    "from a variable": (lambda m, x: x * m.third, BYTES),
    "computed constants": (lambda m, x: x * tf.sqrt(tf.identity(1.0) / 65025.0), BYTES),
    "channels first": (
        lambda m, x: tf.transpose(
            (tf.transpose(x, (0, 3, 1, 2)) / 255.0 - MEAN[:, None, None]) / STD[:, None, None],
            (0, 2, 3, 1),
        ),
        BYTES,
    ),
    "doubled": (lambda m, x: x * 2.0 - 1.0, UNIT),
    "in functions": (in_a_function, UNIT),
    "less a half": (lambda m, x: (x - 0.5) * 2.0, UNIT),
    "in deviations": (lambda m, x: (x - MEAN) / STD, UNIT),
    "up to bytes": (lambda m, x: x * 255.0, UNIT),
    "up to bytes, less means": (lambda m, x: (255.0 * x)[:, :, :, ::-1] - CAFFE, UNIT),
    "up and down": (lambda m, x: (x * 255.0) / 127.5 - 1.0, UNIT),
    "from symmetric": (lambda m, x: x * 0.5 + 0.5, SYMMETRIC),
    "from symmetric, in deviations": (lambda m, x: ((x + 1.0) / 2.0 - MEAN) / STD, SYMMETRIC),
    "from symmetric to bytes": (lambda m, x: (x + 1.0) * 127.5, SYMMETRIC),
    "not at all": (lambda m, x: x, None),
    "turned only": (lambda m, x: x[..., ::-1], None),
    "a scale that tells nothing": (lambda m, x: x * 0.5, None),
    "twice the size": (lambda m, x: x * 2.0, None),
    "by the image itself": (lambda m, x: tf.image.per_image_standardization(x), None),
    "grey": (lambda m, x: tf.repeat(x[..., :1] / 255.0, 3, axis=-1), None),
    "two channels": (lambda m, x: tf.pad(x[..., 1:] / 255.0, [(0, 0)] * 3 + [(0, 1)]), None),
    "turned left to right": (lambda m, x: x[:, :, ::-1] / 255.0, None),
    "by a sum of the image": (by_a_sum_with_many_paths, None),
    "by its maximum": (lambda m, x: x / tf.reduce_max(x), None),
    "one way or the other": (
        lambda m, x: tf.cond(tf.reduce_max(x) > 1.0, lambda: x / 255.0, lambda: x * 2.0 - 1.0),
        None,
    ),
    "two scales at once": (lambda m, x: (x / 255.0) + tf.nn.relu(x * 2.0 - 1.0), None),
    "again and again": (
        lambda m, x: tf.while_loop(lambda k, y: k < 2, lambda k, y: (k + 1, y / 255.0), (0, x))[1],
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("style", PREPARATIONS)
def test_input_range_of_many_preparations(tmp_path, style):
    prepare, expected = PREPARATIONS[style]
    module = Images(prepare)
    assert input_range(module.__call__.get_concrete_function()) == expected
    loaded = saved(module, tmp_path / "module")
    assert input_range(inference(loaded)) == expected
    assert input_range(loaded.signatures["serving_default"]) == expected


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((None, 8, 8, 3), tf.uint8, BYTES),
        ((None, None, None, 3), tf.int32, BYTES),
        ((None, None, None, 3), tf.float16, BYTES),
        ((None, 8, 8, 3), tf.bool, None),
        ((8, 8, 3), tf.float32, None),
        (None, tf.float32, None),
        ((None, 8, 8, None), tf.float32, None),
    ],
)
def test_input_range_is_of_batches_of_colour_images_only(shape, dtype, expected):
    call = tf.function(lambda x: tf.reduce_max(tf.cast(x, tf.float32) / 255.0))
    function = call.get_concrete_function(tf.TensorSpec(shape, dtype))
    assert input_range(function) == expected


def test_input_range_passes_over_what_looks_at_the_shape_or_leads_nowhere():
    @tf.function(input_signature=[IMAGES])
    def call(x):
        tf.reduce_max(x)
        features = tf.reduce_mean(x / 255.0, axis=(1, 2))
        return features + tf.cast(tf.shape(x)[0], tf.float32)

    assert input_range(call.get_concrete_function()) == BYTES


def test_input_range_of_two_images_is_unknown():
    call = tf.function(lambda x, y: tf.nn.relu(x / 255.0) + tf.nn.relu(y / 255.0))
    assert input_range(call.get_concrete_function(IMAGES, IMAGES)) is None


def adapted():
    layer = keras.layers.Normalization()
    layer.adapt(np.random.default_rng(0).random((8, 8, 8, 3), dtype="float32"))
    return [layer]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (lambda: [keras.layers.Rescaling(1 / 255)], BYTES),
        (lambda: [keras.layers.Rescaling(2.0, offset=-1.0)], UNIT),
        (lambda: [keras.layers.Normalization(mean=MEAN, variance=STD**2)], UNIT),
        (lambda: [keras.layers.Normalization(mean=255 * MEAN, variance=(255 * STD) ** 2)], BYTES),
        (adapted, UNIT),
        (lambda: [keras.layers.Resizing(6, 6), keras.layers.Rescaling(1 / 127.5, -1)], BYTES),
        (lambda: [keras.applications.resnet.preprocess_input], BYTES),
        (lambda: [keras.applications.mobilenet_v2.preprocess_input], BYTES),
        (lambda: [keras.applications.densenet.preprocess_input], BYTES),
        (lambda: [], None),
    ],
)
def test_input_range_of_exported_keras_models(tmp_path, first, expected):
    x = inputs = keras.Input((8, 8, 3))
    for step in (*first(), keras.layers.Conv2D(2, 3)):
        x = step(x)
    keras.Model(inputs, x).export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    assert input_range(loaded.signatures["serving_default"]) == expected


def test_input_range_of_the_embedded_extractor():
    assert input_range(inference(tf.saved_model.load(str(extractor_folder("tiny"))))) == UNIT


def test_input_range_of_a_module_with_two_uses_of_the_image_is_unknown(tmp_path):
    loaded = tf.saved_model.load(str(save_dict_module(tmp_path / "several")))
    assert input_range(inference(loaded)) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenet_v1_025_224", UNIT),
        ("kws_ref_model", None),
        ("fake_effdet_lite0_hub", None),
        ("saved_model_v2_mini", None),
    ],
)
def test_facts_of_the_real_modules(name, expected):
    function = inference(tf.saved_model.load(str(shared("models", name))))
    assert input_range(function) == expected
    assert xla_obstacle(function) is None


def in_a_table(x):
    keys, values = tf.constant([1, 2], tf.int64), tf.constant([3, 4], tf.int64)
    table = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, -2, -3)
    table.insert(keys, values)
    return table.lookup(tf.cast(x, tf.int64))


def checked(x):
    tf.debugging.assert_less(x, 9.0, message="too large")
    return x + 1.0


def doubled_until_large(x):
    return tf.while_loop(lambda y: tf.reduce_max(y) < 9.0, lambda y: (y * 2.0,), (x,))[0]


def deep_inside(x):
    write = tf.function(lambda y: (tf.print(y), y + 1.0)[1])
    return tf.cond(tf.reduce_sum(x) > 0, lambda: write(x), lambda: x)


PICTURE = (1, 4, 4, 3)
COMPILED = {
    "a product": (lambda x: x @ tf.eye(3), (2, 3)),
    "an assertion with a message": (checked, (2, 3)),
    "a loop": (doubled_until_large, (2, 3)),
    "rows that the data choose": (lambda x: tf.boolean_mask(x, x[:, 0] > 0.5), (2, 3)),
    "bilinear": (lambda x: tf.image.resize(x, (2, 2)), PICTURE),
}
REFUSED = {
    "a table": (in_a_table, (2,), "looks words up in a table"),
    "python": (
        lambda x: tf.numpy_function(np.sin, [x], tf.float32), (2,), "calls back into Python",
    ),
    "text inside": (
        lambda x: tf.strings.to_hash_bucket_fast(tf.strings.as_string(x), 5), (2,), "works on text",
    ),
    "text out": (lambda x: tf.strings.as_string(x), (2,), "takes or returns text"),
    "printing in a branch of a function": (deep_inside, (2,), "reads data, writes or prints"),
    "pictures": (
        lambda x: tf.io.decode_jpeg(tf.io.encode_jpeg(tf.cast(x[0], tf.uint8))),
        PICTURE,
        "pictures as files",
    ),
    "counts": (lambda x: tf.unique_with_counts(x)[2], (2,), "size of a result depends"),
    "boxes": (
        lambda x: tf.image.combined_non_max_suppression(x[None, :, None], x[None, :, :1], 1, 1)[0],
        (2, 4),
        "size of a result depends",
    ),
    "bicubic": (lambda x: tf.image.resize(x, (2, 2), "bicubic"), PICTURE, "lacks an operation"),
    "smoothed": (
        lambda x: tf.image.resize(x, (2, 2), antialias=True), PICTURE, "(ScaleAndTranslate)",
    ),
}  # fmt: skip


def traced(function, shape):
    return tf.function(function).get_concrete_function(tf.TensorSpec(shape, tf.float32))


@pytest.mark.parametrize("what", COMPILED)
def test_no_obstacle_is_seen_in_what_xla_compiles(what):
    function, shape = COMPILED[what]
    x = tf.constant(np.random.default_rng(0).random(shape, dtype="float32"))
    received = tf.function(function, jit_compile=True)(x)
    np.testing.assert_allclose(received, function(x), rtol=1e-5)
    assert xla_obstacle(traced(function, shape)) is None


@pytest.mark.parametrize("what", REFUSED)
def test_an_obstacle_is_named_where_xla_refuses(what):
    function, shape, reason = REFUSED[what]
    x = tf.constant(np.random.default_rng(0).random(shape, dtype="float32"))
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)):
        tf.function(function, jit_compile=True)(x)
    assert reason in xla_obstacle(traced(function, shape))


def test_an_obstacle_is_named_with_its_operation_after_saving(tmp_path):
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64)), -1
    )
    words = tf.TensorSpec((None,), tf.string)
    module.__call__ = tf.function(lambda x: module.table.lookup(x), input_signature=[words])
    module.codes = tf.function(
        lambda x: module.table.lookup(tf.strings.as_string(x)),
        input_signature=[tf.TensorSpec((None,), tf.float32)],
    )
    loaded = saved(module, tmp_path / "module")
    assert xla_obstacle(inference(loaded)) == "it takes or returns text"
    found = xla_obstacle(loaded.codes.concrete_functions[0])
    assert found in (
        "it works on text (AsString)",
        "it looks words up in a table (LookupTableFindV2)",
    )
