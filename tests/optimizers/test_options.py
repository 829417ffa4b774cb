"""The options that all optimizers share, bad input, and files and checkpoints."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dlopt import optimizers
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.select import matching, named

o = optimizers


def _variables(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        keras.Variable(rng.normal(size=s).astype("float32"), name=f"w{i}")
        for i, s in enumerate(shapes)
    ]


def _grads(variables, seed=1):
    rng = np.random.default_rng(seed)
    return [
        tf.constant(rng.normal(size=tuple(v.shape)).astype("float32"))
        for v in variables
    ]


def _moved(optimizer, shapes=((4, 3), (3,)), steps=1):
    variables = _variables(*shapes)
    before = [v.numpy() for v in variables]
    grads = _grads(variables)
    for _ in range(steps):
        optimizer.apply(grads, variables)
    changes = [v.numpy() - b for v, b in zip(variables, before, strict=True)]
    return changes, [g.numpy() for g in grads], before


def test_centralized_gradients_have_no_mean_over_the_inputs():
    (kernel, bias), (gk, gb), _ = _moved(o.SGD(1.0, centralize=True))
    np.testing.assert_allclose(kernel, -(gk - gk.mean(axis=0)), atol=1e-6)
    np.testing.assert_allclose(bias, -gb, atol=1e-6)


def test_kernels_of_convolutions_are_centralized_over_taps_and_inputs():
    (kernel,), (g,), _ = _moved(o.SGD(0.5, centralize=True), shapes=((3, 3, 2, 4),))
    np.testing.assert_allclose(kernel, -(g - g.mean(axis=(0, 1, 2))) / 2, atol=1e-6)


def test_adaptive_clip_limits_each_unit_by_its_weights():
    (kernel, bias), (gk, _), (w, b) = _moved(o.SGD(1.0, adaptive_clip=0.1))
    limit = 0.1 * np.linalg.norm(w, axis=0)
    norms = np.linalg.norm(gk, axis=0)
    expected = -gk * np.minimum(limit / norms, 1)
    np.testing.assert_allclose(kernel, expected, rtol=1e-5)
    assert np.all(np.abs(bias) <= 0.1 * np.maximum(np.abs(b), 1e-3) * 1.001)


def test_cautious_steps_never_point_against_the_gradient():
    adam = o.Adam(0.1, cautious=True)
    variables = _variables((40, 5))
    up = [tf.ones((40, 5))]
    adam.apply(up, variables)
    before = variables[0].numpy()
    g = _grads(variables)[0] * 0.3  # momentum still points the other way in places
    adam.apply([g], variables)
    moved = before - variables[0].numpy()
    assert np.all(moved * g.numpy() >= 0)
    assert np.any(moved == 0)


def test_multipliers_scale_and_freeze_by_selector():
    def changes(**options):
        return _moved(o.Adam(0.1, **options))[0]

    plain = changes()
    pairs = [(named("w0"), 0.5), (matching(".*"), 0.0)]
    scaled = changes(multipliers=pairs)
    np.testing.assert_allclose(scaled[0], 0.5 * plain[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(scaled[1], 0)


def test_decay_acts_on_the_selected_weights_only():
    adamw = o.AdamW(0.1, weight_decay=0.5, decay_on=named("w0"))
    variables = _variables((2, 2), (3,))
    before = [v.numpy() for v in variables]
    adamw.apply([tf.zeros((2, 2)), tf.zeros(3)], variables)
    np.testing.assert_allclose(variables[0].numpy(), before[0] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(variables[1].numpy(), before[1])


def test_nonfinite_gradients_change_nothing():
    shapes = [(3,), (2, 2), (4,), (5,)]
    for options in ({}, {"gradient_accumulation_steps": 2}):
        adam = o.Adam(0.1, skip_nonfinite=True, **options)
        variables = _variables(*shapes)
        grads = _grads(variables)
        adam.apply(grads, variables)
        held = [v.numpy() for v in (*variables, *adam.variables[1:])]
        adam.apply([grads[0] * np.nan, *grads[1:]], variables)
        if not options:
            for a, b in zip(held, (*variables, *adam.variables[1:]), strict=True):
                np.testing.assert_array_equal(a, b.numpy())
        assert int(adam.variables[0].numpy()) == 1
        assert all(np.all(np.isfinite(v.numpy())) for v in adam.variables[1:])
        assert all(np.all(np.isfinite(v.numpy())) for v in variables)


def test_averages_are_read_without_touching_the_weights():
    sgd = o.SGD(0.1, use_ema=True, ema_momentum=0.5)
    with pytest.raises(ModelError, match="use_ema=True and train at least one step"):
        sgd.averages()
    changes, _, before = _moved(sgd, steps=3)
    for average, change, start in zip(sgd.averages(), changes, before, strict=True):
        step = change / 3
        expected = start + 0.25 * step + 0.25 * 2 * step + 0.5 * 3 * step
        np.testing.assert_allclose(average.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_small_weights_share_a_slab_and_large_ones_do_not():
    shapes = [(3,), (2, 2), (4,), (5,), (200, 50)]
    adam = o.Adam(0.1)
    variables = _variables(*shapes)
    adam.build(variables)
    views = [v for v in adam.variables if type(v).__name__ == "SlabSlice"]
    assert len(views) == 8
    # A missing gradient leaves its weight and state alone, as in Keras.
    grads = _grads(variables)
    theirs, others = keras.optimizers.Adam(0.1), _variables(*shapes)
    theirs.build(others)
    for optimizer, weights in ((adam, variables), (theirs, others)):
        optimizer.apply(grads, weights)
        with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
            optimizer.apply([None, *grads[1:]], weights)
    for a, b in zip(
        (*variables, *adam.variables), (*others, *theirs.variables), strict=True
    ):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-5, atol=1e-6)


def test_state_can_be_read_written_and_checkpointed_through_the_slab(tmp_path):
    shapes = [(3,), (2, 2), (4,), (5,)]
    adam, variables = o.Adam(0.1), _variables(*shapes)
    adam.apply(_grads(variables), variables)
    saved = [v.numpy() for v in adam.variables]
    path = tf.train.Checkpoint(optimizer=adam).save(str(tmp_path / "state"))
    adam.apply(_grads(variables, seed=3), variables)
    for variable, value in zip(adam.variables, saved, strict=True):
        variable.assign(value)
    for variable, value in zip(adam.variables, saved, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    piece = adam.variables[2]
    assert piece.path in repr(piece)
    with pytest.raises(ConfigError, match=r"shape of the value must be \(3,\)"):
        piece.assign(np.zeros(4))
    adam.apply(_grads(variables, seed=3), variables)
    tf.train.Checkpoint(optimizer=adam).restore(path)
    for variable, value in zip(adam.variables, saved, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("name", ["Adam", "Adan", "SOAP", "SGD"])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_a_checkpoint_restored_before_the_first_step_is_what_it_starts_from(
    name, graph, tmp_path
):
    shapes = [(3,), (2, 2), (4,), (5,), (100, 100)]  # a slab, and one on its own
    options = {"momentum": 0.9} if name == "SGD" else {}
    make = getattr(o, name)
    first, variables = make(0.1, **options), _variables(*shapes)
    for seed in range(3):
        first.apply(_grads(variables, seed=seed), variables)
    held = tf.train.Checkpoint(optimizer=first, weights=variables)
    path = held.save(str(tmp_path / "state"))
    assert not [k for k, _ in tf.train.list_variables(path) if "_newest" in k]
    second, others = make(0.1, **options), _variables(*shapes, seed=9)
    status = tf.train.Checkpoint(optimizer=second, weights=others).restore(path)
    grads = _grads(variables, seed=5)
    step = lambda: second.apply(grads, others)  # noqa: E731
    (tf.function(step) if graph else step)()
    first.apply(grads, variables)
    status.assert_consumed()
    for a, b in zip(
        (*variables, *first.variables), (*others, *second.variables), strict=True
    ):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)


def test_state_can_be_created_inside_a_graph():
    variables = _variables((3,), (2, 2), (4,), (5,), (100, 100))
    again = _variables((3,), (2, 2), (4,), (5,), (100, 100))
    inside, outside = o.Adam(0.1), o.Adam(0.1)
    grads = _grads(variables)
    step = tf.function(lambda: inside.apply(grads, variables))
    for _ in range(3):
        step()
        outside.apply(grads, again)
    for a, b in zip(variables, again, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_weights_of_keras_optimizers_can_be_loaded():
    shapes = [(3,), (2, 2), (4,), (5,), (100, 100)]
    variables = _variables(*shapes)
    theirs, ours = keras.optimizers.Adam(0.1), o.Adam(0.1)
    theirs.apply(_grads(variables), variables)
    ours.build(variables)
    ours.set_weights([v.numpy() for v in theirs.variables])
    for a, b in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "Adagrad"])
def test_sparse_gradients_equal_keras(name):
    def run(cls):
        table = keras.Variable(np.ones((3000, 4), "float32"))
        optimizer = cls(0.1, weight_decay=0.01)
        rows = tf.IndexedSlices(tf.ones((3, 4)), tf.constant([5, 9, 7]), (3000, 4))
        for _ in range(3):
            optimizer.apply([rows], [table])
        return table.numpy()

    np.testing.assert_allclose(
        run(getattr(o, name)), run(getattr(keras.optimizers, name)), atol=1e-6
    )


def test_sparse_gradients_reach_every_other_rule_as_tensors():
    table = keras.Variable(np.ones((30, 4), "float32"))
    rows = tf.IndexedSlices(tf.ones((2, 4)), tf.constant([5, 9]), (30, 4))
    o.Adan(0.1).apply([rows], [table])
    np.testing.assert_allclose(table.numpy()[5], 0.9, atol=1e-6)
    np.testing.assert_array_equal(table.numpy()[0], 1.0)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes_are_kept(dtype):
    for optimizer in (o.Adam(0.1), o.SOAP(0.1), o.Adan(0.1)):
        v = keras.Variable(np.ones((3, 3)), dtype=dtype)
        optimizer.apply([keras.ops.ones((3, 3), dtype)], [v])
        assert v.dtype == dtype
        assert np.all(np.asarray(v.numpy(), "float64") < 1.0)


def test_loss_scale_optimizer_wraps_ours():
    inner = o.Adam(0.1)
    outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    v = keras.Variable([1.0, 1.0])
    outer.apply([tf.constant([8.0, -8.0])], [v])
    np.testing.assert_allclose(v.numpy(), [0.9, 1.1], atol=1e-5)


def test_gradients_as_values_are_assigned():
    for options in ({}, {"gradient_accumulation_steps": 2}):
        scale, w = keras.Variable([2.0]), keras.Variable([1.0])
        scale.overwrite_with_gradient = True
        sgd = o.SGD(0.1, **options)
        for value in (5.0, 3.0):
            sgd.apply([tf.constant([value]), tf.constant([1.0])], [scale, w])
        expected = 5.0 if options else 3.0
        np.testing.assert_array_equal(scale.numpy(), [expected])


def test_constraints_hold_after_a_step():
    v = keras.Variable([1.0, 1.0])
    v.constraint = keras.constraints.NonNeg()
    o.Adam(5.0).apply([tf.constant([1.0, -1.0])], [v])
    np.testing.assert_allclose(v.numpy(), [0.0, 6.0], atol=1e-4)


def test_lookahead_by_hand():
    weight, seen = keras.Variable([0.0]), []
    lookahead = o.Lookahead(o.SGD(1.0), period=2, alpha=0.5)
    for _ in range(5):
        lookahead.apply([tf.constant([-1.0])], [weight])
        seen.append(float(weight[0]))
    # Two steps to 2, half of the way back to 1; two steps to 3, half of the way to 2.
    assert seen == [1.0, 1.0, 2.0, 2.0, 3.0]


def test_lbfgs_limits_its_step():
    v = keras.Variable([10.0, 0.0])
    lbfgs = o.LBFGS(max_step=0.5)
    for _ in range(3):
        before = v.numpy()
        lbfgs.apply([v.value * 100.0], [v])
        assert np.linalg.norm(v.numpy() - before) <= 0.5 + 1e-5


def test_adam8bit_stores_two_bytes_and_follows_adam():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(100, 100)).astype("float32")
    target = rng.normal(size=(100, 100)).astype("float32")
    found = []
    for optimizer in (o.Adam8bit(0.02), o.Adam(0.02)):
        v = keras.Variable(start)
        for k in range(150):
            noise = np.random.default_rng(k).normal(size=v.shape).astype("float32")
            optimizer.apply([v.value - target + 0.3 * noise], [v])
        found.append(float(np.mean((v.numpy() - target) ** 2)))
        if isinstance(optimizer, o.Adam8bit):
            held = sum(v.numpy().nbytes for v in optimizer.variables[2:])
            assert held / 10_000 <= 2.1
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_adam8bit_packs_within_a_level():
    from keras_dlopt.optimizers.adam8bit import BLOCK, dither_at, pack, unpack

    x = np.random.default_rng(1).normal(size=(6, BLOCK)).astype("float32")
    x[3] = 0.0
    for power, levels in ((2, 127), (4, 255)):
        values = np.abs(x) if power == 4 else x
        codes, scale = pack(values, power=power, levels=levels, dither=dither_at(5, 6))
        again = unpack(codes, scale, power=power, levels=levels).numpy()
        share = np.abs(values) / np.maximum(np.abs(values).max(1, keepdims=True), 1e-9)
        root = levels * share ** (1 / power)
        level = (root + 1) ** power - np.maximum(root - 1, 0) ** power
        level = level * scale.numpy() / levels**power
        assert np.all(np.abs(again - values) <= level + 1e-6)
        assert np.abs(np.asarray(codes)).max() <= levels


def test_mean_rounding_error_of_8_bits_vanishes_over_time():
    from keras_dlopt.optimizers.adam8bit import BLOCK, dither_at, pack

    x = np.linspace(0.2, 1.0, BLOCK, dtype="float32")[None]
    sums = np.mean(
        [
            pack(x, power=2, levels=127, dither=dither_at(t, 1))[0].numpy()
            for t in range(200)
        ],
        axis=0,
    )
    np.testing.assert_allclose(sums, 127 * np.sqrt(x), atol=0.05)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: o.Adam(-0.1), "learning_rate must be a number, 0 or greater"),
        (lambda: o.Adam(beta_1=1.0), r"beta_1 must be a number in \[0, 1\)"),
        (
            lambda: o.AdamW(weight_decay=-1.0),
            "weight_decay must be a number, 0 or greater",
        ),
        (lambda: o.RMSprop(rho=1.5), r"rho must be a number in \[0, 1\)"),
        (lambda: o.Adagrad(epsilon=-1.0), "epsilon must be a number, 0 or greater"),
        (
            lambda: o.SGD(adaptive_clip=0.0),
            "adaptive_clip must be a positive number, or None",
        ),
        (lambda: o.SGD(multipliers=["w"]), r"must be \(selector, factor\) pairs"),
        (lambda: o.SGD(multipliers=[("w", 1.0)]), "must be a selector"),
        (lambda: o.SGD(multipliers=[(None, 1.0)]), "a pair without a selector"),
        (lambda: o.SGD(multipliers=[(named("w"), -1)]), "A factor in multipliers must"),
        (lambda: o.SGD(decay_on="kernel"), "decay_on must be a selector"),
        (lambda: o.RAdam(threshold=3.0), "threshold must be a number above 4"),
        (lambda: o.RAdam(beta_2=0.5), r"beta_2 must be a number in \(0.6, 1\)"),
        (lambda: o.SOAP(frequency=0), "frequency must be a whole number, 1 or greater"),
        (lambda: o.GradientDescent(batches=0), "batches must be a whole number"),
        (
            lambda: o.GradientDescent(batches=4, gradient_accumulation_steps=2),
            "accumulates over `batches` by itself",
        ),
        (lambda: o.LBFGS(cautious=True), "would bend"),
        (lambda: o.Lookahead("nothing of the kind"), "Could not|Unknown|not"),
        (lambda: o.Lookahead(3), "Lookahead wraps a Keras optimizer"),
        (
            lambda: o.Lookahead(o.SGD(), alpha=2.0),
            r"alpha must be a number in \(0, 1\]",
        ),
        (lambda: o.Lookahead(o.SGD(), clipnorm=1.0), "Lookahead takes no clipnorm"),
        (lambda: o.ScheduleFree(o.Prodigy()), "with a rule per weight"),
        (lambda: o.ScheduleFree(keras.optimizers.SGD()), "with a rule per weight"),
        (lambda: o.SAM(3), "SAM wraps a Keras model"),
        (
            lambda: o.SAM(keras.Sequential(), radius=0),
            "radius must be a positive number",
        ),
    ],
)
def test_bad_arguments_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("number", [np.float32, np.float64, np.array, float])
def test_numbers_of_numpy_are_numbers(number):
    adam = o.AdamW(
        number(0.5), weight_decay=number(0.25), beta_1=number(0.5), clipnorm=number(1.0)
    )
    config = adam.get_config()
    found = [config[k] for k in ("weight_decay", "beta_1", "clipnorm")]
    assert found == [0.25, 0.5, 1.0]
    assert {type(value) for value in found} == {float}
    assert float(adam.learning_rate.numpy()) == 0.5
    for wrong in (number(-1.0), number(np.nan), number(np.inf)):
        for name in ("weight_decay", "beta_1", "epsilon", "clipnorm"):
            with pytest.raises(ConfigError, match=f"{name} must be a number"):
                o.AdamW(**{name: wrong})
        with pytest.raises(ConfigError, match="learning_rate must be a number"):
            o.AdamW(wrong)


@pytest.mark.parametrize("whole", [np.int8, np.int64, np.uint16, int])
def test_whole_numbers_are_of_any_width(whole):
    soap = o.SOAP(frequency=whole(3), max_size=whole(64))
    assert soap.get_config()["frequency"] == 3
    assert type(soap.frequency) is int
    assert o.GradientDescent(batches=whole(4)).gradient_accumulation_steps == 4
    assert o.Lookahead(o.SGD(), period=whole(5)).period == 5


@pytest.mark.parametrize("wrong", [True, np.bool_(False), "3", 3.0, None])
def test_what_is_no_whole_number_is_refused_everywhere(wrong):
    for make in (
        lambda: o.SOAP(frequency=wrong),
        lambda: o.GradientDescent(batches=wrong),
        lambda: o.LBFGS(memory=wrong),
        lambda: o.Lookahead(o.SGD(), period=wrong),
        lambda: o.Adam8bit(min_size=wrong),
        lambda: o.AdEMAMix(warmup=wrong),
    ):
        with pytest.raises(ConfigError, match="must be a whole number"):
            make()
    if wrong is not None and not isinstance(wrong, float):
        for name in ("beta_1", "epsilon", "weight_decay", "clipvalue"):
            with pytest.raises(ConfigError, match=f"{name} must be a number"):
                o.AdamW(**{name: wrong})


def test_constructors_name_their_arguments_and_configs_follow():
    for cls in (o.AdamW, o.Adan, o.SOAP, o.LARS, o.GradientDescent, o.Prodigy):
        _, *given = inspect.signature(cls.__init__).parameters.values()
        assert [p.name for p in given[:-1]] == list(cls().get_config())
        assert given[-1].kind is inspect.Parameter.VAR_KEYWORD
    adam = o.AdamW(0.1, 0.2, 0.3, 0.4, 0.5, True)  # by position, as in Keras
    assert (adam.weight_decay, adam.beta_2, adam.amsgrad) == (0.2, 0.4, True)
    with pytest.raises(TypeError, match="too many positional arguments"):
        o.Adan(0.1, 0.9)
    with pytest.raises(ValueError, match="has no argument"):
        o.Adan(beta_4=0.9)


def test_a_class_may_write_its_own_constructor():
    class Half(o.Adam):
        def __init__(self, learning_rate=0.1, *, twice=0.5, **options):
            super().__init__(learning_rate, beta_1=twice / 2, **options)

    class Signs(o.Optimizer):
        def rule(self, gradient, weight, slots, lr, step):
            return lr * keras.ops.sign(gradient), slots

    assert Half(twice=0.8).beta_1 == 0.4
    v = keras.Variable([1.0, 2.0])
    Signs(0.5).apply([tf.constant([3.0, -4.0])], [v])
    np.testing.assert_array_equal(v.numpy(), [0.5, 2.5])


def test_misuse_is_refused():
    v, g = keras.Variable([1.0]), tf.constant([1.0])
    with pytest.raises(ModelError, match="must already be built"):
        o.SGD().apply([g])
    with pytest.raises(ConfigError, match="Received: 1 gradients for 2 variables"):
        o.SGD().apply([g], [v, v])
    with pytest.raises(ConfigError, match="No gradients provided"):
        o.SGD().apply([None], [v])
    sgd = o.SGD()
    sgd.apply([g], [v])
    sgd.apply([], [])
    with pytest.raises(ModelError, match="Unknown variable"):
        sgd.apply([g], [keras.Variable([1.0])])
    with pytest.raises(ModelError, match="before the optimizer is built"):
        sgd.exclude_from_weight_decay(var_names=["w"])
    with pytest.raises(ConfigError, match="matches none of the optimizer's weights"):
        o.SGD(decay_on=named("nowhere")).apply([g], [v])
    with pytest.raises(ModelError, match="train at least one step"):
        o.ScheduleFree(o.SGD()).averages()
    big = keras.Variable(np.zeros((1500, 1500), "float32"))
    with pytest.raises(ModelError, match="meant for small models"):
        o.LBFGS().build([big])
    lbfgs = o.LBFGS()
    two = _variables((2,), (3,))
    lbfgs.build(two)
    with pytest.raises(ModelError, match="a gradient for every weight"):
        lbfgs.apply([tf.ones(2)], two[:1])


def test_a_class_without_a_rule_says_so():
    class Empty(o.Optimizer):
        pass

    class Half(Empty):
        fusable = True

    v = keras.Variable([1.0])
    with pytest.raises(TypeError, match="must define `rule` or `update`"):
        Empty().apply([tf.ones(1)], [v])
    with pytest.raises(TypeError, match="must define `fused`"):
        Half().apply([tf.ones(1)], [v])
