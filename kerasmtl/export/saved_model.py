"""A trained model as a SavedModel: named inputs in, one named output per task out, proved."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import keras

from kerasmtl.evaluation.calibration import (
    Decision,
    Rule,
    check_rules,
    decide,
    given_decisions,
    warn_of,
)
from kerasmtl.evaluation.evaluate import scores_and_cells
from kerasmtl.evaluation.report import KINDS, Report, asked_for
from kerasmtl.export.description import (
    checked_data,
    describe,
    write_description,
)
from kerasmtl.export.golden import write_golden, write_warm_up
from kerasmtl.export.model_card import write_card
from kerasmtl.export.signatures import (
    Endpoint,
    check_names,
    kind_of_input,
    picture_endpoints,
    table_endpoints,
)
from kerasmtl.export.verify import (
    Case,
    Live,
    check_answers,
    picture_cases,
    prove,
    table_cases,
)
from kerasmtl.export.versions import aside, check_folder, first_version, publish, writing
from kerasmtl.models.build import check_outputs
from kerasmtl.tasks import Task, as_tasks

ERRORS = {"brier", "ece", "log_loss", "mae", "rmse"}  # the lower, the better


class NotGoodEnough(ValueError):
    """The model scores worse than `require` demands; nothing was published."""


def check_required(
    require: Mapping[str, float] | None, tasks: Sequence[Task] | None = None
) -> None:
    """Raise ValueError for what no gate can be, before anything takes time.

    With `tasks`, the names are those of the scores that `evaluate` gives for them.
    """
    if require is None:
        return
    if not isinstance(require, Mapping):
        raise ValueError(
            '`require` is no dict. Expected scores and numbers, such as {"macro_auc": 0.8}. '
            f"Received: {str(require)[:80]}"
        )
    for name, wanted in require.items():
        if not isinstance(wanted, Real) or isinstance(wanted, bool) or not math.isfinite(wanted):
            raise ValueError(
                f"`require` {name!r} is no number. Expected one, such as 0.8. Received: {wanted!r}"
            )
    if tasks is None:
        return
    scores = {kind: dict.fromkeys(asked_for(kind), 0.0) for kind in KINDS}
    empty = {
        "macro_auc": 0.0,
        "tasks": {task.name: scores[task.kind] for task in tasks},
        "macro": {task.kind: {s: {"mean": 0.0} for s in scores[task.kind]} for task in tasks},
    }
    for name in require:
        _score(empty, name)


def check_gate(metrics: Mapping[str, Any] | None, require: Mapping[str, float] | None) -> None:
    """Let a model pass whose scores are as demanded, or better.

    Args:
        metrics: as `Report.to_dict` makes it.
        require: such as {"macro_auc": 0.8, "car.auc": 0.7, "price.mae": 3}: "macro_" and a score,
            its mean over the tasks of one kind that define it (of binary tasks, if they have it;
            macro_auc also goes over multiclass tasks), or "task.score", that of one task. Of errors
            (Brier, ECE, log loss, MAE, RMSE) the number is the most that is allowed.

    Raises:
        NotGoodEnough: a score is worse or not defined; names all of them.
        ValueError: there are no metrics, or none of that name.
    """
    check_required(require)
    if not require:
        return
    if metrics is None:
        raise ValueError(
            "`require` needs scores. Expected metrics=kerasmtl.evaluate(…) or validation=…"
        )
    failed = []
    for name, wanted in require.items():
        score, found = _score(metrics, name)
        error = score in ERRORS
        if found is None or (found > wanted if error else found < wanted):
            shown = "not defined" if found is None else f"{found:.4f}"
            failed.append(f"{name} is {shown}, {'at most' if error else 'at least'} {wanted:g}")
    if failed:
        raise NotGoodEnough(
            "`model` does not pass `require`, and is not published; the former version stays. "
            f"Expected and received: {'; '.join(failed)}"
        )


def _score(metrics: Mapping[str, Any], name: str) -> tuple[str, float | None]:
    """The score's own name, and its value; None = not defined."""
    task, dot, score = name.rpartition(".")
    if dot:
        scores = metrics.get("tasks", {}).get(task, {})
        if score in scores and score != "kind":
            return score, _defined(scores[score])
    elif name == "macro_auc" and name in metrics:
        return "auc", _defined(metrics[name])
    elif name.startswith("macro_"):
        score = name.removeprefix("macro_")
        for scores in metrics.get("macro", {}).values():
            if score in scores:
                return score, _defined(scores[score]["mean"])
    tasks = metrics.get("tasks", {})
    known = [key for key in tasks.get(task, {}) if key != "kind"] if dot else []
    with_ = f"a score of {task!r}: {known}" if known else f"tasks of {sorted(tasks)[:20]}"
    raise ValueError(
        "`require` names no score. Expected macro_auc, macro_SCORE or TASK.SCORE, with "
        f"{with_}. Received: {name!r}"
    )


