"""Quantizers of activations at work: what passes them, and whether they act."""

import contextlib
import dataclasses
from typing import Any

from keras import ops

from keras_dlopt.errors import ModelError
from keras_dlopt.graph.targets import Target
from keras_dlopt.graph.trace import trace
from keras_dlopt.select import exact_paths
from keras_dlopt.transforms.base import Context, Transform


class Passage:
    """One quantizer during one run of its model: what each tensor there becomes.

    Args:
        transform: of activations.
        slot: its target and state.
        context: of this run.
        acted: told when a tensor comes.
    """

    def __init__(self, transform: Transform, slot: Any, context: Context, acted: Any):
        self.transform, self.slot, self.acted = transform, slot, acted
        self.context, self.later = context, None
        if context.training:
            # Copied here: variables move on, and what comes may be inside a loop.
            before = {name: ops.copy(v) for name, v in slot.tensors().items()}
            self.later = dataclasses.replace(context, before=before)

    def __call__(self, x: Any) -> Any:
        context, self.context = self.context, self.later or self.context
        self.acted.slots.add(self.slot)
        return self.transform.apply(x, self.slot.tensors(), context)


class Acted:
    """Which quantizers of activations have acted since the model was made or loaded.

    Args:
        model: the model or layer that the recipe transforms.
        recipe: whose entries are the groups, in order.
    """

    def __init__(self, model: Any, recipe: Any):
        self.model, self.recipe = model, recipe
        self.slots: set[Any] = set()
        self.ran = False

    def check(self, groups: Any) -> None:
        """Raises `ModelError` if the model has run and a quantizer has not acted.

        Of those that a selector names exactly each must have, of all others one of
        their entry: what `named("output")` selects may hold parts that never run.
        """
        if self.ran and (lost := self._lost(groups)) and (lost := self._never(lost)):
            raise ModelError(
                f"The quantizers at {[t.path for t in lost]} have no effect: no call "
                "of these layers takes or returns a floating-point tensor there. "
                f"{self._sites(lost)}Leave the paths out of the recipe, or start from "
                "int8_recipe(model), which names the places that are passed."
            )

    def _lost(self, groups: Any) -> list[Target]:
        lost: list[Target] = []
        for (selector, _), group in zip(self.recipe.entries, groups, strict=True):
            if group.transform.kind != "activation":
                continue
            idle = [s.target for s in group.slots if s not in self.slots]
            named = exact_paths(selector)
            whole = len(idle) == len(group.slots)
            lost += [t for t in idle if whole or t.path in named]
        return lost

    def _never(self, targets: list[Target]) -> list[Target]:
        """Those that do not act in inference either."""
        passed: set[tuple[int, str, int | None]] = set()
        with contextlib.suppress(ModelError):  # its inputs are not known
            graph = trace(self.model)
            for call in graph.calls:
                ends = {"input": call.inputs, "output": call.outputs}
                for end, tensors in ends.items():
                    if set(tensors) - graph.integers:
                        passed.add((id(call.layer), end, call.site))
                        passed.add((id(call.layer), end, None))
        return [t for t in targets if (id(t.layer), t.name, t.site) not in passed]

    def _sites(self, targets: list[Target]) -> str:
        if all(t.site is None for t in targets):
            return ""
        return "A path with @1 is the second call of a layer in one run of the model. "
