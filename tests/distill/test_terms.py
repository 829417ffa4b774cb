"""Each term's loss against the paper's formula, written in NumPy."""

import keras
import numpy as np
import pytest
from scipy import special

from keras_dlopt import distill
from keras_dlopt.distill.term import Compared
from keras_dlopt.errors import ConfigError, DataError, ModelError


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def value(term, seen):
    return float(np.mean(keras.ops.convert_to_numpy(term(seen))))


def seen(student, *teachers, heads=None, **more):
    heads = heads or ("linear",) * (1 + len(teachers))
    return Compared(student, tuple(teachers), tuple(heads), **more)


def softened(z, heat):
    return special.softmax(z.astype("float64") / heat, axis=-1)


def divergence(p, q):
    return (p * (np.log(p) - np.log(q))).sum(-1)


def test_logits():
    a, b = draw(6, 5), draw(6, 5, seed=1)
    term = distill.LogitsDistillation(temperature=3.0)
    expected = 9 * divergence(softened(b, 3.0), softened(a, 3.0)).mean()
    assert value(term, seen(a, b)) == pytest.approx(expected, rel=1e-5)
    # Keras' own gives the divergence of logits for its default, the text.
    loss = keras.losses.KLDivergence()
    keras_own = keras.distillation.LogitsDistillation(temperature=3.0, loss=loss)
    own = float(keras_own.compute_loss(b, a))
    assert value(term, seen(a, b)) == pytest.approx(own, rel=1e-4)


def test_probabilities_are_seen_through():
    a, b = draw(6, 5), draw(6, 5, seed=1)
    term = distill.LogitsDistillation(temperature=3.0)
    logits = value(term, seen(a, b))
    p, q = (special.softmax(z, axis=-1) for z in (a, b))
    heads = ("softmax", "softmax")
    assert value(term, seen(p, q, heads=heads)) == pytest.approx(logits, rel=1e-4)
    mixed = value(term, seen(a, q, heads=("linear", "softmax")))
    assert mixed == pytest.approx(logits, rel=1e-4)


def test_one_output_is_the_class_and_its_opposite():
    a, b = draw(6, 1), draw(6, 1, seed=1)
    term = distill.LogitsDistillation(temperature=2.0)

    def two(z):
        p = special.expit(z.astype("float64") / 2.0)
        return np.concatenate([p, 1 - p], axis=-1)

    expected = 4 * divergence(two(b), two(a)).mean()
    assert value(term, seen(a, b)) == pytest.approx(expected, rel=1e-5)
    p, q = special.expit(a), special.expit(b)
    heads = ("sigmoid", "sigmoid")
    assert value(term, seen(p, q, heads=heads)) == pytest.approx(expected, rel=1e-4)


def test_several_teachers_have_the_mean_of_their_probabilities():
    a, b, c = draw(6, 5), draw(6, 5, seed=1), draw(6, 5, seed=2)
    term = distill.LogitsDistillation(temperature=3.0)
    mean = (softened(b, 3.0) + softened(c, 3.0)) / 2
    expected = 9 * divergence(mean, softened(a, 3.0)).mean()
    assert value(term, seen(a, b, c)) == pytest.approx(expected, rel=1e-5)


def dkd(a, b, labels, heat, alpha, beta):
    p, q = softened(b, heat), softened(a, heat)
    rows = np.arange(len(labels))
    both = [np.stack([x[rows, labels], 1 - x[rows, labels]], -1) for x in (p, q)]
    others = []
    for x in (p, q):
        rest = np.stack([np.delete(x[i], n) for i, n in enumerate(labels)])
        others.append(rest / rest.sum(-1, keepdims=True))
    first, second = divergence(*both), divergence(*others)
    return heat**2 * (alpha * first + beta * second).mean()


