"""Callbacks go on with a run: those of Keras as if nothing had happened, others by a line."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.training.fine_tune import fine_tune
from kerasmtl.training.plans import Stage
from kerasmtl.training.resume import CallbackStates

EPOCHS = 8
SCORES = [0.5, 0.9, 0.9, 0.9, 0.8, 0.7, 0.95, 0.6]


class Score(keras.callbacks.Callback):
    """A score that is known, as if it had been measured."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_score"] = SCORES[epoch]


class Kill(keras.callbacks.Callback):
    """Ends the run at the end of an epoch, before or after the state is kept."""

    def __init__(self, epoch, kept):
        super().__init__()
        self.epoch, self.kept = epoch, kept

    def on_epoch_begin(self, epoch, logs=None):
        if self.kept and epoch == self.epoch:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        if not self.kept and epoch == self.epoch:
            raise KeyboardInterrupt


def train(directory, callback, kill=(), verbose=0, stages=2):
    """One call of a script: everything is built anew."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    backbone = keras.Model(image, keras.layers.Conv2D(2, 3, name="conv")(image))
    model = kt.build_model(backbone, ["a"], 6)
    model.compile(keras.optimizers.SGD(0.1), kt.losses.MaskedBinaryCrossentropy(), run_eagerly=True)
    rng = np.random.default_rng(0)
    x, y = rng.random((8, 6, 6, 3), dtype="float32"), np.tile([[0.0], [1.0]], (4, 1))
    data = tf.data.Dataset.from_tensor_slices((x, y.astype("float32"))).batch(4)
    plan = [Stage("head", 4, 0.1), Stage("all", 4, 0.1)][:stages]
    history = fine_tune(
        model,
        data,
        plan=plan,
        callbacks=[Score(), callback, *kill],
        directory=directory,
        verbose=verbose,
        monitor="loss",
    )
    return model, history


def early_stopping(folder):
    return keras.callbacks.EarlyStopping("val_score", 0, 4, mode="max", restore_best_weights=True)


def plateau(folder):
    return keras.callbacks.ReduceLROnPlateau("val_score", 0.5, 2, mode="max", cooldown=1)


def checkpoint(folder):
    file = str(folder / "{epoch}.weights.h5")
    return keras.callbacks.ModelCheckpoint(
        file, "val_score", mode="max", save_best_only=True, save_weights_only=True
    )


def csv(folder):
    return keras.callbacks.CSVLogger(folder / "log.csv")


def known_by(callback, folder):
    """All that can be seen of it, and the files that it wrote."""
    plain = (int, float, str, list, tuple, np.ndarray, type(None))
    seen = {k: v for k, v in vars(callback).items() if isinstance(v, plain) and k[0] != "_"}
    weights = seen.pop("best_weights", None) or []
    seen = {k: v for k, v in seen.items() if k not in ("params", "filename", "filepath")}
    files = {}
    for file in sorted(folder.iterdir()):
        files[file.name] = file.read_text() if file.suffix == ".csv" else ""
    return seen, [np.asarray(w).tobytes() for w in weights], files


def end_of(folder, directory, make):
    """All that a run leaves behind."""
    callback = make(folder)
    model, history = train(directory, callback)
    seen, best, files = known_by(callback, folder)
    seen.pop("append_header", None)  # of the file, not of the run
    weights = [w.tobytes() for w in model.get_weights()]
    rate = float(model.optimizer.learning_rate)
    return seen, best, files, history.history, history.epoch, weights, rate


MAKERS = [early_stopping, plateau, checkpoint, csv]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folders = {make: tmp_path_factory.mktemp(make.__name__) for make in MAKERS}
    return {make: end_of(folder, None, make) for make, folder in folders.items()}


# Before the first is kept, within both stages, between them, and in the last.
@pytest.mark.parametrize("epoch, kept", [(0, False), (2, True), (3, False), (4, True), (5, False)])
@pytest.mark.parametrize("make", MAKERS)
def test_killed_and_resumed_it_is_as_if_it_had_not_been(tmp_path, whole, make, epoch, kept):
    folder = tmp_path / "files"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", make(folder), [Kill(epoch, kept)])
    for one, other in zip(whole[make], end_of(folder, tmp_path / "run", make), strict=True):
        assert one == other


def test_a_log_has_each_epoch_once(whole):
    assert len(whole[csv][2]["log.csv"].splitlines()) == 1 + EPOCHS


def test_the_scores_do_what_the_tests_need(tmp_path):
    """It stops, reduces twice, and writes three files: not a test of callbacks that do nothing."""
    stopping, reducing, writing = early_stopping(tmp_path), plateau(tmp_path), checkpoint(tmp_path)
    assert train(None, stopping)[1].epoch == [0, 1, 2, 3, 4, 5]
    assert stopping.stopped_epoch == 5 and len(stopping.best_weights) == 4
    model, _ = train(None, reducing)
    assert float(model.optimizer.learning_rate) == np.float32(0.05)
    train(None, writing)
    assert {file.name for file in tmp_path.iterdir()} == {f"{n}.weights.h5" for n in (1, 2, 7)}


def test_frozen_weights_take_no_place(tmp_path):
    callback = early_stopping(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", callback, [Kill(3, True)])
    with np.load(tmp_path / "run" / "state.npz") as arrays:
        kept = [name for name in arrays.files if "best_weights/" in name]
    assert len(kept) == 2 and len(callback.best_weights) == 4


class Counter(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.count = 0


class Kept(Counter):
    def state(self):
        return {"count": np.array(self.count)}

    def restore(self, state):
        self.count = int(state["count"])

    def on_epoch_end(self, epoch, logs=None):
        self.count += 1


class Mine(keras.callbacks.EarlyStopping):
    pass


def test_what_is_not_kept_is_said_in_one_line(tmp_path, capsys):
    for name, callback, said in (
        ("counter", Counter(), "Counter in `callbacks` has no state() and restore(state)"),
        ("mine", Mine("val_score", mode="max"), "only what EarlyStopping knows is kept"),
        ("kept", Kept(), None),
        ("stopping", early_stopping(tmp_path), None),
    ):
        train(tmp_path / name, callback, verbose=2, stages=1)
        lines = [line for line in capsys.readouterr().out.splitlines() if "`callbacks`" in line]
        assert len(lines) == (said is not None) and (not lines or said in lines[0])
    train(None, Counter(), verbose=2, stages=1)
    train(tmp_path / "quiet", Counter(), stages=1)
    assert "`callbacks`" not in capsys.readouterr().out


def test_a_state_goes_to_its_own_kind_alone(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Kept(), [Kill(2, True)])
    other = early_stopping(tmp_path)
    train(tmp_path / "run", other, verbose=2)
    assert "EarlyStopping in `callbacks` was not there when" in capsys.readouterr().out


def test_one_of_its_own_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Kept(), [Kill(5, True)])
    callback = Kept()
    train(tmp_path / "run", callback)
    assert callback.count == EPOCHS


def test_an_attribute_named_state_is_no_method():
    callback = Counter()
    callback.state, callback.restore = "running", "no"
    assert CallbackStates([callback], []).parts() == {}
