"""Names and order of what goes into a model and what comes out of it.

A file knows neither dicts nor nesting: it has tensors with names, and converters sort
and renumber them as they like. So the names go into the file's signature, and its lists
of inputs and outputs are put into the order of the model's.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_dlopt.errors import ExportError
from keras_dlopt.export.flat import Flat
from keras_dlopt.graph.trace import input_specs
from keras_dlopt.graph.walk import own_layers


@dataclasses.dataclass(frozen=True, eq=False)
class Ends:
    """The inputs and outputs of a model, flat, in the order of `keras.tree.flatten`.

    Attributes:
        specs: the structure of the inputs, each with `shape` and `dtype`.
        inputs: a name for each input.
        outputs: a name for each output.
    """

    specs: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def signature(self, batch: int | None) -> dict[str, keras.InputSpec]:
        """Name -> what a function takes that is called with the inputs by name."""
        flat = zip(self.inputs, keras.tree.flatten(self.specs), strict=True)
        return {
            name: keras.InputSpec(
                shape=(batch, *spec.shape[1:]), dtype=spec.dtype, name=name
            )
            for name, spec in flat
        }

    def structured(self, named: dict[str, Any]) -> Any:
        """Inputs by name in the structure that the model takes."""
        flat = [named[name] for name in self.inputs]
        return keras.tree.pack_sequence_as(self.specs, flat)

    def named(self, outputs: Any) -> dict[str, Any]:
        """What the model returned, by name."""
        return dict(zip(self.outputs, keras.tree.flatten(outputs), strict=True))


def ends_of(model: keras.Model, example: Any = None) -> Ends:
    """The ends of a built model.

    Inputs and outputs of a dict have its keys for names. Those of a list have the names
    that Keras gave: of the `Input`, and of the layer that made the output. What has
    none is numbered: `input_0`, `output_1`.

    Args:
        model: a built Keras model.
        example: a batch of inputs, for models that do not know their input's shape.

    Raises:
        ModelError: for a model that is not built, or whose inputs are not known.

    Example:
        >>> a, b = keras.Input((2,), name="b"), keras.Input((2,), name="a")
        >>> model = keras.Model([a, b], keras.layers.Add(name="sum")([a, b]))
        >>> ends_of(model).inputs, ends_of(model).outputs
        (('b', 'a'), ('sum',))
    """
    specs = input_specs(model, example)
    if getattr(model, "outputs", None) and getattr(model, "output", None) is not None:
        outputs = model.output
    else:
        outputs = model.compute_output_spec(specs)
    known = [t.name for t in getattr(model, "inputs", None) or []]
    made = list(getattr(model, "output_names", None) or [])
    if isinstance(model, keras.Sequential):
        made = [own_layers(model)[-1].name]
    return Ends(specs, _names(specs, known, "input"), _names(outputs, made, "output"))


def _names(structure: Any, known: Sequence[str], kind: str) -> tuple[str, ...]:
    paths = keras.tree.flatten_with_path(structure)
    if isinstance(structure, dict) and all(len(path) == 1 for path, _ in paths):
        wanted = [str(path[0]) for path, _ in paths]
    elif len(known) == len(paths):
        wanted = list(known)
    else:
        wanted = [""] * len(paths)
    numbered = (f"{kind}_{i}" for i in range(len(paths)))
    # Keras numbers the inputs that got no name, and goes on doing so in the process.
    plain = [re.sub(r"^keras_tensor(_\d+)?$", "", name) for name in wanted]
    return unique(name or number for name, number in zip(plain, numbered, strict=True))


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Names that a signature can have: letters, digits, `_`; each once.

    Example:
        >>> unique(["a/b", "a_b", "0"])
        ('a_b', 'a_b_1', 'x0')
    """
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", name) or "x"
        plain = plain if plain[0].isalpha() else f"x{plain}"
        free, number = plain, 0
        while free in found:
            number += 1
            free = f"{plain}_{number}"
        found.append(free)
    return tuple(found)


def arrange(file: Flat, ends: Ends) -> None:
    """Puts the inputs of a file into the order of the model's, and names all ends.

    Args:
        file: as the converter wrote it: its inputs have the names of the model's, its
            outputs their order.
        ends: of the model.

    Raises:
        ExportError: if the file has other inputs, or another number of outputs.
    """
    made = {_name(file, i): i for i in file.inputs}
    if sorted(ends.inputs) != sorted(made) or len(file.outputs) != len(ends.outputs):
        raise ExportError(
            f"The file has the inputs {sorted(made)} and {len(file.outputs)} outputs, "
            f"and the model {sorted(ends.inputs)} and {len(ends.outputs)}. A converter "
            "of another version wrote it; report it with the versions of tensorflow "
            "and keras."
        )
    file.inputs[:] = [made[name] for name in ends.inputs]
    file.sign(ends.inputs, ends.outputs)


def _name(file: Flat, index: int) -> str:
    # TensorFlow numbers the outputs of an operation: "x:0".
    return (file.tensors[index].name or b"").decode().removesuffix(":0")
