"""A model that runs another model with transformed weights."""

import inspect
import math
import sys
from collections.abc import Iterable
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.errors import ModelError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.walk import check_built, is_functional, own_layers, walk
from keras_dlopt.transforms import trainer
from keras_dlopt.transforms.face import Face
from keras_dlopt.transforms.host import Hidden, TransformHost
from keras_dlopt.transforms.recipe import Recipe, check_recipe
from keras_dlopt.transforms.updating import UpdateTransforms

_HALF = "mixed_float16"
# What Sequential and Functional models have beyond a `keras.Model`.
FACE = ("input", "inputs", "output", "outputs", "input_shape", "output_shape")


@keras.saving.register_keras_serializable("keras_dlopt")
class TransformedModel(TransformHost, keras.Model):
    """Runs `model` with its weights and activations transformed by `recipe`.

    The wrapped model's layers and names stay as they are; `compile`, `fit`, `save` and
    strategies work as for any Keras model. `fit` runs scheduled updates by itself; a
    custom training loop calls `update_transforms(step)`. Use `transform` to build one.

    Args:
        model: a built Keras model of any kind; it is not copied.
        recipe: which transform for which weights.
        corrections: what `post_training.correct_bias` changed and could take back.

    Raises:
        ModelError: for a model that is not built, is transformed already, or has
            weights that are not finite.
        ConfigError: for anything but a recipe, and for one that matches nothing.

    Example:
        >>> import keras
        >>> from keras_dlopt import FakeQuant, Recipe, named
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> recipe = Recipe([(named("kernel"), FakeQuant(bits=8))])
        >>> small = TransformedModel(net, recipe)
        >>> [variable.name for variable in small.trainable_variables]
        ['kernel', 'bias']
    """

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        *,
        corrections: Iterable[Iterable[Any]] = (),
        **kwargs: Any,
    ):
        check_built(model)
        if isinstance(model, TransformedModel):
            raise ModelError(
                f"{model.name!r} is transformed already. Chain the transforms in one "
                "recipe, such as Prune(0.9) >> FakeQuant(bits=8), or go on from "
                "finalize(model), an ordinary model."
            )
        check_recipe(recipe)
        kwargs.setdefault("name", model.name)
        # Transforms compute in float32; the model inside keeps its own dtype policy.
        super().__init__(dtype="float32", **kwargs)
        self.model = model
        self.recipe = recipe
        self.corrections = tuple(tuple(one) for one in corrections)
        if any(transform.random for _, transform in recipe.entries):
            self.seed_generator = keras.random.SeedGenerator(0)
        self._attach(model, recipe)
        # Losses and metrics may be given by the names of a Functional model's outputs.
        if hasattr(model, "output_names"):
            self.output_names = model.output_names
        self.built = True
        self._hidden_view = Hidden(trainer.forward(self, model))

    @property
    def metrics(self) -> list[Any]:
        """As the wrapped model's class defines them, or Keras' own."""
        view = getattr(self, "_hidden_view", None)
        if view is not None and view.value is not None:
            return view.value.metrics
        return super().metrics

    def build(self, input_shape=None):
        self.built = True

    def __getattr__(self, name: str) -> Any:
        """What the wrapped model has beyond a `keras.Model`, such as `input_shape`."""
        inner = None if name.startswith("_") else vars(self).get("model")
        if inner is None or not is_functional(inner) or name not in FACE:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        if name in ("input", "inputs", "output", "outputs"):
            return getattr(self._shown().graph, name)
        return getattr(inner, name)

    def _shown(self) -> Face:
        if getattr(self, "_hidden_face", None) is None:
            self._hidden_face = Hidden(Face(self, self.model))
        return self._hidden_face.value

    def get_layer(self, name=None, index=None):
        """A layer of the wrapped model; its `output` has the transformed values."""
        layer = self.model.get_layer(name, index)
        return self._shown().view(layer) if is_functional(self.model) else layer

    def summary(self, *args, print_fn=None, **kwargs) -> None:
        """The wrapped model's summary; a line tells what is trained in place of it."""
        self.model.summary(*args, print_fn=print_fn, **kwargs)
        replaced, ours = self.replaced()
        if ours:
            say = print_fn or (lambda line: sys.stdout.write(f"{line}\n"))
            trained = sum(math.prod(v.shape) for v in self.trainable_variables)
            say(
                f" In place of {replaced:,} of these parameters: {ours:,} of "
                f"transforms. In all {self.count_params():,}, trained {trained:,}."
            )

    def count_params(self) -> int:
        """The numbers that make the model.

        What transforms train in place of weights counts in their stead, once where
        several weights share it.
        """
        replaced, ours = self.replaced()
        return self.model.count_params() - replaced + ours

    def export(self, filepath, format="tf_saved_model", *, input_signature=None, **kw):
        """As `keras.Model.export`, with the weights that the transforms give."""
        if input_signature is None:
            input_signature = self._signature()
        kw["input_signature"] = input_signature
        return super().export(filepath, format, **kw)

    def _signature(self) -> Any:
        if not is_functional(self.model):
            shapes = self.model.get_build_config() or {}
            if not isinstance(shapes.get("input_shape"), list | tuple):
                return None
            shape = (None, *shapes["input_shape"][1:])
            return [keras.InputSpec(shape=shape, dtype=self.model.input_dtype)]
        one = isinstance(self.model, keras.Sequential)
        given = self.model.inputs[0] if one else self.model.input

        def spec(x):
            return keras.InputSpec(
                shape=(None, *x.shape[1:]), dtype=x.dtype, name=x.name
            )

        return [keras.tree.map_structure(spec, given)]

    def quantize(self, *_args, **_kwargs) -> None:
        """Refused: Keras would put codes in place of weights that transforms hold."""
        raise ModelError(
            f"{self.name!r} is transformed, and quantize() would replace the weights "
            "that its transforms compute. Use finalize(model).quantize(mode), or a "
            "recipe with FakeQuant."
        )

    @property
    def layers(self) -> list[Any]:
        """The layers of the wrapped model, as `get_layer` gives them."""
        model = vars(self).get("model")
        # Keras asks while this is being made; and files hold the wrapped model whole.
        if model is None or _compat.asked_to_save():
            return super().layers
        inner = own_layers(model)
        functional = is_functional(model)
        return [self._shown().view(one) for one in inner] if functional else inner

    @property
    def input_spec(self) -> Any:
        """What the wrapped model takes."""
        model = vars(self).get("model")
        return None if model is None else model.input_spec

    @property
    def path(self) -> str | None:
        """The name, as that of any model."""
        return super().path or self.name

    @property
    def dtype_policy(self) -> Any:
        """float32, in which transforms compute; the wrapped model keeps its own."""
        return super().dtype_policy

    @dtype_policy.setter
    def dtype_policy(self, value: Any) -> None:
        raise ModelError(
            f"{self.name!r} is transformed, and its transforms compute in float32. "
            f"Received the dtype policy {value!r}. Give it to the layers of the model "
            "before transform(); they keep it."
        )

    def compile(self, *args, **kwargs) -> None:
        """As `keras.Model.compile`; the loss is scaled for layers of `mixed_float16`.

        Keras asks the outer policy, which is float32, and gradients in float16 of the
        layers inside would vanish.
        """
        super().compile(*args, **kwargs)
        given = inspect.signature(super().compile).bind(*args, **kwargs).arguments
        scaling = keras.optimizers.LossScaleOptimizer
        half = any(of.dtype_policy.name == _HALF for _, of, _ in walk(self.model))
        own: Any = vars(self).get("optimizer")
        plain = own is not None and not isinstance(own, scaling)
        self._auto_scale_loss = bool(given.get("auto_scale_loss", True))
        if half and plain and self._auto_scale_loss:
            self.optimizer = scaling(own, name="loss_scale_optimizer")

    def get_compile_config(self) -> dict[str, Any]:
        """Keras' own, and whether the loss is scaled for layers in float16."""
        config = super().get_compile_config()
        if config:
            config["auto_scale_loss"] = self._auto_scale_loss
        return config

    def compile_from_config(self, config) -> None:
        """Compiles as `get_compile_config()` says, which Keras leaves to this class."""
        given = keras.saving.deserialize_keras_object(config)
        # Files of earlier versions have the state of an optimizer that does not scale.
        self.compile(**{"auto_scale_loss": False} | given)
        own: Any = vars(self).get("optimizer")
        if own is not None:
            own.build(self.trainable_variables)

    def compute_output_shape(self, *args, **kwargs) -> Any:
        """The wrapped model's."""
        return self.model.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args, **kwargs) -> Any:
        """From a symbolic run, as Keras does where no method tells the shape."""
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def call(self, inputs, *args, training=None, **kwargs):
        """Runs the wrapped model, with what else its `call` takes."""
        return self.run(
            lambda: self.model(inputs, *args, training=training, **kwargs),
            training=bool(training),
        )

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        **kwargs,
    ):
        """As `keras.Model.fit`; updates scheduled transforms between steps."""
        callbacks, update = _with_update(callbacks)
        update.offer(
            x,
            y,
            sample_weight=kwargs.get("sample_weight"),
            batch_size=batch_size,
            validation_split=kwargs.get("validation_split") or 0.0,
        )
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            **kwargs,
        )

    def get_config(self) -> dict[str, Any]:
        """The wrapped model, the recipe, the name, and corrections if there are."""
        config = {
            "model": keras.saving.serialize_keras_object(self.model),
            "recipe": self.recipe.to_dict(),
            "name": self.name,
        }
        if self.corrections:
            config["corrections"] = [list(one) for one in self.corrections]
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the transformed model from its `get_config()`."""
        config = dict(config)
        model = keras.saving.deserialize_keras_object(
            config.pop("model"), custom_objects=custom_objects
        )
        return cls(model, Recipe.from_dict(config.pop("recipe")), **config)


def _with_update(callbacks: Any) -> tuple[Any, UpdateTransforms]:
    """The callbacks with an `UpdateTransforms` among them, and that one."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        given = callbacks.callbacks
    else:
        if callbacks is None:
            callbacks = []
        elif not isinstance(callbacks, list | tuple):
            callbacks = [callbacks]
        given = callbacks
    for callback in given:
        if isinstance(callback, UpdateTransforms):
            return callbacks, callback
    update = UpdateTransforms()
    if isinstance(callbacks, keras.callbacks.CallbackList):
        given.insert(0, update)
        update.set_params(callbacks.params)
        update.set_model(callbacks.model)
        return callbacks, update
    # First, so that checkpoints see the state after the update.
    return [update, *callbacks], update


def transform(
    model: keras.Model, recipe: Recipe, *, copy: bool = True
) -> TransformedModel:
    """Wraps a model so that it trains and predicts with transformed weights.

    Args:
        model: any built Keras model: Sequential, Functional, subclassed, nested.
        recipe: which transform for which weights; see `Recipe`.
        copy: whether to work on a copy, so that `model` keeps its weights while the
            result trains. False shares them, and also serves subclassed models without
            `get_config`.

    Returns:
        A model to `compile` and `fit`, then to `finalize`.

    Raises:
        ModelError: for an unbuilt model, one that is transformed already or cannot be
            copied, and for weights that are not finite.
        ConfigError: for a recipe that matches nothing.

    Example:
        >>> import keras
        >>> from keras_dlopt import Prune, Recipe, finalize, named
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> small = transform(net, Recipe([(named("kernel"), Prune(0.5))]))
        >>> int((finalize(small).layers[0].kernel.numpy() == 0).sum())
        4
    """
    if copy and isinstance(model, keras.Model) and model.built:
        model = copy_model(model)
    return TransformedModel(model, recipe)
