"""Layer groups: which ones there are, and what freeze and unfreeze do to them."""

import keras
import numpy as np
import pytest
from modules import (
    save_dict_module,
    save_keras_export,
    save_nested_module,
    save_reusable,
    save_text_module,
    twin,
)

import kerasmtl as kt
from kerasmtl.models.layer_groups import scopes
from kerasmtl.saved_models.tiny.network import FILTERS_AND_STRIDES, L2

BLOCKS = len(FILTERS_AND_STRIDES)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(scope="module")
def reusable(place):
    return save_reusable(place / "reusable")


def images(rows=4, size=64, seed=0):
    return np.random.default_rng(seed).random((rows, size, size, 3), dtype="float32")


def names(groups):
    return [group.name for group in groups]


def own_network():
    """Three convolutions, batch normalization after the first two."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(2, 3, name="first"),
            keras.layers.BatchNormalization(name="first_bn"),
            keras.layers.Conv2D(2, 3, name="second"),
            keras.layers.BatchNormalization(name="second_bn"),
            keras.layers.Conv2D(2, 3, name="third"),
            keras.layers.GlobalAveragePooling2D(),
        ],
        name="own",
    )


def functional(network):
    return keras.Model(network.inputs, network.outputs, name="functional")


class Subclassed(keras.Model):
    def __init__(self, network):
        super().__init__(name="subclassed")
        self.parts = network.layers

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x)
        return x


def subclassed(network):
    model = Subclassed(network)
    model(np.zeros((1, 8, 8, 3), "float32"))
    return model


def trained(model):
    """The layers with trainable weights."""
    found = [layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model)]
    return [layer.name for layer in found if layer.trainable_variables]


def snapshot(layer):
    return [variable.numpy() for variable in layer.variables]


def moved(before, layer):
    return {
        variable.path
        for old, variable in zip(before, layer.variables, strict=True)
        if not np.array_equal(old, variable.numpy())
    }


def step(model, size=32):
    x = images(2, size)
    model.train_on_batch(x, np.ones((len(x), model.output_shape[-1]), "float32"))


# ---------------------------------------------------------------- which groups


def test_last_counts_groups_from_the_output_or_takes_a_share_rounded_up():
    layer = kt.HubLayer("tiny")
    for last, chosen in ((2, 2), (99, BLOCKS), (0.3, 3), (1.0, 8), (None, 8)):
        expected = [f"block_{number}/conv" for number in range(BLOCKS - chosen + 1, BLOCKS + 1)]
        assert names(kt.unfreeze(layer, last=last)) == expected
        kernels = [f"{name.replace('/', '_')}_kernel" for name in expected]
        assert [v.path for v in layer.trainable_variables] == kernels


def test_groups_run_from_input_to_output_with_their_numbers():
    layer = kt.HubLayer("tiny")
    inputs = [3, *(filters for filters, _ in FILTERS_AND_STRIDES)]
    for number, group in enumerate(kt.backbones.layer_groups(layer)):
        filters = FILTERS_AND_STRIDES[number][0]
        kernel = 9 * inputs[number] * filters
        assert (group.name, group.depth) == (f"block_{number + 1}/conv", number + 1)
        assert (group.parameters, group.trainable) == (kernel + 4 * filters, 0)
    kt.unfreeze(layer, last=1, normalization=True)
    groups = kt.backbones.layer_groups(layer)
    kernel = 9 * inputs[-2] * inputs[-1]
    assert [group.trainable for group in groups] == [0] * 7 + [kernel + 2 * inputs[-1]]


def test_match_finds_groups_by_their_name_or_a_variables():
    layer = kt.HubLayer("tiny")
    for match, numbers in (("block_[3-5]", [3, 4, 5]), ("conv/kernel", range(1, 9)), ("8", [8])):
        assert names(kt.unfreeze(layer, match=match)) == [f"block_{n}/conv" for n in numbers]


def test_another_choice_replaces_the_first_and_freeze_takes_all_back():
    layer = kt.HubLayer("tiny")
    kt.unfreeze(layer, last=3)
    kt.unfreeze(layer, match="block_1/")
    assert [v.path for v in layer.trainable_variables] == ["block_1_conv_kernel"]
    layer.trainable = True
    assert len(layer.trainable_variables) == 3 * BLOCKS
    kt.unfreeze(layer, last=1)
    layer.trainable = True  # the value is there already: still the whole
    assert len(layer.trainable_variables) == 3 * BLOCKS
    kt.freeze(layer)
    assert layer.trainable_variables == [] and not layer.trainable


@pytest.mark.parametrize(
    "save, expected",
    [
        (save_text_module, ["words"]),
        (save_nested_module, ["encoder"]),
        (save_keras_export, ["first", "second"]),
        (save_reusable, ["block_1/conv"]),
    ],
)
def test_every_kind_of_module_has_groups(place, save, expected):
    layer = kt.HubLayer(save(place / f"groups_{save.__name__}"))
    assert names(kt.unfreeze(layer)) == expected


@pytest.mark.parametrize("make", [lambda network: network, functional, subclassed])
def test_an_own_model_is_a_backbone_as_well(make):
    model = make(own_network())
    assert names(kt.backbones.layer_groups(model)) == ["first", "second", "third"]
    assert names(kt.unfreeze(model, last=2)) == ["second", "third"]
    assert trained(model) == ["second", "third"]
    kt.unfreeze(model, match="second", normalization=True)
    assert trained(model) == ["second", "second_bn"]
    kt.freeze(model)
    assert trained(model) == [] and model.trainable_variables == []


def test_a_frozen_model_does_not_hide_what_is_unfrozen_in_it(reusable):
    model = kt.build_model(kt.HubLayer(reusable, input_range=(0, 1)), ["a"], 12)
    model.trainable = False
    kt.unfreeze(model)
    assert [v.path for v in model.trainable_variables] == ["block_1_conv_kernel"]


def test_a_nested_model_with_a_hub_layer_inside(reusable):
    image = keras.Input((12, 12, 3))
    before = keras.layers.Conv2D(3, 1, name="before")(image)
    nested = keras.Model(image, kt.HubLayer(reusable)(before), name="nested")
    model = kt.build_model(nested, ["a"])
    assert names(kt.backbones.layer_groups(model))[:2] == ["before", "block_1/conv"]
    kt.unfreeze(model, match="block_1")
    kernel, *head = model.trainable_variables
    assert kernel.path == "block_1_conv_kernel" and len(head) == 2
    kt.unfreeze(model, match="before")
    assert trained(nested) == ["before"]


def test_several_nested_models_are_ambiguous():
    image = keras.Input((12, 12, 3))
    nested = [
        keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Conv2D(2, 3)], name=name)
        for name in ("left", "right")
    ]
    model = keras.Model(image, keras.layers.Concatenate()([part(image) for part in nested]))
    with pytest.raises(ValueError, match=r"`model`.*get_layer\('left'\)"):
        kt.unfreeze(model, last=1)
    assert kt.unfreeze(model.get_layer("right"), last=1)


def test_batch_normalization_goes_with_the_layer_that_feeds_it():
    image = keras.Input((12, 12, 3))
    left, right = (keras.layers.Conv2D(2, 3, name=name)(image) for name in ("left", "right"))
    sides = [
        keras.layers.BatchNormalization(name="left_bn")(left),
        keras.layers.LayerNormalization()(keras.layers.BatchNormalization(name="right_bn")(right)),
    ]
    model = keras.Model(image, keras.layers.Add()(sides))
    assert sorted(names(kt.backbones.layer_groups(model))) == ["left", "right"]
    kt.unfreeze(model, match="^left", normalization=True)
    assert set(trained(model)) == {"left", "left_bn"}


class Block(keras.layers.Layer):
    """A convolution and its batch normalization in one layer, as KerasHub writes them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.steps = keras.layers.Conv2D(2, 3), [keras.layers.BatchNormalization()]

    def build(self, shape):
        self.conv.build(shape)
        self.steps[0].build(self.conv.compute_output_shape(shape))

    def call(self, x, training=None):
        return self.steps[0](self.conv(x), training=training)


