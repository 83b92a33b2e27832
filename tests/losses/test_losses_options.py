"""What losses refuse, multiclass labels, and the policies' own rules."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from loss_table import CASES, row_costs

import kerasmtl as kt
from kerasmtl import losses

NAN = float("nan")


def class_case(rows=12, classes=3):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, rows).astype("float32")
    z = rng.normal(size=(rows, classes)).astype("float32")
    y[::3] = NAN
    return y, z


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("normalization", "batch"),
        ("normalization", 0),
        ("normalization", NAN),
        ("normalization", True),
        ("task_weights", [0.0, 0.0]),
        ("task_weights", [1.0, -1.0]),
        ("task_weights", [1.0, np.inf]),
        ("task_weights", []),
        ("task_weights", 2.0),
        ("pos_weight", [0.0, 0.0]),
        ("pos_weight", 0.0),
        ("pos_weight", -1.0),
        ("label_smoothing", 1.5),
        ("gamma", -1.0),
        ("alpha", 2.0),
        ("balancer", "uncertainty"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`.*Received: "):
        kt.losses.MaskedBinaryCrossentropy(**{argument: value})


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: losses.AssumeNegative("strong"), "unknown_weight"),
        (lambda: losses.AssumeNegative([1.0, -1.0]), "unknown_weight"),
        (lambda: losses.PartialBinaryCrossentropy(alpha=-9.0), "alpha"),
        (lambda: losses.PartialBinaryCrossentropy(normalization="mean"), "normalization"),
        (lambda: losses.AsymmetricLoss(margin=1.0), "margin"),
        (lambda: losses.AsymmetricLoss(gamma_unknown=-1.0), "gamma_unknown"),
        (lambda: losses.HillLoss(lam=0.5), "lam"),
        (lambda: losses.ExpectedPositives(-1.0), "positives"),
        (lambda: losses.ExpectedPositives(1.0, level="epoch"), "level"),
        (lambda: losses.LargeLoss("keep"), "scheme"),
        (lambda: losses.LargeLoss(threshold=2.0), "threshold"),
        (lambda: losses.MaskedHuber(delta=0.0), "delta"),
    ],
)
def test_a_policy_refuses_by_name_too(make, argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        make()


@pytest.mark.parametrize("argument", ["task_weights", "pos_weight"])
def test_weights_for_another_number_of_tasks_are_refused(argument):
    y, p = reference.case(tasks=3)
    with pytest.raises(ValueError, match=f"`{argument}`.*a task, 3. Received: 2"):
        kt.losses.MaskedBinaryCrossentropy(**{argument: [1.0, 2.0]})(y, p)


def test_tasks_of_weight_0_alone_cost_nothing_under_the_mean():
    y, p = np.array([[NAN, 1]], "float32"), np.array([[0.5, 0.5]], "float32")
    loss = kt.losses.MaskedBinaryCrossentropy(task_weights=[1, 0], normalization="mean")
    assert float(loss(y, p)) == 0.0


def test_a_constant_of_the_data_set_is_as_large_as_the_mean_of_cells():
    y, p = reference.case()
    known = ~np.isnan(y)
    loss = kt.losses.MaskedBinaryCrossentropy(normalization=float(known.sum(1).mean()))
    expected = reference.row_losses(y, p).sum() / known.sum()
    np.testing.assert_allclose(loss(y, p), expected, rtol=1e-6)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_multiclass_is_keras_on_the_known_rows(logits, column):
    y, z = class_case()
    p = z if logits else np.array(keras.ops.softmax(z))
    known = ~np.isnan(y)
    stock = keras.losses.SparseCategoricalCrossentropy(logits, reduction="sum")(y[known], p[known])
    ours = kt.losses.MaskedCategoricalCrossentropy(logits, reduction="sum")(
        y[:, None] if column else y, p
    )
    np.testing.assert_allclose(ours, stock, rtol=1e-6)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("xla", [False, True])
def test_multiclass_keeps_the_laws(logits, xla):
    y, z = class_case()
    missing = np.isnan(y)
    loss = kt.losses.MaskedCategoricalCrossentropy(logits, reduction="none", missing=-1)

    @tf.function(jit_compile=xla)
    def both(y, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = loss(y, p)
        return value, tape.gradient(value, p)

    results, chances = [], abs(z) / abs(z).sum(1, keepdims=True)
    for hidden in [0.2, NAN, np.inf, -1e30]:
        p = np.where(missing[:, None], np.float32(hidden), z if logits else chances)
        coded = np.where(missing, np.float32(-1), y)
        value, slope = both(tf.constant(coded), tf.constant(p))
        assert (value.numpy()[missing] == 0).all() and (slope.numpy()[missing] == 0).all()
        results.append(value.numpy().tobytes() + slope.numpy().tobytes())
    assert len(set(results)) == 1
    p[1, 0] = NAN
    value, slope = both(tf.constant(coded), tf.constant(p))
    assert np.isnan(value[1]) and np.isnan(slope[1]).any()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("wrong", [3.0, -2.0, 0.5, np.inf, 1e30])
def test_a_label_that_is_no_class_is_refused_and_under_xla_makes_its_row_nan(wrong, jit):
    y, z = class_case()
    y[1] = wrong
    loss = tf.function(
        kt.losses.MaskedCategoricalCrossentropy(True, reduction="none"),
        jit_compile=jit,
        autograph=False,
    )
    if jit:
        value = loss(y, z).numpy()
        assert np.isnan(value[1]) and not np.isnan(np.delete(value, 1)).any()
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match="`y_true` must be a class from 0"):
            loss(y, z)


@pytest.mark.parametrize("shapes", [((4, 3), (4, 3)), ((4,), (3, 2)), ((4,), (4,))])
def test_labels_that_are_not_one_class_a_row_are_refused(shapes):
    with pytest.raises(ValueError, match="`y_true` is not one class a row"):
        kt.losses.MaskedCategoricalCrossentropy()(*(np.zeros(shape, "float32") for shape in shapes))


def test_multiclass_comes_back_from_its_config():
    loss = kt.losses.MaskedCategoricalCrossentropy(True, normalization=2.0, missing=-1)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    y, z = class_case()
    assert again.get_config() == loss.get_config() and float(again(y, z)) == float(loss(y, z))


def test_expected_positives_by_batch_is_the_published_term():
    y, p = reference.case(tasks=4)
    level = losses.ExpectedPositives(1.5, level="batch")(y, p)
    published = ((p.sum(1).mean() - 1.5) / 4) ** 2
    np.testing.assert_allclose(level, reference.loss(y, p) + 4 * published, rtol=1e-5)
    assert level <= losses.ExpectedPositives(1.5)(y, p)


def scheduled(share, epochs=1, logits=False):
    """A model, the loss that a schedule has set, and its unknown predictions by then."""
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(3).normal(size=(50, 4)).astype("float32")
    y = reference.case(rows=50, tasks=3, known=0.4)[0]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    if not logits:
        model.add(keras.layers.Activation("sigmoid"))
    loss = losses.LargeLoss(from_logits=logits)
    model.compile(keras.optimizers.SGD(0.0), loss)
    schedule = losses.LargeLossSchedule(x, y, step=share)
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=[schedule])
    return model, x, y


@pytest.mark.parametrize("logits", [False, True])
def test_the_schedule_cuts_off_its_share_of_the_data_set(logits):
    model, x, y = scheduled(0.1, epochs=3, logits=logits)
    p = model.predict(x, verbose=0)
    unknown = (reference.sigmoid(p) if logits else p)[np.isnan(y)]
    assert abs((unknown > model.loss.threshold).mean() - 0.2) < 0.02
    value = model.evaluate(x, y, batch_size=7, verbose=0)
    np.testing.assert_allclose(value, model.evaluate(x, y, batch_size=50, verbose=0), rtol=1e-5)
    all_unknown = model.loss(y, p) - reference.loss(y, p, logits)
    kept = unknown[unknown <= model.loss.threshold]
    np.testing.assert_allclose(all_unknown, -np.log(1 - kept).sum() / 50, rtol=1e-4)


def test_the_first_epoch_cuts_off_nothing_and_the_threshold_is_saved(tmp_path):
    model, _, _ = scheduled(0.1)
    assert model.loss.threshold == 1.0
    model.loss.threshold = 0.75
    model.save(tmp_path / "m.keras")
    assert kt.load_model(tmp_path / "m.keras").loss.threshold == 0.75


def test_a_schedule_without_its_loss_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "sigmoid")])
    model.compile("sgd", kt.losses.MaskedBinaryCrossentropy())
    x, y = np.zeros((2, 4)), np.zeros((2, 3))
    with pytest.raises(ValueError, match="no LargeLoss"):
        model.fit(x, y, verbose=0, callbacks=[losses.LargeLossSchedule(x, y)])


def test_hill_hardly_moves_what_looks_positive_and_an_does():
    y = np.full((1, 4), NAN, "float32")
    p = tf.constant([[0.2, 0.5, 0.9, 0.999]])

    def slopes(loss):
        with tf.GradientTape() as tape:
            z = tf.Variable(tf.math.log(p / (1 - p)))
            value = loss(y, z)
        return tape.gradient(value, z).numpy()[0]

    hill, negative = (
        slopes(kind(from_logits=True)) for kind in (losses.HillLoss, losses.AssumeNegative)
    )
    assert hill[3] < 0.01 < hill[1] and negative[3] > 0.99


def test_a_model_of_mixed_kinds_trains_with_one_loss_an_output():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    outputs = {
        "binary": keras.layers.Dense(3, "sigmoid", name="binary")(inputs),
        "kind": keras.layers.Dense(3, "softmax", name="kind")(inputs),
        "age": keras.layers.Dense(1, name="age")(inputs),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        "sgd",
        {
            "binary": kt.losses.MaskedBinaryCrossentropy(),
            "kind": kt.losses.MaskedCategoricalCrossentropy(),
            "age": kt.losses.MaskedMeanSquaredError(),
        },
    )
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    y = {
        "binary": reference.case(rows=12, tasks=3)[0],
        "kind": class_case()[0],
        "age": np.where(np.arange(12)[:, None] % 2, NAN, x[:, :1]),
    }
    p = model.predict(x, verbose=0)
    known = ~np.isnan(y["kind"])
    chosen = p["kind"][known, y["kind"][known].astype(int)]
    expected = (
        reference.loss(y["binary"], p["binary"])
        - np.log(chosen).sum() / 12
        + row_costs(CASES["squared"], y["age"], p["age"]).mean()
    )
    value = model.evaluate(x, y, batch_size=5, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(value, expected, rtol=1e-5)


# Arguments and inputs that are almost right

COUNTING = [
    (lambda **more: losses.AssumeNegative(0.0, **more), "sum"),
    (lambda **more: losses.AssumeNegative(0.0, normalization="mean", **more), "mean"),
    (lambda **more: losses.AsymmetricLoss(0, 0, 0, 1.0, 0.0, **more), "sum"),
    (lambda **more: losses.ExpectedPositives(1.0, weight=0.0, **more), "sum"),
]


@pytest.mark.parametrize(("make", "normalization"), COUNTING)
@pytest.mark.parametrize("hidden", [0.3, NAN, 7.0])
def test_unknown_cells_of_weight_0_are_not_there(make, normalization, hidden):
    y, p = reference.case(rows=16, tasks=4)
    expected = kt.losses.MaskedBinaryCrossentropy(normalization=normalization)(y, p)
    p = np.where(np.isnan(y), np.float32(hidden), p)
    np.testing.assert_allclose(make()(y, p), expected, rtol=1e-5)


def network(activation, **options):
    """A model of two outputs, compiled with the default mode of Keras, and its rows."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation)])
    model.compile("sgd", kt.losses.MaskedBinaryCrossentropy(**options.pop("loss", {})), **options)
    x = 5 * np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
    return model, x, np.random.default_rng(1).choice([0, 1, NAN], (40, 2)).astype("float32")


