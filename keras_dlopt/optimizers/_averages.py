"""Reading the moving averages that an optimizer keeps of its weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

from keras import ops

from keras_dlopt.errors import ModelError


class AverageReader:
    """Mixin of the optimizers: the averaged weights, to read or to put in place."""

    use_ema: bool
    built: bool
    _state: Any

    def averages(self) -> list[Any]:
        """The averaged weights, in the order of the weights; needs `use_ema=True`."""
        if not self.use_ema or not self.built:
            raise ModelError(
                "There are no averaged weights to read: create the optimizer with "
                "use_ema=True and train at least one step."
            )
        return [ops.convert_to_tensor(v) for v in self._state.slots["average"]]

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the averaged weights in place inside a `with` block, then back.

        Example:
            >>> import keras, keras_dlopt.optimizers
            >>> v = keras.Variable([1.0])
            >>> sgd = keras_dlopt.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
            >>> for _ in range(2): sgd.apply([keras.ops.ones(1)], [v])
            >>> with sgd.averaged_weights(): print(float(v[0]))
            -0.5
        """
        values = self.averages()
        before = [ops.copy(v) for v in self._state.variables]
        for variable, value in zip(self._state.variables, values, strict=True):
            variable.assign(value)
        try:
            yield
        finally:
            for variable, value in zip(self._state.variables, before, strict=True):
                variable.assign(value)
