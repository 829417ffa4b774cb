"""Policies on images: each operation against Pillow's, the same images for the seed."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from keras_dlopt.data import augment
from keras_dlopt.data.augment import operations, trivial
from keras_dlopt.errors import ConfigError, DataError

tf = pytest.importorskip("tensorflow")
RNG = np.random.default_rng(0)
L = keras.layers
SIZE = (16, 32)


def pictures(colors):
    """A gradient with noise, dark and light ones, one of a single value."""
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    base = (5 * rows + 3 * columns)[None, :, :, None] * np.array([0.3, 0.7, 1.0, 0])[
        :, None, None, None
    ]
    noise = RNG.integers(0, 60, (4, *SIZE, colors))
    images = np.clip(base + noise, 0, 255).astype("uint8")
    images[3] = 77
    return images


def affine(a, b, c, d, e, f):
    """Pillow's map from each pixel to where it comes from, about the middle."""
    x, y = (SIZE[1]) / 2, (SIZE[0]) / 2
    matrix = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    return lambda p, s: p.transform(p.size, Image.Transform.AFFINE, matrix)


def pillow(name, s):
    turn = np.deg2rad(s)
    return {
        "identity": lambda p, s: p,
        "shear x": affine(1, s, 0, 0, 1, 0),
        "shear y": affine(1, 0, 0, s, 1, 0),
        "translate x": affine(1, 0, s * SIZE[1] / 32, 0, 1, 0),
        "translate y": affine(1, 0, 0, 0, 1, s * SIZE[0] / 32),
        "rotate": affine(np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0),
        "brightness": lambda p, s: ImageEnhance.Brightness(p).enhance(1 + s),
        "color": lambda p, s: ImageEnhance.Color(p).enhance(1 + s),
        "contrast": lambda p, s: ImageEnhance.Contrast(p).enhance(1 + s),
        "sharpness": lambda p, s: ImageEnhance.Sharpness(p).enhance(1 + s),
        "posterize": lambda p, s: ImageOps.posterize(p, round(s)),
        "solarize": lambda p, s: ImageOps.solarize(p, s),
        "autocontrast": lambda p, s: ImageOps.autocontrast(p),
        "equalize": lambda p, s: ImageOps.equalize(p),
    }[name]


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("name", trivial.NAMES)
def test_operations_are_pillows(name, colors):
    images = pictures(colors)
    low, high, signed = trivial.RANGES[name]
    for share in (0.4, 1.0):
        strength = (low + share * (high - low)) * (-1 if signed and share < 1 else 1)
        seen = trivial.applied(
            tf.constant(images),
            tf.fill([4], trivial.NAMES.index(name)),
            tf.fill([4], float(strength)),
            most=255.0,
        ).numpy()
        for image, made in zip(images, seen, strict=True):
            one = Image.fromarray(image[..., 0] if colors == 1 else image)
            wanted = np.asarray(pillow(name, strength)(one, strength)).reshape(
                made.shape
            )
            off = np.abs(made.astype(int) - wanted)
            moves = name in ("rotate", "shear x", "shear y") or "translate" in name
            # Positions half way between two pixels may fall to either side.
            assert off.max() <= 1 or (moves and (off > 1).mean() < 0.03), (name, off)


@pytest.mark.parametrize("wide", [False, True])
def test_each_image_gets_an_operation_of_its_own(wide):
    policy = augment.TrivialAugment(wide=wide)
    images = np.repeat(pictures(3)[:1], 64, axis=0)
    made = policy(images, seed=[3, 4]).numpy()
    assert made.dtype == np.uint8
    assert len({image.tobytes() for image in made}) > 30
    np.testing.assert_array_equal(made, policy(images, seed=[3, 4]).numpy())
    assert (made != policy(images, seed=[3, 5]).numpy()).any()
    graph = tf.function(policy, jit_compile=False)(tf.constant(images), [3, 4])
    np.testing.assert_array_equal(made, graph.numpy())
    # Floats are the same images on another scale.
    floats = policy((images / 255).astype("float32"), seed=[3, 4]).numpy()
    np.testing.assert_allclose(floats * 255, made, atol=1.01)
    assert type(policy).from_config(policy.get_config()) == policy


