"""Layers that are called more than once: a range for each call, or one that holds all.

And quantizers that nothing comes to, which are an error with the path in it.
"""

import keras
import numpy as np
import pytest
from keras import layers as L

import keras_dlopt as dlopt
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.trace import trace
from keras_dlopt.post_training import calibrate
from keras_dlopt.transforms import LSQPlusActivation

RNG = np.random.default_rng(0)
A = RNG.uniform(-1, 1, (16, 4)).astype("float32")
B = 10 * A


def siamese(swapped=False):
    a, b = L.Input((4,), name="a"), L.Input((4,), name="b")
    shared = L.Dense(4, name="d", kernel_initializer="orthogonal")
    ends = [L.ReLU(name="ra")(shared(a)), L.ReLU(name="rb")(shared(b))]
    joined = L.Concatenate(name="c")(ends[::-1] if swapped else ends)
    return keras.Model([a, b], joined)


def taken(net):
    """What each call of the shared layer takes, in the order in which they run."""
    a, b = (trace(net).inputs[i] for i in (0, 1))
    return [{a: A, b: B}[c.inputs[0]] for c in trace(net).sites(net.get_layer("d"))]


def ranges(model):
    return {
        slot.target.path: (float(slot.state["low"]), float(slot.state["high"]))
        for group in model.groups
        if group.transform.kind == "activation"
        for slot in group.slots
    }


def recipe(*paths, transform=None):
    entry = transform or dlopt.FakeQuantActivation()
    return dlopt.Recipe([(dlopt.at(*paths), entry)])


def ends(*arrays):
    return pytest.approx((min(map(np.min, arrays)), max(map(np.max, arrays))))


@pytest.mark.parametrize("swapped", [False, True])
def test_each_call_of_a_shared_layer_has_a_range_of_its_own(swapped, tmp_path):
    net = siamese(swapped)
    small = dlopt.transform(net, dlopt.int8_recipe(net))
    small([A, B], training=True)
    found = ranges(small)
    first, second = taken(net)
    assert found["d@0/input"] == ends(first)
    assert found["d@1/input"] == ends(second)
    # The largest step of both grids, through an orthogonal kernel and its own grid.
    assert np.abs(small([A, B]) - net([A, B])).max() < 20 / 255 * 2
    small.save(tmp_path / "sites.keras")
    loaded = keras.models.load_model(tmp_path / "sites.keras")
    assert ranges(loaded) == found
    np.testing.assert_array_equal(loaded([A, B]), small([A, B]))


def test_outputs_are_told_apart_where_only_one_call_ends_there():
    x = keras.Input((4,))
    shared = L.Dense(4, name="d")
    net = keras.Model(x, L.Dense(2, name="end")(shared(L.ReLU(name="r")(shared(x)))))
    entries = dlopt.int8_recipe(net).entries
    assert [s.paths for s, _ in entries] == [
        ("d@0/input",),
        ("r/output", "d@1/output", "end/output"),
        ("d/kernel", "end/kernel"),
    ]


def test_a_path_without_a_site_means_all_calls_that_have_none_of_their_own():
    first, second = taken(siamese())
    small = dlopt.transform(siamese(), recipe("d/input", "d@1/input"))
    small([A, B], training=True)
    assert ranges(small) == {"d/input": ends(first), "d@1/input": ends(second)}
    split = dlopt.Recipe(
        [
            (dlopt.at("d@0/input"), dlopt.FakeQuantActivation(range=(-1.0, 1.0))),
            (dlopt.named("input") & dlopt.inside(L.Dense), dlopt.FakeQuantActivation()),
        ]
    )
    assert dlopt.Recipe.from_json(split.to_json()) == split
    small = dlopt.transform(siamese(), split)
    small([A, B], training=True)
    assert ranges(small) == {"d@0/input": (-1.0, 1.0), "d/input": ends(second)}
    others = dlopt.named("input") & dlopt.inside(L.Dense) & ~dlopt.at("d@0/input")
    small = dlopt.transform(siamese(), dlopt.Recipe([(others, split.entries[1][1])]))
    small([A, B], training=True)
    assert ranges(small) == {"d/input": ends(second)}


@pytest.mark.parametrize("order", [1, -1])
def test_one_range_for_all_calls_averages_the_widest_of_each_run(order):
    small = dlopt.transform(
        siamese(), recipe("d/input", transform=dlopt.FakeQuantActivation(momentum=0.5))
    )
    low = high = None
    for scale in (1.0, 3.0, 0.5):
        given = [scale * A, scale * B][::order]
        small(given, training=True)
        smallest, largest = scale * B.min(), scale * B.max()
        low = smallest if low is None else 0.5 * low + 0.5 * smallest
        high = largest if high is None else 0.5 * high + 0.5 * largest
        assert ranges(small)["d/input"] == pytest.approx((low, high))


def test_one_range_for_two_tensors_of_one_call():
    q, v = keras.Input((3, 4)), keras.Input((5, 4))
    net = keras.Model([q, v], L.MultiHeadAttention(1, 2, name="mha")(query=q, value=v))
    small = dlopt.transform(net, recipe("mha/input"))
    x = [RNG.normal(size=(2, n, 4)).astype("float32") for n in (3, 5)]
    for _ in range(3):
        small([x[0], 9 * x[1]], training=True)
    assert ranges(small)["mha/input"] == ends(9 * x[1])


