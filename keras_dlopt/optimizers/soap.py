"""SOAP: Adam in the slowly rotating eigenbasis of Shampoo's preconditioner."""

import math
from typing import Any

import keras
from keras import ops

from keras_dlopt import checks
from keras_dlopt.optimizers import _options
from keras_dlopt.optimizers._hyper import hyper
from keras_dlopt.optimizers._moments import mean, unbias
from keras_dlopt.optimizers._options import share_kept
from keras_dlopt.optimizers.adam import adam_rule
from keras_dlopt.optimizers.base import Optimizer

# Directions without gradient hold rounding errors of about 1e-7 of the largest entry
# after the rotation; dividing by this share of it keeps them from becoming steps.
NOISE = 1e-5
# Share of the mean eigenvalue added to all before a QR, or rounding would choose the
# basis of the directions that no gradient has had yet.
SHIFT = 1e-3
# Each turns the basis by a factor of about SHIFT closer to the eigenvectors.
FIRST_TURNS = 3


def soap_rule(
    gradient: Any,
    slots: dict[str, Any],
    *,
    lr: Any,
    step: Any,
    beta_1: float,
    beta_2: float,
    beta_3: float,
    epsilon: float,
    frequency: int,
) -> tuple[Any, dict[str, Any]]:
    """One SOAP step on a matrix: what to subtract, and the new state.

    Args:
        gradient: matrix.
        slots: `"momentum"` and `"velocity"` of its shape; `"left"` with `"left_basis"`
            and `"right"` with `"right_basis"`, square, where that side is rotated.
        lr: learning rate.
        step: number of the update, from 1.
        beta_1: share of the mean gradient kept.
        beta_2: share of the mean square kept.
        beta_3: share of the preconditioners kept.
        epsilon: added to the root.
        frequency: updates between two turns of the basis.
    """
    new = {}
    due = ops.equal(ops.floor((step - 1) / frequency) * frequency, step - 1)
    for side, other in (("left", gradient), ("right", ops.transpose(gradient))):
        if side in slots:
            square = ops.matmul(other, ops.transpose(other))
            gram = new[side] = mean(slots[side], square, beta_3)
            basis = slots[f"{side}_basis"]
            new[f"{side}_basis"] = ops.cond(
                due,
                lambda gram=gram, basis=basis: _turn(gram, basis, step),
                lambda basis=basis: basis,
            )
    m = new["momentum"] = mean(slots["momentum"], gradient, beta_1)
    turned = _rotate(gradient, new)
    v = new["velocity"] = mean(slots["velocity"], ops.square(turned), beta_2)
    direction = unbias(_rotate(m, new), beta_1, step)
    root = ops.sqrt(unbias(v, beta_2, step))
    scaled = direction / (root + NOISE * ops.max(root) + epsilon)
    return lr * _rotate(scaled, new, back=True), new


def _turn(gram: Any, basis: Any, step: Any) -> Any:
    """One step of simultaneous power iteration; several for the first basis."""
    size = gram.shape[0]
    unit = ops.eye(size, dtype=gram.dtype)
    shifted = gram + SHIFT * ops.trace(gram) / size * unit

    def first():
        turned = unit
        for _ in range(FIRST_TURNS):
            turned = ops.qr(ops.matmul(shifted, turned))[0]
        return turned

    return ops.cond(
        step > 1, lambda: ops.qr(ops.matmul(shifted, basis))[0], lambda: first()
    )


def _rotate(x: Any, slots: dict[str, Any], *, back: bool = False) -> Any:
    """Q_left^T x Q_right, or its inverse."""
    if "left_basis" in slots:
        basis = slots["left_basis"]
        x = ops.matmul(basis if back else ops.transpose(basis), x)
    if "right_basis" in slots:
        basis = slots["right_basis"]
        x = ops.matmul(x, ops.transpose(basis) if back else basis)
    return x


