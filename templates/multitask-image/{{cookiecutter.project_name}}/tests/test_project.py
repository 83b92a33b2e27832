"""The project's own checks, on a few of its images: `pytest`."""

from pathlib import Path

import keras
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
def manifest(project):
    return project.manifest()


@pytest.fixture(scope="module")
def model(project, manifest):
    keras.utils.set_random_seed(0)
    return build(project, manifest)


@pytest.fixture(scope="module")
def images(model, manifest):
    return kt.make_dataset(manifest.take(range(min(8, len(manifest)))), model.input_shape[1:3], 4)


def test_every_task_can_be_learnt(manifest):
    assert manifest.class_faults() == {}


def test_every_image_is_there(manifest):
    assert manifest.missing_files() == []


def test_training_moves_the_head_and_not_the_frozen_backbone(model, manifest, images):
    frozen = [v for layer in kt.backbones.backbone_layers(model) for v in layer.variables]
    frozen_before = [v.numpy().copy() for v in frozen]
    head_before = [v.numpy().copy() for v in model.trainable_variables]
    model.compile("adam", loss=kt.losses.for_tasks(manifest.tasks, manifest.labels))
    history = model.fit(images, epochs=1, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for before, variable in zip(frozen_before, frozen, strict=True):
        np.testing.assert_array_equal(before, variable.numpy())
    pairs = zip(head_before, model.trainable_variables, strict=True)
    assert any((before != variable.numpy()).any() for before, variable in pairs)


def test_the_served_model_predicts_the_same(model, manifest, images, tmp_path):
    folder = kt.export_saved_model(model, tmp_path / "served", manifest.tasks)
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    data = manifest.input.load(manifest.values[:8])
    outputs = served(image_bytes=tf.constant(data))
    expected = by_task(model.predict(images, verbose=0), manifest.tasks)
    for task in manifest.tasks:
        np.testing.assert_allclose(outputs[task.name], expected[task.name], rtol=1e-4, atol=1e-5)
