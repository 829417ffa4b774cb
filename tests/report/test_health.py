"""The doctor: what it says is so, and the calls that it names mend it."""

import os
import pathlib
import warnings

import keras
import numpy as np
import pytest
from keras import layers as L
from typer.testing import CliRunner

import keras_dlopt as dlopt
from keras_dlopt import report
from keras_dlopt.cli import app
from keras_dlopt.errors import ConfigError, DataError, ModelError
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.measure import costs
from keras_dlopt.surgery import DeadChannels, dependencies, merge_duplicates
from keras_dlopt.surgery import remove_dead as without_dead
from support.generated import drawn
from support.idle import idle_groups, read_groups
from support.removing import randomized, relative

READERS = (L.Dense, L.Conv1D, L.Conv2D, L.Conv3D)


def net(*stack, shape=(8, 8, 3)):
    return randomized(keras.Sequential([keras.Input(shape), *stack], name="net"))


def batch(model, count=64, seed=1):
    rng = np.random.default_rng(seed)

    def draw(tensor):
        rest = tensor.shape[1:]
        scale = rng.choice([0.1, 1.0, 10.0, 100.0], size=(count,) + (1,) * len(rest))
        around = rng.normal(size=(count, *rest)) + rng.normal(
            size=(count, *rest[:-1], 1)
        )
        return (around * scale).astype("float32")

    made = [draw(tensor) for tensor in model.inputs]
    return made if len(made) > 1 else made[0]


def plant(model, share, rng):
    """Zeroes the first channel of some convolutions and dense layers."""
    for layer in layers_below(model):
        several = isinstance(layer, READERS) and layer.kernel.shape[-1] > 1
        if several and rng.random() < share:
            kill(layer, 0)


def kill(layer, channel):
    kernel = layer.kernel.numpy().copy()
    kernel[..., channel] = 0
    layer.kernel.assign(kernel)
    if layer.use_bias:
        bias = layer.bias.numpy().copy()
        bias[channel] = 0
        layer.bias.assign(bias)


def check_against_brute_force(model, x, *, sample=None):
    """The groups that are said to be dead, and those that are, tried one by one."""
    found = dependencies(model, example=x)
    gone = DeadChannels(found).gone
    groups = read_groups(found)
    said = [g for g in groups if gone[g]]
    rest = [g for g in groups if not gone[g]]
    if sample is not None:
        rng = np.random.default_rng(0)
        said = sorted(rng.permutation(said)[:sample].tolist())
        rest = sorted(rng.permutation(rest)[:sample].tolist())
    assert idle_groups(model, found, x, said, hold=True) == set(said)
    missed = idle_groups(model, found, x, rest)
    for ids in found.survey.made.values():
        made = set(found.labels[ids].tolist())
        if made <= {*missed, *np.flatnonzero(gone)}:
            missed -= made  # a layer keeps one channel at least
    return missed


@pytest.mark.filterwarnings("ignore:(?s).*softmax over axis")
def test_dead_channels_are_those_that_brute_force_finds():
    dead = 0
    for seed in range(40):
        made = drawn(seed)
        model = made.model
        if not getattr(model, "inputs", None):
            model = model.core
        randomized(model, seed)
        plant(model, 0.6, np.random.default_rng(seed))
        assert check_against_brute_force(model, batch(model)) == set(), (
            seed,
            made.notes,
        )
        examined = dlopt.doctor(model, target="float")
        small, told = without_dead(model)
        assert examined.removable_channels == told.channels_removed
        assert (
            examined.removable_parameters == model.count_params() - small.count_params()
        )
        assert examined.removable_macs == costs(model).macs - costs(small).macs
        dead += told.channels_removed
    assert dead > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", ["MobileNetV2", "MobileNet", "ResNet50", "DenseNet121"]
)
def test_networks_against_brute_force(network):
    # Else now and then a channel that is alive is still on all of the examples.
    keras.utils.set_random_seed(0)
    build = getattr(keras.applications, network)
    options = {"input_shape": (32, 32, 3), "classes": 5, "classifier_activation": None}
    model = build(weights=None, **options)
    # Statistics of 0 and 1 would let untrained activations fade away.
    dlopt.post_training.recalibrate_batch_normalization(model, batch(model))
    plant(model, 0.3, np.random.default_rng(0))
    assert check_against_brute_force(model, batch(model, 48), sample=12) == set()


