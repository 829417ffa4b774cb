"""Transforms: what refused recipes, weights and trainings are told to do."""

import keras
import numpy as np
import pytest
from keras import Input, layers

import keras_dlopt as dlopt
from keras_dlopt import FakeQuant, Prune, Recipe, finalize, named, transform
from keras_dlopt.schedules import PolynomialSparsity, RegrowSparsity
from keras_dlopt.select import at, inside, matching
from keras_dlopt.transforms import UpdateTransforms, prune, quantize
from keras_dlopt.transforms.statistics import Statistics

advice = pytest.mark.advice
X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = X[:, :2]


def dense(units=2, **options):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [Input((4,)), layers.Dense(units, name="d", **options)], name="m"
    )


def kernels(made, where=None):
    return Recipe([(where or named("kernel"), made)])


def zeros(model):
    """The share of zeros in the only kernel."""
    (kernel,) = (v for v in model.weights if v.name == "kernel")
    return float(np.mean(kernel.numpy() == 0))


def fit(model, *given, data=(X, Y), **options):
    model.compile("sgd", "mse", **options)
    history = model.fit(*data, batch_size=8, epochs=2, verbose=0, callbacks=list(given))
    assert np.isfinite(history.history["loss"]).all()
    return model


class Subclassed(keras.Model):
    def __init__(self, inner=None, **options):
        super().__init__(**options)
        self.inner = inner or layers.Dense(2, name="d")

    def call(self, x):
        return self.inner(x)


# -- which weights ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(
            lambda: dlopt.LowRank(1),
            marks=advice(
                "transforms/low_rank.py", "Select kernels only: named('kernel')"
            ),
        ),
        pytest.param(
            lambda: Prune(pattern=prune.NofM(2, 4, axis=1)),
            marks=advice(
                "transforms/prune/pattern.py",
                "NofM({}, {}). Select kernels only: named('kernel').",
            ),
        ),
        pytest.param(
            lambda: Prune(0.5, pattern=prune.Blocks((2, 2))),
            marks=advice(
                "transforms/prune/pattern.py",
                "Blocks({}) needs a weight of rank {} or more. {} has shape {}. Select",
            ),
        ),
        pytest.param(
            lambda: Prune(0.5, pattern=prune.Rows()),
            marks=advice(
                "transforms/prune/pattern.py",
                "() needs weights of rank 2 or more. {} has shape {}. Select kernels",
            ),
        ),
    ],
)
def test_biases_that_have_one_axis(told, made):
    with told():
        transform(dense(4), kernels(made(), named("bias")))
    assert transform(dense(4), kernels(made())).built


@advice("transforms/prune/pattern.py", "recipe entry, or choose another axis.")
def test_axes_that_groups_do_not_divide(told):
    with told():
        transform(dense(6), kernels(Prune(pattern=prune.NofM(2, 4, axis=1))))
    small = transform(dense(6), kernels(Prune(pattern=prune.NofM(2, 4, axis=0))))
    assert zeros(finalize(small)) == 0.5


@advice(
    "transforms/quantize/layout.py", "Choose a divisor, or leave this weight to ano"
)
@advice("transforms/quantize/layout.py", "Leave one of the two out.")
def test_groups_of_scales(told):
    with told():
        transform(dense(), kernels(FakeQuant(bits=8, group_size=3)))
    assert finalize(transform(dense(), kernels(FakeQuant(bits=8, group_size=2)))).built
    with told():
        FakeQuant(bits=8, per_channel=False, group_size=2)
    assert FakeQuant(bits=8, per_channel=False).per_channel is False
    assert FakeQuant(bits=8, group_size=2).group_size == 2


@advice(
    "transforms/share.py", "Select layers of one kind, such as matching('block./con"
)
def test_weights_of_two_shapes_that_are_tied(told):
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            Input((4,)),
            layers.Dense(4, name="block1"),
            layers.Dense(4, name="block2"),
            layers.Dense(2, name="head"),
        ]
    )
    with told():
        transform(net, kernels(dlopt.Share()))
    small = transform(net, kernels(dlopt.Share(), matching("block./kernel")))
    a, b = (finalize(small).get_layer(f"block{i}").kernel.numpy() for i in (1, 2))
    np.testing.assert_array_equal(a, b)


