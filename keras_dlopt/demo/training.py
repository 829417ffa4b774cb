"""The demo's three trainings."""

import dataclasses
from typing import Any

import keras

from keras_dlopt import models, schedules
from keras_dlopt.callbacks import LossDrivenLearningRate
from keras_dlopt.data import Dataset, batches
from keras_dlopt.demo.progress import Progress, Recorder
from keras_dlopt.demo.settings import Plan
from keras_dlopt.int8 import int8_recipe
from keras_dlopt.select import named
from keras_dlopt.transforms import Cluster, Prune, Recipe, TransformedModel, transform

# Peak rates of Adam under cosine decay. A rule that follows the loss would fall while
# pruning raises it, so only the float training is driven by the loss.
COMPRESS_RATE, INT8_RATE = 3e-3, 1e-3


@dataclasses.dataclass(frozen=True)
class Trace:
    """Loss and learning rate of every step of one training."""

    name: str
    loss: tuple[float, ...]
    rate: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What the trainings share."""

    dataset: Dataset
    plan: Plan
    seed: int
    progress: Progress

    def train_float(self) -> tuple[keras.Model, Trace]:
        """The parent, its learning rate driven by the loss."""
        model = models.resnet(
            depth=8,
            width=self.plan.width,
            input_shape=self.dataset.input_shape,  # type: ignore[arg-type]
            classes=self.dataset.classes,
        )
        rule = LossDrivenLearningRate()
        return model, self._fit(model, "training", self.plan.epochs, 1e-3, [rule])

    def compress(self, parent: keras.Model) -> tuple[TransformedModel, Trace]:
        """Pruned, then clustered, then tuned, by one recipe in one `fit`."""
        model = transform(parent, recipe(self.plan))
        rate = self._cosine(COMPRESS_RATE, self.plan.epochs)
        return model, self._fit(model, "compressing", self.plan.epochs, rate)

    def quantize(self, parent: keras.Model) -> tuple[TransformedModel, Trace]:
        """Trained on with int8 weights and activations."""
        model = transform(parent, int8_recipe(parent))
        rate = self._cosine(INT8_RATE, self.plan.int8_epochs)
        return model, self._fit(model, "int8", self.plan.int8_epochs, rate)

    def _cosine(self, rate: float, epochs: int) -> Any:
        steps = epochs * self.plan.steps
        return keras.optimizers.schedules.CosineDecay(rate, steps, alpha=0.01)

    def _fit(
        self,
        model: keras.Model,
        name: str,
        epochs: int,
        rate: Any,
        callbacks: list[Any] | None = None,
    ) -> Trace:
        model.compile(
            optimizer=keras.optimizers.Adam(rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        recorder = Recorder(self.progress)
        data = batches(
            *self.dataset.train,
            batch_size=self.plan.batch_size,
            shuffle=True,
            drop_remainder=True,
            seed=self.seed,
        )
        model.fit(
            data,
            epochs=epochs,
            shuffle=False,  # the batches are shuffled already
            verbose=0,
            callbacks=[*(callbacks or []), recorder],
        )
        return Trace(name, tuple(recorder.loss), tuple(recorder.rate))


def recipe(plan: Plan) -> Recipe:
    """The demo's one recipe: every kernel is pruned on a schedule, then clustered."""
    sparsity = schedules.PolynomialSparsity(
        plan.sparsity, end=plan.prune_end, frequency=max(1, plan.steps // 2)
    )
    clusters = Cluster(plan.clusters, begin=plan.cluster_begin)
    return Recipe([(named("kernel"), Prune(sparsity) >> clusters)])
