"""TransformedModel: losses, exactness, every kind of model, saving, finalizing."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.schedules import PolynomialSparsity
from keras_dlopt.transforms import Context, LSQActivation, State, coding_hints

KERNELS = dlopt.named("kernel")


@keras.saving.register_keras_serializable("tests")
class Noisy(layers.Layer):
    """A layer with a loss of its own and a regularized kernel."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(
            2, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L2(3.0)
        )

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        self.add_loss(keras.ops.convert_to_tensor(7.0))
        return self.dense(x)


@keras.saving.register_keras_serializable("tests")
class Nested(keras.Model):
    """A subclassed model that holds a Sequential, BatchNorm and dropout."""

    def __init__(self, units=6, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.body = keras.Sequential(
            [
                layers.Dense(units, use_bias=False, name="first"),
                layers.BatchNormalization(name="bn"),
                layers.ReLU(name="relu"),
                layers.Dropout(0.5, seed=3),
            ],
            name="body",
        )
        self.head = layers.Dense(3, name="head")

    def build(self, input_shape):
        self.body.build(input_shape)
        self.head.build((None, self.units))
        self.built = True

    def call(self, x, training=None):
        return self.head(self.body(x, training=training))

    def get_config(self):
        return {"units": self.units, "name": self.name}


def _nested():
    model = Nested()
    model.build((None, 5))
    return model


def _functional():
    inputs = keras.Input((5,))
    x = layers.Dense(6, use_bias=False, name="first")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.5, seed=3)(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def _data(n=24, features=5, outputs=3):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(n, features)).astype("float32"),
        rng.normal(size=(n, outputs)).astype("float32"),
    )


def _train(model, epochs=2, **kwargs):
    x, y = _data()
    model.compile(keras.optimizers.Adam(0.01), "mse", **kwargs)
    history = model.fit(x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0)
    return history.history["loss"]


def _values(model):
    return [v.numpy() for v in model.weights]


@pytest.mark.parametrize("wrap", ["model", "layer"])
def test_added_losses_and_regularizers_count_once(wrap):
    noisy = Noisy()
    recipe = dlopt.Recipe([(KERNELS, dlopt.FakeQuant(bits=8))])
    if wrap == "layer":
        noisy = dlopt.TransformedLayer(noisy, recipe)
    model = keras.Sequential([keras.Input((2,)), noisy])
    if wrap == "model":
        model = dlopt.transform(model, recipe)
    model.compile("sgd", "mse")
    x = np.zeros((4, 2), "float32")
    # 7 from add_loss and 3 * 4 from the regularizer of the ones.
    assert model.evaluate(x, x, verbose=0) == pytest.approx(19.0)
    assert model.fit(x, x, verbose=0).history["loss"] == [pytest.approx(19.0)]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("build", [_functional, _nested])
