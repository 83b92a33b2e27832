"""Stages and checkpoints."""

import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from modules import save_reusable

import kerasmtl as kt
from kerasmtl.models.backbones import backbone_layers
from kerasmtl.training.plans import make_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reusable(tmp_path_factory.mktemp("module") / "reusable")


def data(rows=16, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((rows, 12, 12, 3), dtype="float32")
    y = rng.choice([0.0, 1.0, np.nan], (rows, 2)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def two_stages():
    return [kt.plans.Stage("head", 2, 1e-2), kt.plans.Stage("all", 3, 1e-3)]


def test_the_head_moves_first_and_the_backbone_only_in_its_stage(folder):
    model = kt.build_model(str(folder), ["a", "b"], 12)
    (layer,) = backbone_layers(model)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([v.numpy().copy() for v in layer.variables])

    start = [v.numpy().copy() for v in layer.variables]
    kt.fine_tune(model, data(), plan=two_stages(), callbacks=[Watch()], verbose=0)
    for before, after in zip(start, seen[1], strict=True):
        np.testing.assert_array_equal(before, after)
    assert any((a != b).any() for a, b in zip(start, seen[-1], strict=True))


def test_history_and_epoch_numbers_run_on_over_the_stages(folder):
    model = kt.build_model(str(folder), ["a", "b"], 12)
    history = kt.fine_tune(model, data(), data(seed=1), plan=two_stages(), verbose=0)
    assert history.epoch == [0, 1, 2, 3, 4]
    assert {"loss", "auc", "binary_accuracy", "val_loss", "val_auc"} <= set(history.history)
    assert all(len(values) == 5 for values in history.history.values())


def test_a_compiled_model_keeps_its_optimizer_loss_and_metrics(folder):
    model = kt.build_model(str(folder), ["a", "b"], 12)
    model.compile(
        keras.optimizers.SGD(0.5, momentum=0.9),
        loss=kt.losses.MaskedBinaryCrossentropy(name="mine"),
        metrics=[kt.metrics.MaskedAUC(num_bins=16, name="coarse")],
    )
    history = kt.fine_tune(model, data(), plan=[kt.plans.Stage("head", 1, 0.125)], verbose=0)
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert model.optimizer.momentum == 0.9
    assert float(model.optimizer.learning_rate) == 0.125
    assert model.loss.name == "mine"
    assert set(history.history) == {"loss", "coarse"}


def test_patience_ends_a_stage_and_the_next_one_starts(folder):
    model = kt.build_model(str(folder), ["a", "b"], 12)
    plan = [kt.plans.Stage("head", 50, 10.0, patience=1), kt.plans.Stage("head", 1, 1e-3)]
    history = kt.fine_tune(model, data(), data(seed=1), plan=plan, verbose=0)
    assert 3 <= len(history.epoch) < 51
    assert history.epoch == list(range(len(history.epoch)))


def test_the_full_plan_trains_the_backbone_at_a_lower_rate():
    head, everything = make_plan("full")
    assert (head.train, everything.train) == ("head", "all")
    assert everything.learning_rate < head.learning_rate


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: kt.fine_tune(m, data(), plan=[]), "`plan` is empty"),
        (
            lambda m: kt.fine_tune(m, data(), plan=[kt.plans.Stage("head", 1, 1e-3, patience=1)]),
            "needs validation data",
        ),
        (lambda m: kt.plans.Stage("top", 1, 1e-3), "`train` is unknown"),
        (lambda m: kt.plans.Stage("head", 0, 1e-3), "`epochs` is too small"),
        (lambda m: kt.plans.Stage("head", 1, 0.0), "`learning_rate` is not positive"),
        (lambda m: kt.plans.Stage("head", 1, float("nan")), "`learning_rate` is not positive"),
        (
            lambda m: kt.fine_tune(
                keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Flatten()]),
                data(),
                plan="head",
            ),
            "no backbone",
        ),
    ],
)
def test_wrong_plans_are_named(folder, call, message):
    model = kt.build_model(str(folder), ["a", "b"], 12)
    with pytest.raises(ValueError, match=message):
        call(model)


