"""project.toml: read, checked, and its paths resolved."""

import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.evaluation.calibration import Decision
from kerasmtl.evaluation.report import Report
from kerasmtl.models.hub.cache import content_sha256
from kerasmtl.models.hub.embedded import extractor_folder
from kerasmtl.training.depth import after_the_head

NAN = float("nan")
GOOD = 'name = "street"\n[data]\nlabels = "street_scenes"\n'


def write(folder, text):
    (folder / "project.toml").write_text(text, encoding="utf-8")
    return folder


def test_defaults_need_only_a_name_and_labels(tmp_path):
    project = kt.Project.load(write(tmp_path, GOOD))
    assert project.backbone == "tiny" and project.image_size is None
    assert project.labels_csv.name == "labels.csv" and project.labels_csv.is_file()
    assert project.checkpoint == tmp_path / "runs" / "latest" / "model.keras"
    assert project.export_folder == tmp_path / "saved_models" / "street"


def test_paths_start_from_the_project(tmp_path, monkeypatch):
    (tmp_path / "module").mkdir()
    text = GOOD.replace("street_scenes", "data/labels.csv") + '[model]\nbackbone = "module"\n'
    project = kt.Project.load(write(tmp_path, text))
    monkeypatch.chdir("/")
    assert project.labels_csv == tmp_path / "data" / "labels.csv"
    assert project.backbone == str(tmp_path / "module")


@pytest.mark.parametrize(
    "text, named",
    [
        ("name = ", "must be TOML"),
        ('[data]\nlabels = "a.csv"\n', "name: Field required"),
        (GOOD.replace("street", "../street", 1), "name: "),
        (GOOD + "epochs = 3\n", "data.epochs"),
        (GOOD + 'split = "random"\n', "data.split"),
        (GOOD + 'tasks = [{name = "a", kind = "ranking"}]\n', "data.tasks.0"),
        (GOOD + 'tasks = [{name = "a", missing = 1}]\n', "`missing`"),
        (GOOD + 'tasks = [{kind = "binary"}]\n', "data.tasks.0: must be a name"),
        (GOOD + 'tasks = [{name = "a", kinds = "binary"}]\n', "data.tasks.0: must be a name"),
        (GOOD + "[input]\nkind = 'tabel'\n", "input: `kind`"),
        (GOOD + "[input]\nkind = 'table'\nfeatures = 3\n", "input: `features` must be Sequence"),
        (GOOD + "[input]\nkind = 'image'\nsize = 5\n", "input: `size` must be tuple[int, int]"),
        (GOOD + "[input]\nkind = 'image'\nallow_outside = 'inside'\n", "must be bool, got"),
        (GOOD + "[training]\nepochs = 0\n", "training.epochs"),
        (GOOD + "[training]\nlearning_rate = -1.0\n", "training.learning_rate"),
        (GOOD + "[model]\ndropout = 1.5\nhidden = [0]\n", "model.hidden: must"),
        (GOOD + "[model]\nimage_size = -1\n", "model.image_size"),
        (GOOD + '[model]\nbackbone_sha256 = "abc"\n', "model.backbone_sha256"),
    ],
)
def test_wrong_settings_are_named(tmp_path, text, named):
    with pytest.raises(ValueError, match="project.toml") as error:
        kt.Project.load(write(tmp_path, text))
    assert named in str(error.value)


@pytest.mark.parametrize("option", ["kind = 'image'\nallow_outside", "kind = 'table'\npacked_bits"])
def test_the_word_false_is_not_true(tmp_path, option):
    project = kt.Project.load(write(tmp_path, GOOD + f"[input]\n{option} = 'false'\n"))
    assert getattr(project.input, option.rpartition("\n")[2]) is False


def test_tasks_of_all_kinds_groups_and_the_split_are_settings(tmp_path):
    rows = [f"{i}.jpg,{i % 2},{(-1, 0, 1)[i % 3]},{i % 4 - 1},v{i // 3}" for i in range(60)]
    (tmp_path / "labels.csv").write_text("image,a,b,grade,video\n" + "\n".join(rows) + "\n")
    text = """name = "street"
[data]
labels = "labels.csv"
tasks = [
    "a",
    {name = "b", uncertain = -1, uncertain_as = 0.25, weight = 2},
    {name = "grade", kind = "multiclass", missing = [-1]},
]
group_column = "video"
split = "hash"
"""
    manifest = kt.Project.load(write(tmp_path, text)).manifest()
    assert manifest.tasks == (
        kt.Task("a"),
        kt.Task("b", uncertain=-1, uncertain_as=0.25, weight=2),
        kt.Task("grade", "multiclass", classes=("0", "1", "2"), missing=-1),
    )
    np.testing.assert_array_equal(manifest.labels[:4, 1:], [[0.25, NAN], [0, 0], [1, 1], [0.25, 2]])
    assert manifest.groups[:4].tolist() == ["v0", "v0", "v0", "v1"] and manifest.split_by == "hash"


def test_no_project_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="kerasmtl new multitask-image"):
        kt.Project.load(tmp_path)


