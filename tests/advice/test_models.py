"""Structure, surgery, int8 and export: what refused models are told to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import Input, layers

import keras_dlopt as dlopt
from keras_dlopt import FakeQuant, Prune, Recipe, finalize, named, transform
from keras_dlopt.export import litert
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.trace import input_specs
from keras_dlopt.int8 import int8_recipe
from keras_dlopt.select import at
from keras_dlopt.surgery import hashed_layers, hashed_recipe

advice = pytest.mark.advice
X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
MAPS = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")


def kernels(made, where=None):
    return Recipe([(where or named("kernel"), made)])


def dense(units=4):
    keras.utils.set_random_seed(0)
    return keras.Sequential([Input((4,)), layers.Dense(units, name="d")], name="m")


class Subclassed(keras.Model):
    kind = layers.Dense

    def __init__(self, *, units=4, **options):
        super().__init__(**options)
        self.dense = self.kind(units, name="d")

    def call(self, x):
        return self.dense(x)


def called(model, x=X):
    model(x)
    return model


# -- graph -----------------------------------------------------------------------------


@advice("graph/walk.py", "Start it with keras.Input, call model.build(input_shape), or")
def test_models_that_are_not_built(told):
    with told():
        transform(keras.Sequential([layers.Dense(2)]), kernels(Prune(0.5)))
    built = keras.Sequential([layers.Dense(2)])
    built.build((None, 4))
    on_data = called(keras.Sequential([layers.Dense(2)]))
    for model in (dense(), built, on_data):
        assert transform(model, kernels(Prune(0.5))).built


class Undescribed(Subclassed):
    def get_config(self):
        raise NotImplementedError("who knows")


@keras.saving.register_keras_serializable("advice")
class Described(Subclassed):
    def get_config(self):
        return {"units": self.dense.units}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class Late(Subclassed):
    """Makes half of its weights when it trains first."""

    def __init__(self, **options):
        super().__init__(**options)
        self.more = layers.Dense(4, name="more")

    def call(self, x, training=False):
        return self.more(self.dense(x)) if training else self.dense(x)


class Early(Late):
    def build(self, shape):
        self.dense.build(shape)
        self.more.build((None, 4))


def late(kind):
    model = called(kind())
    model(X, training=True)
    return model


class Other(layers.Dense):
    pass


class Changed(Subclassed):
    kind = Other


@pytest.fixture
def replaced(monkeypatch):
    """A model of which another class makes the layer by now."""
    model = called(Changed())
    monkeypatch.setattr(Changed, "kind", layers.Dense)
    return model


@advice("graph/live.py", "Make it in __init__(), or pass copy=False to work on the mod")
def test_layers_that_were_replaced(told, replaced):
    with told():
        transform(replaced, kernels(Prune(0.5)))
    in_place = transform(replaced, kernels(Prune(0.5)), copy=False)
    for model in (in_place, transform(called(Changed()), kernels(Prune(0.5)))):
        assert model(X).shape == (8, 4)


# Keras says so of layers that are built late.
@pytest.mark.filterwarnings("ignore:`build.*` was called on layer")
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        pytest.param(
            lambda: called(Undescribed()),
            lambda: called(Described()),
            marks=advice(
                "graph/copying.py", "Give it get_config() and from_config(), or"
            ),
        ),
        pytest.param(
            lambda: late(Late),
            lambda: late(Early),
            marks=advice(
                "graph/copying.py", "Create all variables in __init__() or bui"
            ),
        ),
    ],
)
def test_models_that_cannot_be_copied(told, wrong, right):
    with told():
        transform(wrong(), kernels(Prune(0.5)))
    in_place = transform(wrong(), kernels(Prune(0.5)), copy=False)
    for model in (in_place, transform(right(), kernels(Prune(0.5)))):
        assert model(X).shape == (8, 4)
    twin = copy_model(right())
    assert twin(X).shape == (8, 4)


class Held(Subclassed):
    """Holds what Keras does not track, or the same as it should be."""

    def __init__(self, *, variable=None, box=None, **options):
        super().__init__(**options)
        if variable == "here":
            self.scale = tf.Variable(2.0)
        if variable == "weight":
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        if box is not None:
            self.box = box()

    def call(self, x):
        return self.dense(x) * getattr(self, "scale", 1.0)


class Box:
    def __init__(self):
        self.inner = layers.Dense(4)
        self.inner.build((None, 4))


class BoxLayer(layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(4)
        self.inner.build((None, 4))
        self.built = True


class HoldsHere(Held):
    def __init__(self, **options):
        super().__init__(variable="here", **options)


class HoldsWeight(Held):
    def __init__(self, **options):
        super().__init__(variable="weight", **options)


class HoldsBox(Held):
    def __init__(self, **options):
        super().__init__(box=Box, **options)


class HoldsLayer(Held):
    def __init__(self, **options):
        super().__init__(box=BoxLayer, **options)


@advice(
    "graph/attributes.py", "Make it there, or use add_weight(), which Keras saves; o"
)
@advice(
    "graph/attributes.py", "Make it a keras.layers.Layer, or pass copy=False to work"
)
def test_state_that_keras_does_not_track(told):
    late = called(Held())
    late.scale = tf.Variable(2.0)
    for wrong in (late, called(HoldsBox())):
        with told():
            transform(wrong, kernels(Prune(0.5), at("d/kernel")))
        in_place = transform(wrong, kernels(Prune(0.5), at("d/kernel")), copy=False)
        assert in_place(X).shape == (8, 4)
    for kind in (HoldsHere, HoldsWeight, HoldsLayer):
        small = transform(called(kind()), kernels(Prune(0.5), at("d/kernel")))
        assert small(X).shape == (8, 4)


class Opaque(layers.Layer):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return self.factor * x


class Clear(layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@advice("graph/rebuilding.py", "Build it as Sequential or Functional model, or keep it")
@advice("graph/rebuilding.py", "Give it get_config() and from_config().")
def test_models_that_cannot_be_rebuilt(told):
    recipe = kernels(dlopt.LowRank(1))
    small = transform(called(Subclassed()), recipe)
    with told():
        dlopt.factorize(small)
    assert np.linalg.matrix_rank(finalize(small).dense.kernel.numpy()) == 1
    assert dlopt.factorize(dense(), recipe).count_params() == 12

    def finalized(layer):
        last = dlopt.TransformedLayer(layers.Dense(4, name="d"), kernels(Prune(0.5)))
        return finalize(keras.Sequential([Input((4,)), layer, last]))

    with told():
        finalized(Opaque(2))
    assert (finalized(Clear(2)).layers[-1].kernel.numpy() == 0).mean() == 0.5


@advice("graph/trace.py", "Pass example=, a batch of its inputs.")
def test_inputs_that_are_not_known(told):
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4, name="d")

        def call(self, x):
            return self.dense(x["a"]) + x["b"]

    given = {"a": X, "b": X}
    model = called(Two(), given)
    with told():
        input_specs(model)
    assert input_specs(model, given)["b"].shape == (None, 4)


# -- surgery ---------------------------------------------------------------------------

RANK, HASH = kernels(dlopt.LowRank(1)), kernels(dlopt.HashedWeights(1 / 4))


def grouped():
    return keras.Sequential(
        [
            Input((6, 6, 4)),
            layers.Conv2D(4, 3, groups=2, name="c"),
            layers.Flatten(),
            layers.Dense(4, name="d"),
        ]
    )


@advice(
    "surgery/factorize.py", "Try factorize(model, low_rank_recipe(model, energy=0.9)"
)
@advice("surgery/factorize.py", "Put LowRank(...) into the recipe")
@advice(
    "surgery/factorize.py", "Factorize first, then apply the rest to the new layers."
)
@advice(
    "surgery/factorize.py", "groups. Leave it out of the recipe, or keep the model a"
)
@advice(
    "surgery/factorize.py", "outside. Leave it out of the recipe, as low_rank_recipe"
)
def test_factorizing(told):
    wide = keras.Sequential([Input((16,)), layers.Dense(16, name="d")])
    singular = 0.5 ** np.arange(16)  # two have 0.94 of the energy
    wide.layers[0].kernel.assign(np.diag(singular))
    with told():
        dlopt.factorize(wide)
    few = dlopt.factorize(wide, dlopt.low_rank_recipe(wide, energy=0.9))
    assert few.count_params() == 2 * 2 * 16 + 16
    with told():
        dlopt.factorize(dense(), kernels(Prune(0.5)))
    small = dlopt.factorize(dense(), RANK)
    assert small.count_params() == 12
    with told():
        dlopt.factorize(dense(), kernels(dlopt.LowRank(1) >> FakeQuant(bits=8)))
    assert finalize(transform(small, kernels(FakeQuant(bits=8)))).count_params() == 12
    with told():
        dlopt.factorize(grouped(), RANK)
    assert (
        len(
            dlopt.factorize(grouped(), kernels(dlopt.LowRank(1), at("d/kernel"))).layers
        )
        == 4
    )
    whole = finalize(transform(grouped(), RANK))
    assert whole.count_params() == grouped().count_params()

    def timed():
        inner = layers.TimeDistributed(layers.Dense(4, name="in"), name="t")
        return keras.Sequential([Input((3, 4)), inner, layers.Dense(4, name="d")])

    with told():
        dlopt.factorize(timed(), RANK)
    recipe = dlopt.low_rank_recipe(timed(), energy=0.5)
    assert {path for s, _ in recipe.entries for path in s.paths} <= {"d/kernel"}
    assert dlopt.factorize(timed(), kernels(dlopt.LowRank(1), at("d/kernel"))).built
    assert finalize(transform(timed(), RANK)).built


@advice("surgery/hashing.py", "Leave it out of the recipe, as hashed_recipe")
@advice("surgery/hashing.py", "Put HashedWeights into a recipe for any weight")
def test_hashing(told):
    with told():
        hashed_layers(transform(grouped(), HASH))
    recipe = kernels(dlopt.HashedWeights(1 / 4), at("d/kernel"))
    small = hashed_layers(transform(grouped(), recipe))
    assert small.count_params() < grouped().count_params()
    chosen = hashed_recipe(grouped(), 1 / 4)
    assert chosen == recipe
    with told():
        hashed_recipe(grouped(), select=at("c/kernel"))
    assert finalize(transform(grouped(), HASH)).built


# -- int8 and LiteRT -------------------------------------------------------------------


def trained(model, recipe, x=None):
    """Transformed, with ranges from two steps."""
    small = transform(model, recipe)
    small.compile("sgd", "mse")
    x = np.zeros((8, *model.input_shape[1:]), "float32") if x is None else x
    y = np.zeros((len(x), *model.output_shape[1:]), "float32")
    small.fit(x, y, batch_size=4, verbose=0)
    return small


def exported(model, path, **options):
    return litert(model, path / "m.tflite", **options).codes


@advice(
    "int8/placement.py", "Put a layer between that keeps the values, such as keras."
)
def test_inputs_that_are_added(told):
    def net(between=None):
        x = Input((6, 6, 3))
        y = layers.Conv2D(3, 3, padding="same", name="c")(x)
        return keras.Model(x, layers.Add(name="a")([y, between(x) if between else x]))

    with told():
        int8_recipe(net())
    assert int8_recipe(net(lambda x: layers.Reshape(x.shape[1:])(x))).entries


@advice(
    "int8/recipes.py", "Give finalize(model), or the model from before, and chain w"
)
def test_int8_of_what_is_transformed(told):
    small = transform(dense(), kernels(Prune(0.8)))
    with told():
        int8_recipe(small)
    weights = Prune(0.8) >> FakeQuant(bits=8)
    for model in (finalize(small), dense()):
        plain = finalize(trained(model, int8_recipe(model, weights=weights), X))
        assert (plain.layers[-1].kernel.numpy() == 0).mean() == 13 / 16


@advice(
    "export/litert.py", "Train transform(model, int8_recipe(model)) first, or leave"
)
@advice(
    "export/arguments.py", "Save the model with model.save('model.keras'), and export i"
)
@advice("export/arguments.py", "Create it first.")
@advice("export/arguments.py", "Pass one or neither.")
@advice(
    "export/twin.py", "Train the model with fit() first, a few steps are enough for"
)
def test_exports(told, tmp_path, monkeypatch):
    with told():
        exported(dense(), tmp_path, io="int8")
    small = transform(dense(), int8_recipe(dense()))
    with told():
        exported(small, tmp_path)
    assert (
        exported(trained(dense(), int8_recipe(dense()), X), tmp_path, io="int8") == 16
    )
    assert exported(dense(), tmp_path) == 0
    with monkeypatch.context() as patched, told():
        patched.setattr(keras.backend, "backend", lambda: "torch")
        exported(dense(), tmp_path)
    dense().save(tmp_path / "model.keras")
    assert exported(keras.models.load_model(tmp_path / "model.keras"), tmp_path) == 0
    with told():
        exported(dense(), tmp_path / "new")
    (tmp_path / "new").mkdir()
    assert exported(dense(), tmp_path / "new") == 0
    with told():
        exported(dense(), tmp_path, data=X, verify=False)
    for options in ({"data": X}, {"verify": False}, {}):
        assert exported(dense(), tmp_path, **options) == 0


@advice(
    "export/twin.py", "Put them into one recipe: keras_dlopt.transform(model, recip"
)
@advice("export/twin.py", "Train with FakeQuantActivation(bits=8).")
def test_quantizers_that_a_file_cannot_hold(told, tmp_path):
    weights = (named("kernel"), FakeQuant(bits=8))

    def recipe(weights=weights, bits=8):
        quantizer = dlopt.FakeQuantActivation(bits=bits)
        return Recipe([(at("d/input", "d/output"), quantizer), weights])

    block = keras.Sequential([layers.Dense(4, name="d")], name="block")
    layer = dlopt.TransformedLayer(block, recipe())
    model = keras.Sequential([Input((4,)), layer])
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0)
    with told():
        exported(model, tmp_path)
    with told():
        exported(trained(dense(), recipe(bits=4), X), tmp_path)
    chain = Prune(0.8) >> FakeQuant(bits=8)
    for made in (recipe(), recipe((named("kernel"), chain)), int8_recipe(dense())):
        assert exported(trained(dense(), made, X), tmp_path) == 16


@advice("export/litert.py", "Start from int8_recipe(model), or use io='float'.")
@advice(
    "export/litert.py", "Add the missing '<layer>/output' to the recipe, or start from"
)
def test_files_that_are_wanted_in_int8_alone(told, tmp_path):
    quantizer = dlopt.FakeQuantActivation()
    weights = (named("kernel"), FakeQuant(bits=8))

    def made(*paths):
        recipe = Recipe([(at(*paths), quantizer), weights])
        return trained(dense(), recipe, X)

    for options in ({"io": "int8"}, {"full_integer": True}):
        with told():
            exported(made("d/input"), tmp_path, **options)
        assert exported(made("d/input", "d/output"), tmp_path, **options) == 16
        whole = trained(dense(), int8_recipe(dense()), X)
        assert exported(whole, tmp_path, **options) == 16
    assert exported(made("d/input"), tmp_path, io="float") == 16