def test_pixels_move_as_by_tensorflows_own_op():
    """Bit for bit, also where a position lies half way between two pixels."""
    images = tf.constant(pictures(3), "float32")
    matrices = RNG.normal(size=(4, 6)).astype("float32")
    matrices[1] = [1, 0, 2.5, 0, 1, -3.5]
    height, width = SIZE
    a, b, c, d, e, f = matrices.T
    x, y = np.float32(width - 1) / 2, np.float32(height - 1) / 2
    flat = [a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y, 0 * a, 0 * a]
    wanted = tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=np.stack(flat, axis=1), output_shape=SIZE,
        fill_value=0.0, interpolation="NEAREST", fill_mode="CONSTANT",
    )  # fmt: skip
    np.testing.assert_array_equal(operations.moved(images, matrices), wanted)


@pytest.mark.parametrize("colors", [1, 2, 5])
def test_any_number_of_colors(colors):
    images = RNG.random((32, 9, 7, colors)).astype("float16")
    made = augment.TrivialAugment()(images, seed=[0, 1])
    assert (made.shape, made.dtype) == (images.shape, tf.float16)
    assert 0 <= made.numpy().min() <= made.numpy().max() <= 1


def test_what_is_no_image():
    for images in (np.zeros((2, 4, 4)), np.zeros((2, 4, 4, 1), "int32")):
        with pytest.raises(DataError, match="must be batches .n, height, width, chann"):
            augment.TrivialAugment()(images, seed=[0, 0])


@pytest.mark.parametrize(
    "images", [255 * RNG.random((2, 4, 4, 1)), -np.ones((2, 4, 4, 1))]
)
def test_floats_on_another_scale(images):
    with pytest.raises(tf.errors.InvalidArgumentError, match="between 0 and most=1.0"):
        augment.TrivialAugment()(images, seed=[0, 0])
    augment.TrivialAugment(most=255.0)(abs(images), seed=[0, 0])


X = RNG.integers(0, 256, (24, 6, 6, 1)).astype("uint8")
Y = np.arange(24)
POLICIES = {
    "trivial": augment.TrivialAugment,
    "rand": lambda: L.RandAugment(value_range=(0, 255)),
    "mixup": lambda: L.MixUp(alpha=0.4),
    "cutmix": L.CutMix,
    "pipeline": lambda: L.Pipeline([L.RandomFlip(), L.RandomRotation(0.2)]),
}


def taken(data, count):
    return [[part.numpy() for part in batch] for batch in data.take(count)]


