"""`fine_tune`: training in stages, as one run."""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.data.dataset import source_of
from kerasmtl.data.manifest import Manifest
from kerasmtl.data.table import Table
from kerasmtl.training.callbacks import (
    LossNotFinite,
    Monitor,
    TrainableGuard,
    WeightAverage,
    best_line,
    check_loss,
    check_refusal,
    check_weights,
    rows_of_batch,
)
from kerasmtl.training.compile import Compilation
from kerasmtl.training.feature_cache import (
    FeatureSource,
    FrozenPart,
    feature_dataset,
)
from kerasmtl.training.lr_finder import undone
from kerasmtl.training.plans import (
    PATIENCE,
    Plan,
    Stage,
    as_plan,
    backbone_parameters,
    choose_plan,
    counted,
    make_plan,
    meaning,
    trained_by,
)
from kerasmtl.training.resume import (
    CallbackStates,
    Changes,
    Progress,
    RunFolder,
    Saved,
    Snapshots,
    anew,
    held,
    settings_of,
)

Callback = keras.callbacks.Callback

HOOKS = [
    f"on_{kind}batch_{moment}" for kind in ("", "train_", "test_") for moment in ("begin", "end")
]


def see_batches(callbacks: Sequence[Callback]) -> bool:
    """Whether one of the callbacks does something in a batch that the end of many is no match for.

    Callbacks of Keras that have such hooks and need them only with other settings do not.
    """
    return any(_has_hooks(callback) and not _is_idle(callback) for callback in callbacks)


def _has_hooks(callback: Any) -> bool:
    hooks = [getattr(callback, name) for name in HOOKS]  # a LambdaCallback has its own in itself
    return any(getattr(hook, "__func__", None) not in _DEFAULTS for hook in hooks)


_DEFAULTS = [getattr(Callback, name) for name in HOOKS]


def _is_idle(callback: Any) -> bool:
    kind = type(callback)
    if kind is keras.callbacks.ModelCheckpoint:
        return callback.save_freq == "epoch"
    # Training stops at the batch in which the loss is NaN, whoever looks.
    return kind in (keras.callbacks.ProgbarLogger, keras.callbacks.TerminateOnNaN)


AT_ONCE = 256  # batches in one call, during which no Ctrl-C is seen

Logs = dict[str, Any]


