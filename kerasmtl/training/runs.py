"""One folder per training in runs/: what it was made of, what it said and what became of it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys
import time
import tomllib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import keras

from kerasmtl.utils.files import file_lock, write_aside
from kerasmtl.utils.tf import graph_fault

if TYPE_CHECKING:
    from kerasmtl.evaluation.calibration import Decision
    from kerasmtl.evaluation.report import Report
    from kerasmtl.training.record import Trained

MLFLOW_RUN = "mlflow-run"  # the file with the run's id, for a training that is resumed


def trackers(name: str, folder: Path) -> list[keras.callbacks.Callback]:
    """The callbacks of a tracking, for the run in a folder."""
    if name == "tensorboard":
        return [keras.callbacks.TensorBoard(str(folder / name), write_graph=False)]
    return [MLflow(folder)] if name == "mlflow" else []


class HistoryFile(keras.callbacks.Callback):
    """Write the metrics of each finished epoch to a CSV file: a header, then a line per epoch.

    The columns are `epoch`, from 1 on, `seconds`, and the names of the logs. A training that is
    resumed continues the file, and replaces the epochs that it does again.

    Args:
        path: of the file, which is written aside and renamed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(path)
        self._began = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        seconds = f"{time.monotonic() - self._began:.3f}"
        row = {"epoch": str(epoch + 1), "seconds": seconds}
        row |= {name: repr(float(value)) for name, value in (logs or {}).items()}
        rows = [row for row in self._rows() if int(row["epoch"]) <= epoch] + [row]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_aside(self.path, text.getvalue())

    def state(self) -> dict[str, Any]:
        """Nothing: what is known stands in the file."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue the file."""

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))


class MLflow(keras.callbacks.Callback):
    """Log the metrics of each epoch to MLflow, in a run called after the folder.

    They go to `MLFLOW_TRACKING_URI`, or else to `mlflow.db` beside the folder, which
    `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db` shows.

    Args:
        folder: of the run; its project.toml is logged as an artifact.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        _start(self.folder)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        import mlflow

        mlflow.log_metrics({k: float(v) for k, v in (logs or {}).items()}, step=epoch + 1)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        import mlflow

        mlflow.end_run()

    def state(self) -> dict[str, Any]:
        """Nothing: the run's id stands in its folder."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Log on to the same run."""


def log_scores(folder: Path, scores: dict[str, float]) -> None:
    """Log the final scores to the MLflow run of a training's folder."""
    import mlflow

    with _start(folder):
        mlflow.log_metrics(scores)


def _start(folder: Path) -> Any:
    """Open the MLflow run of a training's folder, or make it."""
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder.parent.absolute() / 'mlflow.db'}")
    kept = folder / MLFLOW_RUN
    known = kept.read_text().strip() if kept.is_file() else None
    active = mlflow.start_run(run_id=known, run_name=None if known else folder.name)
    if known is None:
        write_aside(kept, active.info.run_id)
        mlflow.log_params(_settings(folder / "project.toml"))
    return active


def _settings(file: Path) -> dict[str, Any]:
    """The settings of a project.toml as MLflow's parameters: training.epochs = 20."""
    sections = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {
        f"{section}.{name}": value
        for section, values in sections.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }


LATEST = "latest"
CHECKPOINT, STATE, SCORES = "model.keras", "state", "scores.json"
HISTORY, LOG = "history.csv", "train.log"
KEPT = ("project.toml", "model.py", "train.py")  # that decide what a run does, copied into it


