"""A run that was interrupted is resumed, and ends as if nothing had happened."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from image_folder import write_image_folder
from modules import HELPERS

import kerasmtl as kt
from kerasmtl.training import plans

Stage, reset_run = kt.plans.Stage, kt.plans.reset_run

TASKS = ["cat", "dog", "bird"]
RNG = np.random.default_rng(0)
LABELS = RNG.choice([0.0, 1.0, np.nan], (12, 3))
LABELS[:2] = [[0, 1, 0], [1, 0, 1]]
ROWS = kt.Manifest.from_arrays(RNG.normal(size=(12, 4)), LABELS, TASKS, kt.data.Table())
PLAN = [Stage("head", 2, 1e-2), Stage("all", 2, 1e-2, warmup=1.0, schedule="cosine")]
STEPS = 3  # of an epoch
EAGER = True  # half the time for runs this short; the slow test runs in graphs


def model_of(seed=0, width=3, shape=(4,), **options):
    """A model as a script would build it again."""
    keras.utils.set_random_seed(seed)
    given = keras.Input(shape)
    x = keras.layers.Dense(width, name="deep")(given)
    model = kt.build_model(keras.Model(given, x), TASKS, hidden=[4], dropout=0.3)
    balancer = kt.losses.UncertaintyWeighting(len(TASKS))
    model.compile(
        options.get("optimizer") or keras.optimizers.Adam(1e-2),
        options.get("loss") or kt.losses.MaskedBinaryCrossentropy(balancer=balancer),
        metrics=[kt.metrics.MaskedAUC(num_bins=16)],
        run_eagerly=EAGER,
        jit_compile=False,
    )
    return model


def train(directory, callbacks=(), plan=PLAN, rows=ROWS, batch=4, seed=0, model=None, **options):
    """One call of a training script: everything is built again."""
    size = options.pop("size", None)
    model = model or model_of(shape=(size, size, 3) if size else (4,))
    training = kt.make_dataset(rows, size, batch, training=True, seed=seed)
    validation = kt.make_dataset(rows, size, batch)
    options = {"cache": False, "verbose": 0, **options}
    history = kt.fine_tune(
        model, training, validation, plan, callbacks, directory=directory, **options
    )
    return model, history


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C after that many batches, or epochs."""

    def __init__(self, batches=0, epochs=0):
        super().__init__()
        self.batches, self.epochs = batches, epochs

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        if self.batches == 0:
            raise KeyboardInterrupt

    def on_epoch_begin(self, epoch, logs=None):
        if epoch and epoch == self.epochs:
            raise KeyboardInterrupt


def interrupted(directory, batches=0, callbacks=(), epochs=0, **options):
    with pytest.raises(KeyboardInterrupt):
        train(directory, [*callbacks, Interrupt(batches, epochs)], **options)


