"""A trained model as one file for LiteRT or ONNX, proven in that runtime before it has a name."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl._version import __version__
from kerasmtl.data.manifest import Manifest
from kerasmtl.data.table import Table
from kerasmtl.export.converted_model import (
    BATCH,
    ConvertedModel,
    Run,
    check_runtime,
    describe,
    runner,
)
from kerasmtl.export.formats import FORMATS, NEAR, Format
from kerasmtl.export.interface import ExportedModel, Face, Model, answers
from kerasmtl.export.litert import litert_bytes
from kerasmtl.export.onnx import onnx_bytes
from kerasmtl.tasks import Task, as_tasks

COUNT = 300  # samples by default; TensorFlow's guide names some hundreds as enough
NOISE = 4  # rows of noise, where no samples are given


def draw_samples(source: Any, face: Face, count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Inputs drawn from a source, (up to `count`, *face.shape) float32.

    Args:
        source: an array; a data set of `make_dataset`, of which the first rows are taken; a
            `Manifest` or `Table`, or the path of a labels file, of which rows are drawn. Rows that
            the file calls test are never drawn.
        face: of the model.
        count: the most rows.
        seed: of drawing.

    Raises:
        FileNotFoundError: the labels file or a picture is absent.
        ValueError: rows of another shape than the model takes, none at all, or pictures that are
            not in [0, 1].
    """
    if count < 1:
        raise ValueError(f"`sample_count` is too small. Expected at least 1. Received: {count}")
    if isinstance(source, str | os.PathLike):
        source = _read(Path(source), face)
    if isinstance(source, Manifest):
        rows = _of_manifest(source, face, count, seed)
    elif isinstance(source, tf.data.Dataset):
        rows = _of_dataset(source, count)
    else:
        rows = np.asarray(source)[:count]
    return _checked(rows, face)


def noise(face: Face) -> np.ndarray:
    """Rows that need no data, (rows, *face.shape) float32; of a table, one has missing cells."""
    rng = np.random.default_rng(0)
    if face.columns is None:
        return rng.random((NOISE, *face.shape), dtype="float32")
    rows = rng.normal(size=(NOISE, *face.shape)).astype("float32")
    rows[-1, ::2] = np.nan
    return rows


def _read(path: Path, face: Face) -> Manifest:
    if face.columns is None:
        return Manifest.from_csv(path)
    return Table.load(path, tasks=face.tasks, features=face.columns)


def _of_manifest(manifest: Manifest, face: Face, count: int, seed: int) -> np.ndarray:
    from kerasmtl.data.dataset import make_dataset

    if isinstance(manifest, Table) == (face.columns is None):
        raise ValueError(
            "`samples` is of another kind than the model. Expected "
            f"{'pictures' if face.columns is None else 'a table'}. Received: {manifest!r}"
        )
    known = manifest.splits is not None
    rows = np.flatnonzero(manifest.splits != "test") if known else np.arange(len(manifest))
    if not len(rows):
        raise ValueError(
            f"`samples` {manifest.source} has test rows only. Expected rows to learn from."
        )
    drawn = np.random.default_rng(seed).permutation(rows)[:count]
    taken = manifest.take(drawn)
    if isinstance(taken, Table):
        return taken.with_columns(face.columns).features
    return _of_dataset(make_dataset(taken, face.shape[:2], cache=False), count)


def _of_dataset(dataset: tf.data.Dataset, count: int) -> np.ndarray:
    batches, found = [], 0
    for batch in dataset:
        batches.append(np.asarray(batch[0] if isinstance(batch, tuple) else batch)[: count - found])
        found += len(batches[-1])
        if found >= count:
            break
    if not batches:
        raise ValueError("`samples` is an empty data set. Expected at least one batch.")
    return np.concatenate(batches)


