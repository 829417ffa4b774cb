"""Terms against forgetting, against NumPy in float64."""

import types

import keras
import numpy as np
import pytest

from keras_dlopt import online
from keras_dlopt.online.terms import LearningTerm, MixedRows, StartedTerm, logits

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = np.arange(12) % 3
FLAGS = np.array([0] * 6 + [1] * 6, "float32")


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def net(width=None, head=None):
    body = [L.Dense(width, activation="tanh")] if width else []
    model = keras.Sequential([keras.Input((4,)), *body, L.Dense(3, activation=head)])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return model


def host(model, classes=3, head="linear", seen=(0, 1, 2)):
    """What a term sees of a learner."""
    return types.SimpleNamespace(
        model=model,
        classes=classes,
        labels_seen=set(seen),
        logits=lambda outputs: logits(outputs, head),
    )


def test_dark_experience_is_the_mean_over_kept_rows():
    z, kept = RNG.normal(size=(2, 12, 3)).astype("float32")
    term = online.DarkExperience(0.3).start(None)
    found = float(term.loss(MixedRows(X, z, kept, FLAGS)))
    assert found == pytest.approx(0.3 * ((z[6:] - kept[6:]) ** 2).mean(), rel=1e-6)
    assert float(term.loss(MixedRows(X, z, kept, 0 * FLAGS))) == 0.0


@pytest.mark.parametrize("head", ["softmax", "sigmoid", "linear"])
def test_heads_are_seen_through(head):
    z = RNG.normal(size=(5, 4))
    given = {"softmax": softmax(z), "sigmoid": 1 / (1 + np.exp(-z)), "linear": z}[head]
    found = np.array(logits(given.astype("float32"), head))
    wanted = z - np.log(np.exp(z).sum(-1, keepdims=True)) if head == "softmax" else z
    assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("labels", [None, Y])
def test_fisher_of_a_softmax_regression_is_known(labels):
    model = net()
    w, b = (v.numpy().astype("float64") for v in model.trainable_variables)
    p = softmax(X.astype("float64") @ w + b)
    # Without labels the expectation over c of (p - e_c)^2, class by class.
    squares = p * (1 - p) if labels is None else (np.eye(3)[labels] - p) ** 2
    kernel, bias = online.fisher_diagonal(model, X, labels)
    assert kernel == pytest.approx(
        (X.astype("float64") ** 2).T @ squares / 12, rel=1e-4
    )
    assert bias == pytest.approx(squares.mean(0), rel=1e-4)


def test_fisher_of_a_hidden_layer_is_that_of_finite_differences():
    model = net(width=2)
    found = online.fisher_diagonal(model, X[:3], Y[:3])
    values = [v.numpy().astype("float64") for v in model.trainable_variables]

    def likely(values, x, y):
        w, b, v, c = values
        z = np.tanh(x.astype("float64") @ w + b) @ v + c
        return np.log(softmax(z))[y]

    for number, fisher in enumerate(found):
        for place in np.ndindex(fisher.shape):
            wanted = 0.0
            for x, y in zip(X[:3], Y[:3], strict=True):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = [v.copy() for v in values]
                    moved[number][place] += step
                    ends.append(likely(moved, x, y))
                wanted += ((ends[0] - ends[1]) / 2e-5) ** 2 / 3
            assert fisher[place] == pytest.approx(wanted, rel=1e-3, abs=1e-7)


def test_fisher_of_one_logit_is_that_of_two_classes():
    model = keras.Sequential([keras.Input((4,)), L.Dense(1)])
    w, b = (v.numpy().astype("float64") for v in model.trainable_variables)
    p = 1 / (1 + np.exp(-(X.astype("float64") @ w + b)))
    kernel, bias = online.fisher_diagonal(model, X)
    assert kernel == pytest.approx(
        (X.astype("float64") ** 2).T @ (p * (1 - p)) / 12, rel=1e-4
    )
    assert bias == pytest.approx((p * (1 - p)).mean(0), rel=1e-4)


def test_consolidation_is_a_spring_to_each_anchor():
    model = net()
    term = online.EWC(4.0, decay=0.5, labels="data").start(host(model))
    rows = MixedRows(X, None, None, FLAGS)
    assert float(term.loss(rows)) == 0.0
    term.anchor(X, Y)
    first = online.fisher_diagonal(model, X, Y)
    assert float(term.loss(rows)) == 0.0
    for variable in model.trainable_variables:
        variable.assign(variable + 0.5)
    wanted = 0.5 * 4.0 * sum(0.25 * f.astype("float64").sum() for f in first)
    assert float(term.loss(rows)) == pytest.approx(wanted, rel=1e-5)
    second = online.fisher_diagonal(model, X[:6], Y[:6])
    term.anchor(X[:6], Y[:6])
    for variable in model.trainable_variables:
        variable.assign(variable - 0.1)
    both = [0.5 * a + b for a, b in zip(first, second, strict=True)]
    wanted = 0.5 * 4.0 * sum(0.01 * f.astype("float64").sum() for f in both)
    assert float(term.loss(rows)) == pytest.approx(wanted, rel=1e-4)
    term.release()
    assert float(term.loss(rows)) == 0.0


def test_a_snapshot_teaches_the_classes_that_it_knew():
    model = net()
    before = model(X).numpy().astype("float64")
    term = online.SnapshotDistillation(0.7, temperature=2.0).start(
        host(model, seen=(0, 2))
    )
    now = RNG.normal(size=(12, 3)).astype("float32")
    rows = MixedRows(X, now, None, FLAGS)
    assert float(term.loss(rows)) == 0.0
    term.anchor(X, Y)
    for variable in model.trainable_variables:
        variable.assign(variable * 0.0)
    p, q = (softmax(z[:, [0, 2]] / 2.0) for z in (before, now.astype("float64")))
    wanted = 0.7 * 4.0 * (p * np.log(p / q)).sum(-1).mean()
    assert float(term.loss(rows)) == pytest.approx(wanted, rel=1e-5)
    term.release()
    assert float(term.loss(rows)) == 0.0


def test_configs_and_refusals():
    for term in (
        online.DarkExperience(0.1),
        online.EWC(3.0, labels="data"),
        online.SnapshotDistillation(temperature=1.0),
        online.Replay(8, steps=2, weight=0.5),
    ):
        assert type(term).from_config(term.get_config()) == term
    with pytest.raises(TypeError, match="LearningTerm must define start"):
        LearningTerm().start(None)
    with pytest.raises(TypeError, match="StartedTerm must define loss"):
        StartedTerm().loss(None)
    with pytest.raises(ValueError, match="labels must be 'data' or 'model'"):
        online.EWC(labels="mine")
    with pytest.raises(ValueError, match="augment must be a Keras layer, such as"):
        online.Replay(augment="shift")
