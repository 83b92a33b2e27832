"""Shared fixtures: a small folder of pictures with labels."""

import gc
import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Small models: more threads than cores only wait for each other, a fifth of the suite's time.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

# Background jobs, `nohup` and some CI runners ignore Ctrl-C, and whatever they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

LABELS = """\
image,cat,dog,bird
00.jpg,1,0,?
01.png,0,1,
02.jpg,1,,0
03.png,0,0,1
04.jpg,,1,1
05.png,1,0,0
06.jpg,0,?,?
07.png,1,1,0
08.jpg,0,,1
09.png,?,0,0
10.jpg,1,1,NA
11.png,0,0,1
"""
HEIGHT, WIDTH = 20, 24


def write_pictures(folder, names, size=(HEIGHT, WIDTH), seed=0):
    """Pictures of random smooth colours, in the formats of their names."""
    rng = np.random.default_rng(seed)
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype="uint8"))
        coarse.resize(size[::-1], Image.Resampling.BILINEAR).save(folder / name)


def write_picture_folder(folder):
    """Twelve pictures, JPEG and PNG by turns, and `labels.csv`: three tasks, with holes."""
    names = [line.split(",")[0] for line in LABELS.splitlines()[1:]]
    write_pictures(folder, names)
    (folder / "labels.csv").write_text(LABELS)
    return folder


@pytest.fixture(scope="session")
def shared_pictures(tmp_path_factory):
    """The folder of `write_picture_folder`, written once: for tests that only read."""
    return write_picture_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def picture_folder(tmp_path):
    """A folder of `write_picture_folder` of the test's own: for tests that change it."""
    return write_picture_folder(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def caches_elsewhere(tmp_path_factory):
    """Kept features and modules do not come into the user's own cache, nor out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFHUB_CACHE_DIR", str(tmp_path_factory.mktemp("kerasmtl_cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def memory_given_back(request):
    """A module's models do not stay in memory while the next one's are tested."""
    yield
    for value in vars(request.module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
    gc.collect()
    # What is left, such as the graphs that TensorFlow itself keeps, stays: to look through millions
    # of such objects again and again took four fifths of the suite's time.
    gc.freeze()
