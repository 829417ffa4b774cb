"""Structured pruning: targets, scores, limits, and what is left."""

import keras
import numpy as np
import pytest
from keras import layers as L

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.measure.costs import costs
from keras_dlopt.surgery import (
    ChannelNorm,
    ChannelScore,
    GeometricMedian,
    NormalizationScale,
    Sizes,
    dependencies,
    prune_channels,
)
from keras_dlopt.surgery.scores import group_scores
from support.removing import masked, randomized, relative


def residual(width=16, seed=0):
    """Two residual blocks behind a stem, each convolution with its normalization."""
    x = keras.Input((8, 8, 3))

    def conv(y, name, relu=True):
        y = L.Conv2D(width, 3, padding="same", use_bias=False, name=name)(y)
        y = L.BatchNormalization(name=f"{name}_norm")(y)
        return L.ReLU()(y) if relu else y

    y = conv(x, "stem")
    for block in "ab":
        inner = conv(conv(y, f"{block}_1"), f"{block}_2", relu=False)
        y = L.ReLU()(L.Add()([y, inner]))
    y = L.Dense(3, name="head")(L.GlobalAveragePooling2D()(y))
    model = randomized(keras.Model(x, y), seed)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def images(count=24, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 8, 8, 3)).astype("float32")
    return x, np.arange(count) % 3


def gone_in(found, report):
    """The groups that a report names."""
    gone = np.zeros(found.count, bool)
    lost = {(one.path, i) for one in report.removed for i in one.channels}
    for group in found.groups:
        pairs = {(path, i) for path, all_ in group.made_by.items() for i in all_}
        gone[group.number] = pairs <= lost
    return gone


SCORES = [
    ChannelNorm(1),
    ChannelNorm(2),
    GeometricMedian(),
    NormalizationScale(),
    dlopt.prune.Magnitude(),
    dlopt.prune.Random(seed=3),
]


@pytest.mark.parametrize("score", SCORES, ids=repr)
@pytest.mark.parametrize("target", ["parameters", "macs", "bytes"])
def test_a_target_is_met_and_the_rest_computes_as_before(score, target):
    model = residual()
    before = [np.array(w) for w in model.weights]
    options = {target: 0.5}
    small, report = prune_channels(model, score=score, multiple=4, **options)
    old, new = costs(model), costs(small)
    assert 0.4 < getattr(new, target) / getattr(old, target) <= 0.5
    assert (report.macs_before, report.macs_after) == (old.macs, new.macs)
    assert report.parameters_after == new.parameters
    for layer in small.layers:
        if isinstance(layer, L.Conv2D):
            assert layer.filters % 4 == 0
    found = dependencies(model)
    zeroed = masked(model, found, gone_in(found, report))
    assert relative(zeroed(images()[0]), small(images()[0])) < 1e-5
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_absolute_target_and_one_that_is_met_already():
    model = residual()
    small, _ = prune_channels(model, parameters=3_000, multiple=1)
    assert 2_500 < small.count_params() <= 3_000
    same, report = prune_channels(model, parameters=20_000)
    assert same.count_params() == model.count_params()
    assert report.removed == ()


def test_any_other_cost():
    model = residual()
    built = []

    def count(net):
        built.append(net)
        return net.count_params()

    small, _ = prune_channels(model, cost=count, at_most=0.5, multiple=4)
    other, _ = prune_channels(model, parameters=0.5, multiple=4)
    # Nothing is given back that takes one more model to try.
    assert small.count_params() <= other.count_params() <= model.count_params() / 2
    assert small.count_params() > 0.3 * model.count_params()
    assert len(built) < 20


def test_what_rounding_takes_beyond_the_target_comes_back():
    """The largest network under the target: any step more in one layer is over it."""
    model = residual(width=32)
    target = 0.6 * costs(model).parameters
    small, report = prune_channels(model, parameters=0.6, multiple=8)
    found = dependencies(model)
    sizes, gone = Sizes(found), gone_in(found, report)
    assert sizes.parameters(gone) == small.count_params() <= target
    scores = group_scores(found, ChannelNorm())
    layers = {}
    for group in found.free:
        layers.setdefault(tuple(group.made_by), []).append(group.number)
    for groups in layers.values():
        lost = [g for g in sorted(groups, key=lambda g: scores[g]) if gone[g]]
        if lost:
            more = gone.copy()
            more[lost[-8:]] = False
            assert sizes.parameters(more) > target


