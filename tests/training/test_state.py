"""A run that was interrupted goes on, and ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from modules import HELPERS
from pictures import write_picture_folder

import kerasmtl as kt
from kerasmtl.training.callbacks import Checkpoint
from kerasmtl.training.fine_tune import fine_tune
from kerasmtl.training.plans import Stage
from kerasmtl.training.resume import Snapshots, reset_run

SIZE = 10
PLAN = [Stage("head", 2, 1e-2), Stage("all", 2, 1e-2, warmup=1.0, schedule="cosine")]
STEPS = 3  # of an epoch
EAGER = True  # half the time for runs this short; the slow test runs in graphs


@pytest.fixture(scope="module", autouse=True)
def features_elsewhere(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFHUB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def model_of(tasks, seed=0, width=3, **options):
    """A model as a script would build it anew."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(width, 3, name="conv")(image)
    model = kt.build_model(keras.Model(image, x), tasks, SIZE, hidden=[4], dropout=0.3)
    balancer = kt.losses.UncertaintyWeighting(len(tasks))
    model.compile(
        options.get("optimizer") or keras.optimizers.Adam(1e-2),
        options.get("loss") or kt.losses.MaskedBinaryCrossentropy(balancer=balancer),
        metrics=[kt.metrics.MaskedAUC(num_bins=16)],
        run_eagerly=EAGER,
        jit_compile=False,
    )
    return model


def train(folder, directory, callbacks=(), plan=PLAN, batch=4, seed=0, model=None, **options):
    """One call of a training script: everything is built anew."""
    manifest = kt.Manifest.from_csv(folder / "labels.csv")
    model = model or model_of(manifest.tasks)
    training = kt.make_dataset(manifest, SIZE, batch, training=True, seed=seed)
    validation = kt.make_dataset(manifest, SIZE, batch)
    options = {"cache": False, "verbose": 0, **options}
    history = fine_tune(
        model, training, validation, plan, callbacks, directory=directory, **options
    )
    return model, history


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C after that many batches."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def interrupted(folder, directory, batches, **options):
    with pytest.raises(KeyboardInterrupt):
        train(folder, directory, callbacks=[Interrupt(batches)], **options)


