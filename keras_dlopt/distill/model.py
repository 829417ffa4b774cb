"""A student that learns from teachers in `fit`, and nothing else about it changes."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_dlopt import _compat
from keras_dlopt._compat.tracing import graph_now
from keras_dlopt.config import decode, encode
from keras_dlopt.distill.cache import split_targets
from keras_dlopt.distill.teachers import (
    Average,
    MeanTeacher,
    heads_of,
    shape_of,
    surveyed,
)
from keras_dlopt.distill.term import Compared, Term, weights_of
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph import hooks
from keras_dlopt.graph.walk import walk
from keras_dlopt.runtime.replicas import gathered
from keras_dlopt.transforms.host import Hidden
from keras_dlopt.transforms.model import TransformedModel
from keras_dlopt.transforms.recipe import Recipe
from keras_dlopt.transforms.trainer import overridden

_NOTHING: tuple[dict[str, Any], ...] = ({},)
# Calls of a model that its loss may still ask for, in one thread.
_KEPT = 2


class _Mean(keras.losses.Loss):
    """The mean of the losses it is given; Keras weighs and scales it as its own."""

    def call(self, _, losses):
        return losses


@keras.saving.register_keras_serializable("keras_dlopt")
class DistilledModel(TransformedModel):
    """A student with its teachers; use `distill` to build one.

    It is the student, transformed or not: layers, names, `summary`, `predict`,
    `evaluate`, own train steps and losses are the student's. In training, the terms are
    added to the compiled loss; their weighted sum is the metric `distillation_loss`.
    `finalize` gives the student alone.

    Args:
        model: the student, a built Keras model.
        recipe: how the student is transformed; empty for a plain one.
        teachers: built Keras models, or one `MeanTeacher`.
        terms: the losses between them.
        heads: what outputs are, as found in earlier; None to find out.
        shapes: of the features that are projected; None to find out.
        example: a batch of inputs, for models that do not know their input's shape.
        corrections: as of `TransformedModel`.
    """

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        teachers: Sequence[Any],
        terms: Sequence[Term],
        *,
        heads: Any = None,
        shapes: Any = None,
        example: Any = None,
        **kwargs: Any,
    ):
        super().__init__(model, recipe, **kwargs)
        self._hidden_terms = Hidden(tuple(terms))
        self._hidden_calls_seen = Hidden(threading.local())
        self._average = Hidden(None)
        self._mean_teacher = None
        if teachers and isinstance(teachers[0], MeanTeacher):
            self._mean_teacher = teachers[0]
            self._average = Hidden(Average(self, model, teachers[0].decay))
            self.teachers = []
        else:
            self.teachers = list(teachers)
            for teacher in self.teachers:
                teacher.trainable = False
        if heads is None or shapes is None:
            heads, shapes = self._look(example)
        self._heads = Hidden(tuple(tuple(one) for one in heads))
        self._shapes = Hidden(tuple(shapes))
        self.projectors = self._projectors(terms)
        self.distillation_loss = keras.metrics.Mean(name="distillation_loss")
        own = vars(self).get("compute_metrics")
        if own is not None:
            _compat.replace_method(self, "compute_metrics", _without_teacher(own))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The losses between student and teachers."""
        return self._hidden_terms.value

    def _look(self, example: Any) -> tuple[Any, Any]:
        """Heads of student and teachers, and shapes of the features of each term."""
        models = [self.model, *(self.teachers or [self.model])]
        found = surveyed(models, example)
        pairs_of = zip(models, found, strict=True)
        heads = [heads_of(model, one, example) for model, one in pairs_of]
        shapes = []
        for term in self.terms:
            mine, theirs = term.paths()
            which = getattr(term, "which", 0)
            if which >= len(models) - 1:
                raise ConfigError(
                    f"{term!r} asks for teacher {which} of {len(models) - 1}, counted "
                    "from 0."
                )
            pairs = zip(mine, theirs, strict=True)
            shapes.append(
                [
                    (
                        shape_of(found[0], a, side="student", model=models[0]),
                        shape_of(
                            found[1 + which], b, side="teacher", model=models[1 + which]
                        ),
                    )
                    for a, b in pairs
                ]
            )
        return heads, shapes

    def _projectors(self, terms: Sequence[Term]) -> list[Any]:
        """A layer for each term, one that does nothing where none is needed."""
        made = []
        for term, shapes in zip(terms, self._shapes.value, strict=True):
            layer = None
            for student, teacher in shapes:
                layer = term.projection(tuple(student), tuple(teacher))
                if layer is not None:
                    layer.build(tuple(student))
            made.append(layer or keras.layers.Identity())
        return made

    def compile(self, *args, **kwargs) -> None:
        """As of any model.

        Raises:
            ConfigError: for a loss of plain values under a term that takes the outputs
                for logits of classes.
        """
        super().compile(*args, **kwargs)
        if self._heads.value[0] == ("linear",):
            for term in self.terms:
                term.check_loss(self.loss, name=self.name)

    def call(self, inputs, *args, training=None, **kwargs):
        """Runs the student, with what else its `call` takes."""
        paths = {path for term in self.terms for path in term.paths()[0]}
        features: dict[str, Any] = {}

        def student() -> Any:
            with hooks.hooked(_noting(self.model, paths, features)):
                return self.model(inputs, *args, training=training, **kwargs)

        outputs = self.run(student, training=bool(training))
        seen = self._hidden_calls_seen.value
        call = (graph_now(), inputs, outputs, features)
        seen.calls = (*getattr(seen, "calls", ()), call)[-_KEPT:]
        return outputs

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The compiled loss, in training with the terms."""
        return self.around_loss(
            super().compute_loss,
            x=x,
            y=y,
            y_pred=y_pred,
            sample_weight=sample_weight,
            training=training,
        )

    def around_loss(self, compute: Callable[..., Any], **given: Any) -> Any:
        """A loss of the student, in training with the terms.

        Args:
            compute: the student's own.
            **given: what `compute_loss` was given, by name.
        """
        labels, taught = split_targets(given.get("y"))
        given = {**given, "y": labels}
        training = given.get("training", True)
        own = overridden(self.model, "compute_loss")
        if training and self.loss is None and not self.losses and not own:
            loss = ops.zeros(())  # the terms alone
        else:
            loss = compute(**given)
        if not training:
            return loss
        x, outputs, features = self._seen(given.get("x"), given.get("y_pred"))
        seen = self._teach(x, outputs, features, labels, taught)
        total: Any = 0.0
        for term, projector in zip(self.terms, self.projectors, strict=True):
            total += term.weight * term(_with(seen, projector))
        batch = ops.shape(keras.tree.flatten(outputs)[0])[0]
        total = total + ops.zeros((batch,), "float32")
        weight = _one_an_example(given.get("sample_weight"))
        self.distillation_loss.update_state(total, sample_weight=weight)
        mean = _Mean(name="distillation", dtype="float32")
        # A float64 loss, where the model is of that kind, takes the terms' float32.
        return ops.add(loss, mean(total, total, sample_weight=weight))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The compiled metrics, on the labels alone."""
        return super().compute_metrics(x, split_targets(y)[0], y_pred, sample_weight)

    def test_step(self, *args, **kwargs):
        """As of any model; the terms are not computed, and not named."""
        logs = super().test_step(*args, **kwargs)
        one = logs[0] if isinstance(logs, tuple) else logs  # JAX hands state on
        if isinstance(one, dict):
            one.pop("distillation_loss", None)
        return logs

    def _seen(self, x: Any, outputs: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Inputs, outputs and features of the call that made these outputs."""
        wanted = [id(one) for one in keras.tree.flatten(outputs)]
        calls = getattr(self._hidden_calls_seen.value, "calls", ())
        for _, given, made, features in reversed(calls):
            if [id(one) for one in keras.tree.flatten(made)] == wanted:
                return given, made, features
        graph = graph_now()
        if calls and graph is not None and calls[-1][0] is graph:
            return calls[-1][1:]  # a step of its own has changed what it predicts
        if x is None:
            raise ModelError(
                f"compute_loss() of {self.name!r} was given neither x nor what the "
                "model made of it, so the teacher sees nothing. Pass x=."
            )
        made = self(x, training=True)
        return x, made, self._hidden_calls_seen.value.calls[-1][3]

    def _teach(
        self, x: Any, outputs: Any, features: dict[str, Any], labels: Any, taught: Any
    ) -> Compared:
        """What the terms compare."""
        if taught is not None:
            if len(self.teachers) != 1:
                raise ConfigError(
                    "Outputs of a teacher came with the data, which stand for one "
                    f"model, and {self.name!r} has {self.teachers or 'a MeanTeacher'}. "
                    "Pass y without them."
                )
            if any(term.paths()[1] for term in self.terms):
                raise ConfigError(
                    "The teacher's outputs come with the data, and these terms look at "
                    f"its layers: {[t for t in self.terms if t.paths()[1]]}. Pass y "
                    "without them: the teacher then runs in each step."
                )
            theirs, inside = (taught,), _NOTHING
        else:
            theirs, inside = self._taught(x)
        heads = [
            keras.tree.pack_sequence_as(one, list(head))
            for one, head in zip(
                (outputs, *theirs), self._heads.value[: 1 + len(theirs)], strict=True
            )
        ]
        weights = [weights_of(one) for one in keras.tree.flatten(outputs)]
        masked = any(one is not None for one in weights)
        return Compared(
            _float(outputs),
            tuple(_still(one) for one in theirs),
            tuple(heads),
            _float(features),
            tuple(_still(one) for one in inside),
            labels,
            weights=keras.tree.pack_sequence_as(outputs, weights) if masked else None,
            feature_weights={path: weights_of(one) for path, one in features.items()},
            gathered=gathered,
        )

    def _taught(self, x: Any) -> tuple[tuple[Any, ...], tuple[dict[str, Any], ...]]:
        """Outputs and features of each teacher."""
        paths = {path for term in self.terms for path in term.paths()[1]}
        average = self._average.value
        if average is not None:
            average.update()
            made, inside = self.substituted(
                average.values(), lambda: _outputs_and_features(self.model, paths, x)
            )
            return (made,), (inside,)
        made = [_outputs_and_features(one, paths, x) for one in self.teachers]
        return tuple(one for one, _ in made), tuple(inside for _, inside in made)

    def get_config(self) -> dict[str, Any]:
        """The student's, the teachers and the terms."""
        teachers = [keras.saving.serialize_keras_object(t) for t in self.teachers]
        if self._mean_teacher is not None:
            teachers = [encode(self._mean_teacher)]
        return {
            **super().get_config(),
            "teachers": teachers,
            "terms": [encode(term) for term in self.terms],
            "heads": [list(one) for one in self._heads.value],
            "shapes": [
                [[list(a), list(b)] for a, b in pairs] for pairs in self._shapes.value
            ],
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the distilled model from its `get_config()`."""
        config = dict(config)
        model = keras.saving.deserialize_keras_object(
            config.pop("model"), custom_objects=custom_objects
        )
        teachers = [
            decode(one)
            if set(one) == {"class", "config"}
            else keras.saving.deserialize_keras_object(
                one, custom_objects=custom_objects
            )
            for one in config.pop("teachers")
        ]
        terms = [decode(one) for one in config.pop("terms")]
        recipe = Recipe.from_dict(config.pop("recipe"))
        return cls(model, recipe, teachers, terms, **config)


def _noting(model: Any, paths: set[str], features: dict[str, Any]) -> Any:
    """Hooks that note what layers make."""

    def hook(path: str) -> hooks.Hook:
        def note(call: hooks.Called, given: hooks.Given) -> Any:
            features[path] = call(given)
            return features[path]

        return note

    if not paths:
        return []
    return [(layer, hook(path)) for path, layer, _ in walk(model) if path in paths]


def _outputs_and_features(
    model: Any, paths: set[str], x: Any
) -> tuple[Any, dict[str, Any]]:
    features: dict[str, Any] = {}
    with hooks.hooked(_noting(model, paths, features)):
        return model(x, training=False), features


def _with(seen: Compared, projector: Any) -> Compared:
    """The same for a term with a projector of its own."""
    # A projector made under mixed precision gives halves.
    return Compared(**{**vars(seen), "projected": lambda x: _float(projector(x))})


def _float(structure: Any) -> Any:
    return keras.tree.map_structure(lambda x: ops.cast(x, "float32"), structure)


def _still(structure: Any) -> Any:
    return keras.tree.map_structure(ops.stop_gradient, _float(structure))


def _one_an_example(weight: Any) -> Any:
    """Weights of examples, (batch,); None where single outputs or places have them."""
    if not hasattr(weight, "shape") or 1 not in (len(weight.shape), *weight.shape[1:2]):
        return None
    return ops.reshape(weight, (-1,)) if len(weight.shape) < 3 else None


def _without_teacher(function: Callable[..., Any]) -> Callable[..., Any]:
    """Metrics of the user's own, on the labels alone."""

    def method(x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        return function(x, split_targets(y)[0], *args, **kwargs)

    return method
