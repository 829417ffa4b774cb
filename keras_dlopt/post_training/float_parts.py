"""What of a quantized model stays in float because it hurts most, by measurement."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_dlopt.errors import ConfigError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.targets import weight_targets
from keras_dlopt.int8.recipes import kernel_targets
from keras_dlopt.post_training.data import Batches
from keras_dlopt.runtime.values import to_numpy
from keras_dlopt.select import Selector, at
from keras_dlopt.transforms import Recipe, TransformedModel, finalize, transform

# Examples on which the parts are measured; ranges need more than differences do.
_MOST = 256


@dataclasses.dataclass(frozen=True)
class FloatParts:
    """What was left in float, and what that is worth.

    Errors are relative squared errors of the outputs on the data,
    sum |f_quantized(x) - f(x)|^2 / sum |f(x) - mean f|^2.

    Attributes:
        before: the error with everything quantized.
        after: the error with these parts in float.
        parts: path of the kernel or activation, those that hurt most first -> the error
            with that part alone in float.
    """

    before: float
    after: float
    parts: dict[str, float]

    def selector(self) -> Selector:
        """Means these parts, for `quantize(keep_float=)` and `int8.without`."""
        return at(*self.parts)

    def __str__(self) -> str:
        lines = [f"error {self.before:.3g} in int8, {self.after:.3g} with in float:"]
        lines += [f"  {path}: {error:.3g} alone" for path, error in self.parts.items()]
        return "\n".join(lines)


def worst_parts(
    model: keras.Model, small: TransformedModel, data: Batches, max_error: float
) -> FloatParts:
    """Chooses what to leave in float until the outputs are near enough.

    Each quantizer alone is left out and the error measured; then they are left out
    together, the most harmful first, until the error is reached.

    Args:
        model: in float.
        small: the same model, quantized and calibrated.
        data: what it was calibrated on.
        max_error: relative squared error of the outputs that may stay.

    Raises:
        ConfigError: for an error that the float model alone has.
    """
    trial = _Trial(model, small, data)
    before = trial.error(())
    if before <= max_error:
        return FloatParts(before, before, {})
    alone = {part: trial.error((part,)) for part in trial.parts}
    chosen: dict[str, float] = {}
    after = before
    for part, error in sorted(alone.items(), key=lambda item: item[1]):
        if after <= max_error:
            break
        together = trial.error((*chosen, part))
        if together < after:
            chosen[part], after = error, together
    if len(chosen) == len(trial.parts):
        raise ConfigError(
            f"max_error={max_error:g} leaves nothing of {model.name!r} quantized. With "
            f"everything in int8 the error is {before:.3g}. Raise max_error."
        )
    return FloatParts(before, after, chosen)


class _Trial:
    """The quantized model with quantizers that can be left out, traced once."""

    def __init__(self, model: keras.Model, small: TransformedModel, data: Batches):
        self.batches = Batches(model, data, limit=_MOST).batches
        rounding = Recipe([e for e in small.recipe.entries if e[1].kind != "weight"])
        self.twin = (
            transform(model, rounding) if rounding.entries else copy_model(model)
        )
        inner = getattr(self.twin, "model", self.twin)
        values = {t.path: t.variable for t in weight_targets(finalize(small))}
        self.weights = {
            t.path: (t.variable, to_numpy(t.variable), to_numpy(values[t.path]))
            for group in small.groups
            if group.transform.kind == "weight"
            for slot in group.slots
            for t in kernel_targets(inner)
            if t.path == slot.target.path
        }
        self.slots = self._slots(small)
        self.parts = (*self.weights, *self.slots)
        self.wanted = self._outputs(copy_model(model))
        spread = [np.square(y - y.mean(axis=0)).sum() for y in self.wanted]
        self.spread = float(sum(spread)) or 1.0

    def _slots(self, small: TransformedModel) -> dict[str, Any]:
        """Path -> the state of each activation quantizer, with the range found."""
        found = {}
        for group in getattr(self.twin, "groups", ()):
            for slot in group.slots:
                found[slot.target.path] = slot
        for group in small.groups:
            for slot in group.slots if group.transform.kind != "weight" else ():
                for name, value in slot.arrays().items():
                    found[slot.target.path].write(name, value)
        # Quantizers of other kinds than FakeQuantActivation cannot be left out here.
        return {path: slot for path, slot in found.items() if "seen" in slot.state}

    def error(self, left_out: tuple[str, ...]) -> float:
        """The relative squared error of the outputs without these quantizers."""
        for path, (variable, plain, rounded) in self.weights.items():
            variable.assign(plain if path in left_out else rounded)
        for path, slot in self.slots.items():
            # As long as it has seen nothing, it lets values pass.
            slot.write("seen", float(path not in left_out))
        pairs = zip(self._outputs(self.twin), self.wanted, strict=True)
        return float(sum(np.square(a - b).sum() for a, b in pairs)) / self.spread

    def _outputs(self, model: Any) -> list[np.ndarray]:
        made = [keras.tree.flatten(model.predict_on_batch(b)) for b in self.batches]
        return [np.concatenate(p).astype("float64") for p in zip(*made, strict=True)]
