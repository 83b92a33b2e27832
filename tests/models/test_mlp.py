"""The MLP backbone: standardization inside the model, and dense layers on top."""

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.models.mlp import ColumnNormalization, column_statistics


def rows(count=200, seed=0):
    rng = np.random.default_rng(seed)
    table = rng.normal([5, -3e6, 0.2], [2, 1e5, 1e-4], (count, 3))
    bits = rng.random((count, 1)) < 0.02
    table = np.hstack([table, bits, np.full((count, 1), 7.0)])
    table[rng.random(table.shape) < 0.1] = np.nan
    table[:3, 3] = [0, 1, 0]
    return table.astype("float32")


def normalised(layer, x):
    return keras.ops.convert_to_numpy(layer(x))


def test_columns_are_standardised_and_missing_ones_are_the_mean():
    x = rows()
    layer = ColumnNormalization()
    layer.adapt(x)
    out = normalised(layer, x)
    wide = x[:, :3].astype("float64")
    expected = (wide - np.nanmean(wide, axis=0)) / np.nanstd(wide, axis=0)
    np.testing.assert_allclose(out[:, :3], np.nan_to_num(expected), atol=1e-2)
    assert (out[np.isnan(x)] == 0).all()


def test_bits_are_centred_only_and_a_constant_column_does_not_blow_up():
    x = rows()
    layer = ColumnNormalization()
    layer.adapt(x)
    share = np.nanmean(x[:, 3])
    out = normalised(layer, np.float32([[0, 0, 0, 1, 7], [0, 0, 0, 0, 8]]))
    np.testing.assert_allclose(out[:, 3], [1 - share, -share], rtol=1e-5)
    np.testing.assert_allclose(out[:, 4], [0, 1])
    center, spread = column_statistics(np.full((4, 1), np.nan))  # without any value
    assert center.tolist() == [0] and spread.tolist() == [1]


def test_indicators_say_where_missing_values_were():
    x = np.float32([[1, np.nan], [3, 4], [5, np.nan]])
    model = kt.backbones.mlp(x, hidden=[3], indicators=True)
    layer = model.get_layer("columns")
    assert layer.indicators == [1]
    np.testing.assert_array_equal(normalised(layer, x)[:, 2], [1, 0, 1])
    assert layer.compute_output_shape((None, 2)) == (None, 3)


def test_missing_values_reach_neither_predictions_nor_gradients():
    x = rows(32)
    model = kt.build_model(kt.backbones.mlp(x, hidden=[8], batch_norm=True), ["a", "b"])
    y = np.random.default_rng(0).integers(0, 2, (32, 2)).astype("float32")
    model.compile("adam", kt.losses.MaskedBinaryCrossentropy(), jit_compile=False)
    history = model.fit(x, y, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)
    assert np.isfinite(model.predict(np.full((2, 5), np.nan, "float32"), verbose=0)).all()


