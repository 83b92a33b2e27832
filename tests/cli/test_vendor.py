"""Vendoring: a module copied, listed and pinned; and its command."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib

import pytest
from click.testing import CliRunner
from servers import isolated, packed, serving

import kerasmtl as kt
from kerasmtl.cli import main
from kerasmtl.cli import vendor as vendoring
from kerasmtl.cli.vendor import vendor
from kerasmtl.models.hub.cache import content_sha256
from kerasmtl.models.hub.handles import resolve_handle

FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"12345"}
PROJECT = """\
# The decisions of this project.
name = "street"

[data]
labels = "street_scenes"  # embedded

[model]
backbone = "tiny"  # change me
hidden = [512]

# The rest.
[training]
epochs = 3
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return isolated(tmp_path, monkeypatch)


@pytest.fixture
def module(tmp_path):
    for name, data in {**FILES, ".hidden": b"left out"}.items():
        (tmp_path / "module" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "module" / name).write_bytes(data)
    return tmp_path / "module"


@pytest.fixture
def project(tmp_path):
    return write_project(tmp_path / "project")


def write_project(folder, text=PROJECT):
    folder.mkdir(exist_ok=True)
    (folder / "project.toml").write_bytes(text.encode())
    return folder


def run(*words):
    return CliRunner().invoke(main, ["vendor", *(str(word) for word in words)])


def test_a_module_is_copied_and_listed(module, tmp_path):
    done = vendor(module, tmp_path / "own" / "copy")
    assert done.folder == tmp_path / "own" / "copy" and done.project is None
    assert (done.files, done.size) == (2, 10)
    copied = {p.relative_to(done.folder).as_posix() for p in done.folder.rglob("*") if p.is_file()}
    assert copied == {*FILES, "SHA256SUMS"}
    assert done.sha256 == content_sha256(done.folder) == content_sha256(module)
    if shutil.which("sha256sum"):
        check = ["sha256sum", "-c", "--quiet", "SHA256SUMS"]
        subprocess.run(check, cwd=done.folder, check=True)
    assert [p.name for p in (tmp_path / "own").iterdir()] == ["copy"]


def test_a_tampered_copy_names_the_file(module, tmp_path):
    done = vendor(module, tmp_path / "copy")
    (done.folder / "saved_model.pb").write_bytes(b"tampered")
    with pytest.raises(ValueError, match="Files that differ: saved_model.pb"):
        resolve_handle(done.folder, done.sha256)


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_never_overwritten(module, project, tmp_path, kind):
    target = project / "copy"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="`directory` must be a new folder"):
        vendor(module, target, project=project)
    assert (project / "project.toml").read_text() == PROJECT
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_made_meanwhile_is_not_overwritten(module, tmp_path, monkeypatch):
    def late(source, made):
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / "mine").write_text("mine")
        copy(source, made)

    copy = vendoring.copy_module
    monkeypatch.setattr(vendoring, "copy_module", late)
    with pytest.raises(FileExistsError, match="is not overwritten"):
        vendor(module, tmp_path / "copy")
    assert [p.name for p in (tmp_path / "copy").iterdir()] == ["mine"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "module"]


