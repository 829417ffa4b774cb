"""Any legal model goes all the way, and computes the same at every stop."""

import warnings

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.graph.trace import trace
from keras_dlopt.int8.placement import place
from support.generated import drawn

RECIPES = {
    "prune": lambda model, x: [(dlopt.named("kernel"), dlopt.Prune(0.5))],
    "quantize": lambda model, x: [(dlopt.named("kernel"), dlopt.FakeQuant(bits=8))],
    "both": lambda model, x: [
        (dlopt.named("kernel"), dlopt.Prune(0.5) >> dlopt.FakeQuant(bits=4))
    ],
    "cluster": lambda model, x: [(dlopt.named("kernel"), dlopt.Cluster(4))],
    "int8": lambda model, x: list(dlopt.int8_recipe(model, example=x).entries),
}


def flat(outputs):
    return [
        np.asarray(keras.ops.convert_to_numpy(y)) for y in keras.tree.flatten(outputs)
    ]


def assert_close(a, b, tolerance):
    for one, two in zip(flat(a), flat(b), strict=True):
        assert np.isfinite(one).all()
        largest = max(float(np.abs(one).max(initial=0)), 1.0)
        np.testing.assert_allclose(one, two, rtol=0, atol=tolerance * largest)


def train(model, x):
    """Two steps, as `fit` does them."""
    y = [np.zeros_like(part) for part in flat(model(x))]
    model.compile(keras.optimizers.SGD(1e-3, clipnorm=1.0), "mse", run_eagerly=True)
    for step in range(2):
        model.update_transforms(step)
        model.train_on_batch(x, y if len(y) > 1 else y[0])
    model.check_acted()


def go_through(made, name, folder, exports):
    model, x = made.model, made.x
    small = dlopt.transform(model, dlopt.Recipe(RECIPES[name](model, x)))
    train(small, x)
    expected = small(x)
    plain = dlopt.finalize(small)
    if name != "int8":
        assert_close(expected, plain(x), 1e-5)
    small.save(folder / "small.keras")
    assert_close(expected, keras.models.load_model(folder / "small.keras")(x), 0)
    dlopt.save_compressed(plain, folder / "plain.dlopt")
    assert_close(plain(x), dlopt.load_compressed(folder / "plain.dlopt")(x), 0)
    fine = dlopt.post_training.quantize(
        plain,
        x,
        weights=dlopt.FakeQuant(bits=16),
        activation_bits=16,
        observer="min_max",
    )
    assert_close(plain(x), fine(x), 1e-2)
    coarse = dlopt.post_training.quantize(plain, x, observer="min_max")
    assert_close(coarse(x), coarse(x), 0)
    if len(exports) and not place(trace(coarse.model, x)).problems:
        exports.pop()
        dlopt.export.litert(coarse, folder / "coarse.tflite", data=x, example=x)


def run(seeds, exports, folder):
    """Takes the models of these numbers all the way, and some of them to LiteRT."""
    left = list(range(exports))
    for seed in seeds:
        made = drawn(seed)
        name = sorted(RECIPES)[seed % len(RECIPES)]
        with warnings.catch_warnings():
            # What int8 does not have, weights without gradients behind a zero.
            warnings.simplefilter("ignore", UserWarning)
            try:
                go_through(made, name, folder, left)
            except Exception as error:
                error.add_note(f"drawn({seed}), {name}: {made.notes}")
                raise
    assert not left


KINDS = {
    *("0-D", "1-D", "2-D", "3-D", "join add", "shared in a row", "shared in a pair"),
    *("nested Sequential None", "nested Functional inner", "depthwise", "subclassed"),
    *("dead kernel", "zero gamma", "negative gamma", "zero moving_variance"),
    *("constant inputs", "zero kernel", "flat kernel", "two inputs", "two outputs"),
}


@pytest.mark.parametrize("first", range(0, 200, 25))
def test_200_models(first, tmp_path):
    run(range(first, first + 25), 2, tmp_path)


def test_the_200_models_have_every_kind():
    seen = {note.split(" {")[0] for k in range(200) for note in drawn(k).notes}
    assert KINDS - seen == set()


@pytest.mark.slow
@pytest.mark.parametrize("first", range(200, 2000, 25))
def test_2000_models(first, tmp_path):
    run(range(first, first + 25), 2, tmp_path)
