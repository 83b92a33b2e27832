"""SavedModels of unusual kinds: how they load, and what is said of those that do not."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import (
    add_optimizer,
    save_arguments_module,
    save_dict_module,
    save_reusable,
    save_text_module,
)

import kerasmtl as kt


@pytest.fixture(scope="module")
def arguments_module(tmp_path_factory):
    return save_arguments_module(tmp_path_factory.mktemp("arguments") / "module")


def two_graphs(folder):
    """A TF1 Hub module with a graph for inference and one for training, {} and {"train"}."""
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(folder))
    for number, tags in enumerate([[], ["train"]]):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, (None, 3), "x")
            weight = v1.get_variable("w", initializer=[1.0, 2.0, 3.0])
            signature = v1.saved_model.predict_signature_def(
                {"x": x}, {"default": x * weight + float(number)}
            )
            session.run(v1.global_variables_initializer())
            if number == 0:
                builder.add_meta_graph_and_variables(
                    session, tags, signature_def_map={"default": signature}
                )
            else:
                builder.add_meta_graph(tags, signature_def_map={"default": signature})
    builder.save()
    return folder


def test_a_tf1_module_with_two_graphs_runs_that_for_inference(tmp_path):
    layer = kt.HubLayer(two_graphs(tmp_path / "two"))
    np.testing.assert_allclose(layer(np.ones((1, 3), "float32")), [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="signatures are for inference"):
        layer.trainable = True


def test_an_operation_that_tensorflow_lacks_names_what_to_import(tmp_path):
    folder = save_reusable(tmp_path / "module")
    graph = folder / "saved_model.pb"
    graph.write_bytes(graph.read_bytes().replace(b"Conv2D", b"Conv9X"))
    with pytest.raises(ValueError, match="Conv9X.*tensorflow_text"):
        kt.HubLayer(folder)


def test_statistics_that_the_publisher_does_not_list_are_kept_all_the_same(tmp_path):
    class Unlisted(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable([1.0, 2.0, 3.0], name="w")
            self.moving_mean = tf.Variable(tf.zeros(3), trainable=False, name="moving_mean")

        @tf.function
        def __call__(self, x, training=False):
            if training:
                self.moving_mean.assign(0.5 * self.moving_mean + 0.5 * tf.reduce_mean(x, 0))
            return self.weight * (x - self.moving_mean)

    module = Unlisted()
    for training in (False, True):
        module.__call__.get_concrete_function(tf.TensorSpec((None, 3)), training=training)
    root = tf.train.Checkpoint(v=module.variables)
    root.__call__ = module.__call__
    root.trainable_variables = [module.weight]
    tf.saved_model.save(root, str(tmp_path / "unlisted"))
    layer = kt.HubLayer(tmp_path / "unlisted", trainable=True)
    assert {v.name for v in layer.non_trainable_variables} == {"moving_mean"}
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("adam", "mse")
    x = np.ones((4, 3), "float32")
    model.train_on_batch(x, x)
    model.save(tmp_path / "model.keras")
    loaded = kt.load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_array_equal(loaded(x), model(x))
    np.testing.assert_allclose(loaded.layers[-1].non_trainable_variables[0], [0.5] * 3)


def test_a_truncated_graph_is_named(tmp_path):
    folder = save_reusable(tmp_path / "module")
    graph = folder / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be loaded.*Fetch the module again"):
        kt.HubLayer(folder)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"signature": "nope"}, "`signature`"),
        ({"input_range": (0, 1, 2)}, "`input_range`"),
        ({"input_range": (255, 0)}, "`input_range`"),
        ({"output_shape": 192}, "`output_shape`"),
        ({"arguments": [1]}, "`arguments`"),
        ({"arguments": {"double": tf.constant(True)}}, "`arguments`"),
        ({"arguments": {"double": 7}}, r"`arguments`.*\['False', 'True'\] for 'double', got 7"),
        ({"arguments": {"dubble": True}}, "`arguments`.*'double'.*'dubble'"),
        ({"arguments": {"training": True}}, "`arguments`"),
    ],
)
def test_wrong_settings_are_named(arguments_module, given, message):
    with pytest.raises(ValueError, match=message):
        kt.HubLayer(arguments_module, **given)


@pytest.mark.parametrize(
    "inputs, message",
    [
        (np.zeros((1, 12, 12, 3), "uint8"), "`inputs`.*float32 .*got uint8"),
        (np.zeros((1, 12, 12), "float32"), "`inputs`.*got float32 \\(1, 12, 12\\)"),
    ],
)
def test_inputs_that_do_not_fit_are_described(tmp_path, inputs, message):
    layer = kt.HubLayer(save_reusable(tmp_path / "module"))
    with pytest.raises(ValueError, match=message):
        layer(inputs)


def test_an_output_without_shape_asks_for_it(tmp_path):
    class Shapeless(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)])
        def __call__(self, x):
            return tf.ensure_shape(tf.py_function(lambda y: y, [x], tf.float32), None)

    tf.saved_model.save(Shapeless(), str(tmp_path / "shapeless"))
    with pytest.raises(ValueError, match="`output_shape`"):
        kt.HubLayer(tmp_path / "shapeless")(keras.Input((3,)))
    known = kt.HubLayer(tmp_path / "shapeless", output_shape=(3,))
    assert known(keras.Input((3,))).shape == (None, 3)


def test_an_output_or_a_signature_is_chosen_and_the_others_are_named(tmp_path):
    folder = save_dict_module(tmp_path / "several")
    x = np.zeros((1, 4, 4, 3), "float32")
    assert set(kt.HubLayer(folder, signature="serving_default")(x)) == {"vector", "map"}
    with pytest.raises(ValueError, match=r"`output_key`.*\['map', 'vector'\]"):
        kt.HubLayer(folder, output_key="vektor")(x)


def test_nothing_is_run_for_the_shape_of_the_outputs(tmp_path):
    class Counting(tf.Module):
        def __init__(self):
            super().__init__()
            self.calls = tf.Variable(0, trainable=False, name="calls")

        @tf.function(input_signature=[tf.TensorSpec((None, 3))])
        def __call__(self, x):
            self.calls.assign_add(1)
            return x

    module = Counting()
    root = tf.train.Checkpoint(v=module.variables)
    root.__call__, root.variables = module.__call__, [module.calls]
    tf.saved_model.save(root, str(tmp_path / "counting"))
    layer = kt.HubLayer(tmp_path / "counting")
    assert layer(keras.Input((3,))).shape == (None, 3)
    assert layer.compute_output_shape((5, 3)) == (5, 3)
    assert int(layer.variables[0].numpy()) == 0
    layer(np.zeros((1, 3), "float32"))
    assert int(layer.variables[0].numpy()) == 1


# Where nothing registers the classes of Keras 2, as on a plain install.
WITHOUT_TF_KERAS = """
import sys
sys.modules["tf_keras"] = None
import keras, numpy as np, tensorflow as tf, kerasmtl as kt
layer = kt.HubLayer({folder!r})
assert not any(name.startswith("tf_keras.") for name in sys.modules)
layer.trainable = True
text = tf.constant(["stop go"])
model = keras.Sequential([keras.Input((), dtype="string"), layer])
before = layer.trainable_variables[0].numpy()
model.compile("adam", "mse", jit_compile=False)
model.fit(text, 1.0 + model(text).numpy(), verbose=0)
assert (before != layer.trainable_variables[0].numpy()).any(), "nothing was trained"
kt.save_model(model, {kept!r})
kept = kt.load_model({kept!r}, safe_mode=False)
np.testing.assert_array_equal(kept(text), model(text))
"""


@pytest.mark.slow
def test_a_module_saved_with_its_optimizer_loads_trains_and_travels(tmp_path):
    folder = add_optimizer(save_text_module(tmp_path / "text"))
    code = WITHOUT_TF_KERAS.format(folder=str(folder), kept=str(tmp_path / "kept.keras"))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "checkpoint" not in result.stderr


def test_without_its_optimizer_a_module_is_the_same(tmp_path):
    folder = save_reusable(tmp_path / "module")
    inputs = np.random.default_rng(0).random((2, 8, 8, 3), dtype="float32")
    before = kt.HubLayer(folder, trainable=True)
    after = kt.HubLayer(add_optimizer(folder), trainable=True)
    np.testing.assert_array_equal(before(inputs), after(inputs))
    assert [v.path for v in before.weights] == [v.path for v in after.weights]
    assert len(before.losses) == len(after.losses) == 1