@pytest.mark.parametrize("normalization", [False, True])
def test_batch_normalization_inside_a_layer_stays_frozen(normalization):
    backbone = keras.Sequential([keras.Input((12, 12, 3)), Block(name="block")])
    kt.unfreeze(backbone, normalization=normalization)
    norm = backbone.layers[-1].steps[0]
    before = [v.numpy().copy() for v in norm.variables]
    backbone.compile("adam", "mse")
    x = np.random.default_rng(0).random((4, 12, 12, 3), dtype="float32")
    backbone.train_on_batch(x, np.zeros((4, 10, 10, 2), "float32"))
    same = [np.array_equal(a, v) for a, v in zip(before, norm.variables, strict=True)]
    assert any(same) == all(same) == (not normalization)


def test_a_wrapped_hub_layer_is_found():
    frames = keras.Input((2, 64, 64, 3))
    wrapped = keras.layers.TimeDistributed(kt.HubLayer("tiny"))(frames)
    backbone = keras.Model(frames, wrapped)
    assert names(kt.unfreeze(backbone, last=2)) == ["block_7/conv", "block_8/conv"]


@pytest.mark.parametrize(
    "paths, groups",
    [
        # pre-activation: its normalization is named after the block
        (["a/conv/w", "a/bn/gamma", "a/bn/moving_mean"], {"a/conv": 1}),
        # two branches at one depth
        (
            [
                "b_0_conv/k",
                "b_1_conv/k",
                "b_0_bn/gamma",
                "b_0_bn/moving_mean",
                "b_1_bn/moving_mean",
            ],
            {"b_0_conv": 1, "b_1_conv": 1},
        ),
        # names of Sonnet
        (["net/conv/w", "net/bn/moving_mean/hidden", "net/bn/scale"], {"net/conv": 1}),
        # a scale that is a kernel, beside statistics
        (["x/scale_kernel", "x/moving_mean"], {"x": 1}),
        # layer normalization: with the layer before
        (["t/dense/kernel", "t/LayerNorm/gamma", "t/LayerNorm/beta"], {"t/dense": 3}),
        # no scopes at all
        (["kernel", "bias", "kernel", "bias"], {"layer_1": 2, "layer_2": 2}),
        # normalization first
        (["bn/moving_mean", "conv/kernel"], {"conv": 1}),
    ],
)
def test_scopes(paths, groups):
    found = scopes(paths, range(len(paths)))
    assert {name: len(weights) for name, (weights, _) in found.items()} == groups
    held = sorted(index for parts in found.values() for part in parts for index in part)
    assert held == list(range(len(paths)))


