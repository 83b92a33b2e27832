"""`kerasmtl check`: rows, broken images, coverage, leaks, advice."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import kerasmtl as kt
from kerasmtl.cli import main
from kerasmtl.cli.check import Check
from kerasmtl.utils.text import columns_text


def run(*arguments, **options):
    return CliRunner().invoke(main, ["check", *map(str, arguments)], **options)


def as_json(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


def many(folder, tasks, rows=60):
    """Rows of three splits in turn, whose images have the same bytes."""
    rng = np.random.default_rng(0)
    lines = ["image,split," + ",".join(f"t{at}" for at in range(tasks))]
    for row in range(rows):
        part = ("train", "val", "test")[row % 3]
        cells = rng.choice(["0", "1", "?"], tasks)
        (folder / f"{row}.png").write_bytes(b"the same bytes in each")
        lines.append(f"{row}.png,{part}," + ",".join(cells))
    (folder / "labels.csv").write_text("\n".join(lines))
    return kt.Manifest.from_csv(folder / "labels.csv")


def scene(number):
    """A blurred image like no other."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), "uint8")
    return Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC)


# ------------------------------------------------------------------ images


def test_it_shows_rows_and_coverage(labels_csv):
    result = run(labels_csv)
    assert result.exit_code == 0, result.output
    assert "8 rows" in result.output and "0 of 8 images" in result.output
    assert re.search(r"bright\D+7\D+4\D+3\D+88%", result.output)
    labels_csv.write_text(labels_csv.read_text().replace("bright", "a[b]"))
    assert "a[b]" in run(labels_csv).output  # not markup
    capitals = labels_csv.rename(labels_csv.with_name("L.CSV"))
    assert run(capitals).exit_code == 0


def test_all_broken_images_are_listed_at_once(labels_csv):
    folder = labels_csv.parent
    whole = (folder / "0.jpg").read_bytes()
    (folder / "0.jpg").unlink()
    (folder / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "2.jpg").write_bytes(b"")
    (folder / "3.jpg").write_text("not an image")
    result = run(labels_csv)
    assert result.exit_code == 1
    for number in range(4):
        assert f"line {number + 2}: {number}.jpg: " in result.output
    assert "4 of 8 images cannot be used" in result.output
    assert [fault["line"] for fault in as_json(labels_csv)["faults"]] == [2, 3, 4, 5]


def test_a_task_with_one_class_is_named(labels_csv):
    labels_csv.write_text(re.sub(r",0$", ",1", labels_csv.read_text(), flags=re.M))
    result = run(labels_csv)
    assert result.exit_code == 1
    assert "Task odd: " in result.output


def test_it_says_why_labels_are_missing_and_what_to_do(labels_csv):
    labels_csv.write_text(labels_csv.read_text().replace(",0,", ",?,"))
    said = run(labels_csv).output
    assert "positives only" in said and "Rows with both labels" in said
    assert "the head alone" in said


def test_json_has_the_audit_and_the_leaks(labels_csv):
    folder = labels_csv.parent
    (folder / "copy.jpg").write_bytes((folder / "0.jpg").read_bytes())
    text = labels_csv.read_text().replace("image,", "split,image,")
    rows = [f"train,{row}" if at else row for at, row in enumerate(text.splitlines())]
    rows[5:8] = [row.replace("train", "val") for row in rows[5:8]]
    labels_csv.write_text("\n".join([*rows, "test,copy.jpg,0,0"]))
    found = as_json(labels_csv)
    assert found["rows"] == 9
    assert found["tasks"]["bright"] == {
        "kind": "binary", "known": 8, "positive": 4, "negative": 4, "share": 8 / 9
    }  # fmt: skip
    assert found["audit"]["co_known"]["bright"] == {"bright": 8, "odd": 8}
    assert found["audit"]["tasks"]["odd"]["policy"] == "ignore"
    assert [leak["kind"] for leak in found["leaks"]] == ["same bytes"]
    said = run(labels_csv).output.replace("\n", " ")
    assert "Warning: same bytes: train, line 2: 0.jpg and test, line 10: copy.jpg" in said
    assert as_json(labels_csv, "--no-leaks")["leaks"] is None


def test_too_few_rows_to_split(labels_csv):
    rows = labels_csv.read_text().splitlines()
    labels_csv.write_text("\n".join(rows[at] for at in (0, 1, 6)))
    assert "Leaks were not looked for: " in run(labels_csv).output


