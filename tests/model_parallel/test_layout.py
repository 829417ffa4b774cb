"""Layouts: rules, their checks, plain data; and what each backend refuses."""

import itertools
import json

import keras
import numpy as np
import pytest

from keras_dlopt import model_parallel as parallel
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.model_parallel.pipeline import _balanced
from keras_dlopt.select import named, rank


def _net(units=8, **kwargs):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(units, name="a", **kwargs),
            keras.layers.Dense(2, name="b"),
        ],
        name="net",
    )


COLUMNS = (named("kernel") & rank(2), (None, "model"))


def test_the_first_rule_that_matches_decides():
    rules = [(named("kernel") & rank(2), (None, "model")), (named("bias"), ("model",))]
    layout = parallel.Layout({"model": 2}, rules)
    assert layout.mesh == {"batch": 1, "model": 2}
    assert layout.axes_of(_net()) == {
        "net/a/kernel": (None, "model"),
        "net/a/bias": ("model",),
        "net/b/kernel": (None, "model"),
        "net/b/bias": ("model",),
    }


def test_plain_data():
    layout = parallel.Layout({"batch": 2, "model": 4}, [COLUMNS])
    data = json.loads(json.dumps(layout.to_dict()))
    assert parallel.Layout.from_dict(data) == layout
    assert layout.devices == 8


def test_bytes_on_a_device_against_counting():
    layout = parallel.Layout({"model": 2}, [COLUMNS])
    kernels, biases = 4 * 8 + 8 * 2, 8 + 2
    assert layout.bytes_on_a_device(_net()) == 4 * (kernels // 2 + biases)
    assert layout.bytes_on_a_device(_net(), copies=3) == 12 * (kernels // 2 + biases)


@pytest.mark.parametrize("copies", [1, 3])
def test_weights_that_do_not_train_have_no_slots(copies):
    net = _net()
    net.get_layer("a").trainable = False
    layout = parallel.Layout({"model": 1}, [])
    frozen, free = 4 * 8 + 8, 8 * 2 + 2
    assert layout.bytes_on_a_device(net, copies=copies) == 4 * (frozen + copies * free)


def test_statistics_of_a_normalization_have_no_slots():
    net = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    layout = parallel.Layout({"model": 1}, [])
    assert layout.bytes_on_a_device(net, copies=3) == 4 * (2 * 4 + 3 * 2 * 4)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_mesh_sizes(size):
    with pytest.raises(ConfigError, match="must be a number of devices of at least 1"):
        parallel.Layout({"model": size})


@pytest.mark.parametrize(
    ("selector", "axes"),
    [
        ("kernel", (None, "model")),
        (named("kernel"), (None, "other")),
        (named("kernel"), ("batch", None)),
        (named("kernel"), ("model", "model")),
    ],
)
def test_rules(selector, axes):
    with pytest.raises(ConfigError, match="A rule is a selector and, for each axis"):
        parallel.Layout({"model": 2}, [(selector, axes)])


def test_a_rule_that_matches_nothing():
    layout = parallel.Layout({"model": 2}, [(named("gamma"), ("model",))])
    with pytest.raises(ConfigError, match="matches no weight .* a/kernel, a/bias"):
        layout.axes_of(_net())


def test_a_rule_of_another_rank():
    layout = parallel.Layout({"model": 2}, [(named("kernel"), ("model",))])
    with pytest.raises(ConfigError, match=r"add rank\(1\) to the selector"):
        layout.axes_of(_net())


def test_an_axis_that_the_devices_do_not_divide():
    layout = parallel.Layout({"model": 4}, [COLUMNS])
    with pytest.raises(ConfigError, match="axis of 6 cannot be split over the 4"):
        layout.axes_of(_net(units=6))


def test_an_unbuilt_model():
    model = keras.Sequential([keras.layers.Dense(2)])
    for call in (
        lambda: parallel.Layout({"model": 2}).axes_of(model),
        lambda: parallel.automatic_layout(model, devices=2),
    ):
        with pytest.raises(ModelError, match="has no weights to split"):
            call()


def test_automatic_layout_takes_what_the_devices_divide():
    layout = parallel.automatic_layout(_net(units=9), devices=4, least=1)
    assert layout.axes_of(_net(units=9)) == {"net/a/kernel": ("model", None)}
    with pytest.raises(ModelError, match="has an axis that 5 devices divide"):
        parallel.automatic_layout(_net(), devices=5, least=1)


@pytest.mark.parametrize(
    ("devices", "axes"),
    [
        (2, {"net/a/kernel": (None, "model"), "net/b/kernel": (None, "model")}),
        (4, {"net/a/kernel": (None, "model"), "net/b/kernel": ("model", None)}),
        (8, {"net/a/kernel": (None, "model"), "net/b/kernel": ("model", None)}),
    ],
)
def test_of_several_axes_the_last_is_split(devices, axes):
    layout = parallel.automatic_layout(_net(), devices=devices, least=1)
    assert layout.axes_of(_net()) == axes


def test_keras_distribution_is_refused_on_tensorflow():
    layout = parallel.Layout({"model": 1}, [COLUMNS])
    for call in (parallel.keras_distribution, parallel.split_model):
        with pytest.raises(ConfigError) as error:
            call(_net(), layout)
        assert "splits nothing on the tensorflow backend" in str(error.value)
        assert "use SplitTrainer or Pipeline" in str(error.value)


def test_too_few_devices_for_the_mesh():
    model = _net()
    model.compile("sgd", "mse")
    with pytest.raises(ConfigError, match="has 64 devices, and there are"):
        parallel.SplitTrainer(model, parallel.Layout({"model": 64}))


def test_pipeline_refusals():
    with pytest.raises(ModelError, match="takes a built Sequential or Functional"):
        parallel.Pipeline(keras.Sequential([keras.layers.Dense(2)]), devices=["CPU:0"])
    with pytest.raises(ConfigError, match=r"devices must be some of \['CPU:0'"):
        parallel.Pipeline(_net(), devices=["GPU:7"])
    with pytest.raises(ConfigError, match="micro_batches must be a whole number"):
        parallel.Pipeline(_net(), devices=["CPU:0"], micro_batches=0)
    with pytest.raises(ConfigError, match="cuts must be 0 rising layer numbers"):
        parallel.Pipeline(_net(), devices=["CPU:0"], cuts=[1])

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    own = Own()
    own(np.ones((1, 2)))
    with pytest.raises(ModelError, match="is a subclassed model, whose layers"):
        parallel.Pipeline(own, devices=["CPU:0"])


@pytest.mark.parametrize(
    ("sizes", "stages", "cuts"),
    [
        ([0, 10, 10, 0, 20], 2, [3]),
        ([0, 0, 16, 4, 4, 4, 1], 4, [3, 4, 5]),
        ([5], 1, []),
        ([1, 1, 1, 1], 4, [1, 2, 3]),
    ],
)
def test_balanced_stages(sizes, stages, cuts):
    assert len(_balanced(sizes, stages)) == stages - 1
    found = [0, *_balanced(sizes, stages), len(sizes)]
    wanted = [0, *cuts, len(sizes)]

    def squares(bounds):
        return sum(sum(sizes[a:b]) ** 2 for a, b in itertools.pairwise(bounds))

    assert squares(found) == squares(wanted)
    assert all(b > a for a, b in itertools.pairwise(found))
