"""`Resume`: several `fit`s as one training, which resumes after any interruption.

`fine_tune` and train.py loop over `Resume.stages` and pass the object itself to each `fit` as its
only callback. Between the two it keeps count of stages and epochs, forwards events to the user's
callbacks, watches for divergence, and writes one file after each epoch, `state.npz`:

| entry | content |
| --- | --- |
| settings | JSON: stages, hashes of model and data, and what the caller adds |
| progress | JSON: the fields of `Progress` |
| model/0, … | the variables of the model, seeds among them, in its order |
| optimizer/0, … | those of the stage's optimizer |
| loss/0, … | what the loss remembers |
| NAME 0/… | the state of a callback, by class and position |

The file is replaced atomically and written last in an epoch. A process that is killed before does
that epoch again, from the same values and with the same order of rows, and overwrites what the
callbacks had written for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasmtl.data.dataset import permutation, source_of
from kerasmtl.training.callbacks import SHOWN, BestEpoch, TrainableGuard
from kerasmtl.training.features import structure_of
from kerasmtl.training.plans import Stage, as_plan, counted
from kerasmtl.utils.files import WRITING, atomic_file, file_lock

STATE, LOCK = "state.npz", ".lock"
# Of the configurations of losses and optimizers: what training, a stage or Keras itself sets.
CHANGING = ("state", "threshold", "learning_rate", "name")

Callback = keras.callbacks.Callback
Logs = dict[str, Any] | None
Arrays = dict[str, np.ndarray]


@dataclass
class Progress:
    """Counters of a run: `epoch` epochs are finished, of which the stage's begin at `began`.

    Attributes:
        stage: the number of the stage, from 0.
        epoch: finished epochs over all stages.
        began: finished epochs when the stage began.
        stopped: whether a callback has asked for the end, other than by patience.
        finished: whether the last stage is done and `on_train_end` was called.
        history: values by metric, one per finished epoch.
    """

    stage: int = 0
    epoch: int = 0
    began: int = 0
    stopped: bool = False
    finished: bool = False
    history: dict[str, list[float]] = field(default_factory=dict)


class Resume(Callback):
    """Make one training of the `fit`s of several stages, which resumes where it was interrupted.

    After each epoch it keeps everything that training moves in one file: the model's variables,
    seeds among them, the optimizer's slots, the `variables` of the loss, the history, and the state
    of callbacks that have `state()` and `restore(state)`, dicts of arrays, such as `BestEpoch`.
    Killed at any moment, the same program resumes after the last finished epoch, and
    with deterministic operations ends with the same weights, bit for bit. Other callbacks, such as
    `keras.callbacks.EarlyStopping`, begin again where the program does.

    Pass it to `fit` alone; it hands everything on to the callbacks that it was given. They see the
    whole model also while its head is fitted, `on_train_begin` and `on_train_end` once, and epoch
    numbers that run on. A callback that sets `stop_training` ends all stages. It raises what
    `TrainableGuard` does, and `FloatingPointError` if the loss or a weight is not finite, with the
    weights of the last good epoch in the model.

    Args:
        directory: where the state is kept; one run at a time may have it. None keeps nothing.
        model: the whole model.
        callbacks: with a `BestEpoch` if a stage has patience.
        verbose: whether to print a line for each stage, and for a run that is resumed.

    Attributes:
        epoch: finished epochs; `initial_epoch` of `fit`.
        until: the epoch at which the stage ends; `epochs` of `fit`.
        history: of all stages.

    Raises:
        ValueError: `directory` is a file or, in `stages`, holds a run of other settings or data, or
            is in use.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import tensorflow as tf
        >>> import kerasmtl as kt
        >>> data = tf.data.Dataset.from_tensor_slices(
        ...     (np.ones((4, 8, 8, 3)), np.ones((4, 1)))).batch(2)
        >>> backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> model = kt.build_model(backbone, ["cat"])
        >>> resume = kt.callbacks.Resume(None, model, verbose=False)
        >>> plan = [kt.plans.Stage("head", 2, 1e-3), kt.plans.Stage("all", 1, 1e-4)]
        >>> for stage in resume.stages(plan):
        ...     stage.prepare(model)
        ...     model.compile(stage.optimizer(model), kt.losses.MaskedBinaryCrossentropy())
        ...     history = model.fit(data, initial_epoch=resume.epoch, epochs=resume.until,
        ...                         callbacks=[resume], shuffle=False, verbose=0)
        >>> len(resume.history.history["loss"])
        3
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        model: keras.Model,
        callbacks: Sequence[Callback] = (),
        verbose: bool = True,
    ) -> None:
        super().__init__()
        self.directory = None if directory is None else Path(directory)
        self.whole, self.callbacks, self.verbose = model, list(callbacks), verbose
        self.history = keras.callbacks.History()
        self.progress = Progress()
        self._guard = TrainableGuard()
        self._best = next((each for each in self.callbacks if isinstance(each, BestEpoch)), None)
        self._users: keras.callbacks.CallbackList | None = None
        self._saved: Arrays | None = None
        self._source: Any = None
        self._first_batch = 0  # of those that one call of the graph is for

    # ------------------------------------------------------------ the loop over stages

    def stages(
        self, plan: Any, train: Any = None, validation: Any = None, **settings: Any
    ) -> Iterator[Stage]:
        """Yield the stages of a plan that are left, first the one that was interrupted.

        Args:
            plan: a Plan, a list of stages or a plan's name.
            train, validation: the data, to know whether it has changed since the interruption, and
                in which order the next epoch comes: both are known of what `kt.make_dataset`
                returns.
            settings: what else must be the same for a run to be resumed, as JSON values.

        Raises:
            ValueError: the plan has a stage that the model has no layers for, or patience without
                a `BestEpoch`; or the directory holds a run of other settings or data, or is in use.
        """
        self.plan = as_plan(plan)
        if not len(self.plan):  # nothing is left to train after a head that was chosen by folds
            return
        if self._best is None and any(stage.patience is not None for stage in self.plan):
            raise ValueError("`callbacks` must have a kt.callbacks.BestEpoch() for patience.")
        for stage in self.plan:  # before anything is trained
            stage.prepare(self.whole)
        self._source = source_of(train)
        progress = self.progress
        # Held until the caller's loop ends: the generator waits inside this block while a stage is
        # fitted.
        with _held(self.directory):
            if self.directory is not None:
                data = {"train": train, "validation": validation}
                self._settings = _settings_of(self.whole, self.plan, data) | settings
                self._load()
                progress = self.progress
            if progress.finished:
                self._restore()
                if self._best is not None:
                    self._best.on_train_end()
            while not progress.finished:
                if self._best is not None and progress.epoch == progress.began:
                    self._best.begin_stage(self._stage.patience)
                yield self._stage
                if progress.stopped or progress.stage == len(self.plan) - 1:
                    self._begin_users()
                    self._users.on_train_end()
                    progress.finished = True
                    self._save()
                else:
                    progress.stage, progress.began = progress.stage + 1, progress.epoch
        self.whole.history = self.history

    @property
    def epoch(self) -> int:
        """Epochs that are finished, over all stages."""
        return self.progress.epoch

    @property
    def until(self) -> int:
        """The epoch at which the stage ends, over all stages.

        It is equal to `epoch` where a run was killed between the end of a stage and the next: `fit`
        then trains nothing, and the loop moves on.
        """
        over = self.progress.stopped or self._is_out_of_patience
        return self.epoch if over else self.progress.began + self._stage.epochs

    @property
    def _is_out_of_patience(self) -> bool:
        """Whether the stage has ended early, as `BestEpoch` counts."""
        return self._best is not None and self._best.out_of_patience

    @property
    def _stage(self) -> Stage:
        """The stage that is trained now, or that was interrupted."""
        return self.plan[self.progress.stage]

    def _say(self, text: str) -> None:
        """Print a line, if `verbose`."""
        if self.verbose:
            print(text, flush=True)

    def _begin_users(self) -> None:
        """Begin the training of the callbacks, once in each process.

        They are the callbacks that were given, the history and the guard. The guard comes last, so
        that it sees what the others have changed.
        """
        if self._users is not None:
            return
        self._users = keras.callbacks.CallbackList(
            [*self.callbacks, self.history, self._guard],
            model=self.whole,
            epochs=self.plan.epochs,
            steps=(self.params or {}).get("steps"),
            verbose=0,
        )
        self._users.on_train_begin()
        if self._saved is not None:
            self._restore()

    # ------------------------------------------------------------ the callbacks of one fit

    def on_train_begin(self, logs: Logs = None) -> None:
        """Begin a stage: restore what was saved, once per process, and remember the weights."""
        optimizer = self.model.optimizer
        with self.model.distribute_strategy.scope():
            # Keras may build it only in the first step; its slots have to be there to be restored.
            optimizer.build(self.whole.trainable_variables)
        self.whole.stop_training = False
        self._guard.set_model(self.whole)  # as this stage trains it
        self._begin_users()
        if self._saved is not None:
            self._assign(optimizer.variables, "optimizer")
            self._assign(variables_of(self.model.loss), "loss")
            self._saved = None
        stage, model = self._stage, self.whole
        trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        self._say(
            f"Stage {self.progress.stage + 1} of {len(self.plan)}: {stage} ({trained:,} of "
            f"{model.count_params():,} weights), up to {counted(stage.epochs, 'epoch')}, learning "
            f"rate {stage.learning_rate:g}."
        )
        self._moved = self.model.variables
        self._good = _values(self._moved)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Set the order of the rows for this epoch, and tell the callbacks."""
        if self._source is not None and self._source.epoch is not None:
            self._source.epoch.assign(epoch)  # which decides the order of the rows
        self._users.on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Remember the first batch of a call of the graph, and tell the callbacks."""
        self._first_batch = batch
        self._users.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Raise if the loss is not finite, else tell the callbacks; one may ask to stop."""
        # The mean of the epoch so far, which stays NaN or infinite after the first batch that was.
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            self._diverged(f"the loss is {loss}", self._first_batch, batch)
        self._users.on_train_batch_end(batch, logs)
        self.model.stop_training |= self.whole.stop_training

    def on_test_begin(self, logs: Logs = None) -> None:
        self._users.on_test_begin(logs)

    def on_test_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self._users.on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        self._users.on_test_batch_end(batch, logs)

    def on_test_end(self, logs: Logs = None) -> None:
        self._users.on_test_end(logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Check the weights, tell the callbacks, and write the state, in that order."""
        values = _values(self._moved)
        if any(v.dtype.kind == "f" and not np.isfinite(v).all() for v in values):
            # Of any batch: a loss stays finite that does not depend on the weight.
            self._diverged("weights are no longer finite")
        self._good = values
        # Before `_save`: their state of this epoch belongs into the file.
        self._users.on_epoch_end(epoch, logs)
        self.progress.epoch = epoch + 1
        self.progress.stopped = bool(self.whole.stop_training) and not self._is_out_of_patience
        self.model.stop_training |= self.whole.stop_training
        self._save()
        if self.progress.stopped:
            self._say(f"Stopped after epoch {self.epoch}: a callback asked for it.")
        elif self._is_out_of_patience and self.epoch < self.progress.began + self._stage.epochs:
            self._say(
                f"Stage {self.progress.stage + 1} ends early, after epoch {self.epoch}: "
                f"{self._best.monitor} has not improved for "
                f"{counted(self._stage.patience, 'epoch')}."
            )

    def on_train_end(self, logs: Logs = None) -> None:
        """Undo the swap of averaged weights; other callbacks see the end after the last stage."""
        for callback in self.callbacks:
            # The next stage has a new optimizer, whose averages are not there yet to swap with.
            if isinstance(callback, keras.callbacks.SwapEMAWeights):
                callback.on_epoch_begin(self.epoch)

    def _diverged(self, what: str, first: int = 0, last: int | None = None) -> None:
        """Put the weights of the last good epoch back, and raise FloatingPointError.

        Args:
            what: has happened.
            first, last: the batches of the epoch among which it was; by default it may be any.
        """
        for variable, value in zip(self._moved, self._good, strict=True):
            variable.assign(value)
        where = f"epoch {self.epoch + 1}"
        if last is not None:
            where += (
                f", batches {first + 1} to {last + 1}" if first < last else f", batch {last + 1}"
            )
        if first == last and self._source is not None and self._source.deterministic:
            rows = _rows_of(self._source, self.epoch, first)
            where += f", which has {len(rows)} rows: {'; '.join(rows[:SHOWN])}"
        raise FloatingPointError(
            f"`train` cannot be trained on: {what} in {where}. Expected finite inputs, labels and "
            "predictions that the loss takes (with jit_compile=False it says what is wrong with "
            "them), and a learning rate that is not too high. The model has the weights of the end "
            "of the last good epoch."
        )

    # ------------------------------------------------------------ the state on disk

    def _save(self) -> None:
        """Write the state of the end of an epoch; without a directory do nothing."""
        if self.directory is None:
            return
        self.progress.history = self.history.history
        parts: dict[str, Arrays] = {name: callback.state() for name, callback in self._with_state()}
        model = self.whole
        for name, variables in {
            "model": model.variables,
            "optimizer": model.optimizer.variables,
            "loss": variables_of(model.loss),
        }.items():
            parts[name] = {str(i): value for i, value in enumerate(_values(variables))}
        texts = {"settings": self._settings, "progress": asdict(self.progress)}
        arrays = {name: np.array(json.dumps(v, default=float)) for name, v in texts.items()}
        for part, values in parts.items():
            for key, value in values.items():
                # NumPy's files know no bfloat16; each of its numbers is one of float32.
                plain = value.astype("float32") if value.dtype.kind == "V" else value
                arrays[f"{part}/{key}"] = plain
        with atomic_file(self.directory / STATE) as written, written.open("wb") as file:
            np.savez(file, **arrays)

    def _load(self) -> None:
        """Read the state of an interrupted run, if there is one.

        The values wait in `_saved` until model, optimizer and callbacks are there to take them.

        Raises:
            ValueError: the file is damaged, or of other settings or data.
        """
        file = self.directory / STATE
        if not file.exists():
            return
        try:
            with np.load(file) as arrays:
                self._saved = dict(arrays)
            before = json.loads(str(self._saved["settings"]))
            self.progress = Progress(**json.loads(str(self._saved["progress"])))
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"`directory` must hold what kt.callbacks.Resume wrote there, got a damaged {file} "
                f"({error}). {self._again}"
            ) from error
        changed = _differences(before, json.loads(json.dumps(self._settings)))
        if changed:
            raise ValueError(
                f"`directory` must hold a run of the same settings and data, got "
                f"{str(self.directory)!r}. Changed: {'; '.join(changed)}. {self._again}"
            )
        for name, callback in self._with_state():
            if callback is self._best:  # `until` needs its patience
                callback.restore(self._part(name))
        if self.epoch and not self.progress.finished:
            self._say(
                f"Resuming after epoch {self.epoch} of {self.plan.epochs}, kept in "
                f"{self.directory}."
            )

    @property
    def _again(self) -> str:
        """What to do where a run cannot be resumed, for messages."""
        path = str(self.directory)
        return f"To begin again: kt.plans.reset_run({path!r}), or another directory."

    def _restore(self) -> None:
        """Give the model and the callbacks the values of the end of the last finished epoch.

        The optimizer and the loss follow in `on_train_begin`: those of the stage exist only after
        `compile`.
        """
        self.history.set_model(self.whole)
        self.history.epoch = list(range(self.progress.epoch))
        self.history.history = {k: list(v) for k, v in self.progress.history.items()}
        for callback in self.callbacks:
            callback.set_model(self.whole)
            if isinstance(callback, keras.callbacks.SwapEMAWeights):
                callback.on_epoch_end(-1)  # which it was after; the values come now
        for name, callback in self._with_state():
            callback.restore(self._part(name))
        self._assign(self.whole.variables, "model")

    def _with_state(self) -> list[tuple[str, Any]]:
        """List the callbacks that can be kept, under names that others do not change."""
        kept = [each for each in self.callbacks if hasattr(each, "restore")]
        return [(f"{type(each).__name__} {place}", each) for place, each in enumerate(kept)]

    def _assign(self, variables: Sequence[Any], part: str) -> None:
        """Give variables their saved values, by position."""
        for number, variable in enumerate(variables):
            variable.assign(self._saved[f"{part}/{number}"])

    def _part(self, part: str) -> Arrays:
        """Return the saved arrays of a part, such as a callback, by name."""
        start = f"{part}/"
        return {k.removeprefix(start): v for k, v in self._saved.items() if k.startswith(start)}


