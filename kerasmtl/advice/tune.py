"""Searches settings of project.toml: the head, rates, batches, the encoding of tables.

Each trial trains the project's own network, `build` of its model.py, and is scored on the
validation part; the test part is never looked at. With `hidden = "auto"` a trial is what train.py
does: a head chosen by folds. Optuna proposes the trials, the first of which has the settings of
today, prunes those that fall behind, and keeps all of them in runs/tune.db. The features of a
frozen backbone are computed once: the network then gets a backbone that passes them on.

The best of many on a small validation part looks better than it is. Epochs are therefore chosen by
one half of it and scored on the other, and `Tuning` has scores over several seeds, and what is lost
where one half chooses the trial as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import tomlkit
from sklearn.metrics import r2_score, roc_auc_score

from kerasmtl.advice.rows import network
from kerasmtl.evaluation.report import multiclass_scores
from kerasmtl.losses.defaults import for_tasks
from kerasmtl.tasks import Task, all_binary, output_columns
from kerasmtl.training.auto import features_of, head_for
from kerasmtl.training.fine_tune import fine_tune
from kerasmtl.training.plans import Stage
from kerasmtl.utils.files import file_lock, write_text
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.validation import check_choice, check_count, check_number

if TYPE_CHECKING:
    from kerasmtl.project import Project

HALVES = 3  # times that the validation rows are halved, at random
SHOWN = 8  # trials in the table
# What is searched where project.toml has no [tune]; the second, of a network without a backbone.
_COMMON: dict[str, Any] = {
    "dropout": {"low": 0.0, "high": 0.7},
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "batch_size": [16, 32, 64, 128],
}
_IMAGES = {"hidden": ["auto", [64], [256], [512], [512, 128]], **_COMMON}
_TABLES = {
    "hidden": ["auto", [64], [256], [1024], [256, 128], [512, 256]],
    "input_dropout": {"low": 0.0, "high": 0.4},
    **dict.fromkeys(("batch_norm", "indicators"), [True, False]),
    **_COMMON,
}
_FINE = {"low": 1e-5, "high": 1e-3, "log": True}
_WHOLE = {"augment": [True, False], "fine_tune_learning_rate": _FINE}  # not for a head alone


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a search has found; `print` shows it.

    Attributes:
        trials: the finished ones, the best first: trial, score, epoch, and the settings.
        pruned: how many were given up early.
        settings: of the best trial.
        best, today: scores of those and of today's settings, (seeds,).
        optimism: mean score of the trial and epoch that one half of the validation rows chooses,
            there and on the other half; None where halves define no score.
        importance: by setting its share of the differences between trials (fANOVA).
        rows: of the validation part.
    """

    trials: pd.DataFrame
    pruned: int
    settings: dict[str, Any]
    best: np.ndarray
    today: np.ndarray
    optimism: tuple[float, float] | None
    importance: dict[str, float]
    rows: int

    @property
    def better(self) -> bool:
        """Whether the best settings beat today's, on the mean over the seeds."""
        return bool(self.best.mean() > self.today.mean())

    def __str__(self) -> str:
        gain = self.best - self.today
        said = ", ".join(f"{k} = {tomlkit.item(v).as_string()}" for k, v in self.settings.items())
        lines = [
            f"{len(self.trials)} trials finished, {self.pruned} were given up early. Score: AUC or "
            f"R2, mean over tasks, on {self.rows} validation rows; one half chooses the epoch, the "
            "other is scored.",
            self.trials.head(SHOWN).to_string(index=False, float_format="{:.4g}".format),
            f"Best: {said}",
            f"Trained again with {len(gain)} seeds: best {_spread(self.best)}, today's settings "
            f"{_spread(self.today)}, difference {_spread(gain)}.",
        ]
        drop = 0.0
        if self.optimism is not None:
            drop = max(self.optimism[0] - self.optimism[1], 0.0)
            lines.append(
                f"Choosing flatters: the trial and epoch that half of these rows choose have "
                f"{self.optimism[0]:.3f} there, and {self.optimism[1]:.3f} on the other half."
            )
        if self.importance:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in self.importance.items())
            lines.append(f"What mattered: {shares}.")
        if not self.better:
            lines.append("Today's settings are as good: nothing to change.")
        elif gain.mean() < max(drop, gain.std(ddof=1) if len(gain) > 1 else 0.0):
            lines.append("The difference is smaller than its spread, or than what choosing adds.")
        return "\n".join(lines)


