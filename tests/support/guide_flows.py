"""TFMOT's guides on a tiny network, for TFMOT and for `keras_dlopt.interop.tfmot`.

The same lines run on both: `keras` and `tfmot` are what a script's import lines name.
Weights and data come from NumPy, and nothing is shuffled.
"""

import numpy as np

EPOCHS, BATCH = 3, 8
RATE = 0.05


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 6, 6, 1)).astype("float32")
    return x, rng.integers(0, 3, 32)


def setup_model(keras):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
            keras.layers.MaxPooling2D(2, name="pool"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="top"),
        ]
    )
    rng = np.random.default_rng(1)
    model.set_weights(
        [
            (rng.normal(size=w.shape) * 0.4).astype("float32")
            for w in model.get_weights()
        ]
    )
    return model


def trained(keras, model, **options):
    """Compiled and fitted as the guides do; the loss of each epoch."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(RATE), loss=loss)
    x, y = data()
    options = {"batch_size": BATCH, "epochs": EPOCHS, "shuffle": False, **options}
    return model.fit(x, y, verbose=0, **options).history["loss"]


def found(name, model, losses=()):
    """What a flow ends with."""
    kept = {f"{name}/outputs": model.predict(data()[0], verbose=0)}
    if len(losses):
        kept[f"{name}/losses"] = np.asarray(losses)
    return kept


def weights(name, model):
    layers = [layer for layer in model.layers if layer.get_weights()]
    return {f"{name}/{layer.name}": layer.get_weights()[0] for layer in layers}


def pruned(keras, tfmot):
    """The pruning guide."""
    pruning_params = {
        "pruning_schedule": tfmot.sparsity.keras.PolynomialDecay(
            initial_sparsity=0.25,
            final_sparsity=0.70,
            begin_step=0,
            end_step=10,
            frequency=2,
        )
    }
    model = tfmot.sparsity.keras.prune_low_magnitude(
        setup_model(keras), **pruning_params
    )
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
    losses = trained(keras, model, callbacks=callbacks)
    return tfmot.sparsity.keras.strip_pruning(model), losses


def clustered(keras, tfmot, model=None, **options):
    """The clustering guide."""
    init = tfmot.clustering.keras.CentroidInitialization
    model = tfmot.clustering.keras.cluster_weights(
        setup_model(keras) if model is None else model,
        number_of_clusters=5,
        cluster_centroids_init=init.LINEAR,
        **options,
    )
    losses = trained(keras, model)
    return tfmot.clustering.keras.strip_clustering(model), losses


def quantized(keras, tfmot, model=None, scheme=None):
    """The quantization guide; with a scheme, the collaborative ones."""
    if scheme is None:
        model = tfmot.quantization.keras.quantize_model(setup_model(keras))
    else:
        annotated = tfmot.quantization.keras.quantize_annotate_model(model)
        model = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    first = trained(keras, model, epochs=1)
    return model, first + trained(keras, model, epochs=EPOCHS)


def every(keras, tfmot, *, cluster_with_zeros):
    """Name -> array, of all flows.

    Args:
        keras: Keras 3 or tf_keras.
        tfmot: TFMOT or `keras_dlopt.interop.tfmot`.
        cluster_with_zeros: `cluster_weights(..., preserve_sparsity=True)`, which TFMOT
            has in a module without a public name.
    """
    combine = tfmot.experimental.combine
    result = {}
    sparse, losses = pruned(keras, tfmot)
    result |= found("pruning", sparse, losses) | weights("pruning", sparse)
    shared, losses = clustered(keras, tfmot)
    result |= found("clustering", shared, losses) | weights("clustering", shared)
    result |= found("quantization", *quantized(keras, tfmot))
    scheme = combine.Default8BitPrunePreserveQuantizeScheme()
    result |= found("PQAT", *quantized(keras, tfmot, sparse, scheme))
    scheme = combine.Default8BitClusterPreserveQuantizeScheme()
    result |= found("CQAT", *quantized(keras, tfmot, shared, scheme))
    init = tfmot.clustering.keras.CentroidInitialization
    both = cluster_with_zeros(
        pruned(keras, tfmot)[0],
        number_of_clusters=5,
        cluster_centroids_init=init.LINEAR,
        preserve_sparsity=True,
    )
    losses = trained(keras, both)
    both = tfmot.clustering.keras.strip_clustering(both)
    result |= found("sparse clustering", both, losses)
    result |= weights("sparse clustering", both)
    scheme = combine.Default8BitClusterPreserveQuantizeScheme(True)
    return result | found("PCQAT", *quantized(keras, tfmot, both, scheme))