def test_the_least_important_leave():
    model = residual()
    layer = model.get_layer("a_1")
    kernel = np.array(layer.kernel)
    kernel[..., [2, 5, 7]] *= 1e-3
    layer.kernel.assign(kernel)
    reads = model.get_layer("a_2")
    kernel = np.array(reads.kernel)
    kernel[:, :, [2, 5, 7]] *= 1e-3
    reads.kernel.assign(kernel)
    for score in (ChannelNorm(), dlopt.prune.Magnitude()):
        _, report = prune_channels(model, parameters=0.97, multiple=1, score=score)
        (lost,) = report.removed
        assert (lost.path, set(lost.channels) <= {2, 5, 7}) == ("a_1", True)
    norm = model.get_layer("b_1_norm")
    gamma = np.array(norm.gamma)
    gamma[[0, 9]] = 1e-4
    norm.gamma.assign(gamma)
    _, report = prune_channels(
        model, parameters=0.97, multiple=1, score=NormalizationScale()
    )
    assert report.removed[0].path == "b_1"
    assert set(report.removed[0].channels) <= {0, 9}


def line(seed=0):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            L.Dense(4, name="a"),
            L.BatchNormalization(name="norm"),
            L.Dense(3, name="b"),
        ]
    )
    model.compile("sgd", "mse")
    return randomized(model, seed)


def of_channels(model, score, measured=None):
    """The scores of the channels of layer "a", in their order."""
    found = dependencies(model)
    scores = group_scores(found, score, measured)
    return [scores[group.number] for group in found.free]


@pytest.mark.parametrize("order", [1, 2])
def test_norms_against_numpy(order):
    model = line()
    made = np.array(model.get_layer("a").kernel, "float64")
    read = np.array(model.get_layer("b").kernel, "float64")
    norms = [
        [np.sum(np.abs(column) ** order) ** (1 / order) for column in columns]
        for columns in (made.T, read)
    ]
    wanted = np.mean([np.array(n) / np.mean(n) for n in norms], axis=0)
    np.testing.assert_allclose(of_channels(model, ChannelNorm(order)), wanted)


