"""Small models of rows, and their exports without verification."""

import keras
import numpy as np

import kerasmtl as kt

TASKS = [
    kt.Task("wet | dry"),
    kt.Task("kind", "multiclass", classes=("low", "high", "größe")),
    kt.Task("hours", "regression"),
]
COLUMNS = ["age", "body weight", "größe"]


def mixed_model(seed=0):
    """A model of rows with `COLUMNS` and `TASKS`, one of each kind."""
    keras.utils.set_random_seed(seed)
    return kt.build_model(kt.backbones.mlp(len(COLUMNS), [6]), TASKS)


def small_model(columns=2, tasks=("a",), seed=0):
    """A model of rows with binary tasks."""
    keras.utils.set_random_seed(seed)
    return kt.build_model(kt.backbones.mlp(columns, [3]), list(tasks))


def export_table(model, path, tasks=TASKS, columns=COLUMNS, verify=False, **options):
    """`export_saved_model` of a model of rows; verification takes a process."""
    return kt.export_saved_model(
        model, path, tasks, kt.data.Table(columns), verify=verify, **options
    )


def validation(rows=120, seed=0):
    """Rows, and labels that are chance, a fifth of them missing."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, len(COLUMNS))).astype("float32")
    labels = {
        "binary": rng.integers(0, 2, (rows, 1)).astype("float32"),
        "kind": rng.integers(0, 3, (rows, 1)).astype("float32"),
        "hours": rng.normal(size=(rows, 1)).astype("float32"),
    }
    for values in labels.values():
        values[rng.random(values.shape) < 0.2] = np.nan
    return tf.data.Dataset.from_tensor_slices((x, labels)).batch(32)


def table_options(columns):
    """What says to `export_saved_model` and `convert_model` that a model takes these columns."""
    return {"input": kt.data.Table(columns)}