def reset_run(directory: str | os.PathLike[str]) -> None:
    """Remove the state of a run, so that `kt.fine_tune(directory=…)` begins again.

    Other files stay, and so does their folder. Without a run nothing happens.

    Args:
        directory: as of `kt.fine_tune` and `kt.callbacks.Resume`.

    Raises:
        ValueError: it is a file, or a run in it is under way.

    Example:
        >>> import kerasmtl as kt
        >>> kt.plans.reset_run("runs/never_begun")
    """
    path = Path(directory)
    if path.exists():
        with _held(path):
            (path / STATE).unlink(missing_ok=True)
            for left in path.glob(f"{WRITING}*"):
                shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds other files
            path.rmdir()


@contextlib.contextmanager
def _held(path: Path | None) -> Iterator[None]:
    """Keep other runs out of a folder.

    Args:
        path: the folder, which is made; None holds nothing.

    Raises:
        ValueError: it is a file, or another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(file_lock(path / LOCK, wait=False))
        except (BlockingIOError, FileExistsError) as error:
            raise ValueError(
                f"`directory` must be a folder of one run at a time, got {str(path)!r}, which is a "
                "file, or in which another run is under way. Wait for it, or pass "
                f"directory={str(path) + '-2'!r}."
            ) from error
        yield


def _values(variables: Sequence[Any]) -> list[np.ndarray]:
    """Return the values of variables, as arrays of their own."""
    # Copied: TensorFlow may hand out the memory of the variable itself.
    return [np.array(variable.numpy()) for variable in variables]


def _rows_of(source: Any, epoch: int, batch: int) -> list[str]:
    """Return where the rows of a batch come from."""
    places = np.arange(source.count)
    if source.training:
        places = permutation(source.count, source.seed, epoch).numpy()
    first = batch * source.batch_size
    return [source.where(int(place)) for place in places[first : first + source.batch_size]]


def variables_of(loss: Any) -> list[keras.Variable]:
    """Return what a loss, or a structure of losses, remembers: balancers' state, thresholds.

    Args:
        loss: of `compile`: a loss, a name, or a dict or list of them.
    """
    losses = {id(each): each for each in keras.tree.flatten(loss)}.values()
    return [variable for each in losses for variable in getattr(each, "variables", [])]


# ---------------------------------------------------------------- what has to be the same


def _settings_of(model: keras.Model, plan: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run by name, as values that JSON knows.

    Values are compared one by one, so that a message can name what has changed.

    Args:
        model: whose structure and shapes count, not its weights: those come from the file.
        plan: the stages.
        data: data sets by name.
    """
    shapes = [(list(v.shape), str(v.dtype)) for v in model.variables]
    about = json.dumps([structure_of(model), shapes], sort_keys=True)
    stages = {f"stage {number}": repr(stage) for number, stage in enumerate(plan, start=1)}
    sets = {
        f"{name}: {key}": value
        for name, each in data.items()
        for key, value in _data_settings(each).items()
    }
    return {**stages, "model": hashlib.sha256(about.encode()).hexdigest(), **sets}


