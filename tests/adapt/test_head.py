"""New heads on every kind of model, and the labels for them."""

import os
import pathlib

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt import adapt, interop
from keras_dlopt.errors import ConfigError, DataError, ModelError

L = keras.layers
X = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")


def line(end=None):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(3, 3, activation="relu", name="conv"),
            L.GlobalAveragePooling2D(name="pool"),
            L.Dense(5, name="old"),
            *([L.Softmax()] if end else []),
        ]
    )


def graph():
    inputs = keras.Input((8, 8, 1))
    x = L.Conv2D(3, 3, name="conv")(inputs)
    x = keras.ops.relu(x)
    x = L.Flatten(name="flat")(x)
    return keras.Model(inputs, L.Dense(5, activation="softmax", name="old")(x))


@keras.saving.register_keras_serializable("tests")
class Written(keras.Model):
    def __init__(self, branches=False, **kwargs):
        super().__init__(**kwargs)
        self.branches = branches
        self.conv = L.Conv2D(3, 3, name="conv")
        self.drop, self.flat = L.Dropout(0.5), L.Flatten()
        self.old = L.Dense(5)

    def call(self, x, training=False):
        x = self.flat(self.drop(self.conv(x), training=training))
        if self.branches and training:
            x = x + 1
        return self.old(x)

    def get_config(self):
        return {"branches": self.branches, "name": self.name}


def written(**kwargs):
    model = Written(**kwargs)
    model(X)
    return model


def nested():
    return keras.Sequential([keras.Input((8, 8, 1)), L.Rescaling(2.0), graph()])


def features(model, x):
    """What the old head took, by hand."""
    x = 2 * x if isinstance(model.layers[0], L.Rescaling) else x
    inner = model.layers[-1] if isinstance(model.layers[-1], keras.Model) else model
    conv = inner.conv if isinstance(inner, Written) else inner.get_layer("conv")
    y = conv(x)
    y = keras.ops.relu(y) if not isinstance(inner, Written) else y
    if any(isinstance(one, L.GlobalAveragePooling2D) for one in inner.layers):
        return keras.ops.mean(y, (1, 2))
    return keras.ops.reshape(y, (len(x), -1))


@pytest.mark.parametrize("build", [line, lambda: line(True), graph, written, nested])
def test_the_features_stay_and_the_model_trains(build, tmp_path):
    model = build()
    before = [w.copy() for w in model.get_weights()]
    tuned = adapt.new_head(model, 3)
    kernel, bias = tuned.get_layer("head").get_weights()
    np.testing.assert_allclose(
        tuned(X, training=False),
        features(model, X) @ kernel + bias,
        rtol=1e-4,
        atol=1e-5,
    )
    assert isinstance(tuned, keras.Sequential) == isinstance(model, keras.Sequential)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    tuned.compile("sgd", loss)
    tuned.fit(X, np.arange(4) % 3, verbose=0)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    tuned.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(X), tuned(X))


def test_dropout_of_a_written_model_still_drops_in_training():
    tuned = adapt.new_head(written(), 3)
    one, other = (np.asarray(tuned(X, training=True)) for _ in range(2))
    assert (one != other).any()
    with pytest.raises(ModelError, match="something else in training than"):
        adapt.new_head(written(branches=True), 3)


def test_the_place_may_be_named():
    tuned = adapt.new_head(graph(), 3, at="conv")
    assert [one.name for one in tuned.layers][-2:] == ["head_pooling", "head"]
    inner = nested()
    name = inner.layers[-1].name
    deep = adapt.new_head(inner, L.Flatten(), at=f"{name}/conv")
    expected = inner.layers[-1].get_layer("conv")(2 * X)
    np.testing.assert_allclose(deep(X), keras.ops.reshape(expected, (4, -1)), atol=1e-5)
    inputs = keras.Input((6,))
    many = keras.Model(
        inputs, {"pooled": L.Dense(4)(inputs), "all": L.Dense(2)(inputs)}
    )
    assert adapt.new_head(many, 3, at="pooled").output_shape == (None, 3)
    labels = adapt.Labels(["b", "a", "c"])
    assert adapt.new_head(line(), labels).output_shape == (None, 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MobileNet", {"alpha": 0.25}),
        pytest.param("MobileNetV2", {"alpha": 0.35}, marks=pytest.mark.slow),
        pytest.param(
            "MobileNetV2",
            {"alpha": 0.35, "include_top": False},
            marks=pytest.mark.slow,
        ),
        ("MobileNetV2", {"alpha": 0.35, "include_top": False, "pooling": "avg"}),
    ],
)
@pytest.mark.slow
def test_keras_applications(name, options):
    net = getattr(keras.applications, name)(
        input_shape=(32, 32, 3), weights=None, **options
    )
    tuned = adapt.new_head(net, 3)
    head = tuned.get_layer("head")
    assert tuned.output_shape == (None, 3)
    top = options.get("include_top", True)
    of_head = net.layers[-1].count_params() if name == "MobileNetV2" else None
    if name == "MobileNet":
        of_head = net.get_layer("conv_preds").count_params()
    dropped = of_head if top else 0
    assert tuned.count_params() == net.count_params() - dropped + head.count_params()


