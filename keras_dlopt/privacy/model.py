"""A model whose `fit` is DP-SGD, whatever the optimizer."""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlopt import _compat, checks
from keras_dlopt.config import decode, encode
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.privacy import (
    accounting,
    drawing,
    explained,
    ghost,
    refusals,
    stepping,
)
from keras_dlopt.privacy.accounting import Spent
from keras_dlopt.privacy.budget import Budget
from keras_dlopt.runtime import on_tensorflow, replica_count, to_numpy
from keras_dlopt.transforms.host import Hidden
from keras_dlopt.transforms.model import TransformedModel
from keras_dlopt.transforms.recipe import Recipe

METHODS = ("auto", "ghost", "vectorized")
_NO_LIMIT = 2**31 - 1


@keras.saving.register_keras_serializable("keras_dlopt")
class PrivateModel(TransformedModel):
    """A model with private training; use `private` to build one.

    It is the model, transformed or not: layers, names, `predict`, `evaluate` and files
    are the model's. `fit` draws the batches, clips each example's gradient, adds the
    noise, counts what is spent and stops when the budget is. `finalize` gives the model
    alone.

    Args:
        model: a built Keras model.
        recipe: how its weights are transformed; empty for a plain one.
        epsilon: as of `private`.
        noise_multiplier: as of `private`.
        clip: as of `private`.
        delta: as of `private`.
        sampling: as of `private`.
        accountant: as of `private`.
        microbatch: as of `private`.
        method: as of `private`.
        seed: as of `private`; never part of the config or of a file.
        ledger: what was spent before, `Spent` values.
        corrections: as of `TransformedModel`.
    """

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        *,
        epsilon: float | None,
        noise_multiplier: float | None = None,
        clip: float = 1.0,
        delta: float = 1e-5,
        sampling: str = "poisson",
        accountant: str = "pld",
        microbatch: int | None = None,
        method: str = "auto",
        seed: int | None = None,
        ledger: Iterable[Spent] = (),
        **kwargs: Any,
    ):
        refusals.check_model(model)
        refusals.check_recipe(recipe)
        accounting.needed()
        super().__init__(model, recipe, **kwargs)
        self._hidden_stepping = Hidden(threading.local())
        optional = checks.optional
        self.target = optional(checks.positive, epsilon, name="epsilon")
        self.noise_multiplier = optional(
            checks.rate, noise_multiplier, name="noise_multiplier"
        )
        if self.target is None and self.noise_multiplier is None:
            raise ConfigError(
                "Either epsilon or noise_multiplier must be given. Received: None for "
                "both. Use epsilon=3.0 to have the noise follow from the budget."
            )
        self.clip = checks.positive(clip, name="clip")
        self.delta = checks.fraction(delta, name="delta")
        self.sampling = checks.choice(
            sampling, name="sampling", choices=accounting.SAMPLINGS
        )
        self.accountant = checks.choice(
            accountant, name="accountant", choices=accounting.ACCOUNTANTS
        )
        self.microbatch = optional(checks.count, microbatch, name="microbatch")
        self.asked_method = checks.choice(method, name="method", choices=METHODS)
        self._hidden_secret = Hidden(
            drawing.Secret.of(optional(checks.seed, seed, name="seed"))
        )
        self._hidden_ledger = Hidden(list(ledger))
        self._private_variables()

    def _private_variables(self) -> None:
        done = sum(one.steps for one in self._hidden_ledger.value)
        made = [
            self.add_weight(
                shape=(),
                dtype=dtype,
                initializer=keras.initializers.Constant(value),
                trainable=False,
                autocast=False,
                name=f"private_{name}",
                aggregation="only_first_replica",
            )
            for name, dtype, value in (
                ("steps", "int32", done),
                ("limit", "int32", _NO_LIMIT),
                ("sigma", "float32", self.noise_multiplier or 0.0),
                ("size", "float32", 1.0),
            )
        ]
        self._hidden_state = Hidden(tuple(made))

    @property
    def private_state(self) -> tuple[Any, ...]:
        """Variables: steps done, steps allowed, noise multiplier, mean batch size."""
        return tuple(self._hidden_state.value)

    @property
    def secret(self) -> drawing.Secret:
        """What draws and noise come from."""
        secret: drawing.Secret = self._hidden_secret.value
        return secret

    @property
    def method(self) -> str:
        """How gradients of single examples are found, `"ghost"` or `"vectorized"`."""
        if not on_tensorflow() or self.recipe.entries:
            return "vectorized"
        if self.asked_method == "auto":
            return "vectorized" if ghost.unknown(self.model) else "ghost"
        return self.asked_method

    def _add_penalty(self, loss: Any) -> None:
        raise ConfigError(
            f"A transform of {self.name!r} adds a loss of its own, which private "
            "training does not follow. Use transforms without one, such as Prune, "
            "Cluster or FakeQuant."
        )

    @property
    def ledger(self) -> tuple[Spent, ...]:
        """What training has spent so far, one entry a `fit`."""
        held = self._hidden_ledger.value
        if held:
            done = int(np.max(to_numpy(self.private_state[0])))
            steps = done - sum(one.steps for one in held[:-1])
            last = held[-1].get_config()
            # An older checkpoint that is restored gives nothing back.
            held[-1] = Spent(**last | {"steps": max(steps, held[-1].steps)})
        return tuple(held)

    def epsilon(self, delta: float | None = None) -> float:
        """The epsilon that training has spent so far.

        Args:
            delta: None for the model's own.
        """
        return accounting.epsilon(
            self.ledger,
            delta=self.delta if delta is None else delta,
            accountant=self.accountant,
        )

    def call(self, inputs, *args, training=None, **kwargs):
        """Runs the model; in training only inside its own steps."""
        if training and not getattr(self._hidden_stepping.value, "inside", False):
            raise ModelError(
                f"{self.name!r} is trained privately, and was called with "
                "training=True outside of its own steps, where no gradient is clipped. "
                "Use fit(x, y), or train finalize(model), without privacy."
            )
        return super().call(inputs, *args, training=training, **kwargs)

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside, this thread may run the model in training."""
        self._hidden_stepping.value.inside = True
        try:
            yield
        finally:
            self._hidden_stepping.value.inside = False

    def compile(self, *args, **kwargs) -> None:
        """As `keras.Model.compile`, with a loss; any optimizer of gradients serves."""
        super().compile(*args, **kwargs)
        refusals.check_optimizer(vars(self).get("optimizer"), self.loss)

    def train_step(self, *args):
        """One step of DP-SGD."""
        step = stepping.tensorflow_step if on_tensorflow() else stepping.jax_step
        with self.stepping():
            return step(self, *args)

    def train_on_batch(self, *_args, **_kwargs):
        """Refused: what it spends depends on how the batch was drawn."""
        raise ModelError(
            f"{self.name!r} is trained privately, and a batch given by hand cannot be "
            "counted. Use fit(x, y), which draws the batches itself."
        )

    def fit(
        self,
        x=None,
        y=None,
        batch_size=32,
        epochs=1,
        verbose="auto",
        callbacks=None,
        *,
        steps_per_epoch=None,
        initial_epoch=0,
        **kwargs,
    ):
        """As `keras.Model.fit`, on batches that it draws; stops when all is spent.

        Args:
            x: arrays of examples.
            y: arrays of labels.
            batch_size: examples a batch; in the mean, where sampling is `"poisson"`.
            epochs: number of the last epoch.
            verbose: as of Keras.
            callbacks: as of Keras; none that act on the training loss.
            steps_per_epoch: None for as many as hold each example once, in the mean.
            initial_epoch: number of the first epoch.
            **kwargs: what else `keras.Model.fit` takes, such as `validation_data`.
        """
        refusals.check_fit(kwargs)
        refusals.check_callbacks(callbacks)
        kwargs.pop("shuffle", None)
        x, y, examples = drawing.arrays(x, y)
        if self.method == "ghost":
            with self.stepping():
                refusals.check_apart(self, x)
                explained.check_explained(self, x, y)
        draw = self._draw(examples, drawing.batch_size(batch_size, examples))
        steps = draw.batches
        if steps_per_epoch is not None:
            steps = checks.count(steps_per_epoch, name="steps_per_epoch")
        planned = steps * max(epochs - initial_epoch, 0)
        batches = drawing.DrawnData(x, y, draw, self.secret, steps=steps)
        budget = Budget(self, batches, planned=planned, limit=self._open(draw, planned))
        data = batches.dataset()
        if on_tensorflow():
            _compat.build_metrics(self, data.element_spec)
        return super().fit(
            data,
            epochs=epochs,
            verbose=verbose,
            callbacks=budget.with_others(callbacks),
            shuffle=False,
            initial_epoch=initial_epoch,
            **kwargs,
        )

    def _draw(self, examples: int, size: int) -> drawing.Draw:
        if self.delta * examples >= 1:
            raise checks.refused(
                self.delta,
                name="delta",
                wanted=f"below 1 / {examples}, the number of examples",
                hint="It is the chance that an example is laid open.",
            )
        replicas = 1
        if on_tensorflow():
            with self.distribute_strategy.scope():
                replicas = replica_count()
        return drawing.Draw(
            examples=examples,
            batch_size=size,
            sampling=self.sampling,
            padded=not on_tensorflow() or replicas > 1 or bool(self.jit_compile),
            multiple=replicas * (self.microbatch or 1),
        )

    def _open(self, draw: drawing.Draw, planned: int) -> int:
        """Opens an entry of the ledger; the number of steps at which all is spent."""
        before = self.ledger
        rate, sampling = draw.rate, draw.sampling
        options: dict[str, Any] = {
            "rate": rate,
            "delta": self.delta,
            "sampling": sampling,
            "accountant": self.accountant,
            "after": before,
        }
        sigma, limit = self.noise_multiplier, _NO_LIMIT
        if sigma is None:
            assert self.target is not None
            sigma = accounting.noise_multiplier(
                self.target, steps=max(planned, 1), **options
            )
        if self.target is not None:
            limit = accounting.steps_within(
                self.target, noise_multiplier=sigma, **options
            )
            if not limit:
                used = accounting.epsilon(
                    before, delta=self.delta, accountant=self.accountant
                )
                raise accounting.spent_text(used, self.target)
        done = int(np.max(to_numpy(self.private_state[0])))
        limit = min(done + limit, _NO_LIMIT)
        values = (done, limit, sigma, draw.batch_size)
        for variable, value in zip(self.private_state, values, strict=True):
            variable.assign(ops.cast(value, variable.dtype))
        self._hidden_ledger.value.append(
            Spent(noise_multiplier=sigma, rate=rate, steps=0, sampling=sampling)
        )
        return limit

    def get_config(self) -> dict[str, Any]:
        """The model's, what `private` was given but for the seed, and what is spent."""
        return {
            **super().get_config(),
            "epsilon": self.target,
            "noise_multiplier": self.noise_multiplier,
            "clip": self.clip,
            "delta": self.delta,
            "sampling": self.sampling,
            "accountant": self.accountant,
            "microbatch": self.microbatch,
            "method": self.asked_method,
            "ledger": [encode(one) for one in self.ledger],
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the private model from its `get_config()`, with a fresh secret."""
        config = dict(config)
        config["ledger"] = [decode(one) for one in config.pop("ledger")]
        return super().from_config(config, custom_objects)
