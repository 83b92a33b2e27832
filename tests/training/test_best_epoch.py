"""`BestEpoch`: the weights of the epoch that was best on validation data."""

import keras
import numpy as np
import pytest

import kerasmtl as kt


def fitted(epochs, **options):
    """A network that learns noise by heart: it gets worse on other noise."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(40, 8)).astype("float32") for _ in range(2))
    y = (y[:, :1] > 0).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1, "sigmoid")]
    )
    optimizer = keras.optimizers.Adam(0.05)
    model.compile(optimizer, kt.losses.MaskedBinaryCrossentropy(), metrics=[kt.metrics.MaskedAUC()])
    train, val = (x[:20], y[:20]), (x[20:], y[20:])
    history = model.fit(
        *train, epochs=epochs, validation_data=val, shuffle=False, verbose=0, **options
    )
    return model, history.history


@pytest.mark.parametrize("monitor, best", [("val_loss", np.argmin), (None, np.argmax)])
def test_the_model_ends_with_the_weights_of_the_best_epoch(monitor, best):
    callback = kt.callbacks.BestEpoch(monitor, verbose=False)
    model, history = fitted(20, callbacks=[callback])
    epoch = int(best(history[monitor or "val_auc"])) + 1
    assert callback.best_epoch == epoch < 20
    until, _ = fitted(epoch)
    for a, b in zip(model.get_weights(), until.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_says_which_epoch_it_was(capsys):
    callback = kt.callbacks.BestEpoch("val_loss")
    _, history = fitted(5, callbacks=[callback])
    loss = min(history["val_loss"])
    assert (
        f"Best epoch: {callback.best_epoch} of 5, val_loss {loss:.4g}." in capsys.readouterr().out
    )


def test_without_validation_data_the_last_epoch_stays(capsys):
    x = np.ones((4, 1), "float32")
    weights = []
    for callbacks in ([], [kt.callbacks.BestEpoch()]):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(x, 2 * x, epochs=3, callbacks=callbacks, verbose=0)
        weights.append(model.get_weights())
    np.testing.assert_array_equal(*[w[0] for w in weights])
    assert "weights of the last epoch, 3" in capsys.readouterr().out


def test_a_monitor_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="`monitor`.*val_nope"):
        fitted(1, callbacks=[kt.callbacks.BestEpoch("val_nope_loss")])