DATA = pathlib.Path(os.environ.get("KERAS_DLOPT_DATA", "nowhere")) / "mlperf_tiny"
TINY = {
    "resnet8_cifar10.h5": 0,
    "anomaly_autoencoder.h5": 0,
    "mobilenet_person_96.h5": 971,
    "wakeword_dscnn1d.h5": 0,
    "kws_ref_model": 0,
}


class OldDepthwise(L.DepthwiseConv2D):
    """Reads what Keras 2 wrote."""

    @classmethod
    def from_config(cls, config):
        config = {k: v for k, v in config.items() if k != "groups"}
        return L.DepthwiseConv2D.from_config(config)


def tiny(name, folder):
    """One of the networks, and inputs: recorded ones where there are some."""
    path = DATA / name
    if path.is_dir():
        tf_keras = pytest.importorskip("tf_keras", reason="needs tf_keras to read it")
        old = tf_keras.models.load_model(path, compile=False)
        path = folder / "model.h5"
        old.save(path)
    known = {"DepthwiseConv2D": OldDepthwise}
    model = keras.models.load_model(path, custom_objects=known, compile=False)
    x = batch(model, 48)
    if name.startswith("wakeword"):
        recorded = np.load(DATA / "wakeword_samples.npz")["specs"]
        x = np.concatenate([x, recorded.astype("float32")])
    return model, x


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(?s).*structure of `inputs` doesn't match")
@pytest.mark.skipif(not DATA.exists(), reason="KERAS_DLOPT_DATA has no mlperf_tiny")
@pytest.mark.parametrize("name", TINY)
def test_mlperf_tiny_against_brute_force(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tf_keras
        model, x = tiny(name, tmp_path)
    examined = dlopt.doctor(model)
    if TINY[name]:
        assert examined.removable_channels == TINY[name]
    assert check_against_brute_force(model, x, sample=12) == set()


def kinds(examined):
    return {finding.kind for finding in examined.findings}


def mended(model, finding, **names):
    """What the call that a finding names makes of the model."""
    space = {"dlopt": dlopt, "np": np, "model": model, **names}
    exec(finding.remedy, space)
    return space.get("small", model)


def test_dead_and_constant_channels():
    model = net(
        L.Conv2D(6, 3, name="dead", activation="relu"),
        L.Conv2D(5, 3, name="constant"),
        L.GlobalMaxPooling2D(),
        L.Dense(2),
    )
    kill(model.get_layer("dead"), 1)
    kill(model.get_layer("constant"), 2)
    bias = model.get_layer("constant").bias
    bias.assign(bias.numpy() + np.eye(5)[2])
    examined = dlopt.doctor(model)
    (dead,) = examined.of_kind("dead channels")
    (constant,) = examined.of_kind("constant outputs")
    assert (dead.where, dead.figures) == ("dead", {"channels": 1, "of": 6})
    assert (constant.where, constant.figures) == ("constant", {"channels": 1, "of": 5})
    for finding in (dead, constant):
        small = mended(model, finding)
        assert relative(model(batch(model)), small(batch(model))) < 1e-5
        assert not {"dead channels", "constant outputs"} & kinds(dlopt.doctor(small))


def double(layer, one, other):
    """Makes two channels of a layer the same."""
    for weight in layer.weights:
        value = weight.numpy().copy()
        value[..., other] = value[..., one]
        weight.assign(value)


def test_duplicate_channels_are_merged():
    stack = [L.Conv2D(6, 3, name="conv"), L.BatchNormalization(), L.ReLU()]
    deep = [L.DepthwiseConv2D(3, name="deep"), L.Flatten(), L.Dense(4)]
    model = net(*stack, *deep)
    for name in ("conv", "batch_normalization"):
        double(model.get_layer(name), 1, 4)
    assert not dlopt.doctor(model).of_kind("duplicate channels")  # "deep" differs
    kernel = model.get_layer("deep").kernel.numpy().copy()
    kernel[..., 4, :] = kernel[..., 1, :]
    bias = model.get_layer("deep").bias.numpy().copy()
    bias[4] = bias[1]
    model.get_layer("deep").set_weights([kernel, bias])
    (finding,) = dlopt.doctor(model).of_kind("duplicate channels")
    assert (finding.where, finding.figures["channels"]) == ("conv", 1)
    before = [w.numpy() for w in model.weights]
    small = mended(model, finding)
    assert small.get_layer("conv").filters == 5
    assert relative(model(batch(model)), small(batch(model))) < 1e-5
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_duplicates_through_sums_and_what_is_no_duplicate():
    given = keras.Input((6,))
    a, b = L.Dense(4, name="a")(given), L.Dense(4, name="b")(given)
    x = L.Dense(3)(L.ReLU()(L.Add()([a, b])))
    model = randomized(keras.Model(given, x))
    double(model.get_layer("a"), 0, 2)
    assert not dlopt.doctor(model).of_kind("duplicate channels")  # b's differ
    double(model.get_layer("b"), 0, 2)
    assert len(dlopt.doctor(model).of_kind("duplicate channels")) == 2
    small, _ = merge_duplicates(model)
    assert (small.get_layer("a").units, small.get_layer("b").units) == (3, 3)
    assert relative(model(batch(model)), small(batch(model))) < 1e-5
    # Two layers with equal weights have different inputs.
    other = keras.Input((6,))
    both = [L.Dense(4, name="one")(given), L.Dense(4, name="two")(other)]
    x = L.Dense(2)(L.Concatenate()(both))
    model = randomized(keras.Model([given, other], x))
    model.get_layer("two").set_weights(model.get_layer("one").get_weights())
    assert not dlopt.doctor(model).of_kind("duplicate channels")
    # A constant between layers may differ from channel to channel.
    x = L.Dense(4, name="a")(given) * np.arange(4, dtype="float32")
    model = randomized(keras.Model(given, L.Dense(2)(x)))
    double(model.get_layer("a"), 1, 2)
    assert not dlopt.doctor(model).of_kind("duplicate channels")


def test_equal_kernels_on_two_inputs_are_no_duplicates():
    one, two = keras.Input((6, 3)), keras.Input((6, 3))
    both = [L.Conv1D(4, 1, name="one")(one), L.Conv1D(4, 1, name="two")(two)]
    x = L.Conv1D(2, 1)(L.Concatenate()(both))
    model = randomized(keras.Model([one, two], x))
    model.get_layer("two").set_weights(model.get_layer("one").get_weights())
    small, report = merge_duplicates(model)
    assert report.channels_removed == 0
    given = batch(model)
    assert relative(model(given), small(given)) < 1e-5


def test_outputs_that_nothing_moves():
    model = net(L.Dense(4), L.Dense(3, name="out"), shape=(6,))
    kill(model.get_layer("out"), 1)
    (finding,) = dlopt.doctor(model).of_kind("constant outputs")
    assert finding.where == "out"
    model.compile("sgd", "mse")
    x = batch(model, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mended(model, finding, x=x, y=np.ones((8, 3)))
    assert not dlopt.doctor(model).of_kind("constant outputs")


def test_what_blocks_int8_and_the_way_out():
    model = net(L.Conv2D(4, 3), L.Flatten(), L.Dense(3, activation="softmax", name="p"))
    (finding,) = dlopt.doctor(model).of_kind("blocks int8")
    assert finding.where == "p"
    assert not dlopt.doctor(mended(model, finding)).of_kind("blocks int8")
    assert not dlopt.doctor(model, target="float").of_kind("blocks int8")
    rows = net(L.Conv2D(4, 3, activation="relu"), L.BatchNormalization(axis=1))
    (finding,) = dlopt.doctor(rows).of_kind("blocks int8")
    assert "normalizes" in finding.text
    assert isinstance(mended(rows, finding), dlopt.TransformedModel)
    unknown = net(L.Dense(4), L.UnitNormalization(name="norm"), L.Dense(2), shape=(6,))
    found = dlopt.doctor(unknown, target="ethos-u")
    (finding,) = found.of_kind("blocks int8")
    assert finding.where == "norm"
    assert "An NPU leaves it to the CPU." in finding.text
    small = mended(unknown, finding)
    assert isinstance(small, dlopt.TransformedModel)
    (estimate,) = found.of_kind("estimate")
    assert estimate.remedy == "dlopt.measure.npu_estimate('model.tflite')"


def test_the_estimate_is_a_call_that_runs(tmp_path, monkeypatch):
    pytest.importorskip("ethosu", reason="needs ethos-u-vela")
    model = net(L.Conv2D(8, 3), L.Flatten(), L.Dense(3))
    small = dlopt.post_training.quantize(model, batch(model))
    monkeypatch.chdir(tmp_path)
    dlopt.export.litert(small, "model.tflite", io="int8")
    (finding,) = dlopt.doctor(model, target="ethos-u").of_kind("estimate")
    mended(model, finding)


def test_what_folds_and_fronts_that_stay():
    stack = [L.Rescaling(1 / 127.5, -1.0, name="front")]
    stack += [
        L.Conv2D(4, 3, padding="same", name="conv"),
        L.BatchNormalization(name="n"),
    ]
    model = net(*stack)
    found = dlopt.doctor(model)
    (finding,) = found.of_kind("foldable")
    assert (finding.where, finding.figures) == ("n", {"layers": 1})
    small = mended(model, finding)
    assert relative(model(batch(model)), small(batch(model))) < 1e-5
    assert not dlopt.doctor(small).of_kind("foldable")
    (scaling,) = found.of_kind("input scaling")
    assert scaling.figures == pytest.approx({"low": -1.0, "high": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a lone Rescaling has no int8 form
        quantized = mended(model, scaling)
    ranges = [
        g.transform.range for g in quantized.groups if hasattr(g.transform, "range")
    ]
    assert any(r is not None and r == pytest.approx((-1.0, 1.0)) for r in ranges)


def test_risky_numbers():
    model = net(
        L.Dense(4, name="a"), L.BatchNormalization(name="n"), L.Dense(3), shape=(6,)
    )
    kernel = model.get_layer("a").kernel
    value = kernel.numpy().copy()
    value[0, 0], value[1, 1:3] = np.nan, 1e-40
    kernel.assign(value)
    norm = model.get_layer("n")
    norm.moving_variance.assign([1e-5, 1.0, 1.0, 1.0])
    norm.gamma.assign([1e4, 1.0, 1.0, 1.0])
    found = dlopt.doctor(model)
    assert found.findings[0].kind == "not finite"
    (bad,) = found.of_kind("not finite")
    assert (bad.where, bad.figures) == ("a/kernel", {"values": 1, "of": 24})
    (denormal,) = found.of_kind("denormal")
    assert denormal.figures == {"values": 2, "of": 24}
    (variance,) = found.of_kind("tiny variance")
    (factor,) = found.of_kind("large factor")
    assert variance.where == factor.where == "n"
    value[0, 0] = 1.0
    kernel.assign(value)
    mended(model, denormal)
    mended(model, variance, data=batch(model))
    model.compile("sgd", "mse")
    norm.gamma.assign(np.ones(4))
    mended(model, bad, x=batch(model, 8), y=np.ones((8, 3)))
    assert not {"not finite", "denormal", "tiny variance"} & kinds(dlopt.doctor(model))


def test_kernels_that_int8_takes_for_zeros():
    model = net(L.Conv2D(4, 3, name="c"), L.Flatten(), L.Dense(3))
    kernel = model.get_layer("c").kernel.numpy() * np.array([1, 1e-32, 1e-3, 1])
    bias = model.get_layer("c").bias.numpy() * np.array([1, 0, 1, 1])
    model.get_layer("c").set_weights([kernel, bias])
    (finding,) = dlopt.doctor(model, target="int8").of_kind("scale below int8")
    assert (finding.where, finding.figures) == ("c/kernel", {"channels": 1, "of": 4})
    assert not dlopt.doctor(mended(model, finding)).of_kind("scale below int8")


def test_activations_on_data():
    stack = [L.Dense(4, name="wide"), L.BatchNormalization(), L.ReLU(name="fires")]
    model = net(*stack, L.Dense(3, activation="tanh", name="flat"), shape=(6,))
    model.get_layer("flat").bias.assign(np.full(3, 50.0))
    x = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
    x[0] *= 1e4
    beta = model.get_layer("batch_normalization").beta
    beta.assign(np.where(np.arange(4) == 1, -1e9, beta.numpy()))
    found = dlopt.doctor(model, x)
    outliers = {f.where: f for f in found.of_kind("outliers")}
    figures = outliers["wide"].figures
    assert max(-figures["low"], figures["high"]) > 1e3 * figures["usual"]
    inner = keras.Model(model.inputs[0], model.get_layer("wide").output)
    outputs = inner(x).numpy()
    (wide,) = [one for one in found.ranges if one.path == "wide"]
    assert (wide.low, wide.high) == pytest.approx((outputs.min(), outputs.max()))
    assert "Activations on the data" in str(found)
    generated = dlopt.doctor(model, (part for part in np.split(x, 4)))
    assert [r.low for r in generated.ranges] == pytest.approx(
        [r.low for r in found.ranges]
    )
    (flat,) = found.of_kind("saturated")
    assert flat.figures["share"] == pytest.approx(1.0)
    (silent,) = found.of_kind("silent on the data")
    assert (silent.where, silent.figures) == ("fires", {"channels": 1, "of": 4})
    assert isinstance(mended(model, outliers["wide"], data=x), dlopt.TransformedModel)
    mended(model, flat, data=x)
    model.get_layer("flat").bias.assign(np.zeros(3))  # gradients come through again
    model.compile("sgd", "mse")
    small = mended(model, silent, x=x[1:], y=np.ones((199, 3), "float32"))
    assert not dlopt.doctor(small, x[1:]).of_kind("silent on the data")
    clean = dlopt.doctor(net(L.Dense(4), shape=(6,)), x[1:])
    assert not kinds(clean) & {"outliers", "saturated", "silent on the data"}


def test_activations_that_are_not_finite():
    model = net(L.Dense(4, name="a"), L.Rescaling(1e30, name="b"), shape=(6,))
    model.get_layer("a").bias.assign(np.full(4, 1e20))
    (finding,) = dlopt.doctor(model, batch(model)).of_kind("not finite")
    assert finding.where == "b"


class Opaque(keras.Model):
    """Branches on values, which has no graph."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, inputs):
        y = self.dense(inputs)
        return y if float(keras.ops.sum(y)) > 0 else -y


def test_a_model_without_a_graph_is_examined_as_far_as_it_goes():
    model = Opaque()
    x = np.ones((2, 4), "float32")
    model(x)
    found = dlopt.doctor(model, x)
    assert "Channels were not looked at" in found.notes[0]
    assert found.costs.macs == 12
    assert "Channels were not looked at" in str(found)


def test_the_model_stays_as_it_is():
    model = net(L.Conv2D(4, 3), L.BatchNormalization(), L.Flatten(), L.Dense(2))
    before = [w.numpy() for w in model.weights]
    dlopt.doctor(model, batch(model))
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_transformed_model_is_examined_as_it_computes():
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    model = net(L.Dense(4), L.Dense(2), shape=(6,))
    assert dlopt.doctor(dlopt.transform(model, recipe)).costs.macs == 6 * 4 + 4 * 2


def test_tables_pages_and_data(tmp_path):
    model = net(L.Conv2D(6, 3, name="<c>"), L.Flatten(), L.Dense(4, name="d"))
    kill(model.get_layer("<c>"), 0)
    found = dlopt.doctor(model)
    text = str(found)
    for part in (
        "net: examined",
        "dead channels",
        "remove_dead(model)",
        "Where parameters",
    ):
        assert part in text
    page = found.to_html(tmp_path / "page.html").read_text()
    assert "&lt;c&gt;" in page
    assert '<table class="words">' in page
    data = found.to_dict()
    assert data["findings"][0]["kind"] == "dead channels"
    assert data["removable_channels"] == 1
    clean = net(L.Dense(3), shape=(4,))
    assert "nothing" in str(dlopt.doctor(clean, target="float"))


def test_many_places_are_counted():
    one = report.Finding("dead channels", "layer", "text", {}, "call")
    examined = dlopt.doctor(net(L.Dense(3), shape=(4,)))
    many = report.Examination("m", examined.costs, (one,) * 11)
    assert "3 more places" in str(many)


def test_the_command(tmp_path):
    model = net(L.Conv2D(6, 3, name="c"), L.Flatten(), L.Dense(4))
    kill(model.get_layer("c"), 0)
    model.save(tmp_path / "m.keras")
    arguments = [
        "doctor",
        str(tmp_path / "m.keras"),
        "--html",
        str(tmp_path / "m.html"),
    ]
    found = CliRunner().invoke(app.app, arguments)
    assert found.exit_code == 0, found.output
    assert "dead channels" in found.output
    assert (tmp_path / "m.html").stat().st_size > 1000
    (tmp_path / "m.tflite").touch()
    found = CliRunner().invoke(app.app, ["doctor", str(tmp_path / "m.tflite")])
    assert found.exit_code == 2
    assert "holds no Keras model" in found.output


def test_wrong_arguments():
    with pytest.raises(ConfigError, match="target .*'tpu'"):
        dlopt.doctor(net(L.Dense(2), shape=(4,)), target="tpu")
    with pytest.raises(DataError, match="takes inputs of the shapes"):
        dlopt.doctor(net(L.Dense(2), shape=(4,)), np.zeros((3, 5)))
    with pytest.raises(ModelError, match="must be a built keras.Model"):
        dlopt.doctor(keras.Sequential([L.Dense(2)]))
