import keras
import numpy as np
import pytest
from keras import ops

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.transforms import Context, SoftWeightSharing
from keras_dlopt.transforms.cluster.mixture import OTHER_PRIOR, ZERO_PRIOR, joined
from reference.cluster import mixture_cost, most_probable


def _state(transform, weights):
    return [
        {k: s.value for k, s in state.items()}
        for state in transform.init_group([None] * len(weights), weights)
    ]


def test_the_cost_is_the_papers_to_float32():
    rng = np.random.default_rng(0)
    weight = rng.normal(scale=0.1, size=(5, 4)).astype("float32")
    transform = SoftWeightSharing(3, zero_share=0.7)
    (state,) = _state(transform, [weight])
    state["logits"] = np.array([0.3, -1.0, 0.5], "float32")
    shares = np.exp(state["logits"].astype("float64"))
    shares = np.concatenate([[0.7], 0.3 * shares / shares.sum()])
    expected = mixture_cost(
        weight,
        [0.0, *state["means"].tolist()],
        np.exp(state["log_deviations"].astype("float64")),
        shares,
        [ZERO_PRIOR] + [OTHER_PRIOR] * 3,
    )
    ours = transform.cost(ops.convert_to_tensor(weight), state)
    assert float(ops.convert_to_numpy(ours)) == pytest.approx(expected, rel=1e-5)


def test_weights_share_one_mixture_whose_prior_counts_once():
    weights = [np.linspace(-1, 1, n).astype("float32") for n in (6, 10)]
    transform = SoftWeightSharing(4)
    states = transform.init_group([None, None], weights)
    assert all(states[0][k] is states[1][k] for k in states[0])
    two = [{k: s.value for k, s in state.items()} for state in states]
    costs = [transform.cost(w, s) for w, s in zip(weights, two, strict=True)]
    (alone,) = _state(transform, [np.concatenate(weights)])
    whole = transform.cost(np.concatenate(weights), alone)
    total = sum(float(ops.convert_to_numpy(c)) for c in costs)
    assert total == pytest.approx(float(ops.convert_to_numpy(whole)), rel=1e-5)


def test_only_training_adds_the_loss_and_the_weight_passes():
    weight = np.ones((2, 3), "float32")
    transform = SoftWeightSharing(2, strength=0.5)
    (state,) = _state(transform, [weight])
    told = []
    context = Context(None, add_loss=told.append)
    assert transform.apply(weight, state, context) is weight
    assert not told
    context = Context(None, training=True, add_loss=told.append)
    assert transform.apply(weight, state, context) is weight
    assert len(told) == 1


def test_finalize_takes_the_most_probable_component():
    weight = np.linspace(-1.5, 1.5, 24).astype("float32").reshape(4, 6)
    transform = SoftWeightSharing(3, zero_share=0.5, join=0.0)
    (state,) = _state(transform, [weight])
    state["means"] = np.array([-1.0, 0.6, 1.2], "float32")
    state["log_deviations"] = np.log(np.array([0.1, 0.2, 0.1, 0.3], "float32"))
    value, hint = transform.finalize(None, weight, state)
    index = most_probable(
        weight,
        [0.0, -1.0, 0.6, 1.2],
        [0.1, 0.2, 0.1, 0.3],
        [0.5, 0.5 / 3, 0.5 / 3, 0.5 / 3],
    )
    np.testing.assert_array_equal(hint.indices, index)
    np.testing.assert_array_equal(value, hint.values[index])
    assert hint.values[0] == 0


def test_joining_keeps_the_moments_of_the_mixture():
    means = np.array([0.0, 2.0, 2.1, 0.05])
    deviations = np.array([0.2, 0.3, 0.1, 0.1])
    shares = np.array([0.4, 0.3, 0.1, 0.2])
    m, d, s = joined(means, deviations, np.log(shares), within=1.0)
    assert m.shape == (2,)
    assert m[0] == 0
    np.testing.assert_allclose(np.exp(s), [0.6, 0.4])
    parts, weights = slice(1, 3), shares[1:3] / 0.4
    mean = weights @ means[parts]
    square = weights @ (deviations[parts] ** 2 + means[parts] ** 2)
    np.testing.assert_allclose([m[1], d[1]], [mean, np.sqrt(square - mean**2)])


def test_training_pulls_the_weights_together():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(32)])
    transform = SoftWeightSharing(4, strength=1e-3, zero_share=0.5)
    small = dlopt.transform(model, dlopt.Recipe([(dlopt.named("kernel"), transform)]))
    small.compile(keras.optimizers.Adam(0.01), "mse")
    x = np.random.default_rng(0).normal(size=(256, 16)).astype("float32")
    y = model.predict(x, verbose=0)

    def moved():
        kernel = small.model.layers[0].kernel.numpy()
        final = dlopt.finalize(small).layers[0].kernel.numpy()
        return np.abs(kernel - final).mean(), final

    before, _ = moved()
    small.fit(x, y, batch_size=32, epochs=12, verbose=0)
    after, final = moved()
    # Twelve epochs are enough for the distance to the shared values to halve.
    assert after < before / 2
    assert len(np.unique(final)) <= 5


def test_bad_arguments():
    with pytest.raises(ConfigError, match="a whole number, 2 or greater. Received: 1"):
        SoftWeightSharing(1)
    with pytest.raises(ConfigError, match="strength must be a positive number"):
        SoftWeightSharing(strength=0)
    with pytest.raises(
        ConfigError, match="zero_share must be a number in .0, 1.. Received"
    ):
        SoftWeightSharing(zero_share=1.0)
    with pytest.raises(ConfigError, match="join must be a number, 0 or greater"):
        SoftWeightSharing(join=-1)