def head_only():
    image = keras.Input((12, 12, 3))
    return kt.build_model(keras.Model(image, keras.layers.Conv2D(2, 3)(image)), ["a", "b"])


def test_checkpoint_writes_every_epoch_whole(tmp_path):
    model = head_only()
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy())
    path = tmp_path / "runs" / "model.keras"
    model.fit(data(), epochs=2, callbacks=[kt.callbacks.Checkpoint(path)], shuffle=False, verbose=0)
    loaded = keras.models.load_model(path)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [p.name for p in path.parent.iterdir()] == ["model.keras"]


def test_checkpoint_keeps_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    model = head_only()
    checkpoint = kt.callbacks.Checkpoint(tmp_path / "model.keras")
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(0)
    before = (tmp_path / "model.keras").read_bytes()

    def half_written(path):
        path.write_bytes(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(model, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.on_epoch_end(1)
    assert (tmp_path / "model.keras").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_ctrl_c_while_writing_takes_effect_after_it(tmp_path, monkeypatch):
    model = head_only()
    save = model.save

    def interrupted(path):
        os.kill(os.getpid(), signal.SIGINT)
        save(path)

    monkeypatch.setattr(model, "save", interrupted)
    checkpoint = kt.callbacks.Checkpoint(tmp_path / "model.keras")
    checkpoint.set_model(model)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.on_epoch_end(0)
    assert kt.load_model(tmp_path / "model.keras").count_params() == model.count_params()
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.parametrize(
    "mode, scores, written",
    [
        ("max", [0.5, 0.4, 0.6, 0.6], [True, False, True, False]),
        ("min", [0.5, 0.4, 0.6, 0.3], [True, True, False, True]),
        ("max", [float("nan"), float("nan"), 0.1], [True, False, True]),
    ],
)
def test_checkpoint_with_monitor_writes_only_what_improves(tmp_path, mode, scores, written):
    checkpoint = kt.callbacks.Checkpoint(tmp_path / "model.keras", monitor="val_auc", mode=mode)
    checkpoint.set_model(head_only())
    for epoch, (score, expected) in enumerate(zip(scores, written, strict=True)):
        (tmp_path / "model.keras").unlink(missing_ok=True)
        checkpoint.on_epoch_end(epoch, {"val_auc": score})
        assert (tmp_path / "model.keras").exists() == expected


def test_checkpoint_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="Expected NAME.keras"):
        kt.callbacks.Checkpoint(tmp_path / "model.h5")
    with pytest.raises(ValueError, match="`mode` is unknown"):
        kt.callbacks.Checkpoint(tmp_path / "model.keras", mode="auto")
    checkpoint = kt.callbacks.Checkpoint(tmp_path / "model.keras", monitor="val_auk")
    with pytest.raises(ValueError, match=r"`monitor` 'val_auk' is not in the logs.*\['loss'\]"):
        checkpoint.on_epoch_end(0, {"loss": 1.0})


def test_ctrl_c_leaves_the_last_finished_epoch_usable(tmp_path):
    code = textwrap.dedent(
        """
        import os, signal, keras, numpy as np, kerasmtl as kt
        image = keras.Input((12, 12, 3))
        backbone = keras.Model(image, keras.layers.Conv2D(2, 3)(image))
        model = kt.build_model(backbone, ["a"])
        model.compile("adam", kt.losses.MaskedBinaryCrossentropy())

        class Interrupt(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                np.save(f"epoch_{epoch}.npy", self.model.get_weights()[0])
            def on_train_batch_end(self, batch, logs=None):
                if self.model.optimizer.iterations.numpy() == 6:
                    os.kill(os.getpid(), signal.SIGINT)

        x = np.random.default_rng(0).random((16, 12, 12, 3), dtype="float32")
        y = (x.mean((1, 2, 3)) > 0.5).astype("float32")[:, None]
        model.fit(x, y, batch_size=4, epochs=5, verbose=0,
                  callbacks=[kt.callbacks.Checkpoint("model.keras"), Interrupt()])
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode in (1, -signal.SIGINT), done.stderr[-2000:]
    assert "KeyboardInterrupt" in done.stderr
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.get_weights()[0], np.load(tmp_path / "epoch_0.npy"))
    assert not (tmp_path / "epoch_1.npy").exists()
