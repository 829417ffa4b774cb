"""Gradual unfreezing, by numbers: what waits stands still, what begins starts right."""

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt import adapt
from keras_dlopt.errors import ConfigError, ModelError

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


def net(**kwargs):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(5, activation="tanh", name="a", **kwargs),
            L.BatchNormalization(name="n"),
            L.Dense(3, activation="tanh", name="b"),
            L.Dense(2, name="c"),
        ]
    )


class Seen(keras.callbacks.Callback):
    """All weights before each batch, and at the end."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def note(self):
        self.steps.append({v.path: v.numpy() for v in self.model.weights})

    def on_train_batch_begin(self, batch, logs=None):
        self.note()

    def on_train_end(self, logs=None):
        self.note()

    def size(self, name, step):
        """How far each entry of a weight moved in a step."""
        (path,) = {p for p in self.steps[0] if p.endswith(name)}
        return np.abs(self.steps[step + 1][path] - self.steps[step][path])

    def moves(self, name):
        """For each step, whether the weight moved in it."""
        (path,) = {p for p in self.steps[0] if p.endswith(name)}
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [bool((a[path] != b[path]).any()) for a, b in pairs]


def fit(model, stages, optimizer=None, epochs=3, **kwargs):
    model.compile(optimizer or dlopt.optimizers.Adam(0.01), "mse", **kwargs)
    seen = Seen()
    unit = "step" if any(start > 3 for start, _ in stages) else "epoch"
    callbacks = [adapt.GradualUnfreezing(stages, unit=unit), seen]
    model.fit(X, Y, batch_size=8, epochs=epochs, callbacks=callbacks, verbose=0)
    return seen


def test_what_waits_stands_still_and_begins_in_its_epoch():
    model = net()
    seen = fit(model, [(1, dlopt.matching("b/.*")), (2, dlopt.matching("[an]/.*"))])
    no, yes = [False] * 3, [True] * 3
    assert seen.moves("c/kernel") == yes * 3
    assert seen.moves("b/kernel") == no + yes * 2
    for weight in ("a/kernel", "a/bias", "n/gamma", "n/moving_mean"):
        assert seen.moves(weight) == no * 2 + yes, weight
    assert all(layer.trainable for layer in model.layers)
    assert len(model.trainable_variables) == 8


@pytest.mark.parametrize(
    "kind", ["step", "steps_per_execution", pytest.param("jit", marks=pytest.mark.slow)]
)
def test_stages_in_steps(kind):
    options = {}
    if kind == "steps_per_execution":
        options = {"steps_per_execution": 3}
    if kind == "jit":
        options = {"jit_compile": True}
    # the second pair is one weight of a layer, which trains on as a layer
    stages = [(4, dlopt.matching("a/.*")), (5, dlopt.at("b/kernel"))]
    seen = fit(net(), stages, **options)
    if kind == "steps_per_execution":
        assert seen.moves("a/kernel") == [False, False, True]
    else:
        assert seen.moves("a/kernel") == [False] * 4 + [True] * 5
        assert seen.moves("b/kernel") == [False] * 5 + [True] * 4
        assert all(seen.moves("b/bias"))


def test_late_weights_take_the_steps_of_weights_that_begin():
    """The first step of Adam is the rate times the sign, whenever it is taken."""
    seen = fit(net(), [(2, dlopt.matching("a/kernel"))], epochs=3)
    np.testing.assert_allclose(seen.size("a/kernel", 6), 0.01, rtol=2e-3)
    with pytest.warns(UserWarning, match="of weights that begin at 6 are up to"):
        late = fit(
            net(), [(2, dlopt.matching("a/kernel"))], keras.optimizers.Adam(0.01)
        )
    # (1 - 0.9) / sqrt(1 - 0.999) of the rate, over what 7 steps would have corrected
    wrong = 0.01 * 0.1 / 0.001**0.5 * (1 - 0.999**7) ** 0.5 / (1 - 0.9**7)
    np.testing.assert_allclose(late.size("a/kernel", 6), wrong, rtol=2e-3)


def trained(model, epochs, *, first=0, stages=None):
    callbacks = [adapt.GradualUnfreezing(stages)] if stages else []
    order = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(X, Y, epochs=epochs, initial_epoch=first, callbacks=callbacks, **order)
    return model


@pytest.mark.parametrize(
    ("cut", "goes_on"),
    [
        pytest.param(1, True, id="while it waits"),
        pytest.param(2, True, id="at its start", marks=pytest.mark.slow),
        pytest.param(3, True, id="after it", marks=pytest.mark.slow),
        pytest.param(3, False, id="without the callback"),
    ],
)
def test_a_training_from_a_file_goes_on_to_the_bit(tmp_path, cut, goes_on):
    stages = [(2, dlopt.matching("[ab]/.*"))]
    end = stages if goes_on else None
    models = []
    for stop in (False, True):
        model = net()
        model.compile(dlopt.optimizers.Adam(0.01), "mse")
        trained(model, 1, stages=stages)
        trained(model, cut, first=1, stages=stages)
        if stop:
            model.save(tmp_path / "m.keras")
            model = keras.saving.load_model(tmp_path / "m.keras")
        models.append(trained(model, 4, first=cut, stages=end))
    for a, b in zip(
        *(m.variables + m.optimizer.variables for m in models), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_weights_that_wait_a_second_time_count_what_they_did():
    """6 steps, 3 without the weight, then its 7th, as in a training without a pause."""
    ends = []
    for pause in (False, True):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((4,))
        heads = [L.Dense(2, name=name)(inputs) for name in "ab"]
        model = keras.Model(inputs, L.Concatenate()(heads))
        model.compile(dlopt.optimizers.Adam(0.01), lambda y, z: (z - 1.0) ** 2)
        trained(model, 2)
        if pause:
            trained(model, 1, stages=[(1, dlopt.matching("a/.*"))])
        trained(model, 1)
        ends.append(model.get_layer("a").get_weights())
    for a, b in zip(*ends, strict=True):  # other steps would be apart by 1e-3
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_a_second_fit_and_a_transformed_model_follow():
    recipe = dlopt.Recipe([(dlopt.at("a/kernel"), dlopt.LowRank(2))])
    model = dlopt.transform(net(), recipe)
    stages = [(1, dlopt.matching("a/.*"))]
    seen = fit(model, stages, epochs=2)
    (first,) = (n for n in seen.steps[0] if n.endswith("first"))
    assert seen.moves(first) == [False] * 3 + [True] * 3
    assert seen.moves("a/kernel") == [False] * 6
    again = Seen()
    model.fit(
        X,
        Y,
        batch_size=8,
        epochs=1,
        verbose=0,
        callbacks=[adapt.GradualUnfreezing(stages), again],
    )
    assert again.moves(first) == [False] * 3
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[again])
    assert again.moves(first)[-3:] == [True] * 3


def test_top_down_is_all_from_the_head():
    stages = adapt.top_down(net(), every=2)
    assert [start for start, _ in stages] == [0, 2, 4]
    assert stages[0][1].paths == ("c/kernel", "c/bias")
    assert "n/gamma" in stages[2][1].paths
    callback = adapt.GradualUnfreezing(stages)
    again = adapt.GradualUnfreezing.from_config(callback.get_config())
    assert again.stages == callback.stages


def test_what_is_refused():
    with pytest.raises(ConfigError, match="stages must be pairs of a start and a sel"):
        adapt.GradualUnfreezing([dlopt.named("kernel")])
    with pytest.raises(ConfigError, match="The second of each stage must be"):
        adapt.GradualUnfreezing([(1, "kernel")])
    with pytest.raises(ConfigError, match="no weight of the model. Near it: 'a/k"):
        fit(net(), [(1, dlopt.at("a/kernl"))])
    with pytest.raises(ConfigError, match=r"means no weight of the model. There are: "):
        fit(net(), [(1, dlopt.named("kern"))])
    model = net()
    model.get_layer("a").trainable = False
    with pytest.raises(ModelError, match="has no state for some of .'a/kernel'"):
        fit(model, [(1, dlopt.matching("a/.*"))])