def test_distances_against_numpy():
    model = line()
    made = np.array(model.get_layer("a").kernel, "float64").T
    read = np.array(model.get_layer("b").kernel, "float64")
    sums = [
        [sum(np.linalg.norm(one - other) for other in rows) for one in rows]
        for rows in (made, read)
    ]
    wanted = np.mean([np.array(s) / np.mean(s) for s in sums], axis=0)
    found = of_channels(model, GeometricMedian())
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_scores_of_weights_on_data_are_added_up_over_the_group():
    import tensorflow as tf

    model = line()
    rng = np.random.default_rng(2)
    x, y = (rng.normal(size=(8, n)).astype("float32") for n in (5, 3))
    kernels = [model.get_layer(name).kernel for name in "ab"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
    model = line()  # the run in training mode moved averages
    slopes = tape.gradient(loss, [k.value for k in kernels])
    products = [np.abs(np.array(k) * g) for k, g in zip(kernels, slopes, strict=True)]
    wanted = products[0].sum(axis=0) + products[1].sum(axis=1)
    worst = int(np.argmin(wanted))
    _, report = prune_channels(
        model,
        parameters=model.count_params() - 1,
        multiple=1,
        score=dlopt.prune.Taylor(),
        data=(x, y),
        batches=1,
        batch_size=8,
    )
    assert report.removed[0].channels == (worst,)


def test_with_data_the_normalization_is_measured_anew():
    model, (x, _) = residual(), images()
    small, _ = prune_channels(model, macs=0.5, multiple=4, data=x, batch_size=24)
    stem = small.get_layer("stem")
    made = np.array(stem(x), "float64").reshape(-1, stem.filters)
    norm = small.get_layer("stem_norm")
    np.testing.assert_allclose(norm.moving_mean, made.mean(axis=0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, made.var(axis=0), rtol=1e-4)


def test_limits_of_layers():
    model = residual()
    limits = {"a_*": 0.0, "b_1": 0.25}
    _, report = prune_channels(model, parameters=0.9, limits=limits, multiple=1)
    lost = {one.path: len(one.channels) for one in report.removed}
    assert not {path for path in lost if path.startswith("a_")}
    assert lost["b_1"] == 4
    with pytest.raises(ConfigError, match="'c_1' matches no layer.*Did you mean 'b_1'"):
        prune_channels(model, parameters=0.9, limits={"c_1": 0.5})
    with pytest.raises(ConfigError, match=r"limits\['a_1'\] must be a number"):
        prune_channels(model, parameters=0.9, limits={"a_1": 2})


@pytest.mark.advice("surgery/selection.py", "Raise the target, max_share or limits")
def test_a_target_that_cannot_be_met_says_what_can():
    model = residual()
    with pytest.raises(ConfigError, match="cannot be met: removing all.*of 10,") as e:
        prune_channels(model, parameters=0.2)
    assert "Raise the target, max_share or limits, or lower multiple" in str(e.value)
    prune_channels(model, parameters=0.2, multiple=1)
    with pytest.raises(ConfigError, match="cannot be met"):
        prune_channels(model, parameters=0.5, max_share=0.1)
    prune_channels(model, parameters=0.9, max_share=0.1, multiple=1)


@pytest.mark.advice("surgery/pruning.py", "Build it with a fixed size, or give")
def test_open_sizes():
    def net(size):
        x = keras.Input((size, 4))
        y = L.Conv1D(32, 3, name="a")(x)
        return randomized(keras.Model(x, L.GlobalMaxPooling1D()(L.Conv1D(2, 1)(y))))

    with pytest.raises(ConfigError, match="multiply-accumulates of 'a' are not known"):
        prune_channels(net(None), macs=0.5)
    _, report = prune_channels(net(None), parameters=0.5)
    assert report.macs_before is None
    assert "MACs" not in str(report)
    prune_channels(net(9), macs=0.5)


@pytest.mark.advice("surgery/pruning.py", "Compile the model and give data=")
def test_arguments_are_checked():
    model = residual()
    for targets in ({}, {"macs": 0.5, "parameters": 0.5}):
        with pytest.raises(ConfigError, match="takes one target: parameters, macs"):
            prune_channels(model, **targets)
    with pytest.raises(ConfigError, match="cost and at_most belong together"):
        prune_channels(model, cost=lambda net: 1.0)
    with pytest.raises(ConfigError, match="cost and at_most belong together"):
        prune_channels(model, macs=0.5, at_most=0.5)
    with pytest.raises(ConfigError, match="macs must be a positive number"):
        prune_channels(model, macs=-1)
    with pytest.raises(ConfigError, match="score must be a score of channels"):
        prune_channels(model, macs=0.5, score="l1")
    with pytest.raises(ConfigError, match="order must be 1 or 2"):
        ChannelNorm(3)
    with pytest.raises(TypeError, match="ChannelScore must define"):
        ChannelScore()("kernel", np.ones((2, 2)))
    with pytest.raises(ConfigError, match="needs gradients of the loss. Compile"):
        prune_channels(model, macs=0.5, score=dlopt.prune.Taylor())
    x, y = images()
    score = dlopt.prune.Taylor()
    prune_channels(model, macs=0.5, score=score, data=(x, y), batches=1)
    with pytest.raises(ModelError, match="must be a built keras.Model"):
        prune_channels(keras.Sequential([L.Dense(2)]), macs=0.5)


def test_scores_are_values():
    for score in SCORES[:4]:
        assert type(score).from_config(score.get_config()) == score


def test_distances_of_the_geometric_median_by_hand():
    rows = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    found = GeometricMedian()("kernel", rows)
    np.testing.assert_allclose(found, [5 + 8, 5 + 5, 8 + 5])