def tune(
    project: Project,
    trials: int = 30,
    minutes: float | None = None,
    augment: bool = False,
    seeds: int = 3,
    progress: bool = True,
) -> Tuning:
    """Search settings of [model] and [training] by training on a project's train part.

    The score is the mean over tasks of the area under the ROC curve, or of R² for regression, on
    halves of the validation part, at the epoch that the other half chooses: the best of many epochs
    would flatter. Tasks whose labels there define none are left out. The search is Optuna's TPE
    (Bergstra et al. 2011) with median pruning by epoch. `[tune]` of project.toml says what is
    searched: lists of values, or {low = …, high = …, log = true}.

    Trials are kept in runs/tune.db: the same call, with the same data and space, continues.
    project.toml is not changed; `apply_settings` does that.

    Args:
        project: of images, the head alone is trained, as plan "head" does.
        trials: how many, earlier calls included.
        minutes: after which no trial begins.
        augment: train the whole network by the project's plan, and search augmentation as well,
            which takes far longer.
        seeds: with which the best settings and today's are trained once more.
        progress: whether to show a progress bar.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: a wrong argument or [tune], no finished trial, or validation labels that define
            no score.
        BlockingIOError: another process tunes this project.

    Example:
        >>> import pathlib, tempfile
        >>> import kerasmtl as kt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path, rows = pathlib.Path(folder), "".join(f"{n % 7},{n % 2}\\n" for n in range(60))
        ...     _ = (path / "pumps.csv").write_text("speed,leak\\n" + rows)
        ...     toml = 'name = "pumps"\\ndata = {labels = "pumps.csv", tasks = ["leak"]}\\n'
        ...     toml += 'input = {kind = "table"}\\ntune = {hidden = ["auto"]}'
        ...     _ = (path / "project.toml").write_text(toml)
        ...     kt.tune(kt.Project.load(path), trials=1, seeds=1, progress=False).settings
        {'hidden': 'auto'}
    """
    optuna = _optuna()
    check_count("trials", trials)
    check_count("seeds", seeds)
    limit = math.inf if minutes is None else check_number("minutes", minutes, 0.0, open_low=True)
    end = time.monotonic() + 60 * limit
    space = _space(project, augment)
    trainer = _Trainer(project, augment)
    store, seed = project.folder / "runs" / "tune.db", project.training.seed
    store.parent.mkdir(exist_ok=True)
    with file_lock(store.with_suffix(".lock"), wait=False):
        study = optuna.create_study(
            study_name=trainer.identity(space),
            storage=f"sqlite:///{store}",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3),
        )
        # A search that continues draws other trials than those it began with.
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
        for trial in study.trials:
            if not trial.state.is_finished() and trial.params:  # under way as it was killed
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        today = {name: _setting(project, name) for name in space}
        if not any(t.value is not None or t.state.name == "WAITING" for t in study.trials):
            lists = {n: json.dumps(v) for n, v in today.items() if hasattr(space[n], "choices")}
            study.enqueue_trial({**today, **lists})
        with progress_bar("trials", trials, progress) as advance:
            advance(len(_done(study)))
            while len(_done(study)) < trials and time.monotonic() < end:
                trial = study.ask(space)
                try:
                    judge = trainer.train(_read(trial.params), seed, trial)
                except optuna.TrialPruned:
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                else:
                    trial.set_user_attr("epoch", judge.epoch)
                    trial.set_user_attr("halves", judge.halves)
                    study.tell(trial, judge.judged)
                advance()
    found = [trial for trial in _done(study) if trial.state.name == "COMPLETE"]
    found.sort(key=lambda trial: -trial.value)
    if not found:
        raise ValueError(f"`trials` must leave a finished one, got none of {len(_done(study))}")
    best = _read(found[0].params)
    if best.get("hidden") == "auto" and not augment:
        best = {"hidden": "auto"}  # all else is chosen by folds
    # Other seeds than that of the search, whose luck has helped to choose.
    sides = [best] if best.items() <= today.items() else [best, today]
    judged = [[trainer.train(s, seed + n).judged for n in range(1, seeds + 1)] for s in sides]
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importance = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # too few trials, or all alike
        importance = {}
    rows = [
        {"trial": t.number, "score": t.value, "epoch": t.user_attrs["epoch"], **_read(t.params)}
        for t in found
    ]
    return Tuning(
        trials=pd.DataFrame(rows),
        pruned=len(_done(study)) - len(found),
        settings=best,
        best=np.array(judged[0]),
        today=np.array(judged[-1]),
        optimism=_optimism(np.array([t.user_attrs["halves"] for t in found], float)),
        importance=importance,
        rows=len(trainer.parts[1]),
    )


