"""Likely wrong labels, maps of attention, and the importance of columns, against NumPy."""

import keras
import numpy as np
import pytest

import kerasmtl as kt
from kerasmtl.evaluation.evaluate import Known
from kerasmtl.evaluation.explain import MOST_COLUMNS, attention_maps, column_importance

NAN = float("nan")


def likely_wrong(y, p):
    """The rule of confident learning, row by row and class by class."""
    found = []
    means = {
        c: np.mean([q[c] for label, q in zip(y, p, strict=True) if label == c]) for c in set(y)
    }
    for row, (label, q) in enumerate(zip(y, p, strict=True)):
        able = [c for c in means if q[c] >= means[c]]
        best = max(able, key=lambda c: q[c], default=label)
        if best != label:
            found.append((row, label, best, q[best] - q[label]))
    return sorted(found, key=lambda each: -each[3])


@pytest.mark.parametrize("classes", [2, 4])
def test_planted_wrong_labels_are_found_and_missing_ones_play_no_role(classes):
    rng = np.random.default_rng(0)
    truth, planted = rng.integers(0, classes, 300), rng.choice(300, 12, replace=False)
    sure = rng.uniform(0.4, 0.9, (300, 1))
    sure[planted] = 0.95
    p = np.eye(classes)[truth] * sure + (1 - sure) / classes
    y = truth.copy()
    y[planted] = (y[planted] + 1) % classes
    expected = likely_wrong(y.tolist(), p.tolist())
    assert set(planted) <= {row for row, *_ in expected}

    found = kt.reports.likely_wrong_labels(y, p[:, 1] if classes == 2 else p)
    assert set(found["row"][:12]) == set(planted)
    assert found["suggested"][:12].tolist() == truth[found["row"][:12]].tolist()
    np.testing.assert_allclose(found["margin"], [margin for *_, margin in expected])
    assert {tuple(row[:3]) for row in found.to_numpy().tolist()} == {each[:3] for each in expected}

    # Rows without a label change nothing, whatever is predicted for them.
    more = np.insert(y.astype(float), 0, [NAN, NAN])
    shifted = kt.reports.likely_wrong_labels(more, np.vstack([np.full((2, classes), NAN), p]))
    assert shifted["row"].tolist() == (found["row"] + 2).tolist()


@pytest.mark.parametrize("labels", [[], [NAN, NAN], [1, 1]])
def test_labels_of_one_class_or_none_are_never_wrong(labels):
    assert len(kt.reports.likely_wrong_labels(labels, np.full(len(labels), 0.3))) == 0


@pytest.mark.parametrize(
    "named, y, p",
    [("p", [1, 0], [0.5]), ("p", [[1]], [0.5]), ("labels", [2, 0], [0.5, 0.5])],
)
def test_wrong_arguments_are_named(named, y, p):
    with pytest.raises(ValueError, match=f"`{named}`"):
        kt.reports.likely_wrong_labels(y, p)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_grad_cam_is_its_formula_however_deep_the_convolution_is(depth):
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3))
    last = keras.layers.Conv2D(4, 3, activation="relu")
    backbone = keras.Model(image, last(keras.layers.Conv2D(5, 3)(image)))
    for _ in range(depth):
        outer = keras.Input((8, 8, 3))
        backbone = keras.Model(outer, backbone(outer * 2.0))
    tasks = (kt.Task("cat"), kt.Task("sky", "multiclass", ("a", "b", "c")))
    model = kt.build_model(backbone, tasks)
    for name in ("head_binary", "head_1"):
        w, b = model.get_layer(name).get_weights()
        w[:, -1] = 1 + np.abs(w[:, -1])  # some of the features speak for it
        model.get_layer(name).set_weights([w, b])
    x = np.random.default_rng(0).random((2, 8, 8, 3)).astype("float32")
    maps, method = attention_maps(model, x, tasks, [("cat", 1), ("sky", 2)])
    assert method == "Grad-CAM" and maps.shape == (2, 4, 4) and maps.max() == 1

    inner = backbone
    while not any(layer is last for layer in inner.layers):
        inner = next(layer for layer in inner.layers if isinstance(layer, keras.Model))
    features = np.asarray(keras.Model(inner.inputs[0], last.output)(x * 2.0**depth), "float64")
    outputs = {key: np.asarray(value) for key, value in model(x).items()}
    w = model.get_layer("head_binary").get_weights()[0][:, 0]
    cat = np.maximum(features[0] @ w, 0)  # the slope of the sigmoid is the same everywhere
    p, w = outputs["sky"][1], model.get_layer("head_1").get_weights()[0]
    sky = np.maximum(features[1] @ (p[2] * (w[:, 2] - w @ p)), 0)
    np.testing.assert_allclose(maps[0], cat / cat.max(), atol=1e-4)
    np.testing.assert_allclose(maps[1], sky / sky.max(), atol=1e-4)


def test_without_a_convolution_it_is_the_gradient_of_the_pixels():
    image = keras.Input((4, 4, 3))
    output = keras.layers.Dense(1, activation="sigmoid")(keras.layers.Flatten()(image))
    model = keras.Model(image, output)
    weights = np.zeros((4, 4, 3, 1), "float32")
    weights[1, 2, 0], weights[3, 3, 1] = 2, -1
    model.layers[-1].set_weights([weights.reshape(48, 1), np.zeros(1)])
    maps, method = attention_maps(
        model, np.ones((1, 4, 4, 3), "float32"), [kt.Task("a")], [("a", 1)]
    )
    expected = np.zeros((4, 4))
    expected[1, 2], expected[3, 3] = 1, 0.5
    assert method == "gradient of the pixels"
    np.testing.assert_allclose(maps[0], expected, atol=1e-6)
    model.layers[-1].set_weights([np.zeros((48, 1)), np.zeros(1)])
    with pytest.raises(ValueError, match="`model`"):
        attention_maps(model, np.ones((1, 4, 4, 3), "float32"), [kt.Task("a")], [("a", 1)])


@pytest.mark.parametrize("columns", [3, MOST_COLUMNS + 20])
def test_a_column_counts_as_much_as_the_score_falls_without_it(columns):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, columns)).astype("float32")
    inputs = keras.Input((columns,))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="sigmoid")(inputs))
    weights = np.zeros((columns, 2), "float32")
    weights[1, 0] = 5
    model.layers[-1].set_weights([weights, np.zeros(2)])
    rows = np.arange(0, 200, 2)
    known = Known(rows, (x[rows, 1] > 0).astype(float), x[rows, 1])
    cells = {"a": known, "one": Known(rows, np.ones(100), np.ones(100))}
    found = column_importance(model, x, [kt.Task("a"), kt.Task("one")], cells)
    assert list(found) == ["a"] and len(found) == min(columns, MOST_COLUMNS)
    assert 0.4 < found.at[1, "a"] < 0.6  # from an AUC of 1 to one of chance
    assert (found["a"].drop(1) == 0).all()