class Run:
    """A training under way or done, in a folder of its own.

    As a context it keeps what is printed in the log, and prints warnings as plain lines.

    The folder holds project.toml, model.py and train.py as they were, `train.log`, `history.csv`
    (a line per epoch), `model.keras` with its record `model.json`, `scores.json`, and, while the
    training is unfinished, `state/`, from which `fine_tune` resumes it.

    Args:
        folder: of the run.
        tracking: "tensorboard" or "mlflow" keeps the metrics there as well; "none" does not.
    """

    def __init__(self, folder: str | os.PathLike[str], tracking: str = "none") -> None:
        self.folder = Path(folder)
        self.tracking = tracking
        self.notes: list[str] = []  # printed with the scores
        self._open = contextlib.ExitStack()

    @property
    def checkpoint(self) -> Path:
        """The model of the last finished epoch, or, after the training, of the best one."""
        return self.folder / CHECKPOINT

    @property
    def state(self) -> Path:
        """Where `fine_tune` keeps what it resumes from."""
        return self.folder / STATE

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return (self.folder / SCORES).is_file()

    @property
    def verbose(self) -> int:
        """For `fit`: 1, a bar per epoch, on a terminal; else 0, and `callbacks` print lines."""
        return int(sys.stdout.isatty())

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What keeps each finished epoch: the model, its line in history.csv, its metrics."""
        from kerasmtl.training.callbacks import Checkpoint, EpochLines

        return [
            Checkpoint(self.checkpoint),
            HistoryFile(self.folder / HISTORY),
            *trackers(self.tracking, self.folder),
            *([] if self.verbose else [EpochLines()]),
        ]

    def finish(self, report: Report, decisions: Mapping[str, Decision] | None = None) -> None:
        """Write scores.json, and remove what the run would be resumed from.

        Args:
            report: the scores of the test part.
            decisions: by task, from which probability on the answer is yes: `kerasmtl predict` and
                `evaluate` go by it.
        """
        by_task = {name: asdict(each) for name, each in (decisions or {}).items()}
        for note in self.notes:
            print(f"Note: {note}")
        content = report.to_dict()
        write_aside(self.folder / SCORES, json.dumps({**content, "decisions": by_task}, indent=1))
        if self.tracking == "mlflow":
            means = {
                f"test_{kind}_{score}": of["mean"]
                for kind, scores in content["macro"].items()
                for score, of in scores.items()
            }
            log_scores(self.folder, {k: mean for k, mean in means.items() if mean is not None})
        shutil.rmtree(self.state, ignore_errors=True)

    def keep_table(
        self, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
    ) -> None:
        """Write a CSV file of that name into the folder."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        write_aside(self.folder / name, text.getvalue())

    def decisions(self) -> dict[str, Decision]:
        """By task what `finish` was given; empty if the run is not finished."""
        from kerasmtl.evaluation.calibration import Decision

        if not self.finished:
            return {}
        content = json.loads((self.folder / SCORES).read_text(encoding="utf-8"))
        return {name: Decision(**fields) for name, fields in content["decisions"].items()}

    def thresholds(self) -> dict[str, float]:
        """By binary task, from which probability on the answer is yes; empty if not yet known."""
        found = {name: each.threshold for name, each in self.decisions().items()}
        return {name: threshold for name, threshold in found.items() if threshold is not None}

    def __enter__(self) -> Run:
        log = self._open.enter_context(open(self.folder / LOG, "a", encoding="utf-8"))
        for redirect, stream in (
            (contextlib.redirect_stdout, sys.stdout),
            (contextlib.redirect_stderr, sys.stderr),
        ):
            self._open.enter_context(redirect(_Tee(stream, log)))  # type: ignore[type-var]
        self._open.enter_context(warnings.catch_warnings())
        # Part of what a training says: on stdout, without a line of code.
        warnings.showwarning = lambda message, *place: print(f"Note: {message}", flush=True)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:  # the program that ends shows it where the log does not reach
            said = str(error) or type(error).__name__
            with open(self.folder / LOG, "a", encoding="utf-8") as log:
                log.write(f"{type(error).__name__}: {said}\n")
        self._open.close()
        reason = graph_fault(error)
        if reason is not None:
            raise ValueError(reason) from error


