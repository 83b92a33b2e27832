"""Searches settings of project.toml: the head, rates, batches, the encoding of tables.

Each trial trains the project's own network, `build` of its model.py, and is scored on the
validation part; the test part is never looked at. With `hidden = "auto"` a trial is what train.py
does: a head chosen by folds. Optuna proposes the trials, the first of which has the settings of
today, prunes those that fall behind, and keeps all of them in runs/tune.db. The features of a
frozen backbone are computed once: they are then a table, and the network gets a backbone that
passes them on.

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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pandas as pd
import tomlkit

from kerasmtl.advice.rows import network
from kerasmtl.advice.statistics import Bootstrap, task_scores, unit_of
from kerasmtl.data.inputs import Table
from kerasmtl.data.manifest import Manifest
from kerasmtl.data.splits import units
from kerasmtl.evaluation.evaluate import collected
from kerasmtl.evaluation.report import is_scored
from kerasmtl.losses.defaults import for_tasks
from kerasmtl.tasks import by_task, output_columns
from kerasmtl.training.auto import encoded_views, features_of, head_for
from kerasmtl.training.fine_tune import fine_tune
from kerasmtl.training.heads import fit_head
from kerasmtl.training.plans import Stage
from kerasmtl.utils.files import file_lock, write_text
from kerasmtl.utils.progress import progress_bar
from kerasmtl.utils.validation import check_choice, check_count, check_number

if TYPE_CHECKING:
    from kerasmtl.project import Project

HALVES = 3  # times that the validation rows are halved, at random
BATCH = 4096  # rows of features that are predicted at once
SHOWN = 8  # trials in the table
NAN = float("nan")
# What is searched where project.toml has no [tune], as far as the kind of input has it.
_SPACE: dict[str, Any] = {
    "hidden": ["auto", [64], [256], [512], [1024], [512, 128]],
    "dropout": {"low": 0.0, "high": 0.7},
    "input_dropout": {"low": 0.0, "high": 0.4},
    "batch_norm": [True, False],
    "indicators": [True, False],
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "batch_size": [16, 32, 64, 128],
    "augment": [True, False],
    "fine_tune_learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
}
_WHOLE = {"augment", "flip", "fine_tune_learning_rate", "fine_tune_epochs"}  # not of a head alone


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a search has found; `print` shows it.

    Attributes:
        unit: of the scores, such as "macro AUC".
        trials: the finished ones, the best first: trial, score, epoch, and the settings.
        pruned: how many were given up early.
        settings: of the best trial.
        best, today: scores of those and of today's settings, (seeds,).
        optimism: mean score of the trial and epoch that one half of the validation rows chooses,
            there and on the other half.
        importance: by setting its share of the differences between trials (fANOVA).
        rows: of the validation part.
    """

    unit: str
    trials: pd.DataFrame
    pruned: int
    settings: dict[str, Any]
    best: np.ndarray
    today: np.ndarray
    optimism: tuple[float, float]
    importance: dict[str, float]
    rows: int

    @property
    def better(self) -> bool:
        """Whether the best settings beat today's, on the mean over the seeds."""
        return bool(self.best.mean() > self.today.mean())

    def __str__(self) -> str:
        gain, (here, other) = self.best - self.today, self.optimism
        said = ", ".join(f"{k} = {tomlkit.item(v).as_string()}" for k, v in self.settings.items())
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.importance.items())
        lines = [
            f"{len(self.trials)} trials finished, {self.pruned} were given up early. Score: "
            f"{self.unit} on {self.rows} validation rows; one half chooses the epoch, the other is "
            "scored.",
            self.trials.head(SHOWN).to_string(index=False, float_format="{:.4g}".format),
            f"Best: {said}",
            f"Trained again with {len(gain)} seeds: best {_spread(self.best)}, today's settings "
            f"{_spread(self.today)}, difference {_spread(gain)}.",
        ]
        if here > other:
            lines.append(
                f"Choosing flatters: the trial and epoch that half of these rows choose have "
                f"{here:.3f} there, and {other:.3f} on the other half."
            )
        if shares:
            lines.append(f"What mattered: {shares}.")
        if not self.better:
            lines.append("Today's settings are as good: nothing to change.")
        elif gain.mean() < max(here - other, gain.std()):
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

    The score is the mean over tasks of AUC, accuracy (multiclass) or R2 on halves of the validation
    part, at the epoch that the other half chooses: the best of many epochs would flatter. Tasks
    whose labels there define none are left out. The search is Optuna's TPE (Bergstra et al. 2011)
    with median pruning by epoch. `[tune]` of project.toml says what is searched: lists of values,
    or {low = …, high = …, log = true}.

    Trials are kept in runs/tune.db: the same call, with the same data and space, continues.
    project.toml is not changed; `apply_settings` does that.

    Args:
        project: of images, the head alone is trained, as plan "head" does.
        trials: how many, earlier calls included.
        minutes: after which no trial begins.
        augment: of images, train the whole network by the project's plan, and search augmentation
            as well, which takes far longer.
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
    whole = augment and project.input.has_backbone
    space = _space(project, whole)
    today = {name: value for name, value in _settings(project).items() if name in space}
    trainer, seed = _Trainer(project, whole), project.training.seed
    store, state = project.folder / "runs" / "tune.db", optuna.trial.TrialState
    store.parent.mkdir(exist_ok=True)
    with file_lock(store.with_suffix(".lock"), wait=False):
        study = optuna.create_study(
            study_name=trainer.identity(space),
            storage=f"sqlite:///{store}",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3),
        )

        def done() -> list[Any]:
            return study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED))

        # A search that continues draws other trials than those it began with.
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
        if not done():  # a trial that was under way as its process was killed does not count
            lists = {n: json.dumps(today[n]) for n in space if hasattr(space[n], "choices")}
            study.enqueue_trial({**today, **lists})
        with progress_bar("trials", trials, progress) as advance:
            advance(len(done()))
            while len(done()) < trials and time.monotonic() < end:
                trial = study.ask(space)
                try:
                    scores = trainer.train(_read(trial.params), seed, trial)
                except optuna.TrialPruned:
                    study.tell(trial, state=state.PRUNED)
                else:
                    trial.set_user_attr("scores", scores.tolist())
                    study.tell(trial, _fair(scores)[1])
                advance()
    found = sorted((t for t in done() if t.state == state.COMPLETE), key=lambda trial: -trial.value)
    if not found:
        raise ValueError(f"`trials` must leave a finished one, got none of {len(done())}")
    best = _read(found[0].params)
    if best.get("hidden") == "auto" and not whole:
        best = {"hidden": "auto"}  # all else is chosen by folds
    # Other seeds than that of the search, whose luck has helped to choose.
    sides = [best] if best.items() <= today.items() else [best, today]
    again = [[_fair(trainer.train(s, seed + n))[1] for n in range(1, seeds + 1)] for s in sides]
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importance = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # too few trials, or all alike
        importance = {}
    kept = [np.array(trial.user_attrs["scores"]) for trial in found]
    table = pd.DataFrame([{"trial": t.number, "score": t.value, **_read(t.params)} for t in found])
    table.insert(2, "epoch", [int(np.nanargmax(scores[:, 0])) + 1 for scores in kept])
    return Tuning(
        unit=unit_of(trainer.held.tasks),
        trials=table,
        pruned=len(done()) - len(found),
        settings=best,
        best=np.array(again[0]),
        today=np.array(again[-1]),
        optimism=_fair(np.concatenate(kept)),
        importance=importance,
        rows=len(trainer.held),
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
    """Trains a project's network with other settings: its head on features, or the whole."""

    def __init__(self, project: Project, whole: bool) -> None:
        self.project, self.whole, self.stand_in = project, whole, None
        with warnings.catch_warnings(action="ignore"):  # train.py says it
            self.rows, self.held, _ = project.manifest().split(seed=project.training.seed)
        pairs = zip(self.held.tasks, self.held.labels.T, strict=True)
        if not any(len(np.unique(y[is_scored(task.kind, y)])) > 1 for task, y in pairs):
            raise ValueError(
                "`project` must have a task with two different labels in its validation part, got "
                f"{len(self.held)} rows without one"
            )
        if project.input.has_backbone and not whole:
            model = network(project, self.rows)
            parts = []
            for part in (self.rows, self.held):
                x = features_of(model, part, project.dataset(part, model))
                of = (part.labels, part.tasks, Table())
                parts.append(Manifest.from_arrays(x, *of, groups=part.groups))
            self.rows, self.held = parts
            entry = keras.Input(self.rows.values.shape[1:], name="features")
            self.stand_in = keras.Model(entry, keras.layers.Identity()(entry), name="backbone")

    def identity(self, space: Mapping[str, Any]) -> str:
        """Hash what decides a trial's score: data, network, space and the other settings."""
        file = self.project.folder / "model.py"
        of = [file.read_bytes() if file.is_file() else b"", self.rows.tasks, sorted(space.items())]
        of += [{name: v for name, v in _settings(self.project).items() if name not in space}]
        for part in (self.rows, self.held):
            of += [part.input.content_sha256(part.values), part.labels.tobytes()]
            of += [None if part.groups is None else part.groups.tolist()]
        return hashlib.sha256(repr(of).encode()).hexdigest()[:16]

    def train(self, settings: Mapping[str, Any], seed: int, trial: Any = None) -> np.ndarray:
        """Train, and return the scores of each epoch, as in `_Judge`.

        Raises:
            TrialPruned: the trial has fallen behind, or diverged.
        """
        keras.utils.set_random_seed(seed)
        rows, held, changes = self.rows, self.held, {**settings, "seed": seed}
        if self.stand_in is not None:
            changes |= {"image_size": "auto", "augment": False}
        project = self.project.changed(changes, self.stand_in)
        model = network(project, rows)
        if self.whole:
            judging = project.dataset(held, model)
        else:  # a list: an iterator of each epoch would take longer than the epoch
            judging = list(project.changed({"batch_size": BATCH}).dataset(held, model))
        judge = _Judge(held, judging, trial)
        head = None
        if project.model.hidden == "auto" and self.whole:
            parts = [(part, project.dataset(part, model)) for part in (rows, held)]
            head = head_for(model, *parts, seed, project.training.plan)
            head = head if head.tune else None  # else it has learned from what is to judge
            model = head.attach(model) if head else model
        if project.model.hidden == "auto" and head is None:
            # By folds of the train part alone, since the validation part is to judge.
            x, unseen = rows.values, held.values
            if self.stand_in is None:
                x, unseen = (
                    features_of(model, part, project.dataset(part, model)) for part in (rows, held)
                )
            views = encoded_views(model)
            head = fit_head(x, rows.labels, rows.tasks, rows.groups, seed=seed, views=views)
            judge.see(head.predict(unseen))
            return np.array(judge.scores)
        jit = "auto" if self.whole else False  # XLA takes longer to compile a head than it runs
        model.compile("adam", for_tasks(rows.tasks, rows.labels), jit_compile=jit)
        data = project.dataset(rows, model, training=True)
        if self.stand_in is None:
            plan = project.plan(model, data, judging, head)
            # No stage ends early by the loss of rows that are to judge.
            plan = [replace(stage, patience=None) for stage in plan]
        else:  # there is no backbone to freeze
            plan = [Stage("all", project.training.epochs, project.training.learning_rate)]
        try:
            fine_tune(model, data, plan=plan, callbacks=[judge], verbose=0)
        except FloatingPointError:  # the loss is no longer finite
            judge.see(None)
        return np.array(judge.scores)


class _Judge(keras.callbacks.Callback):
    """Scores the validation part after each epoch, and ends a trial of Optuna that falls behind.

    Its `scores`, (1 + halves,) by epoch, are those of all rows, and of one half and the other of
    each halving, in which groups are kept whole; NaN where labels or predictions define none.
    """

    def __init__(self, held: Manifest, data: Any = None, trial: Any = None) -> None:
        super().__init__()
        self.held, self.data, self.trial = held, data, trial
        rng, masks = np.random.default_rng(0), [np.ones(len(held), bool)]  # the same in all trials
        unit = np.arange(len(held)) if held.groups is None else units(held.groups)
        for _ in range(HALVES):
            half = np.isin(unit, np.array_split(rng.permutation(unit.max() + 1), 2)[0])
            masks += [half, ~half]
        self.weights, self.scores = np.array(masks, float), []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Score the epoch."""
        columns = output_columns(self.held.tasks)
        self.see(collected(self.model, self.data, columns, progress=False)[1])

    def see(self, outputs: Any) -> None:
        """Score the predictions of all rows, None if there are none; report the best so far."""
        tasks, scores = self.held.tasks, np.full(len(self.weights), NAN)
        found = {} if outputs is None else by_task(outputs, tasks)
        finite = bool(found) and all(np.isfinite(p).all() for p in found.values())
        if finite:
            scores = Bootstrap.macro(task_scores(tasks, self.held.labels, found, self.weights))
        self.scores.append(scores)
        if self.trial is not None:
            # A worse epoch makes no trial worse.
            self.trial.report(_fair(np.array(self.scores))[1], len(self.scores) - 1)
            if not finite or self.trial.should_prune():
                raise _optuna().TrialPruned


def _fair(scores: np.ndarray) -> tuple[float, float]:
    """Return the mean score of the epoch that a half chooses, there and on the other half.

    Args:
        scores: (epochs, 1 + halves), as in `_Judge`. Where the halves define none, those of all
            rows count, which choose the best epoch and score it.
    """
    scores = np.nan_to_num(scores, nan=-np.inf)
    halves, half = scores[:, 1:], np.arange(scores.shape[1] - 1)
    epoch = halves.argmax(axis=0)
    pairs = np.stack([halves[epoch, half], halves[epoch, half ^ 1]])  # 0 and 1, 2 and 3, …
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    here, other = pairs.mean(axis=1) if pairs.size else [scores[:, 0].max()] * 2
    return float(here), float(other)


# ---------------------------------------------------------------- the space, and what is kept


def _optuna() -> Any:
    """Import Optuna, of the extra `tune`."""
    try:
        import optuna
    except ImportError:
        raise ImportError("`tune` needs optuna. Install it: pip install 'kerasmtl[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _space(project: Project, whole: bool) -> dict[str, Any]:
    """Return Optuna's distribution by setting; today's value is always part of it."""
    of, today, space = _optuna().distributions, _settings(project), {}
    known = {*_SPACE, "epochs", *_WHOLE} - project.input.settings_of_others(project.input.kind)
    known -= set() if whole else _WHOLE
    for name, choice in (project.tune or {n: _SPACE[n] for n in _SPACE if n in known}).items():
        now = today[check_choice("tune", name, sorted(known))]
        if isinstance(choice, list):
            values = choice if now in choice else [now, *choice]
            # As JSON, since Optuna takes no lists.
            space[name] = of.CategoricalDistribution([json.dumps(value) for value in values])
            continue
        kind = {int: of.IntDistribution, float: of.FloatDistribution}.get(type(now))
        try:
            low, high = min(choice["low"], now), max(choice["high"], now)
            space[name] = kind(low, high, log=choice.get("log", False))  # type: ignore[misc]
        except (KeyError, TypeError, ValueError):
            must = "a list of values, or for a number {low = …, high = …, log = true}"
            raise ValueError(f"`tune` must have for {name} {must}, got {choice}") from None
    return space


def _settings(project: Project) -> dict[str, Any]:
    """Return the settings of today."""
    return {**project.model.model_dump(), **project.training.model_dump()}


def _read(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a trial; numbers have three digits, as they are trained and shown."""
    digits = {n: float(f"{v:.3g}") for n, v in params.items() if isinstance(v, float)}
    return {n: json.loads(v) if isinstance(v, str) else digits.get(n, v) for n, v in params.items()}


def _spread(values: np.ndarray) -> str:
    """Return mean and standard deviation over the seeds: "0.712 ± 0.010"."""
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")
