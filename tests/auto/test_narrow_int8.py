"""An int8 file of fewer channels, as few as hold the accuracy."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.auto import narrow_int8
from keras_dlopt.auto.compressed import Trial
from keras_dlopt.auto.narrow_int8 import narrowed
from keras_dlopt.auto.training import job_for
from keras_dlopt.auto.wanted import Goals
from keras_dlopt.errors import ModelError
from keras_dlopt.export import Predictor

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
GIVEN = Trial("int8 after training", 0, 1000, 0.9, 0.0, 1.0)


@dataclasses.dataclass
class Made:
    """What a candidate came to."""

    trial: Trial
    file: bytes


class FakeJob:
    """Has lost nothing, or much."""

    epochs, teacher = 3, False


def fake(turns_at):
    """A maker whose networks are right down to a share of the parameters."""

    class FakeMaker:
        def __init__(self, job, *, target):
            self.target = target

        def made(self, one, epochs, good):
            assert (epochs, one.way, one.teacher) == (3, "int8", False)
            assert not good(GIVEN)  # is trained in any case
            if turns_at is None:
                raise ModelError("nothing can be removed")
            size = round(1000 * one.channels)
            return Made(Trial("", 0, size, 0.9, 0.0, 1.0), b"x" * size)

    return FakeMaker


@pytest.mark.parametrize(
    ("turns_at", "sizes", "best"),
    [
        (0.4, [500, 250, 354], 500),
        (0.3, [500, 250, 354], 354),
        (0.6, [500, 707], 707),
        (0.9, [500, 707], None),
        (0.0, [500, 250, 125, 62, 31], 31),
        (None, [], None),
    ],
)
def test_channels_leave_until_the_accuracy_turns(
    turns_at, sizes, best, tmp_path, monkeypatch
):
    monkeypatch.setattr(narrow_int8, "Maker", fake(turns_at))

    def lost(_, file):
        # Two standard errors are within the drop, or over it.
        return (0.05, 0.025) if len(file) >= 1000 * turns_at else (0.05, 0.026)

    monkeypatch.setattr(narrow_int8, "_lost", lost)
    path = tmp_path / "a.tflite"
    path.write_bytes(b"given")
    found, trials, why = narrowed(
        FakeJob(), path, Goals(drop=0.1), [GIVEN], target="xnnpack"
    )
    assert sorted(t.bytes for t in trials) == sorted([1000, *sizes])
    assert trials[0].bytes == (best or 1000)
    assert len(path.read_bytes()) == (best or len(b"given"))
    assert (found is None) == (best is None)
    assert len(why) == max(len(sizes), 1)
    if turns_at is None:
        assert why == [
            "50% of the parameters in channels, int8: nothing can be removed"
        ]


def test_what_was_lost_is_compared_example_by_example():
    y = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    before = np.array([0, 0, 0, 0, 1, 1, 1, 0])  # one wrong
    after = np.array([1, 1, 0, 0, 1, 1, 1, 1])  # two others are
    models = [
        keras.Sequential([keras.Input((1,)), L.Embedding(8, 2), L.Flatten()])
        for _ in range(2)
    ]
    for model, said in zip(models, (before, after), strict=True):
        model.layers[0].embeddings.assign(9.0 * np.eye(2)[said])
    x = np.arange(8)[:, None]
    job = job_for(models[0], (x, y), (x, y), loss=LOSS)
    differences = (before == y).astype(float) - (after == y)
    expected = differences.mean(), differences.std() / np.sqrt(8)
    assert job.lost(models[1]) == pytest.approx(expected)
    assert job.lost(models[0]) == (0.0, 0.0)


def test_a_drop_makes_an_int8_file_of_fewer_channels(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    # Of 64 hidden units two do the work.
    model = keras.Sequential([keras.Input((8,)), L.Dense(64, "relu"), L.Dense(2)])
    first, last = model.layers
    kernel = 0.01 * rng.normal(size=(8, 64))
    kernel[0, :2] = 4, -4
    head = 0.01 * rng.normal(size=(64, 2))
    head[:2] = [[-1, 1], [1, -1]]
    first.kernel.assign(kernel)
    last.kernel.assign(head)
    path = tmp_path / "a.tflite"
    plain = dlopt.compress(model, (x, y), (x, y), int8=True, path=path)
    made = dlopt.compress(
        model, (x, y), (x, y), int8=True, path=path, max_accuracy_drop=0.02, epochs=1
    )
    assert made.bytes == path.stat().st_size < plain.bytes
    right = float((Predictor(path)(x).argmax(-1) == y).mean())
    assert made.trials[0].accuracy == pytest.approx(right)
    assert right >= float((np.asarray(model(x)).argmax(-1) == y).mean()) - 0.02
    assert made.model.count_params() < model.count_params() / 4
    assert f"{made.bytes:,} bytes" in " ".join(made.reasons)
