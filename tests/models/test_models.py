import keras
import numpy as np
import pytest

from keras_dlopt import models
from keras_dlopt.errors import ConfigError


def _trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


# Counted by hand from the papers' tables, or printed by the authors.
TRAINABLE = [
    (models.lenet_300_100, {}, 266_610),
    (models.lenet5, {}, 431_080),
    (models.textbook_cnn, {}, 421_642),
    (models.resnet20, {}, 269_722),
    (models.resnet32, {}, 464_154),
    (models.resnet56, {}, 853_018),
    (models.resnet20, {"shortcut": "projection"}, 272_474),
    (models.wide_resnet, {"depth": 16, "widen": 8}, 10_961_370),
    (models.wide_resnet, {"depth": 40, "widen": 4}, 8_949_210),
    (models.resnet18, {}, 11_689_512),
]
SLOW = [
    (models.resnet110, {}, 1_727_962),
    (models.resnet34, {}, 21_797_672),
    (models.wide_resnet, {"depth": 28, "widen": 10}, 36_479_194),
]


@pytest.mark.parametrize(
    ("make", "kwargs", "count"),
    TRAINABLE + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW],
)
def test_parameter_counts_of_the_papers(make, kwargs, count):
    assert _trainable(make(**kwargs)) == count


def test_resnet_counts_by_formula():
    # 3x3 convolutions without bias, two numbers per normalized channel.
    def count(depth, width, channels, classes):
        n, total, last = (depth - 2) // 6, 9 * channels * width + 2 * width, width
        for stage in range(3):
            filters = width * 2**stage
            for _ in range(n):
                total += 9 * last * filters + 9 * filters * filters + 4 * filters
                last = filters
        return total + last * classes + classes

    model = models.resnet(depth=14, width=5, input_shape=(8, 8, 1), classes=3)
    assert _trainable(model) == count(14, 5, 1, 3)
    assert count(20, 16, 3, 10) == 269_722


@pytest.fixture(scope="module")
def theirs():
    return keras.applications.ResNet50(weights=None, classifier_activation=None)


def test_resnet50_counts(theirs):
    assert _trainable(models.resnet50()) == 25_557_032
    ours = models.resnet50(conv_bias=True)
    assert ours.count_params() == theirs.count_params() == 25_636_712


def test_resnet50_equals_keras_applications_with_its_weights():
    keras.utils.set_random_seed(0)
    theirs = keras.applications.ResNet50(
        weights=None, classifier_activation=None, input_shape=(64, 64, 3)
    )
    ours = models.resnet50(conv_bias=True, input_shape=(64, 64, 3))
    rng = np.random.default_rng(1)
    for layer in theirs.layers:
        if not layer.weights:
            continue
        twin = ours.get_layer(layer.name)
        for v, w in zip(layer.weights, twin.weights, strict=True):
            assert v.name == w.name
            value = np.asarray(v) + rng.normal(0, 0.01, v.shape)
            value = np.abs(value) if "variance" in v.name else value
            v.assign(value)
            w.assign(value)
    x = rng.normal(size=(2, 64, 64, 3)).astype("float32")
    a, b = np.asarray(theirs(x)), np.asarray(ours(x))
    # The same ops in the same order, so the same bits.
    np.testing.assert_array_equal(a, b)


def test_the_cifar_networks_are_plain_visible_layers():
    model = models.resnet20(input_shape=(28, 28, 1))
    standard = {type(layer) for layer in model.layers}
    assert all(kind.__module__.startswith("keras.") for kind in standard)
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names)
    for name in ("stage1_block1_conv1", "stage3_block3_relu2", "classifier"):
        assert name in names
    weighted = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
    ]
    assert len(weighted) == 20


@pytest.mark.parametrize("shortcut", ["pad", "projection", "none"])
def test_shortcuts(shortcut):
    model = models.resnet(
        depth=8, width=4, input_shape=(9, 9, 1), shortcut=shortcut, zero_init=True
    )
    adds = [n for n in model.layers if isinstance(n, keras.layers.Add)]
    assert len(adds) == (0 if shortcut == "none" else 3)
    assert model(np.zeros((2, 9, 9, 1))).shape == (2, 10)