@pytest.mark.parametrize("form", ["numbers", "column", "rows"])
def test_decoupled(form):
    a, b, labels = draw(6, 5), draw(6, 5, seed=1), np.array([0, 4, 2, 2, 1, 3])
    term = distill.DecoupledDistillation(temperature=2.0, alpha=0.7, beta=3.0)
    given = {"numbers": labels, "column": labels[:, None], "rows": np.eye(5)[labels]}
    got = value(term, seen(a, b, labels=given[form]))
    assert got == pytest.approx(dkd(a, b, labels, 2.0, 0.7, 3.0), rel=1e-4)
    # alpha = 1 and beta = 1 - the teacher's confidence give the classical loss, eq. 6.
    one, other = a[:1], b[:1]
    rest = 1 - softened(other, 2.0)[0, 0]
    term = distill.DecoupledDistillation(temperature=2.0, beta=float(rest))
    plain = distill.LogitsDistillation(temperature=2.0)
    got = value(term, seen(one, other, labels=labels[:1]))
    assert got == pytest.approx(value(plain, seen(one, other)), rel=1e-4)


def test_decoupled_needs_labels():
    with pytest.raises(DataError, match=r"given none. Pass y, or use LogitsDistill"):
        distill.DecoupledDistillation()(seen(draw(2, 3), draw(2, 3)))


def test_dist():
    a, b = draw(6, 5), draw(6, 5, seed=1)
    p, q = softened(a, 2.0), softened(b, 2.0)
    rows = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(p, q, strict=True)])
    columns = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(p.T, q.T, strict=True)])
    expected = 4 * (1.5 * (1 - rows) + 0.5 * (1 - columns))
    term = distill.DIST(temperature=2.0, beta=1.5, gamma=0.5)
    assert value(term, seen(a, b)) == pytest.approx(expected, rel=1e-4)


def test_dist_of_equal_logits_has_a_gradient():
    tf = pytest.importorskip("tensorflow")
    x = tf.Variable(np.zeros((3, 4), "float32"))
    with tf.GradientTape() as tape:
        loss = distill.DIST()(seen(x * 1.0, draw(3, 4)))
    assert float(loss) == 2  # no correlation at all
    assert float(np.abs(tape.gradient(loss, x)).max()) < 1


def test_outputs():
    a, b, c = draw(6, 4, 3), draw(6, 4, 3, seed=1), draw(6, 4, 3, seed=2)
    term = distill.OutputDistillation()
    expected = ((a - b) ** 2).mean() / 2 + ((a - c) ** 2).mean() / 2
    assert value(term, seen(a, b, c)) == pytest.approx(expected, rel=1e-5)
    far = distill.OutputDistillation("huber")
    assert 0 < value(far, seen(a, b)) < expected


def inside(a, b, **more):
    outputs = draw(len(a), 2)
    return seen(
        outputs,
        outputs,
        student_features={"s": a},
        teacher_features=({"t": b},),
        **more,
    )


def test_features():
    a, b = draw(3, 4, 4, 2), draw(3, 4, 4, 5, seed=1)
    kernel = draw(2, 5, seed=2)
    term = distill.FeatureDistillation("s", "t")
    layer = term.projection((None, 4, 4, 2), (None, 4, 4, 5))
    layer.build((None, 4, 4, 2))
    layer.set_weights([kernel])
    got = value(term, inside(a, b, projected=layer))
    assert got == pytest.approx((((a @ kernel) - b) ** 2).mean(), rel=1e-5)
    assert term.projection((None, 4, 4, 5), (None, 8, 8, 5)) is None


def test_features_of_several_sizes():
    # Halving by antialiased bilinear interpolation keeps a constant image.
    a, b = np.full((3, 4, 4, 2), 1.5, "float32"), np.full((3, 8, 8, 2), 1.0, "float32")
    term = distill.FeatureDistillation("s", "t")
    assert value(term, inside(a, b)) == pytest.approx(0.25, rel=1e-5)
    assert value(term, inside(a[:, 0], b[:, 0])) == pytest.approx(0.25, rel=1e-5)