def test_empty_recipe_trains_bit_for_bit_like_the_plain_model(build, jit):
    keras.utils.set_random_seed(1)
    plain = build()
    wrapped = dlopt.transform(plain, dlopt.Recipe())
    assert _train(plain, jit_compile=jit) == _train(wrapped, jit_compile=jit)
    for a, b in zip(_values(plain), _values(wrapped), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("build", [_functional, _nested])
def test_save_load_continue_and_finalize(build, tmp_path):
    keras.utils.set_random_seed(1)
    model = build()
    chain = dlopt.Prune(PolynomialSparsity(0.6, end=6, frequency=2)) >> dlopt.FakeQuant(
        bits=4
    )
    small = dlopt.transform(model, dlopt.Recipe([(KERNELS, chain)]))
    _train(small)
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    x, y = _data()
    np.testing.assert_array_equal(small(x), again(x))
    assert again.groups[0].last.numpy() == small.groups[0].last.numpy() == 6
    again.fit(x, y, verbose=0)

    plain = dlopt.finalize(small)
    assert type(plain) is type(model)
    assert [v.path for v in plain.weights] == [v.path for v in model.weights]
    # The graph fuses where NumPy rounds twice.
    np.testing.assert_allclose(plain(x), small(x), atol=1e-6)
    for v in plain.weights:
        if v.name == "kernel":
            assert (v.numpy() == 0).mean() >= 0.6 - 1 / v.numpy().size
            assert len(np.unique(v.numpy()[:, 0])) <= 15


def test_transform_leaves_the_given_model_alone():
    keras.utils.set_random_seed(1)
    model = _functional()
    before = _values(model)
    small = dlopt.transform(model, dlopt.Recipe([(KERNELS, dlopt.Prune(0.5))]))
    _train(small)
    for a, b in zip(before, _values(model), strict=True):
        np.testing.assert_array_equal(a, b)
    shared = dlopt.transform(
        model, dlopt.Recipe([(KERNELS, dlopt.Prune(0.5))]), copy=False
    )
    assert shared.model is model


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv1D(3, 2), (6, 2)),
        (layers.Conv3D(2, 2), (3, 3, 3, 1)),
        (layers.SeparableConv2D(3, 2), (5, 5, 2)),
        (layers.Conv2DTranspose(3, 2), (4, 4, 2)),
        (layers.Embedding(7, 3), (4,)),
        (layers.LSTM(3), (4, 2)),
        (layers.Bidirectional(layers.GRU(3)), (4, 2)),
        (layers.EinsumDense("abc,cd->abd", output_shape=(3, 4)), (3, 2)),
        (layers.LayerNormalization(), (4,)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, layers.Layer) else "",
)
def test_weights_of_any_layer_can_be_transformed(layer, shape):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = layers.Flatten()(layer(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    recipe = dlopt.Recipe(
        [(~dlopt.inside(layers.Flatten) & ~dlopt.at("out/kernel"), dlopt.Prune(0.5))]
    )
    small = dlopt.transform(model, recipe)
    data = np.random.default_rng(0).integers(0, 7, (4, *shape)).astype("float32")
    reference = dlopt.finalize(small)
    assert any((v.numpy() == 0).mean() >= 0.5 for v in reference.weights)
    np.testing.assert_allclose(small(data), reference(data), atol=1e-6)
    small.compile("sgd", "mse")
    small.fit(data, np.zeros((4, 2)), verbose=0)


def test_attention_and_several_inputs():
    a, b = keras.Input((4, 6), name="a"), keras.Input((4, 6), name="b")
    x = layers.MultiHeadAttention(2, 3, name="mha")(a, b)
    model = keras.Model({"a": a, "b": b}, {"out": layers.Dense(1, name="out")(x)})
    small = dlopt.transform(
        model,
        dlopt.Recipe(
            [
                (
                    dlopt.inside(layers.MultiHeadAttention) & KERNELS,
                    dlopt.FakeQuant(bits=4),
                )
            ]
        ),
    )
    assert [s.target.path for s in small.groups[0].slots] == [
        f"mha/{part}/kernel" for part in ("query", "key", "value", "attention_output")
    ]
    data = {k: np.ones((2, 4, 6), "float32") for k in "ab"}
    small.compile("sgd", {"out": "mse"})
    small.fit(data, {"out": np.zeros((2, 4, 1))}, verbose=0)


def test_siblings_seeds_losses_and_weights_reach_a_transform():
    @keras.saving.register_keras_serializable("tests")
    class Everything(dlopt.Transform):
        """Uses each door of the contract."""

        random = True

        def __init__(self):
            pass

        def init(self, target, weight):
            return {"calls": State(np.float32(0)), "gain": State(np.float32(2), True)}

        def apply(self, weight, state, context):
            context.write("calls", state["calls"] + 1)
            context.add_loss(keras.ops.sum(context.sibling("bias") * 0) + 5.0)
            noise = keras.random.uniform(weight.shape, seed=context.seed)
            return weight * state["gain"] + (noise if context.training else 0)

        def next_due(self, step):
            return 2 if step < 2 else None

        def update(self, group, step):
            return [{"weight": np.full_like(m.weight, 3.0)} for m in group]

    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="d")])
    small = dlopt.transform(model, dlopt.Recipe([(KERNELS, Everything())]))
    small.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.zeros((8, 2), "float32")
    loss = small.fit(x, x, batch_size=4, verbose=0).history["loss"]
    assert loss == [pytest.approx(5.0)]
    state = small.groups[0].slots[0].state
    assert float(state["calls"].numpy()) == 2
    assert state["gain"] in small.trainable_variables
    np.testing.assert_array_equal(dlopt.finalize(small).get_weights()[0], 6.0)
    context = Context(small.groups[0].slots[0].target)
    with pytest.raises(ConfigError, match="has no variable 'gamma'. It has: "):
        context.sibling("gamma")