def test_an_interrupted_copy_leaves_nothing(module, project, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(vendoring, "listing", interrupt)
    with pytest.raises(KeyboardInterrupt):
        vendor(module, project / "modules" / "copy", project=project)
    assert list((project / "modules").iterdir()) == []
    assert (project / "project.toml").read_text() == PROJECT


def test_the_project_above_is_pinned_and_its_text_kept(module, project, monkeypatch):
    monkeypatch.chdir(project)
    os.chmod("project.toml", 0o640)
    done = vendor(module, "modules/copy")
    assert done.project == project / "project.toml"
    assert (project / "project.toml").read_text() == PROJECT.replace(
        '"tiny"', '"modules/copy"'
    ).replace("hidden = [512]\n", f'hidden = [512]\nbackbone_sha256 = "{done.sha256}"\n')
    assert stat.S_IMODE((project / "project.toml").stat().st_mode) == 0o640
    loaded = kt.Project.load(project)
    assert loaded.backbone == str(done.folder)
    assert loaded.model.backbone_sha256 == done.sha256
    assert sorted(p.name for p in project.iterdir()) == ["modules", "project.toml"]


def test_a_pin_is_renewed(module, project, monkeypatch):
    monkeypatch.chdir(project)
    vendor("tiny", "first")
    done = vendor(module, "second")
    settings = tomllib.loads((project / "project.toml").read_text())["model"]
    assert settings == {"backbone": "second", "backbone_sha256": done.sha256, "hidden": [512]}


@pytest.mark.parametrize(
    "text",
    [
        'name = "a"\n',
        'name = "a"\n[model]\n# nothing yet\n\n[training]\nepochs = 1\n',
        'name = "a"\nmodel = {hidden = [1]}\n',
        'name = "a"\nmodel.hidden = [1]\n\n[training]\nepochs = 1\n',
        'name = "a"\r\n[model]\r\nhidden = [1]\r\n\r\n# next\r\n[training]\r\nepochs = 1',
        'name = "a"\n[model]\nbackbone = "b"',
    ],
)
def test_any_layout_of_a_project_is_pinned(module, tmp_path, text):
    project = write_project(tmp_path / "p", text)
    before = tomllib.loads(text)
    done = vendor(module, project / "copy", project=project)
    written = (project / "project.toml").read_bytes()
    after = tomllib.loads(written.decode())
    assert after.pop("model") == {
        **before.pop("model", {}),
        "backbone": "copy",
        "backbone_sha256": done.sha256,
    }
    assert after == before


@pytest.mark.parametrize("before", [None, "[-1, 1]"])
def test_a_module_of_a_publisher_brings_its_pixel_range(module, tmp_path, monkeypatch, before):
    handle = "https://tfhub.dev/a/b/1"
    monkeypatch.setattr(vendoring, "resolve_handle", lambda *args: module)
    given = f'backbone = "{handle}"\ninput_range = {before}' if before else 'backbone = "tiny"'
    project = write_project(tmp_path / "p", PROJECT.replace('backbone = "tiny"', given))
    vendor(handle, project / "first", project=project)
    assert kt.Project.load(project).model.input_range == ((-1, 1) if before else (0, 1))
    vendor("hf:owner/repo", project / "second", project=project)  # of unknown pixels
    assert kt.Project.load(project).model.input_range is None


def test_a_folder_called_like_the_embedded_module_is_meant_as_a_folder(module, project):
    done = vendor(module, project / "tiny", project=project)
    assert kt.Project.load(project).backbone == str(project / "tiny") == str(done.folder)


def test_the_project_is_looked_for_up_to_the_working_folder(module, tmp_path, monkeypatch):
    write_project(tmp_path)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert vendor(module, "a").project is None
    assert vendor(module, "../b").project is None
    assert (tmp_path / "project.toml").read_text() == PROJECT
    assert vendor(module, "../c", project="..").project == tmp_path / "project.toml"
    assert kt.Project.load(tmp_path).model.backbone == "c"


@pytest.mark.parametrize(
    "text, named", [("name = ", "must be TOML"), ('model = "tiny"\n', "must be a section")]
)
def test_a_broken_project_is_refused_before_anything_is_copied(module, tmp_path, text, named):
    project = write_project(tmp_path / "p", text)
    with pytest.raises(ValueError, match=named):
        vendor(module, project / "copy", project=project)
    assert (project / "project.toml").read_text() == text and not (project / "copy").exists()


def test_a_folder_without_project_is_refused(module, tmp_path):
    with pytest.raises(FileNotFoundError, match="`project` must be a folder with a project.toml"):
        vendor(module, tmp_path / "copy", project=tmp_path)
    assert not (tmp_path / "copy").exists()


def test_keras_applications_cannot_be_vendored(tmp_path):
    with pytest.raises(ValueError, match="`handle`.*'MobileNetV2', a model of keras.applications"):
        vendor("MobileNetV2", tmp_path / "copy")
    with pytest.raises(ValueError, match="`handle`.*'no_such_name'"):
        vendor("no_such_name", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_to_write_without_a_project(module):
    result = run(module, "own/copy")
    digest = content_sha256(module)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"own{os.sep}copy: 2 files, 0.0 MB",
        f"sha256 {digest}",
        f'Use it: HubLayer("own{os.sep}copy", sha256="{digest}")',
    ]


def test_the_command_pins_a_project(module, project):
    result = run(module, project / "modules" / "copy", "--project", project)
    assert result.exit_code == 0
    assert "[model] backbone and backbone_sha256 are set" in result.output
    assert kt.Project.load(project).model.backbone == "modules/copy"


def test_the_command_prints_json(module, tmp_path):
    printed = json.loads(run(module, "copy", "--json").output)
    assert printed == {
        "folder": str(tmp_path / "copy"),
        "sha256": content_sha256(module),
        "files": 2,
        "size": 10,
        "project": None,
    }


def test_the_command_ends_with_a_plain_error(module):
    result = run(module, "copy", "--sha256", "0" * 64)
    assert result.exit_code == 1 and "must be 0000" in result.output
    assert "Traceback" not in result.output and not os.path.exists("copy")


def test_the_command_does_not_import_tensorflow(module):
    code = (
        "import sys\nfrom kerasmtl.cli import main\n"
        f"try: main(['vendor', {str(module)!r}, 'copy'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert os.path.isdir("copy")


def test_progress_is_shown_on_a_terminal_alone(module, capfd, monkeypatch):
    with serving({f"/{name}": (200, {}, packed(module)) for name in "ab"}) as server:
        vendor(f"{server.url}/a", "a")
        assert capfd.readouterr().err == ""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        vendor(f"{server.url}/b", "b")
    assert server.url in capfd.readouterr().err