@keras.saving.register_keras_serializable("keras_dlopt")
class SOAP(Optimizer):
    r"""SOAP: Adam on gradients rotated into the eigenbasis of their covariances.

    For a matrix with gradient G (kernels of convolutions become matrices with one
    column per filter), and ^ the bias correction of Adam:

        L <- beta_3 L + (1 - beta_3) G G^T      R <- beta_3 R + (1 - beta_3) G^T G
        every `frequency` updates: Q_L <- qr(L' Q_L), Q_R <- qr(R' Q_R)
            with X' = X + 1e-3 trace(X) / size(X)
        M <- beta_1 M + (1 - beta_1) G
        V <- beta_2 V + (1 - beta_2) (Q_L^T G Q_R)^2
        N = (Q_L^T M^ Q_R) / (sqrt(V^) + 1e-5 max sqrt(V^) + epsilon)
        w <- w - lr * Q_L N Q_R^T

    Vectors, and matrices with both sides above `max_size`, take Adam. State: 8 bytes a
    parameter, and 8 a^2 for each rotated side of length a.

    Args:
        learning_rate: float, schedule, or callable without arguments; about 3 times
            that of Adam.
        beta_1: share of the mean gradient kept at each step, in [0, 1).
        beta_2: share of the mean square kept, in [0, 1).
        beta_3: share of L and R kept, in [0, 1).
        epsilon: added to the root, in units of the gradient.
        frequency: updates between two turns of the bases, at least 1.
        max_size: longest side that is rotated; longer ones keep the unit basis.
        **options: see `keras_dlopt.optimizers.Optimizer`.

    Raises:
        ConfigError: for arguments out of range.

    Example:
        >>> v = keras.Variable([[1.0, 0.0]])
        >>> SOAP(0.1).apply([keras.ops.array([[0.6, 0.8]])], [v])
        >>> v.numpy().round(4).tolist()
        [[0.94, -0.08]]

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam"
    (arXiv:2409.11321), algorithm 3 with the power iteration of algorithm 4. Differs
    from the paper: the first basis is three QRs from the unit matrix rather than an
    eigendecomposition, the first gradient already moves the weights, and the term with
    the maximum is added, which keeps rounding errors in directions without any gradient
    (dead inputs) from becoming steps; the shift X' keeps them from choosing the basis.
    """

    slot_names = ("momentum", "velocity")
    starts_apart = True

    learning_rate: Any = hyper(default=0.003, check=_options.learning_rate)
    beta_1: float = hyper(default=0.95, check=share_kept)
    beta_2: float = hyper(default=0.95, check=share_kept)
    beta_3: float = hyper(default=0.95, check=share_kept)
    epsilon: float = hyper(default=1e-8, check=checks.rate)
    frequency: int = hyper(default=10, check=checks.count)
    max_size: int = hyper(default=512, check=checks.count)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        for side, name in enumerate(("left", "right")):
            for slot in (name, f"{name}_basis"):
                made = [self._square(v, side, slot) for v in variables]
                self._built.slots[slot] = made

    def _square(self, variable: Any, side: int, slot: str) -> Any:
        size = _matrix_shape(variable.shape)[side] if len(variable.shape) > 1 else 0
        if not 1 < size <= self.max_size:
            return None
        return self.state_beside(variable, slot, (size, size), variable.dtype)

    def rule(self, gradient, weight, slots, lr, step):
        betas = {"beta_1": self.beta_1, "beta_2": self.beta_2}
        common = {"lr": lr, "step": step, "epsilon": self.epsilon, **betas}
        if "left" not in slots and "right" not in slots:
            return adam_rule(gradient, slots, **common)
        shape = tuple(gradient.shape)
        matrix = _matrix_shape(shape)
        for name in ("momentum", "velocity"):
            slots[name] = ops.reshape(slots[name], matrix)
        change, new = soap_rule(
            ops.reshape(gradient, matrix),
            slots,
            beta_3=self.beta_3,
            frequency=self.frequency,
            **common,
        )
        for name in ("momentum", "velocity"):
            new[name] = ops.reshape(new[name], shape)
        return ops.reshape(change, shape), new


def _matrix_shape(shape: Any) -> tuple[int, int]:
    """All axes but the last joined: inputs by outputs."""
    return math.prod(tuple(shape)[:-1]), int(shape[-1])
