"""SAM and ASAM: steps by the gradient at the worst point nearby."""

from typing import Any

import keras
from keras import ops

from keras_dlopt import checks, runtime
from keras_dlopt.errors import ConfigError, ModelError


def sam_perturbation(
    grads: list[Any], weights: list[Any], *, radius: float, adaptive: bool
) -> list[Any]:
    """How far each weight is moved uphill.

    Args:
        grads: one gradient per weight.
        weights: tensors of the same shapes.
        radius: length of the move over all weights together.
        adaptive: measure the move relative to |w|, as ASAM does.
    """
    scales = [ops.abs(w) if adaptive else ops.ones_like(w) for w in weights]
    scaled = [g * t for g, t in zip(grads, scales, strict=True)]
    squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in scaled]
    norm = ops.maximum(ops.sqrt(ops.sum(ops.stack(squares))), 1e-12)
    return [
        ops.cast(radius / norm, g.dtype) * g * t
        for g, t in zip(scaled, scales, strict=True)
    ]


@keras.saving.register_keras_serializable("keras_dlopt")
class SAM(keras.Model):
    r"""A model that trains for flat minima: sharpness-aware minimization.

    Wraps any model; its train step takes two gradients per batch. With gradient g at
    the weights w and radius r:

        e = r g / |g|                                     (norm over all weights)
        w <- w - (step of the compiled optimizer with the gradient at w + e)

    Compile and fit it in place of the model, whose weights it trains; use the model
    itself, `sam.model`, afterwards. A step takes twice the time. TensorFlow backend on
    one device only: under a strategy the move would differ between replicas. Metrics
    and normalization statistics come from the first pass.

    Args:
        model: the Keras model to train.
        radius: length of the move over all weights together, 0.01 to 0.2.
        **options: arguments of `keras.Model`, such as `name`.

    Raises:
        ConfigError: for a radius that is not positive, or no model.
        ModelError: when fitted on another backend than TensorFlow, or on several
            replicas.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> sam = SAM(model, radius=0.05)
        >>> sam.compile(optimizer="adam", loss="mse")
        >>> history = sam.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)

    Source: Foret et al., "Sharpness-Aware Minimization" (arXiv:2010.01412),
    algorithm 1.
    """

    adaptive = False

    def __init__(self, model: keras.Model, *, radius: float = 0.05, **options: Any):
        if not isinstance(model, keras.Model):
            raise ConfigError(
                f"{type(self).__name__} wraps a Keras model. Received: {model!r}."
            )
        radius = checks.positive(radius, name="radius")
        super().__init__(**options)
        self.model = model
        self.radius = radius
        self.built = model.built

    def call(self, inputs, training=None):
        return self.model(inputs, training=training)

    def train_step(self, *data):
        if not runtime.on_tensorflow():
            raise ModelError(
                f"{type(self).__name__} trains on the TensorFlow backend only; this is "
                f"{keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow."
            )
        replicas = runtime.replica_count()
        if replicas > 1:
            raise ModelError(
                f"{type(self).__name__} trains on one device; the strategy in force "
                f"has {replicas} replicas. Build and fit it outside of the "
                "strategy."
            )
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data[0])
        weights = self.trainable_variables
        grads, loss, y_pred = self._gradients(x, y, sample_weight)
        moves = sam_perturbation(
            grads,
            [ops.convert_to_tensor(w) for w in weights],
            radius=self.radius,
            adaptive=self.adaptive,
        )
        grads = self._gradients_at(moves, x, y, sample_weight)
        self.optimizer.apply_gradients(zip(grads, weights, strict=True))
        self._track(loss, x)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _track(self, loss: Any, x: Any) -> None:
        tracker = next((m for m in self.metrics if m.name == "loss"), None)
        if tracker is not None:
            rows = ops.shape(keras.tree.flatten(x)[0])[0]
            tracker.update_state(loss, sample_weight=rows)

    def _gradients(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        grads = tape.gradient(scaled, self.trainable_variables)
        if any(g is None for g in grads):
            names = [
                v.path
                for g, v in zip(grads, self.trainable_variables, strict=True)
                if g is None
            ]
            raise ModelError(
                f"The loss does not depend on these weights: {names}. Freeze them with "
                "trainable = False before compiling."
            )
        return [runtime.densify(g) for g in grads], loss, y_pred

    def _gradients_at(self, moves: Any, x: Any, y: Any, sample_weight: Any) -> Any:
        """The gradient at the moved weights; nothing else is left changed."""
        weights, others = self.trainable_variables, self.non_trainable_variables
        before = [ops.copy(v) for v in weights]
        fixed = [ops.copy(v) for v in others]
        for variable, move in zip(weights, moves, strict=True):
            variable.assign_add(move)
        grads, _, _ = self._gradients(x, y, sample_weight)
        for variables, values in ((weights, before), (others, fixed)):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        return grads

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "radius": self.radius,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the model from its `get_config()`."""
        config = dict(config)
        config["model"] = keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        return cls(**config)


@keras.saving.register_keras_serializable("keras_dlopt")
class ASAM(SAM):
    r"""SAM whose neighbourhood is measured relative to each weight.

    With T = |w|:

        e = r T^2 g / |T g|                               (norm over all weights)

    so that rescaling a layer does not change what counts as flat. Otherwise as `SAM`.

    Args:
        model: the Keras model to train.
        radius: length of the move relative to the weights, 0.5 to 2.
        **options: arguments of `keras.Model`, such as `name`.

    Raises:
        ConfigError: for a radius that is not positive, or no model.
        ModelError: when fitted on another backend than TensorFlow, or on several
            replicas.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> ASAM(model).radius
        0.5

    Source: Kwon et al., "ASAM" (arXiv:2102.11600), algorithm 1. Differs from the paper:
    no constant is added to T.
    """

    adaptive = True

    def __init__(self, model: keras.Model, *, radius: float = 0.5, **options: Any):
        super().__init__(model, radius=radius, **options)