runs = pytest.mark.parametrize("eagerly", [False, True], ids=["graph", "eager"])


@runs
@pytest.mark.parametrize("step", ["fit", "evaluate", "train_on_batch"])
def test_labels_of_minus_one_end_the_training_with_what_to_do(eagerly, step):
    model, x, y = network("sigmoid", run_eagerly=eagerly, jit_compile=False)
    coded = np.where(np.isnan(y), -1, y).astype("int32")
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        getattr(model, step)(x, coded, **({"verbose": 0} if step != "train_on_batch" else {}))
    said = str(caught.value)
    assert "`y_true` must be from 0 to 1, or NaN (= missing)" in said and "missing=-1" in said
    first = np.isnan(y if step == "train_on_batch" else y[:32]).sum()
    assert step == "fit" or f"[{first}]" in said  # fit shuffles
    model, x, _ = network("sigmoid", run_eagerly=eagerly, loss={"missing": -1}, jit_compile=False)
    model.fit(x, coded, verbose=0)


@runs
def test_a_forgotten_from_logits_ends_the_training_with_what_to_do(eagerly):
    model, x, y = network(None, run_eagerly=eagerly, jit_compile=False)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        model.fit(x, y, verbose=0)
    assert "`y_pred` must be probabilities" in str(caught.value)
    assert "from_logits=True" in str(caught.value)


