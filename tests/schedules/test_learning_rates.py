"""Learning-rate schedules against float64 twins, on the host and in the graph."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dlopt import schedules as S
from keras_dlopt.errors import ConfigError
from reference import schedules as twin

STEPS = [*range(0, 45), 99, 100, 101, 250, 1000, 99_999]

PAIRS = {
    "warmup": (
        S.Warmup(S.OneCycle(0.2, steps=30), steps=10, start=0.01),
        lambda t: twin.warmup(
            t,
            after=lambda u: twin.one_cycle(u, peak=0.2, steps=30),
            steps=10,
            start=0.01,
        ),
    ),
    "warmup of a Keras schedule": (
        S.Warmup(keras.optimizers.schedules.ExponentialDecay(0.2, 10, 0.5), steps=5),
        lambda t: twin.warmup(t, after=lambda u: 0.2 * 0.5 ** (u / 10), steps=5),
    ),
    **{
        f"one-cycle {shape}": (
            S.OneCycle(0.3, steps=40, warmup=0.25, shape=shape),
            lambda t, shape=shape: twin.one_cycle(
                t, peak=0.3, steps=40, warmup=0.25, shape=shape
            ),
        )
        for shape in ("cosine", "linear", "sqrt")
    },
    **{
        f"warm-up stable decay {shape}": (
            S.WarmupStableDecay(
                0.3, steps=40, warmup=0.1, decay=0.25, shape=shape, final=0.01
            ),
            lambda t, shape=shape: twin.warmup_stable_decay(
                t, peak=0.3, steps=40, warmup=0.1, decay=0.25, shape=shape, final=0.01
            ),
        )
        for shape in ("cosine", "linear", "sqrt")
    },
    "power": (
        S.PowerCooldown(0.3, steps=200, knee=8, power=0.51, cooldown=0.2),
        lambda t: twin.power_cooldown(
            t, peak=0.3, steps=200, knee=8, power=0.51, cooldown=0.2
        ),
    ),
    **{
        f"cyclical {mode}": (
            S.Cyclical(0.1, 0.7, half_cycle=6, mode=mode, gamma=0.99),
            lambda t, mode=mode: twin.cyclical(
                t, low=0.1, high=0.7, half_cycle=6, mode=mode, gamma=0.99
            ),
        )
        for mode in ("triangular", "triangular2", "exp_range")
    },
    **{
        f"restarts growth {growth}": (
            S.CosineRestarts(0.3, first=7, growth=growth, decay=0.9, final=0.01),
            lambda t, growth=growth: twin.cosine_restarts(
                t, peak=0.3, first=7, growth=growth, decay=0.9, final=0.01
            ),
        )
        for growth in (1, 1.5, 2)
    },
    "join": (
        S.Join([0.1, S.OneCycle(0.2, steps=10), 0.01], boundaries=[5, 20]),
        lambda t: twin.join(
            t,
            pieces=[
                lambda _: 0.1,
                lambda u: twin.one_cycle(u, peak=0.2, steps=10),
                lambda _: 0.01,
            ],
            boundaries=[5, 20],
        ),
    ),
    "join without restart": (
        S.Join([0.1, S.OneCycle(0.2, steps=50)], boundaries=[5], restart=False),
        lambda t: twin.join(
            t,
            pieces=[lambda _: 0.1, lambda u: twin.one_cycle(u, peak=0.2, steps=50)],
            boundaries=[5],
            restart=False,
        ),
    ),
    "scaled": (
        S.Scaled(S.OneCycle(0.2, steps=10), factor=0.3),
        lambda t: 0.3 * twin.one_cycle(t, peak=0.2, steps=10),
    ),
}


@pytest.fixture(params=PAIRS, ids=PAIRS)
def pair(request):
    return PAIRS[request.param]


def test_host_values_are_the_twins(pair):
    schedule, reference = pair
    ours = [schedule.value(t) for t in STEPS]
    # A nested Keras schedule computes in float32; all else is float64.
    foreign = "ExponentialDecay" in json.dumps(schedule.get_config())
    rtol = 1e-5 if foreign else 1e-12
    np.testing.assert_allclose(
        ours, [reference(t) for t in STEPS], rtol=rtol, atol=1e-14
    )


def test_graph_values_are_the_twins(pair):
    schedule, reference = pair
    traced = tf.function(lambda step: tf.convert_to_tensor(schedule(step)))
    ours = [float(traced(tf.constant(t, tf.int64))) for t in STEPS]
    # float32: cos and pow of a step of up to 1e5 are good to about 1e-6 of the peak.
    np.testing.assert_allclose(
        ours, [reference(t) for t in STEPS], rtol=2e-5, atol=2e-6
    )


def test_json_round_trip(pair):
    schedule, _ = pair
    text = json.dumps(keras.saving.serialize_keras_object(schedule))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(again) is type(schedule)
    assert [again.value(t) for t in STEPS] == [schedule.value(t) for t in STEPS]


def test_any_optimizer_takes_it():
    for make in (keras.optimizers.SGD, keras.optimizers.AdamW):
        optimizer = make(S.Warmup(0.1, steps=4))
        assert float(optimizer.learning_rate) == pytest.approx(0.025)


@settings(max_examples=30, deadline=None)
@given(
    first=st.integers(1, 1000),
    growth=st.sampled_from([1, 1.1, 1.5, 2, 3]),
    t=st.integers(0, 10**6),
)
def test_restarts_count_their_descents_exactly(first, growth, t):
    schedule = S.CosineRestarts(1.0, first=first, growth=growth, decay=0.9)
    expected = twin.cosine_restarts(t, peak=1.0, first=first, growth=growth, decay=0.9)
    assert schedule.value(t) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_momentum_moves_against_the_rate():
    cycle = S.OneCycle(0.1, steps=40, low_momentum=0.8, high_momentum=0.9)
    for t in STEPS:
        expected = twin.one_cycle_momentum(t, steps=40, low=0.8, high=0.9)
        assert cycle.momentum(t) == pytest.approx(expected, rel=1e-12)


def test_scaled_takes_its_factor_from_a_variable_while_bound():
    schedule = S.Scaled(0.2, factor=0.5)
    variable = keras.Variable(0.25)
    schedule.bind(variable)
    assert schedule.value(0) == pytest.approx(0.05)
    assert float(schedule(0)) == pytest.approx(0.05)
    variable.assign(2.0)
    schedule.bind(None)
    variable.assign(9.0)
    assert schedule.factor == 2.0


def test_plot_draws_the_values():
    figure = S.plot(S.OneCycle(0.1, steps=50), 50)
    x, y = figure.axes[0].lines[0].get_data()
    assert list(x) == list(range(51))
    assert y[20] == S.OneCycle(0.1, steps=50).value(20)
    assert figure.axes[0].get_xlabel() == "training step"


def test_plot_of_a_long_schedule_has_few_points():
    figure = S.plot(
        keras.optimizers.schedules.CosineDecay(0.1, 10**6), 10**4, points=50
    )
    assert len(figure.axes[0].lines[0].get_xdata()) == 51


BAD = [
    (
        lambda: S.Constant(-0.1),
        r"rate must be a number, 0 or greater\. Received: -0\.1",
    ),
    (lambda: S.Constant(float("nan")), r"Received: nan"),
    (lambda: S.Constant("fast"), r"Received: 'fast'"),
    (
        lambda: S.Warmup(0.1, steps=0),
        r"steps must be a whole number, 1 or greater.*epochs",
    ),
    (lambda: S.Warmup(0.1, steps=2.5), r"Received: 2\.5"),
    (
        lambda: S.Warmup("adam", steps=2),
        r"A schedule must be an instance of keras.*Received: 'adam'",
    ),
    (
        lambda: S.OneCycle(0.1, steps=5, warmup=1.0),
        r"warmup must be a number in \(0, 1\)",
    ),
    (
        lambda: S.OneCycle(0.1, steps=5, final_divisor=0.5),
        r"must be a number, 1 or greater",
    ),
    (lambda: S.OneCycle(0.1, steps=5, shape="step"), r"shape must be one of"),
    (
        lambda: S.WarmupStableDecay(0.1, steps=5, warmup=0.6, decay=0.6),
        r"their sum must be at most 1\. Received: warmup=0\.6, decay=0\.6",
    ),
    (lambda: S.Cyclical(0.2, 0.1, half_cycle=3), r"low <= high.*low=0\.2, high=0\.1"),
    (lambda: S.Cyclical(0.1, 0.2, half_cycle=3, mode="round"), r"mode must be one of"),
    (
        lambda: S.CosineRestarts(0.1, first=3, growth=0.5),
        r"growth must be a number, 1 or greater",
    ),
    (lambda: S.Join([0.1], boundaries=[3]), r"one boundary between every two"),
    (lambda: S.Join([0.1, 0.2, 0.3], boundaries=[3, 3]), r"boundaries must rise"),
    (lambda: S.Scaled(0.1, factor=0.0), r"factor must be a positive number"),
    (lambda: S.plot(0.1, 0), r"steps must be a whole number"),
]


@pytest.mark.parametrize(("make", "text"), BAD)
def test_bad_arguments_are_named(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_schedules_inside_schedules_load_from_files_of_before():
    inner, theirs = (
        S.OneCycle(0.1, steps=5),
        keras.optimizers.schedules.CosineDecay(1, 9),
    )
    for schedule in (inner, theirs):
        form = keras.saving.serialize_keras_object(schedule)
        for made in (
            S.Warmup.from_config({"schedule": form, "steps": 2, "start": 0.0}),
            S.Scaled.from_config({"schedule": form, "factor": 1.0}),
            S.Join.from_config(
                {"schedules": [form], "boundaries": [], "restart": True}
            ),
        ):
            assert type(made).from_config(made.get_config()) == made
            assert float(made(3)) > 0
    assert S.Warmup(inner, steps=2) == S.Warmup(S.OneCycle(0.1, steps=5), steps=2)


def test_a_schedule_may_be_a_call_alone():
    class Half(S.Schedule):
        def __call__(self, step):
            return step * 0.5

    class Nothing(S.Schedule):
        pass

    assert Half().value(3) == 1.5
    with pytest.raises(TypeError, match="Nothing must define `formula`"):
        Nothing().value(3)
