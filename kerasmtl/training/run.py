"""A run of stages: what `fine_tune` does, from the first epoch or from where it was left."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.sources import source_of
from kerasmtl.training.announcements import best_line, stage_line, stop_line
from kerasmtl.training.averaging import WeightAverage
from kerasmtl.training.batch_hooks import see_batches
from kerasmtl.training.callback_states import CallbackStates
from kerasmtl.training.compilation import Compilation
from kerasmtl.training.conductor import Conductor
from kerasmtl.training.finder import undone
from kerasmtl.training.fingerprint import settings_of
from kerasmtl.training.guards import LossNotFinite, check_weights, rows_of_batch
from kerasmtl.training.monitoring import Monitor
from kerasmtl.training.plans import Plan
from kerasmtl.training.progress import Progress
from kerasmtl.training.snapshots import Changes, Snapshots
from kerasmtl.training.stage_data import StageData
from kerasmtl.training.stages import trained_by
from kerasmtl.training.state import RunFolder, Saved, anew

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