def test_other_kinds_of_tasks_in_a_project(tmp_path, labels_csv):
    rows = [f"{i}.jpg,{i % 2},{'abc'[i % 3]},{i}" for i in range(8)]
    mixed = labels_csv.with_name("mixed.csv")
    mixed.write_text("image,x,grade,size\n" + "\n".join(rows))
    (tmp_path / "project.toml").write_text(
        f'name = "p"\n[data]\nlabels = "{mixed}"\ntasks = ["x", {{name = "grade", '
        'kind = "multiclass"}, {name = "size", kind = "regression"}]\n'
    )
    result = run("--project", tmp_path, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "a 3, b 3, c 2" in result.output and "mean 3.5, std 2.29" in result.output
    found = as_json("--project", tmp_path)["tasks"]
    assert found["grade"]["classes"] == {"a": 3, "b": 3, "c": 2}
    assert found["grade"]["positive"] is None and found["size"]["std"] == pytest.approx(2.291, 1e-3)


@pytest.mark.parametrize(
    "words, named",
    [
        (["--table"], "--table must be given with LABELS"),
        (["--task", "a", "--split-column", "s"], "--task, --split-column must be given"),
        (["x.csv", "--ignore", "y"], "--ignore must be left out: x.csv is read as images"),
        (["x.npz", "--image-column", "y"], "--image-column must be left out"),
        (["x.csv", "--table", "--allow-outside"], "--allow-outside must be left out"),
    ],
)
def test_options_that_nothing_would_read_are_refused(tmp_path, words, named):
    result = run(*words, "--project", tmp_path)
    assert result.exit_code == 1
    assert named in " ".join(result.output.split())


# ------------------------------------------------------------------ what the text shows


def test_the_text_lists_the_first_and_the_dictionary_all(tmp_path):
    found = Check(many(tmp_path, 30, 120), quiet=True)
    text = found.text()
    assert text.count("Warning: same bytes") == 20
    assert "… and 60 more" in text and "80 leaks between" in text
    assert len(found.to_dict()["leaks"]) == 80
    assert "and 18 more:" in text  # tasks of one policy and reason
    assert "120 of 120 images cannot be used." in text
    assert "Rows with both labels" not in text
    assert len(found.to_dict()["audit"]["co_known"]) == 30
    (remedy,) = found.to_dict()["remedies"]
    assert text.count(remedy) == 1 and "split column" in remedy and "group_column" not in remedy


def test_the_text_says_what_the_columns_were_taken_for(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        ",heat,leak,note,later\n" + "".join(f"{n},{n},{n % 2},x,?\n" for n in range(20))
    )
    with pytest.warns(UserWarning, match="left out"):
        table = kt.Manifest.from_csv(path, ["leak"], kt.data.Table(ignore=["note"]))
    found = Check(table, quiet=True)
    assert "tasks: leak; features: heat; ignored: (no name), note, later" in found.text()
    assert list(found.to_dict()["input"]["features"]) == ["heat"]
    assert found.to_dict()["ignored"] == ["", "note", "later"]
    assert columns_text(many(tmp_path, 2)).startswith("tasks: t0, t1")
    # Of a table nothing is said of backbones, and without leaks there is no remedy.
    assert found.to_dict()["training"] is None
    assert not any(word in found.text() for word in ("backbone", "head", "layers"))
    assert found.to_dict()["remedies"] == [] and "0 leaks" in found.text()


@pytest.mark.parametrize("columns", ["image,a", "image,a,split"])
def test_near_duplicates_name_the_group_column(tmp_path, columns):
    split = "split" in columns
    lines = [columns]
    for at in range(20):
        scene(at // 2).resize((160 + 20 * (at % 2), 120)).save(tmp_path / f"{at}.png")
        lines.append(f"{at}.png,{at // 2 % 2}" + f",{('train', 'test')[at % 2]}" * split)
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = Check(kt.Manifest.from_csv(tmp_path / "labels.csv"), quiet=True)
    assert set(found.leaks.kind) == {"near-duplicate"}
    remedies = found.to_dict()["remedies"]
    assert len(remedies) == 1 + split
    assert "group_column" in remedies[-1] and "--group-column" in remedies[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_names_of_tasks_are_folded_between_their_words(tmp_path, monkeypatch, terminal):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("rich.console.Console.is_terminal", terminal)
    names = ["construction_site_in_view", "temporary_traffic_light"]
    lines = [f"{at}.png,{at % 2},{at % 3 % 2}" for at in range(9)]
    text = "\n".join([",".join(["image", *names]), *lines, "9.png,?,?"])
    (tmp_path / "labels.csv").write_text(text)
    manifest = kt.Manifest.from_csv(tmp_path / "labels.csv")
    text = Check(manifest, leaks=False, quiet=True).text()
    rows = [line for line in text.splitlines() if "│" in line or "┃" in line]
    words = {cell.strip() for line in rows for cell in line.replace("┃", "│").split("│")}
    pieces = [piece for word in words for piece in word.replace("_", " ").split()]
    assert set(pieces) >= {*"construction site in view temporary traffic light".split()}
    assert terminal or set(names) <= words