@advice(
    "transforms/prune/distribution.py", "Add it, or leave it out of the recipe entry."
)
def test_sensitivities_that_are_not_known(told):
    def pruned(**known):
        net = keras.Sequential(
            [Input((4,)), layers.Dense(4, name="a"), layers.Dense(4, name="b")]
        )
        where = named("kernel") if "b" in known else at("a/kernel")
        of = {f"{name}/kernel": share for name, share in known.items() if share}
        made = Prune(distribution=prune.BySensitivity(of))
        plain = finalize(transform(net, kernels(made, where)))
        return float(np.mean(plain.get_layer("a").kernel.numpy() == 0))

    with told():
        pruned(a=0.5, b=None)
    assert pruned(a=0.5, b=0.25) == 0.5
    assert pruned(a=0.5) == 0.5


# -- what contradicts itself -----------------------------------------------------------


@advice(
    "transforms/prune/transform.py", "Give a schedule that starts at 0 or later, su"
)
@advice("transforms/prune/transform.py", "Use one of them.")
@advice(
    "transforms/prune/transform.py", "Use Prune(..., regrow=True) with PolynomialSp"
)
@advice("transforms/prune/transform.py", "Leave the distribution out.")
@advice(
    "transforms/prune/transform.py", "Leave the sparsity out, or end the schedule a"
)
def test_parts_of_pruning(told):
    with told():
        Prune(0.5, score=prune.Movement())
    movement = Prune(PolynomialSparsity(0.9, end=1000), score=prune.Movement())
    assert transform(dense(), kernels(movement)).built
    regrow = RegrowSparsity(0.5, end=100)
    with told():
        Prune(regrow, regrow=True)
    assert Prune(regrow) != Prune(PolynomialSparsity(0.5, end=100), regrow=True)
    pattern = prune.NofM(2, 4)
    with told():
        Prune(regrow, pattern=pattern)
    assert Prune(PolynomialSparsity(0.5, end=100), pattern=pattern, regrow=True).regrow
    with told():
        Prune(pattern=pattern, distribution=prune.Global())
    with told():
        Prune(0.75, pattern=pattern)
    assert zeros(finalize(transform(dense(), kernels(Prune(pattern=pattern))))) == 0.5
    assert Prune(PolynomialSparsity(0.5, end=9), pattern=pattern).pattern == pattern


@advice("transforms/low_rank.py", "Give one of rank (a number, or two for 'tucker')")
@advice("transforms/low_rank.py", "Give one of energy and budget, each a share in (0,")
@advice("transforms/low_rank.py", "Raise it, or prune instead.")
def test_ranks(told):
    for wrong in ({}, {"rank": 1, "ratio": 0.5}):
        with told():
            dlopt.LowRank(**wrong)
    assert dlopt.LowRank(1).rank == 1
    assert dlopt.LowRank((1, 2), method="tucker").rank == (1, 2)
    assert dlopt.LowRank(ratio=0.5).ratio == 0.5
    net = keras.Sequential([Input((8,)), layers.Dense(8, name="d")])
    for wrong in ({}, {"energy": 0.5, "budget": 0.5}):
        with told():
            dlopt.low_rank_recipe(net, **wrong)
    assert dlopt.low_rank_recipe(net, energy=0.3).entries
    with told():
        dlopt.low_rank_recipe(net, budget=0.1)
    assert dlopt.low_rank_recipe(net, budget=0.5).entries[0][1].rank == 2
    assert zeros(finalize(transform(net, kernels(Prune(0.9))))) > 0.8


