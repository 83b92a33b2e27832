"""What is bundled: the drawn street scenes and the tiny extractor."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import kerasmtl as kt
from kerasmtl.models.hub.embedded import dataset_csv, extractor_folder
from kerasmtl.saved_models.tiny.network import tiny_network

DRAW = dataset_csv("street_scenes").parent / "draw.py"
TASKS = ["pedestrian", "car", "stop_sign", "traffic_light"]


@pytest.fixture(scope="module")
def scenes():
    return kt.Manifest.from_csv(dataset_csv("street_scenes"))


@pytest.fixture(scope="module")
def extractor():
    return tf.saved_model.load(str(extractor_folder("tiny")))


def draw(out, *options):
    return subprocess.run(
        [sys.executable, DRAW, out, *map(str, options)], capture_output=True, text=True
    )


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_third_of_the_labels_is_missing_and_one_task_is_rare(scenes):
    coverage = scenes.coverage()
    assert list(coverage.index) == TASKS and len(scenes) == 1200
    assert 0.30 <= np.isnan(scenes.labels).mean() <= 0.37
    assert coverage.share["traffic_light"] == pytest.approx(0.15, abs=0.005)
    assert coverage.share.nunique() == 4
    for part in scenes.split():
        assert part.class_faults() == {}


def test_the_full_labels_agree_where_labels_are_known(scenes):
    full = kt.Manifest.from_csv(dataset_csv("street_scenes").with_name("labels_full.csv"))
    assert full.names.tolist() == scenes.names.tolist()
    known = ~np.isnan(scenes.labels)
    assert not np.isnan(full.labels).any()
    np.testing.assert_array_equal(full.labels[known], scenes.labels[known])


def test_the_images_are_small_jpegs_and_fit_in_six_megabytes(scenes):
    assert size_of(dataset_csv("street_scenes").parent / "images") <= 6_000_000
    for path in scenes.input.paths(scenes.values)[::100]:
        with Image.open(path) as picture:
            assert (picture.format, picture.size, picture.mode) == ("JPEG", (128, 128), "RGB")
    assert scenes.missing_files() == []


@pytest.mark.slow
def test_colour_alone_does_not_solve_it(scenes):
    full = kt.Manifest.from_csv(dataset_csv("street_scenes").with_name("labels_full.csv"))
    pixels = [
        np.asarray(Image.open(path), "float32") / 255 for path in full.input.paths(full.values)
    ]
    colours = np.array([[*p.mean((0, 1)), *p.std((0, 1))] for p in pixels])
    learn = full.splits != "test"
    aucs = [
        roc_auc_score(
            y[~learn],
            LogisticRegression(C=100, max_iter=1000)
            .fit(colours[learn], y[learn])
            .decision_function(colours[~learn]),
        )
        for y in full.labels.T
    ]
    assert np.mean(aucs) < 0.75


@pytest.mark.slow
def test_the_script_draws_the_same_pictures_again(tmp_path, scenes):
    done = draw(tmp_path / "again", "--count", 12, "--workers", 2)
    assert done.returncode == 0, done.stderr
    drawn = sorted((tmp_path / "again" / "images").iterdir())
    assert len(drawn) == 12
    a = np.asarray(Image.open(drawn[7]), int)
    b = np.asarray(Image.open(scenes.input.paths(scenes.values)[7]), int)
    assert abs(a - b).mean() < 1  # other versions of Pillow may round differently
    assert kt.Manifest.from_csv(tmp_path / "again" / "labels.csv", tasks=TASKS).splits is not None


def test_the_extractor_follows_the_reusable_interface(extractor):
    assert size_of(extractor_folder("tiny")) <= 3_000_000
    names = {variable.name for variable in extractor.variables}
    trained = {variable.name for variable in extractor.trainable_variables}
    assert trained < names
    assert names - trained == {name for name in names if "moving" in name}
    assert all(float(loss()) > 0 for loss in extractor.regularization_losses)


def test_the_extractor_in_training_moves_its_statistics(extractor):
    module = tf.saved_model.load(str(extractor_folder("tiny")))
    moving = [variable for variable in module.variables if "moving" in variable.name]
    before = [variable.numpy() for variable in moving]
    images = np.random.default_rng(0).random((4, 64, 64, 3), dtype="float32")
    module(images, training=False)
    assert all((a == v.numpy()).all() for a, v in zip(before, moving, strict=True))
    module(images, training=True)
    assert all((a != v.numpy()).any() for a, v in zip(before, moving, strict=True))


def test_the_extractor_is_the_plain_network_with_its_weights(extractor):
    network = tiny_network()
    stored = {v.name.removesuffix(":0"): v for v in extractor.variables}
    for layer in network.layers:
        block, _, part = layer.name.rpartition("_")
        for weight in layer.weights:
            weight.assign(stored.pop(f"{block}/{part}/{weight.name}"))
    assert stored == {}
    images = np.random.default_rng(0).random((2, 96, 96, 3), dtype="float32")
    np.testing.assert_allclose(extractor(images), network(images, training=False), atol=1e-5)
