"""Random numbers that differ between replicas and repeat between runs."""

from typing import Any

import keras
import numpy as np

from keras_dlopt.graph.walk import layers_below

# Odd, so that replicas of one seed never meet within 2^32 of them.
STRIDE = 0x9E3779B1


def generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """Every seed generator of the model and its layers, each once."""
    found: dict[int, Any] = {}
    for layer in [model, *layers_below(model)]:
        for value in vars(layer).values():
            if isinstance(value, keras.random.SeedGenerator):
                found[id(value)] = value
    return list(found.values())


def spread_seeds(model: keras.Model) -> None:
    """Gives each replica a seed of its own, derived from the first replica's.

    Keras starts all replicas with the same seed, and they draw the same dropout mask.
    Replica r gets the seed s + r * 0x9E3779B1 (mod 2^32) and the first one's counter.
    What is saved is the first replica's state, from which the others follow.

    Args:
        model: built under a strategy.
    """
    import tensorflow as tf

    for generator in generators(model):
        value = generator.state.value
        if not isinstance(value, tf.distribute.DistributedValues):
            continue
        strategy = model.distribute_strategy
        parts = strategy.experimental_local_results(value)
        first = np.asarray(parts[0].read_value())
        for local, part in enumerate(parts):
            number = _global_number(strategy, local, len(parts))
            seed = (int(first[0]) + number * STRIDE) % 2**32
            part.assign(np.array([seed, first[1]], first.dtype))


def _global_number(strategy: Any, local: int, parts: int) -> int:
    resolver = getattr(strategy, "cluster_resolver", None)
    worker = getattr(resolver, "task_id", None) or 0
    return worker * parts + local