def test_layer_by_hand_needs_the_callback_and_is_finalized():
    schedule = PolynomialSparsity(0.5, end=3, frequency=1)
    recipe = dlopt.Recipe([(KERNELS, dlopt.Prune(schedule))])
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            dlopt.TransformedLayer(layers.Dense(4, name="a"), recipe),
            layers.Dense(3),
        ]
    )
    x, y = _data()
    model.compile("sgd", "mse")
    model.fit(x, y, batch_size=4, verbose=0)
    with pytest.raises(ModelError, match="was never updated.*update_transforms"):
        dlopt.finalize(model)
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[dlopt.UpdateTransforms()])
    plain = dlopt.finalize(model)
    assert [type(layer) for layer in plain.layers] == [layers.Dense, layers.Dense]
    assert (plain.layers[0].kernel.numpy() == 0).sum() == 10
    np.testing.assert_array_equal(plain(x), model(x))


def test_functional_models_built_by_hand_are_finalized_too():
    recipe = dlopt.Recipe([(KERNELS, dlopt.FakeQuant(bits=4))])
    inputs = keras.Input((5,))
    a = dlopt.TransformedLayer(layers.Dense(4, name="a"), recipe)(inputs)
    b = dlopt.TransformedLayer(layers.Dense(4, name="b"), recipe)(inputs)
    model = keras.Model(inputs, layers.Add()([a, b]))
    plain = dlopt.finalize(model)
    assert not any(isinstance(v, dlopt.TransformedLayer) for v in plain.layers)
    x, _ = _data()
    np.testing.assert_allclose(plain(x), model(x), atol=1e-6)


def test_losses_can_be_given_by_output_name():
    inputs = keras.Input((5,))
    outputs = [layers.Dense(1, name="p")(inputs), layers.Dense(1, name="q")(inputs)]
    small = dlopt.transform(
        keras.Model(inputs, outputs), dlopt.Recipe([(KERNELS, dlopt.Prune(0.5))])
    )
    small.compile("sgd", {"p": "mse", "q": "mae"})
    x, _ = _data()
    zeros = np.zeros((24, 1))
    small.fit(x, [zeros, zeros], verbose=0)


def test_custom_loop_updates_by_hand():
    schedule = PolynomialSparsity(0.5, end=4, frequency=2)
    small = dlopt.transform(
        _functional(), dlopt.Recipe([(dlopt.at("head/kernel"), dlopt.Prune(schedule))])
    )
    for step in range(5):
        small.update_transforms(step)
    assert (dlopt.finalize(small).get_layer("head").kernel.numpy() == 0).sum() == 9


def test_finalizing_early_says_what_remains():
    schedule = PolynomialSparsity(0.5, end=100)
    small = dlopt.transform(
        _functional(), dlopt.Recipe([(KERNELS, dlopt.Prune(schedule))])
    )
    small.update_transforms(0)
    text = (
        r"before the schedule ended: pruning is at sparsity 0 of 0.5, due at step 100"
    )
    with pytest.warns(UserWarning, match=text):
        dlopt.finalize(small)


def test_finalizing_what_is_not_transformed():
    with pytest.raises(ModelError, match="holds no transforms"):
        dlopt.finalize(_functional())
    recipe = dlopt.Recipe([(KERNELS, dlopt.Prune(0.5))])

    class ByHand(keras.Model):
        def __init__(self):
            super().__init__()
            self.part = dlopt.TransformedLayer(layers.Dense(2), recipe)

        def call(self, x):
            return self.part(x)

    model = ByHand()
    model(np.zeros((1, 3), "float32"))
    with pytest.raises(ModelError, match="ByHand is a subclassed model"):
        dlopt.finalize(model)


