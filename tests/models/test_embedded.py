"""What is bundled: the drawn street scenes and the tiny extractor."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import kerasmtl as kt
from kerasmtl.models.hub.embedded import dataset_csv, extractor_folder

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
    assert scenes.missing_files() == []
    assert size_of(dataset_csv("street_scenes").parent / "images") <= 6_000_000
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


@pytest.mark.slow
def test_the_script_draws_the_same_images_again(tmp_path, scenes):
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