class Stretches:
    """The batches of a data set of features, in stretches of up to 256.

    `dataset` gives the numbers of the stretches, shape () int64. Each time the first one is taken
    is an epoch, with the rows in the order of the data set of features.

    Args:
        source: of the data set, with its features in memory.
    """

    def __init__(self, source: FeatureSource) -> None:
        self.source = source
        self.batches = -(-source.count // source.batch_size)
        options = tf.data.Options()
        options.autotune.enabled = False
        options.experimental_optimization.apply_default_optimizations = False
        self.dataset = tf.data.Dataset.range(-(-self.batches // AT_ONCE)).with_options(options)
        with tf.device("CPU:0"):
            self._order = tf.Variable(tf.range(source.count, dtype=tf.int64), trainable=False)

    def bounds(self, stretch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Its first batch, and the one after its last; the first stretch draws a new order."""
        if self.source.epoch is not None:
            tf.cond(tf.equal(stretch, 0), self._shuffle, lambda: tf.constant(0))
        first = stretch * AT_ONCE
        return first, tf.minimum(first + AT_ONCE, self.batches)

    def _shuffle(self) -> tf.Tensor:
        self._order.assign(self.source.next_order())
        return tf.constant(0)

    def batch(self, number: tf.Tensor) -> tuple[Any, Any]:
        """Features and labels of a batch of the epoch."""
        first = number * self.source.batch_size
        with tf.device("CPU:0"):
            return self.source.gather(self._order[first : first + self.source.batch_size])


class HeadAtOnce(keras.Model):
    """A head whose step is a stretch of an epoch; weights are as after one step per batch.

    Training ends early with the batch after which the loss is NaN or infinite. Only the last
    batch's logs come out, so that callbacks which want each batch need another model.

    Args:
        head: as `split_model` makes it; its layers and variables are shared.
        train, validation: what `fit` shall be given the `dataset` of.
    """

    @classmethod
    def of(
        cls, head: keras.Model, train: Stretches, validation: Stretches | None = None
    ) -> HeadAtOnce:
        made = cls(head.input, head.output, name=head.name)
        made._train, made._validation = train, validation
        made._within = False
        with tf.device("CPU:0"):
            made._done = tf.Variable(0, dtype=tf.int64, trainable=False)
        return made

    def build_metrics(self) -> None:
        """Make the metrics' variables: made in a step, they would have it traced twice."""
        x, y = self._train.source.gather(tf.range(1, dtype=tf.int64))
        none = tf.nest.map_structure(lambda o: tf.zeros((1, *o.shape[1:]), o.dtype), self.output)
        self.compute_metrics(x, y, none)
        self.reset_metrics()

    @property
    def last_batch(self) -> int:
        """The number in the epoch, from 0, of the batch that was begun last."""
        return int(self._done.numpy()) - 1

    def train_step(self, data: tf.Tensor) -> Logs:
        """Train on a stretch, by its number."""
        step = super().train_step
        return self._through(
            self._train, data, lambda batch: tf.math.is_finite(step(batch)["loss"])
        )

    def test_step(self, data: tf.Tensor) -> Logs:
        """Test on a stretch, by its number."""
        step = super().test_step

        def goes_on(batch: Any) -> tf.Tensor:
            step(batch)
            return tf.constant(True)

        return self._through(self._validation, data, goes_on)

    def _through(self, stretches: Any, number: tf.Tensor, step: Callable[[Any], Any]) -> Logs:
        """Take the batches of a stretch, up to the first whose step says False."""

        def one(batch: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Noted first: an error of the loss leaves no time for it.
            with tf.control_dependencies([self._done.assign(batch + 1)]):
                return batch + 1, step(stretches.batch(batch))

        first, end = stretches.bounds(number)
        self._within = True
        try:
            tf.while_loop(
                lambda batch, goes_on: tf.logical_and(batch < end, goes_on),
                one,
                (first, tf.constant(True)),
            )
        finally:
            self._within = False
        return super().get_metrics_result()

    def get_metrics_result(self) -> Logs:
        """Within a stretch the loss alone; apart from one nothing: the step's own logs stand."""
        if not self._within:
            return {}
        return {metric.name: metric.result() for metric in self.metrics if metric.name == "loss"}


# By what was received: what makes batches of it.
CORRECTED = "tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(32)"


def check_model(model: Any, train: Any) -> None:
    """Raise ValueError if a model cannot be trained: no model, not built, or no loss known."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`model` is no Keras model. Expected a keras.Model, as kt.build_model(…) or "
            f"kt.load_model(…) returns it. Received: {type(model).__name__}"
        )
    if not model.built:
        raise ValueError(
            f"`model` {model.name!r} is not built: it has no weights yet. Expected a built model. "
            "Call it on one batch first: model(next(iter(train))[0])."
        )
    if model.compiled and model.optimizer is None:
        raise ValueError(
            "`model` is compiled without an optimizer. Expected one, as in "
            "model.compile('adam', loss=kt.losses.for_tasks(tasks))."
        )
    if model.compiled:
        return
    names = _several(getattr(model, "output", None) if _is_functional(model) else None)
    spec = getattr(train, "element_spec", None)
    if not names and isinstance(spec, tuple) and len(spec) > 1:
        names = _several(spec[1])
    if names:
        raise ValueError(
            f"`model` is not compiled, and has several outputs: {names}. Expected a loss for each, "
            "as in model.compile('adam', loss=kt.losses.for_tasks(tasks, train.labels), "
            "metrics=kt.metrics.for_tasks(tasks))."
        )


def check_data(name: str, data: Any, model: keras.Model) -> int | None:
    """How many batches the data has, None if that is not known.

    Raises:
        ValueError: it is no batches of (inputs, labels), or has none, or no end.
    """
    how = _corrected(data)
    if how is not None:
        raise ValueError(
            f"`{name}` is no data set in batches. Expected a tf.data.Dataset of (inputs, labels). "
            f"Pass {name}={how}. Received: {type(data).__name__}"
        )
    spec = getattr(data, "element_spec", None)
    if spec is not None:
        _check_spec(name, spec, model)
    batches = batches_of(data)
    if batches == 0:
        raise ValueError(
            f"`{name}` is empty. Expected at least one batch of (inputs, labels). Received: 0 "
            "batches"
        )
    if batches == float("inf"):
        raise ValueError(f"`{name}` has no end. Expected a data set of one epoch: no repeat().")
    return None if batches is None else int(batches)


def batches_of(data: Any) -> float | None:
    """The number of batches, infinity without an end, None if it is not known."""
    if isinstance(data, keras.utils.PyDataset):
        return float("inf") if data.num_batches is None else data.num_batches
    if hasattr(data, "cardinality"):
        count = int(data.cardinality())
        return {-1: float("inf"), -2: None}.get(count, count)
    return len(data) if hasattr(data, "__len__") else None


def check_length(stages: Sequence[Stage], batches: int | None) -> None:
    """Raise ValueError if a stage has a schedule and the number of batches is not known."""
    for number, stage in enumerate(stages, start=1):
        if batches is None and not stage.steady():
            raise ValueError(
                "`train` has an unknown number of batches, on which the warm-up and the cosine of "
                f"stage {number} depend. Expected "
                "train.apply(tf.data.experimental.assert_cardinality(…)), or stages with warmup=0 "
                f"and schedule='constant'. Received: {stage}"
            )


def _corrected(data: Any) -> str | None:
    """What to pass in place of data that is no batches; None if it may be."""
    if isinstance(data, Table):
        return "kt.make_table_dataset(table, training=True)"
    if isinstance(data, Manifest):
        return "kt.make_dataset(manifest, size, training=True)"
    one_use = isinstance(data, Iterator)
    if one_use or isinstance(data, str | bytes | Sequence | Mapping) or hasattr(data, "__array__"):
        return CORRECTED
    return None if hasattr(data, "__iter__") or hasattr(data, "__getitem__") else CORRECTED


def _check_spec(name: str, spec: Any, model: keras.Model) -> None:
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            f"`{name}` gives no labels. Expected batches of (inputs, labels), as of {CORRECTED}. "
            f"Received: batches of {spec}"
        )
    rank = getattr(getattr(spec[0], "shape", None), "rank", None)
    shape = getattr(model, "input_shape", None) if _is_functional(model) else None
    if rank is not None and isinstance(shape, tuple) and len(shape) == rank + 1:
        if not any(isinstance(size, tuple) for size in shape):
            raise ValueError(
                f"`{name}` is not in batches. Expected inputs {shape}. Pass {name}="
                f"{name}.batch(32). Received: inputs {spec[0].shape}"
            )


def _is_functional(model: keras.Model) -> bool:
    return isinstance(model, keras.Sequential) or hasattr(model, "operations")


def _several(outputs: Any) -> list[Any]:
    if isinstance(outputs, Mapping):
        return sorted(outputs)
    if isinstance(outputs, Sequence) and len(outputs) > 1:
        return [getattr(output, "name", str(output)) for output in outputs]
    return []


def as_verbose(verbose: Any) -> int:
    """0, 1 (a bar an epoch) or 2 (a line an epoch); "auto" is a bar on a terminal, else lines."""
    if verbose == "auto":
        return 1 if sys.stdout.isatty() else 2
    return int(verbose)


class EpochLines(keras.callbacks.Callback):
    """Print one line per finished epoch: its number, its seconds, its metrics.

    For logs and pipes, where Keras' own bar fills the file; pass `verbose=0` to `fit` beside it.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> history = model.fit([[1.0]], [[2.0]], callbacks=[EpochLines()], verbose=0)
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        seconds = time.monotonic() - self._began
        values = "  ".join(f"{name} {float(value):.4g}" for name, value in (logs or {}).items())
        print(f"Epoch {epoch + 1}/{self.params['epochs']}  {seconds:.1f} s  {values}", flush=True)

    def state(self) -> dict[str, Any]:
        """Nothing is kept from epoch to epoch."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on."""


def stage_line(plan: Plan, number: int, model: keras.Model) -> str:
    """What a stage, counted from 0, trains; `model` is frozen and unfrozen for it already."""
    stage = plan[number]
    trained = sum(variable.value.shape.num_elements() for variable in model.trainable_weights)
    whole = sum(variable.value.shape.num_elements() for variable in model.weights)
    return (
        f"Stage {number + 1} of {len(plan)}: {meaning(stage)} ({trained:,} of {whole:,} weights), "
        f"up to {counted(stage.epochs, 'epoch')}, learning rate {stage.learning_rate:g}."
    )


def stop_line(plan: Plan, number: int, epoch: int, monitor: str | None, asked: bool) -> str:
    """Why a stage ended before its last epoch."""
    if asked:
        return f"Stopped after epoch {epoch}: a callback asked for it."
    return (
        f"Stage {number + 1} ends early, after epoch {epoch}: {monitor} has not improved for "
        f"{counted(plan[number].patience, 'epoch')}."
    )


Logs_conductor = dict[str, Any] | None


class Conductor(keras.callbacks.Callback):
    """The one callback of each `fit`: hands on what happens, and checks it.

    The callbacks' model is the full one, also while `fit` trains a head of it on features; their
    `on_train_begin` and `on_train_end` come once, and epoch numbers run on. Of a head that runs
    through many batches at once they see the last one.

    Args:
        full: the model.
        callbacks: of the user, and the history.
        params: as Keras gives them to callbacks: verbose, epochs, steps.
        epoch_begins: called with the epoch's number before each epoch.
        epoch_ended: called with number and logs after each; returns whether the stage is over.
        places: from epoch and batch to the places of the batch's rows.
        average: of the weights; validation and callbacks see it in their place.
    """

    def __init__(
        self,
        full: keras.Model,
        callbacks: Sequence[keras.callbacks.Callback],
        params: dict[str, Any],
        epoch_begins: Callable[[int], None],
        epoch_ended: Callable[[int, dict[str, Any]], bool],
        places: Callable[[int, int], Sequence[str]],
        average: keras.callbacks.Callback | None = None,
    ) -> None:
        super().__init__()
        self.full = full
        lines = params["verbose"] == 2 and not any(isinstance(c, EpochLines) for c in callbacks)
        self.users = keras.callbacks.CallbackList(
            [*callbacks, *([EpochLines()] if lines else [])],
            add_history=False,
            add_progbar=params["verbose"] == 1,
            model=full,
            **params,
        )
        self.guard = TrainableGuard()
        # A callback that does nothing stands for no average.
        self.average = average or keras.callbacks.Callback()
        self.average.set_model(full)
        self._epoch_begins, self._epoch_ended, self._places = epoch_begins, epoch_ended, places
        self.epoch, self.batch, self._testing = 0, 0, False

    def places(self) -> Sequence[str]:
        """Where the rows of the latest batch come from."""
        return self._places(self.epoch, self.batch)

    def stage_begins(self, fitted: keras.Model) -> None:
        """Before each `fit`, of the full model or of its head."""
        self.guard.set_model(self.full)
        self._compiled_anew = fitted is self.full
        self._at_once = fitted if isinstance(fitted, HeadAtOnce) else None
        self.average.on_train_begin()

    def on_epoch_begin(self, epoch: int, logs: Logs_conductor = None) -> None:
        self.epoch, self.batch = epoch, 0
        self._check()
        self._epoch_begins(epoch)
        self.users.on_epoch_begin(epoch, logs)
        self._check()

    def on_train_batch_begin(self, batch: int, logs: Logs_conductor = None) -> None:
        self.batch = batch
        self.users.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs_conductor = None) -> None:
        batch = self.batch = batch if self._at_once is None else self._at_once.last_batch
        check_loss(logs, self.epoch, batch, self.places)
        self.average.on_train_batch_end(batch, logs)
        self.users.on_train_batch_end(batch, logs)
        if self._compiled_anew:
            self.guard.on_train_batch_begin(batch + 1)
        if self.full.stop_training:
            self.model.stop_training = True

    def on_test_begin(self, logs: Logs_conductor = None) -> None:
        self._testing = True
        self.average.on_test_begin(logs)
        self.users.on_test_begin(logs)

    def on_test_batch_begin(self, batch: int, logs: Logs_conductor = None) -> None:
        self.users.on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Logs_conductor = None) -> None:
        self.users.on_test_batch_end(batch, logs)

    def on_test_end(self, logs: Logs_conductor = None) -> None:
        self._testing = False
        self.users.on_test_end(logs)
        self.average.on_test_end(logs)

    def on_epoch_end(self, epoch: int, logs: Logs_conductor = None) -> None:
        if self._epoch_ended(epoch, logs or {}):
            self.model.stop_training = True

    def refused(self, error: Exception) -> None:
        """Raise `LossNotFinite` if an error of `fit` is one of the loss about a training batch."""
        if not self._testing:
            if self._at_once is not None:
                self.batch = self._at_once.last_batch
            check_refusal(error, self.epoch, self.batch, self.places)

    def callbacks_end_epoch(self, epoch: int, logs: dict[str, Any]) -> bool:
        """Hand the end of an epoch on; True if a callback asks for the training to stop."""
        self._check()
        self.users.on_epoch_end(epoch, logs)
        self._check()
        return bool(self.full.stop_training)

    def _check(self) -> None:
        self.guard.check()
        if self._compiled_anew and self.model.train_function is None:
            self.guard.on_train_batch_begin(0)


Cache = Literal["auto"] | bool
Fitted = tuple[keras.Model, Any, Any]


class StageData:
    """Training and validation data, and whether head stages run on cached features.

    Args:
        train, validation: batches of inputs and labels.
        cache: "auto" (where it is possible; else says why not), True (an error if it is not) or
            False.
        verbose: 0 says nothing and shows no progress.

    Raises:
        ValueError: another `cache`, or data without an end.
    """

    def __init__(self, train: Any, validation: Any, cache: Cache, verbose: Any) -> None:
        if cache not in ("auto", True, False):
            raise ValueError(
                f"`cache` is unknown. Expected 'auto', True or False. Received: {cache!r}"
            )
        self.train, self.validation, self.cache, self.verbose = train, validation, cache, verbose
        batches = int(train.cardinality()) if hasattr(train, "cardinality") else -2
        if batches == -1:
            raise ValueError("`train` has no end. Expected a data set of one epoch: no repeat().")
        self.steps = batches if batches > 0 else None
        self._cached: tuple[keras.Model, list[FeatureSource]] | None = None
        self._refused = False

    def of(
        self, stage: Stage, model: keras.Model, compilation: Compilation, by_batch: bool = True
    ) -> Fitted:
        """The model to fit in a stage, the full one or its head, and what to fit it on.

        Args:
            by_batch: something has to see each batch; otherwise a head may run through many in one
                call of its graph.
        """
        if stage.train != "head" or self.cache is False or self._refused:
            return model, self.train, self.validation
        if self._cached is None:
            try:
                self._cached = self._features(model)
            except (ValueError, OSError) as error:  # not possible, or the disk is full
                if self.cache is True:
                    raise
                self._refused = True
                if self.verbose:
                    print(f"Features are not cached: {error}")
                return model, self.train, self.validation
        head, sources = self._cached
        at_once = all(source.in_memory for source in sources) and not (
            by_batch or model.run_eagerly or _is_distributed(model)
        )
        if at_once:
            stretches = [Stretches(source) for source in sources]
            head, sets = HeadAtOnce.of(head, *stretches), [each.dataset for each in stretches]
        else:
            sets = [feature_dataset(source) for source in sources]
        # XLA would take longer to compile so small a model than the model to train.
        compilation.compile(head, jit_compile=False)
        if at_once:
            head.build_metrics()
        return head, sets[0], sets[1] if len(sets) > 1 else None

    def _features(self, model: keras.Model) -> tuple[keras.Model, list[FeatureSource]]:
        with model.distribute_strategy.scope():
            part = FrozenPart(model, any_code=self.cache is True)
        sets = {"train": self.train, "validation": self.validation}
        progress = bool(self.verbose)
        return part.head, [
            part.cached(data, progress=progress, name=name)
            for name, data in sets.items()
            if data is not None
        ]


def _is_distributed(model: keras.Model) -> bool:
    return tf.distribute.has_strategy() or (
        model.distribute_strategy is not tf.distribute.get_strategy()
    )


# Models whose weights are no longer the first ones because a run is, or was, under way.
_UNDER_WAY: weakref.WeakSet[Any] = weakref.WeakSet()


class Run:
    """One training through all stages of a plan.

    Args:
        model, callbacks: as in `fine_tune`.
        plan: the stages.
        data: what each stage is fitted on.
        verbose: as in `fit`.
        monitor: which epoch is the best.
        directory: where the state is kept; None for nowhere.
        ema: decay of the average of the weights; None for none.
    """

    def __init__(
        self,
        model: keras.Model,
        plan: Plan,
        data: StageData,
        callbacks: Sequence[keras.callbacks.Callback],
        verbose: Any,
        monitor: Monitor,
        directory: str | os.PathLike[str] | None,
        ema: float | None = None,
    ) -> None:
        self.model, self.plan, self.data, self.verbose = model, plan, data, verbose
        self.callbacks, self.monitor = list(callbacks), monitor
        _check_rates(self.callbacks, plan)
        self.average = None if ema is None else WeightAverage(ema)
        self.compilation = Compilation(model, plan)
        self.compilation.build(trained_by(model, plan.stages))
        self.history = keras.callbacks.History()
        self.history.set_model(model)
        self.history.epoch = []
        self.progress = Progress()
        # Of the last finished epoch, as trained and as callbacks saw it; of the best one.
        self.now: Changes = {}
        self.shown: Changes = {}
        self.best: Changes | None = None
        self.folder = None if directory is None else RunFolder(directory)
        settings = self._settings() if self.folder else {}
        saved = self.folder.load(settings) if self.folder else None
        self.weights = Snapshots(model.variables, saved.base if saved else None)
        self.slots = Snapshots(self.compilation.optimizer.variables)
        self.of_loss = self.compilation.variables_of_loss()
        first = {id(v): value for v, value in zip(model.variables, self.weights.base, strict=True)}
        self.states = CallbackStates(
            self.callbacks,
            [first[id(weight)] for weight in model.weights],
            saved.parts if saved else None,
        )
        if saved:
            self._continue_from(saved)
        elif self.folder:
            self.folder.begin(settings, self.weights.base)
        _UNDER_WAY.add(model)

    def _settings(self) -> dict[str, Any]:
        others = {
            "monitor": [self.monitor.name, self.monitor.mode],
            "cache": self.data.cache,
            "ema": None if self.average is None else self.average.decay,
        }
        data = self.data
        return settings_of(self.compilation, self.plan, data.train, data.validation, others)

    def _continue_from(self, saved: Saved) -> None:
        if self.model not in _UNDER_WAY:
            self._check_frozen(saved)
        self.progress = saved.progress
        self.now, self.shown, self.best = saved.weights, saved.shown, saved.best
        self.weights.restore(self.now)
        if self.average is not None:
            self.average.set_model(self.model)
            self.average.restore(saved.parts["average"])
        self.slots.restore({int(k): v for k, v in saved.parts["optimizer"].items()})
        for position, variable in enumerate(self.of_loss):
            variable.assign(saved.parts["loss"][str(position)])
        if self.progress.monitor is not None:
            self.monitor.name = self.progress.monitor
        self.history.epoch = list(self.progress.epochs)
        self.history.history = {k: list(v) for k, v in self.progress.history.items()}

    def _check_frozen(self, saved: Saved) -> None:
        """What the first stage leaves alone is no matter of chance, so it has to be the same."""
        self.plan[0].apply(self.model)
        trained = {id(variable) for variable in self.model.trainable_variables}
        weights = {id(weight) for weight in self.model.weights} - trained
        for variable, first in zip(self.model.variables, saved.base, strict=True):
            if id(variable) in weights and not np.array_equal(variable.numpy(), first):
                raise ValueError(
                    f"`directory` {str(self.folder.path)!r} holds a run of another backbone: "  # type: ignore[union-attr]
                    f"{variable.path!r} has other weights. Expected the same ones, to go on with "
                    f"it. {anew(self.folder.path)}"  # type: ignore[union-attr]
                )

    # ------------------------------------------------------------ the stages

    def go(self) -> keras.callbacks.History:
        """Run what is left of the plan; the model has the best weights afterwards."""
        if not self.progress.finished:
            self._begin()
            try:
                while self.progress.stage < len(self.plan) and not self.progress.stopped:
                    self._stage()
                    if not self.progress.stopped:
                        self.progress.next_stage(self.compilation.steps())
            except LossNotFinite:
                self.weights.restore(self.shown)
                raise
            self._end()
        progress = self.progress
        self._say(
            best_line(progress.best_epoch, progress.epoch, progress.monitor, progress.best_rank)
        )
        self.weights.restore(self.shown if self.best is None else self.best)
        self.model.history = self.history
        return self.history

    def _check_monitor(self) -> None:
        """A name that cannot be in the logs is an error now, not after the first epoch.

        Callbacks of the user may add to the logs, so that with them it is not known.
        """
        stock = all(
            type(callback).__module__.startswith(("keras.", "kerasmtl."))
            and not isinstance(callback, keras.callbacks.LambdaCallback)
            for callback in self.callbacks
        )
        always = (None, "loss", "val_loss", "learning_rate")
        held = self.data.train if self.data.validation is None else self.data.validation
        if self.monitor.name in always or not stock or not hasattr(held, "take"):
            return
        with undone(self.model, held):
            logs = self.model.evaluate(held.take(1), return_dict=True, verbose=0)
        names = list(logs)
        if self.data.validation is not None:
            names += [f"val_{name}" for name in logs]
        self.monitor.check(names)

    def _begin(self) -> None:
        if not self.progress.epoch:
            self._check_monitor()
        self.conductor = Conductor(
            self.model,
            [*self.callbacks, self.history],
            {"verbose": self.verbose, "epochs": self.plan.epochs, "steps": self.data.steps},
            self._epoch_begins,
            self._epoch_ended,
            lambda epoch, batch: rows_of_batch(source_of(self.data.train), epoch, batch),
            self.average,
        )
        self.conductor.guard.set_model(self.model)
        if self.progress.epoch and self.folder is not None:
            self._say(
                f"Resuming after epoch {self.progress.epoch} of {self.plan.epochs}, kept in "
                f"{self.folder.path}."
            )
        if self.folder is not None:
            self._say(*self.states.notes())
        with self.states.going_on():
            self.conductor.users.on_train_begin()
        self.conductor.guard.check()
        self.history.epoch = list(self.progress.epochs)

    def _stage(self) -> None:
        progress = self.progress
        if progress.stage_over(self.plan):
            return
        stage = self.plan[progress.stage]
        stage.apply(self.model)
        self._say(stage_line(self.plan, progress.stage, self.model))
        begins = progress.epoch == progress.began
        self.compilation.set_rate(stage, self.data.steps, progress.began_step, begins)
        self.compilation.compile(self.model)
        by_batch = self.average is not None or see_batches(self.callbacks)
        fitted, train, validation = self.data.of(stage, self.model, self.compilation, by_batch)
        self.among = None if fitted is self.model else fitted.variables
        self.conductor.stage_begins(fitted)
        try:
            fitted.fit(
                train,
                validation_data=validation,
                initial_epoch=progress.epoch,
                epochs=progress.began + stage.epochs,
                callbacks=[self.conductor],
                shuffle=False,  # a tf.data.Dataset shuffles itself, and Keras warns of True
                verbose=0,
            )
        except tf.errors.InvalidArgumentError as error:
            self.conductor.refused(error)
            raise
        if progress.stopped or progress.epoch < progress.began + stage.epochs:
            self._say(
                stop_line(
                    self.plan, progress.stage, progress.epoch, progress.monitor, progress.stopped
                )
            )

    def _say(self, *lines: str) -> None:
        if self.verbose:
            for line in lines:
                print(line, flush=True)

    def _epoch_begins(self, epoch: int) -> None:
        source = source_of(self.data.train)
        if source is not None and source.epoch is not None:
            source.epoch.assign(epoch)

    def _epoch_ended(self, epoch: int, logs: dict[str, Any]) -> bool:
        conductor, progress = self.conductor, self.progress
        changes = self.weights.changes(self.among, self.now)
        check_weights(list(changes.values()), epoch, conductor.batch)
        conductor.average.on_epoch_end(epoch, logs)
        asked = conductor.callbacks_end_epoch(epoch, logs)
        self.shown = changes
        if self.average is not None or self.callbacks:  # they may have set weights
            among = self.among if self.average is None else None
            self.shown = self.weights.changes(among, self.shown)
        self.now = self.shown if self.average is None else changes
        # Callbacks may have added to the logs, of which each list of callbacks has a copy.
        seen = {name: values[-1] for name, values in self.history.history.items()}
        if progress.record(self.monitor.rank(seen)):
            self.best = self.shown
        progress.monitor, progress.stopped = self.monitor.name, asked
        progress.history, progress.epochs = self.history.history, self.history.epoch
        if self.average is not None:
            self.average.swap_out()
        self._save()
        return asked or progress.out_of_patience(self.plan)

    def _end(self) -> None:
        self.conductor.users.on_train_end()
        self.progress.finished = True
        self._save()

    def _save(self) -> None:
        if self.folder is None:
            return
        parts = {
            "optimizer": {str(k): v for k, v in self.slots.changes().items()},
            "loss": {str(k): v.numpy() for k, v in enumerate(self.of_loss)},
        }
        if self.average is not None:
            parts["average"] = self.average.state()
        parts |= self.states.parts()
        self.folder.save(Saved(self.progress, [], self.now, self.shown, self.best, parts))


def _check_rates(callbacks: Sequence[keras.callbacks.Callback], plan: Plan) -> None:
    """One that sets the rate could not in a schedule: say so now, not in the middle."""
    setting = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)
    for callback in callbacks:
        for number, stage in enumerate(plan, start=1):
            if isinstance(callback, setting) and not stage.steady():
                raise ValueError(
                    f"`callbacks` has {type(callback).__name__}, which sets the learning rate, and "
                    f"stage {number} of the plan has a schedule of its own. Expected one of them: "
                    "no such callback, or stages with warmup=0 and schedule='constant'. "
                    f"Received: {stage}"
                )


def fine_tune(
    model: keras.Model,
    train: Any,
    validation: Any = None,
    plan: str | Plan | Sequence[Stage] = "auto",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: Any = "auto",
    directory: str | os.PathLike[str] | None = None,
    monitor: str | tuple[str, str] | None = None,
    cache: Cache = "auto",
    ema: float | None = None,
) -> keras.callbacks.History:
    """Train in stages, as one run: the head first, then, with more data, the backbone as well.

    Each stage is `freeze` or `unfreeze`, `compile` and `fit`, since Keras fixes what is trainable
    when it compiles. One optimizer lasts through all of them, and keeps its slots; epoch numbers,
    history, callbacks and patience of callbacks run on. At the end the model has the weights of the
    best epoch of all stages. A compiled model keeps its optimizer's kind and settings, loss and
    metrics; otherwise Adam, `MaskedBinaryCrossentropy`, `MaskedAUC` and `MaskedBinaryAccuracy` are
    taken.

    Shapes and missing labels: as in the model's loss.

    Args:
        model: as `build_model` makes it; one without a backbone has stages "all" only, in which its
            layers are trained that are trainable.
        train: batches of (inputs, labels), NaN = missing, as a tf.data.Dataset. The order of
            the epochs, and whether its content has changed since the run was interrupted, is known
            of what `make_dataset` and `make_table_dataset` return.
        validation: likewise; needed for patience and for the best epoch.
        plan: "auto" (`choose_plan`, which prints why), a name as in `make_plan`, a Plan or stages.
        callbacks: Keras callbacks; their model is the full one. One that stops the training ends
            the run, and one with `state()` and `restore(state)`, dicts of arrays, is kept with it.
        verbose: 0: silent; 1: a bar per epoch; 2: a line per epoch; "auto": a bar on a terminal,
            else lines. Unless it is 0, each stage is announced, why it ends early, the best epoch,
            and that a run is resumed.
        directory: where the state is kept after each epoch. The same call again goes on after the
            last finished epoch, and after the last one returns the history. Without it nothing is
            kept. One run at a time may have it; `reset_run` removes what it holds.
        monitor: what makes an epoch the best, such as "val_auc", or ("val_mine", "max"); by default
            the first AUC of the validation, or else its first metric, or else its loss. An epoch in
            which it is NaN is never the best.
        cache: stages of the head run on features that are computed once, see `cache_features`:
            "auto" where that is possible, True (an error where it is not), False. Up to 256 batches
            then run in one call of the graph, with the same weights, unless a callback sees batches
            or weights are averaged.
        ema: validate, keep and end with a moving average of the weights of this decay, see
            `WeightAverage`; 0.999 is usual.

    Returns:
        The history of all stages, as of one `fit`.

    Raises:
        ValueError: a wrong plan, model or data (before anything is trained), patience without
            validation data, or a `directory` that holds a run of other settings or data; names what
            has changed.
        RuntimeError: a callback changed what is trainable, or compiled the model.
        FloatingPointError: the loss is NaN or infinite; says epoch, batch and rows. The model has
            the weights of the end of the last good epoch.
    """
    verbose = as_verbose(verbose)
    check_model(model, train)
    batches = check_data("train", train, model)
    if validation is not None:
        check_data("validation", validation, model)
    data = StageData(train, validation, cache, verbose)
    data.steps = batches
    chosen = _chosen(model, train, validation, plan)
    if validation is None and monitor is None and any(s.patience is not None for s in chosen):
        raise ValueError("`plan` has patience, which needs validation data. Pass validation=….")
    check_length(chosen, batches)
    if _is_auto(plan) and verbose:
        print(chosen)
    watched = Monitor(monitor, validation is not None)
    with held(directory):
        return Run(model, chosen, data, callbacks, verbose, watched, directory, ema).go()


def _chosen(model: keras.Model, train: Any, validation: Any, plan: Any) -> Plan:
    if not _is_auto(plan):
        return as_plan(plan)
    return plan_for(model, train, patience=None if validation is None else PATIENCE)


def _is_auto(plan: Any) -> bool:
    return isinstance(plan, str) and plan == "auto"


def plan_for(model: keras.Model, train: Any, name: str = "auto", **settings: Any) -> Plan:
    """The plan of a name; "auto" chooses one by the labels and the backbone, and says why.

    Args:
        model: as `build_model` makes it.
        train: batches of (inputs, labels), NaN = missing, of which the labels are counted.
        name: "auto", or as in `make_plan`.
        settings: as in `make_plan`.

    Raises:
        ValueError: an unknown name, or data without labels.
    """
    if not _is_auto(name):
        return make_plan(name, **settings)
    examples, known = count_labels(train)
    return choose_plan(examples, known, backbone_parameters(model), **settings)


def count_labels(data: Any) -> tuple[int, list[int]]:
    """How many rows a data set has, and how many of them have a label, by task.

    Raises:
        ValueError: it is none, or has no labels.
    """
    source = source_of(data)
    if source is not None:
        return source.count, _known(source.labels)
    if not hasattr(data, "element_spec") or not isinstance(data.element_spec, tuple):
        raise ValueError(
            "`train` cannot be counted, which plan='auto' needs. Expected a tf.data.Dataset of "
            f"(inputs, labels), or another plan. Received: {type(data).__name__}"
        )
    examples, known = 0, np.zeros(0, int)
    for labels in data.map(lambda *batch: batch[1]).as_numpy_iterator():
        counts = np.array(_known(labels))
        known = counts if not examples else known + counts
        examples += len(next(iter(labels.values())) if isinstance(labels, dict) else labels)
    return examples, [int(count) for count in known]


def _known(labels: Any) -> list[int]:
    arrays = labels.values() if isinstance(labels, dict) else [labels]
    counts: list[int] = []
    for array in arrays:
        known = ~np.isnan(np.asarray(array, "float64"))
        counts += np.atleast_1d(known.reshape(len(known), -1).sum(axis=0)).tolist()
    return counts