def test_attention():
    a, b = draw(3, 4, 4, 2), draw(3, 4, 4, 5, seed=1)

    def maps(x):
        flat = (x.astype("float64") ** 2).mean(-1).reshape(3, -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    term = distill.AttentionTransfer("s", "t")
    expected = ((maps(a) - maps(b)) ** 2).mean()
    assert value(term, inside(a, b)) == pytest.approx(expected, rel=1e-4)


def relations(x):
    x = x.astype("float64")
    apart = np.linalg.norm(x[:, None] - x[None], axis=-1)
    apart /= apart[apart > 0].mean()
    ways = x[None, :, :] - x[:, None, :]
    norms = np.linalg.norm(ways, axis=-1, keepdims=True)
    ways = np.divide(ways, norms, out=np.zeros_like(ways), where=norms > 0)
    return apart, np.einsum("ijd,ikd->ijk", ways, ways)


def huber(a, b):
    gap = np.abs(a - b)
    return np.where(gap < 1, gap**2 / 2, gap - 0.5).mean()


def test_relations():
    a, b = draw(6, 3), draw(6, 7, seed=1)
    (d, c), (e, f) = relations(a), relations(b)
    term = distill.RelationalDistillation("s", "t", distance=2.0, angle=3.0)
    expected = 2 * huber(d, e) + 3 * huber(c, f)
    assert value(term, inside(a, b)) == pytest.approx(expected, rel=1e-4)


def test_relations_of_equal_examples_have_a_gradient():
    tf = pytest.importorskip("tensorflow")
    x = tf.Variable(np.ones((3, 4), "float32"))
    term = distill.RelationalDistillation("s", "t")
    with tf.GradientTape() as tape:
        loss = term(inside(x * 1.0, draw(3, 4)))
    assert np.isfinite(tape.gradient(loss, x)).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: distill.LogitsDistillation(temperature=0), "temperature must be a"),
        (lambda: distill.LogitsDistillation(weight=-1), "weight must be a positive"),
        (lambda: distill.DIST(gamma=0), "gamma must be a positive number"),
        (lambda: distill.DecoupledDistillation(alpha=0), "alpha must be a positive"),
        (lambda: distill.OutputDistillation("mse2"), "loss must be the name of one"),
        (lambda: distill.FeatureDistillation("", "t"), "student must be a text"),
        (
            lambda: distill.FeatureDistillation("s", "t", projector="deep"),
            "projector must be one of 'auto', 'linear', None",
        ),
        (lambda: distill.RelationalDistillation("s", "t", angle=-1), "angle must be"),
        (lambda: distill.MeanTeacher(1.0), "decay must be"),
    ],
)
def test_numbers_are_checked(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_shapes_that_do_not_fit():
    term = distill.LogitsDistillation()
    with pytest.raises(ConfigError, match="outputs of one shape. Received: .*Feature"):
        term(seen(draw(2, 3), draw(2, 4)))
    feature = distill.FeatureDistillation("s", "t")
    with pytest.raises(ConfigError, match="as many axes on both sides"):
        feature.projection((None, 4), (None, 4, 4))
    plain = distill.FeatureDistillation("s", "t", projector=None)
    with pytest.raises(ConfigError, match=r"Use projector='linear'\."):
        plain.projection((None, 4), (None, 5))
    with pytest.raises(ConfigError, match="before pooling or flattening"):
        distill.AttentionTransfer("s", "t").projection((None, 4), (None, 4))
    open_ended = keras.KerasTensor((None, None, 4))
    with pytest.raises(ModelError, match="whose size is open"):
        distill.RelationalDistillation("s", "t")(inside_symbolic(open_ended))


def inside_symbolic(x):
    return Compared(
        x,
        (x,),
        ("linear",) * 2,
        student_features={"s": x},
        teacher_features=({"t": x},),
    )


def test_several_outputs():
    a, b = {"x": draw(2, 3), "y": draw(2, 4)}, {"x": draw(2, 3), "y": draw(2, 4)}
    heads = ({"x": "linear", "y": "linear"},) * 2
    term = distill.LogitsDistillation(output="y")
    assert value(term, seen(a, b, heads=heads)) == 0
    with pytest.raises(ConfigError, match="2 outputs, and .* Give output="):
        distill.LogitsDistillation()(seen(a, b, heads=heads))
    with pytest.raises(ConfigError, match=r"no output 'z'. Outputs are: \['x', 'y'\]"):
        distill.LogitsDistillation(output="z")(seen(a, b, heads=heads))


def test_a_term_without_a_loss():
    with pytest.raises(TypeError, match="must define __call__"):
        distill.Term()(seen(draw(2, 3), draw(2, 3)))