@advice(
    "transforms/base.py", "Let it begin when that has ended, such as Cluster(16, be"
)
def test_clusters_before_the_pruning_has_ended(told):
    pruning = Prune(PolynomialSparsity(0.5, end=4))
    with told():
        pruning >> dlopt.Cluster(2)
    chain = pruning >> dlopt.Cluster(2, begin=4)
    small = transform(dense(), kernels(chain))
    for step in range(6):
        small.update_transforms(step)
    kernel = finalize(small).get_weights()[0]
    assert np.unique(kernel).size <= 3
    assert (kernel == 0).mean() == 0.5


@advice("transforms/quantize/quantizer.py", "Use one.")
@advice(
    "transforms/quantize/quantizer.py", "Leave it out; activations may start at Giv"
)
@advice(
    "transforms/quantize/activation_quantizer.py", "Use 'mse' or 'percentile', or c"
)
def test_parts_of_quantizers(told):
    grid, given = quantize.IntegerGrid(8), quantize.GivenRange
    with told():
        quantize.ActivationQuantizer(
            grid, gradient=quantize.LearnedStep(), start=given(-1, 1, hold=True)
        )
    with told():
        quantize.Quantizer(grid, start=quantize.FromRange())
    assert quantize.ActivationQuantizer(grid, start=given(-1, 1)).start.high == 1
    with told():
        dlopt.FakeQuantActivation(observer="kl")
    for observer in ("mse", "percentile"):
        assert dlopt.FakeQuantActivation(observer=observer).observer
    small = dlopt.post_training.quantize(dense(), X, observer="kl")
    assert np.isfinite(small.predict(X, verbose=0)).all()


# -- when ------------------------------------------------------------------------------


def scheduled(**options):
    return Prune(PolynomialSparsity(0.5, end=3, frequency=1), **options)


@advice("transforms/host.py", "Train beyond it with fit(), which updates by itself")
@advice("transforms/host.py", "Train with fit(), or pass update_transforms(step, stati")
def test_updates_that_never_came(told):
    with told():
        finalize(transform(dense(), kernels(scheduled())))
    assert zeros(finalize(fit(transform(dense(), kernels(scheduled()))))) == 0.5
    layer = dlopt.TransformedLayer(layers.Dense(2), kernels(scheduled()))
    by_hand = fit(keras.Sequential([Input((4,)), layer]), UpdateTransforms())
    assert zeros(finalize(by_hand)) == 0.5
    own_loop = transform(dense(), kernels(scheduled()))
    own_loop.update_transforms(3)
    assert zeros(finalize(own_loop)) == 0.5
    taylor = transform(dense(), kernels(scheduled(score=prune.Taylor())))
    with told():
        taylor.update_transforms(3)
    taylor.compile("sgd", "mse")
    taylor.update_transforms(3, statistics=Statistics(taylor, (X, Y)))
    assert zeros(finalize(taylor)) == 0.5


@advice(
    "transforms/updating.py", "Pass UpdateTransforms(data=(x, y)), or train a Trans"
)
@advice(
    "transforms/batches.py", "Hand re-readable data to fit (arrays, tf.data, PyData"
)
@advice("transforms/statistics.py", "Call compile() first.")
@advice("transforms/statistics.py", "Use a score that needs none, such as Magnitude().")
def test_gradients_for_transforms(told, monkeypatch):
    recipe = kernels(scheduled(score=prune.Taylor()))

    def by_layers():
        return keras.Sequential(
            [Input((4,)), dlopt.TransformedLayer(layers.Dense(2), recipe)]
        )

    with told():
        fit(by_layers(), UpdateTransforms())
    given = UpdateTransforms(data=(X, Y))
    assert zeros(finalize(fit(by_layers(), given))) == 0.5
    assert zeros(finalize(fit(transform(dense(), recipe)))) == 0.5

    def batches():
        for _ in range(8):
            yield X[:8], Y[:8]

    def from_generator(*given):
        model = transform(dense(), recipe)
        model.compile("sgd", "mse")
        model.fit(
            batches(),
            shuffle=False,
            steps_per_epoch=4,
            verbose=0,
            callbacks=list(given),
        )
        return zeros(finalize(model))

    with told():
        from_generator()
    assert from_generator(UpdateTransforms(data=(X, Y))) == 0.5
    small = transform(dense(), recipe)
    with told():
        Statistics(small, (X, Y))
    small.compile("sgd", "mse")
    with monkeypatch.context() as patched, told():
        patched.setattr(keras.backend, "backend", lambda: "torch")
        Statistics(small, (X, Y))
    assert Statistics(small, (X, Y))
    plain = transform(dense(), kernels(Prune(0.5, score=prune.Magnitude())))
    assert zeros(finalize(plain)) == 0.5


