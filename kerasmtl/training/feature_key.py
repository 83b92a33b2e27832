"""What features depend on, as one hash: the key that they are kept under."""

from __future__ import annotations

import hashlib
import json

import keras
import numpy as np

from kerasmtl.feature_blocks import FORMAT
from kerasmtl.sources import Source
from kerasmtl.training.feature_description import Description


def feature_key(features: keras.Model, source: Source, views: int) -> str:
    """The SHA-256 of all that decides the features of a data set's rows.

    These are the content of the inputs, what prepares and augments them, how many views there
    are, the frozen part's structure and weights, and the versions of Keras and of the format.
    Neither labels, names of layers, nor paths count.

    Args:
        features: the frozen part, as `split_model` makes it.
        source: of the data set.
        views: how many augmented views of each row.

    Raises:
        ValueError: a layer holds something that cannot be hashed; says what, and where.
    """
    parts = {
        "format": FORMAT,
        "keras": keras.__version__,
        "inputs": source.content_sha256(),
        "structure": Description(features.variables).graph(features),
        "weights": weights_sha256(features),
        "views": views,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def weights_sha256(model: keras.Model) -> str:
    """The hash of all variables of a model: their types, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for variable in model.variables:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        digest.update(f"{value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
