"""TFMOT's guides, word for word but for the import line, run to their ends."""

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.interop import tfmot
from keras_dlopt.interop.tfmot.preserving import kept_clusters

X = np.random.default_rng(0).normal(size=(64, 6, 6, 1)).astype("float32")
Y = np.arange(64) % 3


def setup_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.layers.InputLayer(shape=(6, 6, 1)),
            keras.layers.Conv2D(filters=4, kernel_size=(3, 3), activation="relu"),
            keras.layers.MaxPooling2D(pool_size=(2, 2)),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    return model


def zeros(model):
    return [float(np.mean(np.asarray(layer.kernel) == 0)) for layer in kernels(model)]


def kernels(model):
    return [layer for layer in model.layers if hasattr(layer, "kernel")]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The pruning guide."""
    prune_low_magnitude = tfmot.sparsity.keras.prune_low_magnitude
    pruning_params = {
        "pruning_schedule": tfmot.sparsity.keras.PolynomialDecay(
            initial_sparsity=0.50,
            final_sparsity=0.75,
            begin_step=0,
            end_step=4,
            frequency=2,
        )
    }
    model_for_pruning = compiled(prune_low_magnitude(setup_model(), **pruning_params))
    logdir = tmp_path_factory.mktemp("logs")
    callbacks = [
        tfmot.sparsity.keras.UpdatePruningStep(),
        tfmot.sparsity.keras.PruningSummaries(log_dir=str(logdir)),
    ]
    model_for_pruning.fit(X, Y, batch_size=16, epochs=3, callbacks=callbacks, verbose=0)
    return tfmot.sparsity.keras.strip_pruning(model_for_pruning), logdir


def test_the_pruning_guide(pruned):
    model = pruned[0]
    # 36 and 48 weights, and those that have the magnitude of the last one stay.
    np.testing.assert_allclose(zeros(model), [0.75, 0.75], atol=1 / 36)
    assert "sequential" in model.name


def test_summaries_hold_the_sparsity_of_each_weight(pruned):
    import tensorflow as tf

    found = {}
    for path in pruned[1].glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                share = float(tf.make_ndarray(value.tensor))
                found.setdefault(value.tag, []).append((event.step, share))
    assert [step for step, _ in found.pop("epoch_loss")] == [0, 1, 2]
    del found["epoch_accuracy"]
    assert len(found) == 2
    for tag, values in found.items():
        assert tag.endswith("kernel/sparsity")
        assert [step for step, _ in values] == [0, 4, 8]
        assert values[-1][1] == pytest.approx(0.75, abs=1 / 36)


def test_summaries_take_no_options_of_tensorboard(tmp_path):
    for options in ({"update_freq": "batch"}, {"histogram_freq": 1}):
        with pytest.raises(
            ConfigError, match="to a keras.callbacks.TensorBoard beside"
        ):
            tfmot.PruningSummaries(tmp_path, **options)


def test_the_clustering_guide():
    cluster_weights = tfmot.clustering.keras.cluster_weights
    assert tfmot.clustering.keras.experimental.cluster_weights is cluster_weights
    init = tfmot.clustering.keras.CentroidInitialization
    clustered_model = compiled(
        cluster_weights(
            setup_model(), number_of_clusters=8, cluster_centroids_init=init.LINEAR
        )
    )
    clustered_model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    final_model = tfmot.clustering.keras.strip_clustering(clustered_model)
    for layer in kernels(final_model):
        assert np.unique(np.asarray(layer.kernel)).size <= 8


def test_the_quantization_guide():
    quantize_model = tfmot.quantization.keras.quantize_model
    q_aware_model = compiled(quantize_model(setup_model()))
    q_aware_model.fit(X, Y, batch_size=32, epochs=1, verbose=0)
    assert np.isfinite(q_aware_model.evaluate(X, Y, verbose=0)).all()


def test_the_collaborative_guide_keeps_the_zeros(pruned):
    model = pruned[0]
    quant_aware_annotate_model = tfmot.quantization.keras.quantize_annotate_model(model)
    pqat_model = compiled(
        tfmot.quantization.keras.quantize_apply(
            quant_aware_annotate_model,
            tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme(),
        )
    )
    before = [np.asarray(layer.kernel) for layer in kernels(model)]
    pqat_model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    after = kernels(tfmot.sparsity.keras.strip_pruning(pqat_model))
    for old, layer in zip(before, after, strict=True):
        new = np.asarray(layer.kernel)
        np.testing.assert_array_equal(new[old == 0], 0)
        assert not np.array_equal(new, old)
    with pytest.raises(ConfigError, match="preserve zeros and clusters. Received: 3"):
        tfmot.quantization.keras.quantize_apply(quant_aware_annotate_model, 3)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_collaborative_guide_keeps_the_clusters(pruned, sparse):
    clustered = tfmot.clustering.keras.cluster_weights(
        pruned[0] if sparse else setup_model(), 6, preserve_sparsity=sparse
    )
    stripped = tfmot.clustering.keras.strip_clustering(clustered)
    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme
    model = tfmot.quantization.keras.quantize_apply(
        tfmot.quantization.keras.quantize_annotate_model(stripped), scheme(sparse)
    )
    first = tfmot.strip_clustering(_updated(model))
    compiled(model).fit(X, Y, batch_size=16, epochs=2, verbose=0)
    for old, start, layer in zip(
        *map(kernels, (stripped, first, tfmot.strip_clustering(model))), strict=True
    ):
        old, start, new = (np.asarray(v.kernel) for v in (old, start, layer))
        # At first only rounded to the 8-bit grid.
        np.testing.assert_allclose(start, old, atol=np.abs(old).max() / 254 * 1.01)
        # Convolutions are rounded on a grid for each output channel.
        channels = new.reshape(-1, new.shape[-1]).T if new.ndim == 4 else [new]
        most = max(np.unique(channel).size for channel in channels)
        assert most <= np.unique(old).size <= 6
        assert not np.array_equal(new, start)
        if sparse:
            np.testing.assert_array_equal(new[old == 0], 0)


def _updated(model):
    model.update_transforms(0)
    return model


class Both(keras.layers.Layer, tfmot.sparsity.keras.PrunableLayer):
    """Prunes one of two weights, and not the one that is called kernel."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(48, 4), name="kernel")
        self.other = self.add_weight(shape=(48, 4), name="other")

    def call(self, x):
        return keras.ops.matmul(x, self.kernel + self.other)

    def get_prunable_weights(self):
        return [self.other]


