"""What all losses share: masking, normalization, task weights, and refusal of invalid values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
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
from kerasmtl.utils.validation import check_choice, check_number

ROUNDING = 1e-6  # by which a probability may miss [0, 1], as sums of float32 do

LABELS_HINT = "of the batch: if it means missing, pass missing=-1 to the loss"

# Keras attaches these to tensors: the logits that a sigmoid or softmax was taken of, and the mask.
# There is no public way to read the former; Keras' own losses read it in keras.src.backend.
LOGITS = "_keras_logits"
ATTACHED = (LOGITS, "_keras_mask")

# Where values are invalid, the values, what these must be, and how to correct the call.
Fault = tuple[Any, Any, str, str]


class MaskedLoss(keras.losses.Loss):
    """Base of the losses over known labels: `(1/m) Σ_i w_i / Z_i Σ_j k_ij v_j ℓ(y_ij, p_ij)`.

    `k_ij` is 1 where the label is known (for losses that assume something of missing labels:
    everywhere) and 0 elsewhere, `w_i` is the `sample_weight` of the row, `v_j` the weight of the
    task, and `Z_i` the normalization: 1 for "sum"; `Σ_j k_ij v_j` for "mean"; or a number, such as
    `kt.losses.mean_known(labels)`. The weight of a single task does not cancel out. Nothing here
    depends on the other rows of the batch.

    Shapes: y_true (batch, tasks) float, NaN = missing; y_pred (batch, tasks). `call` returns
    (batch,), so that Keras' reduction, `sample_weight` of shape (batch,) and the scaling over
    replicas work as in Keras. Computed in float32 under any policy, or in float64 with
    `dtype="float64"`.

    A missing label adds exactly 0 and has a gradient of exactly 0, whatever is predicted there;
    with no known label the loss is 0. Invalid values are never hidden: a label outside its range,
    or a finite prediction that is not a probability (by more than 1e-6, which is rounding), is an
    error; a NaN or infinite prediction for a known label, as after divergence, makes loss and
    gradient NaN. XLA drops assertions: compiled with it, as `fit` is by default on a GPU
    (`jit_compile="auto"`), such labels and predictions make the loss NaN as well.

    Under tf.distribute loss and update equal those of one device if the batch size is divisible by
    the number of replicas (use `drop_remainder=True`): Keras averages the replicas' means, which
    gives rows of a smaller share a larger weight, here as in Keras' own losses.

    Subclasses define `_elementwise`, and may change `_included`, `_neutral` and the checks. What
    their `variables` list is kept with the state of a run, see `kt.callbacks.Resume`.

    Args:
        normalization: "sum", "mean" or a positive number.
        task_weights: v, one number of 0 or more per task.
        balancer: a `Balancer`, which learns the weights of the tasks during training.
        missing: one more code for missing besides NaN, for labels that come as integers.
        reduction, name: as in `keras.losses.Loss`.
        dtype: in which the loss is computed, "float32" or "float64".

    Raises:
        ValueError: an invalid argument; y_true and y_pred that are not both (batch, tasks); weights
            or a balancer for another number of tasks; or sample_weight that is not (batch,).
        tf.errors.InvalidArgumentError: a label or a probability out of range, or shapes that
            differ, where only a running graph knows them.
    """

    SETTINGS: tuple[str, ...] = ()  # further arguments of a subclass, which are attributes, too
    includes_missing = False  # whether missing labels have a loss, too
    gaussian = False  # a squared error: a balancer takes half of it as a negative log likelihood
    binary = False  # whether labels lie in [0, 1]
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
        check_choice("dtype", self.dtype, ("float32", "float64"))
        if isinstance(normalization, str):
            self.normalization = check_choice("normalization", normalization, ("sum", "mean"))
        else:
            self.normalization = check_number("normalization", normalization, 0.0, open_low=True)
        self.task_weights = check_weights("task_weights", task_weights)
        if balancer is not None and not isinstance(balancer, Balancer):
            raise ValueError(f"`balancer` must be a kerasmtl.losses.Balancer, got {balancer!r}")
        self.balancer = balancer
        self.missing = check_missing(missing, binary=self.binary)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        # (batch, tasks) weights would broadcast against the (batch,) losses if batch == tasks.
        if sample_weight is not None:
            check_row_weights(sample_weight)
        return super().__call__(y_true, cast_with_attached(y_pred, self.dtype), sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        predicted, logits = self._predictions(y_pred)
        y_true, predicted = self._aligned(y_true, predicted)
        known = is_known(y_true, self.missing)
        included = self._included(known)
        # Labels and predictions are replaced before the formula and the result after it:
        # either alone lets NaN or a constant through (0 * NaN is NaN; logit 0 costs ln 2).
        y = fill_missing(y_true, known, 0.0)
        p = fill_missing(predicted, included, self._neutral(logits))
        invalid_p, invalid_y = self._invalid_predictions(p, logits), self._invalid_labels(y, p)
        invalid = ops.logical_or(self._by_label(invalid_p), invalid_y)
        labels = f"`y_true` must be {self.labels_must_be}, or NaN (= missing)", LABELS_HINT
        refuse(
            invalid,
            lambda: [(invalid_y, y, *labels), probability_fault(invalid_p, p)],
        )
        nan = nan_where(invalid, p.dtype)
        # Times the prediction for the gradient, which clipping would make 0; times the loss for
        # the value, which a comparison would hide.
        losses = self._elementwise(y, p * nan, known, logits) * nan
        return self._per_row(fill_missing(losses, included, 0.0), included)

    def _elementwise(self, y: Any, p: Any, known: Any, logits: bool) -> Any:
        """Return the loss of each label, (batch, tasks).

        Missing labels are 0 in `y`, and `p` is neutral where they are not included.
        """
        raise NotImplementedError

    def _included(self, known: Any) -> Any:
        """Return which labels have a loss, (batch, tasks) bool."""
        return ops.ones_like(known) if self.includes_missing else known

    def _aligned(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Return labels (batch, tasks) and predictions."""
        return match_shapes(y_true, y_pred)

    def _by_label(self, invalid: Any) -> Any:
        """Return which labels, (batch, tasks), have an invalid prediction."""
        return invalid

    def _predictions(self, y_pred: Any) -> tuple[Any, bool]:
        """Return what the loss is computed from, and whether that is logits."""
        return y_pred, False

    def _neutral(self, logits: bool) -> float:
        """Return what replaces the prediction of a label that is not included."""
        return 0.0

    def _invalid_predictions(self, p: Any, logits: bool) -> Any:
        return ops.isnan(p)

    def _invalid_labels(self, y: Any, p: Any) -> Any:
        return ops.logical_or(y < 0.0, y > 1.0)

    def _per_row(self, losses: Any, included: Any) -> Any:
        """Return the balanced, weighted and normalized loss of each row, (batch,)."""
        tasks = losses.shape[-1]
        if self.balancer is not None:
            self.balancer.claim(self)
            losses = self.balancer.weigh(losses, included, 0.5 if self.gaussian else 1.0)
        weights = per_task("task_weights", self.task_weights, tasks, losses.dtype)
        total = ops.sum(losses * weights, axis=-1)
        if self.normalization == "sum" or (self.normalization == "mean" and tasks == 1):
            return total
        if self.normalization == "mean":
            amount = ops.sum(ops.cast(included, losses.dtype) * weights, axis=-1)
            return total / ops.where(amount > 0.0, amount, ops.ones_like(amount))
        return total / self.normalization

    @property
    def variables(self) -> list[keras.Variable]:
        """What the loss remembers from batch to batch: the state of its balancer."""
        return [] if self.balancer is None else list(self.balancer.state.values())

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "normalization": self.normalization,
            "task_weights": self.task_weights,
            "balancer": self.balancer and keras.saving.serialize_keras_object(self.balancer),
            "missing": self.missing,
            "dtype": self.dtype,
            **{name: getattr(self, name) for name in self.SETTINGS},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MaskedLoss:
        balancer = config.get("balancer")
        if isinstance(balancer, dict):
            balancer = keras.saving.deserialize_keras_object(balancer)
        return cls(**{**config, "balancer": balancer})


