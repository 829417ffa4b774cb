"""Optimizers, selectors, layers and reference networks: advice that is followed."""

import keras
import numpy as np
import pytest
from keras import Input, layers

import keras_dlopt as dlopt
from keras_dlopt import models, optimizers, runtime
from keras_dlopt.graph.targets import Target
from keras_dlopt.models import _build
from keras_dlopt.select import inside, matching, named, rank

advice = pytest.mark.advice


def one_weight(**options):
    return keras.Variable([1.0, 2.0], name="kernel", **options)


def step(optimizer, *, weight=None):
    """The weight after one step with a gradient of ones."""
    weight = one_weight() if weight is None else weight
    optimizer.apply([keras.ops.ones_like(weight)], [weight])
    return weight.numpy()


@advice("optimizers/_options.py", "Write for example keras_dlopt.named('kernel').")
@advice("optimizers/_options.py", "Write for example [(named('bias'), 2.0)].")
def test_what_is_no_selector(told):
    with told():
        optimizers.SGD(0.1, decay_on="kernel")
    decayed = step(optimizers.SGD(0.1, decay_on=named("kernel"), weight_decay=0.5))
    np.testing.assert_allclose(decayed, [0.85, 1.8])
    with told():
        optimizers.SGD(0.1, multipliers=[2.0])
    doubled = step(optimizers.SGD(0.1, multipliers=[(named("kernel"), 2.0)]))
    np.testing.assert_allclose(doubled, [0.8, 1.8])


@advice("optimizers/_engine.py", "Pass decay_on=... instead.")
@advice("optimizers/_engine.py", "Call `optimizer.build(trainable_variables)` first.")
def test_optimizers_before_and_after_they_are_built(told):
    sgd, weight = optimizers.SGD(0.1, weight_decay=0.5), one_weight()
    with told():
        sgd.apply([keras.ops.ones((2,))])
    sgd.build([weight])
    sgd.apply([keras.ops.ones((2,))])
    np.testing.assert_allclose(weight.numpy(), [0.85, 1.8])
    with told():
        sgd.exclude_from_weight_decay(var_names=["kernel"])
    sgd, kept = (
        optimizers.SGD(0.1, weight_decay=0.5, decay_on=named("bias")),
        one_weight(),
    )
    bias = keras.Variable([1.0], name="bias")
    sgd.apply([keras.ops.ones((2,)), keras.ops.ones((1,))], [kept, bias])
    np.testing.assert_allclose(kept.numpy(), [0.9, 1.9])
    np.testing.assert_allclose(bias.numpy(), [0.85])


@advice("optimizers/gradient_descent.py", "Leave it out.")
def test_gradient_descent_that_accumulates_twice(told):
    with told():
        optimizers.GradientDescent(0.5, batches=2, gradient_accumulation_steps=3)
    descent, weight = optimizers.GradientDescent(0.5, batches=2), one_weight()
    for _ in range(2):
        step(descent, weight=weight)
    np.testing.assert_allclose(weight.numpy(), [0.5, 1.5])


@advice("optimizers/lbfgs.py", "Leave them out.")
@advice("optimizers/lbfgs.py", "Use SOAP or Adam.")
@advice("optimizers/lbfgs.py", "Freeze the others before compiling.")
def test_lbfgs(told, monkeypatch):
    with told():
        optimizers.LBFGS(cautious=True)
    assert step(optimizers.LBFGS()).tolist() == [0.5, 1.5]
    monkeypatch.setattr("keras_dlopt.optimizers.lbfgs.MAX_PARAMETERS", 1)
    with told():
        step(optimizers.LBFGS())
    for other in (optimizers.SOAP(0.1), optimizers.Adam(0.1)):
        assert (step(other) < [1, 2]).all()
    monkeypatch.undo()
    a, b = one_weight(), one_weight()
    lbfgs = optimizers.LBFGS()
    lbfgs.build([a, b])
    with told():
        lbfgs.apply([keras.ops.ones((2,))], [a])
    lbfgs = optimizers.LBFGS()
    lbfgs.build([a])
    assert step(lbfgs, weight=a).tolist() == [0.5, 1.5]


