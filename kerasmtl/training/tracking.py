"""Records of a run's metrics: history.csv, TensorBoard, MLflow.

`Run.callbacks` puts them into a training, and `Run.finish` logs the final scores. mlflow is
imported where it is used: it is an extra, and takes a while.
"""

from __future__ import annotations

import os
import time
import tomllib
from pathlib import Path
from typing import Any

import keras
import pandas as pd

from kerasmtl.utils.files import write_text

MLFLOW_RUN = "mlflow-run"  # the file with the run's id, for a training that is resumed


class HistoryFile(keras.callbacks.Callback):
    """Write the metrics of each finished epoch to a CSV file: a header, then a line per epoch.

    The columns are `epoch`, from 1 on, `seconds`, and the names of the logs. A training that is
    resumed continues the file, and replaces the epochs that it does again.

    Args:
        path: of the file, which is written atomically.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(path)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock of the epoch."""
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the file with this epoch at its end; later ones, of a killed run, are dropped."""
        seconds = round(time.monotonic() - self._began, 3)
        values = {name: [float(value)] for name, value in (logs or {}).items()}
        frame = pd.DataFrame({"epoch": [epoch + 1], "seconds": [seconds], **values})
        if self.path.is_file():
            # As text: the numbers of earlier epochs keep every digit, however often the file is
            # rewritten.
            before = pd.read_csv(self.path, dtype=str)
            frame = pd.concat([before[before["epoch"].astype(int) <= epoch], frame])
        write_text(self.path, frame.to_csv(index=False, lineterminator="\n"))


class MLflow(keras.callbacks.Callback):
    """Log the metrics of each epoch to MLflow, in a run named after the folder.

    They go to `MLFLOW_TRACKING_URI`, or else to `mlflow.db` beside the folder, which
    `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db` shows.

    Args:
        folder: of the run; the settings of its project.toml are logged as parameters.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the run, or the one that was interrupted."""
        _start(self.folder)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the metrics; an epoch that is done again adds a second value."""
        import mlflow

        mlflow.log_metrics({k: float(v) for k, v in (logs or {}).items()}, step=epoch + 1)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """End MLflow's run; `log_scores` opens it again."""
        import mlflow

        mlflow.end_run()


def trackers(name: str, folder: Path) -> list[keras.callbacks.Callback]:
    """Return the callbacks of a tracking, "tensorboard", "mlflow" or "none", for a run's folder."""
    if name == "tensorboard":
        return [keras.callbacks.TensorBoard(str(folder / name), write_graph=False)]
    return [MLflow(folder)] if name == "mlflow" else []


def log_scores(name: str, folder: Path, scores: dict[str, float]) -> None:
    """Log the final scores to the tracking of a training: a training may have no epoch but them.

    Args:
        name: "tensorboard", "mlflow" or "none".
        folder: of the training's run.
        scores: numbers by name, without NaN.
    """
    if name == "tensorboard":
        import tensorflow as tf

        with tf.summary.create_file_writer(str(folder / name / "scores")).as_default(step=0):
            for score, value in scores.items():
                tf.summary.scalar(score, value)
    elif name == "mlflow":
        import mlflow

        with _start(folder):
            mlflow.log_metrics(scores)


def _start(folder: Path) -> Any:
    """Open the MLflow run of a training's folder, or make it with its settings as parameters.

    The run's id is kept in a file of the folder, so that a training that is resumed continues the
    same one.

    Args:
        folder: of the training's run, with its project.toml.

    Returns:
        MLflow's active run, which is a context that ends it.
    """
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder.parent.absolute() / 'mlflow.db'}")
    kept = folder / MLFLOW_RUN
    if kept.is_file():
        return mlflow.start_run(run_id=kept.read_text().strip())
    active = mlflow.start_run(run_name=folder.name)
    write_text(kept, active.info.run_id)
    settings = tomllib.loads((folder / "project.toml").read_text(encoding="utf-8"))
    mlflow.log_params(pd.json_normalize(settings).iloc[0].to_dict())
    return active