def _defined(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else value


MOST_PIXELS = 100_000_000  # of one picture; a server takes pictures of strangers


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    tasks: Iterable[Task | str],
    version: int | None = None,
    columns: Sequence[str] | None = None,
    packed_bits: bool = False,
    *,
    validation: Any = None,
    thresholds: Rule | Mapping[str, Rule | Decision] | None = None,
    calibrate: bool = False,
    metrics: Report | Mapping[str, Any] | None = None,
    require: Mapping[str, float] | None = None,
    data: Mapping[str, Any] | None = None,
    licence: str | None = None,
    name: str | None = None,
    max_pixels: int = MOST_PIXELS,
    proof: bool = True,
) -> Path:
    """Write `path/<version>/`, a SavedModel that needs neither kerasmtl nor Keras.

    Outputs by task name: (batch,) float32 probability; (batch,) number of a regression task;
    (batch, classes) probabilities of a multiclass task. "<task>_decision": (batch,) int32, 1 from
    the task's threshold on; of a multiclass task (batch,) string, the likeliest class.

    A model of pictures has the signatures `serving_default`, from `image_bytes`, (batch,) strings,
    each a JPEG, PNG, GIF, BMP or still WebP, decoded and resized as `make_dataset` does; `pixels`,
    from (batch, height, width, 3) uint8 of any size; `pixels_float`, the same in [0, 1], which is
    not checked; `features`, from `image_bytes` to the (batch, d) numbers that the head takes, if
    there is a head. The error of a batch names by number what is no picture, cut short or too
    large. Of one damaged inside, the error is that of TensorFlow's decoder, without a number: a
    graph cannot catch it at a bearable price. Then ask again with each picture alone.

    A model of a table has `matrix`, which takes `features` (batch, columns) float32 in the order
    of `columns`, NaN = missing, and, up to 100 columns, `columns`, which takes one (batch,)
    float32 for each, named after it with "_" for whatever is no letter, digit or "_" (a word of
    Python, such as "class", gets "column_" before it).
    `serving_default` is `columns` if it is there (order cannot be mistaken), else `matrix`;
    `features` takes the same.

    In assets.extra: model.json and MODEL_CARD.md, golden requests with their answers, and warm-up
    requests for TensorFlow Serving. Before the version appears, a fresh process without kerasmtl
    and Keras answers them as the model does, to 1e-5.

    Args:
        model: as `build_model` makes it.
        path: the folder of all versions of this model.
        tasks: the names of the outputs, in order.
        version: a positive number; by default one more than the highest there.
        columns: of a model of a table, the names of the inputs, in order.
        packed_bits: of a model of a table, its files hold the columns as packed bits, which
            `kerasmtl predict` then unpacks; the signatures take columns as ever.
        validation: batches as `evaluate` takes them, for what is fitted or measured here.
        thresholds: a rule of `fit_thresholds`, or a dict of task → rule, or what `fit_decisions`
            found; "f1" by default if there is `validation`, else "fixed", 0.5.
        calibrate: whether probabilities are calibrated by a temperature each; if not, they are
            those of `model.predict`.
        metrics: what `evaluate` gave; by default that of `validation`.
        require: scores without which nothing is published, such as {"macro_auc": 0.8,
            "car.auc": 0.7}: see `kerasmtl.export.saved_model.check_gate`.
        data: what the model was trained on, "sha256", "rows" and "source": see `data_of`.
        licence: of the model.
        name: of the model; by default that of the folder.
        max_pixels: of one picture; more are refused before they are decoded.
        proof: False leaves the fresh process out.

    Returns:
        The folder of the version. It appears whole or not at all.

    Raises:
        FileExistsError: the version exists; nothing is changed. Without `version`, an export that
            finds its number taken by another one takes the next.
        OSError: `path` is a file or read-only, or the disk is full; nothing is published.
        NotGoodEnough: the model scores worse than `require`; the former version stays.
        ProofFailed: the export does not answer as the model does; nothing is published.
        ValueError: the model takes neither pictures nor these columns, or predicts NaN; tasks that
            differ from its outputs; an unknown rule, score or task; rules without the data set that
            they need.

    Warns where a threshold or temperature is not what was asked for: too few known labels (then it
    is 0.5, or 1), or a precision that no threshold has.
    """
    chosen = as_tasks(tasks)
    kind = kind_of_input(model, columns, packed_bits, max_pixels)
    check_outputs(model, chosen)
    check_names(chosen)
    about = {**kind, "data": checked_data(data), "licence": licence}
    base = Path(path)
    check_folder(base)
    first = first_version(base, version)
    scores = _given_scores(metrics)
    check_required(require, chosen if scores is None and validation is not None else None)
    check_rules(chosen, thresholds, calibrate, validation is not None)
    cells = None
    if validation is not None:
        measured, cells = scores_and_cells(model, validation, chosen)
        scores = {**measured.to_dict(), "of": "validation"} if scores is None else scores
    check_gate(scores, require)
    decisions = decide(chosen, cells, thresholds, calibrate)
    given = given_decisions(thresholds)
    warn_of({name: decision for name, decision in decisions.items() if name not in given})
    live = Live(model, chosen, decisions)
    called = base.absolute().name if name is None else name
    about["metrics"] = scores
    with aside(base) as folder:
        written = folder / "model"
        cases = _make(live, written, about)

        def describe_as(version: int) -> None:
            content = describe(written, called, version, chosen, decisions, about)
            write_description(written, content)
            write_card(written, content)
            write_golden(written, cases[0], called, version)
            with writing(written):
                write_warm_up(written, cases, called)

        describe_as(first)
        if proof:
            prove(written, cases, folder)
        return publish(written, base, first, describe_as if version is None else None)


def _make(live: Live, folder: Path, about: Mapping[str, Any]) -> list[Case]:
    """Write the graph into a folder; returns requests to it, and what the model answers."""
    of = (live.model, live.tasks, live.decisions)
    if about["columns"] is None:
        endpoints = picture_endpoints(*of, about["max_pixels"])
        cases = picture_cases(live)
    else:
        endpoints = table_endpoints(*of, about["columns"])
        cases = table_cases(live, about["columns"])
    check_answers(cases[0])
    _write(live.model, folder, endpoints)
    return cases


def _write(model: keras.Model, folder: Path, endpoints: list[Endpoint]) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, serve, signature in endpoints:
        archive.add_endpoint(name, serve, signature)
    with writing(folder):
        archive.write_out(str(folder), verbose=False)


def _given_scores(metrics: Any) -> dict[str, Any] | None:
    if isinstance(metrics, Report):
        return metrics.to_dict()
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ValueError(
            "`metrics` is no report. Expected what kerasmtl.evaluate gives, or its to_dict(). "
            f"Received: {type(metrics).__name__}"
        )
    return None if metrics is None else dict(metrics)