def apply_settings(project: Project, settings: Mapping[str, Any]) -> Path:
    """Write settings into project.toml, which keeps its comments; return the file.

    It is written aside and renamed; a setting that is unknown or wrong is a ValueError before.
    """
    project.changed(settings)
    path = project.folder / "project.toml"
    text: Any = tomlkit.parse(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        section = "model" if hasattr(project.model, name) else "training"
        text.setdefault(section, tomlkit.table())[name] = value
    write_text(path, tomlkit.dumps(text))
    return path


# ---------------------------------------------------------------- training and judging


class _Trainer:
    """Trains a project's network with other settings, the head on features, or as a whole."""

    def __init__(self, project: Project, whole: bool) -> None:
        self.project, self.backbone = project, project.input.has_backbone
        with warnings.catch_warnings(action="ignore"):  # train.py says it
            self.parts = project.manifest().split(seed=project.training.seed)[:2]
        self.tasks = self.parts[0].tasks
        judging = self.parts[1].labels
        if not any(len(np.unique(column[~np.isnan(column)])) > 1 for column in judging.T):
            raise ValueError(
                "`project` must have a task with two different labels in its validation part, got "
                f"{len(judging)} rows without one"
            )
        self.inputs: list[np.ndarray] = []
        if not self.backbone:
            self.inputs = [np.asarray(part.values, "float32") for part in self.parts]
        elif not whole:
            model = self.model = network(project, self.parts[0])
            self.inputs = [features_of(model, p, project.dataset(p, model)) for p in self.parts]

    def identity(self, space: Mapping[str, Any]) -> str:
        """Hash what decides a trial's score: data, network, space and the other settings."""
        of = {**self.project.model.model_dump(), **self.project.training.model_dump()}
        fixed = {name: value for name, value in of.items() if name not in space}
        file = self.project.folder / "model.py"
        digest = hashlib.sha256(file.read_bytes() if file.is_file() else b"")
        digest.update(repr((self.tasks, fixed, sorted(space.items()))).encode())
        arrays = self.inputs or [np.array(part.names, str) for part in self.parts]
        for array in [*arrays, *(part.labels for part in self.parts)]:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def train(self, settings: Mapping[str, Any], seed: int, trial: Any = None) -> _Judge:
        """Train, and return the judge of all epochs; raises TrialPruned if it gives up."""
        keras.utils.set_random_seed(seed)
        changes, stand_in = {**settings, "seed": seed}, None
        if self.backbone and self.inputs:
            entry = keras.Input(self.inputs[0].shape[1:], name="features")
            stand_in = keras.Model(entry, keras.layers.Identity()(entry), name="backbone")
            changes["image_size"] = "auto"
        project = self.project.changed(changes, stand_in)
        rows, held = self.parts
        if self.inputs and project.model.hidden == "auto":
            model = self.model if self.backbone else network(project, rows)
            # By folds of the train part alone, since the validation part is to judge.
            train = rows, self.project.dataset(rows, model)
            head = head_for(model, train, (rows.take([]), None), seed)
            judge = _Judge(self.tasks, held.labels, [], trial)
            data = self.project.dataset(held, model)
            judge.see([head.predict(features_of(model, held, data))], 0)
            return judge
        model, loss = network(project, rows), for_tasks(self.tasks, rows.labels)
        if not self.inputs:
            model.compile("adam", loss)
            batches = project.dataset(held, model).map(lambda inputs, labels: inputs)
            judge = _Judge(self.tasks, held.labels, batches, trial)
            data = project.dataset(rows, model, training=True)
            plan = project.plan(model, data, project.dataset(held, model))
            fine_tune(model, data, plan=plan, callbacks=[judge], verbose=0)
            return judge
        judge = _Judge(self.tasks, held.labels, [self.inputs[1]], trial)
        of, y = project.training, rows.labels.astype("float32")
        steps = -(-len(y) // of.batch_size)
        schedule = "constant" if self.backbone else "cosine"
        stage = Stage("all", of.epochs, of.learning_rate, schedule=schedule)
        model.compile(stage.optimizer(model, steps), loss, jit_compile=False)
        if not all_binary(self.tasks):
            y = {key: y[:, list(at)] for key, at in output_columns(self.tasks).items()}
        # One iterator for all epochs: to begin another takes longer than a short epoch.
        data = tf.data.Dataset.from_tensor_slices((self.inputs[0], y)).shuffle(len(rows), seed)
        data = data.repeat().batch(of.batch_size).prefetch(2)
        given = {"callbacks": [judge], "verbose": 0, "shuffle": False}
        model.fit(data, epochs=of.epochs, steps_per_epoch=steps, **given)
        return judge


class _Judge(keras.callbacks.Callback):
    """Scores the validation part after each epoch, and ends a trial of Optuna that falls behind."""

    def __init__(self, tasks: Sequence[Task], labels: np.ndarray, inputs: Any, trial: Any) -> None:
        super().__init__()
        self.tasks, self.labels, self.inputs, self.trial = tasks, labels, inputs, trial
        self.best, self.epoch = -math.inf, 0
        # Of the epoch that one half chooses, its score and that of the other half, which is fair.
        rng = np.random.default_rng(0)  # the same halves in all trials
        parts = [np.array_split(rng.permutation(len(labels)), 2) for _ in range(HALVES)]
        self._pairs = [pair for one, other in parts for pair in ((one, other), (other, one))]
        self.halves = [[-math.inf, math.nan]] * len(self._pairs)

    @property
    def judged(self) -> float:
        """The score on rows that have not chosen the epoch, or `best` if halves define none."""
        scores = [other for _, other in self.halves if not math.isnan(other)]
        return float(np.mean(scores)) if scores else self.best

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Score the epoch."""
        self.see([self.model.predict_on_batch(batch) for batch in self.inputs], epoch)

    def see(self, found: list[Any], epoch: int) -> None:
        """Score predictions, and report the best so far: a worse epoch makes no trial worse."""
        outputs = {
            key: np.concatenate([each[key] if isinstance(each, dict) else each for each in found])
            for key in output_columns(self.tasks)
        }
        finite = all(np.isfinite(values).all() for values in outputs.values())
        if finite:
            score = self._score(outputs, np.arange(len(self.labels)))
            if score > self.best:
                self.best, self.epoch = score, epoch + 1
            for number, (one, other) in enumerate(self._pairs):
                if (score := self._score(outputs, one)) > self.halves[number][0]:
                    self.halves[number] = [score, self._score(outputs, other)]
        if self.trial is not None:
            if finite:
                self.trial.report(self.judged, epoch)
            if not finite or self.trial.should_prune():
                raise _optuna().TrialPruned

    def _score(self, outputs: Mapping[str, np.ndarray], rows: np.ndarray) -> float:
        """Return the mean over tasks of AUC or R² on some rows; NaN if no task defines one."""
        found = []
        for key, columns in output_columns(self.tasks).items():
            for column, position in enumerate(columns):
                kind, y = self.tasks[position].kind, self.labels[rows, position]
                # Of binary tasks without what was softened.
                known = np.isin(y, (0, 1)) if kind == "binary" else ~np.isnan(y)
                p = outputs[key][rows][known]
                if len(np.unique(y[known])) < 2:
                    continue
                if kind == "binary":
                    found.append(roc_auc_score(y[known], p[:, column]))
                elif kind == "regression":
                    found.append(r2_score(y[known], p[:, column]))
                else:
                    found.append(multiclass_scores(y[known], p).auc)
        return float(np.mean(found)) if found else math.nan


# ---------------------------------------------------------------- the space, and what is kept


def _optuna() -> Any:
    """Import Optuna, of the extra `tune`."""
    try:
        import optuna
    except ImportError:
        raise ImportError("`tune` needs optuna. Install it: pip install 'kerasmtl[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _space(project: Project, augment: bool) -> dict[str, Any]:
    """Return Optuna's distribution by setting; today's value is always part of it."""
    of, fixed = _optuna().distributions, {"backbone", "backbone_sha256", "input_range", "plan"}
    known = {n for part in (project.model, project.training) for n in type(part).model_fields}
    known -= project.input.settings_of_others(project.input.kind) | fixed
    known -= {"image_size", "tracking", "seed"} | (set() if augment else {"flip", *_WHOLE})
    default = _IMAGES if project.input.has_backbone else _TABLES
    space = {}
    for name, choice in (project.tune or default | (_WHOLE if augment else {})).items():
        check_choice("tune", name, sorted(known))
        now = _setting(project, name)
        if isinstance(choice, list):
            values = choice if now in choice else [now, *choice]
            space[name] = of.CategoricalDistribution([json.dumps(value) for value in values])
            continue
        kind = {int: of.IntDistribution, float: of.FloatDistribution}.get(type(now))
        try:
            low, high = min(choice["low"], now), max(choice["high"], now)
            space[name] = kind(low, high, log=choice.get("log", False))  # type: ignore[misc]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`tune` must have for {name} a list of values, or for a number {{low = …, high = "
                f"…, log = true}}, got {choice} ({error})"
            ) from None
    return space


def _setting(project: Project, name: str) -> Any:
    """Return a setting of today."""
    return getattr(project.model if hasattr(project.model, name) else project.training, name)


def _read(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a trial; numbers have three digits, as they are trained and shown."""
    digits = {n: float(f"{v:.3g}") for n, v in params.items() if isinstance(v, float)}
    return {n: json.loads(v) if isinstance(v, str) else digits.get(n, v) for n, v in params.items()}


def _done(study: Any) -> list[Any]:
    """Return the trials that are finished or pruned."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED")]


def _optimism(halves: np.ndarray) -> tuple[float, float] | None:
    """Return the mean score of the trial and epoch that a half chooses, there and on the other.

    Args:
        halves: (trials, halves, 2), the scores of each trial as in `_Judge.halves`.
    """
    halves = halves[:, np.isfinite(halves).all(axis=(0, 2))]
    if not halves.size:
        return None
    chosen = halves[halves[:, :, 0].argmax(axis=0), np.arange(halves.shape[1])]
    return float(chosen[:, 0].mean()), float(chosen[:, 1].mean())


def _spread(values: np.ndarray) -> str:
    """Return mean and standard deviation over the seeds: "0.712 ± 0.010"."""
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")
