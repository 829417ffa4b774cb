"""Random states that Keras' own files leave out."""

from typing import Any

import keras

from keras_dlopt.runtime.values import to_numpy

_KEY = "random_"


class KeepsRandomStates:
    """Mixin for a Keras layer that saves the random states of all layers inside it.

    A `.keras` file has the variables of layers; the state of a Dropout's generator is
    none, so that training would go on with draws that it has already seen. Files
    without these states load as before.
    """

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)  # type: ignore[misc]
        for i, variable in enumerate(_random_states(self)):
            store[f"{_KEY}{i}"] = to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        names = list(store.keys())
        own = {name: store[name] for name in names if not name.startswith(_KEY)}
        super().load_own_variables(own)  # type: ignore[misc]
        states = _random_states(self)
        if len(states) == len(names) - len(own):
            for i, variable in enumerate(states):
                variable.assign(store[f"{_KEY}{i}"])


def _random_states(layer: Any) -> list[keras.Variable]:
    known = {id(v) for v in [*layer.weights, *getattr(layer, "metrics_variables", ())]}
    return [v for v in layer.variables if id(v) not in known]
