"""The command line, as a user meets it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kerasmtl.cli import main

ROOT = Path(__file__).parents[2]


def run(*arguments, **options):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


@pytest.fixture
def data(tmp_path):
    """Eight pictures and their labels; tasks `bright` and `odd`."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["image,bright,odd"]
    for number in range(8):
        pixels = np.full((20, 20, 3), 30 + 25 * number, "uint8")
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        bright = "?" if number == 3 else int(number > 3)
        lines.append(f"{number}.jpg,{bright},{number % 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["new", "--help"],
        ["templates"],
        ["new", "multitask-image", "made", "--no-input"],
        ["new", "multitask-image", "made", "--labels", "{data}/labels.csv", "--backbone", "tiny"],
    ],
)
def test_starting_does_not_import_tensorflow(tmp_path, data, command):
    words = [word.format(data=data) for word in command]
    code = (
        "import sys\nfrom kerasmtl.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'tensorflow', 'keras', 'tensorflow_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_library_does_not_import_tensorflow():
    code = "import sys, kerasmtl as kt; assert 'tensorflow' not in sys.modules; assert dir(kt)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_imported():
    import kerasmtl as kt

    assert all(getattr(kt, name) is not None for name in kt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = kt.nope


def test_templates_are_listed_with_what_they_are_for():
    assert "multitask-image  Pictures in" in run("templates").output


def test_new_without_labels_asks_and_takes_defaults(tmp_path):
    result = run("new", "multitask-image", tmp_path / "p", input="\n" * 5)
    assert result.exit_code == 0, result.output
    assert result.output.count("[") == 5  # five questions, each showing its default
    assert (tmp_path / "p" / "project.toml").is_file()


def test_new_with_labels_asks_nothing(tmp_path, data):
    result = run("new", "multitask-image", tmp_path / "p", "--labels", data / "labels.csv")
    assert result.exit_code == 0 and "[" not in result.output
    assert 'tasks = ["bright", "odd"]' in (tmp_path / "p" / "project.toml").read_text()


def test_new_with_another_image_column(tmp_path, data):
    path = data / "labels.csv"
    path.write_text(path.read_text().replace("image,", "file,"))
    target = tmp_path / "p"
    assert "--image-column" in run("new", "multitask-image", target, "--labels", path).output
    result = run("new", "multitask-image", target, "--labels", path, "--image-column", "file")
    assert result.exit_code == 0, result.output
    assert 'column = "file"' in (target / "project.toml").read_text()


def test_new_complains_before_it_asks(tmp_path):
    (tmp_path / "p").mkdir()
    result = run("new", "multitask-image", tmp_path / "p")
    assert result.exit_code == 1
    assert result.output.startswith("Error: FOLDER ") and "never overwritten" in result.output


def test_check_shows_rows_and_coverage(data):
    result = run("check", data / "labels.csv")
    assert result.exit_code == 0, result.output
    assert "8 rows" in result.output and "0 of 8 pictures" in result.output
    assert re.search(r"bright\D+7\D+4\D+3\D+88%", result.output)


def test_names_with_brackets_are_shown_whole(data):
    path = data / "labels.csv"
    path.write_text(path.read_text().replace("bright", "a[b]"))
    assert "a[b]" in run("check", path).output


def test_check_lists_all_broken_pictures_at_once(data):
    whole = (data / "0.jpg").read_bytes()
    (data / "0.jpg").unlink()
    (data / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (data / "2.jpg").write_bytes(b"")
    (data / "3.jpg").write_text("no picture")
    result = run("check", data / "labels.csv")
    assert result.exit_code == 1
    for line in (
        "line 2: 0.jpg: absent",
        "line 3: 1.jpg: truncated",
        "line 4: 2.jpg: empty",
        "line 5: 3.jpg: not an image",
        "4 of 8 pictures cannot be used",
    ):
        assert line in result.output
    result = run("check", data / "labels.csv", "--json")
    assert [fault["line"] for fault in json.loads(result.output)["faults"]] == [2, 3, 4, 5]


def test_check_names_a_task_with_one_class(data):
    path = data / "labels.csv"
    path.write_text(re.sub(r",0$", ",1", path.read_text(), flags=re.M))
    result = run("check", path)
    assert result.exit_code == 1
    assert "Task odd: one class only" in result.output


def test_check_says_why_labels_are_missing_and_what_to_do(data):
    path = data / "labels.csv"
    path.write_text(path.read_text().replace(",0,", ",?,"))
    result = run("check", path)
    assert "EPR) or LargeLoss (LL-R): bright: positives only" in result.output
    assert "Rows with both labels" in result.output and "the head alone" in result.output


def test_check_as_json_has_the_audit_and_the_leaks(data):
    (data / "copy.jpg").write_bytes((data / "0.jpg").read_bytes())
    text = (data / "labels.csv").read_text().replace("image,", "split,image,")
    rows = [f"train,{row}" if at else row for at, row in enumerate(text.splitlines())]
    rows[5:8] = [row.replace("train", "val") for row in rows[5:8]]
    (data / "labels.csv").write_text("\n".join([*rows, "test,copy.jpg,0,0"]))
    result = run("check", data / "labels.csv", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["rows"] == 9
    assert found["tasks"]["bright"] == {
        "kind": "binary", "known": 8, "positive": 4, "negative": 4, "share": 8 / 9
    }  # fmt: skip
    assert found["audit"]["co_known"]["bright"] == {"bright": 8, "odd": 8}
    assert found["audit"]["tasks"]["odd"]["policy"] == "ignore"
    assert [leak["kind"] for leak in found["leaks"]] == ["same bytes"]
    assert "Warning: same bytes: train, line 2: 0.jpg and test, line 10: copy.jpg" in run(
        "check", data / "labels.csv"
    ).output.replace("\n", " ")
    skipped = json.loads(run("check", data / "labels.csv", "--json", "--no-leaks").stdout)
    assert skipped["leaks"] is None


def test_check_takes_tasks_and_groups(data):
    path = data / "labels.csv"
    rows = [f"{row},{'video' if at == 0 else at // 2}" for at, row in
            enumerate(path.read_text().splitlines())]  # fmt: skip
    path.write_text("\n".join(rows))
    result = run("check", path, "--task", "odd", "--group-column", "video", "--json")
    assert list(json.loads(result.stdout)["tasks"]) == ["odd"]
    result = run("check", path, "--group-column", "film")
    assert result.exit_code == 1 and "--group-column must be in" in result.output


def test_check_of_too_few_rows_to_split_says_so(data):
    path = data / "labels.csv"
    path.write_text("\n".join(path.read_text().splitlines()[i] for i in (0, 1, 6)))
    result = run("check", path)
    assert "Leaks were not looked for: `split` leaves the part test empty" in result.output


def test_check_shows_what_other_kinds_have(tmp_path, data):
    rows = [f"{i}.jpg,{i % 2},{'abc'[i % 3]},{i}" for i in range(8)]
    (data / "mixed.csv").write_text("image,x,grade,size\n" + "\n".join(rows))
    (tmp_path / "project.toml").write_text(
        f'name = "p"\n[data]\nlabels = "{data}/mixed.csv"\ntasks = ["x", {{name = "grade", '
        'kind = "multiclass"}, {name = "size", kind = "regression"}]\n'
    )
    result = run("check", "--project", tmp_path, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "a 3, b 3, c 2" in result.output and "mean 3.5, std 2.29" in result.output
    found = json.loads(run("check", "--project", tmp_path, "--json").stdout)["tasks"]
    assert found["grade"]["classes"] == {"a": 3, "b": 3, "c": 2}
    assert found["grade"]["positive"] is None and found["size"]["std"] == pytest.approx(2.291, 1e-3)


@pytest.mark.parametrize("bad", ["2", "yes"])
def test_a_wrong_label_names_file_line_and_column(data, bad):
    path = data / "labels.csv"
    path.write_text(path.read_text().replace("5.jpg,1", f"5.jpg,{bad}"))
    result = run("check", path)
    assert result.exit_code == 1
    assert "labels.csv" in result.output and "Traceback" not in result.output
    assert f"line 7, column 'bright': '{bad}'" in result.output


@pytest.mark.parametrize("command", [["evaluate"], ["export"], ["predict", "a.jpg"], ["check"]])
def test_outside_of_a_project_commands_say_so(tmp_path, command):
    result = run(*command, "--project", tmp_path)
    assert result.exit_code == 1
    assert "has no project.toml" in result.output


@pytest.mark.parametrize("command", [["evaluate"], ["export"], ["predict", "a.jpg"]])
def test_before_training_commands_say_so(tmp_path, data, command):
    run("new", "multitask-image", tmp_path / "p", "--labels", data / "labels.csv")
    result = run(*command, "--project", tmp_path / "p")
    assert result.exit_code == 1
    assert "Run: python train.py" in result.output


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
    result = run(
        "new", "multitask-tabular", tmp_path / "p", "--labels", tmp_path / "t.csv", *OPTIONS
    )
    assert result.exit_code == 0, result.output
    assert "tasks: leak, weather, hours; features: temp\n" in result.output
    text = (tmp_path / "p" / "project.toml").read_text()
    assert 'group_column = "patient"' in text and 'id_column = "id"' in text
    project = run("check", "--project", tmp_path / "p", "--json")
    direct = run("check", tmp_path / "t.csv", "--table", *OPTIONS, "--json")
    assert json.loads(direct.stdout) == json.loads(project.stdout)
    tasks = json.loads(direct.stdout)["tasks"]
    assert [task["known"] for task in tasks.values()] == [4, 5, 4]


def test_new_says_what_it_leaves_out(tmp_path, data):
    path = data / "labels.csv"
    path.write_text(re.sub("$", ",x", path.read_text().strip(), flags=re.M))
    result = run("new", "multitask-image", tmp_path / "p", "--labels", path)
    assert "tasks: bright, odd; ignored: x" in result.output


def test_templates_name_the_columns_that_keep_groups_together(tmp_path):
    for template in ("multitask-image", "multitask-tabular"):
        run("new", template, tmp_path / template, "--no-input")
        text = (tmp_path / template / "project.toml").read_text()
        assert "# group_column = " in text and "# split_column = " in text


def test_check_ignores_columns(tmp_path):
    (tmp_path / "t.csv").write_text("note,x,a\nu,1.5,1\nv,2.5,0\nw,0.5,?\n")
    assert run("check", tmp_path / "t.csv", "--table", "--ignore", "note").exit_code == 0


def test_an_ending_in_capitals_is_one_of_pictures(data):
    (data / "labels.csv").rename(data / "L.CSV")
    assert run("check", data / "L.CSV").exit_code == 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["--table"], "--table belong to a labels file"),
        (["--task", "a"], "--task belong to a labels file"),
        (["--group-column", "g", "--split-column", "s"], "--group-column, --split-column belong"),
        (["x.csv", "--ignore", "y"], "--ignore are for tables"),
        (["x.npz", "--image-column", "y"], "--image-column are for pictures"),
    ],
)
def test_options_that_nothing_would_read_are_refused(tmp_path, words, message):
    result = run("check", *words, "--project", tmp_path)
    assert result.exit_code == 1 and message in result.output
