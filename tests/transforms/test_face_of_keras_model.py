"""Every public attribute of a Keras model: as the parent has it, or refused by name.

A transformed model is compared with what `finalize` makes of it. A name that a new
version of Keras adds has no row in the table, and the test fails.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_dlopt as dlopt
from keras_dlopt.errors import ModelError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 6)).astype("float32")
Y = RNG.normal(size=(5, 2)).astype("float32")
RECIPE = dlopt.Recipe(
    [(dlopt.named("kernel"), dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=4))]
)


def build(penalty="l1"):
    """Two dense layers with penalties, and statistics between them."""
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(4, kernel_regularizer="l2", name="a")(inputs)
    hidden = layers.BatchNormalization(name="n")(hidden)
    outputs = layers.Dense(2, activity_regularizer=penalty, name="b")(hidden)
    return keras.Model(inputs, outputs, name="net")


@pytest.fixture
def pair(tmp_path):
    """A transformed model after a step, and the finalized one, compiled alike."""
    small = dlopt.transform(build(), RECIPE)
    small.update_transforms(0)
    small(X, training=True)
    plain = dlopt.finalize(small)
    for model in (small, plain):
        model.compile("sgd", "mse", metrics=["mae"])
        model.folder = str(tmp_path / type(model).__name__)
    return small, plain


def arrays(found):
    """Plain data in place of tensors, variables, layers and objects of classes."""

    def plain(x):
        if isinstance(x, keras.KerasTensor):
            return x.shape, x.dtype, x.name.startswith("keras_tensor") or x.name
        if isinstance(x, keras.Operation):
            return x.name
        if isinstance(x, keras.InputSpec | keras.dtype_policies.DTypePolicy):
            return x.get_config()
        if isinstance(x, keras.Variable) or ops.is_tensor(x):
            return ops.convert_to_numpy(x)
        known = isinstance(x, int | float | str | np.ndarray | np.generic | None)
        return x if known else type(x)

    return keras.tree.map_structure(plain, found)


def assert_same(one, other):
    one, other = arrays(one), arrays(other)
    keras.tree.assert_same_structure(one, other)
    for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        else:
            assert a == (pytest.approx(b) if isinstance(b, float) else b)


def of(name):
    """The attribute's value."""
    return lambda model: getattr(model, name)


def trained(model):
    """What comes of three steps of training on the kernels that are left."""
    model.optimizer = keras.optimizers.SGD(0.0)
    return model.fit(X, Y, batch_size=5, epochs=3, verbose=0).history


class Holder(keras.layers.Layer):
    """Adds a loss to the model it holds while that runs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x):
        y = self.model(x)
        self.add_loss(ops.sum(y))
        return y


def with_loss(model):
    """The sum of the penalties below a layer that adds its own."""
    outer = Holder(model)
    outer(X)
    return sum(outer.losses)


def own_weight(model, name):
    """A weight of the user's, in all lists, which keeps what it is given."""
    before = len(model.trainable_variables), len(model.variables)
    weight = getattr(model, name)(shape=(2,), initializer="ones", name="mine")
    now = len(model.trainable_variables), len(model.variables)
    return weight, now[0] - before[0], now[1] - before[1]


def reloaded(model, save, load):
    """The outputs of a model made anew from what was saved."""
    path = (
        model.folder + ".weights.h5" if "weights" in save else model.folder + ".keras"
    )
    getattr(model, save)(path)
    if load == "load_model":
        return keras.models.load_model(path)(X)
    again = type(model).from_config(model.get_config())
    again.load_weights(path)
    return again(X)


def moved(model, get, take):
    """The outputs of a copy that was given the state of a model."""
    again = type(model).from_config(model.get_config())
    getattr(again, take)(getattr(model, get)())
    return again(X)


def exported(model):
    model.export(model.folder, verbose=False)
    served = tf.saved_model.load(model.folder)
    return served.serve(X)


def summary(model):
    """The rows and the counts: those of the finalized model, without its optimizer."""
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    rows = "\n".join(lines).split("\n")
    return [r for r in rows if "(" in r and "ptimizer" not in r and " Total" not in r]


def compute_loss(model):
    return model.compute_loss(x=X, y=Y, y_pred=model(X))


def stateless_loss(model):
    states = (model.trainable_variables, model.non_trainable_variables)
    values = [[v.value for v in group] for group in states]
    metrics = [v.value for v in model.metrics_variables]
    made = model.stateless_compute_loss(
        *values, metrics, x=X, y=Y, y_pred=model(X), training=False
    )
    return made[0]


def stateless_call(model):
    states = (model.trainable_variables, model.non_trainable_variables)
    given = ([v.value for v in group] for group in states)
    return model.stateless_call(*given, X, training=False)[0]