def test_a_training_that_diverged_is_no_matter_of_the_labels():
    model, x, y = network("sigmoid", jit_compile=False)
    model.layers[0].bias.assign([NAN, NAN])
    assert np.isnan(model.fit(x, y, verbose=0).history["loss"][0])


def test_symbolic_tensors_have_a_loss():
    y, p = keras.KerasTensor((4, 2)), keras.KerasTensor((4, 2))
    for loss in (kt.losses.MaskedBinaryCrossentropy(), losses.ExpectedPositives(1.0)):
        assert loss(y, p).shape == ()


@pytest.mark.parametrize("name", [n for n, case in CASES.items()])
def test_float64_is_computed_in_float64_and_less_than_float32_is_refused(name):
    case = CASES[name]
    y, p = case.data(1, 0.5)
    p = p.astype("float64")
    loss = case.make(dtype="float64", reduction="none")
    with tf.GradientTape() as tape:
        q = tf.Variable(p)
        value = loss(y, q)
    assert value.dtype == tape.gradient(value, q).dtype == tf.float64
    np.testing.assert_allclose(value, row_costs(case, y, p), rtol=1e-9, atol=1e-6)
    assert case.make(**loss.get_config()).dtype == "float64" if name == "binary" else True
    for narrow in ("float16", "bfloat16", keras.DTypePolicy("mixed_float16")):
        with pytest.raises(ValueError, match="`dtype` cannot hold the loss.*Received: "):
            case.make(dtype=narrow)


