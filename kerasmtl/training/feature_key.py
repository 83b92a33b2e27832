"""What features depend on, as one hash: the key that they are kept under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kerasmtl.feature_blocks import FORMAT
from kerasmtl.sources import Source
from kerasmtl.training.feature_description import Description


def identity_of(features: keras.Model) -> dict[str, Any]:
    """What decides the features of given inputs: the frozen part's structure and weights, and the
    versions of Keras and of the format. Names of layers do not count.

    Args:
        features: the frozen part, as `split_model` makes it.

    Raises:
        ValueError: a layer holds something that cannot be hashed; says what, and where.
    """
    return {
        "format": FORMAT,
        "keras": keras.__version__,
        "structure": Description(features.variables).graph(features),
        "weights": weights_sha256(features),
    }


def feature_key(identity: Mapping[str, Any], source: Source, views: int) -> str:
    """The SHA-256 of all that decides the features of a data set's rows.

    Beside the identity of the frozen part these are the content of the inputs, what prepares and
    augments them, and how many augmented views of each row there are. Neither labels nor paths
    count.
    """
    parts = {**identity, "inputs": source.content_sha256(), "views": views}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def weights_sha256(model: keras.Model) -> str:
    """The hash of all variables of a model: their types, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for variable in model.variables:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        digest.update(f"{value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
