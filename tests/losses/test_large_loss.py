"""The large-loss modification and the schedule of its threshold."""

import keras
import numpy as np
import pytest
import reference

import kerasmtl as kt


def scheduled(share, epochs=1, logits=False):
    """A model whose loss a schedule has set, and its data."""
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(3).normal(size=(50, 4)).astype("float32")
    y = reference.case(rows=50, tasks=3, known=0.4)[0]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    if not logits:
        model.add(keras.layers.Activation("sigmoid"))
    model.compile(keras.optimizers.SGD(0.0), kt.losses.LargeLoss(from_logits=logits))
    schedule = kt.callbacks.LargeLossSchedule(x, y, step=share)
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=[schedule])
    return model, x, y


@pytest.mark.parametrize("logits", [False, True])
def test_the_schedule_cuts_off_its_share_of_the_data_set(logits):
    model, x, y = scheduled(0.1, epochs=3, logits=logits)
    p = model.predict(x, verbose=0)
    missing = (reference.sigmoid(p) if logits else p)[np.isnan(y)]
    assert abs((missing > model.loss.threshold).mean() - 0.2) < 0.02
    value = model.evaluate(x, y, batch_size=7, verbose=0)
    np.testing.assert_allclose(value, model.evaluate(x, y, batch_size=50, verbose=0), rtol=1e-5)
    of_missing = model.loss(y, p) - reference.loss(y, p, logits)
    kept = missing[missing <= model.loss.threshold]
    np.testing.assert_allclose(of_missing, -np.log(1 - kept).sum() / 50, rtol=1e-4)


def test_the_first_epoch_cuts_off_nothing_and_the_threshold_is_saved(tmp_path):
    model, _, _ = scheduled(0.1)
    assert model.loss.threshold == 1.0
    model.loss.threshold = 0.75
    model.save(tmp_path / "m.keras")
    assert keras.models.load_model(tmp_path / "m.keras").loss.threshold == 0.75


def test_a_schedule_without_its_loss_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "sigmoid")])
    model.compile("sgd", kt.losses.MaskedBinaryCrossentropy())
    x, y = np.zeros((2, 4)), np.zeros((2, 3))
    with pytest.raises(ValueError, match="LargeLoss"):
        model.fit(x, y, verbose=0, callbacks=[kt.callbacks.LargeLossSchedule(x, y)])


def test_an_unknown_scheme_or_threshold_is_refused():
    with pytest.raises(ValueError, match="`scheme`"):
        kt.losses.LargeLoss("keep")
    with pytest.raises(ValueError, match="`threshold`"):
        kt.losses.LargeLoss(threshold=2.0)
