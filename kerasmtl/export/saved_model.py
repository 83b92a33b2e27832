"""Export of a trained model as a SavedModel with named inputs and one named output per task.

`export_saved_model` goes from cheap to expensive: arguments, scores and the target are checked
before anything is traced, and the version is written into a hidden folder (`versions.new_version`),
described, verified in a fresh process, and renamed only then. Whatever fails, no version appears.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasmtl.data.inputs import Input
from kerasmtl.evaluation.calibration import Decision, Rule, check_rules, decide
from kerasmtl.evaluation.evaluate import scores_and_cells
from kerasmtl.evaluation.report import Report, asked_for
from kerasmtl.export import verify as verification
from kerasmtl.export.description import (
    FORMAT,
    describe_task,
    package_versions,
    signatures_in,
    write_description,
)
from kerasmtl.export.model_card import write_card
from kerasmtl.export.signatures import (
    check_names,
    endpoints,
    input_of,
    traced_signatures,
    write_saved_model,
)
from kerasmtl.export.versions import check_target, new_version
from kerasmtl.models.build import check_outputs
from kerasmtl.tasks import Task, as_tasks
from kerasmtl.utils.text import listed
from kerasmtl.utils.validation import check_number

ERRORS = {"brier", "ece", "log_loss", "mae", "rmse"}  # scores of which less is better
CARD = ("name", "licence", "data")


class ScoreTooLow(ValueError):
    """The model scores worse than `require` demands; no version was published.

    The message names each such score, and what was required.
    """


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    tasks: Iterable[Task | str],
    input: Input | None = None,
    *,
    version: int | None = None,
    validation: Any = None,
    decisions: Rule | Mapping[str, Rule | Decision] | None = None,
    calibrate: bool = False,
    metrics: Report | Mapping[str, Any] | None = None,
    require: Mapping[str, float] | None = None,
    card: Mapping[str, Any] | None = None,
    verify: bool = True,
) -> Path:
    """Write `path/<version>/`, a SavedModel that needs neither kerasmtl nor Keras.

    Outputs are named after the tasks: (batch,) float32 probability of a binary task, (batch,)
    number of a regression task, (batch, classes) probabilities of a multiclass task.
    "<task>_decision": (batch,) int32, 1 where the probability is at least the task's threshold; of
    a multiclass task (batch,) string, the most probable class.

    Signatures of a model of images: `serving_default`, from `image_bytes`, (batch,) strings, each a
    JPEG, PNG, GIF, BMP or still WebP, decoded and resized as `make_dataset` does; `pixels`, from
    (batch, height, width, 3) uint8 of any size; `pixels_float`, the same in [0, 1]. An image that
    cannot be decoded, is truncated or too large is named by its number in the batch.

    Signatures of a model of rows: `matrix`, from `features`, (batch, columns) float32 in the order
    of the features, NaN = missing; up to 100 columns also `columns`, from one (batch,) float32 for
    each, named after it ("_" for characters that are not letters, digits or "_"). `serving_default`
    is `columns` where there is one, else `matrix`.

    `features`, in both: from the input of `serving_default` to the (batch, d) numbers that the head
    is given.

    `assets.extra` contains model.json, MODEL_CARD.md, a golden request with its answer, and warm-up
    requests for TensorFlow Serving. Before the version appears, a fresh process without kerasmtl
    and Keras answers a request to each signature as the model does, to 1e-5.

    Args:
        model: functional or sequential, with the outputs that `build_model` makes for `tasks`.
        path: the folder of all versions of this model.
        tasks: of the outputs, in order.
        input: what the model takes, such as `manifest.input`; by default images of the size of
            the model's input. `kt.data.Image(max_pixels=…)` limits what is decoded.
        version: a positive integer; by default one more than the highest there.
        validation: batches of (inputs, labels) as `evaluate` takes them, from which decisions are
            fitted and scores measured; or by task name known labels and predictions of models that
            have not seen them, as `kt.features.FittedHead.cells` returns.
        decisions: a rule of `kt.calibration.fit_thresholds` for all binary tasks ("f1",
            ("precision", 0.9), a number), or by task a rule or a `Decision`, as
            `kt.calibration.fit_decisions` and `kt.export.read_decisions` return. By default "f1"
            with `validation`, else 0.5.
        calibrate: whether to calibrate probabilities by one temperature per task, fitted on
            `validation`; if not, they are those of `model.predict`.
        metrics: what `evaluate` returned; by default scores on `validation`.
        require: minimum scores, such as {"macro_auc": 0.8, "car.auc": 0.7, "price.mae": 3}:
            "macro_SCORE", the mean over the tasks that define it, or "TASK.SCORE". Of errors
            (Brier, ECE, log loss, MAE, RMSE) the number is a maximum.
        card: what the model card and model.json say besides: "name" of the model (by default that
            of the folder), its "licence", and "data", a dict that describes the training data
            ("source", "rows", "sha256").
        verify: False leaves the fresh process out, which takes some seconds.

    Returns:
        The folder of the version. It appears complete or not at all.

    Raises:
        FileExistsError: the version exists; nothing is changed.
        OSError: `path` is a file or read-only, or the disk is full; nothing is published.
        kerasmtl.export.saved_model.ScoreTooLow: a score is worse than `require`; nothing is
            published.
        kerasmtl.export.verify.VerificationError: the export does not answer as the model does;
            nothing is published.
        ValueError: the model does not take this input, its outputs are not those of
            the tasks, it predicts NaN, or an argument is wrong.

    Warns where a threshold or temperature cannot be fitted as asked: with too few known labels it
    is 0.5, or 1.

    Example:
        >>> import tempfile
        >>> import kerasmtl as kt, tensorflow as tf
        >>> model = kt.build_model(kt.backbones.mlp(2, [4]), ["leak", "wear"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = kt.export_saved_model(
        ...         model, folder + "/pumps", ["leak", "wear"], kt.data.Table(["age", "load"]),
        ...         decisions={"leak": 0.3}, card={"licence": "CC0-1.0"}, verify=False,
        ...     )
        ...     served = tf.saved_model.load(str(path)).signatures["serving_default"]
        ...     answer = served(age=tf.constant([3.0]), load=tf.constant([0.5]))
        >>> path.name, sorted(answer)
        ('1', ['leak', 'leak_decision', 'wear', 'wear_decision'])
    """
    chosen = as_tasks(tasks)
    bound = input_of(model, input)
    about: dict[str, Any] = {"input": bound.config()}
    check_outputs(model, chosen)
    check_names(chosen)
    base = Path(path)
    check_target(base, version)
    about |= _check_card(card, base.absolute().name)
    scores = _given_scores(metrics)
    check_required(require, chosen if scores is None and validation is not None else None)
    check_rules(chosen, decisions, calibrate, validation is not None)
    cells = None
    if validation is not None:
        measured, cells = scores_and_cells(model, validation, chosen)
        of = "folds" if isinstance(validation, Mapping) else "validation"
        scores = {**measured.to_dict(), "of": of} if scores is None else scores
    check_scores(scores, require)
    decided = decide(chosen, cells, decisions, calibrate)
    signatures = traced_signatures(bound)
    cases = verification.make_cases(model, signatures, chosen, decided)
    # Only now: a signature that cannot be traced, or a model that predicts NaN, reserves no number.
    with new_version(base, version) as (number, scratch):
        folder = scratch / "model"
        with _disk_errors(base):
            write_saved_model(model, folder, endpoints(model, signatures, chosen, decided))
        # After the SavedModel, since the types and shapes of the signatures are read from the file
        # itself.
        about |= {
            "format": FORMAT,
            "version": number,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "tasks": [describe_task(task, decided[task.name]) for task in chosen],
            "signatures": signatures_in(folder),
            "metrics": scores,
            "versions": package_versions(),
        }
        write_description(folder, about)
        write_card(folder, about)
        verification.write_golden(folder, cases[0])
        with _disk_errors(base):
            verification.write_warm_up(folder, cases, about["name"])
        if verify:
            verification.verify(folder, cases, scratch)
    return base / str(number)


def check_required(
    require: Mapping[str, float] | None, tasks: Sequence[Task] | None = None
) -> None:
    """Check minimum scores before anything takes time.

    Args:
        require: scores and numbers.
        tasks: whose scores the names are looked up in, if given.

    Raises:
        ValueError: not a dict of finite numbers, or a name that is not a score.
    """
    if not isinstance(require, Mapping | None):
        raise ValueError(f'`require` must be a dict like {{"macro_auc": 0.8}}, got {require!r}')
    for name, wanted in (require or {}).items():
        check_number(f"require[{name!r}]", wanted)
    if tasks is not None:
        scores = [(task.name, score) for task in tasks for score in asked_for(task.kind)]
        known = [f"{part}{score}" for task, score in scores for part in (f"{task}.", "macro_")]
        _check_known(require or (), ["macro_auc", *known])


def check_scores(scores: Mapping[str, Any] | None, require: Mapping[str, float] | None) -> None:
    """Refuse a model that scores worse than required.

    A macro score or a task's score that is not defined, for example an AUC of labels that are all
    equal, counts as too low: it proves nothing.

    Args:
        scores: as `Report.to_dict` returns them.
        require: as of `export_saved_model`.

    Raises:
        ScoreTooLow: a score is worse than required, or not defined; names all such scores.
        ValueError: there are no scores, or none of a name.
    """
    check_required(require)
    if not require:
        return
    if scores is None:
        raise ValueError("`require` needs scores: pass metrics=… or validation=…")
    measured = _by_name(scores)
    _check_known(require, measured)
    failed = []
    for name, wanted in require.items():
        found, is_error = measured[name], name.removeprefix("macro_").split(".")[-1] in ERRORS
        if found is None or not (found <= wanted if is_error else found >= wanted):
            defined = found is not None and not math.isnan(found)
            shown = f"{found:.4f}" if defined else "not defined"
            failed.append(f"{name} {'at most' if is_error else 'at least'} {wanted:g}, got {shown}")
    if failed:
        raise ScoreTooLow(
            f"`model` must reach `require`, and was not published: {'; '.join(failed)}"
        )


def _by_name(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return scores by the names of `require`: "macro_SCORE" and "TASK.SCORE".

    "macro_auc" is the mean over all tasks that have an AUC, also where the kinds of tasks have
    macro scores of their own.
    """
    found = {}
    for scores in reversed(metrics.get("macro", {}).values()):  # of equal names the first kind's
        found |= {f"macro_{score}": of["mean"] for score, of in scores.items()}
    if "macro_auc" in metrics:
        found["macro_auc"] = metrics["macro_auc"]
    for task, scores in metrics.get("tasks", {}).items():
        found |= {f"{task}.{score}": of for score, of in scores.items() if score != "kind"}
    return found


def _check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a name that is not a score, and say which scores or tasks there are.

    Args:
        names: of `require`.
        known: the names of all scores that there are.
    """
    by_task: dict[str, list[str]] = {}
    for score in known:
        by_task.setdefault(score.rpartition(".")[0], []).append(score)
    for name in names:
        if name not in known:
            near = by_task.get(name.rpartition(".")[0]) if "." in name else None
            among = f"such as {listed(near)}" if near else f"with tasks of {sorted(by_task)[1:21]}"
            raise ValueError(
                f"`require` must name scores, macro_SCORE or TASK.SCORE, {among}, got {name!r}"
            )


def _check_card(card: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Return the card's entries, the name by default that of the folder.

    Raises:
        ValueError: not a dict, a key that is not one of `CARD`, or "data" that is not a dict.
    """
    if not isinstance(card, Mapping | None) or set(card or ()) - set(CARD):
        raise ValueError(f"`card` must be a dict with keys of {list(CARD)}, got {card!r}")
    found = {"name": name, "licence": None, "data": None, **(card or {})}
    if not isinstance(found["data"], Mapping | None):
        raise ValueError(f'`card["data"]` must be a dict, got {str(found["data"])[:80]!r}')
    return found


def _given_scores(metrics: Any) -> dict[str, Any] | None:
    """Return the scores that were passed, as `Report.to_dict` returns them.

    Raises:
        ValueError: neither a `Report` nor a dict.
    """
    if isinstance(metrics, Report):
        return metrics.to_dict()
    if not isinstance(metrics, Mapping | None):
        raise ValueError(
            f"`metrics` must be what kt.evaluate returns, got {type(metrics).__name__}"
        )
    return None if metrics is None else dict(metrics)


@contextlib.contextmanager
def _disk_errors(base: Path) -> Iterator[None]:
    """Raise OSError where TensorFlow cannot write: above all when the disk is full.

    TensorFlow's messages name nodes of the graph in double braces, which are removed.

    Args:
        base: the folder of all versions, for the message.
    """
    try:
        yield
    except tf.errors.OpError as error:
        said = re.sub(r"\{\{[^}]*\}\}\s*", "", error.message).strip()
        raise OSError(
            f"`path` {base} cannot take the export, and no version was published. Got: "
            f"{said.splitlines()[0] if said else type(error).__name__}"
        ) from error
