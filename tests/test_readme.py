"""The README's examples run as they are printed, one after the other."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
from loss_table import CASES
from test_balancing import BALANCERS

import kerasmtl as kt
from kerasmtl import losses
from kerasmtl.losses import balancing

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """The folder and the names that the examples leave behind, and what they print."""
    first, planned, by_hand, *migrations, labels = re.findall(
        r"```python\n(.*?)```", README, flags=re.S
    )
    assert len([line for line in first.splitlines() if line.strip()]) <= 22
    lines = [[line for line in code.splitlines() if line] for code in migrations]
    assert [len(code) for code in lines] == [5, 5]
    folder, names = tmp_path_factory.mktemp("readme"), {}
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("builtins.print", lambda *args, **kwargs: printed.append(str(args[0])))
        patch.setenv("TFHUB_CACHE_DIR", str(folder / "cache"))
        for code in (first, planned, by_hand, *migrations, labels):
            if '"exported"' in code:
                names["model"].export("exported", verbose=False)
            exec(compile(code, "README.md", "exec"), names)
    return folder, names, "\n".join(printed)


def test_the_library_example_trains_reports_and_exports(after):
    folder, _, printed = after
    assert "traffic_light" in printed and "saved_models/street/1" in printed
    assert (folder / "saved_models" / "street" / "1" / "saved_model.pb").is_file()


def test_the_plan_goes_on_and_a_stage_by_hand_trains_the_last_layers(after):
    folder, names, _ = after
    assert (folder / "state" / "state.npz").is_file()
    assert "val_auc" in names["history"].history


def test_the_migrated_models_train_with_adam_and_travel(after):
    folder, names, _ = after
    x = np.random.default_rng(0).random((4, 128, 128, 3), dtype="float32")
    y = np.array([[0, 1, np.nan, 0]] * 4, "float32")
    for name in ("model", "tuned"):
        model = names[name]
        layer = next(part for part in model.layers if isinstance(part, kt.HubLayer))
        before = [v.numpy().copy() for v in layer.trainable_variables]
        assert isinstance(model.optimizer, keras.optimizers.Adam)
        model.train_on_batch(x, y)
        after_step = [v.numpy() for v in layer.trainable_variables]
        assert before and all((a != b).any() for a, b in zip(before, after_step, strict=True))
    (folder / "exported").rename(folder / "moved")
    loaded = kt.load_model(folder / "tuned.keras", safe_mode=False)
    assert loaded.output_shape == (None, 4)


def test_the_labels_example_gives_a_loss_for_every_output(after):
    _, names, _ = after
    assert set(names["losses"]) == set(names["metrics"]) == {"binary", "weather", "speed"}


def test_the_names_of_the_tables_exist():
    tables = README[README.index("## Labels with holes") : README.index("## What is built in")]
    named = {n for n in re.findall(r"`([A-Z]\w+)`", tables) if n not in ("Table",)}
    assert len(named) > 25
    assert {n for n in named if not hasattr(kt, n)} == set()


def test_what_the_guarantee_leaves_out_is_what_the_tests_leave_out():
    guarantee = README[README.index("**The guarantee**") : README.index("## Your own data")]
    assert "drop_remainder=True" in guarantee
    assert [name for name, case in CASES.items() if case.by_batch] == ["epr-batch"]
    assert '`ExpectedPositives(level="batch")`' in guarantee
    makers = [case.make for case in CASES.values()]
    made = {type(make()).__name__ for make in makers}
    assert made == {n for n in losses.__all__ if n != "LargeLossSchedule"}
    assert {type(make()).__name__ for make in BALANCERS.values()} == {
        n for n in balancing.__all__ if n != "Balancer"
    }


def test_the_handles_of_the_table_are_understood():
    from kerasmtl.models.applications import parse_application
    from kerasmtl.models.hub.handles import is_remote
    from kerasmtl.models.keras_hub import is_preset

    table = README[README.index("| handle |") : README.index("`build_model` takes any")]
    handles = re.findall(
        r"`([^`]+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if row)
    )
    assert len(handles) >= 10
    for handle in handles:
        local = handle in ("tiny", "path/to/folder", "module.tar.gz")
        assert local or is_remote(handle) or is_preset(handle) or parse_application(handle), handle
