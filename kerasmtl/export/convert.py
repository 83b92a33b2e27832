"""Conversion of a trained model to a LiteRT or ONNX file, verified in the target runtime.

`convert_model` draws samples, converts (`litert`, `onnx`), writes a temporary file, compares it
with the model (`compare`), adds the description, and renames it at the end. `kerasmtl convert`
calls it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.data.dataset import make_dataset
from kerasmtl.data.inputs import Input
from kerasmtl.data.manifest import Manifest
from kerasmtl.evaluation.calibration import Decision, decide
from kerasmtl.export.converted_model import (
    BATCH,
    FORMATS,
    ConvertedModel,
    Run,
    check_runtime,
    runner,
    write_file_description,
)
from kerasmtl.export.description import describe_task, package_versions
from kerasmtl.export.litert import litert_bytes
from kerasmtl.export.onnx import onnx_bytes
from kerasmtl.export.signatures import ModelInterface
from kerasmtl.export.verify import reference_answers
from kerasmtl.tasks import Task, as_tasks
from kerasmtl.utils.files import atomic_file
from kerasmtl.utils.text import warn
from kerasmtl.utils.validation import check_choice, check_count

COUNT = 300  # samples by default; TensorFlow's guide names some hundreds as enough
CALIBRATING = 2 / 3  # of the samples set the ranges of int8; the others are for the check
AGREEMENT = 0.98  # of decisions, below which there is a warning
NEAR = {"probability": 1e-5, "regression": 1e-4}  # allowed differences; above 1, relative


def convert_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    tasks: Iterable[Task | str],
    to: str = "litert",
    input: Input | None = None,
    *,
    samples: Any = None,
    sample_count: int = COUNT,
    uint8: bool = False,
    decisions: Mapping[str, Decision | float] | None = None,
    seed: int = 0,
) -> ConvertedModel:
    """Write a model as one file for another runtime, and verify it there.

    The input is `pixels`, (batch, height, width, 3) float32 in [0, 1] of the model's size, or
    `features`, (batch, columns) float32, NaN = missing. The outputs, float32, are named after the
    tasks: (batch,) probability or number, (batch, classes) of a multiclass task. LiteRT's signature
    is `serving_default`. The file carries its description (`ConvertedModel.description`).

    Before the file is written to its final path, it runs in its own runtime on samples, or on noise
    without: "litert" and "onnx" must give the model's probabilities to 1e-5, and its numbers to
    1e-4 (relative above 1). The other two lose precision; the description says how much.

    Args:
        model: functional or sequential, with the outputs that `build_model` makes for `tasks`.
        path: the file to write, .tflite or .onnx; never overwritten.
        tasks: of the outputs, in order.
        to: "litert", float32; "litert-dynamic", weights of 8 bits; "litert-int8", integers of 8
            bits throughout, for images; or "onnx", float32.
        input: what the model takes, such as `manifest.input`; by default images.
        samples: rows like those that the model will see, which "litert-int8" needs: an array, a
            data set of `make_dataset`, a manifest, or a labels file; rows of the test split are
            not drawn. Two thirds set the ranges of the integers, the others are for the check.
        sample_count: how many rows of `samples` are drawn at most.
        uint8: of "litert-int8", the input is uint8 pixels 0 to 255.
        decisions: threshold and temperature by task: `Decision`s, as `kt.export.read_decisions` of
            an exported version or `kt.calibration.fit_decisions` return, or thresholds. By default
            0.5. Temperatures are applied to the outputs; thresholds are part of the description.
        seed: of drawing samples.

    Returns:
        The file, opened.

    Raises:
        FileExistsError: the file exists; nothing is changed.
        ImportError: the runtime is not installed; names the extra.
        ValueError: an unknown format or a wrong suffix, a model that the format cannot hold or that
            gives other numbers there, or tasks, input, samples or decisions that do not fit.

    Example:
        >>> import tempfile
        >>> import kerasmtl as kt
        >>> model = kt.build_model(kt.backbones.mlp(2, [4]), ["leak", "wear"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = kt.export.convert_model(
        ...         model, folder + "/pumps.onnx", ["leak", "wear"], "onnx",
        ...         kt.data.Table(["age", "load"]), decisions={"leak": 0.3},
        ...     )
        ...     [task["threshold"] for task in made.description["tasks"]]
        [0.3, 0.5]
    """
    kind, target = FORMATS[check_choice("to", to, FORMATS)], Path(path)
    if target.suffix != kind.suffix:
        raise ValueError(f"`path` must end with {kind.suffix} for {to}, got {target}")
    _check_new(target)
    check_runtime(kind.runtime)
    chosen = as_tasks(tasks)
    interface = ModelInterface.of(model, chosen, input, decide(chosen, None, decisions, False))
    _check_options(to, interface, samples, uint8)
    rows = None if samples is None else draw_samples(samples, interface, sample_count, seed)
    cut = 0 if rows is None or len(rows) < 2 else round(len(rows) * CALIBRATING)
    if kind.runtime == "onnx":
        made = onnx_bytes(model, interface)
    else:
        ranges = None if rows is None else rows[: cut or None]
        made = litert_bytes(model, interface, to.partition("-")[2] or None, ranges, uint8)
    if rows is None:
        signature = interface.input.signature(interface.input.model_signature)
        noise = {name: tf.constant(array) for name, array in signature.sample(0).items()}
        checked = np.asarray(signature.to_input(noise))
    else:
        checked = rows[cut:]
    with atomic_file(target) as file:
        file.write_bytes(made)
        check = compare(model, runner(file, interface.name), interface, checked, uint8, kind.exact)
        check["on"] = "noise" if rows is None else "samples"
        # After the check, whose result it contains; the runtimes ignore it.
        write_file_description(file, _describe(interface, to, uint8, check))
        _check_new(target)
    agree = check["decisions_agree"]
    if rows is not None and agree is not None and agree < AGREEMENT:
        warn(
            f"{target} decides differently from the model in {1 - agree:.1%} of the cases checked. "
            "litert keeps the model's decisions."
        )
    return ConvertedModel(target)


def draw_samples(
    source: Any, interface: ModelInterface, count: int = COUNT, seed: int = 0
) -> np.ndarray:
    """Draw inputs from a source.

    Rows that a manifest or labels file calls test are left out: the samples set the ranges of the
    integers, and scores on test rows should stay honest. A file without a split has no such rows.

    Args:
        source: as `samples` of `convert_model`. Of an array or a data set the first rows are taken.
        interface: of the model.
        count: how many rows at most.
        seed: of drawing.

    Returns:
        (rows, *interface.shape) float32.

    Raises:
        FileNotFoundError: the labels file or an image is absent.
        ValueError: rows of another shape than the model takes, none at all, or pixels outside
            [0, 1].
    """
    check_count("sample_count", count)
    if isinstance(source, str | os.PathLike):
        source = Manifest.from_csv(source, interface.tasks, interface.input)
    if isinstance(source, Manifest):
        known = source.splits is not None
        rows = np.flatnonzero(source.splits != "test") if known else np.arange(len(source))
        if not len(rows):
            raise ValueError(f"`samples` must not be test rows only, got {source.source}")
        taken = source.take(np.random.default_rng(seed).permutation(rows)[:count])
        input = source.input.like(interface.input)
        values = source.input.select(taken.values, input)
        source = make_dataset(replace(taken, input=input, values=values), cache=False)
    if isinstance(source, tf.data.Dataset):
        batches = source.as_numpy_iterator()
        every = (row for b in batches for row in (b[0] if isinstance(b, tuple) else b))
        source = list(itertools.islice(every, count))
    rows = np.asarray(source)[:count]
    if rows.dtype.kind not in "biuf" or rows.shape[1:] != interface.shape or not len(rows):
        raise ValueError(
            f"`samples` must be (rows, {', '.join(map(str, interface.shape))}) numbers, got "
            f"{rows.shape} {rows.dtype}"
        )
    rows = rows.astype("float32")
    low, high = interface.input.bounds or (None, None)
    if low is not None and not (rows.min() >= low and rows.max() <= high):  # NaN, too
        raise ValueError(
            f"`samples` must be numbers from {low} to {high}, got {rows.min()} to {rows.max()}"
        )
    return rows


def compare(
    model: keras.Model,
    run: Run,
    interface: ModelInterface,
    rows: np.ndarray,
    uint8: bool,
    exact: bool,
) -> dict[str, Any]:
    """Compare a converted model with its original.

    Args:
        model: the original.
        run: the converted one.
        interface: of both.
        rows: inputs, (rows, *interface.shape) float32.
        uint8: whether the converted one takes uint8 pixels.
        exact: whether differences must be within `NEAR`.

    Returns:
        "rows"; "largest_difference" by task; "decisions_agree", the share of equal decisions.

    Raises:
        ValueError: an output has another shape, is NaN where the model's is not, or differs by more
            than `NEAR` if `exact`.
    """
    if uint8:  # both get what uint8 can hold
        rows = np.rint(rows * 255).astype("uint8")
    floats = rows / np.float32(255) if uint8 else rows
    outputs = model.predict(floats, batch_size=BATCH, verbose=0)
    wanted = reference_answers(outputs, interface.tasks, interface.decisions)
    try:
        parts = [run(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
        names = [task.name for task in interface.tasks]
        got = {name: np.concatenate([part[name] for part in parts]) for name in names}
    except Exception as error:  # runtimes raise their own errors, of types that are not public
        raise ValueError(
            f"`model` was converted, but the runtime fails: {str(error)[:300]}"
        ) from error
    differences = {name: _difference(name, got[name], wanted[name]) for name in got}
    bounds = {t.name: NEAR.get(t.kind, NEAR["probability"]) for t in interface.tasks}
    beyond = {name: off for name, off in differences.items() if off > bounds[name]}
    if exact and beyond:
        raise ValueError(
            f"`model` must give the same numbers once converted, got differences of {beyond}"
        )
    return {
        "rows": len(rows),
        "largest_difference": differences,
        "decisions_agree": decisions_agree(got, wanted, interface),
    }


def decisions_agree(
    got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], interface: ModelInterface
) -> float | None:
    """Return the share of rows and tasks with the same decision; None if no task has decisions.

    A binary task's decision is whether its probability reaches the threshold, a multiclass task's
    is the most probable class; a regression task has none.

    Args:
        got: outputs of the converted model by task.
        wanted: those of the original.
        interface: of both.
    """
    same = []
    for task in interface.tasks:
        both = got[task.name], wanted[task.name]
        if task.kind == "binary":
            threshold = interface.decisions[task.name].threshold
            same.append(np.equal(*(values >= threshold for values in both)))
        elif task.kind == "multiclass":
            same.append(np.equal(*(values.argmax(axis=1) for values in both)))
    return float(np.concatenate(same).mean()) if same else None


def _difference(name: str, got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest |got - wanted| / max(1, |wanted|) where the model gives a number.

    Args:
        name: of the task, for the message.
        got: of the converted model.
        wanted: of the original, which may contain NaN.

    Raises:
        ValueError: another shape, or no finite number where the original gives one.
    """
    known = np.isfinite(wanted)
    if got.shape != wanted.shape or not np.isfinite(got[known]).all():
        raise ValueError(
            f"`model` must give finite {wanted.shape} for {name!r} once converted, got {got.shape}"
        )
    off = np.abs(got[known].astype("float64") - wanted[known])
    return float((off / np.maximum(1.0, np.abs(wanted[known]))).max(initial=0.0))


def _check_new(target: Path) -> None:
    """Raise FileExistsError if there is anything at a path."""
    if os.path.lexists(target):
        raise FileExistsError(f"`path` must be new, got {target}, which exists. Remove it first.")


def _check_options(to: str, interface: ModelInterface, samples: Any, uint8: bool) -> None:
    """Raise ValueError for options that a format, or this kind of input, does not have."""
    if to != "litert-int8":
        if uint8:
            raise ValueError(f"`uint8` must be False but for litert-int8, got True with to={to!r}")
        return
    if interface.input.bounds is None:
        raise ValueError(
            f"`to` must be litert, litert-dynamic or onnx for {interface.input.noun}, got {to!r}: "
            "their columns have no range in common, and no integer means missing"
        )
    if samples is None:
        raise ValueError(
            "`samples` must be training images for litert-int8, whose ranges they set, got None"
        )
    warm = [n for n, each in interface.decisions.items() if each.temperature not in (None, 1.0)]
    if warm:
        raise ValueError(
            f"`decisions` must have no temperatures for litert-int8, got some for {warm[:10]}: "
            "integers of 8 bits cannot compute logits. Use litert-dynamic."
        )


def _describe(
    interface: ModelInterface, to: str, uint8: bool, check: dict[str, Any]
) -> dict[str, Any]:
    """Compose the description that a file carries."""
    takes = {"dtype": "uint8" if uint8 else "float32", "shape": [None, *interface.shape]}
    if interface.input.bounds:
        takes["range"] = [0, 255] if uint8 else list(interface.input.bounds)
    return {
        "format": 1,
        "to": to,
        "input": interface.input.config(),
        "inputs": {interface.name: takes},
        "tasks": [describe_task(task, interface.decisions[task.name]) for task in interface.tasks],
        "check": check,
        "versions": package_versions(),
    }
