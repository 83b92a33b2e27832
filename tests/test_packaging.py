"""The wheel holds what a user needs, and nothing that pip or Python left behind."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode:
        pytest.skip("not a git checkout: cannot tell sources from leftovers")
    for name in filter(None, tracked.stdout.split("\0")):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    cache = source / "templates" / "multitask-image" / "__pycache__"
    cache.mkdir()
    (cache / "left.cpython-311.pyc").write_bytes(b"")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--wheel-dir", str(folder), str(source)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize(
    "name",
    [
        "kerasmtl/__init__.py",
        "kerasmtl/models/hub/handles.py",
        "kerasmtl/data/inputs/image.py",
        "kerasmtl/templates/multitask-image/cookiecutter.json",
        "kerasmtl/templates/multitask-image/hooks/post_gen_project.py",
        "kerasmtl/templates/multitask-image/{{cookiecutter.project_name}}/.gitignore",
        "kerasmtl/templates/multitask-image/{{cookiecutter.project_name}}/train.py",
        "kerasmtl/templates/multitask-image/{{cookiecutter.project_name}}/tests/test_project.py",
        "kerasmtl/templates/multitask-tabular/{{cookiecutter.project_name}}/.gitignore",
        "kerasmtl/templates/multitask-tabular/{{cookiecutter.project_name}}/train.py",
        "kerasmtl/datasets/pump_faults/labels.csv",
        "kerasmtl/datasets/street_scenes/labels.csv",
        "kerasmtl/datasets/street_scenes/images/00000.jpg",
        "kerasmtl/saved_models/tiny/1/saved_model.pb",
        "kerasmtl/saved_models/tiny/1/variables/variables.index",
    ],
)
def test_the_wheel_has(names, name):
    assert name in names


def test_the_wheel_has_no_leftovers(names):
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "demo/"))]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_targets_by_their_plain_names():
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True)
    assert "##" not in listed.stdout
    assert "bench-tox21" in [line.split()[0] for line in listed.stdout.splitlines()]