def test_unbuilt_models_are_refused():
    unbuilt = keras.Sequential([layers.Dense(2)])
    with pytest.raises(ModelError, match="must be a built keras.Model.*build"):
        dlopt.transform(unbuilt, dlopt.Recipe())
    with pytest.raises(ModelError, match="must be a built keras.Model"):
        dlopt.transform(layers.Dense(2), dlopt.Recipe())


def test_models_that_cannot_be_copied():
    class Opaque(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, x):
            return self.layer(x)

    model = Opaque(layers.Dense(2))
    model(np.zeros((1, 3), "float32"))
    recipe = dlopt.Recipe([(KERNELS, dlopt.Prune(0.5))])
    with pytest.raises(ModelError, match="cannot be copied from its config.*copy=Fal"):
        dlopt.transform(model, recipe)
    small = dlopt.transform(model, recipe, copy=False)
    assert small(np.zeros((1, 3), "float32")).shape == (1, 2)


def test_a_layer_is_transformed_once():
    recipe = dlopt.Recipe([(KERNELS, dlopt.Prune(0.5))])
    layer = dlopt.TransformedLayer(layers.Dense(2), recipe)
    with pytest.raises(ModelError, match="is transformed already. Chain"):
        dlopt.TransformedLayer(layer, recipe)
    net = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ModelError, match="is transformed already. Chain.*finalize"):
        dlopt.transform(dlopt.transform(net, recipe), recipe)


def test_transformed_layers_of_nested_models_are_unwrapped():
    half = dlopt.Recipe([(KERNELS, dlopt.Prune(0.5) >> dlopt.Cluster(2))])
    inner = keras.Sequential(
        [keras.Input((4,)), dlopt.TransformedLayer(layers.Dense(4), half)]
    )
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2)])
    plain = dlopt.finalize(model)
    assert type(plain.layers[0].layers[0]) is layers.Dense
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(plain(x), model(x))
    assert list(coding_hints(plain)) == [0]
    steps = layers.TimeDistributed(dlopt.TransformedLayer(layers.Dense(4), half))
    model = keras.Sequential([keras.Input((3, 4)), steps])
    with pytest.raises(ModelError, match="hold transformed layers that cannot be"):
        dlopt.finalize(model)


def test_finalizing_in_place_serves_models_that_cannot_be_copied():
    class Own(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.dense = layers.Dense(units(3))

        def call(self, x):
            return self.dense(x)

    net = Own(lambda n: n)
    net(np.ones((1, 4)))
    half = dlopt.Recipe([(KERNELS, dlopt.Prune(0.5))])
    small = dlopt.transform(net, half, copy=False)
    with pytest.raises(ModelError, match="copied from its config.*copy=False"):
        dlopt.finalize(small)
    assert dlopt.finalize(small, copy=False) is net
    assert (net.dense.kernel.numpy() == 0).sum() == 6


def test_weights_that_are_not_finite_are_refused():
    net = keras.Sequential([keras.Input((1,)), layers.Dense(2, use_bias=False)])
    recipe = dlopt.Recipe([(KERNELS, dlopt.FakeQuant(bits=4))])
    small = dlopt.transform(net, recipe)
    broken = [np.array([[np.nan, np.inf]])]
    small.model.set_weights(broken)
    with pytest.raises(ModelError, match="holds 2 values that are not finite"):
        dlopt.finalize(small)
    net.set_weights(broken)
    with pytest.raises(ModelError, match="not finite.*lower learning rate"):
        dlopt.transform(net, recipe)


def test_other_things_than_recipes_and_models_are_named():
    net = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    for make in (dlopt.transform, dlopt.TransformedModel):
        with pytest.raises(
            ConfigError, match="The recipe must be a Recipe.*Received: Prune"
        ):
            make(net, dlopt.Prune(0.5))
    with pytest.raises(ConfigError, match="The recipe must be a Recipe, such as"):
        dlopt.TransformedLayer(layers.Dense(2), [(KERNELS, dlopt.Prune(0.5))])
    with pytest.raises(ModelError, match="takes a keras.Model. Received: 'net'"):
        dlopt.finalize("net")


def test_layers_of_one_name_in_a_class_are_all_reached():
    class Twice(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.a = layers.Dense(4, name="d")
            self.b = layers.Dense(4, name="d")

        def call(self, x):
            return self.b(self.a(x))

    net = Twice()
    net(np.ones((1, 4)))
    small = dlopt.transform(net, dlopt.Recipe([(KERNELS, dlopt.Prune(0.5))]))
    paths = [slot.target.path for slot in small.groups[0].slots]
    assert paths == ["d/kernel", "d_1/kernel"]


def test_a_list_of_callbacks_made_beforehand():
    net = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    schedule = PolynomialSparsity(0.5, end=2, frequency=1)
    small = dlopt.transform(net, dlopt.Recipe([(KERNELS, dlopt.Prune(schedule))]))
    small.compile("sgd", "mse")
    given = keras.callbacks.CallbackList([], add_history=True, model=small)
    small.fit(
        np.ones((8, 4)), np.ones((8, 2)), batch_size=2, verbose=0, callbacks=given
    )
    assert (dlopt.finalize(small).layers[0].kernel.numpy() == 0).sum() == 4


def test_a_model_compiled_with_a_loss_of_its_own_is_copied():
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    net.compile("sgd", loss=lambda y, x: keras.ops.mean(keras.ops.square(y - x)))
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])
    small = dlopt.transform(net, recipe)
    assert not small.model.compiled
    assert net.compiled