# ---------------------------------------------------------------- errors


WRONG = [
    ({"match": "nothing"}, "`match`.*first, second, third"),
    ({"match": "("}, "`match`"),
    ({"match": 3}, "`match`"),
    *(({"last": last}, "`last`") for last in (0, True, float("nan"), 1.5)),
    ({"last": 1, "match": "first"}, "`last` or `match`"),
]


@pytest.mark.parametrize("arguments, message", WRONG)
def test_a_wrong_choice_is_named_and_changes_nothing(arguments, message):
    own = own_network()
    kt.unfreeze(own, match="second")
    with pytest.raises(ValueError, match=message):
        kt.unfreeze(own, **arguments)
    assert trained(own) == ["second"]


def test_a_choice_that_fits_one_of_two_backbones_changes_neither(reusable):
    image = keras.Input((64, 64, 3))
    hubs = [kt.HubLayer("tiny"), kt.HubLayer(reusable, name="hub")]
    model = keras.Model(image, keras.layers.Concatenate()([hub(image) for hub in hubs]))
    kt.freeze(model)
    with pytest.raises(ValueError, match="`match`.*'hub'.*block_1/conv"):
        kt.unfreeze(model, match="block_8")
    assert model.trainable_variables == []


def test_a_module_that_cannot_be_trained_says_why(place):
    with pytest.raises(ValueError, match="`trainable`.*no trainable variables"):
        kt.unfreeze(kt.HubLayer(save_dict_module(place / "several")))
    layer = kt.HubLayer(save_keras_export(place / "export"), signature="serve")
    with pytest.raises(ValueError, match="`trainable`.*signatures"):
        kt.unfreeze(layer, last=1)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("kind, normalization", [("hub", False), ("hub", True), ("keras", True)])
def test_normalization_is_trained_only_if_asked(kind, normalization):
    layer = kt.HubLayer("tiny")
    backbone = layer if kind == "hub" else twin(layer)
    model = kt.build_model(backbone, ["a"], 32)
    kt.unfreeze(model, last=1, normalization=normalization)
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    before = snapshot(backbone)
    step(model)
    changed = {path.replace("/", "_") for path in moved(before, backbone)}
    expected = {"block_8_conv_kernel"}
    if normalization:
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        expected |= {f"block_8_bn_{part}" for part in parts}
    if kind == "hub":  # its one switch for training mode moves all of the statistics
        changed -= {path for path in changed if "moving" in path and "block_8" not in path}
    assert changed == expected


def test_after_one_step_a_hub_layer_has_the_weights_of_plain_keras():
    layer = kt.HubLayer("tiny")
    plain = twin(layer)
    weights = []
    for backbone in (layer, plain):
        keras.utils.set_random_seed(0)
        model = kt.build_model(backbone, ["a", "b"], 32)
        kt.unfreeze(model, last=2)
        model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
        step(model)
        weights.append({v.path.replace("/", "_"): v.numpy() for v in backbone.variables})
    hub, keras_ = weights
    assert hub.keys() == keras_.keys()
    for name, value in keras_.items():
        np.testing.assert_allclose(hub[name], value, rtol=0, atol=1e-6, err_msg=name)
    assert [g.trainable for g in kt.backbones.layer_groups(layer)] == [
        g.trainable for g in kt.backbones.layer_groups(plain)
    ]


def test_only_losses_of_what_is_trained_count():
    layer = kt.HubLayer("tiny")
    kt.unfreeze(layer, last=2)
    layer(images(1), training=True)
    kernels = {v.path: v.numpy() for v in layer.variables if v.path.endswith("kernel")}
    expected = [L2 * (kernels[f"block_{k}_conv_kernel"] ** 2).sum() for k in (7, 8)]
    np.testing.assert_allclose(sorted(map(float, layer.losses)), sorted(expected), rtol=1e-5)
