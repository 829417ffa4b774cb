"""Any file on any batch: as the bare runtime, and clear about what does not fit."""

import concurrent.futures
import os

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

import keras_dlopt as dlopt
from keras_dlopt import export
from keras_dlopt.errors import ConfigError, DataError, FormatError
from keras_dlopt.export.batches import decoded, encoded, quantize
from keras_dlopt.export.runtime import End

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 6, 6, 2)).astype("float32")


def net():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2), name="image"),
            layers.Conv2D(4, 3, activation="relu", name="c"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="logits"),
        ]
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same network as four files, by name."""
    folder, model = tmp_path_factory.mktemp("files"), net()
    small = dlopt.post_training.quantize(model, X)
    found = {"model": model, "small": small}
    for name, made, options in (
        ("one", model, {}),
        ("four", model, {"batch_size": 4}),
        ("open", model, {"batch_size": None}),
        ("int8", small, {"io": "int8"}),
        ("int8_open", small, {"io": "int8", "batch_size": None}),
    ):
        found[name] = folder / f"{name}.tflite"
        export.litert(made, found[name], verify=False, **options)
    return found


def bare(path, x):
    """The same by hand: one example a call, scaled with the file's own numbers."""
    it = Interpreter(model_path=str(path))
    taken, made = it.get_input_details()[0], it.get_output_details()[0]
    it.resize_tensor_input(taken["index"], (1, *x.shape[1:]))
    it.allocate_tensors()
    rows = []
    for row in x:
        if taken["dtype"] == np.int8:
            scale, zero = taken["quantization"]
            row = np.clip(np.floor(row / scale + 0.5) + zero, -128, 127).astype("int8")
        it.set_tensor(taken["index"], row[None])
        it.invoke()
        out = it.get_tensor(made["index"])[0]
        if made["dtype"] == np.int8:
            scale, zero = made["quantization"]
            out = (out.astype("float64") - zero) * scale
        rows.append(out)
    return np.stack(rows)


@pytest.mark.parametrize("name", ["one", "four", "open", "int8", "int8_open"])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_batch_gives_what_single_calls_give(files, name, threads):
    predict = export.Predictor(files[name], threads=threads)
    # A file of a fixed size cannot be resized; another of the same network can.
    expected = bare(files["one" if name == "four" else name], X)
    for rows in (11, 4, 1, 8, 3):
        got = predict(X[:rows])
        assert got.dtype == np.float32
        # A batch may be summed in another order; levels of int8 are exact.
        np.testing.assert_allclose(got, expected[:rows], rtol=1e-6, atol=2e-6)


def test_the_batch_is_one_call_where_the_file_allows(files):
    for name, options, wanted in (
        ("one", {}, [1] * 11),
        ("four", {}, [4, 4, 4]),
        ("open", {}, [11]),
        ("open", {"batch_size": 5}, [5, 5, 1]),
        ("int8_open", {"batch_size": 20}, [11]),
    ):
        predict, sizes = export.Predictor(files[name], **options), []
        bare = predict._runtime._run
        put = bare.set_tensor
        bare.set_tensor = lambda i, a, put=put, s=sizes: s.append(len(a)) or put(i, a)
        predict(X)
        assert sizes == wanted


@pytest.mark.parametrize("name", ["one", "open", "int8_open"])
def test_plain_batches_and_others_give_the_same(files, name):
    """An array of the file's own type takes a shorter way."""
    predict = export.Predictor(files[name])
    for rows in (1, 11):
        expected = predict(X[:rows])
        for x in ({"image": X[:rows]}, X[:rows].astype("float64"), [X[:rows]]):
            np.testing.assert_array_equal(predict(x), expected)
    with pytest.raises(DataError, match="Received: .*0, 6, 6, 2"):
        predict(X[:0])


def test_more_examples_than_are_scaled_at_a_time(files):
    x = np.resize(X, (600, 6, 6, 2))
    for name in ("int8", "four"):
        got = export.Predictor(files[name])(x)
        np.testing.assert_array_equal(got[264:275], got[11:22])
        like = bare(files["one" if name == "four" else name], X)
        np.testing.assert_allclose(got[:11], like, atol=2e-6)


