"""Environments as strangers have them: the wheel in a fresh one, without extras or with one."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from modules import shared
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
# Of the environments, not of the one that runs these tests: make test-wheel, make test-lowest.
PYTHON = os.environ.get("KERASMTL_PYTHON") or f"{sys.version_info[0]}.{sys.version_info[1]}"
RESOLUTION = os.environ.get("KERASMTL_RESOLUTION") or "highest"
THREADS = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}  # as in tests/conftest.py


@dataclass(frozen=True)
class Environment:
    """A virtual environment with kerasmtl's wheel, and a place to work in."""

    folder: Path
    work: Path

    def run(self, *words, code=0, cwd=None, quiet=True, **variables):
        """Run a program of the environment; with `quiet`, nothing may be on its stderr."""
        program, *rest = map(str, words)
        bin_ = self.folder / "bin"
        # Nothing of the checkout, and none of the settings of whoever runs the tests.
        left = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PYTHON", "TF_", "KERAS", "VIRTUAL_ENV", "TFHUB"))
        }
        path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
        cache = str(self.work / "cache")
        done = subprocess.run(
            [str(bin_ / program), *rest],
            cwd=cwd or self.work,
            capture_output=True,
            text=True,
            timeout=600,
            env={**left, **THREADS, "PATH": path, "TFHUB_CACHE_DIR": cache, **variables},
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
        if code == 0 and quiet:
            assert done.stderr == ""
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    def python(self, code, **options):
        """Run lines of Python."""
        return self.run("python", "-c", code, **options)


def uv(*words):
    done = subprocess.run(
        [sys.executable, "-m", "uv", *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]


def required(wheel, extra):
    """What the wheel requires: named directly, so that "lowest-direct" takes the lowest of it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    found = map(Requirement, lines)
    fitting = [r for r in found if not r.marker or r.marker.evaluate({"extra": extra})]
    return [f"{requirement.name}{requirement.specifier}" for requirement in fitting]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from what git knows of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    uv("build", "--quiet", "--wheel", "--out-dir", folder / "dist", folder / "source")
    (made,) = (folder / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory):
    """From an extra, or "", to an environment with the wheel and it; each is made once.

    Those with an extra begin as copies of the one without, and not from nothing, because of the
    minutes that Python takes to compile TensorFlow anew.
    """
    made = {}

    def make(extra=""):
        if extra not in made:
            base = tmp_path_factory.mktemp(f"with-{extra or 'none'}")
            (base / "work").mkdir()
            if extra:
                plain = make().folder
                shutil.copytree(plain, base / "venv", symlinks=True, copy_function=os.link)
            else:
                uv("venv", "--quiet", "--relocatable", "--python", PYTHON, base / "venv")
            uv(
                *("pip", "install", "--quiet", "--python", base / "venv" / "bin" / "python"),
                *("--resolution", RESOLUTION),
                f"kerasmtl[{extra}] @ {wheel.as_uri()}" if extra else wheel,
                *(required(wheel, extra) if RESOLUTION != "highest" else ()),
            )
            made[extra] = Environment(base / "venv", base / "work")
        return made[extra]

    return make


@pytest.fixture(scope="session")
def plain(environment):
    return environment()


@pytest.fixture(scope="session")
def photos(plain):
    """A project on real photographs with a real backbone, trained in the plain environment."""
    labels = shared("data", "street_photos", "labels.csv")
    backbone = shared("models", "mobilenet_v1_025_224")
    plain.run(
        *("kerasmtl", "new", "multitask-image", "photos"),
        *("--labels", labels, "--backbone", backbone),
    )
    # Not quiet: the file's own split has the same image in two parts, which is warned of.
    said = plain.run("python", "train.py", cwd=plain.work / "photos", quiet=False)
    assert "SavedModel:" in said
    return plain.work / "photos"