@advice(
    "transforms/slots.py", "Load an earlier checkpoint, or train again with a lower"
)
def test_weights_that_are_not_finite(told):
    net = dense()
    kernel = net.layers[0].kernel
    before = kernel.numpy()
    kernel.assign(np.full(before.shape, np.nan))
    with told():
        transform(net, kernels(Prune(0.5)))
    kernel.assign(before)
    assert zeros(finalize(transform(net, kernels(Prune(0.5))))) == 0.5


# -- which models ----------------------------------------------------------------------

CHAIN = Prune(0.5) >> FakeQuant(bits=8)


@advice(
    "transforms/model.py", "Give it to the layers of the model before transform(); t"
)
def test_dtype_policies_of_transformed_models(told):
    small = transform(dense(), kernels(Prune(0.5)))
    with told():
        small.dtype_policy = "mixed_bfloat16"
    before = transform(dense(dtype="mixed_bfloat16"), kernels(Prune(0.5)))
    assert before(X).dtype.name == "bfloat16"
    assert zeros(finalize(before)) == 0.5


# Keras says so of every model with an InputLayer, transformed or not.
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
@advice(
    "transforms/model.py", "Chain the transforms in one recipe, such as Prune(0.9) >"
)
@advice(
    "transforms/layer.py", "Chain the transforms instead, such as Prune(0.9) >> Fake"
)
@advice(
    "transforms/model.py", "Use finalize(model).quantize(mode), or a recipe with Fak"
)
def test_transforming_twice(told):
    small = transform(dense(), kernels(Prune(0.5)))
    with told():
        transform(small, kernels(FakeQuant(bits=8)))
    assert zeros(finalize(transform(dense(), kernels(CHAIN)))) == 0.5
    assert (
        zeros(finalize(transform(finalize(small), kernels(FakeQuant(bits=8))))) == 0.5
    )
    layer = dlopt.TransformedLayer(layers.Dense(2), kernels(Prune(0.5)))
    with told():
        dlopt.TransformedLayer(layer, kernels(FakeQuant(bits=8)))
    both = keras.Sequential(
        [Input((4,)), dlopt.TransformedLayer(layers.Dense(2), kernels(CHAIN))]
    )
    assert zeros(finalize(both)) == 0.5
    with told():
        small.quantize("int8")
    plain = finalize(small)
    plain.quantize("int8")
    assert zeros(plain) == 0.5