def test_the_pad_shortcut_is_a_subsampled_identity():
    model = models.resnet(depth=8, width=2, input_shape=(9, 9, 1))
    part = keras.Model(
        model.get_layer("stage1_block1_relu2").output,
        model.get_layer("stage2_block1_short_pad").output,
    )
    x = np.random.default_rng(0).normal(size=(2, 9, 9, 2)).astype("float32")
    y = np.asarray(part(x))
    np.testing.assert_array_equal(y[..., :2], x[:, ::2, ::2])
    assert y.shape == (2, 5, 5, 4)
    assert not y[..., 2:].any()


def test_lenet5_is_caffes():
    model = models.lenet5()
    kinds = [type(layer).__name__ for layer in model.layers[1:]]
    assert kinds == [
        *("Conv2D", "MaxPooling2D") * 2,
        *("Flatten", "Dense", "Dense"),
    ]
    activations = [
        layer.activation.__name__
        for layer in model.layers
        if hasattr(layer, "activation")
    ]
    assert activations == ["linear", "linear", "relu", "linear"]
    assert models.lenet5(conv_activation="relu").layers[1].activation.__name__ == "relu"


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: models.lenet_300_100(input_shape=(4, 4, 1), **k),
        lambda **k: models.textbook_cnn(input_shape=(4, 4, 1), **k),
        lambda **k: models.resnet(depth=8, width=2, input_shape=(4, 4, 1), **k),
        lambda **k: models.wide_resnet(
            depth=10, widen=1, input_shape=(4, 4, 1), dropout=0.1, **k
        ),
        lambda **k: models.vit_small(
            input_shape=(4, 4, 1), patch=2, units=8, depth=1, seed=1, survival=0.5, **k
        ),
    ],
)
def test_logits_by_default_and_probabilities_on_request(make):
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype("float32")
    y = np.asarray(make(classes=5, activation="softmax", name="net")(x))
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-5)
    assert y.shape == (3, 5)
    assert not np.allclose(np.asarray(make(classes=5)(x)).sum(1), 1)


def test_channels_first_networks_have_the_same_weights():
    keras.config.set_image_data_format("channels_first")
    try:
        first = [
            models.resnet(depth=8, width=4, input_shape=(1, 8, 8)),
            models.vit_small(input_shape=(1, 8, 8), units=8, depth=1),
        ]
    finally:
        keras.config.set_image_data_format("channels_last")
    last = [
        models.resnet(depth=8, width=4, input_shape=(8, 8, 1)),
        models.vit_small(input_shape=(8, 8, 1), units=8, depth=1),
    ]
    for a, b in zip(first, last, strict=True):
        assert [v.shape for v in a.weights] == [v.shape for v in b.weights]
        assert a.output_shape == b.output_shape


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: models.resnet(depth=21), "near it are 20 and 26"),
        (lambda: models.resnet(depth=2), "near it are 8 and 14"),
        (lambda: models.resnet(shortcut="skip"), "shortcut must be one of 'pad'"),
        (lambda: models.resnet(width=0), "width must be a whole number, 1 or greater"),
        (lambda: models.wide_resnet(depth=20), r"depth must be 6n \+ 4"),
        (lambda: models.vit_small(patch=5), "patch must divide both sides"),
        (lambda: models.resnet(input_shape=(8, 8, 20)), None),
    ],
)
def test_impossible_arguments(make, text):
    if text is None:
        # Nothing to pad: the stem has set the channels.
        assert make().output_shape == (None, 10)
        return
    with pytest.raises(ConfigError, match=text):
        make()


def test_a_pad_shortcut_cannot_drop_channels():
    from keras_dlopt.models._build import pad_shortcut

    with pytest.raises(ConfigError, match="8 come in and 4 go out"):
        pad_shortcut(keras.Input((4, 4, 8)), 4, strides=1, name="s")
