"""Every reader of JSON: mutated files give one kind of error, with a reason."""

import json
import tempfile
import time
from pathlib import Path

import keras
import pytest

import keras_dlopt as dlopt
from catalogue import all_cases
from keras_dlopt.auto.sensitivity import _Cache
from keras_dlopt.auto.sensitivity_result import Measurement, Sensitivity
from keras_dlopt.cli.tasks import _read
from keras_dlopt.distribute.checkpoints import Checkpoints, Position
from keras_dlopt.distribute.facts import read_cluster
from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.files import MAX_DEPTH, MAX_JSON, parse_json
from keras_dlopt.interop import tfmot
from keras_dlopt.model_parallel import Layout
from support.mutated import texts

HERE = Path(__file__).parent
MOST_SECONDS = 2.0


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    """The slow reset between tests is not needed."""


def recipes():
    made = [case.make() for case in all_cases() if case.kind == "transform"]
    where = (dlopt.named("kernel") & dlopt.rank(2, 4), ~dlopt.matching("a.*"))
    return [
        json.loads(dlopt.Recipe([(where[i % 2], transform)]).to_json())
        for i, transform in enumerate(made)
    ]


def plain(value):
    return json.loads(json.dumps(value))


SENSITIVITY = Sensitivity(
    1.0,
    0.5,
    (
        Measurement("a/kernel", "bits", 8.0, 1.0, 0.5),
        Measurement("a/kernel", "sparsity", 0.5, float("inf"), None),
    ),
    {"a/kernel": 9},
    "k",
)
CACHE = {
    "version": 1,
    "key": "k",
    "base": [1.0, 0.5],
    "rows": [["a", "bits", 8.0, [1.0, None]], ["a", "sparsity", 0.5, [1.0, 0.5]]],
}
CLUSTER = {
    "cluster": {"worker": ["a:1", "b:2"], "chief": ["c:3"]},
    "task": {"type": "worker", "index": 0},
}
LAYOUT = Layout({"batch": 1, "model": 2}, [(dlopt.named("kernel"), (None, "model"))])


def in_file(read):
    def from_text(text):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file.json")
            path.write_bytes(text)
            return read(path)

    return from_text


def sensitivity(text):
    found = Sensitivity.from_dict(parse_json(text, finite=False))
    found.table()
    found.curves()


READERS = {
    "recipe": (recipes, dlopt.Recipe.from_json, ConfigError),
    "sensitivity": (
        lambda: [plain(SENSITIVITY.to_dict())],
        sensitivity,
        (ConfigError, FormatError),  # of the dictionary, and of its text
    ),
    "cache": (
        lambda: [CACHE],
        in_file(lambda path: _Cache(path, "k").rows),
        FormatError,
    ),
    "tasks": (
        lambda: [[{"seed": 0}, {"a": [1, {"b": 2}]}]],
        in_file(_read),
        ConfigError,
    ),
    "TF_CONFIG": (
        lambda: [CLUSTER],
        lambda text: read_cluster({"TF_CONFIG": text.decode("latin1")}),
        ConfigError,
    ),
    "layout": (
        lambda: [plain(LAYOUT.to_dict())],
        lambda text: Layout.from_dict(parse_json(text)),
        (ConfigError, FormatError),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_mutated_files(name):
    made, read, kinds = READERS[name]
    seeds, count = made(), 1000
    refused = 0
    for one in seeds:
        read(json.dumps(one).encode())
    for i, text in enumerate(texts(seeds, count)):
        began = time.process_time()
        try:
            read(text)
        except kinds as error:
            refused += len(str(error)) > 20  # with a reason
        except BaseException as error:
            raise AssertionError(f"text {i}: {text[:300]!r}") from error
        assert time.process_time() - began < MOST_SECONDS, i
    assert count / 4 < refused <= count


def test_mutated_positions_of_checkpoints(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    store = Checkpoints(tmp_path)
    store.save(model, Position(1, 2, 12, data={"seed": 3}))
    path = store.newest().folder / "position.json"
    kept = json.loads(path.read_text())
    del kept["sha256"], kept["files"]  # as older versions wrote it
    refused = 0
    for i, text in enumerate(texts([kept], 500)):
        path.write_bytes(text)
        try:
            store._check_model(model, store.newest().folder)
        except FormatError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"text {i}: {text[:300]!r}") from error
    assert refused > 200


def test_mutated_models_of_tf_keras(tmp_path):
    import h5py

    path = tmp_path / "m.h5"
    path.write_bytes((HERE / "golden" / "tfmot" / "pruned.h5").read_bytes())
    with h5py.File(path) as file:
        config = json.loads(file.attrs["model_config"])
    refused = 0
    for i, text in enumerate(texts([config], 150)):
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = text[:60_000]
        try:
            tfmot.load_model(path)
        except FormatError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"text {i}: {text[:300]!r}") from error
    assert refused > 50


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * (MAX_DEPTH + 1), "nested more than 100 deep"),
        (b"[" * 10**6, "nested more than 100 deep"),
        (b'{"a": 1, "a": 2}', "a name is given twice"),
        (b'{"a": NaN}', "NaN is no finite number"),
        (b"[-Infinity]", "-Infinity is no finite number"),
        (b"[1e999]", "1e999 is no finite number"),
        (b"[" + b"9" * 5000 + b"]", "digits"),
        (b'"\xff"', "utf-8"),
        (b"", "Expecting value"),
        (b" " * (MAX_JSON + 1), "is too large"),
        (None, "JSON is a text. Received: NoneType"),
    ],
)
def test_texts_that_are_refused(text, reason):
    with pytest.raises(FormatError, match=reason):
        parse_json(text)


@pytest.mark.parametrize(
    "text", [b"[" * 100 + b"]" * 100, b'"[[[\\"[[["', b'["' + b"[{" * 500 + b'"]']
)
def test_brackets_that_are_no_nesting(text):
    assert parse_json(text) == json.loads(text)
    assert parse_json(b"[NaN, 1e999]", finite=False)[1] == float("inf")
