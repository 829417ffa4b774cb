"""Where the float file comes from that int8 is written into: a seam.

TensorFlow's converter (`tf.lite`) makes it from one function: `keras.Model.export`
writes a SavedModel first, loads it and converts that; the function alone, its variables
as constants, gives the same operations in a tenth of the time. `litert-converter` makes
it from StableHLO, which JAX exports, and needs no `tf.lite`. Both leave a pair of
QUANTIZE and DEQUANTIZE where a trained range is.
"""

import importlib.util
from typing import Any

import keras

from keras_dlopt.errors import ConfigError, ExportError, require
from keras_dlopt.export import stablehlo
from keras_dlopt.export.flat import Flat
from keras_dlopt.export.quiet import silence
from keras_dlopt.export.twin import Twin

CONVERTERS = ("auto", "tf.lite", "stablehlo")


def chosen(converter: str) -> str:
    """`"tf.lite"` or `"stablehlo"`, whichever is meant and can be had.

    Args:
        converter: one of `CONVERTERS`; `"auto"` takes `"tf.lite"` where it is.

    Raises:
        ConfigError: for another name, or `"tf.lite"` where it is not.
        MissingDependencyError: without the packages of `"stablehlo"`.
    """
    if converter not in CONVERTERS:
        raise ConfigError(
            f"converter must be one of {CONVERTERS}. Received: {converter!r}."
        )
    known = keras.backend.backend() == "tensorflow" and _has_tf_lite()
    if converter == "tf.lite" and not known:
        raise ConfigError(
            "converter='tf.lite' needs Keras on TensorFlow, and a TensorFlow that has "
            "tf.lite. Use converter='stablehlo'."
        )
    if converter == "tf.lite" or (converter == "auto" and known):
        return "tf.lite"
    packages, purpose = ("litert_converter", "jax"), "Writing .tflite without tf.lite"
    require(*packages, extra="stablehlo", purpose=purpose)
    return "stablehlo"


def _has_tf_lite() -> bool:
    if importlib.util.find_spec("tensorflow") is None:
        return False
    import tensorflow as tf

    return hasattr(getattr(tf, "lite", None), "TFLiteConverter")


def float_file(
    twin: Twin, path: str, batch: int | None, converter: str = "tf.lite"
) -> Flat:
    """Converts a twin to a .tflite file in float; its inputs have the model's names.

    Args:
        twin: what is converted.
        path: where the file is written.
        batch: examples per call of the file; None leaves it open.
        converter: `"tf.lite"` or `"stablehlo"`.

    Raises:
        ConfigError: for what `"stablehlo"` does not take.
        ExportError: if the converter fails.
    """
    if converter == "stablehlo":
        stablehlo.write(twin, path, batch)
        return _by_signature(Flat(path), twin)
    try:
        with silence():
            converted = _converted(twin, batch)
    except Exception as error:
        raise ExportError(
            f"The LiteRT converter refused {twin.name!r} ({type(error).__name__}): "
            f"{str(error)[:1000]}"
        ) from error
    with open(path, "wb") as file:
        file.write(converted)
    return Flat(path)


def _by_signature(file: Flat, twin: Twin) -> Flat:
    """The file with the names of its inputs, and the order of its outputs."""
    for name, index in file.input_names.items():
        file.tensors[index].name = name.encode()
    file.outputs[:] = [file.output_names[name] for name in twin.ends.outputs]
    return file


def _converted(twin: Twin, batch: int | None) -> bytes:
    import tensorflow as tf

    specs = twin.ends.signature(batch)

    def flat(*inputs: Any) -> list[Any]:
        return list(twin(dict(zip(specs, inputs, strict=True))).values())

    function = tf.function(flat, autograph=False).get_concrete_function(
        *(tf.TensorSpec(s.shape, s.dtype, name=name) for name, s in specs.items())
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], None)
    converter.exclude_conversion_metadata = True
    converted: bytes = converter.convert()
    return converted
