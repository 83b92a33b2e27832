"""Features of the frozen part, computed once and kept; training then runs on them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasmtl.backbones import backbone_names
from kerasmtl.feature_blocks import BLOCK, Array, Plan
from kerasmtl.feature_store import (
    features_root,
    is_intact,
    make_entry,
    open_entry,
)
from kerasmtl.progress_bars import progress_bar
from kerasmtl.sources import Source, source_of
from kerasmtl.training.feature_computing import TRIED, Step, batches_from, in_blocks, inputs_of
from kerasmtl.training.feature_dataset import (
    MEMORY_LIMIT,
    FeatureSource,
    feature_dataset,
    feature_source,
)
from kerasmtl.training.feature_key import feature_key
from kerasmtl.training.frozen_part import FrozenPart

Rows = Mapping[str, np.ndarray]


def cache_features(
    model: keras.Model,
    data: tf.data.Dataset,
    folder: str | os.PathLike[str] | None = None,
    views: int = 1,
    progress: bool = True,
) -> tf.data.Dataset:
    """Batches of features and labels, for `fit` of the head of `split_model`.

    The features of the frozen part are computed once and kept on disk, under a hash of the
    inputs' content, of what prepares them, and of the frozen part's structure and weights, with
    what its layers and their functions hold: any run that needs the same finds them, and a change
    of one pixel computes them anew. The first rows of what is found are computed again; if they
    differ, all are. An interrupted run goes on after the last finished block of 256 rows. Up to
    1 GiB is read into memory; more is read by batch.

    Shapes: (features, labels); features (batch, …) as `split_model(model)[0]` gives them, labels
    as in `data`, NaN = missing. Each epoch has the rows in the order in which `data` has them, and
    counts as one of its epochs.

    Args:
        model: with a frozen part; see `split_model`.
        data: what `make_dataset` or `make_table_dataset` returned.
        folder: where features are kept; by default "features" in the cache of modules.
        views: with augmentation, how many augmented views of each row are kept; epoch e trains on
            view e modulo `views`. Without augmentation one is kept.
        progress: show a progress bar while features are computed.

    Raises:
        ValueError: the model has no frozen part, or what it gives differs from call to call or in
            training, or depends on something that cannot be hashed; the data set is another one;
            or its inputs are augmented and `views` is 1.
        OSError: the folder cannot be written to, or is full; says what is needed.
    """
    _source(data, views)  # what is wrong with it is said first
    return feature_dataset(planned_features(FrozenPart(model), data, folder, views)(progress))


def planned_features(
    part: FrozenPart,
    data: tf.data.Dataset,
    folder: str | os.PathLike[str] | None = None,
    views: int = 1,
) -> Callable[[bool], FeatureSource]:
    """`cache_features` in two steps: this raises what it raises for the data, at once.

    What is returned computes the features, of which it returns the source; it takes `progress`.
    """
    source = _source(data, views)
    count = views if source.random else 1
    key = feature_key(part.identity, source, count)
    root = features_root(folder)
    tried = inputs_of(source, 0, TRIED)
    step = part.step(tried.element_spec)

    def computed(progress: bool) -> FeatureSource:
        batches = iter(tried)
        first = next(batches)
        begun = None if source.random else chain([first], batches)
        arrays, own = _whole(root, key), False
        # What is whole may be another model's, and so may the blocks of what was interrupted.
        for _ in range(3):
            if own or (arrays is not None and step.agrees(first, arrays)):
                break
            if arrays is not None:
                _remove(root / key, progress)
            step.check(first)
            arrays, own = _computed(step, source, count, root, key, progress, begun)
            begun = None
        return feature_source(part.features, source, count, key, arrays)

    return computed


def _whole(root: Path, key: str) -> Rows | None:
    """The entry, if it is there; one that is read into memory anyway is checked byte by byte."""
    arrays = open_entry(root, key)
    if arrays is None or sum(array.nbytes for array in arrays.values()) > MEMORY_LIMIT:
        return arrays
    if is_intact(root, key):
        return arrays
    shutil.rmtree(root / key, ignore_errors=True)
    return None


def _source(data: Any, views: int) -> Source:
    source = source_of(data)
    if source is None:
        raise ValueError(
            "`data` does not say what it was made from. Expected what kerasmtl.make_dataset or "
            "make_table_dataset returned, with nothing like .map, .take or .shuffle after it. "
            f"Received: {data!r}"
        )
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise ValueError(f"`views` is no count. Expected 1 or more. Received: {views!r}")
    if source.random and views == 1:
        raise ValueError(
            f"`data` gives other inputs in each epoch ({source.random}), so that features cannot "
            "be computed once. Expected no augmentation, or views=K for K augmented views of "
            "each row, kept."
        )
    return source


def _remove(entry: Path, say: bool) -> None:
    if say:
        print(f"{entry} has features of another model: all are computed anew.")
    shutil.rmtree(entry, ignore_errors=True)


def _computed(
    step: Step,
    source: Source,
    views: int,
    root: Path,
    key: str,
    progress: bool,
    begun: Iterator[Any] | None,
) -> tuple[Rows, bool]:
    """The entry, computed and kept; and whether all of it was computed here and now."""
    arrays = tuple(Array(name, tuple(row.shape), row.dtype.name) for name, row in step.rows.items())
    about = {
        "backbone": ", ".join(backbone_names(step.features))
        or step.features.name.removesuffix("_features"),
        "rows": source.count,
        "views": views,
        "first": source.where(0),
    }
    plan = Plan(key, views * source.count, arrays, about)

    starts = []

    def compute(first: int) -> Iterator[Rows]:
        starts.append(first)
        sizes = [stop - start for start, stop in plan.blocks[first // BLOCK :]]
        if progress:
            print(f"Computing the features of the frozen backbone, once: {plan.rows} rows.")
        with progress_bar("features", plan.rows, progress) as advance:
            advance(first)
            for values in in_blocks(batches_from(step, source, views, first, begun), sizes):
                yield values
                advance(len(next(iter(values.values()))))

    return make_entry(root, plan, compute), starts == [0]
