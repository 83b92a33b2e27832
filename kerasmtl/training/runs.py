"""The folders in runs/, one per training: its settings, log, history, model and scores.

Free of TensorFlow and Keras, which `Run.callbacks` imports: commands that only look at runs start
quickly.

`Project.start_run` calls `begin_run`, which opens an interrupted run again or makes a new folder;
train.py uses the run as a context, its `callbacks()` and `state` for the training, and `finish` at
the end. The commands find a project's newest model with `last_run`. scores.json, history.csv and
the model are written atomically; a run without scores.json counts as unfinished.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from kerasmtl.tasks import by_task
from kerasmtl.utils.files import atomic_file, file_lock, write_text
from kerasmtl.utils.tf import graph_fault

if TYPE_CHECKING:
    import keras

    from kerasmtl.evaluation.calibration import Decision
    from kerasmtl.evaluation.report import Report
    from kerasmtl.tasks import Task
    from kerasmtl.training.heads import FittedHead
    from kerasmtl.training.record import TrainingRecord

LATEST = "latest"
CHECKPOINT, STATE, SCORES = "model.keras", "state", "scores.json"
HISTORY, LOG, HEADS, REPORT = "history.csv", "train.log", "heads.json", "report.html"
OUT_OF_FOLD = "out_of_fold.npz"  # what models that had not seen a row predicted for it
KEPT = ("project.toml", "model.py", "train.py")  # copied into a run: they decide what it does


class Run:
    """A training under way or done, in a folder of its own.

    As a context it copies what is printed into the log, and prints warnings as plain lines.

    The folder holds project.toml, model.py and train.py as they were, `train.log`, `history.csv`
    (a line per epoch), `heads.json` (the candidates of a head chosen by folds), `model.keras` with
    its record, `scores.json`, and, while the training is
    unfinished, `state/`, from which it is resumed.

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
        """The folder that the training is resumed from."""
        return self.folder / STATE

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return (self.folder / SCORES).is_file()

    @property
    def verbose(self) -> int:
        """For `fit`: 1, a bar per epoch, on a terminal; else 2, a line."""
        return 1 if sys.stdout.isatty() else 2

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Return what keeps each finished epoch: the model, a line in history.csv, the metrics.

        `kt.callbacks.Resume` is not among them, since it takes them.
        """
        from kerasmtl.training.callbacks import Checkpoint
        from kerasmtl.training.tracking import HistoryFile, trackers

        return [
            Checkpoint(self.checkpoint),
            HistoryFile(self.folder / HISTORY),
            *trackers(self.tracking, self.folder),
        ]

    def finish(self, report: Report, decisions: Mapping[str, Decision] | None = None) -> None:
        """Write scores.json, and remove the state that the run would be resumed from.

        Scores come before the state is removed: killed in between, the run counts as finished, and
        nothing is trained again.

        Args:
            report: the scores of the test part.
            decisions: per task the threshold of its probability; `kerasmtl predict` and `evaluate`
                use it.
        """
        for note in self.notes:
            print(f"Note: {note}")
        content = report.to_dict()
        content["decisions"] = {name: asdict(each) for name, each in (decisions or {}).items()}
        write_text(self.folder / SCORES, json.dumps(content, indent=1))
        if self.tracking != "none":
            from kerasmtl.training.tracking import log_scores

            means = {
                f"test_{kind}_{score}": of["mean"]
                for kind, scores in content["macro"].items()
                for score, of in scores.items()
            } | self._fold_scores(report)
            given = {name: mean for name, mean in means.items() if mean is not None}
            log_scores(self.tracking, self.folder, given)
        shutil.rmtree(self.state, ignore_errors=True)

    def _fold_scores(self, report: Report) -> dict[str, float]:
        """Return the mean scores out of fold of a head chosen by folds, by kind of task."""
        from kerasmtl.evaluation.report import MAIN

        file, found = self.folder / HEADS, {}
        kept = json.loads(file.read_text(encoding="utf-8"))["scores"] if file.is_file() else {}
        for kind, tasks in report.by_kind().items():
            if values := [kept[task] for task in tasks if kept.get(task) is not None]:
                found[f"folds_{kind}_{MAIN[kind]}"] = sum(values) / len(values)
        return found

    def decisions(self) -> dict[str, Decision]:
        """Return per task what `finish` was given; empty if the run is not finished.

        The commands use them in place of 0.5.
        """
        from kerasmtl.evaluation.calibration import Decision

        if not self.finished:
            return {}
        content = json.loads((self.folder / SCORES).read_text(encoding="utf-8"))
        return {name: Decision(**fields) for name, fields in content["decisions"].items()}

    @property
    def saw_validation(self) -> bool:
        """Whether the model has learned from the validation rows, as a head of all folds has."""
        file = self.folder / HEADS
        return file.is_file() and json.loads(file.read_text())["validation"] == "learned"

    def keep_out_of_fold(self, head: FittedHead, keys: np.ndarray) -> None:
        """Write what models of the folds that had not seen a row predicted for it.

        Args:
            head: of the training, with folds.
            keys: (rows,) of the rows that it was fitted on, as `Manifest.keys` gives them.
        """
        predictions = by_task(head.out_of_fold, head.tasks).values()
        with atomic_file(self.folder / OUT_OF_FOLD) as written, written.open("wb") as file:
            np.savez(file, *predictions, keys=keys.astype(str), labels=head.labels)

    def out_of_fold(
        self, tasks: Sequence[Task]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]] | None:
        """Return keys, labels, and predictions by task, as they were kept; None without them.

        Shapes: (rows,); (rows, tasks), NaN = missing; (rows,) or (rows, classes).
        """
        if not (self.folder / OUT_OF_FOLD).is_file():
            return None
        with np.load(self.folder / OUT_OF_FOLD) as kept:
            found = {task.name: kept[f"arr_{number}"] for number, task in enumerate(tasks)}
            return kept["keys"], kept["labels"], found

    def thresholds(self) -> dict[str, float]:
        """Return the thresholds of the binary tasks by name; empty if not yet known."""
        found = {name: each.threshold for name, each in self.decisions().items()}
        return {name: threshold for name, threshold in found.items() if threshold is not None}

    def __enter__(self) -> Run:
        """Begin to log; a run that is resumed continues its log."""
        log = self._open.enter_context(open(self.folder / LOG, "a", encoding="utf-8"))
        out, err = _Tee(sys.stdout, log), _Tee(sys.stderr, log)
        self._open.callback(lambda: (out.end(), err.end()))
        self._open.enter_context(contextlib.redirect_stdout(out))  # type: ignore[type-var]
        self._open.enter_context(contextlib.redirect_stderr(err))  # type: ignore[type-var]
        self._open.enter_context(warnings.catch_warnings())
        # Warnings belong to the training's output: on stdout, without a line of code.
        warnings.showwarning = lambda message, *place: print(f"Note: {message}", flush=True)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close the log; raise TensorFlow's errors about the data as a ValueError in words."""
        self._open.close()
        if error is not None:  # its traceback is printed after the log is closed
            said = str(error) or type(error).__name__
            with open(self.folder / LOG, "a", encoding="utf-8") as log:
                log.write(f"{type(error).__name__}: {said}\n")
        reason = graph_fault(error)
        if reason is not None:
            raise ValueError(reason) from error