def test_a_saved_model_keeps_its_normalisation(tmp_path):
    x = rows()
    model = kt.build_model(kt.backbones.mlp(x, hidden=[4], indicators=True), ["a", "b"])
    model.save(tmp_path / "m.keras")
    again = kt.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_large_numbers_survive_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        x = rows()
        model = kt.build_model(kt.backbones.mlp(x, hidden=[4]), ["a"])
        assert np.isfinite(model.predict(x, verbose=0)).all()
        assert model.get_layer("mlp").get_layer("dense_1").compute_dtype == "float16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_layers_are_those_asked_for():
    model = kt.backbones.mlp(
        3, hidden=[5, 4], dropout=0.1, input_dropout=0.2, batch_norm=True, l2=1e-3
    )
    assert model.input_shape == (None, 3) and model.output_shape == (None, 4)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("BatchNormalization") == 2 and kinds.count("Dropout") == 3
    assert len(model.losses) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"inputs": 0}, "`inputs`"),
        ({"inputs": 3, "indicators": True}, "`indicators`"),
        ({"inputs": np.zeros(3)}, "`rows`"),
        ({"inputs": np.array([["a"]])}, "`rows`"),
        ({"inputs": np.float32([[0, np.inf]])}, "`rows`.*row 0, column 1"),
        ({"hidden": []}, "`hidden`"),
        ({"hidden": [0]}, "`hidden`"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"input_dropout": -0.1}, "`input_dropout`"),
        ({"l2": -1.0}, "`l2`"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kt.backbones.mlp(**{"inputs": 3, **arguments})
    with pytest.raises(ValueError, match="`rows`.*3 columns, got 5"):
        kt.backbones.mlp(3).get_layer("columns").adapt(rows())


# ---------------------------------------------------------------- the encoding of columns


def table():
    """Numbers, counts, bits, missing cells, a constant column and a rare bit."""
    rng = np.random.default_rng(0)
    rows = np.column_stack(
        [
            rng.normal(50, 10, 200),
            rng.poisson(1.0, 200),
            rng.random(200) < 0.4,
            np.where(rng.random(200) < 0.9, 0, 5),
            np.full(200, 3.0),
            np.where(rng.random(200) < 0.2, np.nan, rng.random(200)),
        ]
    )
    return rows.astype("float32")


def test_columns_are_piecewise_linear_over_quantiles():
    rows = table()
    layer = kt.backbones.columns(rows, bins=4).layers[-1]
    found = np.asarray(layer(rows))
    views = layer.views
    x, edges = rows[:, 0], np.quantile(rows[:, 0], [0, 0.25, 0.5, 0.75, 1])
    expected = np.stack(
        [np.clip((x - a) / (b - a), 0, 1) for a, b in zip(edges, edges[1:], strict=False)], axis=1
    )
    expected -= expected.mean(axis=0)
    expected /= np.sqrt(expected.var(axis=0).sum())
    np.testing.assert_allclose(found[:, :4], expected, atol=1e-4)
    pieces, bits, plain = layer.sizes
    assert (bits, plain, layer.flags) == (2, 3, [5])
    bit = rows[:, 2]
    np.testing.assert_allclose(found[:, pieces], (bit - bit.mean()) * 2, atol=1e-5)
    np.testing.assert_allclose(
        found[:, pieces + 1], (rows[:, 3] / 5 - (rows[:, 3] / 5).mean()) * 2, atol=1e-5
    )
    missing = np.isnan(rows[:, 5])
    np.testing.assert_allclose(found[:, pieces + 2], (missing - missing.mean()) * 2, atol=1e-5)
    np.testing.assert_allclose(found[:, views["standardized"]][:, 3:5].std(axis=0), 1, atol=1e-4)
    assert found.shape[1] == views["standardized"].stop and np.isfinite(found).all()


def test_an_encoding_is_saved_and_has_nothing_to_train(tmp_path):
    rows = table()
    model = kt.build_model(kt.backbones.columns(rows), ["a"])
    kt.save_model(model, tmp_path / "m.keras")
    loaded = kt.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(rows, verbose=0), model.predict(rows, verbose=0))
    assert len(model.trainable_weights) == 2  # of the head
    assert loaded.layers[1].layers[-1].views == model.layers[1].layers[-1].views


def test_an_encoding_takes_any_table():
    constant = kt.backbones.columns(np.full((5, 2), 7.0))
    assert np.asarray(constant(np.ones((2, 2)))).shape == (2, 1)
    empty = kt.backbones.columns(np.array([[np.nan, 1.0], [np.nan, 2.0]]))
    assert np.isfinite(np.asarray(empty(np.array([[3.0, np.nan], [np.inf, 9e9]])))).all()
    tiny = np.array([[0.0, 1e-40], [1e-39, 2e-40], [1.0, 3e-40]])
    assert np.isfinite(np.asarray(kt.backbones.columns(tiny)(tiny))).all()
    with pytest.raises(ValueError, match="`rows`"):
        kt.backbones.columns(np.array([[np.inf]]))
    with pytest.raises(ValueError, match="`bins`"):
        kt.backbones.columns(np.ones((2, 2)), bins=0)
