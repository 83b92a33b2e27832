"""`BestEpoch`, `Checkpoint` and `TrainableGuard` with plain `fit`."""

import os
import signal

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.training.callbacks import default_monitor, direction

BestEpoch, Checkpoint = kt.callbacks.BestEpoch, kt.callbacks.Checkpoint
NAN = float("nan")


def network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, name="one"), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def fit(model, *callbacks, epochs=1):
    x, y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), shuffle=False, verbose=0)


class Scores(keras.callbacks.Callback):
    """Says what the validation is to have given, and keeps the weights of each epoch."""

    def __init__(self, scores, name="val_auc"):
        super().__init__()
        self.scores, self.name, self.weights = scores, name, []

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.scores[epoch]
        self.weights.append(self.model.get_weights())


# ---------------------------------------------------------------- the best epoch


@pytest.mark.parametrize(
    "scores, monitor, best",
    [
        ([0.5, 0.7, 0.6], None, 2),
        ([0.7, 0.5, 0.7], None, 1),  # the earlier of two equal ones
        ([NAN, 0.1, NAN], None, 2),
        ([NAN, NAN, NAN], None, None),
        ([0.5, 0.7, 0.4], ("val_auc", "min"), 3),
    ],
)
def test_the_model_ends_with_the_weights_of_the_best_epoch(scores, monitor, best, capsys):
    model, given, callback = network(), Scores(scores), BestEpoch(monitor)
    fit(model, given, callback, epochs=3)
    assert callback.best_epoch == best
    for one, other in zip(model.get_weights(), given.weights[(best or 3) - 1], strict=True):
        np.testing.assert_array_equal(one, other)
    said = f"Best epoch: {best} of 3, val_auc {scores[best - 1]:.4g}." if best else "last epoch, 3"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("name", ["val_r2", "val_loss"])
def test_a_negative_score_is_shown_with_its_sign(name, capsys):
    fit(network(), Scores([-0.4], name), BestEpoch(name))
    assert f"{name} -0.4. The" in capsys.readouterr().out


def test_it_waits_as_long_as_its_patience():
    assert (
        len(fit(network(), Scores([3, 2, 1, 4], "val_loss"), BestEpoch(patience=1), epochs=4).epoch)
        == 4
    )
    history = fit(network(), Scores([0.5, 0.4, 0.3, 0.9]), BestEpoch(patience=2), epochs=4)
    assert history.epoch == [0, 1, 2]
    with pytest.raises(ValueError, match="`patience`"):
        fit(network(), BestEpoch(patience=1))


def test_without_validation_data_the_last_epoch_stays(capsys):
    weights = []
    for callbacks in ([], [BestEpoch()]):
        model = network()
        fit(model, *callbacks, epochs=2)
        weights.append(model.get_weights()[0])
    np.testing.assert_array_equal(*weights)
    assert "weights of the last epoch, 2" in capsys.readouterr().out


def test_a_state_is_continued():
    model, callback = network(), BestEpoch()
    fit(model, Scores([0.5, 0.9]), callback, epochs=2)
    best = model.get_weights()
    other = BestEpoch()
    other.set_model(network())
    other.restore(callback.state())
    other.on_epoch_end(2, {"val_auc": 0.8})
    other.on_train_end()
    assert other.best_epoch == 2
    for one, two in zip(other.model.get_weights(), best, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "names, chosen",
    [
        (["loss", "auc", "val_loss", "val_binary_accuracy", "val_auc"], "val_auc"),
        (["val_loss", "val_grade_loss", "val_binary_auc"], "val_binary_auc"),
        (["val_loss", "val_mine", "val_mae"], "val_mae"),
        (["val_loss", "val_mine"], "val_loss"),
        (["loss", "auc"], None),
    ],
)
def test_the_monitor_by_default(names, chosen):
    assert default_monitor(dict.fromkeys(names, 0.5)) == chosen


def test_directions_of_metrics():
    assert direction("val_binary_auc") == "max" and direction("val_mae") == "min"
    assert direction("val_loss") == "min" and direction("val_mine") is None
    for wrong in ("val_mine", ("val_mine", "up"), 3):
        with pytest.raises(ValueError, match="`monitor`"):
            BestEpoch(wrong)
    with pytest.raises(ValueError, match="`monitor`.*'val_loss'"):
        fit(network(), BestEpoch("val_loss"))


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_writes_every_epoch_whole(tmp_path):
    model, path = network(), tmp_path / "runs" / "model.keras"
    fit(model, Checkpoint(path), epochs=2)
    for a, b in zip(model.get_weights(), keras.models.load_model(path).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [p.name for p in path.parent.iterdir()] == ["model.keras"]


def test_the_former_file_stays_when_writing_fails(tmp_path, monkeypatch):
    model, path = network(), tmp_path / "model.keras"
    before = kt.save_model(model, path).read_bytes()

    def half_written(path):
        path.write_bytes(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(model, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        fit(model, Checkpoint(path))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_ctrl_c_while_writing_takes_effect_after_it(tmp_path, monkeypatch):
    model = network()
    save = model.save

    def interrupted(path):
        os.kill(os.getpid(), signal.SIGINT)
        save(path)

    monkeypatch.setattr(model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kt.save_model(model, tmp_path / "model.keras")
    assert kt.load_model(tmp_path / "model.keras").count_params() == model.count_params()
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_a_wrong_checkpoint_is_named():
    with pytest.raises(ValueError, match="`path`"):
        Checkpoint("m.h5")


# ---------------------------------------------------------------- what is trained


def freeze(model):
    model.get_layer("one").trainable = False


@pytest.mark.parametrize("moment", ["on_epoch_begin", "on_train_batch_end", "on_epoch_end"])
@pytest.mark.parametrize(
    "action, message",
    [(freeze, "`trainable`"), (lambda model: model.compile("sgd", "mse"), "`model`")],
)
def test_the_guard_raises(moment, action, message):
    def act(self, number, logs=None):
        action(self.model)

    callback = type("Act", (keras.callbacks.Callback,), {moment: act})()
    with pytest.raises(RuntimeError, match=f"{message}.*Stage"):
        fit(network(), callback, kt.callbacks.TrainableGuard(), epochs=2)


def test_the_guard_lets_an_honest_training_pass():
    model, guard = network(), kt.callbacks.TrainableGuard()
    fit(model, guard)
    freeze(model)
    model.compile("sgd", "mse", run_eagerly=True)
    assert fit(model, guard, epochs=2).epoch == [0, 1]