def test_it_tells_what_it_takes(files):
    predict = export.Predictor(files["int8_open"])
    (image,), (logits,) = predict.inputs, predict.outputs
    assert (image.name, image.shape) == ("image", (None, 6, 6, 2))
    assert (logits.name, logits.dtype) == ("logits", np.int8)
    assert repr(predict) == f"Predictor({os.fspath(files['int8_open'])!r})"
    assert export.Predictor(files["one"]).inputs[0].shape == (1, 6, 6, 2)


def test_names_dicts_lists_and_other_types(files):
    predict = export.Predictor(files["open"])
    expected = predict(X)
    for x in ({"image": X}, [X], (X,), X.astype("float64"), keras.ops.array(X)):
        np.testing.assert_array_equal(predict(x), expected)
    np.testing.assert_array_equal(predict(X[..., None]), expected)
    np.testing.assert_array_equal(predict(X[::-1])[::-1], expected)
    assert list(predict.named(X)) == ["logits"]
    np.testing.assert_array_equal(predict(X.tolist()), expected)


def test_several_threads_at_once_give_what_one_gives(files):
    predict = export.Predictor(files["open"])
    parts = [np.roll(X, k, axis=0)[: 1 + k % 11] for k in range(40)]
    expected = [predict(part) for part in parts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for a, b in zip(expected, pool.map(predict, parts), strict=True):
            np.testing.assert_array_equal(a, b)


def test_open_sizes_besides_the_batch(tmp_path):
    path = tmp_path / "m.tflite"
    model = keras.Sequential(
        [
            keras.Input((None, None, 2)),
            layers.Conv2D(3, 3),
            layers.GlobalAveragePooling2D(),
        ]
    )
    export.litert(model, path, batch_size=None)
    predict = export.Predictor(path)
    for x in (X, X[:3, :4, :5], X[:, :, :3]):
        np.testing.assert_allclose(predict(x), model(x), atol=1e-6)


def test_whole_numbers(tmp_path):
    path = tmp_path / "m.tflite"
    model = keras.Sequential(
        [keras.Input((3,), dtype="int32", name="ids"), layers.Embedding(5, 2)]
    )
    export.litert(model, path, batch_size=None)
    predict, ids = export.Predictor(path), np.array([[0, 1, 4], [3, 2, 2]])
    np.testing.assert_array_equal(predict(ids), model(ids))  # int64
    with pytest.raises(DataError, match="'ids' is of type int32. Received: float64."):
        predict(ids.astype(float))
    with pytest.raises(DataError, match="does not hold all the values given, 0 to"):
        predict(ids * 2**40)


def refused(error, text, call, *args, **kwargs):
    with pytest.raises(error, match=text):
        call(*args, **kwargs)


def test_data_that_does_not_fit(files, tmp_path):
    predict = export.Predictor(files["int8"])
    shape = r"takes batches of examples of shape \[\(6, 6, 2\)\]. Received: "
    for x, text in (
        (X[0], shape + r"\[\(6, 6, 2\)\]. Give one example as a batch of one: x\[None"),
        (X[:, :5], shape + r"\[\(11, 5, 6, 2\)\].$"),
        (X[:0], shape + r"\[\(0, 6, 6, 2\)\]"),
        (3.0, shape + r"\[\(\)\]"),
        ({"picture": X}, r"takes 1 inputs named \['image'\]. Received: \['picture'\]"),
        ({"image": X, "b": X}, r"Received: \['b', 'image'\]. Pass a dict with these"),
        ([X, X], r"takes 1 inputs named \['image'\]. Received: 2"),
        (X.astype(complex), "takes real numbers. Received: complex128"),
        (X.astype(str), "takes real numbers. Received: <U"),
        (X * np.nan, r"grid of int8, which holds no NaN. .*np.nan_to_num\(x\)"),
    ):
        refused(DataError, text, predict, x)
    refused(
        DataError,
        r"'image' is of type float32. Received: <U1. Convert the values: x.astype\('f",
        export.Predictor(files["one"]),
        np.full(X.shape, "a"),
    )
    inputs = [keras.Input((2,), name=name) for name in "ba"]
    export.litert(keras.Model(inputs, layers.Add()(inputs)), tmp_path / "two.tflite")
    predict, two = export.Predictor(tmp_path / "two.tflite"), np.ones((2, 2))
    refused(DataError, r"\[\(2, 2\), \(1, 2\)\]", predict, [two, two[:1]])
    refused(DataError, r"2 inputs named \['b', 'a'\]. Received: 1", predict, two)
    refused(DataError, r"Received: \['a', 'c'\]", predict, {"a": two, "c": two})


def test_infinities_are_the_ends_of_the_grid(files):
    predict = export.Predictor(files["int8"])
    np.testing.assert_array_equal(predict(X * np.inf), predict(X * 1e30))


def test_files_that_cannot_be_run(files, tmp_path):
    kind = "must end in .tflite or .onnx. For a .keras file use keras.saving.load_m"
    refused(ConfigError, kind, export.Predictor, tmp_path / "m.keras")
    refused(FileNotFoundError, "There is no", export.Predictor, tmp_path / "m.tflite")
    refused(ConfigError, "threads must be", export.Predictor, files["one"], threads=0)
    refused(
        ConfigError, "batch_size must", export.Predictor, files["one"], batch_size=-1
    )


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_are_one_error(files, tmp_path, data):
    raw = bytearray(files["int8"].read_bytes())
    if data.draw(st.booleans(), label="cut"):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:  # the first bytes say that it is a file of this kind, and where it begins
        for _ in range(4):
            raw[data.draw(st.integers(0, 7))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "bad.tflite"
    path.write_bytes(bytes(raw))
    try:
        export.Predictor(path)(X[:1])
    except (FormatError, DataError) as error:
        assert "bad.tflite" in str(error)  # noqa: PT017


def scalar_file(tmp_path, shapes, made):
    """A file of bare TensorFlow: inputs of any shape, and what `made` returns."""
    import tensorflow as tf

    specs = [tf.TensorSpec(shape) for shape in shapes]
    function = tf.function(made, input_signature=specs).get_concrete_function()
    with export.quiet.silence():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        data = converter.convert()
    path = tmp_path / "tf.tflite"
    path.write_bytes(data)
    return path


def test_files_that_are_no_function_of_a_batch(tmp_path):
    path = scalar_file(tmp_path, [()], lambda x: x * 2)
    refused(
        FormatError, "an input without a dimension for the b", export.Predictor, path
    )
    path = scalar_file(tmp_path, [(1, 2), (3, 2)], lambda x, y: x + y)
    refused(FormatError, r"different batch sizes, {1, 3}", export.Predictor, path)
    path = scalar_file(tmp_path, [(2, 3)], lambda x: keras.ops.sum(x, axis=0))
    predict = export.Predictor(path)
    refused(FormatError, r"the shape \(3,\) for a batch of 2", predict, np.ones((2, 3)))
    # Its shapes say that any batch goes, and an operation inside says 2.
    path = scalar_file(tmp_path, [(None, 3)], lambda x: x + np.ones((2, 3), "float32"))
    predict = export.Predictor(path)
    refused(
        FormatError, r"failed on inputs of shape \[\(5, 3\)", predict, np.ones((5, 3))
    )
    np.testing.assert_array_equal(predict(np.ones((2, 3))), np.full((2, 3), 2.0))


def end(dtype="int8", scale=0.5, zero_point=-3):
    return End("x", (None, 6), np.dtype(dtype), scale, zero_point)


def test_values_are_rounded_to_the_grid_of_an_input():
    values = np.array([-100.0, -0.26, 0.0, 0.24, 0.25, 100.0])
    assert quantize(values, end()).tolist() == [-128, -4, -3, -3, -2, 127]
    unsigned = quantize(values, end("uint8", 0.5, 10))
    assert unsigned.tolist() == [0, 9, 10, 10, 11, 210]
    assert encoded(values, end()).dtype == np.int8
    images = np.array([0, 128, 255], "uint8")
    assert quantize(images, end("int8", 1.0, -128)).tolist() == [-128, 0, 127]


def test_codes_become_values_again():
    codes = np.array([-128, -3, 127], "int8")
    assert decoded(codes, end()).tolist() == [-62.5, 0.0, 65.0]
    assert decoded(codes, end(scale=0.0)) is codes
