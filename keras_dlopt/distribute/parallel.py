"""Data-parallel training with the model's own `compile` and `fit`."""

import functools
import inspect
import warnings
from typing import Any

import keras

from keras_dlopt import _compat
from keras_dlopt.distribute.build import require_tensorflow
from keras_dlopt.distribute.compression import Compression
from keras_dlopt.distribute.exchange import Exchange
from keras_dlopt.distribute.functions import EpochLength, Runner, compiled_step
from keras_dlopt.distribute.normalization import unsynchronized
from keras_dlopt.distribute.seeds import spread_seeds
from keras_dlopt.distribute.shares import Shares
from keras_dlopt.errors import ConfigError, DataError, ModelError
from keras_dlopt.graph.walk import layers_below
from keras_dlopt.optimizers.base import Optimizer
from keras_dlopt.optimizers.lookahead import Lookahead

_MARK = "dlopt_data_parallel"


def data_parallel(
    model: keras.Model,
    *,
    compression: Compression | None = None,
    replica_seeds: bool = True,
) -> keras.Model:
    """Has `model` train under its TensorFlow strategy as it would on one device.

    Returns the same object: `compile`, `fit`, `evaluate`, `save` and callbacks stay as
    they are. What Keras 3.15 does otherwise under `MirroredStrategy` and its kin, and
    what this changes:

    - Clipping acts on the gradient of the whole batch, not of a replica's share, also
      with Keras' own optimizers; gradient accumulation and EMA overwriting work.
    - `steps_per_execution` works, also where it does not divide the epoch.
    - Batches that the replicas share unequally count by examples; masks, weights and
      sums in compiled losses count as in the whole batch, and so do all logs.
    - Data sets that only a run through them can count make no step without data, and a
      generator keeps its first batch; text features and several workers work in `fit`.
    - `compile(jit_compile=True)` compiles each replica's forward and backward pass.
    - `predict_on_batch` returns each row once.
    - Dropout draws another mask on every replica.

    A compiled loss must give one value per example: Keras does not divide one number
    for the whole batch by the replicas, so that is refused.

    Args:
        model: built in the strategy's scope; compile it there too.
        compression: of the gradients that replicas exchange: `BFloat16()`, `TopK()`,
            `PowerSGD()`. Its state is not saved with the model: training that resumes
            starts with nothing left over.
        replica_seeds: False draws the same random numbers on every replica.

    Returns:
        `model`.

    Raises:
        ModelError: (from `fit`, for a loss that gives one number for a batch, too) if
            the model was built outside of a strategy's scope, is
            data-parallel already, or is Keras' `Distiller`.
    """
    require_tensorflow("data_parallel")
    if _compat.attached(model, _MARK) is not None:
        raise ModelError(
            f"The model {model.name!r} is data-parallel already. Call data_parallel "
            "once per model."
        )
    strategy = _strategy_of(model)
    if strategy.num_replicas_in_sync == 1:
        return model
    if isinstance(model, keras.distillation.Distiller):
        raise ModelError(
            "keras.distillation.Distiller does not divide its student's loss by the "
            f"{strategy.num_replicas_in_sync} replicas, so that its steps would be "
            "too large. Train it on one device, or add the distillation term to the "
            "loss with a keras.losses.Loss."
        )
    if unsynchronized(model):
        warnings.warn(
            f"{len(unsynchronized(model))} BatchNormalization layer(s) normalize each "
            "replica's share of a batch by itself, and the statistics of one replica "
            "are saved. For those of the whole batch call "
            "keras_dlopt.distribute.synchronize(model).",
            stacklevel=2,
        )
    parallel = _Parallel(model, compression, replica_seeds)
    _compat.attach(model, _MARK, parallel)
    parallel.install()
    return model


def _strategy_of(model: keras.Model) -> Any:
    import tensorflow as tf

    default = tf.distribute.get_strategy()
    strategy = model.distribute_strategy
    values = [v.value for v in model.variables]
    if strategy.num_replicas_in_sync > 1 and not all(
        isinstance(v, tf.distribute.DistributedValues) for v in values
    ):
        strategy = None
    outside = tf.distribute.has_strategy() and strategy is not default
    if strategy is None or outside:
        raise ModelError(
            f"The model {model.name!r} was built outside of the strategy's scope, so "
            "its weights are on one device. Build and compile it inside `with "
            "strategy.scope():`."
        )
    return strategy


