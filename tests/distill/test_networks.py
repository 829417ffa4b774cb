"""Distillation between networks of others: keras.applications and KerasHub."""

import keras
import numpy as np
import pytest

from keras_dlopt import distill, finalize

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)


def test_applications():
    student = keras.applications.MobileNetV2(
        input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=4
    )
    teacher = keras.applications.EfficientNetB0(
        input_shape=(32, 32, 3), weights=None, classes=4
    )
    x, y = RNG.normal(size=(8, 32, 32, 3)).astype("float32"), np.arange(8) % 4
    terms = [
        distill.LogitsDistillation(temperature=2.0),
        distill.FeatureDistillation("block_5_add", "block3b_add"),
        distill.AttentionTransfer("out_relu", "top_activation", weight=10.0),
    ]
    before = teacher.get_weights()
    twin = keras.models.clone_model(student)
    twin.set_weights(student.get_weights())
    taught = distill.distill(student, teacher, terms)
    assert taught.projectors[1].kernel.shape == (16, 40)
    taught.compile("sgd", "sparse_categorical_crossentropy")
    history = taught.fit(x, y, batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    final = finalize(taught)
    assert final.count_params() == student.count_params()
    for a, b in zip(taught.teachers[0].get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    # The first of the losses, from the probabilities of both by hand.
    alone = distill.distill(twin, teacher, terms[0])
    alone.compile("sgd", "sparse_categorical_crossentropy")
    total = float(alone.compute_loss(x, y, alone(x, training=True)))
    p, q = (
        np.asarray(keras.ops.convert_to_numpy(one), "float64")
        for one in (twin(x, training=True), teacher(x, training=False))
    )
    heated = [one**0.5 / (one**0.5).sum(1, keepdims=True) for one in (p, q)]
    soft = 4 * (heated[1] * np.log(heated[1] / heated[0])).sum(1).mean()
    hard = -np.log(p[np.arange(8), y]).mean()
    assert total == pytest.approx(hard + soft, rel=1e-4)


def test_keras_hub():
    hub = pytest.importorskip("keras_hub")

    def bert(width, layers):
        return hub.models.BertBackbone(
            vocabulary_size=50,
            num_layers=layers,
            num_heads=2,
            hidden_dim=width,
            intermediate_dim=2 * width,
            max_sequence_length=12,
            dropout=0.0,
        )

    student, teacher = bert(8, 1), bert(16, 2)
    x = {
        "token_ids": RNG.integers(0, 50, (8, 12)),
        "segment_ids": np.zeros((8, 12), "int32"),
        "padding_mask": np.ones((8, 12), "int32"),
    }
    terms = [
        distill.FeatureDistillation("transformer_layer_0", "transformer_layer_1"),
        distill.RelationalDistillation("pooled_dense", "pooled_dense", distance=1.0),
    ]
    taught = distill.distill(
        student, teacher, terms, example={k: v[:1] for k, v in x.items()}
    )
    taught.compile(keras.optimizers.Adam(1e-2))
    losses = taught.fit(x, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    final = finalize(taught)
    assert type(final) is type(student)
    made = final(x)["sequence_output"]
    np.testing.assert_allclose(made, taught(x)["sequence_output"], atol=1e-6)