def assert_same(one, other):
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    slots = [model.optimizer.variables for model in (one, other)]
    for a, b in zip(*slots, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    weights = [model.loss.balancer.weights() for model in (one, other)]
    np.testing.assert_array_equal(*weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts: its folder, model and history."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, *train(directory)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run with one finished epoch, which refusals leave as it is."""
    directory = tmp_path_factory.mktemp("begun")
    interrupted(directory, STEPS + 1)
    return directory


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("batches", [(2 * STEPS + 1,), (STEPS + 1, STEPS + 2)], ids=str)
def test_an_interrupted_run_ends_bit_for_bit_as_the_whole_one(whole, tmp_path, batches):
    for count in batches:
        interrupted(tmp_path, count)
    model, history = train(tmp_path)
    assert_same(model, whole[1])
    assert history.history == whole[2].history and history.epoch == [0, 1, 2, 3]


def test_it_says_that_it_resumes(begun, tmp_path, capsys):
    directory = shutil.copytree(begun, tmp_path / "run")
    _, history = train(directory, verbose=2)
    said = capsys.readouterr().out
    assert f"Resuming after epoch 1 of 4, kept in {directory}." in said
    assert said.count("Epoch ") == 3 and history.epoch == [0, 1, 2, 3]


@pytest.mark.parametrize("way", ["by batch", "several batches a call", "under a strategy"])
def test_a_head_on_features_is_resumed(tmp_path, monkeypatch, way):
    options, scope = {"plan": [Stage("head", 4, 1e-2)], "cache": True}, nullcontext()
    if way == "several batches a call":
        monkeypatch.setattr(plans, "ENOUGH", STEPS)
        monkeypatch.setattr(sys.modules[__name__], "EAGER", False)
    if way == "under a strategy":  # which fetches batches ahead, on one device as well
        scope = tf.distribute.OneDeviceStrategy("CPU:0").scope()
    with scope:
        kept, history = train(tmp_path / "whole", **options)
        interrupted(tmp_path / "part", epochs=2, **options)
        model, after = train(tmp_path / "part", **options)
    assert_same(model, kept)
    assert after.history == history.history


def test_a_loss_that_is_nan_is_among_the_batches_of_a_call(tmp_path, monkeypatch):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                kernel = self.model.layers[-1].kernel
                kernel.assign(np.full(kernel.shape, np.nan, "float32"))

    monkeypatch.setattr(plans, "ENOUGH", STEPS)
    with pytest.raises(FloatingPointError, match=f"nan in epoch 2, batches 1 to {STEPS}[.]"):
        train(tmp_path, [Spoil()], plan=[Stage("head", 2, 1e-2)], cache=True)


def test_moving_averages_are_resumed(tmp_path):
    """Between two stages, of which each has averages of its own."""
    models, plan = [], [replace(stage, epochs=1) for stage in PLAN]
    for name, more in (("whole", {}), ("part", {"epochs": 1}), ("part", {})):
        model = model_of(optimizer=keras.optimizers.Adam(use_ema=True, ema_momentum=0.9))
        callbacks = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
        run = interrupted if more else train
        run(tmp_path / name, callbacks=callbacks, plan=plan, model=model, **more)
        models.append(model)
    assert_same(models[0], models[2])


def test_a_run_is_resumed_in_the_same_session_with_the_same_model(whole, tmp_path):
    model = model_of()
    interrupted(tmp_path, 3 * STEPS + 1, model=model)
    again, history = train(tmp_path, model=model)
    assert_same(again, whole[1])
    assert history.epoch == [0, 1, 2, 3]


def test_a_finished_run_returns_at_once(whole):
    class Never(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise AssertionError("trained again")

    directory, model, history = whole
    another = model_of(seed=1)
    another, after = train(directory, [Never()], model=another)
    assert after.history == history.history and after.epoch == history.epoch
    for a, b in zip(another.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_patience_is_not_forgotten(tmp_path):
    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_auc"] = [0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4][epoch]

    plan = [Stage("head", 6, 1e-2, patience=2), Stage("all", 1, 1e-3)]
    interrupted(tmp_path, callbacks=[Score()], epochs=3, plan=plan)
    interrupted(tmp_path, callbacks=[Score()], epochs=4, plan=plan)
    _, history = train(tmp_path, [Score()], plan=plan)
    assert history.epoch == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------- what is written


def test_a_full_disk_leaves_the_state_before(whole, tmp_path, monkeypatch):
    saved, save = [], np.savez

    def full(file, **arrays):
        saved.append(file)
        if len(saved) == 2:
            file.write(b"PK")
            raise OSError(28, "No space left on device")
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]
    monkeypatch.undo()
    assert_same(train(tmp_path)[0], whole[1])


@pytest.mark.parametrize("damage", [b"PK", b"", "empty"], ids=str)
def test_a_damaged_state_is_named_with_how_to_begin_again(begun, tmp_path, damage):
    directory = shutil.copytree(begun, tmp_path / "run")
    if damage == "empty":
        np.savez(directory / "state.npz")
    else:
        (directory / "state.npz").write_bytes(damage)
    with pytest.raises(ValueError, match=rf"`directory`.*kt.plans.reset_run\('{directory}'\)"):
        train(directory)
    reset_run(directory)
    assert not directory.exists()


def test_resetting_leaves_other_files(begun, tmp_path):
    directory = shutil.copytree(begun, tmp_path / "run")
    (directory / "notes.txt").write_text("mine")
    (directory / ".writing-x").mkdir()
    reset_run(directory)
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]
    reset_run(directory)
    reset_run(tmp_path / "never")


def test_a_folder_has_one_run_at_a_time(tmp_path):
    refused = []

    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for call in (lambda: train(tmp_path), lambda: reset_run(tmp_path)):
                with pytest.raises(ValueError, match="`directory`.*under way") as error:
                    call()
                refused.append(error)

    train(tmp_path, [Second()], plan=PLAN[:1])
    assert len(refused) == 4
    train(tmp_path, plan=PLAN[:1])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`directory`"):
        train(tmp_path / "file")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "options, changed",
    [
        ({"plan": PLAN[:1]}, "stage 2"),
        ({"plan": [Stage("head", 3, 1e-2), PLAN[1]]}, "stage 1"),
        ({"batch": 5}, r"train: batch_size \(was 4, is 5\); validation: batch_size"),
        ({"seed": 1}, r"train: seed \(was 0, is 1\)"),
        ({"monitor": "val_loss"}, r"monitor \(was None, is 'val_loss'\)"),
        ({"cache": "auto"}, r"cache \(was False, is 'auto'\)"),
        ({"optimizer": lambda: keras.optimizers.SGD(0.1)}, "optimizer"),
        ({"optimizer": lambda: keras.optimizers.Adam(0.1, beta_1=0.5)}, "optimizer"),
        ({"loss": kt.losses.MaskedBinaryCrossentropy}, "loss"),
        ({"width": 4}, "model"),
    ],
    ids=range(10),
)
def test_other_settings_are_refused_by_name(begun, options, changed):
    state = (begun / "state.npz").read_bytes()
    makers = {k: options[k]() for k in ("optimizer", "loss") if k in options}
    model = model_of(width=options.get("width", 3), **makers)
    options = {k: v for k, v in options.items() if k not in ("width", "optimizer", "loss")}
    with pytest.raises(ValueError, match=rf"Changed: {changed}.*kt.plans.reset_run\('{begun}'\)"):
        train(begun, model=model, **options)
    assert (begun / "state.npz").read_bytes() == state


@pytest.mark.parametrize(
    "change, names",
    [
        ("value", "train: content; validation: content"),
        ("label", "train: labels; validation: labels"),
        ("row", "train: content; train: labels; train: rows"),
    ],
)
def test_other_data_is_refused_by_name(begun, change, names):
    values, labels = ROWS.values.copy(), ROWS.labels.copy()
    if change == "value":
        values[3, 0] += 1e-3
    elif change == "label":
        labels[0, 0] = 1
    rows = replace(ROWS, values=values, labels=labels)
    with pytest.raises(ValueError, match=f"Changed: {names}"):
        train(begun, rows=rows.take(range(11)) if change == "row" else rows)


# ---------------------------------------------------------------- kill -9: a stage on features
# that are kept and one on images; benchmarks/resume.py does it more often.

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
import test_resume as program
program.EAGER = False
plan = [program.Stage("head", 6, 1e-2)]
plan += [program.Stage("all", 6, 1e-2, warmup=1.0, schedule="cosine")]
print("ready", flush=True)
rows = program.kt.Manifest.from_csv("images/labels.csv")
model, history = program.train("run", plan=plan, rows=rows, size=10, cache=True)
np.savez("weights.npz", *model.get_weights())
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_for_bit_as_the_whole_run(tmp_path):
    code = textwrap.dedent(PROGRAM.format(tests=str(HELPERS)))
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        (folder / "images").mkdir(parents=True)
        write_image_folder(folder / "images")

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
        else:  # ended before it was to be killed: again, and killed sooner
            (folders[1] / "weights.npz").unlink()
            shutil.rmtree(folders[1] / "run")
            longest /= 2
    running, _ = start(folders[1])
    assert running.wait() == 0
    with np.load(folders[0] / "weights.npz") as one, np.load(folders[1] / "weights.npz") as other:
        for name in one.files:
            assert one[name].tobytes() == other[name].tobytes()