def same(left, right):
    return len(left) == len(right) and all(
        np.array_equal(a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_seed_gives_the_same_images(name):
    def made(**options):
        policy = POLICIES[name]()
        return augment.augmented((X, Y), policy, batch_size=8, classes=24, **options)

    epochs = taken(made(seed=5), 9)
    assert same(epochs, taken(made(seed=5), 9))
    assert not same(epochs, taken(made(seed=6), 9))
    assert not same(epochs[:3], epochs[3:6]), "epochs differ"
    assert same(epochs[3:], taken(made(seed=5, first_epoch=1), 6)), "goes on"
    for images, labels in epochs:
        assert images.shape == (8, 6, 6, 1)
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-5)


def test_labels_stay_with_their_images():
    data = augment.augmented((X, Y), lambda x, seed: x, batch_size=8)
    for epoch in (0, 1):
        images, labels = map(
            np.concatenate, zip(*taken(data, 6)[3 * epoch : 3 * epoch + 3], strict=True)
        )
        np.testing.assert_array_equal(images, X[labels])
        assert sorted(labels) == list(range(24))


def test_images_are_repeated_in_a_batch():
    data = augment.augmented((X, Y), augment.TrivialAugment(), batch_size=8, repeats=4)
    epoch = taken(data, 12)
    counts = np.zeros(24, int)
    for images, labels in epoch:
        assert (np.unique(labels, return_counts=True)[1] == 4).all()
        counts += np.bincount(labels, minlength=24)
        assert len({image.tobytes() for image in images}) > 4
    assert (counts == 4).all()
    # Batches of a data set grow, and stay in their order.
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(6)
    grown = augment.augmented(batches, augment.TrivialAugment(), repeats=2)
    assert [labels.tolist() for _, labels in taken(grown, 5)][4] == [
        i for i in range(6) for _ in range(2)
    ]


def test_mixed_labels_are_those_of_the_images():
    """MixUp of images that are their own label: both are mixed alike."""
    x = np.zeros((24, 2, 12, 1), "float32")
    x.reshape(24, 24)[np.arange(24), Y] = 1
    data = augment.augmented((x, Y), L.MixUp(alpha=0.8), batch_size=8, classes=24)
    for images, labels in taken(data, 3):
        np.testing.assert_allclose(images.reshape(8, 24), labels, atol=1e-6)
        assert ((labels > 0).sum(axis=1) == 2).any()


def test_what_cannot_be_augmented():
    policy = augment.TrivialAugment()
    with pytest.raises(ConfigError, match="repeats must divide batch_size. Recei"):
        augment.augmented((X, Y), policy, batch_size=8, repeats=3)
    with pytest.raises(DataError, match="enough for a batch. Received: 24 images"):
        augment.augmented((X, Y), policy, batch_size=25)
    with pytest.raises(DataError, match=r"data must be arrays \(x, y\) or a tf.data"):
        augment.augmented(X, policy)
    with pytest.raises(DataError, match=r"must give batches \(x, y\). Received"):
        augment.augmented(tf.data.Dataset.from_tensor_slices(X).batch(4), policy)
    with pytest.raises(ConfigError, match="policy must be a function"):
        augment.augmented((X, Y), None)


def classifier():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), L.Rescaling(1 / 255), L.Flatten(), L.Dense(24)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def test_steps_in_one_execution_see_the_same_images():
    ends = []
    for steps in (1, 3):
        model = classifier()
        model.compile("adam", model.loss, steps_per_execution=steps)
        data = augment.augmented((X, Y), augment.TrivialAugment(), batch_size=8)
        model.fit(data, epochs=2, steps_per_epoch=3, verbose=0, shuffle=False)
        ends.append(model.get_weights())
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_averaged_predictions(tmp_path):
    model = classifier()
    views = [("identity", 0), ("flip", 0), ("translate x", 16 / 3)]
    averaged = augment.TestTimeAugmentation(model, views=views, most=255.0)
    x = X.astype("float32")
    moved = np.concatenate([x[:, :, 1:], np.zeros_like(x[:, :, :1])], axis=2)
    seen = averaged.predict(x, batch_size=7, verbose=0)
    wanted = sum(np.asarray(model(v)) for v in (x, x[:, :, ::-1], moved)) / 3
    np.testing.assert_allclose(seen, wanted, atol=1e-5)
    averaged.compile(loss=model.loss, metrics=["accuracy"])
    found = averaged.evaluate(x, Y, verbose=0, return_dict=True)
    assert found["accuracy"] == pytest.approx((wanted.argmax(axis=1) == Y).mean())
    averaged.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), seen, atol=1e-6)


def test_views_that_are_none():
    model = classifier()
    with pytest.raises(ConfigError, match="A view must be a pair of an operation"):
        augment.TestTimeAugmentation(model, views=["flip"])
    with pytest.raises(ConfigError, match="view must be one of 'identity'"):
        augment.TestTimeAugmentation(model, views=[("turn", 3)])
    with pytest.raises(ConfigError, match="views must hold one view or more"):
        augment.TestTimeAugmentation(model, views=[])


REPLICAS = """
import keras, numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpus[0], two)
from keras_dlopt.data import augment
rng = np.random.default_rng(0)
x, y = rng.integers(0, 256, (24, 6, 6, 1)).astype("uint8"), np.arange(24) % 4
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ends = []
for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
    keras.utils.set_random_seed(0)
    data = augment.augmented((x, y), augment.TrivialAugment(), batch_size=8)
    exchange = tf.distribute.HierarchicalCopyAllReduce()
    with tf.distribute.MirroredStrategy(devices, cross_device_ops=exchange).scope():
        L = keras.layers
        inner = [L.Rescaling(1 / 255), L.Flatten(), L.Dense(4)]
        model = keras.Sequential([keras.Input((6, 6, 1)), *inner])
        model.compile("sgd", loss)
        views = [("identity", 0), ("flip", 0), ("rotate", 10)]
        averaged = augment.TestTimeAugmentation(model, views=views, most=255.0)
    model.fit(data, epochs=2, steps_per_epoch=3, verbose=0, shuffle=False)
    seen = averaged.predict(x.astype("float32"), batch_size=8, verbose=0)
    ends.append([*model.get_weights(), seen])
for a, b in zip(*ends):
    np.testing.assert_allclose(a, b, atol=1e-6)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.dist
def test_replicas_get_their_parts_of_the_same_batches():
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")
