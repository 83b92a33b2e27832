"""What all losses share: masking, normalization, weights of tasks and rows, and balancing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from kerasmtl.losses.balancing import Balancer
from kerasmtl.masking import (
    check_missing,
    check_row_weights,
    fill_missing,
    is_known,
    match_shapes,
)

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


NORMALIZATIONS = ("sum", "mean")
DTYPES = ("float32", "float64")
ROUNDING = 1e-6  # by which a probability may miss [0, 1], as sums of float32 do


class MaskedLoss(keras.losses.Loss):
    """Base of the losses over cells: `(1/m) Σ_i w_i / Z_i Σ_j k_ij v_j ℓ(y_ij, p_ij)`.

    `k_ij` is 1 where the label is known (or, for a policy that counts unknown labels, everywhere),
    `w_i` the `sample_weight` of the row, `v_j` the weight of the task, and `Z_i` the normalization:
    "sum" 1; "mean" `Σ_j k_ij v_j` of the row itself; a number that number, such as
    `counts.mean_known(labels)`. A single task is not divided by its own weight. None of them
    depends on the batch.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks). `call` returns
    (batch,), so that Keras' reduction, `sample_weight` of shape (batch,) and the scaling by
    replicas stay right. Computed in float32 under any policy, in float64 with `dtype="float64"`.

    Under tf.distribute loss and update are those of one device for batches that divide by the
    number of replicas (`drop_remainder=True` otherwise): Keras averages the means of the replicas,
    in which a row of a smaller part counts for more, here as in Keras' own losses.

    A missing cell adds exactly 0 and has a gradient of exactly 0, whatever is predicted there; with
    no known label the loss is 0. What cannot be right is never hidden: a known label or a
    probability outside the range of its kind is an error, and a NaN or infinite prediction of a
    known cell, as of a training that diverged, makes loss and gradient NaN. XLA drops assertions:
    compiled with it, as `fit` is by default where there is a GPU (`jit_compile="auto"`), such
    labels and probabilities make the loss NaN as well.

    Raises:
        ValueError: a wrong argument, y_true and y_pred that are not both (batch, tasks), weights
            or a balancer for another number of tasks, or sample_weight that is not (batch,).
        tf.errors.InvalidArgumentError: a label or a probability out of range; shapes that differ,
            where only a running graph knows them.
    """

    counts_unknown = False
    gaussian = False
    binary = False
    labels_must_be = "from 0 to 1"

    def __init__(
        self,
        normalization: str | float = "sum",
        task_weights: Iterable[float] | None = None,
        balancer: Balancer | None = None,
        missing: float | None = None,
        reduction: str = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype or "float32")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"`dtype` cannot hold the loss. Expected one of {DTYPES}; predictions may be of "
                f"any. Received: {dtype!r}"
            )
        self.normalization = _checked_normalization(normalization)
        self.task_weights = checked_weights("task_weights", task_weights)
        if balancer is not None and not isinstance(balancer, Balancer):
            raise ValueError(
                "`balancer` is none. Expected a kerasmtl.losses.balancing.Balancer. "
                f"Received: {balancer!r}"
            )
        self.balancer = balancer
        self.missing = check_missing(missing, binary=self.binary)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        # (batch, tasks) weights would broadcast against the (batch,) losses if batch == tasks.
        if sample_weight is not None:
            check_row_weights(sample_weight)
        return super().__call__(y_true, cast_with_notes(y_pred, self.dtype), sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        predicted, logits = self._predictions(y_pred)
        y_true, predicted = match_shapes(y_true, predicted)
        known = is_known(y_true, self.missing)
        counted = self._counted(known)
        # Labels and predictions are replaced before the formula and the result after it:
        # either alone lets NaN or a constant through (0 * NaN is NaN; logit 0 costs ln 2).
        y = fill_missing(y_true, known, 0.0)
        p = fill_missing(predicted, counted, self._neutral(logits))
        wrong_p, wrong_y = self._wrong_predictions(p, logits), self._wrong_labels(y)
        wrong = ops.logical_or(wrong_p, wrong_y)
        refuse(
            wrong,
            lambda: [
                labels_fault(wrong_y, y, self.labels_must_be),
                predictions_fault(wrong_p, p),
            ],
        )
        spoilt = nan_where(wrong, p.dtype)
        # Of the prediction for the gradient, which clipping would make 0; of the loss for the
        # value, which a comparison would hide.
        cells = self._cells(y, p * spoilt, known, logits) * spoilt
        return self._by_row(fill_missing(cells, counted, 0.0), counted)

    def _counted(self, known: Any) -> Any:
        """Which cells have a loss."""
        return ops.ones_like(known) if self.counts_unknown else known

    def _predictions(self, y_pred: Any) -> tuple[Any, bool]:
        """What the loss is computed from, and whether that is logits."""
        return y_pred, False

    def _neutral(self, logits: bool) -> float:
        """What stands in for the prediction of a missing cell."""
        return 0.0

    def _cells(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        """The loss of each cell, (batch, tasks); y is 0 and p neutral where they do not count."""
        raise NotImplementedError

    def _wrong_predictions(self, p: Any, logits: bool) -> Any:
        return ops.isnan(p)

    def _wrong_labels(self, y: Any) -> Any:
        return ops.logical_or(y < 0.0, y > 1.0)

    def _by_row(self, cells: Any, counted: Any) -> Any:
        tasks = cells.shape[-1]
        if self.balancer is not None:
            self.balancer.claim(self)
            cells = self.balancer.weigh(cells, counted, 0.5 if self.gaussian else 1.0)
        weights = per_task("task_weights", self.task_weights, tasks, cells.dtype)
        total = ops.sum(cells * weights, axis=-1)
        if self.normalization == "sum" or self.normalization == "mean" and tasks == 1:
            return total
        if self.normalization == "mean":
            amount = ops.sum(ops.cast(counted, cells.dtype) * weights, axis=-1)
            return total / ops.where(amount > 0.0, amount, ops.ones_like(amount))
        return total / self.normalization

    def get_config(self) -> dict[str, Any]:
        balancer = self.balancer and keras.saving.serialize_keras_object(self.balancer)
        return {
            **super().get_config(),
            "normalization": self.normalization,
            "task_weights": self.task_weights and list(self.task_weights),
            "balancer": balancer,
            "missing": self.missing,
            "dtype": self.dtype,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MaskedLoss:
        balancer = config.get("balancer")
        if isinstance(balancer, dict):
            balancer = keras.saving.deserialize_keras_object(balancer)
        return cls(**{**config, "balancer": balancer})


Fault = tuple[Any, Any, str, str]  # wrong cells, values, what these must be, and what mends them


def labels_fault(wrong: Any, y: Any, must_be: str) -> Fault:
    """Say of wrong labels what `refuse` does."""
    return (
        wrong,
        y,
        f"`y_true` must be {must_be}, or NaN (= missing)",
        "of the batch: if it stands for a missing label, pass missing=-1 to the loss",
    )


def predictions_fault(wrong: Any, p: Any) -> Fault:
    """Say of what is no probability what `refuse` does; others than finite ones are not meant."""
    return (
        ops.logical_and(wrong, ops.isfinite(p)),
        p,
        "`y_pred` must be probabilities from 0 to 1",
        "of the batch: logits need from_logits=True in the loss, or a sigmoid (softmax) as the "
        "model's last activation",
    )


def refuse(wrong: Any, faults: Callable[[], list[Fault]]) -> None:
    """Raise InvalidArgumentError of the first fault that there is, at once or when the graph runs.

    XLA drops it. `wrong`, of any shape, is True where there may be a fault; only then are the
    faults looked at, so that a step costs no more than that one condition.
    """
    if not isinstance(wrong, keras.KerasTensor):
        tf.cond(tf.reduce_any(wrong), lambda: _say(faults()), lambda: tf.constant(False))


def _say(faults: list[Fault]) -> Any:
    said = []
    for wrong, values, must, mend in faults:
        count = tf.math.count_nonzero(wrong)
        most = tf.constant(math.inf, values.dtype)
        low = tf.reduce_min(tf.where(wrong, values, most))
        high = tf.reduce_max(tf.where(wrong, values, -most))
        data = [f"{must}, got", low, "to", high, "in", count, f"cells {mend}"]
        with tf.control_dependencies(said):
            done = tf.raw_ops.Assert(condition=tf.equal(count, 0), data=data, summarize=1)
        said = [] if done is None else [done]
    return tf.constant(False)


def nan_where(wrong: Any, dtype: Any) -> Any:
    """A factor, 1 or NaN: it spoils value and gradient of just the cells that are wrong."""
    one = ops.ones_like(wrong, dtype=dtype)
    return ops.where(wrong, one * float("nan"), one)


def outside_of_0_and_1(p: Any) -> Any:
    """True where p is NaN or no probability, give or take its rounding."""
    return ops.logical_not(ops.logical_and(p >= -ROUNDING, p <= 1.0 + ROUNDING))


def per_task(argument: str, values: Any, tasks: int, dtype: Any) -> Any:
    """Numbers of an argument as (tasks,), or the one number that holds for all."""
    if values is None:
        return 1.0
    if not isinstance(values, tuple):
        return values
    if len(values) != tasks:
        raise ValueError(
            f"`{argument}` does not fit the labels. Expected one number a task, {tasks}. "
            f"Received: {len(values)}"
        )
    return ops.convert_to_tensor(values, dtype=dtype)


def checked_weights(argument: str, values: Any) -> tuple[float, ...] | None:
    """Weights, one a task, as a tuple; ValueError if one is negative or infinite or all are 0."""
    if values is None:
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except TypeError:
        numbers = ()
    if not numbers or not all(math.isfinite(n) and n >= 0.0 for n in numbers) or not sum(numbers):
        raise ValueError(
            f"`{argument}` are no weights. Expected one finite number a task, 0 or more, not all "
            f"of them 0. Received: {values!r}"
        )
    return numbers


def checked_number(argument: str, value: Any, low: float = 0.0, high: float = math.inf) -> float:
    """A finite number in [low, high], or ValueError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        fits = False
    else:
        fits = low <= value <= high
    if not fits:
        bound = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of {low:g} or more"
        raise ValueError(
            f"`{argument}` is out of range. Expected a number {bound}. Received: {value!r}"
        )
    return float(value)


def _checked_normalization(value: Any) -> str | float:
    positive = (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > 0
    )
    if positive:
        return float(value)
    if isinstance(value, str) and value in NORMALIZATIONS:
        return value
    raise ValueError(
        f"`normalization` is unknown. Expected one of {NORMALIZATIONS} or a positive number. "
        f"Received: {value!r}"
    )