@advice(
    "optimizers/lookahead.py", "Write for example Lookahead(keras_dlopt.optimizers."
)
def test_lookahead_of_no_optimizer(told):
    with told():
        optimizers.Lookahead(0.1)
    assert (step(optimizers.Lookahead(dlopt.optimizers.Adam())) < [1, 2]).all()


def sam(*, freeze=False):
    keras.utils.set_random_seed(0)
    inputs = Input((2,))
    model = keras.Model(inputs, layers.Dense(1)(inputs))
    model.unused = layers.Dense(1, name="unused")
    model.unused.build((None, 2))
    model.unused.trainable = not freeze
    wrapped = optimizers.SAM(model)
    wrapped.compile("sgd", "mse", run_eagerly=True)
    return wrapped


DATA = np.ones((4, 2)), np.zeros((4, 1))


@advice("optimizers/sam.py", "Freeze them with trainable = False before compiling.")
def test_sam_and_weights_that_nothing_uses(told):
    with told():
        sam().fit(*DATA, verbose=0)
    model = sam(freeze=True)
    before = model.get_weights()
    model.fit(*DATA, verbose=0)
    assert not np.array_equal(model.get_weights()[0], before[0])


@advice("optimizers/sam.py", "Set KERAS_BACKEND=tensorflow.")
@advice("optimizers/sam.py", "Build and fit it outside of the strategy.")
def test_sam_elsewhere(told, monkeypatch):
    for name, answer in (("on_tensorflow", False), ("replica_count", 2)):
        with monkeypatch.context() as patched, told():
            patched.setattr(runtime, name, lambda answer=answer: answer)
            sam(freeze=True).fit(*DATA, verbose=0)
    assert np.isfinite(sam(freeze=True).fit(*DATA, verbose=0).history["loss"]).all()


@advice("select.py", "Write for example named('kernel') & rank(4).")
@advice("select.py", "Select by path instead, with named() or matching().")
def test_selectors(told):
    with told():
        named("kernel") & 4
    target = Target(
        "block1/conv/kernel", variable=keras.Variable(np.zeros((3, 3, 1, 2)))
    )
    assert (named("kernel") & rank(4))(target)
    with told():
        inside(layers.Conv2D)(target)
    assert named("kernel")(target)
    assert matching("block./conv/kernel")(target)


def residual(*body, **options):
    return dlopt.layers.Residual(list(body), **options)(
        np.ones((1, 4, 4, 6), "float32")
    )


@advice("layers/residual.py", "Make the body keep its input's shape, divide the pos")
@advice("layers/residual.py", "Use shortcut='projection'.")
@advice("layers/residual.py", "Wrap a function in keras.layers.Lambda or write it as a")
def test_bodies_of_residuals(told):
    with told():
        residual(layers.Conv2D(3, 3, padding="same"), shortcut="identity")
    assert (
        residual(layers.Conv2D(6, 3, padding="same"), shortcut="identity").shape[-1]
        == 6
    )
    for shortcut in ("auto", "projection"):
        for strides in (1, 2):
            body = layers.Conv2D(3, 3, strides=strides, padding="same")
            assert residual(body, shortcut=shortcut).shape[-1] == 3
    with told():
        residual(layers.Conv2D(3, 3, padding="same"), shortcut="pad")
    with told():
        residual(lambda x: 2 * x)
    doubled = residual(layers.Lambda(lambda x: 2 * x))
    assert np.unique(np.asarray(doubled)).tolist() == [3]


@advice("models/_build.py", "Use shortcut='projection'.")
def test_networks_that_lose_channels(told):
    x = Input((4, 4, 6))
    with told():
        _build.pad_shortcut(x, 3, strides=1, name="s")
    sizes = {"input_shape": (8, 8, 3), "classes": 2}
    made = models.resnet(depth=8, shortcut="projection", **sizes)
    assert made.output_shape == (None, 2)
