"""What all tests share: settings, the order of the files, and a small folder of images."""

import gc
import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Small models: more threads than cores only wait for each other, a fifth of the suite's time.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

# Programs that tests start find the helpers, and the test files whose functions they use.
_HERE = os.path.dirname(__file__)
_ROOMS = ("helpers", "losses", "metrics", "models", "training", "evaluation")
os.environ["PYTHONPATH"] = os.pathsep.join(os.path.join(_HERE, room) for room in _ROOMS)

import pytest  # noqa: E402
from image_folder import write_image_folder  # noqa: E402

# Background jobs, `nohup` and some CI runners ignore Ctrl-C, and whatever they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take minutes start first, so that at the end no worker waits long for another.
FIRST = (
    "test_extras.py",
    "test_plain_install.py",
    "test_photographs.py",
    "test_resume.py",
    "test_fine_tune.py",
    "test_hub_layer.py",
    "test_replicas.py",
    "test_docs.py",
    "test_dataset_replicas.py",
    "test_end_to_end.py",
    "test_tabular_template.py",
)


def pytest_collection_modifyitems(items):
    """Sort the longest files to the front; the order within a file stays."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else 99)


@pytest.fixture(scope="session")
def shared_images(tmp_path_factory):
    """The folder of `write_image_folder`, written once: for tests that only read."""
    return write_image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def image_folder(tmp_path):
    """A folder of `write_image_folder` of the test's own: for tests that change it."""
    return write_image_folder(tmp_path)


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
