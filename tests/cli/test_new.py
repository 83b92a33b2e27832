"""`kerasmtl new` and `templates`: projects that work at once, or nothing."""

import json
import os
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from cookiecutter.exceptions import FailedHookException
from cookiecutter.main import cookiecutter
from image_folder import write_images

import kerasmtl as kt
from kerasmtl.cli import main
from kerasmtl.cli.new import new_project, toml_value
from kerasmtl.models.hub.handles import APPLICATIONS, WEIGHTS, trained_backbones

ROOT = Path(__file__).parents[2]
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


def run(*arguments, **options):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


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
    write_images(path.parent, ["a.jpg", "b.jpg", "c.jpg"])
    return path


def test_a_project_has_its_files_and_no_others(tmp_path):
    assert files(new_project("multitask-image", tmp_path / "street", {})) == FILES


def test_each_label_column_becomes_a_task_and_paths_are_kept(tmp_path, labels, monkeypatch):
    monkeypatch.chdir(labels.parent)
    (labels.parent / "module").mkdir()
    (labels.parent / "module" / "saved_model.pb").touch()
    answers = {"labels": labels.name, "backbone": "module"}
    folder = new_project("multitask-image", tmp_path / "p", answers)
    made = settings(folder)
    assert made["data"]["labels"] == f"../data/{labels.name}"  # so that they can move together
    assert made["data"]["tasks"] == ["car, parked", "bus"]
    assert made["model"]["backbone"] == "../data/module"
    project = kt.Project.load(folder)
    assert project.labels_csv.resolve() == labels
    elsewhere = settings(new_project("multitask-image", tmp_path / "deep" / "p", answers))
    assert elsewhere["data"]["labels"] == str(labels)
    assert elsewhere["model"]["backbone"] == str(labels.parent / "module")


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


def test_new_asks_each_question_with_its_default(tmp_path):
    result = run("new", "multitask-image", tmp_path / "p", input="\n" * 5)
    assert result.exit_code == 0, result.output
    assert result.output.count("[") == 5  # questions
    assert (tmp_path / "p" / "project.toml").is_file()
    again = run("new", "multitask-image", tmp_path / "p")
    assert again.exit_code == 1 and again.output.startswith("Error: FOLDER ")
    assert "multitask-tabular" in run("templates").output


def test_new_with_labels_asks_nothing_and_says_what_columns_are(tmp_path, labels_csv):
    text = labels_csv.read_text().replace("image,", "file,")
    labels_csv.write_text("\n".join(f"{line},x" for line in text.splitlines()))
    words = ["new", "multitask-image", tmp_path / "p", "--labels", labels_csv]
    assert "--image-column" in run(*words).output
    result = run(*words, "--image-column", "file")
    assert result.exit_code == 0, result.output
    assert "tasks: bright, odd" in result.output and "ignored: x" in result.output
    text = (tmp_path / "p" / "project.toml").read_text()
    assert 'column = "file"' in text and 'tasks = ["bright", "odd"]' in text


TABLE = """\
id,patient,fold,temp,leak,weather,hours
r0,p0,train,1.5,1,dry,400.5
r1,p0,train,2.5,0,wet,410
r2,p1,train,3.5,-1,dry,390
r3,p2,val,4.5,1,wet,?
r4,p3,test,5.5,0,dry,405
"""
OPTIONS = [
    *("--task", "leak:missing=-1", "--task", "weather:multiclass", "--task", "hours:regression"),
    *("--group-column", "patient", "--id-column", "id", "--split-column", "fold"),
]


def test_new_and_check_take_kinds_codes_and_special_columns(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    words = ["new", "multitask-tabular", tmp_path / "p", "--labels", tmp_path / "t.csv", *OPTIONS]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "tasks: leak, weather, hours; features: temp" in result.output
    text = (tmp_path / "p" / "project.toml").read_text()
    assert 'group_column = "patient"' in text and 'id_column = "id"' in text
    project = run("check", "--project", tmp_path / "p", "--json")
    direct = run("check", tmp_path / "t.csv", "--table", *OPTIONS, "--json")
    assert json.loads(direct.stdout) == json.loads(project.stdout)
    tasks = json.loads(direct.stdout)["tasks"]
    assert [task["known"] for task in tasks.values()] == [4, 5, 4]


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "street").mkdir()
    (tmp_path / "street" / "mine").write_text("kept")
    with pytest.raises(FileExistsError, match="never overwritten"):
        new_project("multitask-image", tmp_path / "street", {})
    assert files(tmp_path / "street") == {"mine"}