def functions(name):
    """One of the functions that `compile` leaves to be made, on one batch."""

    def run(model):
        getattr(model, name)(force=True)
        function = getattr(model, name.removeprefix("make_"))
        with_labels = "predict" not in name
        batch = (tf.constant(X), tf.constant(Y)) if with_labels else (tf.constant(X),)
        model.reset_metrics()
        data = iter(tf.data.Dataset.from_tensors(batch))
        return function([next(data)] if name == "make_predict_function" else data)

    return run


def metrics_after(name):
    """A part of the metrics after an evaluation."""

    def run(model):
        model.test_on_batch(X, Y)
        return (
            getattr(model, name)()
            if name != "metrics_variables"
            else [v.value for v in model.metrics_variables]
        )

    return run


def compiled_again(model):
    config = model.get_compile_config()
    again = type(model).from_config(model.get_config())
    again.compile_from_config(config)
    return type(again.optimizer), again.loss


VALUES = """
    activity_regularizer autocast built compute_dtype compiled compiled_loss
    distribute_strategy dtype dtype_policy input input_dtype input_shape input_spec
    inputs jit_compile layers loss metrics metrics_names name optimizer output
    output_names output_shape outputs path predict_function quantization_mode
    run_eagerly steps_per_execution stop_training supports_jit supports_masking
    test_function
    train_function trainable unrolled_steps_per_execution variable_dtype
"""
# What it computes: the same of a transformed model and of what is finalized.
SAME = {name: of(name) for name in VALUES.split()} | {
    "add_loss": with_loss,
    "add_variable": lambda m: own_weight(m, "add_variable"),
    "add_weight": lambda m: own_weight(m, "add_weight"),
    "build": lambda m: (m.build((None, 6)), m.built),
    "build_from_config": lambda m: (m.build_from_config(m.get_build_config()), m.built),
    "call": lambda m: m.call(tf.constant(X), training=False),
    "compile": compiled_again,
    "compile_from_config": compiled_again,
    "compiled_metrics": lambda m: type(m.compiled_metrics).__name__,
    "compute_loss": compute_loss,
    "compute_mask": lambda m: m.compute_mask(X, None),
    "compute_metrics": lambda m: m.compute_metrics(X, Y, m(X)),
    "compute_output_shape": lambda m: m.compute_output_shape((7, 6)),
    "compute_output_spec": lambda m: (
        m.compute_output_spec(keras.KerasTensor((7, 6))).shape
    ),
    "count_params": lambda m: m.count_params(),
    "evaluate": lambda m: m.evaluate(X, Y, verbose=0, return_dict=True),
    "export": exported,
    "fit": trained,
    "from_config": lambda m: type(m).from_config(m.get_config()).name,
    "get_build_config": lambda m: (m.get_build_config() or {}).get("input_shape"),
    "get_compile_config": lambda m: m.get_compile_config()["loss"],
    "get_config": lambda m: m.get_config()["name"],
    "get_layer": lambda m: m.get_layer("a").units,
    "get_metrics_result": metrics_after("get_metrics_result"),
    "get_state_tree": lambda m: moved(m, "get_state_tree", "set_state_tree"),
    "get_quantization_layer_structure": lambda m: m.get_quantization_layer_structure(),
    "get_weights": lambda m: moved(m, "get_weights", "set_weights"),
    "load_own_variables": lambda m: reloaded(m, "save", "load_model"),
    "load_weights": lambda m: reloaded(m, "save_weights", "load_weights"),
    "losses": lambda m: (m(X), sum(m.losses)),
    "make_predict_function": functions("make_predict_function"),
    "make_test_function": functions("make_test_function"),
    "make_train_function": functions("make_train_function"),
    "metrics_variables": metrics_after("metrics_variables"),
    "predict": lambda m: m.predict(X, verbose=0),
    "predict_on_batch": lambda m: m.predict_on_batch(X),
    "predict_step": lambda m: m.predict_step((tf.constant(X),)),
    "rematerialized_call": lambda m: m.rematerialized_call(m.call)(tf.constant(X)),
    "reset_metrics": lambda m: (m.test_on_batch(X, Y), m.reset_metrics())[1],
    "save": lambda m: reloaded(m, "save", "load_model"),
    "save_own_variables": lambda m: reloaded(m, "save", "load_weights"),
    "save_weights": lambda m: reloaded(m, "save_weights", "load_weights"),
    "set_state_tree": lambda m: moved(m, "get_state_tree", "set_state_tree"),
    "set_weights": lambda m: moved(m, "get_weights", "set_weights"),
    "stateless_call": stateless_call,
    "stateless_compute_loss": stateless_loss,
    "summary": summary,
    "symbolic_call": lambda m: m.symbolic_call(keras.KerasTensor((7, 6))).shape,
    "test_on_batch": lambda m: m.test_on_batch(X, Y),
    "test_step": lambda m: m.test_step((tf.constant(X), tf.constant(Y))),
    "to_json": lambda m: keras.models.model_from_json(m.to_json()).count_params(),
    "train_on_batch": lambda m: m.train_on_batch(X, Y),
    "train_step": lambda m: m.train_step((tf.constant(X), tf.constant(Y))),
}

