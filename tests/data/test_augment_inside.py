"""The policy as a layer: in training the policy's own images, else nothing."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.data import augment
from keras_dlopt.errors import ConfigError, DataError

tf = pytest.importorskip("tensorflow")
RNG = np.random.default_rng(0)
L = keras.layers
X = RNG.integers(0, 256, (16, 6, 6, 1)).astype("uint8")
Y = np.arange(16) % 4


def test_images_are_the_policys_and_follow_from_seed_and_call():
    layer = augment.AugmentationLayer(seed=3)
    np.testing.assert_array_equal(layer(X), X)  # no training
    first = layer(X, training=True).numpy()
    np.testing.assert_array_equal(first, layer.policy(X, seed=[3, 0]))
    second = layer(X, training=True).numpy()
    assert (first != second).any()
    again = augment.AugmentationLayer.from_config(layer.get_config())
    assert again.policy == layer.policy
    np.testing.assert_array_equal(again(X, training=True), first)
    again = augment.AugmentationLayer(seed=3)
    again.build(X.shape)
    compiled = tf.function(again, jit_compile=True)
    np.testing.assert_array_equal(compiled(X, training=True), first)
    np.testing.assert_array_equal(compiled(X, training=True), second)
    other = augment.AugmentationLayer(seed=4)(X, training=True)
    assert (other.numpy() != first).any()


def classifier(policy=None, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1), dtype="uint8")
    y = augment.AugmentationLayer(policy, seed=1, name="more")(inputs)
    y = L.Dense(4)(L.Flatten()(L.Rescaling(1 / 255)(y)))
    model = keras.Model(inputs, y)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(dlopt.optimizers.Adam(0.01), loss, **options)
    return model


def fit(model, first=0, epochs=2):
    given = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(X, Y, initial_epoch=first, epochs=epochs, **given)
    return model


def same(left, right, atol=0.0):
    for a, b in zip(left.variables, right.variables, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def test_training_from_a_file_goes_on_with_the_same_images(tmp_path):
    whole = fit(classifier())
    half = fit(classifier(), epochs=1)
    half.save(tmp_path / "m.keras")
    same(whole, fit(keras.saving.load_model(tmp_path / "m.keras"), first=1))
    plain = keras.Sequential(whole.layers[2:])
    np.testing.assert_array_equal(
        whole.predict(X, verbose=0), plain.predict(X, verbose=0)
    )


@pytest.mark.slow  # the contracts have the layer alone
@pytest.mark.parametrize(
    "options", [{"jit_compile": True}, {"steps_per_execution": 2}], ids=str
)
def test_how_steps_are_run_changes_no_image(options):
    same(fit(classifier(jit_compile=False)), fit(classifier(**options)), atol=1e-6)


@pytest.mark.slow
def test_an_export_and_a_finalized_model_hold_nothing_of_it(tmp_path):
    model = fit(classifier())
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    small = dlopt.transform(model, recipe)
    small.compile("sgd", model.loss)
    fit(small)
    model.export(tmp_path / "m", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "m"))  # else its variables are gone
    np.testing.assert_allclose(loaded.serve(X), model.predict(X, verbose=0), atol=1e-6)
    graph = tf.function(loaded.serve).get_concrete_function(X).graph
    kinds = {op.type for op in graph.get_operations()}
    assert not [kind for kind in kinds if "Random" in kind or "Segment" in kind]


def test_half_precision_keeps_all_values_of_an_image():
    layer = augment.AugmentationLayer(seed=3, dtype="mixed_bfloat16")
    floats = (X / 255).astype("float32")
    made = layer(floats, training=True)
    assert made.dtype == "float32"
    wanted = augment.AugmentationLayer(seed=3)(X, training=True).numpy()
    np.testing.assert_allclose(255 * made.numpy(), wanted, atol=1.01)


def test_what_is_refused():
    with pytest.raises(
        ConfigError, match="policy must be a TrivialAugment. .* RandAug"
    ):
        augment.AugmentationLayer(L.RandomFlip())
    with pytest.raises(DataError, match="must be batches .n, height, width, channels"):
        augment.AugmentationLayer()(np.zeros((2, 4)), training=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="such as most=255.0"):
        augment.AugmentationLayer()(X.astype("float32"), training=True)


REPLICAS = """
import sys
sys.path.insert(0, {folder!r})
import keras, numpy as np, tensorflow as tf
from keras_dlopt.distribute.build import split_cpu
split_cpu(2)
from test_augment_inside import classifier, fit
ends = []
for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
    exchange = tf.distribute.HierarchicalCopyAllReduce()
    with tf.distribute.MirroredStrategy(devices, cross_device_ops=exchange).scope():
        model = classifier()
    fit(model)
    ends.append([np.array(v) for v in model.trainable_variables])
for a, b in zip(*ends):
    np.testing.assert_allclose(a, b, atol=1e-6)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.dist
def test_replicas_change_images_as_one_device_does():
    folder = str(pathlib.Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS.format(folder=folder)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")