def _data_settings(data: Any) -> dict[str, Any]:
    """Return what is known of a data set; its content if it came from `kt.make_dataset`."""
    source = source_of(data)
    if source is None:
        # Nothing but its form can be seen without reading all of it.
        return {"data": f"{type(data).__name__} of {getattr(data, 'element_spec', None)}"}
    labels = source.labels if isinstance(source.labels, dict) else {"": source.labels}
    digest = hashlib.sha256()
    for name in sorted(labels):
        digest.update(name.encode() + np.asarray(labels[name], "float32").tobytes())
    return {
        "rows": source.count,
        "content": source.content_sha256(),
        "labels": digest.hexdigest(),
        "batch_size": source.batch_size,
        "seed": source.seed,
        "augmentation": source.random,
    }


def configuration(thing: Any) -> str:
    """Return the settings of a loss or an optimizer, or of a structure of them, as JSON.

    Learning rates and names are left out, since stages set them; of a `LayerwiseDecay` only the
    inner optimizer counts.

    Args:
        thing: a Keras object, a name, or a nest of them.
    """
    serialized = keras.tree.map_structure(
        lambda part: part if isinstance(part, str) else keras.saving.serialize_keras_object(part),
        thing,
    )
    return json.dumps(_settled(serialized), sort_keys=True, default=str)


def _settled(value: Any) -> Any:
    """Return a config without what changes in a training."""
    if isinstance(value, dict):
        if value.get("class_name") == "LayerwiseDecay":  # there or not as the stages need it
            return _settled(value["config"]["inner_optimizer"])
        return {key: _settled(inner) for key, inner in value.items() if key not in CHANGING}
    return [_settled(inner) for inner in value] if isinstance(value, list | tuple) else value


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that differ, with both values where they are short."""
    pairs = {name: (before.get(name), now.get(name)) for name in sorted({*before, *now})}
    return [
        f"{name} (was {old!r}, is {new!r})" if len(f"{old}{new}") <= 120 else name
        for name, (old, new) in pairs.items()
        if old != new
    ]