@advice(
    "transforms/finalize.py", "Build one with keras_dlopt.transform(model, recipe)."
)
@advice(
    "transforms/finalize.py", "replaced from outside. Build it from plain layers an"
)
@advice(
    "transforms/finalize.py", "Build them from plain layers and use keras_dlopt.tra"
)
def test_what_cannot_be_finalized(told):
    with told():
        finalize(dense())

    def wrapped():
        return dlopt.TransformedLayer(layers.Dense(2), kernels(Prune(0.5)))

    model = Subclassed(wrapped())
    model(X)
    with told():
        finalize(model)

    class Holder(layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            return self.inner(x)

    with told():
        finalize(keras.Sequential([Input((4,)), Holder(wrapped())]))
    plain = keras.Sequential([Input((4,)), Holder(layers.Dense(2))])
    for net in (dense(), plain):
        small = transform(net, kernels(Prune(0.5)), copy=False)
        assert zeros(finalize(small, copy=False)) == 0.5


@advice("transforms/face.py", "Build the same from finalize(model), an ordinary model.")
@advice("transforms/face.py", "Take its parts from finalize(model).")
def test_parts_of_a_transformed_model(told):
    inner = keras.Sequential([Input((4,)), layers.Dense(3, name="in")], name="inner")
    net = keras.Sequential([Input((4,)), inner, layers.Dense(2, name="out")])
    small = transform(net, kernels(Prune(0.5)))
    features = keras.Model(small.inputs, small.get_layer("inner").output)
    with told():
        features.get_config()
    plain = finalize(small)
    again = keras.Model(plain.inputs, plain.get_layer("inner").output)
    copy = keras.Model.from_config(again.get_config())
    copy.set_weights(again.get_weights())
    np.testing.assert_allclose(copy([X]), features([X]), rtol=1e-6)
    with told():
        small.get_layer("inner").outputs  # noqa: B018
    nested = plain.get_layer("inner")
    assert keras.Model(nested.inputs, nested.outputs[0])([X]).shape == (16, 3)


class OwnTest(Subclassed):
    def make_train_function(self, force=False):
        raise AssertionError("never called")


class InStep(Subclassed):
    def compute_loss(self, x=None, y=None, y_pred=None, weight=None, **options):
        return 2 * keras.ops.mean(keras.ops.square(y - y_pred))


@advice("transforms/trainer.py", "Train in your own loop with update_transforms(step),")
def test_training_methods_that_cannot_be_forwarded(told):
    import tensorflow as tf

    recipe = kernels(scheduled())

    def small(kind):
        net = kind()
        net(X)
        return transform(net, recipe, copy=False)

    refused = small(OwnTest)
    with told():
        fit(refused)
    weights = refused.trainable_variables
    optimizer = keras.optimizers.SGD(0.1)
    for step in range(4):
        refused.update_transforms(step)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(Y - refused(X, training=True)))
        optimizer.apply(tape.gradient(loss, weights), weights)
    assert zeros(finalize(refused, copy=False)) == 0.5
    assert zeros(finalize(fit(small(InStep)), copy=False)) == 0.5


@advice(
    "transforms/calls.py", "Leave it out of the recipe, such as by & ~inside(keras."
)
def test_weights_that_their_layer_writes(told):
    net = keras.Sequential(
        [Input((4,)), layers.SpectralNormalization(layers.Dense(4)), layers.Dense(2)]
    )
    with told():
        transform(net, kernels(Prune(0.5)))
    where = named("kernel") & ~inside(layers.SpectralNormalization)
    plain = finalize(transform(net, kernels(Prune(0.5), where)))
    assert (plain.layers[-1].kernel.numpy() == 0).mean() == 0.5
    layer = dlopt.TransformedLayer(layers.Dense(4), kernels(Prune(0.5)))
    fit(keras.Sequential([Input((4,)), layer, layers.Dense(2)]))


class Recomputed(layers.Layer):
    """Keeps values between calls, or writes its own weight in call()."""

    def __init__(self, *, recompute=False, write=False, **options):
        super().__init__(**options)
        self.recompute, self.write = recompute, write

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        import tensorflow as tf

        if self.write:
            self.kernel.assign(self.kernel * 1.0)

        def product(x):
            return keras.ops.matmul(x, self.kernel) * self.scale

        return tf.recompute_grad(product)(x) if self.recompute else product(x)


@advice(
    "_compat/overlay.py", "Take that off the function (fit() compiles and saves mem"
)
@advice(
    "_compat/overlay.py", "Leave it out of the recipe, or move the assignment out o"
)
def test_calls_that_keep_or_write_values(told):
    def trained(where="kernel", **options):
        layer = Recomputed(name="own", **options)
        net = keras.Sequential([Input((4,)), layer, layers.Dense(2, name="d")])
        return fit(transform(net, kernels(Prune(0.5), named(where)), copy=False))

    for option in ("recompute", "write"):
        with told():
            trained(**{option: True})
    trained()
    for option in ("recompute", "write"):
        trained("bias", **{option: True})
