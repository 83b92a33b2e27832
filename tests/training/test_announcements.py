"""What `fine_tune` says while it trains."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training.fine_tune import as_verbose


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="backbone")
    return kt.build_model(inner, ["a", "b"])


def data(seed=0, count=16):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype("float32")
    y = (x[:, :2] > 0).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def test_stages_epochs_and_the_best_one_are_told_in_lines(model, capsys):
    plan = [kt.plans.Stage("head", 2, 0.1), kt.plans.Stage("all", 1, 0.01)]
    history = kt.fine_tune(model, data(), data(1), plan, cache=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Stage 1 of 2: the head (8 of 23 weights), up to 2 epochs")
    assert lines[3].startswith("Stage 2 of 2: everything (23 of 23 weights), up to 1 epoch,")
    epochs = [line for line in lines if line.startswith("Epoch")]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]
    told = [float(re.search(r" val_auc ([\d.]+)", line)[1]) for line in epochs]
    np.testing.assert_allclose(told, history.history["val_auc"], atol=1e-4)
    best = int(np.argmax(history.history["val_auc"])) + 1
    assert lines[-1].startswith(f"Best epoch: {best} of 3, val_auc ")
    assert len(lines) == 6


def test_why_a_stage_ends_early_is_told(model, capsys):
    plan = [kt.plans.Stage("head", 9, 1e-9, patience=1)]
    kt.fine_tune(model, data(), data(1), plan, monitor="val_loss", cache=False)
    said = capsys.readouterr().out
    ends = re.search(r"ends early, after epoch (\d): val_loss has not improved for 1 epoch\.", said)
    assert int(ends[1]) == said.count("Epoch ") < 9
    kt.fine_tune(
        model, data(), plan=[kt.plans.Stage("head", 9, 0.1)], callbacks=[Stop()], cache=False
    )
    assert "Stopped after epoch 1: a callback asked for it." in capsys.readouterr().out


def test_a_run_that_is_resumed_says_so(model, tmp_path, capsys):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    plan, options = (
        [kt.plans.Stage("head", 4, 0.1)],
        {"directory": tmp_path / "run", "cache": False},
    )
    with pytest.raises(KeyboardInterrupt):
        kt.fine_tune(model, data(), plan=plan, callbacks=[Interrupt()], **options)
    assert "Resuming" not in capsys.readouterr().out
    kt.fine_tune(model, data(), plan=plan, **options)
    said = capsys.readouterr().out
    assert f"Resuming after epoch 2 of 4, kept in {tmp_path / 'run'}." in said
    assert said.count("Epoch ") == 2


def test_silence_is_silent(model, capsys):
    kt.fine_tune(model, data(), data(1), [kt.plans.Stage("head", 1, 0.1)], verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("terminal, expected", [(True, 1), (False, 2)])
def test_a_bar_is_for_terminals(monkeypatch, terminal, expected):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert as_verbose("auto") == expected
    assert [as_verbose(value) for value in (0, 1, 2, True)] == [0, 1, 2, 1]