def test_float64_with_a_balancer_and_weights():
    y, p = reference.case(rows=6, tasks=2)
    loss = kt.losses.MaskedBinaryCrossentropy(
        dtype="float64",
        balancer=kt.losses.UncertaintyWeighting(2),
        pos_weight=[1, 2],
        task_weights=[1, 2],
    )
    with tf.GradientTape() as tape:
        q = tf.Variable(p.astype("float64"))
        value = loss(y, q)
    assert np.isfinite(tape.gradient(value, q)).all()


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64])
def test_numbers_of_numpy_are_numbers(number):
    two, one = number(2), number(1)
    y, p = reference.case(tasks=3)
    made = kt.losses.MaskedBinaryCrossentropy(
        pos_weight=two, normalization=two, gamma=two, label_smoothing=one, missing=-two
    )
    plain = kt.losses.MaskedBinaryCrossentropy(
        pos_weight=2.0, normalization=2.0, gamma=2.0, label_smoothing=1.0, missing=-2.0
    )
    assert made.get_config() == plain.get_config() and float(made(y, p)) == float(plain(y, p))
    assert type(made.get_config()["missing"]) is float
    assert losses.ExpectedPositives(y[:0].sum(axis=1).size + two).positives == 2.0


@pytest.mark.parametrize("missing", ["?", (-1, -2), NAN, True, None, 0, 1, 0.5])
def test_a_code_for_missing_is_one_number_that_is_no_label(missing):
    makers = (
        kt.losses.MaskedBinaryCrossentropy,
        kt.metrics.MaskedAUC,
        kt.metrics.MaskedF1,
        losses.HillLoss,
    )
    if missing is None:
        assert all(make(missing=missing).missing is None for make in makers)
        return
    for make in makers:
        with pytest.raises(ValueError, match="`missing` is .*Received: "):
            make(missing=missing)
    for make in (kt.losses.MaskedMeanSquaredError, kt.metrics.MaskedMAE):
        if missing in (0, 0.5) and missing is not True:
            assert make(missing=missing).missing == missing
        elif missing != 1:
            with pytest.raises(ValueError, match="`missing` is no code"):
                make(missing=missing)


def test_a_class_is_no_code_for_missing():
    y, z = class_case()
    with pytest.raises(ValueError, match="`missing` is a class. Expected none of 0 to 2.*: 2"):
        kt.losses.MaskedCategoricalCrossentropy(True, missing=2)(y, z)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("code", [-99.9, -9999.9])
def test_a_code_that_float32_rounds_is_missing_in_any_labels(dtype, code):
    y = np.array([[1, code], [2, 3], [code, 4]], dtype)
    p = np.array([[1, 0], [2, 3], [9, 4]], "float32")
    assert float(losses.MaskedMeanAbsoluteError(missing=code)(y, p)) == 0.0