DATA = pathlib.Path(os.environ.get("KERAS_DLOPT_DATA", ".")) / "mlperf_tiny"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs KERAS_DLOPT_DATA/mlperf_tiny")
@pytest.mark.parametrize("file", ["resnet8_cifar10.h5", "mobilenet_person_96.h5"])
def test_networks_of_mlperf(file):
    net = interop.load(DATA / file)
    tuned = adapt.new_head(net, 4)
    x = np.random.default_rng(0).uniform(size=(2, *net.input_shape[1:]))
    tuned.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = tuned.fit(x, np.arange(2), verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert tuned.count_params() < net.count_params() + 4 * 300


def test_what_is_refused():
    with pytest.raises(ConfigError, match=r"no layer 'cnov' in .*Near it: 'conv'"):
        adapt.new_head(graph(), 3, at="cnov")
    with pytest.raises(ConfigError, match="head must be a whole number, 1 or greater"):
        adapt.new_head(graph(), 0)
    with pytest.raises(ConfigError, match="does not take the features of .* shape"):
        adapt.new_head(graph(), L.Conv2D(3, 3))
    inputs = keras.Input((6,))
    many = keras.Model(inputs, {"a": L.Dense(4)(inputs), "b": L.Dense(2)(inputs)})
    with pytest.raises(ConfigError, match="has 2 outputs. Give at=.*'a', 'b'"):
        adapt.new_head(many, 3)
    small = dlopt.transform(
        line(), dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    )
    with pytest.raises(ModelError, match="is transformed, and a new head would stand"):
        adapt.new_head(small, 3)
    block = written()
    outer = keras.Sequential([keras.Input((8, 8, 1)), block])
    with pytest.raises(ConfigError, match="is a Written, whose inside is no graph"):
        adapt.new_head(outer, 3, at=f"{block.name}/conv")
    pair = keras.Sequential([keras.Input((5, 2)), L.LSTM(3, name="rnn"), L.Dense(2)])
    assert adapt.new_head(pair, 4).output_shape == (None, 4)


def test_labels_come_back_and_strange_ones_are_named():
    labels = adapt.Labels(np.array([[7], [3], [7]]))
    assert labels.encode([3, 7]).tolist() == [0, 1]
    assert labels.decode(np.array([[0.2, 0.1]])).tolist() == [3]
    assert labels.decode([1, 1]).tolist() == [7, 7]
    assert repr(labels) == "Labels(3, 7)"
    with pytest.raises(DataError, match="1 labels were never seen in training: 5. The"):
        labels.encode([3, 5])
    with pytest.raises(DataError, match="Labels are whole numbers. Received: texts."):
        labels.encode(["3"])
    texts = adapt.Labels(["coat", "boot"])
    assert texts.encode(np.array([b"boot"])).tolist() == [0]
    with pytest.raises(DataError, match="'caot'. Near 'caot': 'coat'"):
        texts.encode(["caot"])
    with pytest.raises(DataError, match="Outputs have 3 columns, and there are 2"):
        texts.decode(np.zeros((1, 3)))
    with pytest.raises(DataError, match="Numbers of labels lie in 0 to 1. Received"):
        texts.decode([0, 2])
    with pytest.raises(DataError, match="There are no labels"):
        adapt.Labels([])
    with pytest.raises(DataError, match="one label an example, texts or whole numbers"):
        adapt.Labels([0.5])


def test_labels_that_do_not_fit_the_head():
    model = line()
    adapt.check_labels(model, [0.0, 4.0])
    adapt.check_labels(model, np.eye(5))
    for y, text in (
        ([0, 5], r"for the labels 0 to 4. Received: 0 to 5. Make the head with"),
        ([-1], "Received: -1 to -1"),
        (np.eye(4), "has 5 outputs, and labels have 4 columns"),
        (["a"], "labels are texts. Encode them with"),
    ):
        with pytest.raises(DataError, match=text):
            adapt.check_labels(model, y)
    inputs = keras.Input((6,))
    many = keras.Model(inputs, [L.Dense(4)(inputs), L.Dense(2)(inputs)])
    with pytest.raises(ConfigError, match="no single output of shape"):
        adapt.check_labels(many, [0])
