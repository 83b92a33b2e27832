"""The state of a run on disk: whole after each finished epoch, whatever interrupts it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasmtl.data.dataset import source_of
from kerasmtl.training.compile import Compilation
from kerasmtl.training.plans import Plan, counted
from kerasmtl.utils.files import file_lock

# Of the configurations of losses and optimizers: what training or Keras itself changes.
CHANGING = ("state", "threshold", "learning_rate", "factors", "name")


def settings_of(
    compilation: Compilation, plan: Plan, train: Any, validation: Any, others: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a run by name, as values that JSON knows."""
    return {
        "plan": [_shown(asdict(stage)) for stage in plan],
        **{f"train: {key}": value for key, value in data_settings(train).items()},
        **{f"validation: {key}": value for key, value in data_settings(validation).items()},
        "loss": _configuration(compilation.loss),
        "optimizer": _configuration(compilation.optimizer),
        "model": model_sha256(compilation.model),
        **{key: _shown(value) for key, value in others.items()},
    }


def data_settings(data: Any) -> dict[str, Any]:
    """What is known of a data set; its content if `sources.source_of` knows that."""
    if data is None:
        return {"data": None}
    source = source_of(data)
    if source is None:
        # Nothing but its form can be seen without reading all of it.
        spec = getattr(data, "element_spec", None)
        batches = int(data.cardinality()) if hasattr(data, "cardinality") else None
        return {"data": f"{type(data).__name__} of {spec}", "batches": batches}
    labels = source.labels if isinstance(source.labels, dict) else {"": source.labels}
    digest = hashlib.sha256()
    for name in sorted(labels):
        digest.update(name.encode() + np.ascontiguousarray(labels[name], "float32").tobytes())
    return {
        "rows": source.count,
        "content": source.content_sha256(),
        "labels": digest.hexdigest(),
        "batch_size": source.batch_size,
        "seed": source.seed,
        "augmentation": source.random,
    }


