"""The same weights and data give the same as real TFMOT 0.8.1 (tests/golden/tfmot)."""

import pathlib

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.graph.targets import Target
from keras_dlopt.interop import tfmot
from keras_dlopt.interop.tfmot.clustering import GridDensity
from keras_dlopt.interop.tfmot.quantization import activation_quantizer
from keras_dlopt.transforms import Member

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tfmot"
INIT = tfmot.CentroidInitialization


def network(weights=None):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.Flatten(name="flat"),
            layers.Dense(5, name="dense"),
        ],
        name="net",
    )
    if weights is not None:
        model.set_weights(weights)
    return model


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8, 8, 2)).astype("float32")
    return x, rng.integers(0, 5, 64)


def fit(model, steps):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss)
    x, y = data()
    x, y = x[: 4 * steps], y[: 4 * steps]
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)


def test_masks_are_the_same_at_every_update_of_a_schedule():
    golden = np.load(GOLDEN / "pruning.npz")
    schedule = tfmot.PolynomialDecay(0.2, 0.83, 2, 13, frequency=3)
    small = tfmot.prune_low_magnitude(network(), schedule)
    (prune,) = [transform for _, transform in small.recipe.entries]
    masks = {name: None for name in ("conv", "dense")}
    updates = []
    step = prune.next_due(-1)
    while step is not None:
        updates.append(step)
        for name, mask in masks.items():
            weight = golden[f"{step}_{name}_weight"]
            mask = np.ones_like(weight) if mask is None else mask
            target = Target(f"{name}/kernel")
            (change,) = prune.update([Member(target, weight, {"mask": mask})], step)
            np.testing.assert_array_equal(change["mask"], golden[f"{step}_{name}_mask"])
            masks[name] = change["mask"]
        step = prune.next_due(step)
    # Its steps 2, 5, 8 and 11, counted from 1, with the weights of their beginning.
    assert updates == [1, 4, 7, 10]
    # Between the updates, and after them, TFMOT's mask stays as well.
    np.testing.assert_array_equal(masks["dense"], golden["13_dense_mask"])
    assert golden["0_dense_mask"].min() == 1


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["LINEAR", "DENSITY_BASED", "KMEANS_PLUS_PLUS"])
def test_first_centroids_are_the_same(kind, per_channel, zeros):
    golden = np.load(GOLDEN / "clustering.npz")
    layer = keras.layers.Conv2D(6, 3)
    layer.build((None, 8, 8, 2))
    layer.kernel.assign(golden["sparse" if zeros else "conv"])
    made = tfmot.cluster_weights(
        layer,
        number_of_clusters=4,
        cluster_centroids_init=INIT[kind],
        preserve_sparsity=zeros,
        cluster_per_channel=per_channel,
    )
    made.build((None, 8, 8, 2))
    (slot,) = made.groups[0].slots
    ours = slot.arrays()["centroids"]
    theirs = golden[f"{kind}_{int(per_channel)}_{int(zeros)}"]
    if zeros:  # TFMOT counts zero among them; ours is kept apart
        assert np.all((theirs == 0).sum(-1) == 1)
        theirs = theirs[theirs != 0].reshape(ours.shape)
    # Both are float32; the grid's points are rounded in another order.
    np.testing.assert_allclose(np.sort(ours), np.sort(theirs), atol=1e-6)


@pytest.mark.parametrize(("clusters", "lone"), [(2, 1), (3, 1)])
def test_a_share_that_is_just_reached_is_not_exceeded(clusters, lone):
    # 1 of 100 is TFMOT's lowest probability: the point after it is the first above.
    values = np.concatenate([np.full(lone, -1.0), np.linspace(0.5, 1, 100 - lone)])
    low, high = np.float32(-1.01), np.float32(1.01)
    grid = np.linspace(low, high, 30, dtype="float32")
    share = [np.float32((values.astype("float32") <= x).sum() / 100) for x in grid]
    assert np.float32(0.01) in share
    expected = [
        next((x for x, s in zip(grid, share, strict=True) if s > wanted), grid[-1])
        for wanted in np.linspace(0.01, 1, clusters, dtype="float32")
    ]
    found = GridDensity()(values, clusters, seed=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_trained_centroids_are_the_same_step_by_step():
    golden = np.load(GOLDEN / "clustering.npz")
    model = network([golden[f"start_{i}"] for i in range(4)])
    small = tfmot.cluster_weights(model, 5, INIT.LINEAR)
    for steps in (1, 4):
        trained = tfmot.cluster_weights(model, 5, INIT.LINEAR)
        fit(trained, steps)
        for slot in trained.groups[0].slots:
            name = slot.target.path.split("/")[0]
            np.testing.assert_allclose(
                slot.arrays()["centroids"],
                golden[f"trained_{steps - 1}_{name}"],
                atol=2e-6,  # a few float32 steps, summed in another order
            )
    assert type(small) is dlopt.TransformedModel


def test_int8_fake_quantization_is_the_same_to_1e_6():
    golden = np.load(GOLDEN / "quantization.npz")
    variable = {k.removeprefix("variable:"): golden[k] for k in golden.files}
    for name, layer in (
        ("conv", keras.layers.Conv2D(6, 3)),
        ("dense", keras.layers.Dense(5)),
    ):
        weight = variable[f"{name}/kernel:0"]
        # TFMOT's last range is the one of the weight before the last step.
        high = variable[f"quant_{name}/kernel_max:0"]
        quantizer = tfmot.quantization.weight_quantizer(layer)
        target = Target(f"{name}/kernel", layer=layer)
        scale = np.broadcast_to(high / 127, weight.shape)
        expected = golden[f"{name}_quantized"]
        codes = np.clip(np.rint(weight / scale), -127, 127)
        np.testing.assert_allclose(codes * scale, expected, atol=1e-6)
        # The same quantizer on a weight whose range is that one.
        ends = np.clip(weight, -high, high)
        if high.ndim:
            flat = ends.reshape(-1, high.size)
            flat[0] = high
        else:
            ends.ravel()[0] = high
        ours = quantizer.evaluate(target, ends, {})
        np.testing.assert_allclose(
            ours.ravel()[high.size :], expected.ravel()[high.size :], atol=1e-6
        )


def test_trained_activation_ranges_and_outputs_are_the_same():
    golden = np.load(GOLDEN / "quantization.npz")
    model = network([golden[f"start_{i}"] for i in range(4)])
    small = tfmot.quantize_model(model)
    fit(small, 5)
    found = {
        slot.target.path: slot.arrays()
        for group in small.groups
        for slot in group.slots
        if group.transform.kind == "activation"
    }
    for path, name in (
        ("conv/output", "quant_conv/post_activation"),
        ("dense/output", "quant_dense/post_activation"),
    ):
        low, high = golden[f"variable:{name}_min:0"], golden[f"variable:{name}_max:0"]
        np.testing.assert_allclose(found[path]["low"], low, atol=1e-5)
        np.testing.assert_allclose(found[path]["high"], high, atol=1e-5)
        assert high != 6
    quantizer = activation_quantizer()
    assert (quantizer.momentum, quantizer.initial) == (0.999, (-6.0, 6.0))