class DenseOnly(tfmot.sparsity.keras.PruningPolicy):
    def allow_pruning(self, layer):
        return isinstance(layer, keras.layers.Dense)

    def ensure_model_supports_pruning(self, model):
        assert model.built


def test_a_layer_says_what_is_pruned_in_it():
    model = keras.Sequential([keras.Input((48,)), Both(), keras.layers.Dense(2)])
    once = tfmot.ConstantSparsity(0.5, 1)
    small = tfmot.prune_low_magnitude(model, once)
    small.update_transforms(0)
    plain = tfmot.strip_pruning(small)
    layer = plain.layers[0]
    assert np.mean(np.asarray(layer.kernel) == 0) == 0
    assert np.mean(np.asarray(layer.other) == 0) == 0.5
    assert np.mean(np.asarray(plain.layers[1].kernel) == 0) == 0.5
    with pytest.raises(
        ConfigError, match="Both has to prune is known once it is built"
    ):
        tfmot.prune_low_magnitude(Both())
    with pytest.raises(TypeError, match="get_prunable_weights"):
        type("None_", (tfmot.PrunableLayer,), {})()


def test_a_policy_chooses_layers():
    small = tfmot.prune_low_magnitude(
        setup_model(), tfmot.ConstantSparsity(0.5, 1), pruning_policy=DenseOnly()
    )
    small.update_transforms(0)
    assert zeros(tfmot.strip_pruning(small)) == [0.0, 0.5]


def test_every_name_of_the_guides_is_the_short_one():
    for room in ("sparsity", "clustering", "quantization"):
        for name, value in vars(getattr(tfmot, room).keras).items():
            if name not in ("experimental", "collab_opts"):
                assert getattr(tfmot, name) is value
    with pytest.raises(AttributeError, match="nothing"):
        tfmot.sparsity.nothing  # noqa: B018
    pruned = tfmot.quantization.keras.collab_opts.Default8BitPrunePreserveQuantizeScheme
    assert pruned is tfmot.Default8BitPrunePreserveQuantizeScheme
    assert tfmot.Default8BitClusterPreserveQuantizeScheme().preserve_sparsity
    for name, value in vars(tfmot.experimental.combine).items():
        assert getattr(tfmot, name) is value


def _kept(layer, value, **options):
    from keras_dlopt.graph.targets import weight_targets

    model = keras.Sequential([keras.Input((5, 5, 1)), layer])
    layer.kernel.assign(value)
    return kept_clusters(weight_targets(model)[0], np.asarray(value), **options)


def _conv(*channels):
    return np.stack([np.resize(c, (2, 2, 1)) for c in channels], -1).astype("float32")


@pytest.mark.parametrize(
    ("channels", "clusters", "per_channel"),
    [
        (([1, 2, 3], [1, 2]), 3, True),  # as many, or one less
        (([1, 2, 3], [4, 4]), 4, False),
        (([1, 2, 3, 4], [5, 6, 7, 8]), None, None),  # nothing is shared
        (([0, 0], [0, 0]), None, None),
    ],
)
def test_shared_values_of_a_convolution_are_found_as_by_tfmot(
    channels, clusters, per_channel
):
    layer = keras.layers.Conv2D(2, 2, name="conv")
    found = _kept(layer, _conv(*channels), zeros=False)
    got = (found and found.clusters, found and found.per_channel)
    assert got == (clusters, per_channel)


def test_a_kept_zero_stays_and_may_be_left_again():
    layer = keras.layers.Conv2D(1, 2, use_bias=False, name="conv")
    value = np.array([0, 0, 1, 1], "float32").reshape(2, 2, 1, 1)
    kept = _kept(layer, value, zeros=True)
    model = keras.Sequential([keras.Input((2, 2, 1)), layer])
    small = dlopt.transform(model, dlopt.Recipe([(dlopt.named("kernel"), kept)]))
    small.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    x = np.array([4, -6, 1, 2], "float32").reshape(1, 2, 2, 1)
    # By hand: the output is 3, its gradient 2 * (3 - 2) = 2; the weights move by
    # -0.2 x to (-0.8, 1.2, 0.8, 0.6), the value 1 by -0.2 * (1 + 2) to 0.4.
    small.train_on_batch(x, np.full((1, 1, 1, 1), 2.0, "float32"))
    small.update_transforms(1)
    got = np.asarray(dlopt.finalize(small).layers[-1].kernel).ravel()
    np.testing.assert_allclose(got, [0, 0.4, 0.4, 0.4], rtol=1e-6)
    assert got[0] == 0