def test_the_weight_of_a_single_task_is_not_averaged_away():
    y, p = np.array([0, 1, NAN], "float32"), np.array([[0.3, 0.7]] * 3, "float32")
    expected = 0.5 * -np.log([0.3, 0.7]).sum() / 3
    for normalization in ("sum", "mean"):
        loss = kt.losses.MaskedCategoricalCrossentropy(
            task_weights=[0.5], normalization=normalization
        )
        np.testing.assert_allclose(loss(y, p), expected, rtol=1e-6)
        loss = kt.losses.MaskedMeanSquaredError(task_weights=[0.5], normalization=normalization)
        np.testing.assert_allclose(loss(np.array([[2.0], [NAN]]), np.zeros((2, 1))), 1.0)


def test_a_power_beyond_all_numbers_is_refused():
    with pytest.raises(ValueError, match="`alpha`, `beta` and `gamma` make a weight"):
        losses.PartialBinaryCrossentropy(1.0, 0.0, -200.0)
    with pytest.raises(ValueError, match="`normalization` is fixed.*Expected 'sum'.*: 'mean'"):
        losses.PartialBinaryCrossentropy(normalization="mean")
    with pytest.raises(ValueError, match="`alpha` is out of range"):
        losses.PartialBinaryCrossentropy(alpha="1")


def test_labels_of_one_dimension_are_told_their_shape():
    with pytest.raises(ValueError, match=r"differ in shape.*y\.reshape\(-1, 1\)"):
        kt.losses.MaskedMeanSquaredError()(np.zeros(4, "float32"), np.zeros((4, 1), "float32"))


TRACED = [
    (kt.losses.MaskedBinaryCrossentropy(reduction="none"), (3, 1)),
    (kt.losses.MaskedMeanSquaredError(reduction="none"), (1, 4)),
    (kt.losses.MaskedCategoricalCrossentropy(reduction="none"), (3, 4)),
    (kt.losses.MaskedCategoricalCrossentropy(reduction="none"), (1, 1)),
]


@pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(("loss", "shape"), TRACED)
def test_labels_whose_shape_shows_only_when_a_graph_runs_are_not_broadcast(loss, shape, xla):
    spec = [tf.TensorSpec([None, None]), tf.TensorSpec([None, 4])]
    call = tf.function(loss, input_signature=spec, jit_compile=xla)
    p = tf.fill((3, 4), 0.25)
    good = (3, 1) if isinstance(loss, kt.losses.MaskedCategoricalCrossentropy) else (3, 4)
    assert call(tf.ones(good), p).shape == (3,)
    if xla and shape[0] == 1:
        return  # XLA checks no rows: assertions are not compiled
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible|differ in"):
        call(tf.ones(shape), p)


def test_a_metric_checks_them_too():
    metric = kt.metrics.MaskedBinaryAccuracy()
    spec = [tf.TensorSpec([None, None]), tf.TensorSpec([None, 4])]
    update = tf.function(metric.update_state, input_signature=spec)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`y_pred` differ in shape"):
        update(tf.ones((3, 1)), tf.fill((3, 4), 0.25))
    assert np.isnan(metric.result())


@pytest.mark.parametrize(
    "call",
    [kt.losses.MaskedBinaryCrossentropy(), kt.losses.MaskedCategoricalCrossentropy()],
    ids=["b", "c"],
)
def test_an_unknown_number_of_dimensions_is_refused_with_the_way_out(call):
    spec = [tf.TensorSpec(None), tf.TensorSpec([None, 4])]
    with pytest.raises(ValueError, match="`y_true` has no known number of dimensions.*from_gen"):
        tf.function(call, input_signature=spec)(tf.ones((3, 4)), tf.ones((3, 4)))


@pytest.mark.parametrize("normalization", ["sum", "mean"])
def test_unknown_labels_count_as_0_in_the_tasks_that_say_so(normalization):
    y = np.array([[1, np.nan, 0], [np.nan, np.nan, np.nan]], "float32")
    p = np.array([[0.8, np.nan, 0.4], [0.3, 0.9, 0.5]], "float32")
    loss = losses.AssumeNegative([0.5, 0.0, 1.0], normalization=normalization, reduction="none")
    first, second = -np.log(0.8) - np.log(0.6), -0.5 * np.log(0.7) - np.log(0.5)
    count = 2.0 if normalization == "mean" else 1.0
    np.testing.assert_allclose(loss(y, p), [first / count, second / count], rtol=1e-6)
    again = losses.AssumeNegative.from_config(loss.get_config())
    assert again.unknown_weight == loss.unknown_weight == (0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="`unknown_weight` does not fit the labels"):
        losses.AssumeNegative([1.0, 0.0])(y, p)