def assert_same(one, other):
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    slots = [model.optimizer.variables for model in (one, other)]
    for a, b in zip(*slots, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    weights = [model.loss.balancer.weights() for model in (one, other)]
    np.testing.assert_array_equal(*weights)


@pytest.fixture(scope="module")
def whole(shared_pictures, tmp_path_factory):
    """The run that nothing interrupts: its folder, model and history."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, *train(shared_pictures, directory)


@pytest.fixture(scope="module")
def begun(shared_pictures, tmp_path_factory):
    """The folder of a run with one finished epoch, which refusals leave as it is."""
    directory = tmp_path_factory.mktemp("begun")
    interrupted(shared_pictures, directory, STEPS + 1)
    return directory


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("batches", [1, 2 * STEPS + 1, 4 * STEPS])
def test_an_interrupted_run_ends_bit_for_bit_as_the_whole_one(
    shared_pictures, whole, tmp_path, batches
):
    interrupted(shared_pictures, tmp_path, batches)
    model, history = train(shared_pictures, tmp_path)
    assert_same(model, whole[1])
    assert history.history == whole[2].history and history.epoch == whole[2].epoch


def test_a_run_may_be_interrupted_again_and_again(shared_pictures, whole, tmp_path):
    for batches in (STEPS + 1, STEPS + 2):
        interrupted(shared_pictures, tmp_path, batches)
    model, history = train(shared_pictures, tmp_path)
    assert_same(model, whole[1])
    assert history.epoch == [0, 1, 2, 3]


def test_a_head_on_features_goes_on_too(shared_pictures, tmp_path):
    plan = [Stage("head", 4, 1e-2)]
    kept, history = train(shared_pictures, tmp_path / "whole", plan=plan, cache=True)
    interrupted(shared_pictures, tmp_path / "part", 2 * STEPS + 1, plan=plan, cache=True)
    model, after = train(shared_pictures, tmp_path / "part", plan=plan, cache=True)
    assert_same(model, kept)
    assert after.history == history.history


def test_the_average_and_the_best_of_a_checkpoint_go_on(shared_pictures, tmp_path):
    models, bests = [], []
    for name, batches in (("whole", 0), ("part", 2 * STEPS + 1)):
        directory, file = tmp_path / name, tmp_path / f"{name}.keras"
        options = {"ema": 0.9}
        if batches:
            callbacks = [Checkpoint(file, "val_auc"), Interrupt(batches)]
            with pytest.raises(KeyboardInterrupt):
                train(shared_pictures, directory, callbacks, **options)
        checkpoint = Checkpoint(file, "val_auc")
        models.append(train(shared_pictures, directory, [checkpoint], **options)[0])
        bests.append(checkpoint.best)
    assert_same(*models)
    assert bests[0] == bests[1] is not None


def test_a_run_in_the_same_session_goes_on_with_the_same_model(shared_pictures, whole, tmp_path):
    manifest = kt.Manifest.from_csv(shared_pictures / "labels.csv")
    model = model_of(manifest.tasks)
    interrupted(shared_pictures, tmp_path, 3 * STEPS + 1, model=model)
    again, history = train(shared_pictures, tmp_path, model=model)
    assert_same(again, whole[1])
    assert history.epoch == [0, 1, 2, 3]


def test_a_finished_run_returns_at_once(shared_pictures, whole):
    directory, model, history = whole

    class Never(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise AssertionError("trained again")

    tasks = kt.Manifest.from_csv(shared_pictures / "labels.csv").tasks
    another = model_of(tasks)
    another.layers[-1].kernel.assign(another.layers[-1].kernel + 1.0)  # by chance, a head differs
    another, after = train(shared_pictures, directory, [Never()], model=another)
    assert after.history == history.history and after.epoch == history.epoch
    for a, b in zip(another.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_patience_is_not_forgotten(shared_pictures, tmp_path):
    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_auc"] = [0.5, 0.9, 0.8, 0.7, 0.6, 0.5][epoch]

    plan = [Stage("head", 6, 1e-2, patience=2)]
    with pytest.raises(KeyboardInterrupt):
        train(shared_pictures, tmp_path, [Score(), Interrupt(3 * STEPS + 1)], plan=plan)
    _, history = train(shared_pictures, tmp_path, [Score()], plan=plan)
    assert history.epoch == [0, 1, 2, 3]


# ---------------------------------------------------------------- what is written


def test_the_folder_holds_one_state_and_frozen_weights_once(shared_pictures, tmp_path):
    sizes = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            for file in tmp_path.glob("weights-*.npz"):
                with np.load(file) as arrays:
                    sizes.append((epoch, file.name, len(arrays.files)))

    model, _ = train(shared_pictures, tmp_path, [Look()])
    of_head = [count for epoch, _, count in sizes if epoch <= 2]
    # Two layers of two weights, and the seed of the dropout between them.
    assert of_head and set(of_head) == {5}
    assert [count for epoch, name, count in sizes if name.endswith("000003.npz")] == [7]
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert {"settings.json", "base.npz", "state.npz"} < set(kept)
    assert len(kept) in (4, 5)  # with the best epoch's weights, where it was not the last


@pytest.mark.parametrize("name", ["state.npz", "weights-000002.npz", "base.npz"])
def test_a_full_disk_leaves_the_state_before(shared_pictures, whole, tmp_path, monkeypatch, name):
    from kerasmtl.training import resume as state

    save = state.RunFolder._write

    def full(self, file, arrays):
        if file == name and (name != "state.npz" or (tmp_path / file).exists()):
            raise OSError(28, "No space left on device")
        save(self, file, arrays)

    monkeypatch.setattr(state.RunFolder, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        train(shared_pictures, tmp_path)
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    model, history = train(shared_pictures, tmp_path)
    assert_same(model, whole[1])


def test_a_damaged_state_is_named(shared_pictures, tmp_path):
    interrupted(shared_pictures, tmp_path, STEPS + 1)
    (tmp_path / "state.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="has no sound 'state.npz'.*another directory"):
        train(shared_pictures, tmp_path)


@pytest.mark.parametrize(
    "name, damage",
    [
        ("settings.json", None),
        ("settings.json", b"{"),
        ("settings.json", b"[]"),
        ("base.npz", None),
        ("weights-000001.npz", None),
        ("state.npz", "empty"),
    ],
)
def test_a_state_that_is_not_whole_is_named_with_the_folder_to_remove(
    shared_pictures, begun, tmp_path, name, damage
):
    directory = tmp_path / "run"
    shutil.copytree(begun, directory)
    if damage is None:
        (directory / name).unlink()
    elif damage == "empty":
        np.savez(directory / name)
    else:
        (directory / name).write_bytes(damage)
    message = rf"has no sound '{name}'.*kt.plans.reset_run\('{directory}'\)"
    with pytest.raises(ValueError, match=message):
        train(shared_pictures, directory)
    reset_run(directory)
    assert not directory.exists()


def test_without_its_state_a_run_starts_anew(shared_pictures, begun, tmp_path, whole):
    directory = tmp_path / "run"
    shutil.copytree(begun, directory)
    (directory / "state.npz").unlink()
    model, history = train(shared_pictures, directory)
    assert history.epoch == [0, 1, 2, 3]
    assert_same(model, whole[1])


def test_forgetting_takes_the_state_first_and_leaves_other_files(begun, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    shutil.copytree(begun, directory)
    (directory / "notes.txt").write_text("mine")
    gone, unlink = [], Path.unlink

    def seen(self, missing_ok=False):
        gone.append(self.name)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", seen)
    reset_run(directory)
    assert gone[0] == "state.npz"
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]
    reset_run(directory)
    reset_run(tmp_path / "never")


def test_settings_of_something_else_are_neither_removed_nor_overwritten(shared_pictures, tmp_path):
    (tmp_path / "settings.json").write_text('{"editor": 1}')
    reset_run(tmp_path)
    with pytest.raises(ValueError, match="holds another settings.json"):
        train(shared_pictures, tmp_path)
    assert (tmp_path / "settings.json").read_text() == '{"editor": 1}'


def test_a_folder_has_one_run_at_a_time(shared_pictures, tmp_path):
    refused = []

    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            before = sorted(path.name for path in tmp_path.iterdir())
            for call in (lambda: train(shared_pictures, tmp_path), lambda: reset_run(tmp_path)):
                with pytest.raises(
                    ValueError, match="is in use: another run is under way"
                ) as error:
                    call()
                refused.append(error)
            assert sorted(path.name for path in tmp_path.iterdir()) == before

    train(shared_pictures, tmp_path, [Second()], plan=[Stage("head", 1, 1e-2)])
    assert len(refused) == 2
    train(shared_pictures, tmp_path, plan=[Stage("head", 1, 1e-2)])
    reset_run(tmp_path)


def test_a_file_is_no_directory(shared_pictures, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="`directory` is a file"):
        train(shared_pictures, tmp_path / "run")


def test_changes_tell_minus_zero_and_nan():
    variable = keras.Variable(np.array([0.0, np.nan], "float32"))
    snapshots = Snapshots([variable])
    assert snapshots.changes() == {}
    variable.assign(np.array([-0.0, np.nan], "float32"))
    assert list(snapshots.changes()) == [0]
    snapshots.restore({})
    assert not np.signbit(variable.numpy()[0])


# ---------------------------------------------------------------- refusals


TASKS = ["cat", "dog", "bird"]


@pytest.mark.parametrize(
    "options, changed",
    [
        ({"plan": PLAN[:1]}, r"Changed: plan \(was 2 stages, is 1 stage\)"),
        (
            {
                "plan": [
                    Stage("head", 3, 1e-2),
                    Stage("all", 2, 1e-3, warmup=1.0, schedule="cosine"),
                ]
            },
            r"Changed: plan, stage 1: epochs \(was 2, is 3\); plan, stage 2: learning_rate "
            r"\(was 0.01, is 0.001\)\.",
        ),
        ({"batch": 5}, r"Changed: train: batch_size \(was 4, is 5\); validation: batch_size"),
        ({"seed": 1}, r"Changed: train: seed \(was 0, is 1\)\."),
        ({"monitor": "val_loss"}, "Changed: monitor"),
        ({"ema": 0.9}, r"Changed: ema \(was None, is 0.9\)"),
        ({"cache": "auto"}, r"Changed: cache \(was False, is 'auto'\)"),
        ({"optimizer": keras.optimizers.SGD}, r"Changed: optimizer \(was 'Adam', is 'SGD'\)"),
        (
            {"optimizer": lambda rate: keras.optimizers.Adam(rate, beta_1=0.5)},
            r"Changed: optimizer beta_1 \(was 0.9, is 0.5\)\.",
        ),
        ({"loss": "plain"}, "Changed: loss balancer"),
        ({"width": 4}, "Changed: model"),
        ({"seed_of_weights": 1}, "another backbone: 'conv/kernel' has other weights"),
    ],
)
def test_other_settings_are_refused_by_name(shared_pictures, begun, options, changed):
    state = (begun / "state.npz").read_bytes()
    own = {
        "width": options.get("width", 3),
        "seed": options.get("seed_of_weights", 0),
        "optimizer": options["optimizer"](0.1) if "optimizer" in options else None,
        "loss": kt.losses.MaskedBinaryCrossentropy() if "loss" in options else None,
    }
    of_model = ("width", "seed_of_weights", "optimizer", "loss")
    options = {k: v for k, v in options.items() if k not in of_model}
    with pytest.raises(ValueError, match=rf"{changed}.*kt.plans.reset_run\('{begun}'\)"):
        train(shared_pictures, begun, model=model_of(TASKS, **own), **options)
    assert (begun / "state.npz").read_bytes() == state


@pytest.mark.parametrize(
    "change, names",
    [
        ("pixel", "train: content; validation: content"),
        ("label", "train: labels; validation: labels"),
        ("row", "train: content; train: labels; train: rows"),
    ],
)
def test_other_data_is_refused_by_name(picture_folder, tmp_path, change, names):
    directory = tmp_path / "run"
    interrupted(picture_folder, directory, STEPS + 1)
    table = picture_folder / "labels.csv"
    if change == "pixel":
        from PIL import Image

        with Image.open(picture_folder / "03.png") as picture:
            pixels = np.array(picture)
        pixels[0, 0, 0] ^= 1
        Image.fromarray(pixels).save(picture_folder / "03.png")
    elif change == "label":
        table.write_text(table.read_text().replace("01.png,0,1,", "01.png,1,1,"))
    else:
        table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=f"Changed: {names}"):
        train(picture_folder, directory)


# ---------------------------------------------------------------- kill -9: a stage on features
# that are kept and one on images; benchmarks/resume.py does it oftener.

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
import test_state as program
from kerasmtl.training.plans import Stage
program.EAGER = False
plan = [Stage("head", 6, 1e-2), Stage("all", 6, 1e-2, warmup=1.0, schedule="cosine")]
print("ready", flush=True)
model, history = program.train(Path("pictures"), "run", plan=plan, cache=True)
np.savez("weights.npz", *model.get_weights())
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_for_bit_as_the_whole_run(tmp_path):
    code = textwrap.dedent(PROGRAM.format(tests=str(HELPERS)))
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        (folder / "pictures").mkdir(parents=True)
        write_picture_folder(folder / "pictures")

    def start(folder):
        environment = {**os.environ, "TFHUB_CACHE_DIR": str(folder / "cache")}
        running = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert running.stdout.readline() == "ready\n"
        return running, time.monotonic()

    running, began = start(folders[0])
    assert running.wait() == 0
    longest = time.monotonic() - began
    choice, killed = random.Random(0), 0
    while killed < 3:
        running, _ = start(folders[1])
        try:
            assert running.wait(choice.uniform(0.0, longest)) == 0
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            killed += running.wait() == -signal.SIGKILL
        else:  # ended before it was to be killed: anew, and killed sooner
            (folders[1] / "weights.npz").unlink()
            shutil.rmtree(folders[1] / "run")
            longest /= 2
    running, _ = start(folders[1])
    assert running.wait() == 0
    with np.load(folders[0] / "weights.npz") as one, np.load(folders[1] / "weights.npz") as other:
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


def test_settings_are_readable(begun):
    settings = json.loads((begun / "settings.json").read_text())
    assert settings["plan"][0]["train"] == "head"
    assert settings["train: rows"] == 12 and settings["train: batch_size"] == 4
