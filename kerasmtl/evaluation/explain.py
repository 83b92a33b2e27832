"""Labels that are likely wrong, where a model looks in an image, and which columns it goes by.

`html_report` shows all three. They ask a model that is trained, and change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from kerasmtl.evaluation.evaluate import Known
from kerasmtl.evaluation.report import main_score
from kerasmtl.tasks import Task, by_task
from kerasmtl.training.features import nodes_of

MOST_COLUMNS = 40  # whose importance is measured: each costs several predictions of all rows
MOST_ROWS = 500  # that it is measured on
REPEATS = 3


def likely_wrong_labels(labels: Any, p: Any) -> pd.DataFrame:
    """Find known labels that are likely wrong, by confident learning.

    The threshold of a class is the mean probability of that class over the rows that have it as
    their label, `t_j = mean of p_j(x) over {x: y = j}`. Among the classes with `p_j(x) >= t_j` the
    likeliest is what the label should be; where it is another one than y, the label is likely
    wrong. The rows must be ones that the model has not seen: it knows those it was trained on by
    heart, their errors included.

    Args:
        labels: (rows,) 0 and 1, or positions of classes; NaN = missing, which plays no role.
        p: (rows,) probabilities of 1, or (rows, classes).

    Returns:
        A row for each such label, the surest first: `row`, `label`, `suggested`, and `margin`, the
        probability of the suggested class minus that of the label.

    Raises:
        ValueError: shapes that do not fit, or a known label that is not a class of `p`.

    Source: Northcutt, Jiang and Chuang 2021, https://arxiv.org/abs/1911.00068, section 3.1.

    Example:
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> labels = np.array([1, 1, 1, 0, 0, 0, np.nan])
        >>> p = np.array([0.9, 0.8, 0.1, 0.2, 0.1, 0.1, 0.9])
        >>> kt.reports.likely_wrong_labels(labels, p)["row"].tolist()
        [2]
    """
    y, p = np.asarray(labels, "float64"), np.asarray(p, "float64")
    if y.ndim != 1 or p.ndim not in (1, 2) or len(p) != len(y):
        raise ValueError(
            f"`p` must be of shape {y.shape} or ({len(y)}, classes), got {p.shape} for labels of "
            f"shape {y.shape}"
        )
    rows = np.flatnonzero(~np.isnan(y))
    q = np.column_stack([1 - p, p])[rows] if p.ndim == 1 else p[rows]
    if not np.isin(y[rows], range(q.shape[1])).all():
        raise ValueError(f"`labels` must be 0 to {q.shape[1] - 1} or NaN, got others")
    y = y[rows].astype(int)
    # A class that no label has has no threshold, and is never suggested.
    least = [q[y == c, c].mean() if (y == c).any() else np.inf for c in range(q.shape[1])]
    eligible = np.where(q >= least, q, -np.inf)
    suggested = eligible.argmax(axis=1)
    wrong = np.isfinite(eligible.max(axis=1, initial=-np.inf)) & (suggested != y)
    each = np.arange(len(y))
    margin = q[each, suggested] - q[each, y]
    found = {"row": rows, "label": y, "suggested": suggested, "margin": margin}
    table = pd.DataFrame(found)[wrong]
    return table.sort_values("margin", ascending=False, kind="stable").reset_index(drop=True)


def attention_maps(
    model: keras.Model, images: Any, tasks: Sequence[Task], wanted: Sequence[tuple[str, int]]
) -> tuple[np.ndarray, str]:
    """Return which parts of images speak for a prediction, and by which method.

    Grad-CAM, `relu(Σ_c mean(∂p/∂A_c) A_c)`, of the last map of features A that layers with weights
    compute (https://arxiv.org/abs/1610.02391). Where there is none, as inside a `HubLayer`, the
    gradient of the pixels, `max_c |∂p/∂x_c|` (https://arxiv.org/abs/1312.6034). Maps are
    (rows, height, width), from 0 to 1 in each row.

    Args:
        model: as `build_model` makes it.
        images: (rows, height, width, 3), as the model takes them.
        tasks: of the model.
        wanted: per row, the name of a task, and the class of a multiclass one.

    Raises:
        ValueError: nothing of the prediction can be traced to the pixels.
    """
    x, kept = tf.convert_to_tensor(images), []
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = by_task(_run(model, x, tape, kept), tasks)
        total = 0.0
        for row, (name, at) in enumerate(wanted):  # a row of classes, or one number
            p = outputs[name][row]
            total += p[at] if p.shape.rank else p
    seen = kept[-1] if kept else x
    slope = tf.cast(tape.gradient(total, seen, unconnected_gradients="zero"), tf.float32)
    if kept:
        weights = tf.reduce_mean(slope, axis=(1, 2), keepdims=True)
        maps = tf.nn.relu(tf.reduce_sum(weights * tf.cast(seen, tf.float32), axis=-1))
    else:
        maps = tf.reduce_max(tf.abs(slope), axis=-1)
    maps = np.nan_to_num(maps.numpy().astype("float64"))
    highest = maps.max(axis=(1, 2), keepdims=True)
    if not highest.any():
        raise ValueError("`model` must have gradients from predictions to pixels, got zeros")
    method = "Grad-CAM" if kept else "gradient of the pixels"
    return maps / np.where(highest > 0, highest, 1), method


def _run(model: keras.Model, x: Any, tape: tf.GradientTape, kept: list[Any]) -> Any:
    """Call a model of one input layer by layer, also those nested in it.

    The tape watches, and `kept` gets, the maps of features that come after layers with weights.
    """
    values, learned = {id(model.inputs[0]): x}, False

    def valued(value: Any) -> Any:
        return values[id(value)] if isinstance(value, keras.KerasTensor) else value

    for call in nodes_of(model):
        arguments = (call.arguments.args, call.arguments.kwargs)
        args, kwargs = keras.tree.map_structure(valued, arguments)
        layer = call.operation
        if isinstance(layer, keras.Model) and len(layer.inputs) == 1:
            result = _run(layer, keras.tree.flatten(args)[0], tape, kept)
        else:
            result = layer(*args, **kwargs)
            learned |= bool(getattr(layer, "weights", None))
            shape = getattr(result, "shape", ())
            if learned and len(shape) == 4 and shape[1] * shape[2] > 1:
                tape.watch(result)
                kept.append(result)
        for symbol, value in zip(call.outputs, keras.tree.flatten(result), strict=True):
            values[id(symbol)] = value
    outputs = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    return keras.tree.map_structure(valued, outputs)


def column_importance(
    model: keras.Model, values: np.ndarray, tasks: Sequence[Task], cells: Mapping[str, Known]
) -> pd.DataFrame:
    """Return by how much each task's score falls if a column's values are shuffled among the rows.

    The mean of three shuffles, (columns, tasks), indexed by the position of the column; without
    tasks that the labels cannot score. Of many columns, those with the largest mean gradient times
    standard deviation are looked at. Source: Breiman 2001, https://doi.org/10.1023/A:1010933404324.

    Args:
        model: takes (rows, columns).
        values: (rows, columns), rows that the model has not seen.
        tasks: of the model.
        cells: known labels by task name, of these rows.
    """
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(values))[:MOST_ROWS])
    x, truth = values[chosen].astype("float32"), {}
    for task in tasks:
        known = cells[task.name].drawn(np.bincount(chosen, minlength=len(values)))
        if len(np.unique(known.y)) > 1:
            truth[task] = np.searchsorted(chosen, known.rows), known.y

    def scores(x: np.ndarray) -> pd.Series:
        found, outputs = {}, by_task(model.predict_on_batch(x), tasks)
        for task, (rows, y) in truth.items():
            found[task.name] = main_score(task.kind, y, np.asarray(outputs[task.name])[rows])
        return pd.Series(found)

    columns = range(x.shape[1])
    if len(columns) > MOST_COLUMNS:
        inputs = tf.Variable(x)
        with tf.GradientTape() as tape:
            total = tf.add_n([tf.reduce_sum(output) for output in tf.nest.flatten(model(inputs))])
        slope = tape.gradient(total, inputs, unconnected_gradients="zero").numpy()
        size = np.nan_to_num(np.abs(slope).mean(axis=0) * pd.DataFrame(x).std().to_numpy())
        columns = np.sort(np.argsort(-size, kind="stable")[:MOST_COLUMNS])
    falls = {}
    for column in columns if truth else ():
        shuffled = np.repeat(x[None], REPEATS, axis=0)
        shuffled[:, :, column] = [rng.permutation(x[:, column]) for _ in range(REPEATS)]
        falls[column] = scores(x) - sum(map(scores, shuffled)) / REPEATS
    return pd.DataFrame(falls).T