# Also with the state of the transforms: at least what the finalized model has.
MORE = (
    *("non_trainable_variables", "non_trainable_weights", "trainable_variables"),
    *("trainable_weights", "variables", "weights", "call_signature_parameters"),
)

# Refused by both, or by the transformed model alone: what it says.
REFUSED = {
    "add_metric": (lambda m: m.add_metric(), "add_metric"),
    "distribute_reduction_method": (of("distribute_reduction_method"), "distribute_re"),
    "operations": (of("operations"), "has no attribute 'operations'"),
    "quantize": (lambda m: m.quantize("int8"), "would replace the weights"),
    "quantized_build": (lambda m: m.quantized_build((None, 6), "int8"), "quantiz"),
    "quantized_call": (lambda m: m.quantized_call(X), "quantiz"),
}


def of_keras():
    """The public names of a model's class, and those of a compiled Functional one."""
    model = build()
    model.compile("sgd", "mse")
    return sorted(n for n in {*dir(keras.Model), *dir(model)} if n[0] != "_")


def test_every_name_has_a_row():
    table = {*SAME, *MORE, *REFUSED}
    assert set(of_keras()) - table == set()
    assert table - set(of_keras()) == set()


@pytest.mark.parametrize("name", sorted(SAME))
def test_it_is_the_finalized_models(name, pair):
    small, plain = (SAME[name](model) for model in pair)
    assert_same(small, plain)


@pytest.mark.parametrize("name", MORE)
def test_it_is_among_the_transformed_models(name, pair):
    small, plain = (
        {v if isinstance(v, str) else v.path for v in getattr(model, name)}
        for model in pair
    )
    assert plain - {"mask", "kwargs"} <= small


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused_by_name(name, pair):
    use, text = REFUSED[name]
    with pytest.raises(Exception, match=text):
        use(pair[0])


def test_a_wrapper_without_a_graph_has_the_layers_too():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2, name="dense")

        def call(self, x, scale=None, training=None):
            y = self.dense(x)
            return y if scale is None else scale * y

    net = Net()
    net(X)
    small = dlopt.transform(net, RECIPE, copy=False)
    assert small.layers == [net.dense]
    np.testing.assert_allclose(small(X, scale=tf.constant(2.0)), 2 * small(X))
    np.testing.assert_allclose(small(X, tf.constant(2.0)), 2 * small(X))
    inputs = keras.Input((6,))
    np.testing.assert_allclose(keras.Model(inputs, small(inputs))(X), small(X))


def test_freezing_by_the_list_of_layers():
    small = dlopt.transform(build(), RECIPE)
    for layer in small.layers[:-1]:
        layer.trainable = False
    assert [v.path for v in small.trainable_variables] == ["b/kernel", "b/bias"]


def test_the_policy_stays():
    small = dlopt.transform(build(), RECIPE)
    with pytest.raises(ModelError, match="Give it to the layers .* before transform"):
        small.dtype_policy = "mixed_float16"
    assert small.dtype_policy.name == "float32"


@pytest.mark.parametrize("auto", [True, False])
def test_the_loss_of_a_model_in_float16_is_scaled(auto, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:  # Keras cannot add a penalty on activations there
        small = dlopt.transform(build(penalty=None), RECIPE)
    finally:
        keras.config.set_dtype_policy("float32")
    small.compile(keras.optimizers.SGD(0.1), "mse", auto_scale_loss=auto)
    scaled = isinstance(small.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == auto
    small.fit(X, Y, verbose=0)
    small.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    assert type(again.optimizer) is type(small.optimizer)


def test_masks_reach_the_loss():
    def net():
        inputs = keras.Input((4,), dtype="int32")
        x = layers.Embedding(5, 3, mask_zero=True, name="e")(inputs)
        return keras.Model(inputs, layers.LSTM(2, return_sequences=True, name="l")(x))

    keras.utils.set_random_seed(0)
    recipe = dlopt.Recipe([(dlopt.named("kernel"), dlopt.FakeQuant(bits=4))])
    small = dlopt.transform(net(), recipe)
    plain = dlopt.finalize(small)
    x = np.array([[1, 2, 0, 0], [3, 4, 1, 0]])
    y = np.ones((2, 4, 2), "float32")
    for model in (small, plain):
        model.compile("sgd", "mse", weighted_metrics=["mae"])
    ours, theirs = (m.evaluate(x, y, verbose=0) for m in (small, plain))
    assert ours == pytest.approx(theirs, rel=1e-6)
