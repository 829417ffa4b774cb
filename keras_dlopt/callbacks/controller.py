"""What a callback does inside the train step, and what it sees there."""

import dataclasses
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(eq=False)
class Seen:
    """What a controller sees of one train step.

    Attributes:
        loss: mean loss of the (global) batch, a scalar tensor; None where no
            controller uses it, or the train step reports none.
        rate: learning rate that the step used, a scalar tensor.
        before: trainable weights before the step, if the controller asked.
        after: trainable weights after the step, if the controller asked.
        gradients: gradients that the optimizer got, if the controller asked; under a
            strategy this replica's share, to be added up with `total`.
        variables: every weight and optimizer variable after the step, if the
            controller can undo steps.
        total: adds a tensor up over the replicas.
    """

    loss: Any
    rate: Any
    before: list[Any] | None = None
    after: list[Any] | None = None
    gradients: list[Any] | None = None
    variables: list[Any] | None = None
    total: Any = None


class Controller:
    """Pure step of one callback, traced into the train step.

    Attributes:
        key: name of the state in checkpoints.
        wants_loss: set if it cannot do without the loss of the batch.
        uses_loss: set if it takes the loss where there is one.
        leads_rate: set if it can only drive the rate of `model.optimizer`.
        wants_weights: set to see the weights before and after the step.
        wants_gradients: set to see the gradients.
        host: state that is kept on the host, float64, and saved with the rest.
        undoes: set if `after_step` may ask to take the step back.
    """

    key = "controller"
    wants_loss = False
    uses_loss = False
    leads_rate = True
    wants_weights = False
    wants_gradients = False
    host: np.ndarray | None = None
    undoes = False

    def initial(self, model: keras.Model) -> list[np.ndarray]:
        """The state at the start of `fit`, float32 arrays."""
        raise TypeError(f"{type(self).__name__} must define `initial`.")

    def after_step(self, state: list[Any], seen: Seen) -> tuple[list[Any], Any, Any]:
        """Returns the next state, the factor for the rate, and whether to keep.

        The last is a boolean tensor, or None to keep the step always.
        """
        raise TypeError(f"{type(self).__name__} must define `after_step`.")

    def scheduled(self, step: Any) -> tuple[str, Any] | None:
        """An attribute of the optimizer and its value in the step being traced."""
        return None
