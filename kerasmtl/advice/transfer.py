"""What a pretrained backbone is worth: cells of `transfer`, from shares of the labels.

A cell is one training: the network from random weights ("scratch"), a head on the frozen backbone
("frozen"), or what train.py would do ("plan"). From scratch has the rows, the batches and the
choice of the best epoch of the plan, as many epochs as its head and fine-tuning together, and
augmented images.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pandas as pd

from kerasmtl.advice.cells import Cell, Cells, Result
from kerasmtl.advice.rows import Rows, network, with_backbone
from kerasmtl.advice.statistics import Bootstrap, catch_up, curves, estimate, unit_of
from kerasmtl.advice.transferability import logme, mean_score, ridge_probe
from kerasmtl.losses.defaults import for_tasks
from kerasmtl.metrics.defaults import for_tasks as metrics_for_tasks
from kerasmtl.models.backbones import backbones_in, default_image_size
from kerasmtl.models.build import build_model
from kerasmtl.models.hub_layer import HubLayer
from kerasmtl.tasks import by_task
from kerasmtl.training.auto import keep_better
from kerasmtl.training.fine_tune import fine_tune
from kerasmtl.training.heads import fit_head
from kerasmtl.training.plans import Plan, Stage

if TYPE_CHECKING:
    from kerasmtl.project import TrainingSettings

SHARES = (0.05, 0.15, 0.4, 1.0)
METHODS = {"scratch": "from scratch", "frozen": "frozen backbone", "plan": "the plan"}
SMALL = (
    "The backbone cannot be trained: from scratch is a small convolutional network of about as "
    "many weights."
)

Found = Mapping[str, Mapping[float, np.ndarray]]  # by method and share, draws of the mean score


def compare_transfer(
    rows: Rows, cells: Cells, shares: Sequence[float], seeds: int, backbones: Sequence[str]
) -> dict[str, Any]:
    """Compare training from scratch with the frozen backbone and the project's plan.

    Returns:
        The arguments of `Comparison`.
    """
    part, noun, unit = backbones_in(rows.model)[0], rows.project.input.noun, unit_of(rows.tasks)
    small = isinstance(part, HubLayer) and bool(part.spec.why_not_trainable)
    methods = [name for name in METHODS if not (small and name == "plan")]
    bootstrap = Bootstrap(rows.tasks, rows.test.labels, rows.test.groups, seeds)
    keys = [(name, share, seed) for share in shares for name in methods for seed in range(seeds)]
    results = cells.results([_cell(rows, *key, small) for key in keys])
    done = dict(zip(keys, results, strict=True))
    found: dict[str, dict[float, np.ndarray]] = {name: {} for name in METHODS}
    for name, share, _ in keys[::seeds]:
        of = [done[name, share, seed] for seed in range(seeds)]
        if all(of):
            found[name][share] = _macro(bootstrap, of)
    counts = {share: sum(map(len, _chosen(rows, share, 0))) for share in shares}
    table = []
    for share in shares:
        line = {"share": share, noun: counts[share]}
        for name, label in METHODS.items():
            line[label] = round(float(found[name].get(share, [np.nan])[0]), 4)
        for name in ("frozen", "plan"):
            if share in found["scratch"] and share in found[name]:
                gain = estimate(found[name][share] - found["scratch"][share])
                decided = "" if gain.verdict != "undecided" else ", undecided"
                line[f"{METHODS[name]} gains"] = f"{gain}{decided}"
        table.append(line)
    basis = f"95 %, {seeds} seeds, {len(rows.test)} test rows"
    sentences, setting = _answer(
        found, counts, rows.project.training.plan, noun, unit, basis, small
    )
    ranked = None
    if backbones:
        ranked, better = _ranked(rows, cells, bootstrap, seeds, backbones)
        setting = better or setting
    return {
        "sentences": (*sentences, SMALL) if small else sentences,
        "table": pd.DataFrame(table),
        "details": ranked,
        "setting": setting,
        "curves": curves(
            {
                label: {counts[share]: draws for share, draws in found[name].items()}
                for name, label in METHODS.items()
            }
        ),
        "x_label": f"{noun} to learn from",
        "y_label": unit,
    }


def _answer(
    found: Found,
    counts: Mapping[float, int],
    plan: str,
    noun: str,
    unit: str,
    basis: str,
    small: bool = False,
) -> tuple[tuple[str, ...], str]:
    """Return the two sentences and the setting.

    Args:
        found: what was finished.
        counts: by share, how many rows.
        plan: of project.toml.
        noun: what rows are called.
        unit: of the score.
        basis: what intervals rest on.
        small: whether the backbone cannot be trained, and a small network is its opponent.
    """
    setting = f'plan = "{plan}"  # nothing to change'
    scratch, frozen, whole = (found[name] for name in METHODS)
    both = [
        share
        for share in scratch
        if (share in whole or share in frozen) and np.isfinite(scratch[share][0])
    ]
    if not both:
        said = "Nothing is compared yet: training from scratch needs more minutes, or more labels."
        return (said,), setting
    at = max(both)
    name = "plan" if at in whole else "frozen"
    best, gain = found[name][at], estimate(found[name][at] - scratch[at])
    other = "a small network" if small else "the same network"
    first = (
        f"With {counts[at]:,} {noun} {METHODS[name]} reaches a {unit} of {best[0]:.3f}, {other} "
        f"from random weights {scratch[at][0]:.3f}: a difference of {gain} ({basis})"
    )
    first += ", which decides nothing." if gain.verdict == "undecided" else "."
    sizes, most = sorted(scratch), f"ten times the {counts[at]:,} {noun}"
    errors = 1 - np.stack([scratch[share] for share in sizes], axis=1)
    needed = None
    if gain.verdict == "yes":
        needed = catch_up(np.array([counts[share] for share in sizes]), errors, 1 - best)
    if gain.verdict != "yes":
        second = "Nothing shows that from scratch has anything to catch up."
    elif needed is None:
        second = (
            f"How many {noun} would replace the backbone cannot be told: no falling power law "
            f"goes through four sizes or more (trained from scratch: {len(sizes)})."
        )
    elif np.isfinite(needed.value):
        high = f"{needed.high:,.0f}" if np.isfinite(needed.high) else f"beyond {most}"
        second = (
            f"From scratch would need about {needed.value:,.0f} {noun} for that "
            f"[{needed.low:,.0f}, {high}], by a power law through {len(sizes)} sizes."
        )
    else:
        low = f", or {needed.low:,.0f} at the least" if np.isfinite(needed.low) else ""
        second = f"From scratch would not get there within {most}{low}, by its power law."
    if gain.verdict == "no" and name == "plan":
        setting = 'plan = "full"  # the backbone as it is holds the network back'
    elif max(counts) in frozen and max(counts) in whole:
        more = estimate(whole[max(counts)] - frozen[max(counts)])
        if plan != "head" and more.verdict == "no":
            setting = f'plan = "head"  # more than the head changes the {unit} by {more}'
    return (first, second), setting


def _macro(bootstrap: Bootstrap, results: Sequence[Result]) -> np.ndarray:
    """Return the draws of the mean score over tasks of one training with all seeds."""
    return bootstrap.macro(bootstrap.scores([each.predictions for each in results]))


# ---------------------------------------------------------------- cells


def _cell(rows: Rows, method: str, share: float, seed: int, small: bool) -> Cell:
    """Return the cell of a training; `small` if the backbone cannot be trained."""
    settings: dict[str, Any] = {"method": method, "share": share, "seed": seed}
    if method == "frozen":
        return Cell(settings, 1e-3 * share, lambda: _frozen(rows, share, seed))
    of, code = rows.project, rows.project.folder / "model.py"
    text = code.read_text(encoding="utf-8") if code.is_file() else ""
    decides = repr((of.model.model_dump(), of.training.model_dump(), text))
    settings["project_sha256"] = hashlib.sha256(decides.encode()).hexdigest()
    return Cell(settings, share, lambda: _trained(rows, method, share, seed, small))


def _chosen(rows: Rows, share: float, seed: int) -> list[np.ndarray]:
    """Return the numbers of the train and the validation rows of a share, in order.

    A smaller share of the same seed is part of a larger one.
    """
    rng, found = np.random.default_rng(seed), []
    for part in (rows.train, rows.val):
        found.append(np.sort(rng.permutation(len(part))[: max(round(share * len(part)), 1)]))
    return found


def _frozen(rows: Rows, share: float, seed: int) -> tuple[Mapping, Mapping]:
    """Fit a head on frozen features; return predictions of the test rows, and scores."""
    train, val = _chosen(rows, share, seed)
    at = np.concatenate([train, val + len(rows.train)])
    x, y = rows.features[at], rows.labels[at]
    if np.isnan(y).all():
        return {}, {}
    groups = None if rows.groups is None else rows.groups[at]
    head = fit_head(x, y, rows.tasks, groups, seed=seed, views=rows.views)
    return by_task(head.predict(rows.test_features), rows.tasks), head.scores()


def _trained(
    rows: Rows, method: str, share: float, seed: int, small: bool
) -> tuple[Mapping, Mapping]:
    """Train the network by the plan, or from random weights for as many epochs."""
    project, tasks = rows.project, rows.tasks
    changes: dict[str, Any] = {"seed": seed}
    if method == "scratch" and project.input.kind == "image":
        # Without it, random weights learn the images by heart at once: on 300 street scenes 0.54
        # instead of 0.67, which would not be a fair opponent.
        changes["augment"] = True
    project = project.changed(changes)
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    train, val = (
        part.take(of)
        for part, of in zip((rows.train, rows.val), _chosen(rows, share, seed), strict=True)
    )
    if np.isnan(train.labels).all() or np.isnan(val.labels).all():
        return {}, {}
    model = network(project, train)
    data = [project.dataset(train, model, training=True), project.dataset(val, model)]
    loss = for_tasks(tasks, train.labels)
    with contextlib.redirect_stdout(io.StringIO()):
        if method == "plan":  # as train.py
            head = project.fit_head(model, train, val)
            model = head.attach(model) if head else model
            plan, before = project.plan(model, *data, head), model.get_weights()
        else:
            plan, head = scratch_plan(project.training), None
            if small:
                model = build_model(small_network(model), tasks, labels=train.labels)
            else:
                forget([weight for part in backbones_in(model) for weight in part.weights], seed)
        model.compile("adam", loss, metrics=metrics_for_tasks(tasks))
        try:
            if len(plan):
                fine_tune(model, *data, plan=plan, verbose=0)
                if head:
                    keep_better(model, before, data[1], tasks, False, val.groups)
        except FloatingPointError:  # the loss is no longer finite: nothing is known of this seed
            return {}, {}
    # By calls: `predict` would trace a graph for each of many models, and warn of it.
    batches = [model(x, training=False) for x, _ in project.dataset(rows.test, model)]
    outputs = keras.tree.map_structure(lambda *each: np.concatenate(each), *batches)
    return by_task(outputs, tasks), {}


def scratch_plan(of: TrainingSettings) -> Plan:
    """Return one stage of everything, as long as a plan's head and fine-tuning together.

    Nothing ends it early: from random weights, the first epochs often bring nothing.

    Args:
        of: [training] of project.toml.
    """
    epochs = of.epochs + of.fine_tune_epochs
    options = {"normalization": True, "warmup": min(1.0, epochs / 2), "schedule": "cosine"}
    return Plan("all", (Stage("all", epochs, of.learning_rate, **options),))


def forget(weights: Sequence[keras.Variable], seed: int) -> None:
    """Give weights random values, as if nothing was learned.

    Kernels are drawn with variance 2 / fan-in (https://arxiv.org/abs/1502.01852); scales and
    variances become 1, and all else 0, but for whole numbers such as counters.

    Args:
        weights: of a backbone.
        seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    for weight in weights:
        shape = tuple(weight.shape)
        if "float" in str(weight.dtype) and len(shape) > 1:
            # A depthwise kernel (height, width, channels, 1) takes one channel at a time.
            depthwise = len(shape) == 4 and shape[-1] == 1 and shape[2] > 1
            fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
            weight.assign(rng.normal(0, np.sqrt(2 / fan_in), shape))
        elif "float" in str(weight.dtype):
            ones = any(word in weight.path.lower() for word in ("gamma", "variance", "scale"))
            weight.assign(np.full(shape, float(ones)))


def small_network(model: keras.Model) -> keras.Model:
    """Return a small convolutional network of about as many weights as a model's backbone.

    Four convolutions of 3 x 3 pixels and stride 2, each of twice the channels of the one before,
    with batch normalization.
    """
    part = backbones_in(model)[0]
    weights = sum(int(np.prod(each.shape)) for each in part.weights)
    first = int(np.clip(np.sqrt(weights / 378), 8, 96))  # 9 (2 + 8 + 32) first^2
    image = x = keras.Input((*(default_image_size(part) or model.input_shape[1:3]), 3))
    for factor in (1, 2, 4, 8):
        x = keras.layers.Conv2D(first * factor, 3, 2, "same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(image, x, name="small_network")


# ---------------------------------------------------------------- backbones


def _ranked(
    rows: Rows, cells: Cells, bootstrap: Bootstrap, seeds: int, backbones: Sequence[str]
) -> tuple[pd.DataFrame, str | None]:
    """Return the table of backbones, the best first, and the setting if one beats the project's."""
    own, trained = rows.project.model.backbone, f"head, {unit_of(rows.tasks)}"
    drawn, table = {}, []
    for handle in dict.fromkeys([own, *backbones]):
        of = rows if handle == own else with_backbone(rows, handle)
        line = {
            "backbone": handle,
            "LogME": round(logme(of.features, rows.labels, rows.tasks), 4),
            "ridge probe": mean_score(
                ridge_probe(of.features, rows.labels, rows.tasks, rows.groups)
            ),
        }
        wanted = []
        for seed in range(seeds):
            settings = {"backbone": handle, "features_sha256": of.sha256, "seed": seed}
            wanted.append(Cell(settings, 1e-3, lambda of=of, seed=seed: _frozen(of, 1.0, seed)))
        results = cells.results(wanted)
        if all(results):
            drawn[handle] = _macro(bootstrap, results)
            line[trained] = round(float(drawn[handle][0]), 4)
            if own in drawn and handle != own:
                line[f"- {own}"] = str(estimate(drawn[handle] - drawn[own]))
        table.append(line)
    by = trained if drawn else "ridge probe"
    best = max(drawn, key=lambda handle: np.nan_to_num(drawn[handle][0], nan=-1.0), default=own)
    better = own in drawn and estimate(drawn[best] - drawn[own]).verdict == "yes"
    ranked = pd.DataFrame(table).sort_values(by, ascending=False, na_position="last")
    return ranked, f'backbone = "{best}"' if better else None