@pytest.mark.parametrize(
    "template, name, answers, error, message",
    [
        ("nope", "p", {}, ValueError, "`template`.*'multitask-image'"),
        ("multitask-image", "-p", {}, ValueError, "`target`"),
        ("multitask-image", "my project", {}, ValueError, "`target`"),
        ("multitask-image", "p", {"labels": "no.csv"}, FileNotFoundError, "no.csv"),
        ("multitask-image", "p", {"_ignore": ["x"]}, ValueError, "`ignore`"),
        ("multitask-tabular", "p", {"_column": "x"}, ValueError, "`image_column`"),
        ("multitask-image", "p", {"epochs": "many"}, ValueError, "p/project.toml"),
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


def test_names_and_paths_of_any_characters_are_kept(tmp_path):
    folder = tmp_path / "x{{ 7*7 }}"
    folder.mkdir()
    names = ["😀", "a\x7fb", "{{ b }}", 'c"\\d']
    quoted = ",".join('"' + name.replace('"', '""') + '"' for name in names)
    (folder / "l.csv").write_text(
        f"image,{quoted}\na.jpg,1,0,1,0\nb.jpg,0,1,0,1\nc.jpg,?,?,1,1\n", "utf-8"
    )
    write_images(folder, ["a.jpg", "b.jpg", "c.jpg"])
    made = new_project("multitask-image", tmp_path / "p", {"labels": str(folder / "l.csv")})
    project = kt.Project.load(made)
    assert [task.name for task in project.data.tasks] == names
    assert project.labels_csv.resolve() == folder / "l.csv"


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


ORIGINS = {
    None: "kerasmtl~=0.1",
    '{"url": "file:///src/kerasmtl", "dir_info": {"editable": true}}': "kerasmtl @ file:///src/kerasmtl",
    '{"url": "https://host/kerasmtl.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}': (
        "kerasmtl @ git+https://host/kerasmtl.git@abc"
    ),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_requirements_name_what_can_be_installed(tmp_path, monkeypatch, origin):
    installed = SimpleNamespace(read_text=lambda name: origin)
    monkeypatch.setattr("kerasmtl.cli.new.distribution", lambda name: installed)
    made = new_project("multitask-image", tmp_path / "p", {})
    assert ORIGINS[origin] in (made / "requirements.txt").read_text().splitlines()


# ---------------------------------------------------------------- refused at once


def write_labels(folder, rows, header="image,a,b"):
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "labels.csv"


REFUSED = {
    "unknown backbone": ({"backbone": "MobilNetV2"}, "Did you mean MobileNetV2"),
    "absent folder": ({"backbone": "nowhere/module"}, "`backbone`|`handle`"),
    "a folder without a module": ({"backbone": "."}, "`handle`"),
    "absent weights": ({"backbone": "MobileNetV2:nope.h5"}, "`backbone`|`handle`"),
    "kaggle without version": ({"backbone": "kaggle:a/b/c/d"}, "`handle`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_backbone_that_is_none_is_refused_at_once(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    answers, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        new_project("multitask-image", tmp_path / "p", answers)
    assert not (tmp_path / "p").exists()


def test_the_names_of_keras_applications_are_known():
    keras = pytest.importorskip("keras")
    names = {n for n in dir(keras.applications) if callable(getattr(keras.applications, n))}
    assert names == set(APPLICATIONS)


def test_constant_columns_are_refused_with_the_call_that_leaves_them_out(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    labels = write_labels(tmp_path, ["a.png,1,1", "b.png,0,1"])
    with pytest.raises(ValueError, match="`tasks`.*'b'.*--task a"):
        new_project("multitask-image", tmp_path / "p", {"labels": str(labels)})
    names = [f"t{number}" for number in range(30)]
    rows = [f"{image}.png,1{f',{label}' * 30}" for image, label in (("a", 0), ("b", 1))]
    write_labels(tmp_path, rows, f"image,b,{','.join(names)}")
    with pytest.raises(ValueError, match="`tasks`.*'b'") as error:
        new_project("multitask-image", tmp_path / "p", {"labels": str(labels)})
    assert "t0" not in str(error.value)  # the call would drop what it does not list


def test_too_few_rows_for_three_parts_are_refused_at_once(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    labels = write_labels(tmp_path, ["a.png,1,0", "b.png,0,1"])
    with pytest.raises(ValueError, match="2 rows"):
        new_project("multitask-image", tmp_path / "p", {"labels": str(labels)})
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("name, reason", [("absent.png", "missing"), ("sound.wav", "not an image")])
def test_images_that_training_would_refuse_are_refused_at_once(tmp_path, name, reason):
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "sound.wav").write_bytes(b"RIFF" + bytes(100))
    labels = write_labels(tmp_path, ["a.png,1,0", f"{name},0,1", "b.png,0,1"])
    answers = {"labels": str(labels)}
    with pytest.raises(ValueError, match=f"line 3: '{name}' is {reason}.*on-invalid-image skip"):
        new_project("multitask-image", tmp_path / "p", answers)
    made = new_project("multitask-image", tmp_path / "p", {**answers, "_on_invalid_image": "skip"})
    assert settings(made)["data"]["on_invalid_image"] == "skip"


def test_images_outside_need_to_be_meant(tmp_path):
    write_images(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "labels").mkdir()
    rows = ["../a.png,1,0", "../b.png,0,1", "../c.png,0,0"]
    labels = write_labels(tmp_path / "labels", rows)
    answers = {"labels": str(labels)}
    with pytest.raises(ValueError, match="--allow-outside"):
        new_project("multitask-image", tmp_path / "p", answers)
    made = new_project("multitask-image", tmp_path / "p", {**answers, "_allow_outside": True})
    assert settings(made)["input"]["allow_outside"] is True
    assert kt.Project.load(made).manifest().missing_files() == []


def test_plain_cookiecutter_refuses_a_name_that_commands_would_refuse(tmp_path):
    template = str(ROOT / "templates" / "multitask-image")
    context = {"project_name": "My Project-1"}
    with pytest.raises(FailedHookException):
        cookiecutter(template, no_input=True, extra_context=context, output_dir=str(tmp_path))
    assert not (tmp_path / "My Project-1").exists()


# ---------------------------------------------------------------- a trained backbone at hand


@pytest.fixture
def caches(tmp_path, monkeypatch):
    for name in ("KERAS_HOME", "TFHUB_CACHE_DIR", "KAGGLEHUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    return tmp_path


def own(folder, tell=None, **answers):
    """The [model] section for images of one's own, and what was told."""
    images = folder / "images"
    if not images.exists():
        images.mkdir()
        write_images(images, ["a.png", "b.png", "c.png"])
    labels = write_labels(images, ["a.png,1,0", "b.png,0,1", "c.png,0,0"])
    told = []
    made = new_project(
        "multitask-image", folder / "p", {"labels": str(labels), **answers}, told.append
    )
    return (made / "project.toml").read_text(), "\n".join(told)


def test_without_a_trained_backbone_tiny_is_taken_and_its_price_told(caches):
    toml, told = own(caches)
    assert 'backbone = "tiny"' in toml
    for text in (toml, told):
        assert (
            "trained on drawings" in text and "0.847" in text and 'backbone = "MobileNetV2"' in text
        )


def test_keras_own_weights_are_found(caches):
    folder = caches / "KERAS_HOME" / "models"
    folder.mkdir()
    for name in ("ResNet50", "MobileNetV2"):
        with open(folder / WEIGHTS[name], "wb") as file:
            file.truncate(5_000_000)
    (folder / WEIGHTS["EfficientNetB0"]).write_bytes(b"of a download that was interrupted")
    toml, told = own(caches)
    assert 'backbone = "MobileNetV2"' in toml and "backbone: MobileNetV2, found in" in told
    assert "drawings" not in toml + told


def test_a_module_of_tfhub_is_found_by_the_note_beside_it(caches):
    handle = "https://tfhub.dev/google/imagenet/mobilenet_v2_035_96/feature_vector/5"
    for name, text in (
        ("1" * 40, "https://tfhub.dev/google/universal-sentence-encoder/4"),
        ("2" * 40, handle),
    ):
        folder = caches / "TFHUB_CACHE_DIR" / name
        folder.mkdir()
        (folder / "saved_model.pb").touch()
        folder.with_name(f"{name}.descriptor.txt").write_text(f"Module: {text}\nDownload Time: x\n")
    toml, told = own(caches)
    assert f'backbone = "{handle}"' in toml and handle in told


def test_a_model_of_kaggle_is_found_if_it_is_whole(caches):
    folder = caches / "KAGGLEHUB_CACHE/models/google/mobilenet-v2/tensorFlow2/100-feature-vector/2"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").touch()
    assert trained_backbones() == []
    folder.with_name("2.complete").touch()
    toml, _ = own(caches)
    assert 'backbone = "kaggle:google/mobilenet-v2/tensorFlow2/100-feature-vector/2"' in toml
