"""What gets compiled: the train step and the inference step, with their arguments.

Runs in the compiling process, on either backend.
"""

import dataclasses
import importlib
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.model_parallel.functional import FunctionalStep, TrainState

TRAIN, INFERENCE = "train", "inference"
PROGRAMS = (TRAIN, INFERENCE)


@dataclasses.dataclass(frozen=True)
class Program:
    """A pure function and the shapes of its arguments.

    Attributes:
        name: `"train"` or `"inference"`.
        function: of the state (three lists for training, two for inference) and of
            the batch (inputs, and targets for training).
        state: `jax.ShapeDtypeStruct`s of the state.
        batch: those of the batch; their first axis is the batch.
    """

    name: str
    function: Callable[..., Any]
    state: tuple[Any, ...]
    batch: tuple[Any, ...]


def load_model(
    source: str, *, policy: str | None = None, safe_mode: bool = True
) -> keras.Model:
    """The model that a check names.

    Args:
        source: a `.keras` file, a function of `keras_dlopt.models`, or
            `"module:function"`, called without arguments.
        policy: dtype policy under which a function builds it.
        safe_mode: whether Python code in a file is refused.

    Raises:
        ConfigError: for a name that leads nowhere, or a policy with a file.
        ModelError: if what it leads to is no Keras model.
    """
    if pathlib.Path(source).is_file():
        if policy is not None:
            raise ConfigError(
                f"policy={policy!r} is for models built by name; the layers in "
                f"{source!r} hold their own. Build the model under the policy and save "
                "it again."
            )
        if source.endswith(".keras") and not zipfile.is_zipfile(source):
            raise ConfigError(
                f"{source!r} is no model file: a .keras file is a zip archive. Write "
                "it with model.save(...)."
            )
        return keras.saving.load_model(source, safe_mode=safe_mode)
    keras.config.set_dtype_policy(policy or keras.config.dtype_policy().name)
    model = _builder(source)()
    if not isinstance(model, keras.Model):
        raise ModelError(f"{source!r} gave {type(model).__name__}, not a keras.Model.")
    if not model.built:
        raise ModelError(
            f"The model of {source!r} is not built, so it has no shapes to compile. "
            "Start it with keras.Input or call model.build(input_shape)."
        )
    return model


def _builder(source: str) -> Callable[[], Any]:
    from keras_dlopt import models

    if source in models.__all__:
        return getattr(models, source)
    module, _, name = source.partition(":")
    if name:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{source!r} could not be imported: {error}. Give module:function with "
                "the module importable from here."
            ) from None
    raise ConfigError(
        f"No model {source!r}: give a .keras file, module:function, or one of "
        f"{', '.join(sorted(models.__all__))}."
    )


def compile_if_needed(model: keras.Model) -> str:
    """Compiles a model that is not, with Adam and a loss; says so, or nothing."""
    if getattr(model, "optimizer", None) is not None:
        return ""
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse")
    return "The model was not compiled: checked with Adam and mean squared error."


def programs(model: keras.Model, batch: int, names: Any = PROGRAMS) -> list[Program]:
    """The model's programs for one batch size.

    Raises:
        ModelError: for a model whose input shape is not known.
    """
    x = input_specs(model, batch)
    made = []
    if TRAIN in names:
        step = FunctionalStep(model)
        state = tuple([_spec(v) for v in group] for group in step.variables)

        def train(trainable, non_trainable, optimizer, x, y):
            state = TrainState(trainable, non_trainable, optimizer)
            loss, state = step(state, x, y)
            return loss, *state

        made.append(Program(TRAIN, train, state, (x, target_specs(model, x))))
    if INFERENCE in names:

        def inference(trainable, non_trainable, x):
            return model.stateless_call(trainable, non_trainable, x, training=False)[0]

        weights = (model.trainable_variables, model.non_trainable_variables)
        state = tuple([_spec(v) for v in group] for group in weights)
        made.append(Program(INFERENCE, inference, state, (x,)))
    return made


