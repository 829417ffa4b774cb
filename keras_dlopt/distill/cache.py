"""A teacher's outputs, computed once and kept on disk."""

import hashlib
import io
import os
import pathlib
from typing import Any

import keras
import numpy as np

from keras_dlopt import checks
from keras_dlopt.codecs.dtypes import dtype_of
from keras_dlopt.errors import ConfigError, DataError, FormatError
from keras_dlopt.files import write_atomic
from keras_dlopt.graph.walk import check_built
from keras_dlopt.runtime.values import to_numpy

_LABELS, _TEACHER = "labels", "teacher_outputs"


def teacher_outputs(
    teacher: keras.Model,
    x: Any,
    *,
    path: str | os.PathLike[str] | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """What a teacher makes of each example, in order, so that it runs only once.

    Args:
        teacher: a built Keras model with one output.
        x: its inputs: an array, a dict or list of them as the teacher takes, or a
            `tf.data.Dataset` of batches in a fixed order.
        path: a `.npz` file. Outputs are read from it if they are of this teacher and
            these inputs, and written to it otherwise.
        batch_size: of arrays.

    Returns:
        (examples, ...), in the teacher's type; `taught` puts them beside the labels.

    Raises:
        ModelError: for a teacher that is not built.
        ConfigError: for a teacher with several outputs.
        FormatError: for a file that is damaged, or is no such file.

    Example:
        >>> import numpy as np
        >>> L = keras.layers
        >>> teacher = keras.Sequential([keras.Input((4,)), L.Dense(3)])
        >>> teacher_outputs(teacher, np.ones((5, 4))).shape
        (5, 3)
    """
    check_built(teacher)
    batch_size = checks.whole(batch_size, name="batch_size", least=1)
    if path is None:
        return _outputs(teacher, x, batch_size)
    path = pathlib.Path(path)
    key = _key(teacher, x)
    if path.exists():
        known, kept = _read(path)
        if known == key and _same_model(teacher, x, kept, batch_size):
            return kept
    made = _outputs(teacher, x, batch_size)
    buffer = io.BytesIO()
    digits = np.frombuffer(key, "uint8")
    np.savez(buffer, key=digits, outputs=made, dtype=np.array(str(made.dtype)))
    write_atomic(path, buffer.getvalue())
    return made


def _outputs(teacher: Any, x: Any, batch_size: int) -> np.ndarray:
    given = {"batch_size": batch_size} if _whole(x) else {}
    made = teacher.predict(x, verbose=0, **given)
    if not isinstance(made, np.ndarray):
        raise ConfigError(
            f"{teacher.name!r} has several outputs, and they are kept for one. Make a "
            "model of the one that the student learns from."
        )
    return made


def _whole(x: Any) -> bool:
    """Whether these are arrays of all examples, not batches one after the other."""
    return hasattr(x, "shape") or isinstance(x, dict | list | tuple)


def _same_model(teacher: Any, x: Any, kept: np.ndarray, batch_size: int) -> bool:
    """Whether the teacher makes of the first examples what was kept.

    Two models may have the same weights: the second half of one, or one without its
    softmax.
    """
    if _whole(x):
        first = keras.tree.map_structure(lambda one: one[:batch_size], x)
    else:
        first = x.take(1)
    made = _outputs(teacher, first, batch_size).astype("float32")
    known = kept[: len(made)].astype("float32")
    if made.shape != known.shape:
        return False
    tolerance = 1e-2 * float(np.std(known)) + 1e-6  # another machine rounds otherwise
    return bool(np.allclose(made, known, rtol=1e-3, atol=tolerance))


def _key(teacher: Any, x: Any) -> bytes:
    """A digest of the teacher's weights and the inputs."""
    digest = hashlib.sha256()
    for variable in teacher.variables:
        digest.update(np.ascontiguousarray(to_numpy(variable)).tobytes())
    for batch in [x] if _whole(x) else x:
        for one in keras.tree.flatten(batch):
            array = np.ascontiguousarray(to_numpy(one))
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.digest()


def _read(path: pathlib.Path) -> tuple[bytes, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            if "dtype" not in kept:  # NumPy loses the name of a bfloat16
                return b"", kept["outputs"]
            kind = dtype_of(str(kept["dtype"]))
            return kept["key"].tobytes(), kept["outputs"].view(kind)
    except Exception as error:
        raise FormatError(
            f"{path} holds no teacher's outputs, or is damaged ({error}). Remove it, "
            "or give another path."
        ) from error


def taught(y: Any, outputs: Any) -> dict[str, Any]:
    """Labels and a teacher's outputs, as the `y` of a distilled model's `fit`.

    Args:
        y: labels, (examples, ...); None to learn from the teacher alone.
        outputs: of the teacher, from `teacher_outputs`, for the same examples.

    Raises:
        DataError: if there are not as many outputs as labels.

    Example:
        >>> import numpy as np
        >>> sorted(taught(np.zeros(5), np.zeros((5, 3))))
        ['labels', 'teacher_outputs']
    """
    if y is None:
        return {_TEACHER: outputs}
    lengths = {len(one) for one in (*keras.tree.flatten(y), outputs)}
    if len(lengths) > 1:
        labels = len(keras.tree.flatten(y)[0])
        raise DataError(
            f"There are {len(outputs)} outputs of the teacher for {labels} labels. "
            "Compute them on the same examples."
        )
    return {_LABELS: y, _TEACHER: outputs}


def split_targets(y: Any) -> tuple[Any, Any]:
    """Labels, and the teacher's outputs if they come with them."""
    if isinstance(y, dict) and _TEACHER in y and set(y) <= {_LABELS, _TEACHER}:
        return y.get(_LABELS), y[_TEACHER]
    return y, None
