"""Heads chosen by folds: exact where there is a reference, honest where nothing can be learned."""

from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kerasmtl as kt
from kerasmtl.training.heads import Hidden, Linear, Target, _linear

PANEL = Path(__file__).parents[2].parent / "shared" / "data" / "panel"
KINDS = [
    kt.Task("car"),
    kt.Task("grade", "multiclass", classes=("A", "B", "C")),
    kt.Task("price", "regression"),
    kt.Task("bike"),
]
QUICK = [Linear((1.0, 0.1)), Hidden(width=8, steps=(20, 40))]


def planted(rows=120, missing=0.3, seed=0, columns=6):
    """Features, and labels of four tasks of three kinds that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)) * 10.0 ** np.arange(-2, columns - 2) + 5
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    noise = rng.normal(size=(rows, 4)) * 0.5
    labels = np.column_stack(
        [
            z[:, 0] + noise[:, 0] > 0,
            np.digitize(z[:, 1] + noise[:, 1], [-0.4, 0.4]),
            1000 + 50 * (z[:, 2] + noise[:, 2]),
            z[:, 3] + noise[:, 3] > 1,
        ]
    ).astype("float64")
    labels[rng.random(labels.shape) < missing] = np.nan
    return x, labels


@pytest.fixture(scope="module")
def fitted():
    x, labels = planted()
    return x, labels, kt.features.fit_head(x, labels, KINDS, candidates=QUICK)


def test_a_linear_head_is_that_of_scikit_learn_on_known_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 5)).astype("float32")
    _, labels = planted(90)
    target, strength = Target(labels, KINDS), 0.1
    w = _linear(x, target, np.ones((1, 90), bool), strength, None)[:, 0]
    for column, place in ((0, 0), (3, 5)):
        known = ~np.isnan(labels[:, column])
        peer = LogisticRegression(C=1 / (strength * known.sum()), tol=1e-8, max_iter=1000)
        peer.fit(x[known], labels[known, column])
        np.testing.assert_allclose(w[:-1, place], peer.coef_[0], atol=2e-3)
        np.testing.assert_allclose(w[-1, place], peer.intercept_[0], atol=2e-3)
    known = ~np.isnan(labels[:, 2])
    values = labels[known, 2]
    ridge = Ridge(alpha=strength * known.sum()).fit(
        x[known], (values - values.mean()) / values.std()
    )
    np.testing.assert_allclose(w[:-1, 4], ridge.coef_, atol=2e-3)
    known = ~np.isnan(labels[:, 1])
    peer = LogisticRegression(C=1 / (strength * known.sum()), tol=1e-8, max_iter=1000)
    peer.fit(x[known], labels[known, 1])
    np.testing.assert_allclose(w[:-1, 1:4].T, peer.coef_, atol=2e-3)


def test_more_columns_than_rows_give_the_same_solution():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 50))
    labels = (x[:, :1] > 0).astype("float64")
    head = kt.features.fit_head(x, labels, ["car"], candidates=[Linear((0.3,))])
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    peer = LogisticRegression(C=1 / (0.3 * 30), tol=1e-8, max_iter=1000).fit(z, labels[:, 0])
    (chosen,) = [each for each in head.candidates if each.name != "constant"]
    prior = np.log((labels.sum() + 0.5) / (30.5 - labels.sum()))
    share = 1 / sum(each.chosen for each in head.candidates)
    expected = prior + chosen.scale * share * (peer.decision_function(z) - prior)
    p = head.predict(x)[:, 0]
    np.testing.assert_allclose(np.log(p / (1 - p)), expected, atol=5e-3)


def test_a_model_with_the_head_predicts_what_the_head_predicts(fitted):
    x, _, head = fitted
    frozen = keras.Sequential([keras.Input((6,)), keras.layers.Rescaling(1.0)])
    frozen.add(keras.layers.BatchNormalization(epsilon=0, trainable=False))
    model = head.attach(kt.build_model(frozen, KINDS, hidden=[3], labels=fitted[1]))
    expected, found = head.predict(x), model.predict(x, verbose=0)
    assert list(found) == ["binary", "grade", "price"]
    for key, values in found.items():
        np.testing.assert_allclose(values, expected[key], rtol=2e-4, atol=1e-4)
    told = ~np.isnan(fitted[1]).all(axis=1)
    assert head.out_of_fold["grade"][told].sum(axis=1) == pytest.approx(1)
    assert np.isnan(head.out_of_fold["grade"][~told]).all()


def test_identical_rows_are_never_on_two_sides_of_a_fold():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(60, 40)), (rng.random((60, 1)) > 0.5).astype("float64")
    head = kt.features.fit_head(np.tile(x, (2, 1)), np.tile(labels, (2, 1)), ["a"])
    assert head.scores()["a"] < 0.75
    assert {each.name: each.chosen for each in head.candidates}["constant"]


def test_without_an_ensemble_the_head_is_one_network():
    """Ten networks of four units are one of forty: a comparison of widths would show nothing."""
    x = np.random.default_rng(0).normal(size=(300, 5))
    for ensemble, units in ((True, 10 * 4), (False, 4)):
        kind = Hidden(4, steps=(200,), ensemble=ensemble)
        head = kt.features.fit_head(x, x[:, :1] > 0, ["up"], candidates=[kind])
        assert head._part.hidden.shape[1] == units
        assert head.scores()["up"] > 0.8 and np.isfinite(head.out_of_fold).all()


def test_rows_without_a_group_are_alone():
    x, labels = planted(40, 0.0)
    alone = kt.features.fit_head(x, labels[:, :1], ["a"], [None] * 40, QUICK)
    assert alone.folds == 5 and alone.table() == (
        kt.features.fit_head(x, labels[:, :1], ["a"], None, QUICK).table()
    )


def test_a_task_without_weight_has_no_influence():
    x, labels = planted(80)
    one = kt.features.fit_head(x, labels[:, [0]], ["a"], candidates=[Linear()])
    tasks = [kt.Task("a"), kt.Task("b", weight=0)]
    labels = labels[:, [0, 3]]
    labels[np.isnan(labels[:, 0]), 1] = np.nan
    two = kt.features.fit_head(x, labels, tasks, candidates=[Linear()])
    # Folds are stratified by both tasks: the strength may differ, but nothing is learned of b.
    assert np.ptp(two.predict(x)[:, 1]) < 1e-6
    assert one.scores()["a"] == pytest.approx(two.scores()["a"], abs=0.1)


def test_a_number_may_be_named_binary():
    x, labels = planted()
    task = kt.Task("binary", "regression")
    head = kt.features.fit_head(x, labels[:, 2:3], [task], candidates=QUICK)
    assert head.scores()["binary"] > 0.5
    frozen = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization(epsilon=0)])
    frozen.trainable = False
    found = head.attach(kt.build_model(frozen, [task], labels=labels[:, 2:3]))
    expected = head.predict(x)["binary"]
    np.testing.assert_allclose(found.predict(x, verbose=0)["binary"], expected, rtol=1e-4)


def test_half_precision_keeps_the_head(fitted):
    x, labels = planted()
    head = kt.features.fit_head(x, labels[:, [0, 3]], ["a", "b"], candidates=QUICK)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((6,), dtype="float32")
        frozen = keras.layers.BatchNormalization(epsilon=0, dtype="float32", trainable=False)
        backbone = keras.Model(inputs, frozen(inputs))
        model = head.attach(kt.build_model(backbone, ["a", "b"]))
        found = model.predict(x, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(found, head.predict(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [Linear((0.1,)), Hidden(width=4, steps=(30,))])
def test_every_kind_alone_can_be_attached(kind):
    x, labels = planted()
    head = kt.features.fit_head(x, labels[:, [0, 3]], ["a", "b"], candidates=[kind])
    frozen = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization(epsilon=0)])
    frozen.trainable = False
    model = head.attach(kt.build_model(frozen, ["a", "b"]))
    np.testing.assert_allclose(model.predict(x, verbose=0), head.predict(x), rtol=2e-4, atol=1e-4)


def test_rows_without_labels_have_no_influence_bit_for_bit(fitted):
    x, labels, head = fitted
    more = np.concatenate([x[:50], np.full((7, 6), 1e3), x[50:]])
    empty = np.concatenate([labels[:50], np.full((7, 4), np.nan), labels[50:]])
    other = kt.features.fit_head(more, empty, KINDS, candidates=QUICK)
    for key, values in head.predict(x).items():
        np.testing.assert_array_equal(other.predict(x)[key], values)


def test_out_of_fold_scores_are_those_of_scikit_learn(fitted):
    _, labels, head = fitted
    scores, out = head.scores(), head.out_of_fold
    known = ~np.isnan(labels)
    area = roc_auc_score(labels[known[:, 3], 3], out["binary"][known[:, 3], 1])
    assert scores["bike"] == pytest.approx(area) and area > 0.7
    k = known[:, 2]
    assert scores["price"] == pytest.approx(r2_score(labels[k, 2], out["price"][k, 0]))
    k = known[:, 1]
    assert scores["grade"] == pytest.approx((out["grade"][k].argmax(1) == labels[k, 1]).mean())


def test_where_nothing_can_be_learned_nothing_is_claimed():
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(150, 20)), (rng.random((150, 3)) > 0.5).astype("float64")
    head = kt.features.fit_head(x, labels, ["a", "b", "c"])
    assert {each.name: each.chosen for each in head.candidates}["constant"]
    assert abs(np.mean(list(head.scores().values())) - 0.5) < 0.1
    assert np.abs(head.predict(x) - 0.5).max() < 0.35


def test_groups_are_never_on_both_sides_of_a_fold():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 6)
    x = rng.normal(size=(20, 30))[groups] + rng.normal(size=(120, 30)) * 0.1
    labels = (rng.random(20) > 0.5)[groups, None].astype("float64")
    kinds = [Linear((0.1,))]
    parted = kt.features.fit_head(x, labels, ["a"], candidates=kinds)
    whole = kt.features.fit_head(x, labels, ["a"], groups, candidates=kinds)
    assert parted.scores()["a"] > 0.95 and whole.scores()["a"] < 0.8


def keep(y, rows, columns=slice(None)):
    """Make every other label missing."""
    gone = np.setdiff1d(np.arange(len(y)), rows)
    for column in np.arange(y.shape[1])[columns]:
        y[gone, column] = np.nan


POOR = {
    "three labels in all": lambda x, y, g: keep(y, [0, 1, 2]),
    "one label": lambda x, y, g: keep(y, [5]),
    "one class": lambda x, y, g: y.__setitem__((slice(None), 0), 1),
    "no label of a task": lambda x, y, g: keep(y, [], slice(0, 1)),
    "constant features": lambda x, y, g: x.__setitem__(slice(None), 3),
    "one rare label": lambda x, y, g: y.__setitem__((slice(None), 0), np.arange(40) == 7),
    "labels of a task in one group": lambda x, y, g: keep(y, range(10), slice(0, 1)),
    "one group": lambda x, y, g: g.__setitem__(slice(None), 0),
    "huge numbers": lambda x, y, g: x.__imul__(1e20),
}


@pytest.mark.parametrize("poor", POOR)
def test_poor_data_give_a_smaller_design_and_finite_predictions(poor):
    x, labels = planted(40, 0.0)
    labels, groups = labels[:, [0, 3]], np.arange(40) // 10
    POOR[poor](x, labels, groups)
    head = kt.features.fit_head(x, labels, ["a", "b"], groups, QUICK)
    found = head.predict(x)
    assert np.isfinite(found).all() and head.folds <= 4 and head.why
    assert all(np.isfinite([each.loss, each.error]).all() for each in head.candidates)


def test_fewer_rows_than_folds():
    x, labels = planted(3, 0.0)
    head = kt.features.fit_head(x, labels[:, :1], ["a"], candidates=QUICK)
    assert head.folds == 3 and np.isfinite(head.predict(x)).all()
    single = kt.features.fit_head(x[:1], labels[:1, :1], ["a"], candidates=QUICK)
    assert single.folds == 0 and np.isnan(single.out_of_fold).all()
    assert np.isfinite(single.predict(x)).all()


def test_wrong_arguments_are_named():
    x, labels = planted(10, 0.0)
    with pytest.raises(ValueError, match="`features`"):
        kt.features.fit_head(np.full((10, 2), np.nan), labels, KINDS)
    with pytest.raises(ValueError, match="`labels`"):
        kt.features.fit_head(x, labels[:5], KINDS)
    with pytest.raises(ValueError, match="`labels`"):
        kt.features.fit_head(x, np.full((10, 1), np.nan), ["a"])
    with pytest.raises(ValueError, match="`width`"):
        Hidden(width=0)


def test_the_same_call_gives_the_same_head(fitted):
    x, labels, head = fitted
    again = kt.features.fit_head(x, labels, KINDS, candidates=QUICK)
    assert again.table() == head.table() and str(again) == str(head)
    for key, values in head.predict(x).items():
        np.testing.assert_array_equal(again.predict(x)[key], values)


@pytest.mark.parametrize("name,hidden", [("flags", 50), ("slump", 0)])
def test_the_default_is_not_worse_than_a_linear_model_per_task(name, hidden):
    if not PANEL.is_dir():
        pytest.skip(f"{PANEL} is not at hand")
    train = np.load(PANEL / f"{name}_train_{hidden}.npz")
    test = np.load(PANEL / f"{name}_test.npz")
    kind = "regression" if name == "slump" else "binary"
    tasks = [kt.Task(f"task {n}", kind) for n in range(train["Y"].shape[1])]
    backbone = kt.backbones.columns(train["X"])
    head = kt.features.fit_head(
        backbone(train["X"]), train["Y"], tasks, views=backbone.layers[-1].views
    )
    found = head.predict(np.asarray(backbone(test["X"])))
    if kind == "regression":
        found = np.concatenate([found[task.name] for task in tasks], axis=1)
    score = r2_score if kind == "regression" else roc_auc_score
    own, peers = [], []
    for column, y in enumerate(train["Y"].T):
        known = ~np.isnan(y)
        peer = LogisticRegression(C=0.1) if kind == "binary" else Ridge(1.0)
        peer = make_pipeline(StandardScaler(), peer).fit(train["X"][known], y[known])
        rate = peer.decision_function if kind == "binary" else peer.predict
        peers.append(score(test["Y"][:, column], rate(test["X"])))
        own.append(score(test["Y"][:, column], found[:, column]))
    assert np.mean(own) > np.mean(peers) - 0.01


def test_few_values_of_a_regression_are_not_shrunk_below_a_ridge_regression():
    """Factors that are fitted to thirty values, and shares of the constant, cost a third of R²."""
    values, y = load_diabetes(return_X_y=True)
    task, own, peers = kt.Task("progression", "regression"), [], []
    for seed in range(5):
        rows = np.random.default_rng(seed).permutation(len(y))
        train, test = rows[:30], rows[200:]
        backbone = kt.backbones.columns(values[train].astype("float32"))
        views = backbone.layers[-1].views
        head = kt.features.fit_head(backbone(values[train]), y[train, None], [task], views=views)
        assert {each.scale for each in head.candidates} == {1.0}
        found = head.predict(np.asarray(backbone(values[test])))["progression"]
        peer = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 15)))
        peers.append(r2_score(y[test], peer.fit(values[train], y[train]).predict(values[test])))
        own.append(r2_score(y[test], found[:, 0]))
    assert np.mean(own) > np.mean(peers) + 0.01