def begin_run(project: Path, record: TrainingRecord, tracking: str = "none") -> Run:
    """Open the newest run, if it was interrupted and nothing has changed since, or else a new one.

    A new run keeps copies of project.toml, model.py and train.py, which decide what it does, and
    its record before anything is trained. What is compared is these files and the record, not the
    code of packages.

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
    from kerasmtl.training.record import save_record

    if tracking != "none" and find_spec(tracking) is None:
        raise ValueError(
            f"`tracking` = {tracking!r} needs a package that is not installed: pip install "
            f"'kerasmtl[{tracking}]', or tracking = \"none\" in project.toml."
        )
    last = last_run(project)
    if last is not None and last.state.is_dir() and not last.finished:
        shown = os.path.relpath(last.folder, project)
        changed = _changes(project, last, record)
        if not changed:
            print(f"Resuming {shown}, which was interrupted.")
            return Run(last.folder, tracking)
        print(
            f"{shown} was interrupted, and {', '.join(changed)} changed since: a new run begins. "
            "Undo the change to resume the other."
        )
    run = Run(_new_folder(project / "runs"), tracking)
    for file in KEPT:
        if (project / file).is_file():
            shutil.copyfile(project / file, run.folder / file)
    if record.data is not None:
        record.data["run"] = run.folder.name
    save_record(record, run.checkpoint)
    print(f"New run: {os.path.relpath(run.folder, project)}")
    return run


def _changes(project: Path, last: Run, record: TrainingRecord) -> list[str]:
    """Return what differs from an interrupted run.

    Args:
        project: its folder.
        last: the run that was interrupted.
        record: what would be trained on now.

    Raises:
        ValueError: another process trains in it.
    """
    from kerasmtl.training.record import load_record
    from kerasmtl.training.resume import LOCK

    try:
        with file_lock(last.state / LOCK, wait=False):
            pass
    except BlockingIOError:
        shown = os.path.relpath(last.folder, project)
        raise ValueError(
            f"`runs` must be of one training at a time, got {shown} under way."
        ) from None
    files = [
        [f.is_file() and f.read_bytes() for f in (project / name, last.folder / name)]
        for name in KEPT
    ]
    changed = [name for name, (now, then) in zip(KEPT, files, strict=True) if now != then]
    try:
        before = load_record(last.checkpoint)
    except ValueError:  # damaged, or of an older version
        return [*changed, "its record"]
    return changed + ([] if before is None else record.changes_since(before))


def last_run(project: Path, with_model: bool = False) -> Run | None:
    """Return the newest run of a project; None if there is none.

    Args:
        project: its folder.
        with_model: only one that has finished an epoch.
    """
    latest = project / "runs" / LATEST
    # Where a copy made a folder of the link, it stays as it was then: names tell which is newest.
    found = [latest] if latest.is_symlink() else []
    found += sorted(latest.parent.glob("[0-9]*"), reverse=True)
    for folder in found:
        if folder.is_dir() and (not with_model or (folder / CHECKPOINT).is_file()):
            return Run(folder.resolve())
    return None


def _new_folder(runs: Path) -> Path:
    """Make a folder named by the time, to which runs/latest points; those of a second are numbered.

    Where links are not allowed, names tell which is the latest.

    Args:
        runs: the folder of all runs, which is made.

    Returns:
        The new folder, empty.
    """
    runs.mkdir(exist_ok=True)
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in count(1):
        folder = runs / (name if number == 1 else f"{name}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    aside = runs / f".{LATEST}-{folder.name}"
    try:
        # Made under another name and renamed: readers always find a link, to the old or the new
        # run.
        aside.symlink_to(folder.name, target_is_directory=True)
        os.replace(aside, runs / LATEST)
    except OSError:
        aside.unlink(missing_ok=True)
    return folder


class _Tee:
    """A stream that writes to a log as well, there without bars and colours."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log, self._line = stream, log, ""

    def write(self, text: str) -> int:
        """Write to both; the log gets whole lines only.

        Returns:
            What the stream returns: the number of characters.
        """
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self._log.write(_last_state(line) + "\n")
        if whole:
            self._log.flush()
        else:
            end = "\r" if self._line.endswith(("\r", "\b")) else ""
            self._line = _last_state(self._line) + end
        return self._stream.write(text)

    def end(self) -> None:
        """Write the last line into the log, where it did not end."""
        if self._line:
            self._log.write(_last_state(self._line) + "\n")
            self._line = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _last_state(line: str) -> str:
    """Return a line as a terminal shows it at its end, after bars were redrawn, without colours."""
    last = re.split(r"[\r\b]+", line.rstrip("\r\b"))[-1]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last)
