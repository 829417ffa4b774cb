"""DP-SGD in `fit`, held against gradients of single examples in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt import privacy
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.privacy import drawing
from keras_dlopt.privacy.drawing import Draw, Secret

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RATE, CLIP, BATCH = 0.5, 0.3, 8


def data(count=32, shape=(6,), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, *shape)).astype("float32")
    return x, rng.integers(0, 3, count)


def net():
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(5, activation="tanh"), L.Dense(3)]
    )


def images():
    return keras.Sequential(
        [
            keras.Input((7, 6, 2)),
            L.Conv2D(3, 4, strides=2, padding="same", activation="tanh"),
            L.Conv2D(4, 2, strides=2, use_bias=False, padding="valid"),
            L.Flatten(),
            L.Dense(3),
        ]
    )


def words():
    inputs = keras.Input((5,), dtype="int32")
    y = L.Embedding(4, 6)(inputs)
    y = L.Conv1D(3, 2, activation="relu", dilation_rate=2)(y)
    y = L.Dense(4, activation="tanh")(y)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(y)))


def made(model, *, optimizer=None, compiled=None, **given):
    given = {"noise_multiplier": 0.0, "clip": CLIP, "seed": 1} | given
    private = privacy.private(model, **given)
    optimizer = optimizer or keras.optimizers.SGD(RATE)
    private.compile(optimizer, LOSS, **(compiled or {}))
    return private


def weights(model):
    return [w.copy() for w in dlopt.finalize(model).get_weights()]


def close(a, b, tolerance=1e-6):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)


def by_hand(model, x, y, draw, steps, seed=1):
    """Steps of clipped gradients in float64, example by example."""
    w1, b1, w2, b2 = (w.astype("float64") for w in model.get_weights())
    for step in range(steps):
        rows, mask = draw.at(Secret.of(seed), step)
        sums = [np.zeros_like(w) for w in (w1, b1, w2, b2)]
        for i in rows[mask > 0]:
            hidden = np.tanh(x[i] @ w1 + b1)
            z = hidden @ w2 + b2
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            p[y[i]] -= 1
            back = (w2 @ p) * (1 - hidden**2)
            found = [np.outer(x[i], back), back, np.outer(hidden, p), p]
            norm = np.sqrt(sum((g**2).sum() for g in found))
            for total, g in zip(sums, found, strict=True):
                total += g * min(1.0, CLIP / norm)
        w1, b1, w2, b2 = (
            w - RATE * g / draw.batch_size
            for w, g in zip((w1, b1, w2, b2), sums, strict=True)
        )
    return [w1, b1, w2, b2]


@pytest.mark.parametrize(
    ("method", "sampling"),
    [
        ("ghost", "poisson"),
        ("vectorized", "shuffled"),
        pytest.param("ghost", "shuffled", marks=pytest.mark.slow),
        pytest.param("vectorized", "poisson", marks=pytest.mark.slow),
    ],
)
def test_clipped_gradients_are_those_of_numpy(method, sampling):
    model, (x, y) = net(), data(30)
    draw = Draw(examples=30, batch_size=BATCH, sampling=sampling)
    private = made(model, method=method, sampling=sampling)
    private.fit(x, y, BATCH, epochs=2, verbose=0)
    close(weights(private), by_hand(model, x, y, draw, 8))
    assert not np.allclose(weights(private)[0], model.get_weights()[0], atol=1e-3)


@pytest.mark.parametrize("build", [images, pytest.param(words, marks=pytest.mark.slow)])
def test_ghosts_are_the_gradients_of_single_examples(build):
    model = build()
    if build is images:
        x, y = data(24, (7, 6, 2))
    else:
        y = data(24)[1]
        x = np.random.default_rng(0).integers(0, 4, (24, 5))  # rows met twice
    found = []
    for given in (
        {"method": "ghost"},
        {"method": "vectorized"},
        {"method": "ghost", "microbatch": 4},
    ):
        private = made(model, **given)
        private.fit(x, y, BATCH, epochs=1, verbose=0)
        found.append(weights(private))
        assert private.method == given["method"]
    assert made(model).method == "ghost"
    close(found[0], found[1])
    close(found[0], found[2])


class Reads(keras.Model):
    """Words to the next word; `kind` says what is read past the calls of a layer."""

    def __init__(self, kind):
        super().__init__(name="reads")
        self.kind = kind
        self.words, self.hidden = L.Embedding(7, 6), L.Dense(6, activation="tanh")
        self.out = L.Dense(3)

    def build(self, input_shape=None):
        self.words.build((None, 5))
        self.hidden.build((None, 5, 6))
        self.out.build((None, 6))

    def call(self, x):
        y, ops = self.words(x), keras.ops
        if self.kind == "flipped":
            y = ops.flip(self.hidden(ops.flip(y, 0)), 0)
        elif self.kind == "folded":
            y = ops.reshape(self.hidden(ops.reshape(y, (-1, 6))), (-1, 5, 6))
        else:
            y = self.hidden(y)
        y = ops.mean(y, axis=1)
        if self.kind == "bias":
            y = y + self.hidden.bias
        if self.kind == "tied":
            return ops.matmul(y, ops.transpose(self.words.embeddings))[:, :3]
        return self.out(y)


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("tied", "reads/embedding.*/embeddings"),
        ("bias", "reads/dense.*/bias"),
        # Kernel and bias are wrong alike, and the weights' draw says which is further.
        ("flipped", "reads/dense.*/(kernel|bias)"),  # gradients of other examples
        ("folded", "reads/dense.*/(kernel|bias)"),  # places are no examples
        ("right", None),
    ],
)
def test_ghosts_are_refused_where_they_miss_a_part(kind, weight):
    model = Reads(kind)
    model.build()
    if kind == "tied":
        model.out.trainable = False
    x, y = np.random.default_rng(0).integers(0, 7, (8, 5)), np.arange(8) % 3
    private = made(model, copy=False)
    assert private.method == "ghost"
    before = model.get_weights()
    if weight is None:
        private.fit(x, y, BATCH, verbose=0)
        assert not np.array_equal(model.get_weights()[1], before[1])
        return
    with pytest.raises(ModelError, match=f"The gradient of '{weight}' does not follow"):
        private.fit(x, y, BATCH, verbose=0)
    close(model.get_weights(), before, 0)  # before the first step
    assert private.ledger == ()


def test_zeros_hide_no_gradient_from_the_look():
    model = Reads("bias")
    model.build()
    model.out.kernel.assign(np.zeros((6, 3)))
    x, y = np.zeros((8, 5), "int32"), np.zeros(8, "int32")
    with pytest.raises(ModelError, match="does not follow from what its layer takes"):
        made(model, copy=False).fit(x, y, BATCH, verbose=0)


@pytest.mark.slow
def test_a_long_sequence_takes_the_other_product():
    """Few places: pairs of places; many: the product itself. Both are the norm."""
    inputs = keras.Input((9, 2))
    y = L.Dense(3, activation="relu")(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(y)))
    x, y = data(16, (9, 2))
    ghost, each = made(model, method="ghost"), made(model, method="vectorized")
    for one in (ghost, each):
        one.fit(x, y, BATCH, verbose=0)
    close(weights(ghost), weights(each))


def test_one_example_moves_the_sum_by_no_more_than_the_clip():
    model, (x, y) = net(), data()
    x[3] *= 1e4
    other = x.copy()
    other[3] = np.nan  # counts as nothing
    moved = []
    for given in (x, other):
        private = made(model, sampling="shuffled")
        private.fit(given, y, 32, verbose=0)
        moved.append(weights(private))
    apart = sum(((a - b) ** 2).sum() for a, b in zip(*moved, strict=True))
    assert np.isfinite(apart)
    assert np.sqrt(apart) == pytest.approx(RATE * CLIP / 32, rel=1e-4)


def test_the_noise_has_the_deviation_that_is_counted():
    inputs = keras.Input((100,))
    model = keras.Model(inputs, L.Dense(60, use_bias=False)(inputs))
    x, y = np.zeros((16, 100), "float32"), np.zeros(16, "int32")  # no gradient
    private = made(model, noise_multiplier=3.0, clip=0.7)
    private.fit(x, y, 4, steps_per_epoch=1, verbose=0)
    noise = (weights(private)[0] - model.get_weights()[0]) / RATE * 4
    assert noise.std() == pytest.approx(3.0 * 0.7, rel=0.03)
    assert abs(noise.mean()) < 0.1
    before = weights(private)[0]
    private.fit(x, y, 4, steps_per_epoch=1, verbose=0)
    again = (weights(private)[0] - before) / RATE * 4
    assert abs(np.corrcoef(noise.ravel(), again.ravel())[0, 1]) < 0.05


@pytest.mark.slow
def test_what_differs_and_what_repeats():
    model, (x, y) = net(), data()
    found = []
    for seed in (1, 1, 2, None, None):
        private = made(model, noise_multiplier=1.0, seed=seed)
        private.fit(x, y, BATCH, verbose=0)
        found.append(weights(private)[0])
    np.testing.assert_array_equal(found[0], found[1])
    for i, j in ((0, 2), (0, 3), (3, 4)):
        assert abs(found[i] - found[j]).max() > 0.01


def test_training_stops_when_the_budget_is_spent():
    model, (x, y) = net(), data()
    private = made(model, epsilon=4.0, noise_multiplier=1.0, delta=1e-3)
    allowed = privacy.steps_within(4.0, noise_multiplier=1.0, rate=0.25, delta=1e-3)
    assert 4 < allowed < 40
    with pytest.warns(UserWarning, match=f"is spent: .* after {allowed} steps"):
        history = private.fit(x, y, BATCH, epochs=20, verbose=0).history
    assert len(history["epsilon"]) == -(-allowed // 4)
    assert history["epsilon"][0] < history["epsilon"][-1] <= 4.0
    (spent,) = private.ledger
    assert spent == privacy.Spent(noise_multiplier=1.0, rate=0.25, steps=allowed)
    assert private.epsilon() == privacy.epsilon(spent, delta=1e-3)
    held = weights(private)
    with pytest.raises(ConfigError, match="The privacy budget is spent"):
        private.fit(x, y, BATCH, verbose=0)
    close(weights(private), held, 0)


@pytest.mark.slow
def test_several_steps_an_execution_leave_out_the_data_past_the_budget():
    model, (x, y) = net(), data()
    given = {"epsilon": 4.0, "noise_multiplier": 1.0, "delta": 1e-3}
    alone = made(model, **given)
    several = made(model, compiled={"steps_per_execution": 3}, **given)
    for one in (alone, several):
        with pytest.warns(UserWarning, match="is spent"):
            one.fit(x, y, BATCH, epochs=9, verbose=0)
    assert alone.ledger == several.ledger
    close(weights(alone), weights(several))


def test_the_noise_follows_from_the_budget_and_files_keep_what_is_spent(tmp_path):
    x, y = data()
    private = made(
        net(), epsilon=4.0, noise_multiplier=None, delta=1e-3,
        optimizer=dlopt.optimizers.Adam(1e-2), compiled={"metrics": ["accuracy"]},
    )  # fmt: skip
    history = private.fit(x, y, BATCH, epochs=2, verbose=0, validation_data=(x, y))
    assert 3.9 < history.history["epsilon"][-1] <= 4.0
    assert set(history.history) == {
        "loss", "accuracy", "val_loss", "val_accuracy", "epsilon",
    }  # fmt: skip
    private.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.ledger == private.ledger
    assert again.epsilon() == private.epsilon()
    close(again.get_weights(), private.get_weights(), 0)
    assert again.secret != private.secret
    words = [str(word) for word in private.secret.words]
    assert not any(word in str(again.get_config()) for word in words)
    assert type(dlopt.finalize(again)) is keras.Sequential
    close([again.predict(x, verbose=0)], [dlopt.finalize(private)(x)])


def test_pruning_and_quantization_train_privately():
    recipe = dlopt.Recipe(
        [(dlopt.named("kernel"), dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=8))]
    )
    x, y = data()
    private = made(dlopt.transform(net(), recipe), noise_multiplier=1.0)
    private.fit(x, y, BATCH, epochs=2, verbose=0)
    assert private.method == "vectorized"
    plain = dlopt.finalize(private)
    assert (plain.layers[0].kernel.numpy() == 0).mean() >= 0.5
    assert private.ledger[0].steps == 8


def test_regularizers_are_added_past_the_clipping():
    model = keras.Sequential(
        [keras.Input((6,)), L.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))]
    )
    x, y = data()
    kernel = model.layers[0].kernel.numpy()
    private = made(model, clip=1e-12)  # nothing of the loss is left
    history = private.fit(x, y, 32, verbose=0).history
    np.testing.assert_allclose(
        weights(private)[0], kernel * (1 - RATE * 2 * 0.1), rtol=1e-5
    )
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    plain.compile(loss=LOSS)
    assert history["loss"][0] == pytest.approx(plain.evaluate(x, y, verbose=0))


@pytest.mark.slow
def test_a_step_under_xla_in_bfloat16_and_padded():
    model, (x, y) = net(), data()
    plain = made(model)
    compiled = made(model, compiled={"jit_compile": True})
    for one in (plain, compiled):
        one.fit(x, y, BATCH, epochs=2, verbose=0)
    close(weights(plain), weights(compiled))
    with_half = keras.Sequential(
        [keras.Input((6,)), L.Dense(3, dtype="mixed_bfloat16")]
    )
    half = made(with_half, noise_multiplier=1.0)
    half.fit(x, y, BATCH, verbose=0)
    assert np.isfinite(weights(half)[0]).all()


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.norm = L.Dense(4), L.LayerNormalization()
        self.drop, self.out = L.Dropout(0.5, seed=3), L.Dense(3)

    def call(self, x, training=None):
        y = self.norm(self.hidden(x))
        return self.out(self.drop(y, training=training))

    def get_config(self):
        return {"name": self.name}


@pytest.mark.slow
def test_a_subclassed_model_with_other_layers():
    model = Subclassed()
    x, y = data()
    model(x[:1])
    private = made(model, noise_multiplier=0.5)
    assert private.method == "vectorized"
    state = [np.array(v) for v in private.non_trainable_variables if "seed" in v.path]
    private.fit(x, y, BATCH, verbose=0)
    after = [np.array(v) for v in private.non_trainable_variables if "seed" in v.path]
    assert len(state) == 1
    assert not np.array_equal(state[0], after[0])
    assert np.isfinite(private.evaluate(x, y, verbose=0))


@pytest.mark.slow
def test_several_outputs():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, {"a": L.Dense(3)(inputs), "b": L.Dense(1)(inputs)})
    x, y = data()
    private = privacy.private(model, noise_multiplier=0.0, clip=1e6, seed=1)
    private.compile(keras.optimizers.SGD(RATE), {"a": LOSS, "b": "mse"})
    targets = {"a": y, "b": x[:, :1]}
    history = private.fit(x, targets, 32, verbose=0).history  # all, without a clip
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    plain.compile(keras.optimizers.SGD(RATE), {"a": LOSS, "b": "mse"})
    expected = plain.fit(x, targets, batch_size=32, verbose=0).history
    close(weights(private), plain.get_weights())
    for name, value in expected.items():
        assert history[name] == pytest.approx(value, rel=1e-5)


def test_poisson_batches_are_drawn_as_they_are_counted():
    draw = Draw(examples=2_000, batch_size=200, padded=True, multiple=16)
    batches = [draw.at(Secret.of(0), step) for step in range(300)]
    sizes = np.array([mask.sum() for _, mask in batches])
    assert {len(rows) for rows, _ in batches} == {draw.capacity}
    assert draw.capacity % 16 == 0
    assert sizes.mean() == pytest.approx(200, abs=4)
    assert sizes.var() == pytest.approx(2_000 * 0.1 * 0.9, rel=0.3)
    drawn = np.zeros(2_000)
    for rows, mask in batches:
        chosen = rows[mask > 0]
        assert len(set(chosen)) == len(chosen)
        assert set(rows) == set(chosen)  # what fills up repeats what was drawn
        drawn[chosen] += 1
    assert drawn.var() == pytest.approx(300 * 0.1 * 0.9, rel=0.2)


def test_an_empty_batch_and_a_pass():
    draw = Draw(examples=50, batch_size=1)
    masks = [draw.at(Secret.of(0), step)[1] for step in range(20)]
    assert any(len(mask) == 1 and mask[0] == 0 for mask in masks)
    draw = Draw(examples=10, batch_size=4, sampling="shuffled")
    for origin in (0, 7):
        found = [draw.at(Secret.of(0), origin + i, origin=origin) for i in range(3)]
        rows = np.concatenate([rows[mask > 0] for rows, mask in found])
        assert sorted(rows) == list(range(10))


def test_secrets_are_fresh_and_not_shown():
    assert Secret.of(None) != Secret.of(None)
    assert Secret.of(3) == Secret.of(3)
    assert repr(Secret.of(3)) == "Secret()"
    assert max(Secret.of(None).words) < 2**32


def test_data_sets_of_arrays_in_structures():
    x, y, count = drawing.arrays({"a": np.ones((2, 1))}, tf.constant([0, 1]))
    assert count == 2
    assert x["a"].shape == (2, 1)
    assert isinstance(y, np.ndarray)


@pytest.mark.slow
def test_a_head_on_a_frozen_network_of_keras_applications():
    base = keras.applications.MobileNetV2((32, 32, 3), 0.35, False, None, pooling="avg")
    model = keras.Sequential([base, L.Dense(3)])
    model.build((None, 32, 32, 3))
    with pytest.raises(ModelError, match="a BatchNormalization, makes one example's"):
        privacy.private(model, noise_multiplier=1.0)
    base.trainable = False
    x, y = data(16, (32, 32, 3))
    private = made(model)
    private.fit(x, y, BATCH, steps_per_epoch=1, verbose=0)
    assert private.method == "ghost"
    inner, head = dlopt.finalize(private).layers
    close(inner.get_weights(), base.get_weights(), 0)
    assert abs(head.bias.numpy()).max() > 1e-3
