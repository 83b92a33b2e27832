"""SavedModels to test against: made here, or real ones where they are at hand."""

from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

HELPERS = Path(__file__).parent
SHARED = Path(__file__).parents[3] / "shared"
# TensorFlow itself loads these, too; it does not load speech_embedding without tf_keras.
REAL = [
    "mobilenet_v1_025_224",
    "kws_ref_model",
    "fake_effdet_lite0_hub",
    "saved_model_v2_mini",
    "hub_module_v1_mini",
    "hub_module_v1_mini_train",
]


def shared(*parts: str) -> Path:
    """A path among the shared models or data; the test is skipped where they are absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real test data is not at hand: {Path(*parts)}")
    return path


def twin(layer):
    """The embedded network as plain Keras, with the weights of `HubLayer("tiny")`."""
    from kerasmtl.saved_models.tiny.network import tiny_network

    network = tiny_network()
    stored = {variable.name: variable.numpy() for variable in layer.variables}
    for part in network.layers:
        for weight in part.weights:
            weight.assign(stored.pop(f"{part.name}_{weight.name}"))
    assert stored == {}
    network.trainable = layer.trainable
    return network


class Reusable(tf.Module):
    """A convolution with batch statistics, as a TF2 reusable SavedModel.

    (batch, height, width, 3) in, (batch, 4) out; `scale` is a variable that the publisher left out
    of `trainable_variables`.
    """

    def __init__(self):
        super().__init__()
        start = tf.random.stateless_normal((3, 3, 3, 4), seed=(1, 2))
        self.kernel = tf.Variable(0.3 * start, name="block_1/conv/kernel")
        self.beta = tf.Variable(tf.zeros(4), name="block_1/bn/beta")
        self.mean = tf.Variable(tf.zeros(4), trainable=False, name="block_1/bn/moving_mean")
        self.scale = tf.Variable(tf.ones(4), name="scale")

    @tf.function
    def __call__(self, inputs, training=False):
        features = tf.reduce_mean(tf.nn.conv2d(inputs, self.kernel, 1, "VALID"), axis=(1, 2))
        if training:
            mean = tf.reduce_mean(features, axis=0)
            self.mean.assign(0.9 * self.mean + 0.1 * mean)
        else:
            mean = tf.convert_to_tensor(self.mean)
        return self.scale * (features - mean) + self.beta

    @tf.function(input_signature=[])
    def penalty(self):
        return 0.01 * tf.reduce_sum(self.kernel**2)


def save_reusable(folder: Path, size: int | None = None) -> Path:
    """Save `Reusable` the way TF-Hub publishes modules."""
    module = Reusable()
    spec = tf.TensorSpec((None, size, size, 3), tf.float32, name="inputs")
    for training in (False, True):
        module.__call__.get_concrete_function(spec, training=training)
    root = tf.train.Checkpoint(
        v=[module.kernel, module.beta, module.mean, module.scale],
    )
    root.__call__ = module.__call__
    root.variables = [module.kernel, module.beta, module.mean, module.scale]
    root.trainable_variables = [module.kernel, module.beta]
    root.regularization_losses = [module.penalty]
    tf.saved_model.save(root, str(folder))
    return folder


def add_optimizer(folder: Path) -> Path:
    """Make a saved module look as if Keras 2 had saved it together with its Adam.

    The optimizer is an object of the registered type "optimizer" whose slot variable belongs to the
    first variable of the module.
    """
    file = folder / "saved_model.pb"
    graph = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    nodes = graph.meta_graphs[0].object_graph_def.nodes
    original = next(i for i, node in enumerate(nodes) if node.WhichOneof("kind") == "variable")
    slot, optimizer = len(nodes), len(nodes) + 1
    nodes.add().CopyFrom(nodes[original])
    nodes[slot].variable.name += "/m"
    nodes[slot].ClearField("registered_name")
    nodes[slot].ClearField("saveable_objects")
    made = nodes.add()
    made.user_object.identifier = "optimizer"
    made.user_object.version.producer = made.user_object.version.min_consumer = 1
    made.slot_variables.add(
        original_variable_node_id=original, slot_name="m", slot_variable_node_id=slot
    )
    nodes[0].children.add(node_id=optimizer, local_name="optimizer")
    file.write_bytes(graph.SerializeToString())
    return folder


def save_dict_module(folder: Path) -> Path:
    """Save a module that returns a dict: "vector" (batch, 3) and "map" (batch, h, w, 3)."""

    class Several(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
        def __call__(self, x):
            return {"vector": tf.reduce_mean(x, axis=(1, 2)), "map": 2.0 * x}

    tf.saved_model.save(Several(), str(folder))
    return folder


def _publish(module: tf.Module, folder: Path, **attributes) -> Path:
    """Save the way TF-Hub publishes: a callable with the listed attributes."""
    root = tf.train.Checkpoint(v=module.variables)
    root.__call__ = module.__call__
    for name, value in attributes.items():
        setattr(root, name, value)
    tf.saved_model.save(root, str(folder))
    return folder


WORDS = ["stop", "go", "left", "right", "car"]


def save_text_module(folder: Path) -> Path:
    """Text (batch,) strings in, (batch, 4) out: a word table kept as an asset, and embeddings."""
    words = folder.parent / f"{folder.name}-words.txt"
    words.write_text("\n".join(WORDS))

    class Text(tf.Module):
        def __init__(self):
            super().__init__()
            start = tf.random.stateless_normal((len(WORDS) + 1, 4), seed=(3, 4))
            self.table = tf.lookup.StaticVocabularyTable(
                tf.lookup.TextFileInitializer(
                    str(words),
                    tf.string,
                    tf.lookup.TextFileIndex.WHOLE_LINE,
                    tf.int64,
                    tf.lookup.TextFileIndex.LINE_NUMBER,
                ),
                num_oov_buckets=1,
            )
            self.embeddings = tf.Variable(start, name="words/embeddings")

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="text")])
        def __call__(self, text):
            split = tf.strings.split(text)
            found = self.table.lookup(split.flat_values)
            vectors = tf.RaggedTensor.from_row_splits(
                tf.gather(self.embeddings, found), split.row_splits
            )
            return tf.reduce_mean(vectors, axis=1)

    module = Text()
    _publish(
        module,
        folder,
        table=module.table,
        variables=[module.embeddings],
        trainable_variables=[module.embeddings],
    )
    words.unlink()
    return folder


def save_nested_module(folder: Path) -> Path:
    """A dict of ids and weights, both (batch, 5), in; {"pooled": …, "steps": […, …]} out."""

    class Nested(tf.Module):
        def __init__(self):
            super().__init__()
            start = tf.random.stateless_normal((7, 3), seed=(5, 6))
            self.table = tf.Variable(start, name="encoder/embeddings")

        @tf.function(
            input_signature=[
                {
                    "ids": tf.TensorSpec((None, 5), tf.int32, name="ids"),
                    "weights": tf.TensorSpec((None, 5), tf.float32, name="weights"),
                }
            ]
        )
        def __call__(self, inputs):
            steps = tf.gather(self.table, inputs["ids"]) * inputs["weights"][..., None]
            return {"pooled": tf.reduce_sum(steps, 1), "steps": [steps[:, 0], steps[:, 1]]}

    module = Nested()
    return _publish(module, folder, variables=[module.table], trainable_variables=[module.table])


def save_arguments_module(folder: Path) -> Path:
    """Two tensors (batch, 3) in, and `double`, traced both ways; (batch, 3) out."""

    class Arguments(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable([1.0, 2.0, 3.0], name="mix/weight")

        @tf.function
        def __call__(self, left, right, double=False, training=False):
            mixed = self.weight * left - right
            if training:
                mixed = mixed + 100.0
            return 2.0 * mixed if double else mixed

    module = Arguments()
    spec = tf.TensorSpec((None, 3), tf.float32)
    for double in (False, True):
        for training in (False, True):
            module.__call__.get_concrete_function(spec, spec, double=double, training=training)
    return _publish(module, folder, variables=[module.weight], trainable_variables=[module.weight])


def save_keras_export(folder: Path) -> Path:
    """A Keras 3 model written by its `export`: a `serve` function and signatures."""
    import keras

    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation="relu", name="first", kernel_initializer="ones")
    last = keras.layers.Dense(3, name="second", kernel_initializer="ones")
    keras.Model(inputs, last(hidden(inputs)), name="exported").export(str(folder), verbose=False)
    return folder
