"""Heads on frozen features, chosen by folds over all known labels, and fitted in seconds.

With few labels neither the last epoch nor the best one on a small validation part is a good guide.
`fit_head` therefore scores candidates (linear over strengths of regularization, ensembles of small
networks with one hidden layer over numbers of steps) by grouped, stratified folds, in which every
known label judges models that have not seen it. Candidates that the folds cannot tell from the best
are averaged: all of them are linear in their last layer, so that the average is one head of plain
Dense layers, which `FittedHead.attach` puts on the frozen part of a model.

Everything is NumPy and SciPy on features that are computed once: no graph is traced.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras
import numpy as np
from scipy.optimize import minimize, minimize_scalar
from threadpoolctl import threadpool_limits

from kerasmtl.data.splits import split_rows, units
from kerasmtl.evaluation.evaluate import known_cells
from kerasmtl.evaluation.report import main_score
from kerasmtl.losses.defaults import target_scales
from kerasmtl.models.build import task_head
from kerasmtl.tasks import BINARY, Task, all_binary, as_tasks, by_task, output_columns
from kerasmtl.training.features import split_model
from kerasmtl.utils.validation import check_count, check_number

FOLDS = 5
FEW = 1_000  # rows up to which folds are drawn twice, and four times up to a quarter of them
MANY = 4_000  # rows from which on fewer strengths and steps of the solver are enough
STRENGTHS = 10.0 ** np.arange(1.5, -3.6, -0.5)  # of a linear head's L2 penalty, the strongest first
STEPS = (40, 80, 160, 320, 640)  # of a hidden layer's training, of which the folds choose one
UNSURE = 15  # known labels of the median task, below which the constant always has a share
WORSE = 2  # candidates in a row may be worse; the next one ends a path


@dataclass(frozen=True)
class Linear:
    """A linear head with an L2 penalty, the same strength for all tasks: `λ/2 |w|²` per column.

    Each column's loss is the mean over its known labels, so that λ means the same however many
    there are.

    Args:
        strengths: values of λ that are tried, from the strongest on; the path ends where the folds
            no longer gain.
    """

    strengths: Sequence[float] = tuple(STRENGTHS)


@dataclass(frozen=True)
class Hidden:
    """An ensemble of networks with one hidden layer, each of which leaves one fold out.

    The average of their logits is one hidden layer of `members * width` units. Trained by AdamW in
    steps of equal batches; predictions are of an exponential moving average of the weights.

    Args:
        width: units of one network.
        dropout: fraction of them dropped in training.
        input_dropout: fraction of features dropped in training.
        weight_decay: share of a weight that a step of rate 1 takes away.
        learning_rate: of Adam.
        start: what the first weights are multiplied by: small ones learn fewer, stronger features.
        steps: numbers of steps that are tried.
        ensemble: False makes a head of the first network alone, for comparisons of widths.
    """

    width: int = 64
    dropout: float = 0.3
    input_dropout: float = 0.1
    weight_decay: float = 1.0
    learning_rate: float = 2e-3
    start: float = 1.0
    steps: Sequence[int] = STEPS
    ensemble: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_count("width", self.width)
        check_number("dropout", self.dropout, 0.0, 1.0, open_high=True)
        check_number("input_dropout", self.input_dropout, 0.0, 1.0, open_high=True)


# More dropout, and weights that start small: of what was tried on Tox21, among the best.
MANY_ROWS = Hidden(128, 0.6, 0.4, 0.0, 1e-3, 1 / 16, (200, 400, 800, 1200, 1600))


@dataclass(frozen=True)
class Candidate:
    """A candidate as the folds have scored it.

    Attributes:
        name: such as "linear, strength 0.1".
        loss: mean over tasks of the mean loss of known labels out of fold: log loss, or half the
            squared error of standardized labels.
        error: the standard error of its difference from the best candidate; 0 for the best.
        scale: what its logits are multiplied by, around the share of positives; below 1 where it is
            too sure of itself, and always 1 where a task is a regression.
        chosen: whether it is part of the head.
    """

    name: str
    loss: float
    error: float
    scale: float
    chosen: bool


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A head that `fit_head` has chosen and fitted.

    Attributes:
        tasks: in the order of the labels' columns.
        candidates: as the folds scored them, the best first.
        folds: how many there were; 0 if there were too few rows to judge anything.
        why: what was chosen, as a sentence.
        scales: mean and standard deviation of the labels of each regression task.
        labels: those it was fitted on, (rows, tasks), NaN = missing.
        tune: whether fine-tuning starts from it, judged by rows that it has not seen.
        next: why it does, or why not.
    """

    tasks: tuple[Task, ...]
    candidates: tuple[Candidate, ...]
    folds: int
    why: str
    scales: Mapping[str, tuple[float, float]]
    labels: np.ndarray = field(repr=False)
    _part: _Part = field(repr=False)
    _held_out: np.ndarray = field(repr=False)
    tune: bool = False
    next: str = ""

    def __str__(self) -> str:
        """Show the candidates as a table, and what was chosen."""
        width = max([len(each.name) for each in self.candidates], default=9)
        lines = [f"{'candidate':{width}}  loss of {self.folds} folds"] if self.candidates else []
        for each in self.candidates:
            error = (
                "" if not each.error else f", worse by {each.loss - self.candidates[0].loss:.4f}"
            )
            error += f" ± {each.error:.4f}" if each.error else ""
            mark = "  *" if each.chosen else ""
            lines.append(f"{each.name:{width}}  {each.loss:.4f}{error}{mark}")
        return "\n".join([*lines, self.why])

    def table(self) -> list[dict[str, Any]]:
        """Return the candidates as plain values, for JSON."""
        return [dict(vars(each)) for each in self.candidates]

    def predict(self, features: np.ndarray) -> Any:
        """Return what a model with this head predicts, laid out as `kt.build_model` says.

        Args:
            features: (rows, columns), as those it was fitted on.
        """
        return self._outputs(self._part.logits(np.asarray(features, "float32")))

    @cached_property
    def out_of_fold(self) -> Any:
        """Predictions of the rows by models that have not seen them, laid out as `predict`.

        NaN where there were no folds.
        """
        return self._outputs(self._held_out)

    def cells(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return known labels and their predictions out of fold, by task, as for `decide`."""
        return known_cells(self.tasks, self.labels, by_task(self.out_of_fold, self.tasks))

    def scores(self) -> dict[str, float]:
        """Return each task's score out of fold: ROC-AUC, accuracy, or R²; NaN if it has none."""
        cells = self.cells()
        return {task.name: main_score(task.kind, *cells[task.name]) for task in self.tasks}

    def attach(self, model: keras.Model) -> keras.Model:
        """Return a model with the frozen part of another one, and this head in place of its own.

        Args:
            model: with a frozen part that gives the features that the head was fitted on, as
                `kt.features.split_model` finds it. It is left as it is, but shares its layers.

        Raises:
            ValueError: the model has no frozen part, or one of another width.
        """
        features, _ = split_model(model)
        rows = features.output
        width = len(self._part.skip)
        if isinstance(rows, Mapping) or rows.shape[1:] != (width,):
            raise ValueError(
                f"`model` must have {width} frozen features, got "
                f"{[each.shape for each in keras.tree.flatten(rows)]}"
            )
        part, hidden = self._part, self._part.hidden.shape[1]
        skip = bool(part.skip.any()) or not hidden
        with model.distribute_strategy.scope():
            outputs = task_head(
                rows,
                self.tasks,
                [hidden] if hidden else [],
                scales=self.scales,
                skip=skip,
                dtype="float32",  # standardization is part of the weights: half precision loses it
            )
            made = keras.Model(features.input, outputs)
        made.name = model.name
        if hidden:
            made.get_layer("head_dense_1").set_weights([part.hidden, part.hidden_bias])
        kernel = np.concatenate(
            [part.skip, part.out] if skip and hidden else [part.skip if skip else part.out]
        )
        spans = _spans(self.tasks)
        for columns in output_columns(self.tasks).values():
            binary = self.tasks[columns[0]].kind == "binary"
            name = f"head_{BINARY if binary else columns[0]}"
            chosen = np.concatenate([np.arange(spans[c].start, spans[c].stop) for c in columns])
            layer = made.get_layer("head" if all_binary(self.tasks) else name)
            layer.set_weights([kernel[:, chosen], part.bias[chosen]])
        return made

    def _outputs(self, logits: np.ndarray) -> Any:
        """Return logits (rows, columns) as probabilities and units, in a model's layout."""
        spans, found = _spans(self.tasks), {}
        for key, columns in output_columns(self.tasks).items():
            z = np.concatenate([logits[:, spans[column]] for column in columns], axis=1)
            kind = self.tasks[columns[0]].kind
            if kind == "regression":
                mean, std = self.scales.get(key, (0.0, 1.0))
                found[key] = z * std + mean
            else:
                found[key] = _softmax(z) if kind == "multiclass" else _sigmoid(z)
        return found[BINARY] if all_binary(self.tasks) else found


def fit_head(
    features: np.ndarray,
    labels: np.ndarray,
    tasks: Sequence[Task | str],
    groups: np.ndarray | None = None,
    candidates: Sequence[Linear | Hidden] | None = None,
    folds: int = FOLDS,
    seed: int = 0,
    views: Mapping[str, slice] | None = None,
) -> FittedHead:
    """Choose a head by folds over all known labels, and fit it on all of them.

    The loss is the mean over tasks, by their weights, of the mean over known labels (log loss; half
    the squared error of standardized labels). Each candidate's logits are scaled around the share
    of positives so that they are neither too sure nor too timid, but for sets with a regression;
    those whose loss is within one standard error of the best one's, over rows (groups) in pairs,
    are averaged. On the sets of `benchmarks/panel.py` averaging was better than the simplest of
    them. One candidate is always "constant", the share of positives or the mean: where nothing can
    be learned, nothing is claimed.

    Args:
        features: (rows, columns) finite numbers.
        labels: (rows, tasks), NaN = missing; 0 to 1, the number of the class, or the value.
        tasks: of the columns of `labels`; a string is the name of a binary task.
        groups: (rows,) what belongs together, and must not be on both sides of a fold; None is a
            row of its own. Identical features belong together in any case.
        candidates: kinds of head that are tried; by default `Linear()` and `Hidden()`.
        folds: at most that many; fewer where there are fewer rows (groups).
        seed: of the folds and of the networks.
        views: parts of the columns that candidates see one at a time, by name, as they are;
            without it they see all of them, standardized.

    Returns:
        The head; `FittedHead.attach` puts it on a model, `print` shows the candidates.

    Raises:
        ValueError: features that are not a finite matrix, labels that do not fit, or no known label
            at all.

    Example:
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> rng = np.random.default_rng(0)
        >>> features = rng.normal(size=(80, 5))
        >>> labels = (features[:, :2] + rng.normal(size=(80, 2)) > 0).astype("float32")
        >>> labels[rng.random(labels.shape) < 0.3] = np.nan
        >>> head = kt.features.fit_head(features, labels, ["car", "person"])
        >>> head.predict(features).shape, head.folds
        ((80, 2), 5)
    """
    chosen = as_tasks(tasks)
    x, labels = np.asarray(features), np.asarray(labels, "float64")
    if x.ndim != 2 or 0 in x.shape or not np.isfinite(x).all():
        raise ValueError(f"`features` must be finite numbers (rows, columns), got {x.shape}")
    if labels.shape != (len(x), len(chosen)) or np.isnan(labels).all():
        raise ValueError(
            f"`labels` must be ({len(x)}, {len(chosen)}) with a known label, got {labels.shape}"
        )
    # A row without labels can teach and judge nothing: left out, it has no influence.
    told = ~np.isnan(labels).all(axis=1)
    center, spread = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if views is None:
        center, spread = x[told].mean(axis=0, dtype="float64"), x[told].std(axis=0, dtype="float64")
        spread = np.where(spread > 1e-6 * np.maximum(np.abs(center), 1e-12), spread, np.inf)
        x = (x - center) / spread
    x = x.astype("float32", copy=False)
    # A row without a group is alone; identical rows are never on two sides of a fold.
    own = [f"row {row}" for row in range(len(x))]
    if groups is not None:
        own = [name if g is None else f"group {g}" for name, g in zip(own, groups, strict=True)]
    alike = np.array([hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in x])
    unit = units(np.array(own), alike)
    target = Target(labels[told], chosen)
    held = _held_out(labels[told], chosen, unit[told], folds, seed)
    many = len(unit[told]) >= MANY
    # Of many rows every second strength: the loss is flat there, and a step takes long.
    default = (Linear(tuple(STRENGTHS[::2])), MANY_ROWS) if many else (Linear(), Hidden())
    paths = default if candidates is None else candidates
    paths = paths if held else paths[:1]
    # More threads than this only wait for each other on matrices so small.
    with threadpool_limits(limits=None if many else 1, user_api="blas"):
        tried = [
            _tried(
                each, name if views and len(views) > 1 else "", part, x[told], target, held, seed
            )
            for each in paths
            for name, part in (views or {"": slice(0, x.shape[1])}).items()
        ]
    tried = [each for each in tried if each is not None]
    table, part, out_of_fold, why = _chosen(tried, target, unit[told], held, x.shape[1])
    # Standardization becomes part of the weights: the head takes features as they are.
    spread = spread[:, None]
    bias = part.bias - (center / spread[:, 0]) @ part.skip
    hidden_bias = part.hidden_bias - (center / spread[:, 0]) @ part.hidden
    final = _Part(part.skip / spread, part.hidden / spread, hidden_bias, part.out, bias)
    predictions = np.full((len(x), target.columns), np.nan)
    predictions[told] = out_of_fold
    return FittedHead(
        chosen,
        table,
        int(max((fold.max() + 1 for fold in held), default=0)),
        why,
        target.scales,
        labels,
        final.as_float32(),
        predictions,
    )


# ---------------------------------------------------------------- targets and losses


class Target:
    """Labels as columns of logits: one a binary or regression task, one a class.

    Attributes:
        y: (rows, columns): 0 to 1; standardized values.
        weight: (rows, columns): of the loss of a cell, 0 where the label is missing; those of all
            tasks that have labels sum to the same.
        prior: (columns,), the logits of a head that knows no features.
        scales: of regression tasks, as `target_scales`.
    """

    def __init__(self, labels: np.ndarray, tasks: Sequence[Task]) -> None:
        self.tasks, self.labels = tasks, labels
        self.spans = _spans(tasks)
        self.columns = self.spans[-1].stop
        self.scales = target_scales(tasks, labels)
        self.y = np.zeros((len(labels), self.columns), "float32")
        self.weight = np.zeros((len(labels), self.columns), "float32")
        self.prior = np.zeros(self.columns)
        weights = [task.weight for task in tasks]
        judged = float(np.dot(weights, (~np.isnan(labels)).any(axis=0))) or 1.0
        for task, span, column in zip(tasks, self.spans, labels.T, strict=True):
            known = ~np.isnan(column)
            self.weight[known, span] = task.weight / (max(known.sum(), 1) * judged)
            if task.kind == "multiclass":
                self.y[known, span] = np.eye(task.outputs)[column[known].astype(int)]
                count = self.y[known, span].sum(axis=0) + 0.5
                self.prior[span] = np.log(count / count.sum())
            elif task.kind == "regression":
                mean, std = self.scales.get(task.name, (0.0, 1.0))
                self.y[known, span] = ((column[known] - mean) / std)[:, None]
            else:
                self.y[known, span] = column[known][:, None]
                share = (column[known].sum() + 0.5) / (known.sum() + 1)
                self.prior[span] = np.log(share / (1 - share))
        kinds = np.repeat([t.kind for t in tasks], [s.stop - s.start for s in self.spans])
        self.binary, self.linear = kinds == "binary", kinds == "regression"
        self.classes = [s for t, s in zip(tasks, self.spans, strict=True) if t.kind == "multiclass"]

    def residuals(self, z: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the gradient of the unweighted loss by the logits (…, columns)."""
        p = z if self.linear.all() else np.where(self.linear, z, _sigmoid(z))
        for span in self.classes:
            p[..., span] = _softmax(z[..., span])
        return p - y

    def logits(self, outputs: Any) -> np.ndarray:
        """Return what a model predicts, laid out as `kt.build_model` says, as logits."""
        named, found = by_task(outputs, self.tasks), []
        for task in self.tasks:
            p = np.asarray(named[task.name], "float64").reshape(len(self.y), -1)
            if task.kind == "regression":
                mean, std = self.scales.get(task.name, (0.0, 1.0))
                found.append((p - mean) / std)
            else:
                p = np.clip(p, 1e-7, 1 - 1e-7)
                found.append(np.log(p) if task.kind == "multiclass" else np.log(p / (1 - p)))
        return np.concatenate(found, axis=1)

    def losses(self, z: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        """Return the loss of each cell, (…, columns); a class other than the label's costs 0."""
        y = self.y if y is None else y
        cost = np.where(self.linear, (z - y) ** 2 / 2, np.logaddexp(0, z) - y * z)
        for span in self.classes:
            part = z[..., span]
            log = part - np.logaddexp.reduce(part, axis=-1, keepdims=True)
            cost[..., span] = -y[..., span] * log
        return cost

    def loss(self, z: np.ndarray) -> float:
        """Return the mean over tasks of the mean over known labels."""
        return float((self.losses(z) * self.weight).sum())

    def scaled(self, z: np.ndarray) -> tuple[float, float]:
        """Return the factor of the distance from the prior that costs least, and that loss.

        It is 1 where a task is a regression, which an average of candidates shrinks enough.
        """
        if self.linear.any():
            return 1.0, self.loss(z)
        away = z - self.prior
        found = minimize_scalar(
            lambda scale: self.loss(self.prior + scale * away),
            bounds=(0.0, 3.0),
            method="bounded",
        )
        return float(found.x), float(found.fun)


@dataclass(frozen=True)
class _Part:
    """A head as arrays: logits = x skip + relu(x hidden + hidden_bias) out + bias."""

    skip: np.ndarray
    hidden: np.ndarray
    hidden_bias: np.ndarray
    out: np.ndarray
    bias: np.ndarray

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return (rows, columns)."""
        found = x @ self.skip + self.bias
        if self.hidden.shape[1]:
            found = found + np.maximum(x @ self.hidden + self.hidden_bias, 0) @ self.out
        return found

    def as_float32(self) -> _Part:
        """Return the same with float32 arrays."""
        return _Part(*(np.asarray(each, "float32") for each in vars(self).values()))


@dataclass(frozen=True)
class _Tried:
    """The best of a path: its name, its logits out of fold, and the head fitted on all rows."""

    name: str
    held_out: np.ndarray
    part: _Part


def _spans(tasks: Sequence[Task]) -> list[slice]:
    """Return the columns of logits of each task."""
    ends = np.cumsum([task.outputs for task in tasks]).tolist()
    return [slice(end - task.outputs, end) for task, end in zip(tasks, ends, strict=True)]


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(z, -60, 60)))


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# ---------------------------------------------------------------- folds


def _held_out(
    labels: np.ndarray, tasks: Sequence[Task], unit: np.ndarray, folds: int, seed: int
) -> list[np.ndarray]:
    """Return drawings of folds, each (rows,) the number of the fold that holds a row out.

    None if there are not two units to part.
    """
    there = len(np.unique(unit))
    count = min(folds, there)
    if count < 2:
        return []
    drawn = []
    for number in range(4 if len(labels) <= FEW // 4 else 2 if len(labels) <= FEW else 1):
        names = np.arange(len(labels))
        parts = split_rows(labels, tasks, names, [1 / count] * count, seed + number, groups=unit)
        fold = np.empty(len(labels), int)
        for place, rows in enumerate(parts):
            fold[rows] = place
        drawn.append(fold)
    return drawn


def _splits(held: list[np.ndarray], rows: int) -> np.ndarray:
    """Return (splits, rows): which rows each of the models of all folds is trained on."""
    found = [fold != number for fold in held for number in range(fold.max() + 1)]
    return np.array(found).reshape(-1, rows)


def _out_of_fold(held: list[np.ndarray], logits: Any, columns: int) -> np.ndarray:
    """Return (rows, columns), the mean over drawings of what the models of other folds say.

    Args:
        held: the drawings.
        logits: function of the number of a split and of rows.
        columns: of logits.
    """
    total, number = np.zeros((len(held[0]), columns)), 0
    for fold in held:
        for place in range(fold.max() + 1):
            rows = np.flatnonzero(fold == place)
            total[rows] += logits(number, rows)
            number += 1
    return total / len(held)


# ---------------------------------------------------------------- candidates


def _tried(
    kind: Linear | Hidden,
    view: str,
    span: slice,
    x: np.ndarray,
    target: Target,
    held: list[np.ndarray],
    seed: int,
) -> _Tried | None:
    """Return the best of a path of candidates, by the loss out of fold at its best scale.

    Args:
        kind: of head.
        view: name of the columns, "" for all.
        span: which columns it sees.
        x: (rows, all columns).
        target: of the rows.
        held: drawings of folds.
        seed: of the networks.
    """
    part = x[:, span]
    if not part.any():
        return None
    path = _linear_path if isinstance(kind, Linear) else _hidden_path
    best: tuple[float, str, np.ndarray, Any] | None = None
    since = 0
    for name, held_out, refit in path(kind, part, target, held, seed):
        loss = target.scaled(held_out)[1] if held else 0.0
        if best is None or loss < best[0]:
            best, since = (loss, name, held_out, refit), 0
        else:
            since += 1
        if since > WORSE or not held:
            break
    assert best is not None
    _, name, held_out, refit = best
    found = refit()
    wide = _Part(
        _widened(found.skip, span, x.shape[1]),
        _widened(found.hidden, span, x.shape[1]),
        found.hidden_bias,
        found.out,
        found.bias,
    )
    return _Tried(f"{name}, {view}" if view else name, held_out, wide)


def _widened(weights: np.ndarray, span: slice, columns: int) -> np.ndarray:
    """Return weights of some columns as weights of all, 0 elsewhere."""
    found = np.zeros((columns, weights.shape[1]), weights.dtype)
    found[span] = weights
    return found


def _linear_path(
    kind: Linear, x: np.ndarray, target: Target, held: list[np.ndarray], seed: int
) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Yield a linear head for each strength, from the strongest on, each started from the last."""
    rows, columns = x.shape
    rotated, back = x, None
    if columns > rows:  # the same solution in as many columns as there are rows
        u, s, back = np.linalg.svd(x.astype("float64"), full_matrices=False)
        rotated = u * s
    rotated = np.ascontiguousarray(rotated, "float64" if rows < MANY else "float32")
    splits = _splits(held, rows)
    folds = None
    for strength in kind.strengths if held else [1.0]:
        if held:
            folds = _linear(rotated, target, splits, strength, folds)
            w = folds

            def logits(number: int, which: np.ndarray, w: np.ndarray = w) -> np.ndarray:
                return rotated[which] @ w[:-1, number] + w[-1, number]

            held_out = _out_of_fold(held, logits, target.columns)
        else:
            held_out = np.full((rows, target.columns), np.nan)

        def refit(strength: float = strength) -> _Part:
            all_rows = _linear(rotated, target, np.ones((1, rows), bool), strength, None)
            skip, bias = all_rows[:-1, 0], all_rows[-1, 0]
            skip = skip if back is None else back.T @ skip
            none = np.zeros((columns, 0))
            return _Part(skip, none, none[0], np.zeros((0, target.columns)), bias)

        yield f"linear, strength {strength:.3g}", held_out, refit


def _linear(
    x: np.ndarray,
    target: Target,
    splits: np.ndarray,
    strength: float,
    start: np.ndarray | None,
) -> np.ndarray:
    """Fit linear heads on several selections of the rows at once, by L-BFGS.

    Args:
        x: (rows, columns).
        target: of the rows.
        splits: (splits, rows) bool, the rows of each selection.
        strength: λ of the penalty.
        start: of an earlier call.

    Returns:
        (columns + 1, splits, logits), the bias last.
    """
    seen = splits.T[:, :, None] * target.weight[:, None]  # (rows, splits, logits)
    total = seen.sum(axis=0)
    seen = (seen / np.where(total > 0, total, 1)).astype(x.dtype)
    # A multiclass task's loss is a sum over its columns: each has the weight of its row.
    shape = (x.shape[1] + 1, len(splits), target.columns)
    y = target.y[:, None]
    if start is None:
        start = np.zeros(shape)
        start[-1] = target.prior

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(shape)
        kernel = w[:-1].reshape(len(w) - 1, -1)
        z = (x @ kernel.astype(x.dtype)).reshape(-1, *shape[1:]) + w[-1].astype(x.dtype)
        loss = float((target.losses(z, y) * seen).sum()) + strength / 2 * float((kernel**2).sum())
        slope = (target.residuals(z, y) * seen).astype(x.dtype)
        flat_slope = slope.reshape(len(x), -1)
        by_kernel = x.T @ flat_slope + strength * kernel
        return loss, np.concatenate([by_kernel.ravel(), slope.sum(axis=0, dtype="float64").ravel()])

    options = {"maxiter": 30 if len(x) >= MANY else 60, "ftol": 1e-9, "gtol": 1e-6}
    found = minimize(cost, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(shape)


def _hidden_path(
    kind: Hidden, x: np.ndarray, target: Target, held: list[np.ndarray], seed: int
) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Yield the ensemble after each number of steps; nothing is fitted again on all rows."""
    held = held[: 2 if kind.ensemble else 1]  # ten networks are enough
    splits = _splits(held, len(x)) if held else np.ones((4, len(x)), bool)
    each = 2 if kind.ensemble and len(held) == 1 else 1  # networks of a fold
    splits = np.repeat(splits, each, axis=0)
    nets = _Ensemble(kind, x, target, splits, seed)
    for steps in kind.steps if held else [160]:
        nets.train(steps - nets.steps)

        def logits(number: int, which: np.ndarray) -> np.ndarray:
            members = range(number * each, (number + 1) * each)
            return np.mean([nets.member(one).logits(x[which]) for one in members], axis=0)

        found = np.full((len(x), target.columns), np.nan)
        if held:
            found = _out_of_fold(held, logits, target.columns)
        # Now: the next steps go on with the same weights.
        part = nets.joined() if kind.ensemble else nets.member(0)
        size = f"{nets.members} x {kind.width}" if kind.ensemble else f"{kind.width}"
        name = f"hidden layer of {size}, {steps} steps"
        yield name, found, lambda part=part: part


class _Ensemble:
    """Networks of one hidden layer, trained side by side, each on its own rows and batches.

    Attributes:
        members: how many.
        steps: how many were done.
    """

    def __init__(
        self, kind: Hidden, x: np.ndarray, target: Target, splits: np.ndarray, seed: int
    ) -> None:
        self.kind, self.x, self.target, self.steps = kind, x, target, 0
        self.members = len(splits)
        self.rng = rng = np.random.default_rng(seed)
        self.rows = [np.flatnonzero(each) for each in splits]
        self.batch = int(np.clip(len(x) // 200, 32, 512))
        # Of each member's own rows: the weights of a task's known labels sum to the same.
        weight = splits.astype("float32") @ target.weight
        rows = np.array([len(each) for each in self.rows])[:, None]
        share = target.weight.sum(axis=0) / np.where(weight > 0, weight, np.inf)
        self.balance = (share * rows)[:, None].astype("float32")
        columns, width, out = x.shape[1], kind.width, target.columns
        size = float(np.sqrt((x.astype("float64") ** 2).sum(axis=1).mean())) or 1.0
        shapes = [(columns, width), (1, width), (width, out), (1, out)]
        spreads = [kind.start * math.sqrt(2) / size, 0.0, 0.5 / math.sqrt(width), 0.0]
        self.weights = [
            (rng.standard_normal((self.members, *shape), dtype="float32") * np.float32(spread))
            for shape, spread in zip(shapes, spreads, strict=True)
        ]
        self.weights[3] += target.prior.astype("float32")
        # Adam moves every weight alike: the rate is that of inputs of variance 1.
        first = math.sqrt(columns * kind.start) / size
        self.rates = [kind.learning_rate * factor for factor in (first, 1, 1, 1)]
        self.first = [np.zeros_like(each) for each in self.weights]
        self.second = [np.zeros_like(each) for each in self.weights]
        self.average = [each.copy() for each in self.weights]
        self.waiting = [np.zeros(0, int)] * self.members

    def _batch(self) -> np.ndarray:
        """Return (members, batch) numbers of rows, in which all come before one comes again."""
        found = np.empty((self.members, self.batch), int)
        for member, rows in enumerate(self.rows):
            while len(self.waiting[member]) < self.batch:
                more = self.rng.permutation(rows)
                self.waiting[member] = np.concatenate([self.waiting[member], more])
            found[member] = self.waiting[member][: self.batch]
            self.waiting[member] = self.waiting[member][self.batch :]
        return found

    def _kept(self, shape: tuple[int, ...], dropped: float) -> np.ndarray:
        """Return a mask of dropout, scaled."""
        kept = self.rng.random(shape, dtype="float32") >= dropped
        return kept * np.float32(1 / (1 - dropped))

    def train(self, steps: int) -> None:
        """Do steps of AdamW."""
        kind = self.kind
        for _ in range(steps):
            rows = self._batch()
            x, y = self.x[rows], self.target.y[rows]
            weight = self.target.weight[rows] * self.balance
            if kind.input_dropout:
                x = x * self._kept(x.shape, kind.input_dropout)
            w1, b1, w2, b2 = self.weights
            before = x @ w1 + b1
            active = (before > 0).astype("float32")
            if kind.dropout:
                active *= self._kept(before.shape, kind.dropout)
            h = before * active
            slope = self.target.residuals(h @ w2 + b2, y) * weight / self.batch
            slope = slope.astype("float32")
            back = (slope @ w2.transpose(0, 2, 1)) * active
            gradients = [
                x.transpose(0, 2, 1) @ back,
                back.sum(axis=1, keepdims=True),
                h.transpose(0, 2, 1) @ slope,
                slope.sum(axis=1, keepdims=True),
            ]
            self._update(gradients)

    def _update(self, gradients: list[np.ndarray]) -> None:
        """Move the weights, and their moving average after them."""
        self.steps += 1
        warm = min(1.0, self.steps / 20)
        first, second = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        # The average is over the last 15 % of the steps, at most 1,000 of them.
        share = np.float32(1 / max(1.0, min(0.15 * self.steps, 1000.0)))
        decay = np.float32(1 - warm * self.kind.learning_rate * self.kind.weight_decay)
        for number, gradient in enumerate(gradients):
            weight, m, v = self.weights[number], self.first[number], self.second[number]
            m += np.float32(0.1) * (gradient - m)
            np.multiply(gradient, gradient, out=gradient)
            v += np.float32(0.001) * (gradient - v)
            size = np.sqrt(v / np.float32(second))
            size += np.float32(1e-8)
            weight -= np.float32(self.rates[number] * warm / first) * (m / size)
            if number in (0, 2):
                weight *= decay
            self.average[number] += share * (weight - self.average[number])

    def member(self, number: int) -> _Part:
        """Return one network."""
        w1, b1, w2, b2 = (each[number] for each in self.average)
        return _Part(np.zeros((len(w1), w2.shape[1]), "float32"), w1, b1[0], w2, b2[0])

    def joined(self) -> _Part:
        """Return all of them as one: the mean of the logits."""
        w1, b1, w2, b2 = self.average
        columns, out = w1.shape[1], w2.shape[2]
        return _Part(
            np.zeros((columns, out), "float32"),
            w1.transpose(1, 0, 2).reshape(columns, -1),
            b1.reshape(-1).copy(),
            w2.reshape(-1, out) / self.members,
            b2.mean(axis=(0, 1)),
        )


# ---------------------------------------------------------------- the choice


def _chosen(
    tried: list[_Tried], target: Target, unit: np.ndarray, held: list[np.ndarray], columns: int
) -> tuple[tuple[Candidate, ...], _Part, np.ndarray, str]:
    """Return the table of candidates, the head, its logits out of fold, and the choice in words.

    Args:
        tried: the best of each path.
        target: of the rows.
        unit: (rows,) what belongs together: its losses are added before their spread is taken.
        held: drawings of folds; none if nothing could be judged.
        columns: of the features.
    """
    none = np.zeros((columns, 0))
    blank = np.zeros((columns, target.columns))
    prior = _Part(blank, none, none[0], np.zeros((0, target.columns)), target.prior)
    constant = _Tried("constant", np.tile(target.prior, (len(unit), 1)), prior)
    if not held:
        part = tried[0].part if tried else prior
        why = "There are fewer than two rows (groups) with labels: no fold judges this head."
        return (), part, np.full((len(unit), target.columns), np.nan), why
    tried = [*tried, constant]
    scales = [1.0 if each is constant else target.scaled(each.held_out)[0] for each in tried]
    logits = [
        target.prior + scale * (each.held_out - target.prior)
        for each, scale in zip(tried, scales, strict=True)
    ]
    # Losses of a row over all tasks, so that their sum over rows is the loss; then by unit.
    each_unit = np.unique(unit, return_inverse=True)[1]
    losses = [
        np.bincount(each_unit, (target.losses(z) * target.weight).sum(axis=1)) for z in logits
    ]
    sums = np.array([each.sum() for each in losses])
    order = np.argsort(sums, kind="stable").tolist()
    best, last = order[0], len(tried) - 1
    # Of a sum of differences, one a unit.
    spread = [float(np.std(each - losses[best]) * math.sqrt(len(each))) for each in losses]
    alike = [i for i in order if sums[i] - sums[best] <= spread[i] + 1e-12]
    if np.median((~np.isnan(target.labels)).sum(axis=0)) < UNSURE:
        alike = [*(i for i in alike if i != last), last]  # so few make the folds too sure
    elif (
        best != last and target.linear.any()
    ):  # a share of the constant costs R² more than it saves
        alike = [i for i in alike if i != last]
    share = 1 / len(alike)
    parts = [tried[i].part for i in alike]
    factors = [scales[i] * share for i in alike]
    skip = sum(f * p.skip for f, p in zip(factors, parts, strict=True))
    bias = target.prior + sum(
        f * (p.bias - target.prior) for f, p in zip(factors, parts, strict=True)
    )
    joined = _Part(
        skip,
        np.concatenate([p.hidden for p in parts], axis=1),
        np.concatenate([p.hidden_bias for p in parts]),
        np.concatenate([f * p.out for f, p in zip(factors, parts, strict=True)]),
        bias,
    )
    table = tuple(
        Candidate(tried[i].name, float(sums[i]), spread[i], round(scales[i], 4), i in alike)
        for i in order
    )
    out_of_fold = np.mean([logits[i] for i in alike], axis=0)
    names = [each.name for each in table if each.chosen]
    why = f"The head is {names[0]}, better than the others by more than a standard error."
    if len(names) > 1:
        why = f"The head is the average of the {len(names)} marked, which folds cannot tell apart."
    if names == ["constant"]:
        why = "The head is constant: the folds find nothing that the features say of the labels."
    return table, joined, out_of_fold, why
