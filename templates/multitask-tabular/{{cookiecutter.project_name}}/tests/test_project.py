"""The project's own checks, on a few of its rows: `pytest`."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from model import build

import kerasmtl as kt
from kerasmtl.tasks import by_task


@pytest.fixture(scope="module")
def project():
    return kt.Project.load(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def table(project):
    return project.manifest()


@pytest.fixture(scope="module")
def rows(table):
    return table.take(range(min(64, len(table))))


@pytest.fixture
def model(project, rows):
    return build(project, rows)


def test_every_task_can_be_learnt(table):
    assert table.class_faults() == {}


def test_missing_numbers_make_no_missing_predictions(model, rows):
    features = rows.values.copy()
    features[:, 0] = np.nan
    predicted = by_task(model.predict(features, verbose=0), rows.tasks)
    assert all(np.isfinite(values).all() for values in predicted.values())


def test_training_moves_the_network_and_not_the_normalisation(model, rows):
    fixed = [v.numpy().copy() for v in model.non_trainable_variables if "columns" in v.path]
    moved = [v.numpy().copy() for v in model.trainable_variables]
    model.compile("adam", loss=kt.losses.for_tasks(rows.tasks, rows.labels), jit_compile=False)
    data = kt.make_dataset(rows, batch_size=16)
    history = model.fit(data, epochs=1, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    after = [v.numpy() for v in model.non_trainable_variables if "columns" in v.path]
    assert fixed and all((a == b).all() for a, b in zip(fixed, after, strict=True))
    pairs = zip(moved, model.trainable_variables, strict=True)
    assert any((before != variable.numpy()).any() for before, variable in pairs)


def test_the_served_model_gives_the_same_predictions(model, rows, tmp_path):
    folder = kt.export_saved_model(model, tmp_path / "served", rows.tasks, input=rows.input)
    served = tf.saved_model.load(str(folder)).signatures["matrix"]
    outputs = served(features=tf.constant(rows.values))
    expected = by_task(model.predict(rows.values, verbose=0), rows.tasks)
    for task in rows.tasks:
        np.testing.assert_allclose(outputs[task.name], expected[task.name], rtol=1e-4, atol=1e-5)
