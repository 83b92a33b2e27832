"""Templates become projects that work at once."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cookiecutter.main import cookiecutter

import kerasmtl as kt
from kerasmtl.scaffold import new_project, templates, toml_value

ROOT = Path(__file__).parents[1]
FILES = {
    ".gitignore",
    "README.md",
    "model.py",
    "project.toml",
    "pytest.ini",
    "requirements.txt",
    "tests/test_project.py",
    "train.py",
}


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def settings(folder):
    return tomllib.loads((folder / "project.toml").read_text(encoding="utf-8"))


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "data" / 'my "labels".csv'
    path.parent.mkdir()
    path.write_text(
        'image,"car, parked",note,bus\na.jpg,1,x,0\nb.jpg,?,y,1\nc.jpg,0,z,\n', encoding="utf-8"
    )
    return path


def test_a_project_has_its_files_and_no_others(tmp_path):
    assert files(new_project("multitask-image", tmp_path / "street", {})) == FILES


def test_each_label_column_becomes_a_task_and_paths_are_kept(tmp_path, labels, monkeypatch):
    monkeypatch.chdir(labels.parent)
    answers = {"labels": labels.name, "backbone": "."}
    made = settings(new_project("multitask-image", tmp_path / "p", answers))
    assert made["data"]["labels"] == str(labels)
    assert made["data"]["tasks"] == ["car, parked", "bus"]
    assert made["model"]["backbone"] == str(labels.parent)


def test_tasks_can_be_named(tmp_path, labels):
    answers = {"labels": str(labels), "_tasks": ["bus"]}
    made = new_project("multitask-image", tmp_path / "p", answers)
    assert settings(made)["data"]["tasks"] == ["bus"]
    with pytest.raises(ValueError, match=r"lacks: \['tram'\]"):
        new_project("multitask-image", tmp_path / "q", {**answers, "_tasks": ["tram"]})


def test_a_handle_that_is_no_path_stays_as_it_is(tmp_path):
    handle = "https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5"
    made = new_project("multitask-image", tmp_path / "p", {"backbone": handle})
    assert settings(made)["model"]["backbone"] == handle


def test_plain_cookiecutter_works_too(tmp_path):
    made = cookiecutter(
        str(ROOT / "templates" / "multitask-image"),
        no_input=True,
        output_dir=str(tmp_path),
        default_config=True,
    )
    assert files(Path(made)) == FILES
    project = kt.Project.load(made)
    names = [task.name for task in project.manifest().tasks]
    assert names == ["pedestrian", "car", "stop_sign", "traffic_light"]


def test_at_most_six_questions_each_with_a_default():
    for template in templates().values():
        asked = {"project_name", *template.questions}
        assert len(asked) <= 6
        assert all(question and default for question, default in template.questions.values())


def test_python_files_are_not_rendered(tmp_path):
    made = new_project("multitask-image", tmp_path / "street", {})
    source = ROOT / "templates" / "multitask-image" / "{{cookiecutter.project_name}}"
    for path in made.rglob("*.py"):
        assert path.read_bytes() == (source / path.relative_to(made)).read_bytes()


def test_model_and_training_are_short_with_fit_in_plain_sight(tmp_path):
    made = new_project("multitask-image", tmp_path / "street", {})
    text = (made / "model.py").read_text() + (made / "train.py").read_text()
    assert len(text.splitlines()) <= 100
    assert "model.fit(" in text and "model.compile(" in text


def test_the_pinned_version_is_this_one():
    context = (ROOT / "templates" / "multitask-image" / "cookiecutter.json").read_text()
    assert f'"_kerasmtl": "{".".join(kt.__version__.split(".")[:2])}"' in context


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "street").mkdir()
    (tmp_path / "street" / "mine").write_text("kept")
    with pytest.raises(FileExistsError, match="never overwritten"):
        new_project("multitask-image", tmp_path / "street", {})
    assert files(tmp_path / "street") == {"mine"}


@pytest.mark.parametrize(
    "template, name, answers, error, message",
    [
        ("nope", "p", {}, ValueError, "'nope' is unknown. Expected one of .*'multitask-image'"),
        ("multitask-image", "-p", {}, ValueError, "is no project name"),
        ("multitask-image", "my project", {}, ValueError, "is no project name"),
        ("multitask-image", "p", {"labels": "no.csv"}, FileNotFoundError, "is no file"),
    ],
)
def test_wrong_requests_are_named_and_leave_nothing(
    tmp_path, template, name, answers, error, message
):
    with pytest.raises(error, match=message):
        new_project(template, tmp_path / name, answers)
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "rename", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        new_project("multitask-image", tmp_path / "street", {})
    assert list(tmp_path.iterdir()) == []


def test_the_project_passes_its_own_tests_at_once(tmp_path):
    made = new_project("multitask-image", tmp_path / "street", {})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=made,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "4 passed" in done.stdout


def test_names_and_paths_of_any_characters_are_kept(tmp_path):
    folder = tmp_path / "x{{ 7*7 }}"
    folder.mkdir()
    names = ["😀", "a\x7fb", "{{ b }}", 'c"\\d']
    quoted = ",".join('"' + name.replace('"', '""') + '"' for name in names)
    (folder / "l.csv").write_text(f"image,{quoted}\na.jpg,1,0,1,0\nb.jpg,0,1,0,1\n", "utf-8")
    made = new_project("multitask-image", tmp_path / "p", {"labels": str(folder / "l.csv")})
    project = kt.Project.load(made)
    assert [task.name for task in project.data.tasks] == names
    assert project.labels_csv == folder / "l.csv"


def test_an_answer_that_is_no_setting_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"q/project.toml` .*TOML"):
        new_project("multitask-image", tmp_path / "q", {"epochs": "many"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value, text",
    [
        (kt.Task("a"), '"a"'),
        (kt.Task("a", missing=-1), '{name = "a", missing = [-1]}'),
        (
            kt.Task("b", "multiclass", classes=("x", "y"), weight=0.5),
            '{name = "b", kind = "multiclass", classes = ["x", "y"], weight = 0.5}',
        ),
        (["a", kt.Task("c", "regression")], '["a", {name = "c", kind = "regression"}]'),
        (True, "true"),
    ],
)
def test_values_as_toml(value, text):
    assert toml_value(value) == text
    tomllib.loads(f"value = {text}")