def test_what_a_frozen_layers_transforms_train_is_frozen_with_it():
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="a"), layers.Dense(3, name="b")]
    )
    net.get_layer("a").trainable = False
    recipe = dlopt.Recipe(
        [
            (dlopt.at("a/output"), LSQActivation(bits=4)),
            (KERNELS, dlopt.Cluster(4)),
        ]
    )
    small = dlopt.transform(net, recipe)
    names = [v.path for v in small.trainable_variables]
    assert [n for n in names if n.rpartition("/")[-1].startswith("a_")] == []
    assert len(names) == 3  # kernel, bias and centroids of b
    small.update_transforms(1)
    before = dlopt.finalize(small).get_layer("a").kernel.numpy()
    small.compile("sgd", "mse")
    small.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
    after = dlopt.finalize(small).get_layer("a").kernel.numpy()
    np.testing.assert_array_equal(before, after)
    small.model.get_layer("a").trainable = True
    assert len(small.trainable_variables) == 7
    assert len(small.non_trainable_variables) + 7 == len(small.variables)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize(
    "transform",
    [
        dlopt.Prune(0.5, regrow=True),
        dlopt.Cluster(4) >> dlopt.FakeQuant(bits=8),
        dlopt.FakeQuant(bits=4, observer="moving_average", begin=0, freeze=9),
        dlopt.transforms.LSQ(bits=3),
        dlopt.transforms.Binary(),
        dlopt.transforms.TrainedTernary(),
        dlopt.transforms.PowerOfTwo(),
        dlopt.L0(1e-3),
        dlopt.VariationalDropout(9),
        dlopt.SoftWeightSharing(2),
    ],
    ids=lambda t: type(t).__name__,
)
def test_weights_of_other_widths(transform, dtype):
    net = keras.Sequential([keras.Input((8,)), layers.Dense(4, dtype=dtype)])
    small = dlopt.transform(net, dlopt.Recipe([(KERNELS, transform)]))
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    small(x, training=True)
    small.update_transforms(9)
    plain = dlopt.finalize(small)
    if isinstance(transform, dlopt.SoftWeightSharing):
        return  # finalize moves what training has not pulled together
    found = (keras.ops.convert_to_numpy(m(x)).astype("float64") for m in (small, plain))
    # Half precision is computed in float32, so that both are equal.
    atol = 1e-6 if dtype == "float64" else 0
    np.testing.assert_allclose(*found, rtol=0, atol=atol)