def test_learned_quantizers_start_at_the_widest_of_each_run():
    small = dlopt.transform(siamese(), recipe("d/input", transform=LSQPlusActivation()))
    for scale in (1.0, 3.0):
        small([scale * A, scale * B], training=True)
    assert ranges(small)["d/input"] == pytest.approx((2 * B.min(), 2 * B.max()))


def test_int8_training_holds_the_peaks_of_small_batches():
    # Each batch has other peaks: an average of them would clip the larger ones.
    keras.utils.set_random_seed(0)
    net = siamese()
    small = dlopt.transform(net, dlopt.int8_recipe(net))
    for _ in range(3):
        for rows in np.split(np.arange(16), 4):
            small([A[rows], B[rows]], training=True)
    (low, high), largest = ranges(small)["c/output"], float(np.max(net([A, B])))
    # A peak of all 16 rows is at most 3 batches old: 1 - 0.99^3 of it is forgotten.
    assert low == 0
    assert 0.97 * largest <= high <= largest * (1 + 1e-6)
    difference = float(np.max(np.abs(small([A, B]) - net([A, B]))))
    assert difference <= 0.03 * largest + 2 * high / 255


@pytest.mark.parametrize("observer", ["moving_average", "peak_hold", "min_max"])
def test_calibration_sees_all_calls_of_a_batch_as_one(observer):
    small = dlopt.transform(siamese(), recipe("d/input"))
    calibrate(small, [A, B], observer=observer)
    assert ranges(small)["d/input"] == ends(B)
    first, second = taken(siamese())
    small = dlopt.transform(siamese(), recipe("d@0/input", "d@1/input"))
    calibrate(small, [A, B], observer=observer)
    assert ranges(small) == {"d@0/input": ends(first), "d@1/input": ends(second)}


def test_the_file_of_litert_has_a_range_for_each_call(tmp_path):
    net = siamese()
    small = dlopt.post_training.quantize(net, [A, B], observer="min_max")
    report = dlopt.export.litert(small, tmp_path / "s.tflite", data=[A, B])
    assert report.ranges == 3
    assert report.agreement.largest_lsb <= 1


class Bypassed(keras.Model):
    """Takes its layer's kernel, and never calls the layer."""

    def __init__(self):
        super().__init__()
        self.d = L.Dense(4)
        self.end = L.Dense(4)

    def build(self, shape):
        self.d.build(shape)
        self.d.trainable = False
        self.end.build(shape)

    def call(self, x):
        return self.end(keras.ops.matmul(x, self.d.kernel))


@pytest.mark.parametrize("when", ["fit", "calibrate", "finalize"])
@pytest.mark.parametrize(
    ("build", "path"), [(Bypassed, "d/input"), (Bypassed, "end@1/output")]
)
def test_a_quantizer_that_nothing_comes_to_is_named(when, build, path):
    model = build()
    model.build((None, 4))

    def run(recipe):
        small = dlopt.transform(model, recipe, copy=False)
        if when == "fit":
            small.compile("sgd", "mse", run_eagerly=True)
            small.fit(A, A, batch_size=16, verbose=0)
        elif when == "calibrate":
            calibrate(small, A)
        else:
            small(A)
            dlopt.finalize(small, copy=False)

    with pytest.raises(ModelError, match=rf"\['{path}'\] have no effect") as error:
        run(recipe("end/input", path))
    assert "Leave the paths out of the recipe" in str(error.value)
    run(recipe("end/input"))
    assert "int8_recipe(model)" in str(error.value)
    with pytest.warns(UserWarning, match="cannot run in int8 alone"):
        made = dlopt.int8_recipe(model, example=A)
    run(made)


def test_an_entry_of_which_nothing_acts_is_named_and_one_of_which_some_do_is_not():
    model = Bypassed()
    model.build((None, 4))
    idle = dlopt.matching("d/(input|output)")
    entry = dlopt.FakeQuantActivation()
    small = dlopt.transform(model, dlopt.Recipe([(idle, entry)]), copy=False)
    small(A)
    with pytest.raises(ModelError, match=r"\['d/input', 'd/output'\] have no effect"):
        small.check_acted()
    wide = dlopt.Recipe([(dlopt.named("output"), entry)])
    small = dlopt.transform(model, wide, copy=False)
    small(A)
    small.check_acted()


class OnlyInInference(Bypassed):
    """Gives logits in training and a softmax of them otherwise."""

    def __init__(self):
        super().__init__()
        self.softmax = L.Softmax()

    def call(self, x, training=False):
        x = self.end(self.d(x))
        return x if training else self.softmax(x)


def test_a_quantizer_that_acts_in_inference_alone_is_right():
    model = OnlyInInference()
    model.build((None, 4))
    small = dlopt.transform(model, dlopt.int8_recipe(model, example=A), copy=False)
    small.compile("sgd", "mse", run_eagerly=True)
    small.fit(A, A, batch_size=16, verbose=0)
    assert "softmax/output" in ranges(small)
