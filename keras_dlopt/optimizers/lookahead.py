"""Lookahead: slow weights that follow a fast optimizer."""

import types
from typing import Any

import keras
from keras import ops

from keras_dlopt import checks, runtime
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.words import Worded


@keras.saving.register_keras_serializable("keras_dlopt")
class Lookahead(Worded, keras.optimizers.Optimizer):
    r"""k steps forward with any optimizer, one step back to the slow weights.

    With slow weights s, starting at w, after every `period` updates of the base:

        s <- s + alpha (w - s)
        w <- s

    State: that of the base and 4 bytes a parameter.

    Args:
        base: any Keras optimizer; its state stays as it is when the weights jump.
        period: updates between two corrections, 5 to 10.
        alpha: how far the slow weights move, in (0, 1].
        name: name of the optimizer.

    Raises:
        ConfigError: for a base that is no optimizer, and arguments out of range.

    Example:
        >>> v = keras.Variable([1.0])
        >>> ahead = Lookahead(keras.optimizers.SGD(0.1), period=2)
        >>> for _ in range(2): ahead.apply([keras.ops.ones(1)], [v])
        >>> v.numpy().round(4).tolist()
        [0.9]

    Source: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back"
    (arXiv:1907.08610), algorithm 1.
    """

    def __init__(
        self,
        base: Any,
        *,
        period: int = 6,
        alpha: float = 0.5,
        name: str | None = None,
        **kwargs: Any,
    ):
        if isinstance(base, dict | str):
            base = keras.optimizers.get(base)
        if not isinstance(base, keras.optimizers.Optimizer):
            raise ConfigError(
                f"Lookahead wraps a Keras optimizer. Received: {base!r}. Write for "
                "example Lookahead(keras_dlopt.optimizers.Adam())."
            )
        if kwargs:
            raise ConfigError(
                f"Lookahead takes no {', '.join(sorted(kwargs))}: pass what concerns "
                "the steps (weight decay, clipping, averaging) to the base optimizer."
            )
        super().__init__(learning_rate=0.0, name=name)
        self.base = base
        self.period = checks.count(period, name="period")
        self.alpha = checks.share(alpha, name="alpha")

    def build(self, variables):
        if self.built:
            return
        variables = list(variables)
        # In a plain object: a list of weights would be taken for optimizer state.
        self._state = types.SimpleNamespace(weights=variables)
        if not self.base.built:
            self.base.build(variables)
        super().build(variables)
        self._state.slow = self.add_optimizer_variables(variables, "slow")

    @property
    def variables(self) -> list[Any]:
        return [*super().variables, *self.base.variables]

    @property
    def iterations(self) -> Any:
        return self.base.iterations

    @property
    def learning_rate(self) -> Any:
        return self.base.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.base.learning_rate = value

    def apply(self, grads, trainable_variables=None):
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if not self.built:
                self.build(trainable_variables)
        before = runtime.value(self.iterations)
        self._each(self._start, before == 0, self._pairs(self._state.weights))
        self.base.apply(grads, trainable_variables)
        done = runtime.value(self.iterations)
        self.variables[0].assign_add(done - before)  # 0 for a step that was skipped
        due = ops.logical_and(done > before, done % self.period == 0)
        free = [w for w in self._state.weights if getattr(w, "trainable", True)]
        self._each(self._correct, due, self._pairs(free))

    def _pairs(self, weights: list[Any]) -> list[dict[str, Any]]:
        """Each weight with its slow one, those of `weights` that have one."""
        known = {id(w) for w in weights}
        return [
            {"weight": runtime.native(w), "slow": runtime.native(s)}
            for w, s in zip(self._state.weights, self._state.slow, strict=True)
            if s is not None and id(w) in known
        ]

    def _each(self, update: Any, due: Any, pairs: list[Any]) -> None:
        if pairs:
            runtime.on_each_replica(
                lambda _, due, pairs: update(due, pairs), [], due, pairs
            )

    def _start(self, due: Any, pairs: list[Any]) -> None:
        """Before the first update: slow weights are the weights."""

        def copy():
            for pair in pairs:
                runtime.assign(pair["slow"], runtime.read(pair["weight"]))

        runtime.choose(due, copy, lambda: None, [p["slow"] for p in pairs])

    def _correct(self, due: Any, pairs: list[Any]) -> None:
        def jump():
            for pair in pairs:
                slow = runtime.read(pair["slow"])
                slow = slow + self.alpha * (runtime.read(pair["weight"]) - slow)
                runtime.assign(pair["slow"], slow)
                runtime.assign(pair["weight"], slow)

        runtime.choose(due, jump, lambda: None, [v for p in pairs for v in p.values()])

    def scale_loss(self, loss: Any) -> Any:
        return self.base.scale_loss(loss)

    def finalize_variable_values(self, var_list: Any) -> None:
        self.base.finalize_variable_values(var_list)

    def averages(self) -> list[Any]:
        """The slow weights, in the order of the weights; frozen ones, as they are.

        Raises:
            ModelError: before the first step.
        """
        if not self.built or not int(runtime.to_numpy(self.iterations)):
            raise ModelError(
                "There are no slow weights to read yet: train at least one step."
            )
        return [
            runtime.value(w if s is None or not getattr(w, "trainable", True) else s)
            for w, s in zip(self._state.weights, self._state.slow, strict=True)
        ]

    def put_slow_weights(self) -> None:
        """Puts the slow weights, which the paper evaluates, in place of the weights.

        Does nothing before the first step. Training can go on from there, but only
        `callbacks.AveragedWeights` puts the fast weights back.
        """
        if self.built and int(runtime.to_numpy(self.iterations)):
            for weight, value in zip(self._state.weights, self.averages(), strict=True):
                weight.assign(value)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "base": keras.saving.serialize_keras_object(self.base),
            "period": self.period,
            "alpha": self.alpha,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the optimizer from its `get_config()`."""
        config = dict(config)
        config["base"] = keras.saving.deserialize_keras_object(
            config["base"], custom_objects=custom_objects
        )
        return cls(**config)