def begin_run(project: Path, record: Trained, tracking: str = "none") -> Run:
    """Open the newest run, if it was interrupted and nothing has changed since, or else a new one.

    Args:
        project: its folder.
        record: what is going to be trained on; kept in a new run.
        tracking: as of `Run`.

    Returns:
        The run. runs/latest points to it.

    Raises:
        ValueError: the package that `tracking` needs is not installed, or the newest run is under
            way in another process.
    """
    from kerasmtl.training.record import load_trained, save_trained

    if tracking != "none" and find_spec(tracking) is None:
        raise ValueError(
            f"`tracking` = {tracking!r} needs a package that is not installed: pip install "
            f"'kerasmtl[{tracking}]', or tracking = \"none\" in project.toml."
        )
    last = last_run(project)
    if last is not None and last.state.is_dir() and not last.finished:
        name = _shown(last.folder, project)
        if _under_way(last):
            raise ValueError(f"`runs` must be of one training at a time, got {name} under way.")
        changed = [file for file in KEPT if not _same(project / file, last.folder / file)]
        then = load_trained(last.checkpoint)
        changed += [] if then is None else record.changes_since(then)
        if not changed:
            print(f"Resuming {name}, which was interrupted.")
            return Run(last.folder, tracking)
        print(
            f"{name} was interrupted, and {', '.join(changed)} changed since: a new run begins. "
            "Undo the change to resume the other."
        )
    run = Run(_new_folder(project / "runs"), tracking)
    for file in KEPT:
        if (project / file).is_file():
            shutil.copyfile(project / file, run.folder / file)
    if record.data is not None:
        record.data["run"] = run.folder.name
    save_trained(record, run.checkpoint)
    _point_latest(run.folder)
    print(f"New run: {_shown(run.folder, project)}")
    return run


def _under_way(run: Run) -> bool:
    """Whether another process trains in it."""
    from kerasmtl.training.resume import LOCK

    try:
        with file_lock(run.state / LOCK, wait=False):
            return False
    except BlockingIOError:
        return True


def last_run(project: Path, with_model: bool = False) -> Run | None:
    """The newest run of a project; None if there is none.

    Args:
        project: its folder.
        with_model: only one that has finished an epoch.
    """
    runs = project / "runs"
    latest = runs / LATEST
    # Copied by what does not know links, it is a folder that stays as it was.
    first = [latest] if latest.is_symlink() else []
    for folder in [*first, *sorted(_folders(runs), reverse=True)]:
        if folder.is_dir() and (not with_model or (folder / CHECKPOINT).is_file()):
            return Run(folder.resolve())
    return None


def _folders(runs: Path) -> list[Path]:
    found = runs.iterdir() if runs.is_dir() else ()
    return [path for path in found if path.is_dir() and path.name[:1].isdigit()]


def _new_folder(runs: Path) -> Path:
    runs.mkdir(exist_ok=True)
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in range(1, 1000):
        folder = runs / (name if number == 1 else f"{name}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise FileExistsError(f"`runs` {runs} has 1,000 folders of this second.")


def _point_latest(folder: Path) -> None:
    """runs/latest becomes a link to the folder; where links are not allowed, names tell."""
    aside = folder.parent / f".{LATEST}-{folder.name}"
    try:
        aside.symlink_to(folder.name, target_is_directory=True)
        os.replace(aside, folder.parent / LATEST)
    except OSError:
        aside.unlink(missing_ok=True)


def _same(a: Path, b: Path) -> bool:
    contents = [path.read_bytes() if path.is_file() else None for path in (a, b)]
    return contents[0] == contents[1]


def _shown(folder: Path, project: Path) -> str:
    return os.path.relpath(folder, project)


class _Tee:
    """A stream that writes to a log as well, there without bars and colours."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log, self._line = stream, log, ""

    def write(self, text: str) -> int:
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self._log.write(_last_state(line) + "\n")
        if whole:
            self._log.flush()
        else:
            end = "\r" if self._line.endswith(("\r", "\b")) else ""
            self._line = _last_state(self._line) + end
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _last_state(line: str) -> str:
    """A line as it looks at its end: a bar overwrites it, in colours."""
    last = re.split(r"[\r\b]+", line.rstrip("\r\b"))[-1]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last)
