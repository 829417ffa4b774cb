"""From a student and what teaches it to a model to `fit`."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_dlopt import checks
from keras_dlopt.distill.logits import LogitsDistillation
from keras_dlopt.distill.model import DistilledModel
from keras_dlopt.distill.teachers import MeanTeacher
from keras_dlopt.distill.term import Term
from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.copying import copy_model
from keras_dlopt.graph.walk import check_built
from keras_dlopt.transforms.model import TransformedModel
from keras_dlopt.transforms.recipe import Recipe


def distill(
    student: keras.Model,
    teacher: Any,
    terms: Term | Sequence[Term] | None = None,
    *,
    copy: bool = True,
    example: Any = None,
) -> DistilledModel:
    """Has a student learn from a teacher, beside the labels or without them.

    Compile and fit what comes back as the student would be: its optimizer, loss,
    metrics, callbacks, strategy and own train step stay. The terms are added to the
    compiled loss (`loss_weights=` weighs that one; without a `loss` the student learns
    from the teacher alone). A student that is transformed keeps its recipe and its
    schedules, so that pruning, clustering or quantization and distillation are one
    `fit`. The teacher sees what the student sees, in inference mode. Sample weights of
    one number an example weigh the terms, too; those of outputs or places do not.

    Args:
        student: a built Keras model, or a `TransformedModel`.
        teacher: a built Keras model; a list of several, whose probabilities are
            averaged; `"parent"` for the student as it is now, without its transforms;
            or a `MeanTeacher`.
        terms: what is compared; `LogitsDistillation()` if None.
        copy: whether student and teacher stay as they are. False trains the student
            itself and freezes the teacher itself.
        example: a batch of inputs, for models that do not know their input's shape.

    Returns:
        A model to `compile` and `fit`, then to `finalize`.

    Raises:
        ModelError: for a model that is not built, or cannot be copied.
        ConfigError: for anything that is no teacher or term, layers that are not there
            and features that cannot be compared.

    Example:
        >>> L = keras.layers
        >>> teacher = keras.Sequential([keras.Input((4,)), L.Dense(32), L.Dense(3)])
        >>> student = keras.Sequential([keras.Input((4,)), L.Dense(3)])
        >>> taught = distill(student, teacher, LogitsDistillation(temperature=2.0))
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> taught.compile("adam", loss)
    """
    terms = [LogitsDistillation()] if terms is None else terms
    terms = [terms] if isinstance(terms, Term) else list(terms)
    for i, term in enumerate(terms):
        checks.instance(
            term,
            Term,
            name=f"terms[{i}]",
            wanted="a distillation term, such as LogitsDistillation()",
        )
    if isinstance(student, DistilledModel):
        raise ModelError(
            f"{student.name!r} has teachers already. Give distill() all of them in a "
            "list, or go on from finalize(student)."
        )
    check_built(student)
    student = copy_model(student) if copy else student
    model, recipe, states = student, Recipe([]), []
    if isinstance(student, TransformedModel):
        states = student.states
        student.release()
        model, recipe = student.model, student.recipe
    teachers = [
        _teacher(one, model, copy=copy)
        for one in (teacher if isinstance(teacher, list | tuple) else [teacher])
    ]
    if not teachers or (
        len(teachers) > 1 and any(isinstance(one, MeanTeacher) for one in teachers)
    ):
        raise ConfigError(
            "teacher must be a model, a list of models, 'parent' or one MeanTeacher. "
            f"Received: {teacher!r}."
        )
    made = DistilledModel(
        model,
        recipe,
        teachers,
        terms,
        example=example,
        corrections=getattr(student, "corrections", ()),
    )
    for old, new in zip(states, made.states, strict=True):
        new.assign(old)
    return made


def _teacher(given: Any, model: Any, *, copy: bool) -> Any:
    if isinstance(given, MeanTeacher):
        return given
    if isinstance(given, str):
        checks.choice(given, name="teacher", choices=("parent",))
        return copy_model(model)
    checks.instance(
        given,
        keras.Model,
        name="teacher",
        wanted="a Keras model, a list of them, 'parent' or a MeanTeacher",
    )
    check_built(given)
    return copy_model(given) if copy else given