def logits_of(y_pred: Any) -> Any | None:
    """Return the logits that Keras took the sigmoid or softmax of to make `y_pred`, if known."""
    logits = getattr(y_pred, LOGITS, None)
    if logits is None or tuple(logits.shape) != tuple(y_pred.shape):
        return None
    return ops.cast(logits, y_pred.dtype)


def cast_with_attached(y_pred: Any, dtype: str) -> Any:
    """Return `y_pred` as `dtype`, with what Keras attached to it, which a cast alone loses."""
    converted = ops.convert_to_tensor(y_pred, dtype=dtype)
    for name in ATTACHED:
        value = getattr(y_pred, name, None)
        if value is not None and converted is not y_pred:
            setattr(converted, name, ops.cast(value, dtype) if name == LOGITS else value)
    return converted


def values_and_kind(y_pred: Any, from_logits: bool) -> tuple[Any, bool]:
    """Return what to compute a loss from, and whether that is logits: always, if there are any."""
    logits = logits_of(y_pred)
    if logits is None:
        return y_pred, from_logits
    if from_logits:
        warnings.warn(
            "`from_logits` must be False for predictions of a sigmoid or softmax, got True. As in "
            "Keras, the logits before the activation are used.",
            stacklevel=2,
        )
    return logits, True


def probability_fault(invalid: Any, p: Any) -> Fault:
    """Describe finite predictions that are not probabilities for `refuse`."""
    hint = (
        "of the batch: logits need from_logits=True in the loss, or a sigmoid (softmax) as the "
        "model's last activation"
    )
    finite = ops.logical_and(invalid, ops.isfinite(p))
    return finite, p, "`y_pred` must be probabilities from 0 to 1", hint


