import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError
from keras_dlopt.schedules import ConstantSparsity, PolynomialSparsity
from keras_dlopt.transforms.prune.masks import keep_mask
from reference.transforms import polynomial, prune_mask


@given(
    hnp.arrays("float32", hnp.array_shapes(max_dims=3), elements=st.integers(-3, 3)),
    st.floats(0, 1, exclude_max=True),
)
def test_mask_is_exact_and_ties_go_by_index(weight, sparsity):
    mask = keep_mask(np.abs(weight), sparsity)
    assert (mask == 0).sum() == round(sparsity * weight.size)
    np.testing.assert_array_equal(mask, prune_mask(weight, sparsity))


@settings(max_examples=30)
@given(st.integers(0, 400))
def test_polynomial_schedule_equals_its_formula(step):
    schedule = PolynomialSparsity(0.9, begin=50, end=300, initial=0.2, power=3)
    expected = polynomial(step, initial=0.2, final=0.9, begin=50, end=300, power=3)
    assert schedule.value(step) == pytest.approx(expected, abs=1e-12)
    # The traced form computes in float32.
    assert float(schedule(step)) == pytest.approx(expected, abs=1e-6)


def test_due_steps():
    schedule = PolynomialSparsity(0.9, begin=10, end=35, frequency=10)
    due, step = [], -1
    while (step := schedule.next_due(step)) is not None:
        due.append(step)
    assert due == [10, 20, 30, 35]
    assert ConstantSparsity(0.5, begin=3, frequency=5).next_due(3) == 8
    assert ConstantSparsity(0.5, begin=3, end=4, frequency=5).next_due(3) is None


def _small(transform, units=16):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(units, name="d")])
    return dlopt.transform(model, dlopt.Recipe([(dlopt.named("kernel"), transform)]))


def _fit(small, *, steps, epochs=1, spe=1, callbacks=None, optimizer=None):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4 * steps, 8)).astype("float32")
    y = rng.normal(size=(4 * steps, 16)).astype("float32")
    small.compile(
        optimizer or keras.optimizers.SGD(0.1), "mse", steps_per_execution=spe
    )
    small.fit(
        x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks
    )


class _Watch(keras.callbacks.Callback):
    """Records the mask's zeros, as seen by the step that follows."""

    def __init__(self, small):
        super().__init__()
        self.small, self.zeros = small, []

    def on_train_batch_begin(self, batch, logs=None):
        self.zeros.append(_zeros(self.small))


def _zeros(small):
    return int((small.groups[0].slots[0].state["mask"].numpy() == 0).sum())


def test_schedule_is_followed_inside_fit():
    schedule = PolynomialSparsity(0.75, begin=2, end=10, frequency=4)
    small = _small(dlopt.Prune(schedule))
    watch = _Watch(small)
    _fit(small, steps=6, epochs=2, callbacks=[watch])
    at = {s: round(schedule.value(s) * 128) for s in (2, 6, 10)}
    assert watch.zeros == [0, 0] + [at[2]] * 4 + [at[6]] * 4 + [at[10]] * 2
    assert at[10] == 96


def test_steps_are_batches_under_gradient_accumulation():
    schedule = PolynomialSparsity(0.75, begin=2, end=10, frequency=4)
    small = _small(dlopt.Prune(schedule))
    watch = _Watch(small)
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    _fit(small, steps=6, epochs=2, callbacks=[watch], optimizer=optimizer)
    assert watch.zeros[-2:] == [96, 96]
    assert watch.zeros[:3] == [0, 0, round(schedule.value(2) * 128)]


def test_pruned_weights_stay_zero_and_get_no_gradient():
    small = _small(dlopt.Prune(0.5))
    before = small.model.layers[0].kernel.numpy()
    mask = small.groups[0].slots[0].state["mask"].numpy()
    _fit(small, steps=3)
    after = small.model.layers[0].kernel.numpy()
    np.testing.assert_array_equal(after[mask == 0], before[mask == 0])
    assert np.all(after[mask == 1] != before[mask == 1])
    final = dlopt.finalize(small).layers[0].kernel.numpy()
    np.testing.assert_array_equal(final, np.where(mask == 1, after, 0))
    assert not np.any(np.signbit(final) & (final == 0)), "a second kind of zero"


def test_training_equals_masked_gradient_descent():
    small = _small(dlopt.Prune(0.5))
    layer = small.model.layers[0]
    w, b = (v.numpy().astype("float64") for v in (layer.kernel, layer.bias))
    mask = prune_mask(w, 0.5)
    _fit(small, steps=5)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 8)), rng.normal(size=(20, 16))
    for i in range(0, 20, 4):
        xs = x[i : i + 4].astype("float32").astype("float64")
        ys = y[i : i + 4].astype("float32").astype("float64")
        slope = 2 * (xs @ (w * mask) + b - ys) / ys.size
        w, b = w - 0.1 * mask * (xs.T @ slope), b - 0.1 * slope.sum(0)
    # float32 against float64 over five steps
    np.testing.assert_allclose(layer.kernel.numpy(), w, atol=1e-6)
    np.testing.assert_allclose(layer.bias.numpy(), b, atol=1e-6)


def test_killed_and_resumed_run_equals_the_unbroken_one(tmp_path):
    schedule = PolynomialSparsity(0.75, end=10, frequency=3)

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    whole, broken = _small(dlopt.Prune(schedule)), _small(dlopt.Prune(schedule))
    _fit(whole, steps=6, epochs=3, optimizer=keras.optimizers.Adam())
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    with pytest.raises(KeyboardInterrupt):
        _fit(
            broken,
            steps=6,
            epochs=3,
            callbacks=[backup, Kill()],
            optimizer=keras.optimizers.Adam(),
        )
    resumed = _small(dlopt.Prune(schedule))
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    _fit(
        resumed,
        steps=6,
        epochs=3,
        callbacks=[backup],
        optimizer=keras.optimizers.Adam(),
    )
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_outside_its_range(sparsity):
    with pytest.raises(ConfigError, match=r"in \[0, 1\)\. Received: .*remove it"):
        dlopt.Prune(sparsity)


def test_sparsity_of_another_type():
    with pytest.raises(ConfigError, match="or a schedule such as PolynomialSparsity"):
        dlopt.Prune("much")


def test_steps_out_of_order():
    with pytest.raises(ConfigError, match="begin <= end must hold.*begin=5, end=3"):
        PolynomialSparsity(0.5, begin=5, end=3)
    with pytest.raises(
        ConfigError, match="frequency must be a whole number, 1 or greater"
    ):
        PolynomialSparsity(0.5, end=3, frequency=0)
    with pytest.raises(ConfigError, match="power must be a positive number"):
        PolynomialSparsity(0.5, end=3, power=0)
