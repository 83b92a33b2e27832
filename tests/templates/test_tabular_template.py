"""The template multitask-tabular: from a table to a served model, as users do."""

import contextlib
import io
import json
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from click.testing import CliRunner
from cookiecutter.main import cookiecutter
from tables import load_table

import kerasmtl as kt
from kerasmtl.cli import main
from kerasmtl.cli.new import new_project
from kerasmtl.models.hub.embedded import dataset_csv

ROOT = Path(__file__).parents[2]
FAULTS = ["bearing_worn", "leak", "cavitation", "filter_clogged"]


def settings(folder):
    return tomllib.loads((folder / "project.toml").read_text(encoding="utf-8"))


def kerasmtl(*words, cwd=None, code=0):
    words = [str(word) for word in words]
    if cwd is not None:
        words += ["--project", str(cwd)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


def table_of_kinds(folder, rows=160):
    """Names with blanks, four tasks of three kinds, missing cells everywhere."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3))
    frame = pd.DataFrame(
        {
            "größe (mm)": x[:, 0],
            "heat": x[:, 1],
            "2nd": x[:, 2],
            "a": (x[:, 0] > 0).astype(int),
            "grade": np.where(x[:, 1] > 0, "high", "low"),
            "b": (x[:, 2] > 0.3).astype(int),
            "hours": x.sum(axis=1).round(3),
        }
    ).astype(object)
    frame[rng.random(frame.shape) < 0.15] = ""
    frame.to_csv(folder / "kinds.csv", index=False)
    return folder / "kinds.csv"


# ---------------------------------------------------------------- the embedded table


def test_the_embedded_table_has_missing_labels_and_numbers():
    table = load_table(dataset_csv("pump_faults"))
    assert [task.name for task in table.tasks] == FAULTS and table.values.shape == (1500, 12)
    share = table.coverage().share
    np.testing.assert_allclose(share, [0.9, 0.7, 0.5, 0.2], atol=0.03)
    assert 0.2 < np.isnan(table.values[:, table.input.features.index("noise_db")]).mean() < 0.3
    assert all(part.class_faults() == {} for part in table.split())
    folder = dataset_csv("pump_faults").parent
    assert sum(path.stat().st_size for path in folder.glob("*.*")) <= 300_000


def test_the_script_makes_the_embedded_table_again(tmp_path):
    script = dataset_csv("pump_faults").with_name("simulate.py")
    command = [sys.executable, script, tmp_path]
    subprocess.run(command, check=True)
    for name in ("labels.csv", "labels_full.csv"):
        again = pd.read_csv(tmp_path / name, na_values=["?"])
        shipped = pd.read_csv(dataset_csv("pump_faults").with_name(name), na_values=["?"])
        pd.testing.assert_frame_equal(again, shipped, rtol=0.02)
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode != 0 and "never overwritten" in refused.stderr


# ---------------------------------------------------------------- the project


def test_a_project_has_the_same_files_as_one_of_images(tmp_path):
    def files(folder):
        return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}

    made = new_project("multitask-tabular", tmp_path / "p", {})
    other = new_project("multitask-image", tmp_path / "q", {})
    assert files(made) == files(other)
    for project in (made, other):
        text = (project / "train.py").read_text()
        body = text[text.index("def main") : text.index("if __name__")].rstrip()
        assert len(body.splitlines()) <= 50
        loop = text[text.index("for stage in resume.stages(") :]
        assert loop.index("stage.prepare(") < loop.index("model.compile(") < loop.index(".fit(")


def test_the_pinned_version_is_this_one():
    context = (ROOT / "templates" / "multitask-tabular" / "cookiecutter.json").read_text()
    assert f'"_requirement": "kerasmtl~={".".join(kt.__version__.split(".")[:2])}"' in context


def test_plain_cookiecutter_works_too(tmp_path):
    template = ROOT / "templates" / "multitask-tabular"
    made = cookiecutter(str(template), no_input=True, output_dir=str(tmp_path), default_config=True)
    assert [task.name for task in kt.Project.load(made).manifest().tasks] == FAULTS


def test_new_finds_tasks_and_leaves_columns_out(tmp_path):
    (tmp_path / "t.csv").write_text("name,x,leak,worn\na,1.5,?,1\nb,2.5,1,?\nc,3.5,0,0\n")
    words = ("new", "multitask-tabular", tmp_path / "p", "--labels", tmp_path / "t.csv")
    assert "ignore=[…]" in kerasmtl(*words, code=1)
    assert not (tmp_path / "p").exists()
    kerasmtl(*words, "--ignore", "name")
    made = settings(tmp_path / "p")
    assert made["data"]["tasks"] == ["leak", "worn"] and made["input"]["ignore"] == ["name"]
    assert kt.Project.load(tmp_path / "p").manifest().values.shape == (3, 1)


@pytest.mark.parametrize(
    "template, option, message",
    [
        ("multitask-tabular", ["--backbone", "tiny"], "--backbone must be left out"),
        ("multitask-image", ["--ignore", "x"], "--ignore must be left out"),
    ],
)
def test_options_of_the_other_template_are_refused(tmp_path, template, option, message):
    assert message in kerasmtl("new", template, tmp_path / "p", "--no-input", *option, code=1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[model]\nbatch_norm = true\n", "`batch_norm`"),
        ("[input]\nkind = 'table'\n[model]\nbackbone = 'tiny'\n", "`backbone`"),
        ("[input]\nkind = 'table'\n[training]\nfine_tune_epochs = 3\n", "`fine_tune_epochs`"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(tmp_path, text, message):
    (tmp_path / "project.toml").write_text(f'name = "p"\n[data]\nlabels = "pump_faults"\n{text}')
    with pytest.raises(ValueError, match=message):
        kt.Project.load(tmp_path)


def test_starting_a_project_does_not_import_tensorflow(tmp_path):
    code = (
        "import sys\nfrom kerasmtl.cli import main\n"
        "try: main(['new', 'multitask-tabular', 'p', '--labels', sys.argv[1]])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    labels = str(dataset_csv("pump_faults"))
    done = subprocess.run(
        [sys.executable, "-c", code, labels], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_project_passes_its_own_tests_at_once(tmp_path):
    made = new_project("multitask-tabular", tmp_path / "pumps", {})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=made,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "4 passed" in done.stdout


# ---------------------------------------------------------------- trained and served


def train(folder):
    """What train.py prints, run in this process: another one would import TensorFlow again."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "model", raising=False)
        runpy.run_path(str(folder / "train.py"), run_name="__main__")
        del sys.modules["model"]
    return said.getvalue()


def unverified(patch):
    """Export without the process that verifies; one export per file of tests has it."""
    patch.setattr("kerasmtl.export.verify.verify", lambda *args: None)


def trained_pumps(folder, epochs=None):
    """A project on the embedded table, trained by its train.py; by default with a chosen head."""
    made = new_project("multitask-tabular", folder / "pumps", {})
    toml = (made / "project.toml").read_text()
    if epochs:
        toml = toml.replace("epochs = 60", f"epochs = {epochs}")
        toml = toml.replace('hidden = "auto"', "hidden = [32]")
    (made / "project.toml").write_text(toml)
    said = train(made)
    found = [line.split()[1] for line in said.splitlines() if line.startswith("Epoch ")]
    assert found == [f"{number}/{epochs}" for number in range(1, (epochs or 0) + 1)]
    assert ("loss of 5 folds" in said) == (not epochs)
    assert "SavedModel:" in said
    return made


@pytest.fixture(scope="module")
def pumps(tmp_path_factory):
    return trained_pumps(tmp_path_factory.mktemp("work"))


def test_the_default_settings_learn_every_task_by_folds(pumps):
    report = json.loads(kerasmtl("evaluate", "--json", cwd=pumps))
    assert report["macro_auc"] > 0.8
    assert min(scores["auc"] for scores in report["tasks"].values()) > 0.65
    found = json.loads((pumps / "runs" / "latest" / "heads.json").read_text())
    assert found["rows"] == 1200 and any(each["chosen"] for each in found["candidates"])


@pytest.mark.slow
def test_a_network_with_widths_keeps_the_best_epoch(tmp_path, monkeypatch):
    unverified(monkeypatch)
    made = trained_pumps(tmp_path, 60)
    history = pd.read_csv(made / "runs" / "latest" / "history.csv")
    best = int(history["val_auc"].idxmax()) + 1
    log = (made / "runs" / "latest" / "train.log").read_text()
    assert f"Best epoch: {best} of 60, val_auc" in log
    found = json.loads(kerasmtl("evaluate", "--part", "val", "--json", cwd=made))
    assert found["macro_auc"] == pytest.approx(history["val_auc"].max(), abs=0.005)


def test_command_model_and_export_agree(pumps, tmp_path):
    frame = pd.read_csv(dataset_csv("pump_faults"), dtype=str).head(40)
    frame.drop(columns=[*FAULTS, "split"]).iloc[:, ::-1].to_csv(tmp_path / "r.csv", index=False)
    trained = json.loads(kerasmtl("predict", "--json", tmp_path / "r.csv", cwd=pumps))
    assert trained[0]["row"].endswith("r.csv:2") and len(trained) == 40
    exported = pumps / "saved_models" / "pumps" / "1"
    served = json.loads(kerasmtl("predict", "--json", "--model", exported, tmp_path / "r.csv"))
    rows = kt.Project.load(pumps).manifest().take(range(40))
    signatures = tf.saved_model.load(str(exported)).signatures
    assert set(signatures) == {"serving_default", "columns", "matrix", "features"}
    matrix = signatures["matrix"](features=tf.constant(rows.values))
    named = {name: tf.constant(rows.values[:, i]) for i, name in enumerate(rows.input.features)}
    columns = signatures["serving_default"](**named)
    for name in FAULTS:
        expected = [row["predictions"][name] for row in trained]
        for received in (matrix[name], columns[name], [r["predictions"][name] for r in served]):
            np.testing.assert_allclose(received, expected, atol=1e-5)


def test_predict_prints_a_table_and_export_counts_on(pumps, monkeypatch):
    unverified(monkeypatch)
    printed = kerasmtl("predict", dataset_csv("pump_faults"), cwd=pumps)
    assert "labels.csv:2" in printed.replace("\n", "") or ":2" in printed
    first = Path(kerasmtl("export", cwd=pumps).strip())
    assert int(first.name) >= 2 and (first / "assets.extra" / "model.json").is_file()


def test_a_model_of_other_columns_is_refused(pumps, tmp_path):
    (tmp_path / "r.csv").write_text("load\n1\n")
    assert "`features` must be in" in kerasmtl("predict", tmp_path / "r.csv", cwd=pumps, code=1)


@pytest.fixture
def moved(pumps, tmp_path):
    """A copy of the trained project whose labels are a file of its own, `labels.csv`."""
    made = tmp_path / "pumps"
    shutil.copytree(pumps, made)
    toml = (made / "project.toml").read_text().replace('"pump_faults"', '"labels.csv"')
    (made / "project.toml").write_text(toml.replace("seed = 0", "seed = 5"))
    frame = pd.read_csv(dataset_csv("pump_faults"), dtype=str, keep_default_na=False)
    frame.to_csv(made / "labels.csv", index=False)
    return made, frame


def test_scores_stay_when_columns_rows_tasks_and_seed_change(pumps, moved):
    before = json.loads(kerasmtl("evaluate", "--json", cwd=pumps))
    assert before["rows"] == 300 and list(before["tasks"]) == FAULTS
    made, frame = moved
    frame.iloc[::-1, ::-1].to_csv(made / "labels.csv", index=False)
    toml = (made / "project.toml").read_text()
    named = f"tasks = {json.dumps(FAULTS[::-1])}  #"
    (made / "project.toml").write_text(toml.replace("tasks = []  #", named))
    again = json.loads(kerasmtl("evaluate", "--json", cwd=made))
    assert list(again["tasks"]) == FAULTS
    for name, scores in before["tasks"].items():
        assert again["tasks"][name] == pytest.approx(scores, abs=1e-6)


def test_trained_rows_do_not_come_into_the_test_part(pumps, moved):
    made, frame = moved
    frame.loc[frame.split == "train", "split"] = "test"
    frame.to_csv(made / "labels.csv", index=False)
    done = CliRunner().invoke(main, ["evaluate", "--json", "--project", str(made)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(kerasmtl("evaluate", "--json", cwd=pumps))
    assert "Warning: 975 rows that the file calls test were trained on" in done.stderr


def test_predict_and_export_need_no_labels_file(moved, tmp_path, monkeypatch):
    unverified(monkeypatch)
    made, frame = moved
    frame.head(3).to_csv(tmp_path / "r.csv", index=False)
    before = kerasmtl("predict", "--json", tmp_path / "r.csv", cwd=made)
    (made / "labels.csv").unlink()
    assert kerasmtl("predict", "--json", tmp_path / "r.csv", cwd=made) == before
    assert Path(kerasmtl("export", cwd=made).strip()).is_dir()
    said = kerasmtl("evaluate", cwd=made, code=1)
    assert "labels.csv" in said and "exists" in said


def test_without_a_record_no_row_is_scored(moved):
    made, _ = moved
    (kt.Project.load(made).run.folder / "model.json").unlink()
    assert "Call project.start_run" in kerasmtl("evaluate", cwd=made, code=1)


def test_packed_bits_are_unpacked_for_an_export_too(tmp_path):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (50, 16), "uint8")
    np.savez(tmp_path / "r.npz", X=np.packbits(bits, axis=1))
    model, _ = small_model(16)
    columns = [f"x{n}" for n in range(16)]
    folder = kt.export_saved_model(
        model,
        tmp_path / "m",
        ["a", "b"],
        input=kt.data.Table(columns, packed_bits=True),
        verify=False,
    )
    served = json.loads(kerasmtl("predict", "--json", "--model", folder, tmp_path / "r.npz"))
    expected = model.predict(bits.astype("float32"), verbose=0)
    received = [[*row["predictions"].values()] for row in served]
    np.testing.assert_allclose(received, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("template", ["multitask-tabular", "multitask-image"])
def test_training_names_wrong_data_without_a_traceback(tmp_path, template):
    made = new_project(template, tmp_path / "p", {})
    toml = (made / "project.toml").read_text()
    name = "pump_faults" if "tabular" in template else "street_scenes"
    (made / "project.toml").write_text(toml.replace(f'"{name}"', '"gone.csv"'))
    done = subprocess.run([sys.executable, "train.py"], cwd=made, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Error: `path`" in done.stderr and "gone.csv" in done.stderr and "exists" in done.stderr


@pytest.mark.slow
def test_tasks_of_several_kinds_from_project_to_export(tmp_path):
    labels = table_of_kinds(tmp_path)
    made = new_project("multitask-tabular", tmp_path / "p", {})
    toml = (made / "project.toml").read_text()
    tasks = (
        'tasks = ["a", {name = "grade", kind = "multiclass"}, "b", '
        '{name = "hours", kind = "regression"}]  #'
    )
    toml = toml.replace('"pump_faults"', json.dumps(str(labels))).replace("tasks = []  #", tasks)
    toml = toml.replace("epochs = 60", "epochs = 3")
    (made / "project.toml").write_text(toml)
    train(made)
    trained = json.loads(kerasmtl("predict", "--json", labels, cwd=made))
    assert list(trained[0]["predictions"]) == ["a", "grade", "b", "hours"]
    assert sum(trained[0]["predictions"]["grade"].values()) == pytest.approx(1, abs=1e-5)
    assert list(trained[0]["predictions"]["grade"]) == ["high", "low"]
    exported = made / "saved_models" / "p" / "1"
    served = json.loads(kerasmtl("predict", "--json", "--model", exported, labels))
    for one, other in zip(trained, served, strict=True):
        assert one["predictions"]["grade"] == pytest.approx(other["predictions"]["grade"], abs=1e-5)
        assert one["predictions"]["hours"] == pytest.approx(other["predictions"]["hours"], abs=1e-4)
    printed = kerasmtl("predict", labels, cwd=made)
    assert "high (0." in printed or "low (0." in printed


# ---------------------------------------------------------------- the exported signatures


def small_model(columns, tasks=("a", "b")):
    keras.utils.set_random_seed(0)
    rows = np.random.default_rng(0).normal(size=(20, columns)).astype("float32")
    return kt.build_model(kt.backbones.mlp(rows, hidden=[4]), list(tasks)), rows


def arguments(columns):
    return kt.data.Table(columns).arguments


def test_inputs_are_named_after_columns_as_far_as_tensorflow_can():
    assert arguments(["größe (mm)", "2nd", "ok_1"]) == {
        "größe (mm)": "gr__e__mm_",
        "2nd": "column_2nd",
        "ok_1": "ok_1",
    }
    assert arguments(["a b", "a_b"]) is None
    assert arguments([f"x{n}" for n in range(101)]) is None


@pytest.mark.parametrize(
    "columns, message",
    [
        (["x", "y"], "`model` must take"),
        (["x", "x", "y"], "`features` must be distinct"),
    ],
)
def test_wrong_columns_are_named_and_nothing_is_written(tmp_path, columns, message):
    model, _ = small_model(3)
    with pytest.raises(ValueError, match=message):
        kt.export_saved_model(model, tmp_path / "m", ["a", "b"], input=kt.data.Table(columns))
    assert not (tmp_path / "m").exists()