class _Parallel:
    """What `data_parallel` puts on one model."""

    def __init__(
        self, model: keras.Model, compression: Compression | None, replica_seeds: bool
    ):
        self.model = model
        self.compression = compression
        self.replica_seeds = replica_seeds
        self.lengths = EpochLength()
        self.shares = Shares()
        self._hooked: Any = None

    def install(self) -> None:
        model = self.model
        _compat.build_from_spec(model)
        for layer in [model, *layers_below(model)]:
            _compat.keep_losses_apart(layer)
        _compat.replace_train_functions(model, self.make_function)
        for name in ("fit", "evaluate", "predict_on_batch"):
            plain = getattr(model, name)
            wrapped = functools.wraps(plain)(
                functools.partial(getattr(self, name), plain)
            )
            _compat.replace_method(model, name, wrapped)

    # -- in place of the model's methods -----------------------------------------------

    def fit(self, plain, *arguments, **options):
        given = _by_name(plain, arguments, options)
        steps = given.get("steps_per_epoch")
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        self.check_optimizer()
        check_last_batch(given.get("x"), given.get("batch_size"), steps, replicas)
        if self.replica_seeds:
            spread_seeds(self.model)
        self.lengths.start("train", steps)
        return self.ended(plain(*arguments, **options))

    def evaluate(self, plain, *arguments, **options):
        self.lengths.start("test", _by_name(plain, arguments, options).get("steps"))
        return self.ended(plain(*arguments, **options))

    def ended(self, result: Any) -> Any:
        """Lets go of the data of a `fit` or `evaluate` that gave `result`."""
        for function in (self.model.train_function, self.model.test_function):
            if isinstance(function, Runner):
                function.let_go()
        return result

    def predict_on_batch(self, plain, x):
        first = keras.tree.flatten(x)[0]
        return self.model.predict(x, batch_size=len(first), verbose=0)

    def check_optimizer(self) -> None:
        import tensorflow as tf

        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            raise ModelError(
                f"The model {self.model.name!r} is not compiled. Call compile() inside "
                "`with strategy.scope():` before fit()."
            )
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        inside = isinstance(inner.variables[0].value, tf.distribute.DistributedValues)
        if not inside:
            raise ModelError(
                f"The optimizer {inner.name!r} was created outside of the strategy's "
                "scope, so its state is on one device. Create it, and compile the "
                "model, inside `with strategy.scope():`."
            )

    # -- the train function ------------------------------------------------------------

    def make_function(self, step: Any) -> Runner:
        model = self.model
        training = getattr(step, "__name__", "") != "test_step"
        if not training:
            return self.runner("test", step)
        self.hook_optimizer()
        stock = step == model.train_step and _is_keras_step(model)
        if model.jit_compile and stock:
            step = self.compiled()
        return self.runner("train", step)

    def runner(self, kind: str, step: Any) -> Runner:
        return Runner(
            self.model, step, lengths=self.lengths, kind=kind, shares=self.shares
        )

    def compiled(self) -> Any:
        layers = layers_below(self.model)
        if any(getattr(layer, "synchronized", False) for layer in layers):
            raise ConfigError(
                "jit_compile=True compiles what each replica does alone, and "
                "synchronized BatchNormalization makes the replicas meet in the "
                "forward pass. Compile with jit_compile=False."
            )
        return compiled_step(self.model)

    def hook_optimizer(self) -> None:
        model = self.model
        optimizer = model.optimizer
        if optimizer is self._hooked:
            return
        self._hooked = optimizer
        strategy = model.distribute_strategy
        if hasattr(optimizer, "inner_optimizer"):
            check_loss_scaling(optimizer, self.compression)
            weigh_scaled(optimizer, self.shares)
            return
        exchange = Exchange(
            strategy, self.compression, model.trainable_variables, self.shares
        )
        while isinstance(optimizer, Lookahead):
            optimizer = optimizer.base  # which gets the gradients
        if isinstance(optimizer, Optimizer):
            optimizer.exchange = exchange
        else:
            _compat.replace_update(optimizer, exchange)


def _by_name(function: Any, arguments: Any, options: Any) -> dict[str, Any]:
    """The arguments of a call by their names."""
    given = inspect.signature(function).bind_partial(*arguments, **options).arguments
    return {**given.get("kwargs", {}), **given}


def _is_keras_step(model: keras.Model) -> bool:
    stock = type(model).train_step is keras.Model.train_step
    return stock and "train_step" not in vars(model)


def weigh_scaled(optimizer: Any, shares: Shares) -> None:
    """Has a loss-scaling optimizer count each replica's loss by its share."""
    plain = optimizer.scale_loss

    def scale_loss(loss):
        share = shares.here
        if share is not None:
            loss = loss * keras.ops.cast(share, loss.dtype)
        return plain(loss)

    _compat.replace_method(optimizer, "scale_loss", scale_loss)


def check_loss_scaling(optimizer: Any, compression: Compression | None) -> None:
    """Refuses what a loss-scaling optimizer cannot do on several replicas."""
    inner = optimizer.inner_optimizer
    wanted = [
        name
        for name in (
            "clipnorm",
            "global_clipnorm",
            "clipvalue",
            "gradient_accumulation_steps",
            "ema_overwrite_frequency",
        )
        if getattr(inner, name, None)
    ]
    wanted += ["compression"] if compression is not None else []
    if wanted:
        raise ConfigError(
            f"float16 with loss scaling cannot do {', '.join(wanted)} on several "
            "replicas. Use the dtype policy 'mixed_bfloat16', which needs no loss "
            "scaling."
        )


def check_last_batch(
    x: Any, batch_size: int | None, steps: int | None, replicas: int
) -> None:
    """Refuses arrays whose last batch leaves a replica without examples."""
    if steps is not None or not hasattr(x, "__len__") or not hasattr(x, "shape"):
        return
    size = batch_size or 32
    last = len(x) % size or size
    if last < replicas:
        raise DataError(
            f"The last batch has {last} of {len(x)} examples, fewer than the "
            f"{replicas} replicas, and one would compute on nothing. Leave examples "
            "out, choose another batch_size, or use "
            "keras_dlopt.distribute.prepare with a plan that drops the remainder."
        )
