"""A compressed model learns on, and stays what it is: by numbers."""

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt import online
from keras_dlopt.transforms.prune import Taylor

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 6)).astype("float32")
Y = X[:, :3].argmax(1)


def net():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(16, activation="relu"), L.Dense(3)]
    )


def learned(model, samples=400, **options):
    """Errors of a model that learns the stream; compiled here."""
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    given = {"batch_size": 20, "replay": online.Replay(12), **options}
    made = online.OnlineLearner(model, **given)
    return made.learn(X[:samples], Y[:samples]).errors


def kernels(model):
    return [v.numpy() for v in model.trainable_variables if len(v.shape) == 2]


def test_transforms_hold_while_the_model_learns():
    model = net()
    first = dlopt.at(f"{model.layers[0].name}/kernel")
    recipe = dlopt.Recipe(
        [
            (first, dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=4)),
            (dlopt.named("kernel"), dlopt.Cluster(5)),
        ]
    )
    small = dlopt.transform(model, recipe)
    before = [k.copy() for k in kernels(dlopt.finalize(small))]
    errors = learned(small, terms=[online.DarkExperience(0.1), online.EWC(1.0)])
    assert errors[-100:].mean() < 0.6 * errors[:60].mean()
    first, second = kernels(dlopt.finalize(small))
    assert (first == 0).mean() >= 0.5
    assert len(np.unique(second)) <= 5
    for column in first.T:  # a scale a channel, 15 codes
        assert len(np.unique(column)) <= 15
    assert np.abs(first - before[0]).max() > 0
    assert np.abs(second - before[1]).max() > 0


def test_scheduled_updates_run_when_they_are_due():
    sparsity = dlopt.schedules.PolynomialSparsity(0.75, end=10)
    score = Taylor()
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(sparsity, score=score))])
    small = dlopt.transform(net(), recipe)
    learned(small, samples=240)
    for kernel in kernels(dlopt.finalize(small)):
        assert (kernel == 0).mean() == pytest.approx(0.75, abs=0.02)


def test_zeros_of_a_plain_model_stay():
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.6))])
    plain = dlopt.finalize(dlopt.transform(net(), recipe))
    before = [k.copy() for k in kernels(plain)]
    errors = learned(plain, keep="zeros")
    assert errors[-100:].mean() < errors[:60].mean()
    for old, new in zip(before, kernels(plain), strict=True):
        assert ((new == 0) == (old == 0)).all()
        assert np.abs(new - old).max() > 0


def test_a_shared_value_moves_by_the_mean_of_its_weights():
    recipe = dlopt.Recipe(
        [(dlopt.named("kernel"), dlopt.Prune(0.5) >> dlopt.Cluster(4))]
    )
    plain = dlopt.finalize(dlopt.transform(net(), recipe))
    twin = keras.models.clone_model(plain)
    twin.set_weights(plain.get_weights())
    before = [k.copy() for k in kernels(plain)]
    # One step without replay, with and without what keeps the values.
    learned(plain, samples=20, keep="codes", memory=None)
    learned(twin, samples=20, memory=None)
    for old, free, new in zip(before, kernels(twin), kernels(plain), strict=True):
        moved = free.astype("float64") - old
        for value in np.unique(old):
            wanted = 0.0 if value == 0 else value + moved[old == value].mean()
            assert len(np.unique(new[old == value])) == 1
            assert new[old == value][0] == pytest.approx(wanted, abs=1e-6)


def test_shared_values_stay_shared_over_a_stream_and_a_snapshot(tmp_path):
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Cluster(4))])

    def started():
        plain = dlopt.finalize(dlopt.transform(net(), recipe))
        plain.compile(keras.optimizers.SGD(0.1), LOSS)
        return online.OnlineLearner(plain, batch_size=20, keep="codes")

    one, path = started(), tmp_path / "a.npz"
    places = [np.unique(k, return_inverse=True)[1] for k in kernels(one.model)]
    one.learn(X[:100], Y[:100])
    one.save(path)
    other = started().restore(path)
    for made in (one, other):
        made.learn(X[100:200], Y[100:200])
    for place, a, b in zip(
        places, kernels(one.model), kernels(other.model), strict=True
    ):
        assert (a == b).all()
        for code in range(4):
            assert len(np.unique(a.ravel()[place.ravel() == code])) == 1