def input_specs(model: keras.Model, batch: int) -> Any:
    """Shapes and dtypes of the inputs of one batch."""
    inputs = _inputs(model)
    if inputs is None:
        shape = (model.get_build_config() or {}).get("input_shape")
        if not isinstance(shape, tuple | list) or any(
            not isinstance(n, int | None) for n in shape
        ):
            raise ModelError(
                f"The input shape of {model.name!r} is not known. Build the model with "
                "keras.Input or model.build(input_shape) before it is saved."
            )
        inputs = keras.KerasTensor(tuple(shape), dtype=model.compute_dtype)
    return keras.tree.map_structure(lambda t: _fixed(t, batch), inputs)


def _inputs(model: Any) -> Any:
    while not hasattr(model, "inputs") and hasattr(model, "model"):
        model = model.model  # what a TransformedModel runs
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return None
    return inputs[0] if len(inputs) == 1 else list(inputs)


def target_specs(model: keras.Model, x: Any) -> Any:
    """Shapes and dtypes of the targets that the compiled loss takes.

    Like the outputs, or whole numbers without the last axis, as class labels are: a
    loss says which by its name, and otherwise by which of the two it accepts.

    Raises:
        ModelError: if it accepts neither.
    """
    symbolic = keras.tree.map_structure(
        lambda s: keras.KerasTensor(s.shape, dtype=str(s.dtype)), x
    )
    outputs = model.compute_output_spec(symbolic, training=True)
    single = not isinstance(outputs, list | tuple | dict)
    # TensorFlow wraps the lists and dictionaries of a model's attributes.
    losses = _plain(model.loss)
    if single:
        guesses = [_target(outputs, losses)]
    else:
        if isinstance(losses, str) or callable(losses):
            losses = keras.tree.map_structure(lambda _: losses, outputs)
        if isinstance(outputs, list | tuple) and isinstance(losses, dict):
            losses = [losses.get(name) for name in model.output_names]
        guesses = [keras.tree.map_structure(_target, outputs, losses)]
    guesses += [
        keras.tree.map_structure(lambda t: _target(t, "sparse"), outputs),
        keras.tree.map_structure(lambda t: _target(t, ""), outputs),
    ]
    problem: Exception | None = None
    for guess in guesses:
        try:
            _try_loss(model, guess, outputs)
            return guess
        except Exception as error:
            problem = problem or error
    raise ModelError(
        f"The loss takes neither targets like the outputs nor class labels: {problem} "
        "Compile the model with a loss that takes one of them for the check."
    ) from problem


def _plain(losses: Any) -> Any:
    if isinstance(losses, Mapping):
        return {name: _plain(loss) for name, loss in losses.items()}
    if isinstance(losses, list | tuple):
        return [_plain(loss) for loss in losses]
    return losses


def _try_loss(model: keras.Model, targets: Any, outputs: Any) -> None:
    """Traces the loss, which raises if the shapes do not fit."""
    predicted = keras.tree.map_structure(
        lambda t: _struct(tuple(t.shape), keras.backend.standardize_dtype(t.dtype)),
        outputs,
    )

    def loss(y, predicted):
        with keras.StatelessScope(collect_losses=True):
            return model.compute_loss(y=y, y_pred=predicted, training=True)

    if keras.backend.backend() == "jax":
        import jax

        jax.eval_shape(loss, targets, predicted)
        return
    import tensorflow as tf

    specs = keras.tree.map_structure(
        lambda s: tf.TensorSpec(s.shape, str(s.dtype)), (targets, predicted)
    )
    tf.function(loss, autograph=False).get_concrete_function(*specs)


def _target(output: Any, loss: Any) -> Any:
    name = loss if isinstance(loss, str) else getattr(loss, "name", "") or ""
    shape, dtype = tuple(output.shape), "float32"
    if "sparse" in name:
        shape, dtype = shape[:-1], "int32"
    return _struct(shape, dtype)


def _fixed(tensor: Any, batch: int) -> Any:
    shape = (batch, *tensor.shape[1:])
    if None in shape:
        raise ModelError(
            f"The input {tensor.name!r} has the shape {tuple(tensor.shape)}. A TPU "
            "program has fixed shapes: give every axis but the first a size."
        )
    return _struct(shape, keras.backend.standardize_dtype(tensor.dtype))


def _spec(variable: Any) -> Any:
    return _struct(
        tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)
    )


def _struct(shape: tuple[int, ...], dtype: str) -> Any:
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)
