"""From pooled features to outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from kerasmtl.tasks import Task


def pool(features: Any) -> Any:
    """Features as (batch, features): a map (batch, height, width, features) is averaged.

    Raises:
        ValueError: several outputs, or an output that is neither a vector nor a map.
    """
    rank = len(features.shape) if hasattr(features, "shape") else None
    if rank == 4:
        return keras.layers.GlobalAveragePooling2D(name="head_pool")(features)
    if rank != 2:
        received = features.shape if rank else type(features).__name__
        raise ValueError(
            "`backbone` gives no feature vector. Expected one output, (batch, features) or (batch, "
            f"height, width, features). Received: {received}. For a module with named outputs call "
            "HubLayer(…, output_key=…)."
        )
    return features


def binary_head(
    features: Any, tasks: Sequence[Task], hidden: Sequence[int] = (), dropout: float = 0.0
) -> Any:
    """Dense layers with ReLU and dropout, then one sigmoid output for all binary tasks.

    Shapes: features (batch, features) in, probabilities (batch, tasks) out, float32 under any
    global policy, in the order of `tasks`.

    Raises:
        ValueError: a hidden width below 1 or dropout outside [0, 1).
    """
    if not all(isinstance(width, int) and width > 0 for width in hidden):
        raise ValueError(
            f"`hidden` is no list of widths. Expected positive integers. Received: {list(hidden)}"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"`dropout` is no share. Expected 0 <= dropout < 1. Received: {dropout}")
    for number, width in enumerate(hidden, start=1):
        features = keras.layers.Dense(width, activation="relu", name=f"head_dense_{number}")(
            features
        )
        features = keras.layers.Dropout(dropout, name=f"head_dropout_{number}")(features)
    if not hidden and dropout:
        features = keras.layers.Dropout(dropout, name="head_dropout")(features)
    return keras.layers.Dense(len(tasks), activation="sigmoid", dtype="float32", name="head")(
        features
    )
