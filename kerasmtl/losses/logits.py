"""The logits behind probabilities: what is left to learn from where a probability is 0 or 1."""

from __future__ import annotations

import warnings
from typing import Any

from keras import ops

# Keras notes them on tensors: the logits that a sigmoid or softmax was taken of, and the mask. No
# public call reads the former. Keras' own losses read it in backend.nn.
LOGITS = "_keras_logits"
NOTES = (LOGITS, "_keras_mask")


def logits_of(y_pred: Any) -> Any | None:
    """The logits that Keras took the sigmoid or softmax of to make `y_pred`; None if unknown."""
    logits = getattr(y_pred, LOGITS, None)
    if logits is None or tuple(logits.shape) != tuple(y_pred.shape):
        return None
    return ops.cast(logits, y_pred.dtype)


def cast_with_notes(y_pred: Any, dtype: str) -> Any:
    """`y_pred` as `dtype`, with what Keras noted on it, which a cast loses."""
    converted = ops.convert_to_tensor(y_pred, dtype=dtype)
    for name in NOTES:
        note = getattr(y_pred, name, None)
        if note is not None and converted is not y_pred:
            setattr(converted, name, ops.cast(note, dtype) if name == LOGITS else note)
    return converted


def values_and_kind(y_pred: Any, from_logits: bool) -> tuple[Any, bool]:
    """What to compute a loss from, and whether that is logits: always, where there are any."""
    logits = logits_of(y_pred)
    if logits is None:
        return y_pred, from_logits
    if from_logits:
        warnings.warn(
            "`from_logits` is True, and the predictions come from a sigmoid or softmax. Expected "
            "from_logits=False, or an output without activation. As in Keras, the logits before "
            "the activation are used.",
            stacklevel=2,
        )
    return logits, True
