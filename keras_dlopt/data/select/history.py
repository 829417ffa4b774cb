"""How a network comes to know each example, recorded while it trains."""

import io
import os
import pathlib
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.data.pipeline import batches
from keras_dlopt.data.select.given import classes
from keras_dlopt.data.select.outputs import error_norms, margins_of
from keras_dlopt.errors import ConfigError, DataError
from keras_dlopt.files import read_limited, read_npz, write_atomic


class ExampleHistory(keras.callbacks.Callback):
    """Records margin and error of each example after each epoch of `fit`.

    One pass of prediction over the examples an epoch, about a third of the epoch's
    work, and nothing in the training step. It holds 8 bytes an example and epoch.

    Differs from Toneva et al., who look at an example as it comes up in a batch of
    training: here all are looked at with the same weights, without dropout.

    Args:
        x: examples of the training set, in an order that stays.
        y: their labels, whole numbers or one-hot.
        batch_size: of the prediction.
        path: a file that keeps the record, so that a run that was stopped goes on with
            it: epochs before the first one of the next `fit` are taken from it.

    Raises:
        DataError: for labels that do not fit, or a file of other examples.

    Example:
        >>> x, y = np.random.default_rng(0).normal(size=(8, 4)), np.arange(8) % 2
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> model.compile("sgd", loss)
        >>> history = ExampleHistory(x, y)
        >>> _ = model.fit(x, y, epochs=3, verbose=0, callbacks=[history])
        >>> history.margins.shape, history.forgetting().shape
        ((3, 8), (8,))

    Source: Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural
    Network Learning" (arXiv:1812.05159); the mean margin is that of Pleiss et al.,
    "Identifying Mislabeled Data using the Area Under the Margin Ranking"
    (arXiv:2001.10528), of probabilities.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        *,
        batch_size: int = 256,
        path: str | os.PathLike[str] | None = None,
    ):
        super().__init__()
        self._labels = classes(y, count=len(x))
        batch_size = checks.count(batch_size, name="batch_size")
        self._data = batches(np.asarray(x), self._labels, batch_size=batch_size).map(
            lambda images, labels: images
        )
        self._path = None if path is None else pathlib.Path(path)
        self._rows: dict[int, np.ndarray] = {}
        self._first: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._first = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._first is not None:
            return
        self._first = epoch
        if self._path is not None and self._path.exists():
            self._read(self._path)
        self._rows = {n: row for n, row in self._rows.items() if n < epoch}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        made = self.model.predict(self._data, verbose=0)
        self._rows[epoch] = np.array(
            [margins_of(made, self._labels), error_norms(made, self._labels)], "float32"
        )
        if self._path is not None:
            buffer = io.BytesIO()
            epochs = np.array(sorted(self._rows))
            np.savez(
                buffer,
                labels=self._labels,
                epochs=epochs,
                rows=np.stack([self._rows[n] for n in epochs]),
            )
            write_atomic(self._path, buffer.getvalue())

    def _read(self, path: pathlib.Path) -> None:
        kept = read_npz(read_limited(path, 1 << 34))
        if set(kept) != {"labels", "epochs", "rows"} or not np.array_equal(
            kept["labels"], self._labels
        ):
            raise DataError(
                f"{path} is no record of these examples. Remove it, or give another "
                "path."
            )
        self._rows = dict(zip(kept["epochs"].tolist(), kept["rows"], strict=True))

    @property
    def margins(self) -> np.ndarray:
        """(epochs, examples): the label's probability less the largest other one."""
        return self._recorded()[:, 0]

    @property
    def errors(self) -> np.ndarray:
        """(epochs, examples): EL2N, the norm of the error, after each epoch."""
        return self._recorded()[:, 1]

    def forgetting(self) -> np.ndarray:
        """How often each example was right after one epoch and wrong after the next.

        Returns:
            (examples,), float64. Those that were never right count one more than any
            that was, so that they are the hardest.
        """
        right = self.margins > 0
        events = (right[:-1] & ~right[1:]).sum(axis=0).astype("float64")
        events[~right.any(axis=0)] = len(right)
        return np.asarray(events)

    def difficulty(self) -> np.ndarray:
        """Less the mean margin over the epochs, high for hard examples: (examples,)."""
        return np.asarray(-self.margins.mean(axis=0, dtype="float64"))

    def _recorded(self) -> np.ndarray:
        if not self._rows:
            raise ConfigError(
                "Nothing is recorded yet. Give this callback to model.fit() first."
            )
        return np.stack([self._rows[n] for n in sorted(self._rows)])
