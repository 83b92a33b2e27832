"""What `kerasmtl check` shows of long lists."""

import numpy as np
import pytest
from tables import load_table, table_of
from test_leaks import scene

from kerasmtl.cli.check import check
from kerasmtl.data.manifest import Manifest
from kerasmtl.training.depth import LITTLE, advice
from kerasmtl.utils.text import columns_text


def manifest(folder, tasks, rows=60):
    rng = np.random.default_rng(0)
    lines = ["image,split," + ",".join(f"t{at}" for at in range(tasks))]
    for row in range(rows):
        part = ("train", "val", "test")[row % 3]
        cells = rng.choice(["0", "1", "?"], tasks)
        (folder / f"{row}.png").write_bytes(b"the same bytes in each")
        lines.append(f"{row}.png,{part}," + ",".join(cells))
    (folder / "labels.csv").write_text("\n".join(lines))
    return Manifest.from_csv(folder / "labels.csv")


def test_the_text_lists_the_first_and_the_dictionary_all(tmp_path):
    found = check(manifest(tmp_path, 30, 120), quiet=True)
    text = found.text()
    assert text.count("Warning: same bytes") == 20
    assert "… and 60 more" in text and "80 leaks between" in text
    assert len(found.to_dict()["leaks"]) == 80
    assert "and 18 more:" in text  # tasks of one policy and reason
    assert "120 of 120 images cannot be used." in text
    assert "Rows with both labels" not in text
    assert len(found.to_dict()["audit"]["co_known"]) == 30


def test_few_tasks_have_their_matrix_unless_nothing_is_missing(tmp_path):
    found = check(manifest(tmp_path, 3), leaks=False, quiet=True)
    assert "Rows with both labels" in found.text() and "leaks" not in found.text()
    rows = manifest(tmp_path, 1).take(range(5))
    whole = rows.take(np.flatnonzero(~np.isnan(rows.labels[:, 0])))
    assert "Rows with both labels" not in check(whole, leaks=False, quiet=True).text()


def test_the_text_says_what_the_columns_were_taken_for(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        ",heat,leak,note,later\n" + "".join(f"{n},{n},{n % 2},x,?\n" for n in range(20))
    )
    with pytest.warns(UserWarning, match="left out"):
        table = load_table(path, tasks=["leak"], ignore=["note"])
    found = check(table, quiet=True)
    assert "tasks: leak; features: heat; ignored: (no name), note, later" in found.text()
    assert found.to_dict()["input"]["features"] == ["heat"]
    assert found.to_dict()["ignored"] == ["", "note", "later"]
    assert columns_text(manifest(tmp_path, 2)) == "tasks: t0, t1; column: image"


def test_leaks_of_the_files_own_split_name_its_column(tmp_path):
    found = check(manifest(tmp_path, 2), quiet=True)
    (remedy,) = found.to_dict()["remedies"]
    assert found.text().count(remedy) == 1
    assert "same part in the split column" in remedy
    assert "group_column" not in remedy


@pytest.mark.parametrize("columns", ["image,a", "image,a,split"])
def test_near_duplicates_name_the_group_column(tmp_path, columns):
    lines = [columns]
    for at in range(20):
        scene(at // 2).resize((160 + 20 * (at % 2), 120)).save(tmp_path / f"{at}.png")
        lines.append(
            f"{at}.png,{at // 2 % 2}" + f",{('train', 'test')[at % 2]}" * ("split" in columns)
        )
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = check(Manifest.from_csv(tmp_path / "labels.csv"), quiet=True)
    assert set(found.leaks.kind) == {"near-duplicate"}
    remedies = found.to_dict()["remedies"]
    assert ["split column" in remedy for remedy in remedies] == [True] * ("split" in columns) + [
        False
    ]
    assert "group_column" in remedies[-1] and "--group-column" in remedies[-1]


def test_without_leaks_there_is_no_remedy(tmp_path):
    rows = "".join(f"{at},{at % 2}\n" for at in range(20))
    (tmp_path / "t.csv").write_text("x,a\n" + rows * 2)
    found = check(load_table(tmp_path / "t.csv", tasks=["a"]), quiet=True)
    assert found.to_dict()["remedies"] == [] and "0 leaks" in found.text()


def test_how_much_to_train_goes_by_the_labels_of_the_train_part(tmp_path):
    rows = manifest(tmp_path, 1, 360)  # a third of them each for train, val and test
    assert LITTLE < rows.coverage().known["t0"] < 3 * LITTLE
    found = check(rows, quiet=True)
    part = int((~np.isnan(rows.split()[0].labels)).sum())
    assert found.to_dict()["training"] == advice([part]) and part < LITTLE
    assert "the head alone" in found.text()
    assert check(rows.take(range(2)), quiet=True).to_dict()["training"] is None


def test_of_a_table_nothing_is_said_of_backbones(tmp_path):
    features = np.random.default_rng(0).normal(size=(3_000, 4))
    found = check(table_of(features, features[:, :1] > 0, ["a"]), quiet=True)
    assert found.to_dict()["training"] is None
    assert not any(word in found.text() for word in ("backbone", "head", "layers"))


@pytest.mark.parametrize("terminal", [True, False])
def test_names_of_tasks_are_not_cut_in_their_words(tmp_path, monkeypatch, terminal):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("rich.console.Console.is_terminal", terminal)
    names = ["construction_site_in_view", "temporary_traffic_light"]
    lines = [f"{at}.png,{at % 2},{at % 3 % 2}" for at in range(9)]
    (tmp_path / "labels.csv").write_text(
        "\n".join([",".join(["image", *names]), *lines, "9.png,?,?"])
    )
    text = check(Manifest.from_csv(tmp_path / "labels.csv"), leaks=False, quiet=True).text()
    rows = [line for line in text.splitlines() if "│" in line or "┃" in line]
    words = {cell.strip() for line in rows for cell in line.replace("┃", "│").split("│")}
    pieces = [piece for word in words for piece in word.replace("_", " ").split()]
    assert set(pieces) >= {*"construction site in view temporary traffic light".split()}
    assert terminal or set(names) <= words