def _checked(rows: np.ndarray, face: Face) -> np.ndarray:
    if rows.dtype.kind not in "biuf" or rows.shape[1:] != face.shape or not len(rows):
        raise ValueError(
            f"`samples` do not fit the model. Expected (rows, {', '.join(map(str, face.shape))}) "
            f"numbers. Received: {rows.shape}, {rows.dtype}"
        )
    rows = rows.astype("float32")
    if face.columns is None and not (rows.min() >= 0 and rows.max() <= 1):  # NaN is refused, too
        raise ValueError(
            "`samples` are no pictures as the model takes them. Expected pixels in [0, 1]. "
            f"Received: {rows.min()} to {rows.max()}"
        )
    return rows


def compare(
    model: Model,
    run: Run,
    face: Face,
    rows: np.ndarray,
    limits: Mapping[str, float],
    uint8: bool,
    exact: bool,
) -> dict[str, Any]:
    """The largest difference by task, and the share of decisions that are the same.

    Args:
        model: the original.
        run: the converted one.
        face: of both.
        rows: inputs, (rows, *face.shape) float32.
        limits: by binary task, from which probability on the answer is yes.
        uint8: the converted one takes uint8 pixels.
        exact: whether differences have to be within `NEAR`.

    Raises:
        ValueError: an output has another shape, is NaN where the model's is not, or is beyond the
            bounds of `NEAR`, if they are to be exact.
    """
    if uint8:  # both get what uint8 can hold
        rows = np.rint(rows * 255).astype("uint8")
    wanted = answers(model, rows / np.float32(255) if uint8 else rows, face, BATCH)
    try:
        parts = [run(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
        got = {task.name: np.concatenate([p[task.name] for p in parts]) for task in face.tasks}
    except Exception as error:  # runtimes raise their own errors, of types that are not public
        raise ValueError(
            f"`model` was converted, but its own runtime cannot run it: {str(error)[:300]}"
        ) from error
    differences = {name: _difference(name, got[name], wanted[name]) for name in got}
    bounds = {
        t.name: NEAR["number" if t.kind == "regression" else "probability"] for t in face.tasks
    }
    beyond = {name: value for name, value in differences.items() if value > bounds[name]}
    if exact and beyond:
        raise ValueError(
            f"`model` gives other numbers once converted, and nothing was written. Expected at "
            f"most {NEAR} between them. Received: {beyond}"
        )
    return {
        "rows": len(rows),
        "largest_difference": differences,
        "decisions_agree": decisions_agree(got, wanted, limits, face),
    }


def decisions_agree(
    got: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    face: Face,
) -> float | None:
    """The share of rows and tasks with the same answer; None if no task has answers.

    A binary task's is whether its probability reaches the limit, a multiclass task's the likeliest
    class; a number is none.
    """
    same = []
    for task in face.tasks:
        both = got[task.name], wanted[task.name]
        if task.kind == "binary":
            same.append(np.equal(*(values >= limits[task.name] for values in both)))
        elif task.kind == "multiclass":
            same.append(np.equal(*(values.argmax(axis=1) for values in both)))
    return float(np.concatenate(same).mean()) if same else None


def _difference(name: str, got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest |got - wanted| / max(1, |wanted|) where the model gives a number."""
    known = np.isfinite(wanted)
    if got.shape != wanted.shape or not np.isfinite(got[known]).all():
        raise ValueError(
            f"`model` gives no numbers for task {name!r} once converted. Expected shape "
            f"{wanted.shape}. Received: {got.shape}"
        )
    if not known.any():
        return 0.0
    off = np.abs(got[known].astype("float64") - wanted[known])
    return float((off / np.maximum(1.0, np.abs(wanted[known]))).max())


CALIBRATING = 2 / 3  # of the samples set the ranges of int8; the others are for the check
AGREEMENT = 0.98  # of decisions, below which there is a warning


def convert_model(
    model: keras.Model | str | os.PathLike[str],
    path: str | os.PathLike[str],
    tasks: Iterable[Task | str] | None = None,
    to: str = "litert",
    columns: Sequence[str] | None = None,
    samples: Any = None,
    sample_count: int = COUNT,
    uint8: bool = False,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
    float_layers: int | None = None,
) -> ConvertedModel:
    """Write a model, or an exported version, as one file for another runtime, and prove it there.

    Shapes: the input is `pixels` (batch, height, width, 3) float32 in [0, 1], of the model's size,
    or `features` (batch, columns) float32, NaN = missing. The outputs, float32, are called as the
    tasks: (batch,) probability or number, (batch, classes) of a multiclass task. LiteRT's
    signature is `serving_default`. The file carries its description (`ConvertedModel.description`).

    Before the file gets its name it runs in its own runtime on samples, or on noise without: a
    probability of "litert" or "onnx" that is more than 1e-5 from the model's is refused, and a
    number that is more than 1e-4 (relative, above 1); the other two lose precision, and the
    description says how much.

    Args:
        model: as `build_model` makes it; or the folder of an exported version, whose tasks,
            columns, temperatures and thresholds the file then has.
        path: the file to write, .tflite or .onnx.
        tasks: of a model, the names of the outputs, in order.
        to: "litert", float32; "litert-dynamic", weights of 8 bits; "litert-int8", integers of 8
            bits, see `float_layers`; or "onnx", float32.
        columns: of a model of a table, the names of the inputs, in order.
        samples: rows that stand for what the model will see, which "litert-int8" needs: an array, a
            data set of `make_dataset`, a `Manifest` or `Table`, or a labels file, of which rows
            that are not test rows are drawn. Two thirds set the ranges, the others are checked.
        sample_count: the most rows of `samples` to take.
        uint8: of "litert-int8" for pictures, the input is uint8 pixels from 0 to 255.
        thresholds: by binary task, from which probability on the answer is yes; 0.5 by default. The
            description carries them, and the check counts decisions by them.
        seed: of drawing samples.
        float_layers: of "litert-int8", how many convolutions compute in float32, counted from the
            input; by default five eighths, which keeps 98 % of decisions where integers alone do
            not. 0: integers throughout, for hardware that has nothing else; temperatures are
            computed in float32 all the same.

    Raises:
        FileExistsError: the file exists; nothing is changed.
        ImportError: the extra is not installed; says which one.
        ValueError: an unknown format or a wrong ending, a model that this format cannot hold, or
            one that gives other numbers there, tasks or columns or samples that do not fit.
    """
    kind, target = _checked_convert(to, Path(path))
    check_runtime(kind.runtime)
    origin, face = _origin(model, tasks, columns)
    _check_options(to, face, samples, uint8, float_layers)
    limits = _limits(face, {**getattr(origin, "thresholds", {}), **(thresholds or {})})
    rows = None if samples is None else draw_samples(samples, face, sample_count, seed)
    cut = 0 if rows is None or len(rows) < 2 else round(len(rows) * CALIBRATING)
    ranges = None if rows is None else rows[: cut or None]
    made = _bytes(origin, face, to, ranges, uint8, float_layers)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as aside:
        file = Path(aside) / target.name
        file.write_bytes(made)
        checked = noise(face) if rows is None else rows[cut:]
        run = runner(file, face.name)
        check = compare(origin, run, face, checked, limits, uint8, kind.exact)
        check["on"] = "noise" if rows is None else "samples"
        describe(file, _description(origin, face, to, uint8, limits, check))
        _place(file, target)
    _warn(check, target, noisy=rows is None)
    return ConvertedModel(target)


def _origin(
    model: keras.Model | str | os.PathLike[str],
    tasks: Iterable[Task | str] | None,
    columns: Sequence[str] | None,
) -> tuple[Model, Face]:
    if isinstance(model, str | os.PathLike):
        if tasks is not None or columns is not None:
            raise ValueError(
                "`tasks` and `columns` are those of the export. Expected neither with the folder "
                f"of one. Received: {model}"
            )
        exported = ExportedModel(model)
        return exported, Face.of_export(exported)
    if tasks is None:
        raise ValueError(
            "`tasks` are missing. Expected the names of the model's outputs, in order."
        )
    return model, Face.of(model, as_tasks(tasks), columns)


def _checked_convert(to: str, target: Path) -> tuple[Format, Path]:
    if to not in FORMATS:
        raise ValueError(f"`to` is no format. Expected one of {list(FORMATS)}. Received: {to!r}")
    if target.suffix != FORMATS[to].ending:
        raise ValueError(
            f"`path` does not end as a file of {to}. Expected {FORMATS[to].ending}. Received: "
            f"{target}"
        )
    if os.path.lexists(target):
        raise _exists(target)
    return FORMATS[to], target


def _exists(target: Path) -> FileExistsError:
    return FileExistsError(
        f"`path` {target} exists, and is never overwritten. Choose another name, or remove it."
    )


def _check_options(
    to: str, face: Face, samples: Any, uint8: bool, float_layers: int | None
) -> None:
    integers = to == "litert-int8"
    if float_layers is not None and (not integers or float_layers < 0):
        raise ValueError(
            "`float_layers` is for litert-int8. Expected 0 or more with it. Received: "
            f"{float_layers} with to={to!r}"
        )
    if uint8 and not integers:
        raise ValueError(f"`uint8` is for litert-int8. Expected False. Received: to={to!r}")
    if integers and face.columns is not None:
        raise ValueError(
            "`to` litert-int8 is for pictures. A table's columns have no range in common, and no "
            "integer stands for a missing one. Expected litert, litert-dynamic or onnx."
        )
    if integers and samples is None:
        raise ValueError(
            "`samples` are missing: they set the ranges of litert-int8. Expected training "
            "pictures: a data set, a Manifest or a labels file."
        )


def _limits(face: Face, thresholds: Mapping[str, float] | None) -> dict[str, float]:
    given, binary = dict(thresholds or {}), [t.name for t in face.tasks if t.kind == "binary"]
    wrong = {k: v for k, v in given.items() if k not in binary or not 0 <= v <= 1}
    if wrong:
        raise ValueError(
            f"`thresholds` do not fit. Expected numbers in [0, 1] by binary task, of {binary}. "
            f"Received: {wrong}"
        )
    return {name: float(given.get(name, 0.5)) for name in binary}


def _bytes(
    model: Model,
    face: Face,
    to: str,
    samples: np.ndarray | None,
    uint8: bool,
    float_layers: int | None,
) -> bytes:
    if to == "onnx":
        return onnx_bytes(model, face)
    quantize = to.partition("-")[2] or None
    return litert_bytes(model, face, quantize, samples, uint8, float_layers)


def _description(
    model: Model,
    face: Face,
    to: str,
    uint8: bool,
    limits: Mapping[str, float],
    check: dict[str, Any],
) -> dict[str, Any]:
    import tensorflow as tf

    export = model.described if isinstance(model, ExportedModel) else None
    warm = {task["name"]: task.get("temperature") for task in (export or {}).get("tasks", ())}
    pictures = face.columns is None
    inputs: dict[str, Any] = {
        "dtype": "uint8" if uint8 else "float32",
        "shape": [None, *face.shape],
    }
    if pictures:
        inputs["range"] = [0, 255] if uint8 else [0, 1]
    return {
        "format": 1,
        "to": to,
        "kind": "pictures" if pictures else "table",
        "image_size": list(face.shape[:2]) if pictures else None,
        "columns": None if pictures else list(face.columns or ()),
        "inputs": {face.name: inputs},
        "tasks": [
            {
                "name": task.name,
                "kind": task.kind,
                "classes": list(task.classes),
                "threshold": limits.get(task.name),
                "temperature": warm.get(task.name),
            }
            for task in face.tasks
        ],
        "check": check,
        "export": export and {key: export[key] for key in ("name", "version", "created")},
        "versions": {
            "kerasmtl": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    }


def _place(file: Path, target: Path) -> None:
    try:
        os.link(file, target)  # which, unlike a rename, never replaces what came there meanwhile
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise _exists(target) from None
        os.rename(file, target)


def _warn(check: dict[str, Any], target: Path, noisy: bool) -> None:
    agree = check["decisions_agree"]
    if not noisy and agree is not None and agree < AGREEMENT:
        warnings.warn(
            f"{target} decides otherwise than the model in {1 - agree:.1%} of the cases checked. "
            "litert keeps the model's decisions.",
            stacklevel=3,
        )
