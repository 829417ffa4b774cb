"""Canaries: each says what to mend in `_compat.py` when Keras changes."""

import h5py
import keras
import numpy as np
import pytest

from keras_dlopt import _compat
from keras_dlopt.errors import FormatError, ModelError


class _Parts(keras.layers.Layer):
    """A layer with everything the overlay must not disturb."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(3))
        self.counter = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        self.counter.assign_add(1.0)
        self.add_loss(keras.ops.convert_to_tensor(7.0))
        return self.dense(x)


def test_overlay_substitutes_reads_and_passes_writes_and_losses_on():
    layer, outer = _Parts(), keras.layers.Layer()
    layer.build((None, 2))
    layer.dense.kernel.assign(np.ones((2, 2)))
    scope = _compat.WeightOverlay([(layer.dense.kernel, np.zeros((2, 2), "float32"))])
    with scope:
        y = layer(np.ones((1, 2), "float32"))
    scope.commit(outer)
    mend = "see WeightOverlay in _compat.py"
    assert float(keras.ops.max(y)) == 0.0, f"value not substituted: {mend}"
    assert float(layer.counter.numpy()) == 1.0, f"write lost: {mend}"
    assert [float(v) for v in outer.losses] == [7.0], f"add_loss lost: {mend}"
    # The regularizer sees the latent weight, once: 3 * 4 ones.
    assert [float(v) for v in layer.losses] == [12.0], f"regularizer changed: {mend}"


def test_overlay_reads_its_own_writes_and_nests():
    v = keras.Variable(1.0)
    outer = keras.StatelessScope([(v, 5.0)])
    with outer:
        inner = _compat.WeightOverlay([])
        with inner:
            assert float(v.value) == 5.0
            v.assign(6.0)
            assert float(v.value) == 6.0
        inner.commit(keras.layers.Layer())
    assert float(outer.get_current_value(v)) == 6.0
    assert float(v.value) == 1.0


def test_overlay_refuses_writes_to_a_computed_weight():
    v = keras.Variable(1.0, name="kernel")
    with _compat.WeightOverlay([(v, np.float32(0))]):
        with pytest.raises(ModelError, match="'kernel' is computed by a transform"):
            v.assign(2.0)


def test_sublayers_are_the_direct_ones_only():
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="deep")])
    model = keras.Sequential([keras.Input((2,)), inner])
    names = [layer.name for layer in _compat.sublayers(model)]
    assert inner.name in names, "see sublayers in _compat.py"
    assert "deep" not in names, "see sublayers in _compat.py"


def test_xla_is_seen_while_tracing():
    import tensorflow as tf

    seen = []

    def function(x):
        seen.append(_compat.in_xla())
        return tf.cond(x > 0, lambda: (seen.append(_compat.in_xla()), x)[1], lambda: x)

    tf.function(function, jit_compile=True)(tf.constant(1.0))
    assert seen == [True, True], "see in_xla in _compat.py"
    seen.clear()
    tf.function(function)(tf.constant(1.0))
    assert seen == [False, False], "see in_xla in _compat.py"
    assert not _compat.in_xla()


def test_variables_beyond_the_limit_are_refused_before_they_exist():
    mend = "see limited_variables in _compat.py"
    with _compat.limited_variables(10):
        keras.layers.Dense(3).build((None, 3))
        with pytest.raises(FormatError, match="needs a variable of shape"):
            keras.layers.Dense(10**6).build((None, 10**6))
    assert keras.Variable(np.zeros(10**5)).shape == (10**5,), mend


def test_random_numbers_that_a_file_replaces_are_not_drawn():
    mend = "see limited_variables in _compat.py"
    start, drawn = keras.initializers.HeNormal(seed=1), []
    with _compat.limited_variables(100, drawn):
        one, two = (keras.layers.Dense(3, kernel_initializer=start) for _ in range(2))
        one.build((None, 4))
        two.build((None, 4))
    assert [v.name for v, _ in drawn] == ["kernel", "kernel"], mend
    before = np.array(two.kernel.numpy())  # of any values
    _compat.draw(drawn, replaced=[two.kernel])
    assert np.array_equal(one.kernel, start((4, 3))), mend
    assert two.kernel.numpy().tobytes() == before.tobytes()
    assert not np.array_equal(before, start((4, 3)))


def test_weight_files_are_written_to_memory_as_to_a_disk(tmp_path):
    import h5py

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    path = tmp_path / "one.weights.h5"
    path.write_bytes(_compat.weights_file(model))
    model.save_weights(tmp_path / "two.weights.h5")
    found = []
    for name in ("one", "two"):
        parts = {}
        with h5py.File(tmp_path / f"{name}.weights.h5") as file:
            file.visititems(lambda key, v, p=parts: p.update({key: str(v)}))
        found.append(parts)
    assert found[0] == found[1] != {}
    before = model.get_weights()
    model.set_weights([w + 1 for w in before])
    model.load_weights(path)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_unnamed_operations_are_found_by_their_module():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.ops.add(inputs, 1))
    found = {cls for _, cls in _compat.unnamed_operations()}
    mend = "see unnamed_operations in _compat.py"
    assert type(model) in found, mend
    assert type(model.operations[-1]) in found, mend
    named = {name for name, _ in _compat.unnamed_operations()}
    assert "applications.convnext.LayerScale" in named, mend


def test_optimizers_know_the_place_of_a_variable():
    v, w = keras.Variable([1.0]), keras.Variable([2.0])
    optimizer = keras.optimizers.SGD()
    optimizer.build([v, w])
    mend = "see place_of in _compat/state.py"
    assert _compat.place_of(optimizer, w) == 1, mend
    assert _compat.place_of(optimizer, keras.Variable([3.0])) is None, mend


def test_state_is_tracked_without_an_attribute_of_its_own(tmp_path):
    import tensorflow as tf

    optimizer = keras.optimizers.SGD()
    optimizer.build([keras.Variable([1.0])])
    made = keras.Variable([3.0], name="made")
    _compat.track_state(optimizer, made)
    mend = "see track_state in _compat/state.py"
    assert optimizer.variables[-1] is made, mend
    path = tf.train.Checkpoint(optimizer=optimizer).save(str(tmp_path / "state"))
    keys = [key for key, _ in tf.train.list_variables(path)]
    place = len(optimizer.variables) - 1
    assert any(key.startswith(f"optimizer/_variables/{place}/") for key in keys), mend


def test_checkpoints_ask_a_variable_for_its_tensors(tmp_path):
    import tensorflow as tf

    from keras_dlopt import optimizers

    variables = [keras.Variable(np.ones(n)) for n in (2, 3, 4, 5)]
    adam = optimizers.Adam(0.1)
    adam.apply([keras.ops.ones(v.shape) for v in variables], variables)
    pieces = [v for v in adam.variables if isinstance(v, _compat.SlabSlice)]
    mend = "see SlabSlice in _compat/state.py"
    path = tf.train.Checkpoint(optimizer=adam).save(str(tmp_path / "state"))
    stored = {key.rsplit("/.ATT")[0] for key, _ in tf.train.list_variables(path)}
    assert len(stored) >= len(adam.variables), mend
    held = [piece.numpy() for piece in pieces]
    for piece in pieces:
        piece.assign(np.zeros(piece.shape))
    tf.train.Checkpoint(optimizer=adam).restore(path)
    for piece, value in zip(pieces, held, strict=True):
        np.testing.assert_array_equal(piece.numpy(), value, err_msg=mend)
        assert np.all(value != 0), mend


def test_slots_are_made_on_the_device_of_their_weight():
    optimizer, asked = keras.optimizers.SGD(0.1, momentum=0.9), []
    plain = optimizer.add_variable_from_reference

    def noted(reference_variable, *args, **kwargs):
        asked.append(reference_variable.path)
        return plain(reference_variable, *args, **kwargs)

    optimizer.add_variable_from_reference = noted
    _compat.state_beside_weights(optimizer)
    weight = keras.Variable([1.0], name="weight")
    optimizer.build([weight])
    mend = "see state_beside_weights in _compat/state.py"
    assert asked == [weight.path], mend
    assert optimizer.variables[-1].value.device == weight.value.device, mend


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_optimizers_of_keras_step_on_values_in_place_of_variables(name):
    weight, other = keras.Variable([1.0, 2.0]), keras.Variable([1.0, 2.0])
    ours, theirs = (getattr(keras.optimizers, name)(0.1) for _ in range(2))
    ours.build([weight])
    held = [
        (v, keras.ops.convert_to_tensor(v.value)) for v in (weight, *ours.variables)
    ]
    scope = _compat.PureScope(held)
    with scope:
        ours.apply([keras.ops.array([1.0, -1.0])], [weight])
    theirs.apply([keras.ops.array([1.0, -1.0])], [other])
    mend = "see PureVariable and PureScope in _compat/pure.py"
    np.testing.assert_array_equal(weight.numpy(), [1.0, 2.0], err_msg=mend)
    expected = [other, *theirs.variables]
    for value, variable in zip(scope.values(), expected, strict=True):
        np.testing.assert_allclose(value, variable.numpy(), rtol=1e-6, err_msg=mend)


def test_methods_of_one_model_are_replaced_and_restored():
    model, called = _compiled(), []
    plain, mend = model.train_step, "see replace_method in _compat/training.py"

    def step(data):
        called.append("step")
        return plain(data)

    apply = model.optimizer.apply

    def noted(*arguments):
        called.append("apply")
        return apply(*arguments)

    _compat.replace_method(model, "train_step", step)
    _compat.replace_method(model.optimizer, "apply", noted)
    model.make_train_function(force=True)
    x, y = np.ones((2, 2), "float32"), np.ones((2, 1), "float32")
    model.fit(x, y, verbose=0)
    assert set(called) == {"step", "apply"}, mend
    for owner, name in ((model, "train_step"), (model.optimizer, "apply")):
        _compat.restore_method(owner, name)
        _compat.restore_method(owner, name)
    called.clear()
    model.make_train_function(force=True)
    model.fit(x, y, verbose=0)
    assert not called, mend


def test_what_is_attached_to_a_model_is_saved_with_its_weights_alone(tmp_path):
    class Note(keras.layers.Layer):
        def save_own_variables(self, store):
            store["note"] = np.ones(1)

        def load_own_variables(self, store):
            self.loaded = np.asarray(store["note"])

    model, note = _compiled(), Note(name="note")
    weights = len(model.weights)
    assert _compat.attached(model, "note") is None
    _compat.attach(model, "note", note)
    mend = "see attach in _compat/training.py"
    assert _compat.attached(model, "note") is note, mend
    assert len(model.layers) == 1, mend
    assert len(model.weights) == weights, mend
    path = tmp_path / "a.weights.h5"
    model.save_weights(path)
    model.load_weights(path)
    assert note.loaded.tolist() == [1.0], mend


# -- training under tf.distribute: more in tests/distribute/on_devices.py --------------


def _compiled():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def test_train_and_test_functions_are_made_by_ours():
    model, made = _compiled(), []

    def make(step):
        made.append(step.__name__)
        return lambda iterator: {}

    _compat.replace_train_functions(model, make)
    model.make_train_function()
    model.make_test_function()
    mend = "see replace_train_functions in _compat.py"
    assert made == ["train_step", "test_step"], mend


def test_models_are_built_from_the_spec_of_their_data():
    import tensorflow as tf

    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    _compat.build_from_spec(model)
    drawn = []

    def rows():
        for _ in range(2):
            drawn.append(1)
            yield np.ones((3, 2), "float32"), np.ones((3, 1), "float32")

    class Data:
        spec = tf.TensorSpec((None, 2), "float32"), tf.TensorSpec((None, 1), "float32")
        _distributed_dataset = tf.data.Dataset.from_generator(
            rows, output_signature=spec
        )

    mend = "see build_from_spec in _compat.py"
    model._maybe_symbolic_build(iterator=Data)
    assert model.built, mend
    assert tuple(model.layers[0].kernel.shape) == (2, 1), mend
    assert not drawn, mend


def test_metrics_can_be_built_before_the_first_step():
    import tensorflow as tf

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    spec = tf.TensorSpec((None, 2), "float32"), tf.TensorSpec((None, 1), "float32")
    _compat.build_metrics(model, spec)
    mend = "see build_metrics in _compat.py"
    assert len(model.metrics_variables) == 4, mend
    assert set(model.get_metrics_result()) == {"loss", "mae"}, mend


def test_compiled_losses_can_be_seen_and_changed():
    inputs = keras.Input((2,))
    outputs = [keras.layers.Dense(1)(inputs), keras.layers.Dense(1)(inputs)]
    mend, seen = "see see_losses in _compat/losses.py", []

    def change(value, *, loss, values, mask, sample_weight):
        seen.append((values.shape, mask, sample_weight))
        return 2 * value

    for made, losses, count in (
        (outputs[0], "mse", 1),
        (outputs, ["mse", lambda y, predicted: keras.ops.mean(y - predicted)], 2),
    ):
        model = keras.Model(inputs, made)
        model.compile("sgd", losses)
        y = keras.tree.map_structure(lambda _: np.ones((3, 1), "float32"), made)
        two = keras.tree.map_structure(lambda part: 3 * part, y)
        plain = model.compute_loss(y=y, y_pred=two)
        for _ in range(2):  # the second time changes nothing
            _compat.see_losses(model, change)
        assert float(model.compute_loss(y=y, y_pred=two)) == 2 * float(plain), mend
        assert [len(shape) for shape, *_ in seen] == [1, 0][:count], mend
        seen.clear()


def test_losses_see_masks_and_tell_what_they_divide_by():
    from keras_dlopt._compat.losses import SeenLoss

    mend = "see SeenLoss and weight_of_values in _compat/losses.py"
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    found = []

    def change(value, *, loss, values, mask, sample_weight):
        found.append(_compat.weight_of_values(loss, values, mask, sample_weight))
        return value

    predicted = keras.ops.zeros((2, 3, 1))
    keras.src.backend.common.masking.set_keras_mask(
        predicted, keras.ops.convert_to_tensor([[True, True, False], [True] * 3])
    )
    weight = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], "float32")
    y = np.arange(6, dtype="float32").reshape((2, 3, 1))
    value = SeenLoss(loss, change)(y, predicted, weight)
    kept = weight.ravel()[[0, 1, 3, 4, 5]]
    assert float(found[0]) == kept.sum(), mend
    squares = np.square(y).ravel()[[0, 1, 3, 4, 5]]
    assert float(value) == pytest.approx((squares * kept).sum() / kept.sum()), mend

    class Own(keras.losses.Loss):
        def __call__(self, y_true, y_pred, sample_weight=None):
            return keras.ops.sum(y_pred)

    assert float(SeenLoss(Own(), change)(y, y)) == 15.0, mend
    assert len(found) == 1, mend


def test_means_of_outputs_are_weighed_as_told():
    inputs = keras.Input((2,))
    outputs = [keras.layers.Dense(1)(inputs), keras.layers.Dense(1)(inputs)]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    told = [None]
    zeros = [np.zeros((3, 1), "float32")] * 2
    model.compute_loss(y=zeros, y_pred=zeros)
    for _ in range(2):
        _compat.weigh_means_of_outputs(model, lambda: told[0])
    model.reset_metrics()
    for weight, value in ((2.0, 1.0), (1.0, 2.0)):
        told[0] = weight
        y = [np.full((3, 1), value, "float32")] * 2
        model.compute_loss(y=y, y_pred=zeros)
    results = [float(m.result()) for m in model._compile_loss.metrics]
    mend = "see weigh_means_of_outputs in _compat/losses.py"
    assert results == pytest.approx([(2 * 1 + 4) / 3] * 2), mend


def test_the_arguments_of_compile_are_read():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert _compat.compile_arguments(model) == {}
    optimizer = keras.optimizers.SGD()
    model.compile(optimizer, test_the_arguments_of_compile_are_read)
    found = _compat.compile_arguments(model)
    mend = "see compile_arguments in _compat/calls.py"
    assert found["optimizer"] is optimizer, mend
    assert found["loss"] is test_the_arguments_of_compile_are_read, mend
    assert set(found) == set(model.get_compile_config()), mend


def test_results_of_metrics_are_found_in_logs():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    model.evaluate(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    seen = _compat.SeenResults(lambda: True)
    for _ in range(2):
        seen.watch(model)
    seen.start()
    logs = {**model.get_metrics_result(), "own": keras.ops.ones(())}
    sources = seen.sources(logs)
    mend = "see SeenResults in _compat/losses.py"
    assert sorted(sources) == ["loss", "mae"], mend
    for name, (result, key) in sources.items():
        value = result() if key is None else result()[key]
        assert float(value) == float(logs[name]), mend
    seen.start()
    assert seen.sources(logs) == {}, mend


def test_specs_of_text_and_of_nothing_have_stand_ins():
    import tensorflow as tf

    spec = {"a": tf.TensorSpec((None,), tf.string), "b": tf.OptionalSpec(None)}
    made = _compat.training._stand_in(spec)
    assert made["a"].numpy().tolist() == [b"", b""]
    assert made["b"] is None


def test_distributed_iterators_tell_their_number_of_batches():
    import tensorflow as tf

    mirrored = tf.distribute.MirroredStrategy(["CPU:0"])
    data = tf.data.Dataset.range(3)
    for made, count in (
        (data, 3),
        (data.repeat(), float("inf")),
        (data.filter(lambda x: x > 0), None),
    ):
        iterator = iter(mirrored.experimental_distribute_dataset(made))
        found = _compat.batch_count(iterator)
        assert found == count, "see batch_count in _compat.py"
    assert _compat.batch_count(iter(data)) is None


def test_replicas_that_are_traced_in_turns_keep_their_losses_apart():
    import threading

    class Adds(keras.layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.sum(x))
            return x

    layer = Adds()
    _compat.keep_losses_apart(layer)
    layer(keras.ops.ones((2,)))
    other = threading.Thread(target=lambda: layer(keras.ops.ones((3,))))
    other.start()
    other.join()
    assert [float(v) for v in layer.losses] == [2.0], "see keep_losses_apart"
    layer(keras.ops.ones((5,)))
    assert [float(v) for v in layer.losses] == [5.0]


def test_distributed_iterators_tell_how_workers_share_the_input():
    import tensorflow as tf

    mirrored = tf.distribute.MirroredStrategy(["CPU:0"])
    mend = "see input_sharding and do_not_ask_for_more in _compat.py"
    for name in ("off", "data", "auto"):
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy[name.upper()]
        )
        data = tf.data.Dataset.range(4).batch(2).with_options(options)
        iterator = iter(mirrored.experimental_distribute_dataset(data))
        assert _compat.input_sharding(iterator) == name, mend
        assert iterator._enable_get_next_as_optional, mend
        _compat.do_not_ask_for_more(iterator)
        taken = tf.function(lambda it: it.get_next()).get_concrete_function(iterator)
        kinds = {node.op for node in taken.graph.as_graph_def().node}
        assert "IteratorGetNext" in kinds, mend
        assert "IteratorGetNextAsOptional" not in kinds, mend


def test_optimizers_update_without_the_strategys_functions():
    """The functions that `replace_update` swaps are still where they were."""
    mend = "see replace_update in _compat.py"
    bases = keras.optimizers.Optimizer.__mro__
    base = next((c for c in bases if c.__name__ == "BaseOptimizer"), None)
    assert base is not None, mend
    home = next(c for c in bases if _compat.training._DISTRIBUTED[0] in vars(c))
    assert home is not base, mend
    before = {name: vars(home)[name] for name in _compat.training._DISTRIBUTED}
    with _compat.training._plain_backend(base):
        for name in _compat.training._DISTRIBUTED:
            assert getattr(keras.optimizers.SGD, name) is getattr(base, name), mend
    assert {
        name: vars(home)[name] for name in _compat.training._DISTRIBUTED
    } == before, mend
    optimizer, called = keras.optimizers.SGD(0.1), []
    _compat.replace_update(optimizer, called.append)
    variable = keras.Variable([1.0])
    optimizer.build([variable])
    optimizer.apply([np.ones(1, "float32")])
    # One replica: Keras' own update, and nothing to prepare.
    assert not called
    np.testing.assert_allclose(variable.numpy(), [0.9], err_msg=mend)


# Formats: what Keras writes, and what it reads of ours. A canary that fails here says
# that files are written or read differently, which no function of ours would tell.
READ = "see encode in storage/architecture.py"
WRITE = "see _class in storage/architecture.py"


@keras.saving.register_keras_serializable("canaries")
class _Own(keras.layers.Layer):
    pass


@keras.saving.register_keras_serializable("canaries")
def _own_function(x):
    return x


def _described(value):
    found = keras.saving.serialize_keras_object(value)
    return found, (found["module"], found["class_name"], found["registered_name"])


def test_the_format_of_a_layer():
    layer = keras.layers.Dense(2, activation="relu", dtype="mixed_bfloat16")
    layer.build((None, 3))
    found, kind = _described(layer)
    assert kind == ("keras.layers", "Dense", None), READ
    assert found["build_config"] == {"input_shape": (None, 3)}, READ
    assert found["config"]["activation"] == "relu", READ
    start = found["config"]["kernel_initializer"]
    assert start["module"] == "keras.initializers", READ
    assert set(start) == {"module", "class_name", "config", "registered_name"}, READ
    assert _described(_Own())[1][1:] == ("_Own", "canaries>_Own"), READ
    own = keras.layers.Dense(2, activation=_own_function).get_config()["activation"]
    assert own["class_name"] == "function", READ
    # `builtins` up to Keras 3.15, then its own module.
    assert not str(own["module"]).startswith("keras"), READ
    assert own["config"] == "canaries>_own_function", READ


def test_the_format_of_a_dtype_policy():
    found, _ = _described(keras.DTypePolicy("mixed_bfloat16"))
    assert found["config"] == {"name": "mixed_bfloat16"}, READ
    place = keras
    for part in [*found["module"].split(".")[1:], found["class_name"]]:
        place = getattr(place, part)
    assert place is keras.dtype_policies.DTypePolicy, READ


def test_the_format_of_an_optimizer_and_a_schedule():
    import keras_dlopt as dlopt

    rate = keras.optimizers.schedules.CosineDecay(0.1, 10)
    found, kind = _described(keras.optimizers.SGD(rate))
    mend = "optimizers in .keras files are written otherwise"
    assert kind == ("keras.optimizers", "SGD", None), mend
    inner = found["config"]["learning_rate"]
    assert inner["module"] == "keras.optimizers.schedules", mend
    assert inner["class_name"] == "CosineDecay", mend
    found, kind = _described(
        dlopt.optimizers.AdamW(dlopt.schedules.OneCycle(0.1, steps=7))
    )
    assert kind[1:] == ("AdamW", "keras_dlopt>AdamW"), mend
    inner = found["config"]["learning_rate"]
    assert inner["registered_name"] == "keras_dlopt>OneCycle", mend


def _graph():
    inputs = keras.Input((4,), name="x")
    x = keras.layers.Dense(3, name="dense")(inputs)
    return keras.Model(inputs, keras.ops.add(x, 1), name="graph")


def test_the_format_of_a_functional_model():
    found, kind = _described(_graph())
    assert kind == ("keras.src.models.functional", "Functional", "Functional"), READ
    config = found["config"]
    assert {"layers", "input_layers", "output_layers"} <= set(config), READ
    _, dense, add = config["layers"]
    assert dense["name"] == dense["config"]["name"] == "dense", READ
    assert add["module"].startswith("keras.src.ops."), READ
    (node,) = dense["inbound_nodes"]
    assert set(node) == {"args", "kwargs"}, READ
    (tensor,) = node["args"]
    assert tensor["class_name"] == "__keras_tensor__", READ
    assert tensor["config"]["keras_history"] == ["x", 0, 0], READ
    assert config["output_layers"] == [add["name"], 0, 0], READ


def test_classes_are_found_by_the_names_handed_over():
    """A class given as a custom object needs no module name, at any depth."""
    given = {"initializers.Ones": keras.initializers.Ones, "Dense": keras.layers.Dense}
    given["dtype_policies.DTypePolicy"] = keras.DTypePolicy
    start = {"module": None, "class_name": "Ones", "config": {}}
    policy = {"module": None, "class_name": "DTypePolicy"}
    policy["config"] = {"name": "mixed_bfloat16"}
    config = {
        "units": 2,
        "dtype": policy | {"registered_name": "dtype_policies.DTypePolicy"},
        "kernel_initializer": start | {"registered_name": "initializers.Ones"},
    }
    found = {"module": None, "class_name": "Dense", "registered_name": "Dense"}
    layer = keras.saving.deserialize_keras_object(
        {**found, "config": config, "build_config": {"input_shape": [None, 3]}},
        custom_objects=given,
    )
    assert layer.kernel.numpy().tolist() == np.ones((3, 2)).tolist(), WRITE
    assert layer.compute_dtype == "bfloat16", WRITE


def test_tensors_of_a_graph_are_read_without_their_shape():
    from keras_dlopt.storage import architecture

    tree = architecture.encode(keras.saving.serialize_keras_object(_graph()))
    assert tree["config"]["layers"][1]["inbound_nodes"][0]["args"] == [
        {"@t": ["x", 0, 0]}
    ], READ
    again = architecture.rebuild(tree, custom_objects={})
    assert again.output_shape == (None, 3), "see _tensor in storage/architecture.py"


def test_an_instance_has_a_call_of_its_own_while_it_is_asked_to():
    mend = "see set_instance_call in _compat/calls.py"
    inputs = keras.Input((2,))
    dense = keras.layers.Dense(2)
    functional = keras.Model(inputs, dense(inputs) * 2.0)
    (times,) = (o for o in functional.operations if not isinstance(o, keras.Layer))
    line = keras.Sequential([inputs, dense])
    for one, net in ((dense, functional), (dense, line), (times, functional)):
        assert _compat.instance_call(one) is None
        _compat.set_instance_call(one, lambda *_, **__: keras.ops.zeros((1, 2)))
        got = [net(np.ones((1, 2), "float32")), net.predict(np.ones((1, 2)), verbose=0)]
        assert all(float(keras.ops.max(y)) == 0.0 for y in got), f"not called: {mend}"
        _compat.set_instance_call(one, None)
        net.make_predict_function(force=True)
        after = float(keras.ops.max(keras.ops.abs(net(np.ones((1, 2), "float32")))))
        assert after > 0.0, f"not taken away: {mend}"


def test_calls_of_a_layer_can_be_seen_through():
    mend = "see called_through in _compat/calls.py"
    dense = keras.layers.Dense(2)
    line = keras.Sequential([dense], name="line")
    x = keras.Input((3,))
    with _compat.called_through(
        [line], lambda layer, own, *args, **_: layer.call(*args)
    ):
        seen = keras.Model(x, line(x))
    assert dense in seen.layers, mend
    assert line in keras.Model(x, line(x)).layers, f"not taken away: {mend}"


def test_the_scaled_sum_of_inception_resnet():
    layer = _compat.ScaledSum(0.5)
    mend = "see ScaledSum in _compat/graphs.py"
    assert float(layer([np.float32(3), np.float32(4)])) == 5.0, mend
    assert layer.get_config()["scale"] == layer.scale == 0.5, mend


def test_the_factor_by_channel_of_convnext():
    layer = _compat.FactorByChannel(0.5, 3)
    mend = "see FactorByChannel in _compat/graphs.py"
    layer(np.ones((1, 3), "float32"))
    layer.gamma.assign(np.array([1.0, 2.0, 3.0]))
    assert np.array(layer(np.ones((1, 3), "float32"))).tolist() == [[1, 2, 3]], mend
    assert layer.get_config()["projection_dim"] == 3, mend


def test_a_layer_can_become_one_of_a_subclass():
    class Twice(keras.layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="one")])
    x = keras.ops.ones((1, 2))
    before = model(x)
    _compat.set_class(model.layers[0], Twice)
    mend = "see set_class in _compat/calls.py"
    assert np.array_equal(model(x), 2 * before), mend
    assert model.layers[0].name == "one", mend


def test_attributes_are_read_at_each_call_and_come_back():
    mend = "see changed in _compat/calls.py"
    dense = keras.layers.Dense(2, activation="relu", kernel_initializer="ones")
    before, x = dense.activation, -np.ones((1, 2), "float32")
    assert float(keras.ops.max(dense(x))) == 0.0
    with _compat.changed(dense, activation=None):
        assert float(keras.ops.max(dense(x))) == -2.0, mend
    assert dense.activation is before
    norm = keras.layers.BatchNormalization()
    norm.build((None, 2))
    with _compat.changed(norm, momentum=0.0, trainable=True):
        norm(np.full((4, 2), 3.0, "float32"), training=True)
    assert norm.moving_mean.numpy().tolist() == [3.0, 3.0], mend
    assert norm.momentum == 0.99


def test_calls_under_a_function_and_recomputed_ones_are_known():
    import tensorflow as tf

    class Traced(keras.layers.Layer):
        @tf.function
        def call(self, x):
            return 2 * x

    mend = "see _compat/tracing.py"
    assert int(_compat.untraced_call(Traced())(3)) == 6, mend
    assert _compat.untraced_call(keras.layers.Dense(1)) is None, mend
    with keras.RematScope(mode="full"):
        layer = keras.layers.Dense(1)
    assert _compat.recomputes(layer), mend
    with _compat.without_recomputing([layer]):
        assert not _compat.recomputes(layer), mend
    assert _compat.recomputes(layer), mend


def test_a_built_optimizer_tells_whose_its_slots_are():
    mend = "see build_seen in _compat/state.py"
    weights = [keras.Variable(np.zeros(n, "float32")) for n in (2, 3)]
    for optimizer in (
        keras.optimizers.Adam(use_ema=True),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(use_ema=True)),
    ):
        seen = _compat.build_seen(optimizer, weights)
        found = [seen[id(v)] for v in optimizer.variables if id(v) in seen]
        names = ["average", "average", "momentum", "velocity", "momentum", "velocity"]
        assert sorted(n for _, n in found) == sorted(names), mend
        assert {id(w) for w, _ in found} == {id(w) for w in weights}, mend
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        assert "add_variable_from_reference" not in vars(inner), mend


def test_graphs_tell_their_calls_in_order():
    x = keras.Input((4,))
    y = keras.layers.Dense(2, name="d")(keras.ops.relu(x)[:, :3])
    model = keras.Model(x, y / 2.0)
    found = list(_compat.graph_nodes(model))
    mend = "see graph_nodes in _compat/graphs.py"
    names = [_compat.operation_name(operation) for operation, *_ in found]
    assert names == [None, "Relu", "GetItem", None, "TrueDivide"], mend
    key = found[2][1][1]
    assert key[1] == slice(None, 3), mend
    assert found[4][1][1] == 2.0, mend
    assert found[3][3][0] is found[2][4][0], mend
    assert [len(taken) for _, _, _, taken, _ in found] == [0, 1, 1, 1, 1], mend
    assert _compat.operation_name(keras.Operation) is None, mend


def test_a_view_of_a_model_has_its_class_and_content():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    view = _compat.seen_as(model, {"losses": property(lambda _: [1])})
    mend = "see seen_as in _compat/training.py"
    assert isinstance(view, keras.Sequential), mend
    assert view.layers[0] is model.layers[0], mend
    assert (view.losses, model.losses) == ([1], []), mend
    view.note = 1
    assert model.note == 1, mend
    held = {*vars(keras.Model()), *dir(keras.Model)}
    assert set(_compat.TRAINER_STATE) - held <= {"optimizer", "stop_training"}, mend


def test_checkpoints_hold_variables_without_an_attribute(tmp_path):
    import tensorflow as tf

    layer = keras.layers.Layer()
    variable = layer.add_weight(shape=(), initializer="ones", name="held")
    _compat.in_checkpoints(layer, variable, "state_1")
    names = [
        n
        for n, _ in tf.train.list_variables(
            tf.train.Checkpoint(layer=layer).write(str(tmp_path / "c"))
        )
    ]
    assert any("state_1" in name for name in names), "see in_checkpoints in state.py"


def test_saving_reads_attributes_itself(tmp_path):
    """What a getter gives saving alone is what the file holds by that name."""

    class Shows(keras.Model):
        @property
        def layers(self):
            seen.append(_compat.asked_to_save())
            return super().layers if seen[-1] else []

    seen = []
    model = Shows()
    model.wrapped = keras.layers.Dense(2)
    model.wrapped.build((None, 3))
    model.built = True
    del seen[:]
    assert model.layers == []
    assert seen == [False]
    model.save_weights(tmp_path / "m.weights.h5")
    assert seen[1:] == [True], "see asked_to_save in _compat/state.py"
    with h5py.File(tmp_path / "m.weights.h5") as file:
        assert "dense/vars/0" in file["layers"]


def test_tensorflow_brings_the_format_of_litert_files(tmp_path):
    from keras_dlopt.export.flat import Flat

    path = tmp_path / "m.tflite"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.export(path, format="litert", verbose=False)
    schema = _compat.litert_schema()
    found = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    assert found.subgraphs[0].operators, "see litert_schema in litert.py"
    assert [op.name for op in Flat(path).ops] == ["FULLY_CONNECTED"]


def test_reads_of_variables_are_heard():
    import tensorflow as tf

    v = keras.Variable([1.0, 2.0])
    kind, told = type(v), []
    mend = "see heard in _compat/reads.py"

    def count(read):
        before = len(told)
        with _compat.heard([v], told.append), _compat.heard([v], lambda _: None):
            read()
        assert type(v) is kind, mend
        return len(told) - before

    def gradient():
        with tf.GradientTape() as tape:
            loss = keras.ops.sum(w * w)
        tape.gradient(loss, [v])

    w = keras.Variable([1.0])
    for read in (
        lambda: v.value,
        lambda: v.numpy(),
        lambda: v + 1.0,
        lambda: tf.reduce_sum(v),
        lambda: keras.ops.sum(v),
    ):
        assert count(read) >= 1, mend
    sgd = keras.optimizers.SGD(0.1)
    for other in (
        lambda: v.assign([3.0, 4.0]),
        lambda: v.assign_add([1.0, 1.0]),
        lambda: sgd.apply([tf.ones(2)], [v]),
        gradient,
        lambda: (v.shape, v.dtype, v.path, v.trainable),
    ):
        assert count(other) == 0, mend


def test_operations_with_a_state_are_known():
    mend = "see has_state in litert.py"
    for name in ("WriteFile", "PyFunc", "Print", "ReadVariableOp", "VarHandleOp"):
        assert _compat.has_state(name) is True, mend
    for name in ("MatMul", "Conv2D", "Identity", "PartitionedCall"):
        assert _compat.has_state(name) is False, mend
    assert _compat.has_state("NoSuchOperation") is None, mend


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_the_compiled_loss_is_that_of_one_device(reduction):
    import tensorflow as tf

    mend = "see compiled_loss in _compat/losses.py"
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", keras.losses.MeanSquaredError(reduction=reduction))
    y, two = np.zeros((4, 1), "float32"), np.full((4, 1), 2.0, "float32")
    expected = 4.0 if reduction == "sum_over_batch_size" else 16.0
    assert float(_compat.compiled_loss(model, y, two)) == expected, mend
    replicas = tf.distribute.MirroredStrategy(
        ["CPU:0"], cross_device_ops=tf.distribute.HierarchicalCopyAllReduce()
    )
    with replicas.scope():
        assert float(_compat.compiled_loss(model, y, two)) == expected, mend