def model_sha256(model: keras.Model) -> str:
    """A hash over a model's architecture, whatever number Keras has given its layers' names."""
    config = json.loads(model.to_json())["config"]
    names: dict[str, str] = {}
    _names_in(config, names)
    text = json.dumps(_renamed(config, names), sort_keys=True)
    shapes = [(list(v.shape), str(v.dtype)) for v in model.variables]
    return hashlib.sha256((text + json.dumps(shapes)).encode()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed, by name, with both values where they are short.

    Of plans, losses and optimizers, whose values are long, that within them which has changed.
    """
    now = json.loads(json.dumps(now))
    changed: list[str] = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name == "plan" and isinstance(old, list) and isinstance(new, list):
            changed += _of_plans(old, new)
        elif name in ("loss", "optimizer"):
            changed += _within(name, _parsed(old), _parsed(new))
        else:
            changed.append(_both(name, old, new))
    return changed


def _of_plans(old: list[Any], new: list[Any]) -> list[str]:
    changed = []
    if len(old) != len(new):
        changed.append(f"plan (was {counted(len(old), 'stage')}, is {counted(len(new), 'stage')})")
    for number, (one, other) in enumerate(zip(old, new, strict=False), start=1):
        changed += _within(f"plan, stage {number}:", one, other)
    return changed


def _within(name: str, old: Any, new: Any) -> list[str]:
    """The parts that differ, each under the names that lead to it."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get("class_name") != new.get("class_name"):
            return [_both(name, old.get("class_name"), new.get("class_name"))]
        keys = sorted({*old, *new})
        # What leads to each setting of what Keras has serialized says nothing.
        parts = [(name if key == "config" else f"{name} {key}", key) for key in keys]
        return [
            change
            for path, key in parts
            if old.get(key) != new.get(key)
            for change in _within(path, old.get(key), new.get(key))
        ]
    return [_both(name, old, new)]


def _both(name: str, old: Any, new: Any) -> str:
    short = len(f"{old}{new}") <= 200 and not _is_hash(old)
    return f"{name} (was {old!r}, is {new!r})" if short else name


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _configuration(thing: Any) -> str:
    serialized = keras.tree.map_structure(
        lambda part: part if isinstance(part, str) else keras.saving.serialize_keras_object(part),
        thing,
    )
    return json.dumps(_without(serialized), sort_keys=True, default=str)


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("class_name") == "LayerwiseDecay":  # there or not as the stages need it
            return _without(value["config"]["inner_optimizer"])
        return {key: _without(inner) for key, inner in value.items() if key not in CHANGING}
    if isinstance(value, list | tuple):
        return [_without(inner) for inner in value]
    return value


def _shown(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _names_in(config: Any, names: dict[str, str]) -> None:
    if isinstance(config, dict):
        name = config.get("name")
        if isinstance(name, str):
            names.setdefault(name, f"#{len(names)}")
        for inner in config.values():
            _names_in(inner, names)
    elif isinstance(config, list):
        for inner in config:
            _names_in(inner, names)


def _renamed(config: Any, names: Mapping[str, str]) -> Any:
    if isinstance(config, dict):
        return {key: _renamed(inner, names) for key, inner in config.items()}
    if isinstance(config, list):
        return [_renamed(inner, names) for inner in config]
    return names.get(config, config) if isinstance(config, str) else config


Changes = dict[int, np.ndarray]


class Snapshots:
    """Reads and writes variables, as their values now or as changes from the values at first.

    What is frozen stays bit for bit what it was, and so costs no copy, and no place in a file.

    Args:
        variables: of the model or the optimizer, in an order that does not change.
        base: their first values; by default those of now.
    """

    def __init__(self, variables: Iterable[Any], base: list[np.ndarray] | None = None) -> None:
        self.variables = list(variables)
        self.base = base if base is not None else [_copy(v.numpy()) for v in self.variables]

    def changes(self, among: Iterable[Any] | None = None, others: Changes | None = None) -> Changes:
        """By position, the values that differ from the first.

        Args:
            among: the only variables that can have changed since `others` was read; by default any.
            others: the changes of the rest.
        """
        chosen = None if among is None else {id(variable) for variable in among}
        found = {}
        for position, variable in enumerate(self.variables):
            if chosen is not None and id(variable) not in chosen:
                if others and position in others:
                    found[position] = others[position]
                continue
            value = variable.numpy()
            if not same_bits(value, self.base[position]):
                found[position] = _copy(value)
        return found

    def restore(self, changes: Mapping[int, np.ndarray]) -> None:
        """Give all variables the values of a moment."""
        for position, variable in enumerate(self.variables):
            value = changes.get(position, self.base[position])
            if not same_bits(variable.numpy(), value):
                variable.assign(value)


def _copy(value: Any) -> np.ndarray:
    # TensorFlow may hand out the memory of the variable itself.
    return np.array(value, copy=True)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Bit by bit: -0.0 is not 0.0 here, and a NaN is itself."""
    return np.array_equal(_bytes(one), _bytes(other))


def _bytes(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


@dataclass
class Progress:
    """Counters of a run: `epoch` epochs are finished, of which the stage's begin at `began`.

    `began_step` is the optimizer's step at which the stage began; ranks are those of `Monitor`.
    """

    stage: int = 0
    epoch: int = 0
    began: int = 0
    began_step: int = 0
    stage_rank: float | None = None
    waited: int = 0
    best_rank: float | None = None
    best_epoch: int | None = None
    stopped: bool = False
    finished: bool = False
    monitor: str | None = None
    history: dict[str, list[float]] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)

    def record(self, rank: float | None) -> bool:
        """Count a finished epoch; True if it is the best of all stages so far."""
        self.epoch += 1
        better_in_stage = rank is not None and (self.stage_rank is None or rank > self.stage_rank)
        self.stage_rank = rank if better_in_stage else self.stage_rank
        self.waited = 0 if better_in_stage else self.waited + 1
        best = rank is not None and (self.best_rank is None or rank > self.best_rank)
        if best:
            self.best_rank, self.best_epoch = rank, self.epoch
        return best

    def out_of_patience(self, plan: Plan) -> bool:
        """Whether the stage has waited for something better as long as it may."""
        patience = plan[self.stage].patience
        return patience is not None and self.waited >= patience

    def stage_over(self, plan: Plan) -> bool:
        """Whether the stage has had all its epochs or its patience."""
        return self.epoch - self.began >= plan[self.stage].epochs or self.out_of_patience(plan)

    def next_stage(self, step: int) -> None:
        """The next stage begins, at that step of the optimizer."""
        self.stage, self.began, self.began_step = self.stage + 1, self.epoch, step
        self.stage_rank, self.waited = None, 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=float)

    @classmethod
    def from_json(cls, text: str) -> Progress:
        values: dict[str, Any] = json.loads(text)
        return cls(**values)


State = dict[str, np.ndarray]
Callback = keras.callbacks.Callback

# Of the callbacks of Keras, the numbers that change from epoch to epoch; None is left out.
_NUMBERS: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.CSVLogger: (),
    keras.callbacks.LearningRateScheduler: (),
    keras.callbacks.TerminateOnNaN: (),
    keras.callbacks.RemoteMonitor: (),
    keras.callbacks.ProgbarLogger: (),
}
WEIGHTS, KEYS, SIZE = "best_weights", "keys", "size"


class CallbackStates:
    """The states of callbacks: of their own, with `state()` and `restore(state)`, or of Keras.

    Args:
        callbacks: of the user.
        first: the first values of the model's weights, from which those that a callback keeps
            differ little while a backbone is frozen.
        parts: as `parts()` gave them at the end of an epoch, to go on from; None for a new run.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        first: Sequence[np.ndarray],
        parts: Mapping[str, State] | None = None,
    ) -> None:
        self.callbacks, self.first, self._before = list(callbacks), list(first), parts

    def parts(self) -> dict[str, State]:
        """What is known now, by position and class."""
        states = {_name(*of): self._state(of[1]) for of in enumerate(self.callbacks)}
        return {name: state for name, state in states.items() if state is not None}

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Around `on_train_begin`, which resets callbacks, and has a log begin anew."""
        logs = [
            (callback, callback.append, state)
            for callback, state in self._with_states()
            if isinstance(callback, keras.callbacks.CSVLogger)
        ]
        for log, _, state in logs:
            _cut(log.filename, (state or {}).get(SIZE))
            log.append = True
        try:
            yield
        finally:
            for log, append, _ in logs:
                log.append = append
        for callback, state in self._with_states():
            if state:
                self._restore(callback, state)

    def notes(self) -> list[str]:
        """A line for each callback that does not go on, or not with all it knows."""
        found = []
        for position, callback in enumerate(self.callbacks):
            lost = _lost(callback)
            if lost is None and self._before is not None:
                state = self._state(callback)
                if state is not None and _name(position, callback) not in self._before:
                    lost = "was not there when the run was interrupted: it begins anew"
            if lost is not None:
                found.append(f"{type(callback).__name__} in `callbacks` {lost}.")
        return found

    def _with_states(self) -> list[tuple[Any, State | None]]:
        if self._before is None:
            return []
        return [(c, self._before.get(_name(i, c))) for i, c in enumerate(self.callbacks)]

    def _state(self, callback: Any) -> State | None:
        if _has_own(callback):
            return callback.state()
        kind = _kind(callback)
        if kind is None:
            return None
        values = {name: getattr(callback, name, None) for name in _NUMBERS[kind]}
        state = {name: np.asarray(value) for name, value in values.items() if value is not None}
        if kind is keras.callbacks.EarlyStopping and callback.best_weights is not None:
            pairs = enumerate(zip(callback.best_weights, self.first, strict=True))
            changed = {i: np.asarray(one) for i, (one, first) in pairs if not same_bits(one, first)}
            state |= {f"{WEIGHTS}/{position}": value for position, value in changed.items()}
            state[WEIGHTS] = np.array(len(changed))
        if kind is keras.callbacks.CSVLogger:
            if callback.keys:
                state[KEYS] = np.array(callback.keys)
            if os.path.isfile(callback.filename):
                state[SIZE] = np.array(os.path.getsize(callback.filename))
        return state

    def _restore(self, callback: Any, state: State) -> None:
        if _has_own(callback):
            callback.restore(state)
            return
        kind = _kind(callback)
        for name in _NUMBERS.get(kind, ()):  # type: ignore[arg-type]
            setattr(callback, name, state[name].item() if name in state else None)
        if WEIGHTS in state:
            callback.best_weights = [
                state.get(f"{WEIGHTS}/{position}", first)
                for position, first in enumerate(self.first)
            ]
        if KEYS in state:
            callback.keys = state[KEYS].tolist()


def _name(position: int, callback: Callback) -> str:
    return f"callback {position} {type(callback).__name__}"


def _has_own(callback: Any) -> bool:
    return all(callable(getattr(callback, name, None)) for name in ("state", "restore"))


def _kind(callback: Any) -> type | None:
    return next((kind for kind in _NUMBERS if isinstance(callback, kind)), None)


def _lost(callback: Any) -> str | None:
    """What of its state is not kept, None if all of it is or there is none."""
    if _has_own(callback):
        return None
    kind = _kind(callback)
    if kind is None:
        if vars(callback).keys() <= vars(Callback()).keys():
            return None
        return (
            "has no state() and restore(state): what it knows is not kept, and it begins anew when "
            "the run goes on"
        )
    if type(callback) is not kind:
        return f"has no state() and restore(state): only what {kind.__name__} knows is kept"
    if kind is keras.callbacks.ModelCheckpoint and callback.save_freq != "epoch":
        return "counts batches for save_freq anew when the run goes on"
    return None


def _cut(file: str, size: np.ndarray | None) -> None:
    """Drop what a log was given after the epoch that the state is of."""
    if size is not None and os.path.isfile(file) and os.path.getsize(file) > int(size):
        os.truncate(file, int(size))


SETTINGS, BASE, STATE = "settings.json", "base.npz", "state.npz"
ASIDE, LOCK = ".writing-", ".lock"
KEPT = ("weights-*.npz", "shown-*.npz")


@dataclass
class Saved:
    """What a run needs to go on: `weights`, `shown` and `best` are changes from `base`.

    `weights` are those that training goes on from, `shown` those that callbacks saw: an average,
    or else the same ones.

    `parts` holds everything else that changes: of the optimizer, the loss and the callbacks, by
    their names, each a dict of arrays.
    """

    progress: Progress
    base: list[np.ndarray]
    weights: Changes
    shown: Changes
    best: Changes | None
    parts: dict[str, dict[str, np.ndarray]]


class RunFolder:
    """A folder that a run is kept in: its settings, its first weights, and its latest state.

    Each file is written aside and renamed. The state names the files of weights that belong to it,
    which are written before it, and others are removed after it: at every moment the folder holds
    one whole state.

    Args:
        path: the folder; made if it is not there.

    Raises:
        ValueError: it is a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _folder(path)
        for left in self.path.glob(f"{ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)

    def load(self, settings: Mapping[str, Any]) -> Saved | None:
        """The latest state, None if there is none yet.

        Raises:
            ValueError: the run had other settings or data; names what has changed.
        """
        if not (self.path / STATE).exists():
            return None
        changed = differences(self._settings(), settings)
        if changed:
            raise ValueError(
                f"`directory` {str(self.path)!r} holds a run of other settings or data. Changed: "
                f"{'; '.join(changed)}. Expected the same ones, to go on with it. "
                f"{anew(self.path)}"
            )
        arrays = self._read(STATE)
        try:
            progress = Progress.from_json(str(arrays.pop("progress")))
            names = json.loads(str(arrays.pop("files")))
            parts: dict[str, dict[str, np.ndarray]] = json.loads(str(arrays.pop("parts")))
        except (KeyError, ValueError, TypeError) as error:
            raise self._unsound(STATE, error) from error
        for name, value in arrays.items():
            part, _, key = name.partition("/")
            parts[part][key] = value
        files = {name: _by_position(self._read(name)) for name in set(names.values()) if name}
        weights, shown = files[names["weights"]], files[names["shown"]]
        best = files.get(names["best"])
        first = self._read(BASE)
        base = [first[str(position)] for position in range(len(first))]
        return Saved(progress, base, weights, shown, best, parts)

    def begin(self, settings: Mapping[str, Any], base: list[np.ndarray]) -> None:
        """Start a run: its settings, and all weights as they are at first.

        Raises:
            ValueError: the folder has settings that are none of a run.
        """
        if (self.path / SETTINGS).exists() and "plan" not in self._settings():
            raise ValueError(
                f"`directory` {str(self.path)!r} holds another {SETTINGS}, which is none of a run. "
                f"Expected a folder of its own, such as {str(self.path / 'state')!r}."
            )
        text = json.dumps(settings, indent=1, sort_keys=True)
        self._aside(SETTINGS, lambda file: file.write(text.encode()))
        self._write(BASE, {str(position): value for position, value in enumerate(base)})

    def save(self, saved: Saved) -> None:
        """Keep a state; the one before is there until this one is whole."""
        progress = saved.progress
        names = {"weights": f"weights-{progress.epoch:06d}.npz", "best": None}
        names["shown"] = names["weights"]
        self._write(names["weights"], {str(k): v for k, v in saved.weights.items()})
        kind = "weights"
        if saved.shown is not saved.weights:
            kind = "shown"
            names["shown"] = f"shown-{progress.epoch:06d}.npz"
            self._write(names["shown"], {str(k): v for k, v in saved.shown.items()})
        if progress.best_epoch is not None:
            names["best"] = f"{kind}-{progress.best_epoch:06d}.npz"
        arrays = {
            f"{part}/{key}": value
            for part, values in saved.parts.items()
            for key, value in values.items()
        }
        self._write(
            STATE,
            {
                "progress": np.array(progress.to_json()),
                "files": np.array(json.dumps(names)),
                "parts": np.array(json.dumps({part: {} for part in saved.parts})),
                **arrays,
            },
        )
        for old in _weights_in(self.path):
            if old.name not in names.values():
                old.unlink(missing_ok=True)

    def _settings(self) -> dict[str, Any]:
        try:
            settings = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._unsound(SETTINGS, error) from error
        if not isinstance(settings, dict):
            raise self._unsound(SETTINGS, "no settings")
        return settings

    def _write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        self._aside(name, lambda file: _save(file, arrays))

    def _aside(self, name: str, write: Any) -> None:
        with tempfile.TemporaryDirectory(dir=self.path, prefix=ASIDE) as aside:
            written = Path(aside) / name
            with written.open("wb") as file:
                write(file)
            os.replace(written, self.path / name)

    def _read(self, name: str) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path / name) as arrays:
                return dict(arrays)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise self._unsound(name, error) from error

    def _unsound(self, name: str, error: Any) -> ValueError:
        return ValueError(
            f"`directory` {str(self.path)!r} has no sound {name!r} ({error}). Expected what "
            f"fine_tune wrote there. {anew(self.path)}"
        )


def reset_run(directory: str | os.PathLike[str]) -> None:
    """Remove the state of a run, so that `fine_tune(directory=…)` starts anew.

    The state goes first: however this is interrupted, what is left is no run, and a new one takes
    its place. Other files stay, and so does their folder. Without a run nothing happens.

    Args:
        directory: as of `fine_tune`.

    Raises:
        ValueError: it is a file, or a run in it is under way.
    """
    path = Path(directory)
    if not path.is_dir():
        _refuse_file(path)
        return
    with held(path):
        if (path / STATE).exists() or (path / BASE).exists():
            (path / STATE).unlink(missing_ok=True)
            for file in (*_weights_in(path), path / SETTINGS, path / BASE):
                file.unlink(missing_ok=True)
        for left in path.glob(f"{ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds other files
        path.rmdir()


@contextlib.contextmanager
def held(directory: str | os.PathLike[str] | None) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if it is not there.

    Raises:
        ValueError: it is a file, or another run is under way in it.
    """
    with contextlib.ExitStack() as stack:
        if directory is not None:
            path = _folder(directory)
            try:
                stack.enter_context(file_lock(path / LOCK, wait=False))
            except BlockingIOError as error:
                raise ValueError(
                    f"`directory` {str(path)!r} is in use: another run is under way in it. "
                    "Expected a folder of one run at a time. Wait for the other one to end, or "
                    f"give another folder: directory={str(path) + '-2'!r}."
                ) from error
        yield


def anew(path: Path) -> str:
    """How to start anew, for messages."""
    return f"To start anew, give another directory or remove it: kt.plans.reset_run({str(path)!r})."


def _folder(path: str | os.PathLike[str]) -> Path:
    _refuse_file(Path(path))
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def _refuse_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"`directory` is a file. Expected a folder. Received: {path}")


def _weights_in(path: Path) -> list[Path]:
    return [file for pattern in KEPT for file in path.glob(pattern)]


def _by_position(arrays: Mapping[str, np.ndarray]) -> Changes:
    return {int(key): value for key, value in arrays.items()}


def _save(file: Any, arrays: Mapping[str, np.ndarray]) -> None:
    # NumPy's files know no bfloat16; each of its numbers is one of float32.
    np.savez(
        file, **{k: v.astype("float32") if v.dtype.kind == "V" else v for k, v in arrays.items()}
    )
