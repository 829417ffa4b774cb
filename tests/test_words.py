"""Words of other libraries as arguments: each is answered with ours."""

import importlib

import keras
import pytest

import catalogue
import keras_dlopt as dlopt
from keras_dlopt import callbacks, layers, optimizers, schedules
from keras_dlopt.errors import ConfigError, UnknownArgumentError
from keras_dlopt.words import WORDS, Worded, arguments_of, meant

CLASSES = {
    type(case.make())
    for module in catalogue.modules()
    if module not in ("models", "distilling")
    for case in importlib.import_module(f"catalogue.{module}").CASES
    if case.kind in ("transform", "schedule", "optimizer", "callback", "layer")
}
OURS = sorted((c for c in CLASSES if issubclass(c, Worded)), key=lambda c: c.__name__)


def test_almost_all_of_the_catalogue_answers():
    others = {c.__name__ for c in CLASSES - set(OURS)}
    # Keras' own, and layers of which Keras' parent refuses what it does not know.
    assert others <= {
        *("AugmentationLayer", "BatchNormalization", "Functional", "HashedKernel"),
        *("OperationLayer", "ReZero", "Sequential"),
    }
    assert len(OURS) > 60


@pytest.mark.parametrize("cls", OURS, ids=lambda c: c.__name__)
def test_every_word_is_answered_by_every_class_that_has_what_it_means(cls):
    names = arguments_of(cls)[0]
    for word in WORDS:
        own = meant(word, names)
        if word not in names and own:
            with pytest.raises(UnknownArgumentError) as error:
                cls(**{word: 1})
            assert f"no argument {word!r}. Did you mean {own}? It has: " in str(
                error.value
            )
    with pytest.raises((TypeError, ValueError)):
        cls(no_such_word=1)


def test_every_word_means_something_somewhere():
    known = {name for cls in OURS for name in arguments_of(cls)[0]}
    for word, own in WORDS.items():
        assert {one.partition("=")[0] for one in own} <= known, word


def test_examples_in_the_table_can_be_written():
    names = {**vars(schedules), **vars(dlopt.prune)}
    examples = {one for own in WORDS.values() for one in own if "=" in one}
    for one in examples:
        value = eval(one.partition("=")[2], names)
        dlopt.Prune(**{"sparsity": 0.5, one.partition("=")[0]: value})


@pytest.mark.parametrize(
    ("make", "own"),
    [
        (lambda: dlopt.Prune(final_sparsity=0.8), "sparsity"),
        (lambda: dlopt.Prune(0.8, begin_step=3), "sparsity=PolynomialSparsity"),
        (lambda: dlopt.Prune(0.8, frequency=3), "sparsity=PolynomialSparsity"),
        (lambda: dlopt.Cluster(number_of_clusters=16), "clusters"),
        (lambda: dlopt.Cluster(8, cluster_centroids_init="linear"), "initial"),
        (lambda: dlopt.FakeQuant(num_bits=8), "bits"),
        (
            lambda: schedules.PolynomialSparsity(0.5, end=9, initial_sparsity=0.1),
            "initial",
        ),
        (lambda: schedules.PolynomialSparsity(0.5, end_step=9), "end"),
        (lambda: optimizers.SOAP(lr=1e-3), "learning_rate"),
        (lambda: optimizers.Adan(learning_rat=1e-3), "learning_rate"),
        (lambda: callbacks.ReduceOnPlateau(min_lr=1e-3), "min_rate"),
        (lambda: layers.StochasticDepth(drop_rate=0.1), "survival"),
    ],
)
def test_words_of_tfmot_and_keras(make, own):
    with pytest.raises(ConfigError, match=f"Did you mean {own}"):
        make()


def test_what_keras_takes_is_left_to_it():
    layer = layers.LayerScale(name="own", dtype="float32", trainable=False)
    assert (layer.name, layer.trainable) == ("own", False)
    with pytest.raises(ValueError, match="nothing_like_it"):
        layers.LayerScale(nothing_like_it=1)
    assert optimizers.Adam(1e-3, weight_decay=0.1, name="own").name == "own"
    base = optimizers.Lookahead(keras.optimizers.SGD(0.1), period=3)
    assert base.period == 3
    with pytest.raises(
        UnknownArgumentError, match="has no argument 'nothing_like_it'. It"
    ):
        dlopt.Prune(0.5, nothing_like_it=1)