def refuse(invalid: Any, faults: Callable[[], list[Fault]]) -> None:
    """Raise InvalidArgumentError for the first fault, at once or when the graph runs.

    XLA drops it.

    Args:
        invalid: bool of any shape, True where there may be a fault. Only then are the faults
            computed, so that a sound step costs no more than this condition.
        faults: makes the list of what may be wrong.
    """
    if not isinstance(invalid, keras.KerasTensor):
        tf.cond(tf.reduce_any(invalid), lambda: _assert_none(faults()), lambda: tf.constant(False))


def _assert_none(faults: list[Fault]) -> tf.Tensor:
    done: list[tf.Operation] = []
    for invalid, values, must, hint in faults:
        count = tf.math.count_nonzero(invalid)
        most = tf.constant(math.inf, values.dtype)
        low = tf.reduce_min(tf.where(invalid, values, most))
        high = tf.reduce_max(tf.where(invalid, values, -most))
        data = [f"{must}, got", low, "to", high, "in", count, f"cells {hint}"]
        with tf.control_dependencies(done):
            # Not tf.debugging.Assert, whose own condition XLA would have to pass strings into.
            checked = tf.raw_ops.Assert(condition=tf.equal(count, 0), data=data, summarize=1)
        done = [] if checked is None else [checked]
    return tf.constant(False)


def nan_where(invalid: Any, dtype: Any) -> Any:
    """Return a factor, 1 or NaN, that makes value and gradient NaN exactly where invalid."""
    one = ops.ones_like(invalid, dtype=dtype)
    return ops.where(invalid, one * math.nan, one)


def not_probability(p: Any) -> Any:
    """Return True where p is NaN or outside [0, 1] by more than rounding."""
    return ops.logical_not(ops.logical_and(p >= -ROUNDING, p <= 1.0 + ROUNDING))


def per_task(name: str, values: Any, tasks: int, dtype: Any) -> Any:
    """Return the numbers of an argument as (tasks,), or one number for all tasks; None is 1."""
    if not isinstance(values, tuple):
        return 1.0 if values is None else values
    if len(values) != tasks:
        raise ValueError(f"`{name}` must be one number per task, {tasks}, got {len(values)}")
    return ops.convert_to_tensor(values, dtype=dtype)


def check_weights(name: str, values: Any) -> tuple[float, ...] | None:
    """Return one weight per task as a tuple, or None.

    Raises:
        ValueError: a weight is negative or infinite, or all are 0.
    """
    if values is None:
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if not all(math.isfinite(n) and n >= 0.0 for n in numbers) or not sum(numbers):
        raise ValueError(
            f"`{name}` must be one finite number of 0 or more per task, not all of them 0, "
            f"got {values!r}"
        )
    return numbers