def test_the_backbone_is_loaded_with_its_pin(tmp_path):
    pin = content_sha256(extractor_folder("tiny"))
    text = GOOD + '[model]\nbackbone_sha256 = "{}"\n'
    loaded = kt.Project.load(write(tmp_path, text.format(pin.upper()))).load_backbone()
    assert loaded.handle == "tiny" and not loaded.trainable
    assert kt.Project.load(write(tmp_path, GOOD)).load_backbone(trainable=True).trainable
    with pytest.raises(ValueError, match=f"`sha256`.*{pin}"):
        kt.Project.load(write(tmp_path, text.format("0" * 64))).load_backbone()


# ---------------------------------------------------------------- absent and broken images


@pytest.fixture
def pets(image_folder):
    """Twelve images, of which one is absent and one is cut short."""
    (image_folder / "00.jpg").unlink()
    whole = (image_folder / "04.jpg").read_bytes()
    (image_folder / "04.jpg").write_bytes(whole[: len(whole) // 2])
    return image_folder


def test_absent_images_stop_a_training_before_it_begins(pets):
    project = kt.Project.load(write(pets, GOOD.replace("street_scenes", "labels.csv")))
    with pytest.raises(ValueError, match="`labels`.*line 2: '00.jpg'.*on_invalid_image"):
        project.start_run(*project.manifest().split())
    assert not (pets / "runs").exists()


def test_invalid_images_are_skipped_counted_and_listed_where_that_is_wanted(pets):
    text = GOOD.replace("street_scenes", "labels.csv") + 'on_invalid_image = "skip"\n'
    project = kt.Project.load(write(pets, text))
    with pytest.warns(UserWarning, match=r"2 of 12 images.*00.jpg \(missing\); 04.jpg"):
        manifest = project.manifest()
    assert len(manifest) == 10 and not {"00.jpg", "04.jpg"} & set(manifest.names)
    assert len(project.manifest(every_row=True)) == 12
    run = project.start_run(*manifest.split())
    listed = (run.folder / "skipped.csv").read_text().splitlines()
    assert listed == ["line,name,reason", "2,00.jpg,missing", "6,04.jpg,truncated"]


def test_a_toy_backbone_is_noted_with_the_scores_of_own_images(image_folder, capsys):
    for text, noted in ((GOOD.replace("street_scenes", "labels.csv"), True), (GOOD, False)):
        project = kt.Project.load(write(image_folder, text))
        run = project.start_run(*project.manifest().split())
        run.finish(Report(rows=1, tasks={}))
        assert ("Note: tiny was trained on drawings" in capsys.readouterr().out) == noted


@pytest.mark.parametrize(
    "error, said",
    [
        (ValueError("`tasks` must be known"), "^Error: `tasks` must be known$"),
        (FileNotFoundError("labels.csv"), "^Error: labels.csv$"),
        (KeyboardInterrupt(), "^\nStopped. `python mine.py` resumes"),
    ],
)
def test_a_script_ends_in_a_line_where_it_fails(tmp_path, error, said):
    write(tmp_path, GOOD)
    with pytest.raises(SystemExit, match=said):
        with kt.Project.script(str(tmp_path / "mine.py")) as project:
            assert project.name == "street"
            raise error
    with pytest.raises(SystemExit, match="^Error: `folder` must have a project.toml"):
        with kt.Project.script(str(tmp_path / "elsewhere" / "mine.py")):
            raise AssertionError


def test_an_export_has_the_thresholds_of_the_training_unless_it_is_calibrated(
    image_folder, monkeypatch
):
    calls = []
    monkeypatch.setattr(
        "kerasmtl.export.saved_model.export_saved_model", lambda *a, **k: calls.append((a, k))
    )
    project = kt.Project.load(write(image_folder, GOOD.replace("street_scenes", "labels.csv")))
    run = project.start_run(*project.manifest().split())
    decisions = {"cat": Decision(threshold=0.3)}
    run.checkpoint.touch()
    run.finish(Report(rows=1, tasks={}), decisions)
    project.export("model", "batches", card={"licence": "MIT"})
    project.export("model", folder="elsewhere", calibrate=True)
    (first, named), (second, fitted) = calls
    assert first[:2] == ("model", project.export_folder) and second[1] == "elsewhere"
    assert named["decisions"]["cat"].threshold == 0.3 and fitted["decisions"] is None
    assert named["card"].items() >= {"name": "street", "licence": "MIT"}.items()
    assert named["validation"] == "batches" and named["input"].kind == "image"


def test_the_automatic_plan_of_widths_goes_by_what_validation_can_judge(tmp_path):
    """As `check` and `advise` say, with a head by folds and without."""
    project = kt.Project.load(write(tmp_path, GOOD + "[model]\nhidden = [8]\n"))
    train, val, _ = project.manifest().split()
    model = kt.build_model("tiny", train.tasks, hidden=[8])
    data = project.dataset(train, model, training=True)
    for rows, name in ((val, "gradual"), (val.take(range(30)), "head"), (None, "head")):
        held = None if rows is None else project.dataset(rows, model)
        plan = project.plan(model, data, held)
        labels = train.labels[:0] if rows is None else rows.labels
        assert plan.name == name == after_the_head(train.labels, labels, train.tasks, 28_000)[0]
        assert ("validation" in plan.why) == (name == "head")
