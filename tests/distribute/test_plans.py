"""Facts to plan: a pure function, told made-up facts."""

import ast
import json
import pathlib
import re
import subprocess

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_dlopt.distribute as distribute
from keras_dlopt.distribute.facts import Facts, WorkerCluster, _start_tpu, read_cluster
from keras_dlopt.distribute.plans import Plan, choose
from keras_dlopt.errors import ConfigError

GPUS = Facts(gpus=("GPU:0", "GPU:1"))
TPU = Facts(gpus=("GPU:0",), tpu_cores=8, tpu_name="mine")
CLUSTER = Facts(tpu_cores=8, cluster=WorkerCluster(("a:1", "b:1", "c:1"), 1))


@pytest.mark.parametrize(
    ("facts", "kind", "replicas"),
    [
        (Facts(), "one_device", 1),
        (Facts(gpus=("GPU:0",)), "one_device", 1),
        (GPUS, "mirrored", 2),
        (TPU, "tpu", 8),
        (CLUSTER, "multi_worker", 3),
    ],
)
def test_auto_takes_the_most_that_is_there(facts, kind, replicas):
    plan = choose(facts)
    assert (plan.kind, plan.replicas) == (kind, replicas)


def test_cpu_devices():
    plan = choose(Facts(), "cpu:4", batch_size=32)
    assert plan.devices == ("CPU:0", "CPU:1", "CPU:2", "CPU:3")
    assert (plan.logical_cpus, plan.replica_batch_size) == (4, 8)
    assert choose(Facts(), "cpu:1").kind == "one_device"


def test_each_worker_counts_its_devices():
    facts = Facts(gpus=("GPU:0", "GPU:1"), cluster=WorkerCluster(("a:1", "b:1"), 1))
    plan = choose(facts, batch_size=16)
    assert (plan.replicas, plan.workers, plan.worker) == (4, 2, 1)


@pytest.mark.parametrize(
    ("rule", "factor"), [("linear", 8.0), ("sqrt", 8.0**0.5), ("none", 1.0)]
)
def test_learning_rate_follows_the_batch(rule, factor):
    plan = choose(TPU, batch_size=16, per_replica=True, rate_rule=rule)
    assert plan.batch_size == 128
    assert plan.scale_rate(0.5) == pytest.approx(0.5 * factor)


@pytest.mark.parametrize(("rule", "factor"), [("linear", "6"), ("sqrt", "2.44949")])
def test_the_rate_of_a_cluster_counts_the_devices_of_all(rule, factor):
    facts = Facts(
        gpus=("GPU:0", "GPU:1"), cluster=WorkerCluster(("a:1", "b:1", "c:1"), 1)
    )
    plan = choose(facts, batch_size=8, per_replica=True, rate_rule=rule)
    assert (plan.batch_size, plan.replica_batch_size) == (48, 8)
    assert re.search(rf"learning rate +x {re.escape(factor)}\b", str(plan))


def test_the_rate_stays_where_the_batch_does():
    assert choose(TPU, batch_size=128).scale_rate(0.5) == 0.5


def test_a_tpu_wants_static_shapes_and_bfloat16():
    plan = choose(TPU, batch_size=16)
    assert plan.drop_remainder
    assert plan.steps_per_execution == 32
    assert plan.dtype_policy == "mixed_bfloat16"
    assert plan.tpu_name == "mine"
    plain = choose(TPU, drop_remainder=False, mixed_precision=False)
    assert not plain.drop_remainder
    assert plain.dtype_policy == "float32"


def test_a_plan_tells_itself():
    text = str(choose(GPUS, batch_size=32, per_replica=True))
    assert re.search(r"batch +64 \(32 per replica\)", text)
    assert re.search(r"learning rate +x 2\b", text)
    assert "GPU:0, GPU:1" in text
    assert "The batch grew 2-fold" in text


@given(
    st.integers(1, 64),
    st.integers(1, 4096),
    st.booleans(),
    st.sampled_from(["linear", "sqrt", "none"]),
)
def test_the_batch_is_shared_equally_or_refused(cores, batch, per_replica, rule):
    facts = Facts(tpu_cores=cores)
    try:
        plan = choose(facts, batch_size=batch, per_replica=per_replica, rate_rule=rule)
    except ConfigError as error:
        assert batch % cores
        assert not per_replica
        offered = [int(n) for n in re.findall(r"Use (\d+) or (\d+)", str(error))[0]]
        assert all(n % cores == 0 and n > 0 for n in offered)
        return
    assert plan.replica_batch_size * plan.replicas == plan.batch_size


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((Facts(), "parameter_server"), "ParameterServerStrategy is not supported"),
        ((Facts(), "cpu:0"), "Unknown strategy: 'cpu:0'. Choose one of auto"),
        ((Facts(), "mirrored"), "'mirrored' needs GPUs, and there are none"),
        ((Facts(tpu_problem="hung"), "tpu"), "No TPU here: hung. Check TPU_NAME"),
        ((Facts(), "multi_worker"), "Start the script with keras_dlopt.distribute.run"),
    ],
)
def test_what_is_not_there_is_refused_with_the_fix(arguments, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        choose(*arguments)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 33}, "cannot be shared equally by 2 replicas. Use 32 or 34"),
        (
            {"batch_size": 0},
            "batch_size must be a whole number, 1 or greater. Received: 0",
        ),
        ({"rate_rule": "cube"}, "rate_rule must be one of"),
        ({"input_sharding": "no"}, "input_sharding must be one of"),
        ({"steps_per_execution": -1}, "steps_per_execution must be a whole number"),
        ({"steps_per_execution": 0}, "steps_per_execution must be a whole number"),
        ({"steps_per_execution": 2.5}, "1 or greater. Received: 2.5"),
        ({"batch_size": 32.0}, "batch_size must be a whole number, 1 or greater"),
        ({"batch_size": "32"}, "Received: '32'"),
        ({"kind": 4}, "Unknown strategy: 4. Choose one of auto"),
    ],
)
def test_options_are_checked(options, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        choose(GPUS, **options)


def config(cluster, task):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def test_cluster_is_read():
    workers = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    found = read_cluster(config(workers, {"type": "worker", "index": 1}))
    assert found == WorkerCluster(("a:1", "b:1", "c:1"), 2)
    assert (
        read_cluster(config({"worker": ["a:1"]}, {"type": "worker", "index": 0}))
        is None
    )
    assert read_cluster({"TF_CONFIG": " "}) is None
    assert read_cluster({"TF_CONFIG": "{}"}) is None
    found = read_cluster(
        config(
            {"worker": ["[::1]:1", "b.c-d:65535"], "evaluator": ["e:1"]},
            {"type": "worker", "index": 0},
        )
    )
    assert found == WorkerCluster(("[::1]:1", "b.c-d:65535"), 0)
    # TensorFlow reads a number in quotes too.
    found = read_cluster(config(workers, {"type": "worker", "index": "0"}))
    assert found == WorkerCluster(("a:1", "b:1", "c:1"), 1)


def test_a_kind_without_workers_tells_that_tf_config_is_not_used():
    for kind in ("cpu:2", "one_device"):
        text = str(choose(Facts(cluster=WorkerCluster(("a:1", "b:1"), 0)), kind))
        assert "TF_CONFIG names 2 processes, which this strategy does not join" in text
        assert "TF_CONFIG" not in str(choose(Facts(), kind))


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG must be a JSON object"),
        ({"TF_CONFIG": "[1]"}, "TF_CONFIG must be a JSON object"),
        (
            config({"worker": ["a:1"], "ps": ["b:1"]}, {"type": "ps", "index": 0}),
            "TF_CONFIG names parameter servers",
        ),
        (
            config({"worker": ["a:1", "a:1"]}, {"type": "worker", "index": 0}),
            "Two processes of TF_CONFIG share an address",
        ),
        (
            config({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 2}),
            "says this process is task 'worker' number 2",
        ),
        (
            config({"worker": ["a:1", "b:1"]}, {"type": "evaluator", "index": 0}),
            "says this process is task 'evaluator' number 0",
        ),
        (config({"worker": ["a:1", "b:1"]}, {}), "task None number None"),
        (config({"worker": ["a:1", "b:1"]}, None), "TF_CONFIG must be a JSON object"),
        (
            config({"worker": "a:1"}, {"type": "worker", "index": 0}),
            "list of host:port",
        ),
        (config({"worker": ["a", "b:1"]}, {}), "list of host:port"),
        (config({"worker": [1, 2]}, {}), "list of host:port"),
        (config({"worker": []}, {}), "list of host:port"),
        (config({"worker": ["a:0", "b:1"]}, {}), "ports from 1 to 65535"),
        (config({"worker": ["a:65536", "b:1"]}, {}), "Received: ['a:65536', 'b:1']"),
        (config({"worker": ["a:²", "b:1"]}, {}), "list of host:port"),
        (config({"worker": ["grpc://a:1", "b:1"]}, {}), "list of host:port"),
        (config({"worker": [":1", "b:1"]}, {}), "list of host:port"),
        (config({"worker": {"0": "a:1"}}, {}), "list of host:port"),
        (config({"workers": ["a:1"]}, {}), "processes of a kind 'workers'"),
        (config([], {}), "TF_CONFIG must be a JSON object"),
        (config(None, {}), "one of the two is not an object"),
        (config({"worker": ["a:1", "b:1"]}, []), "one of the two is not an object"),
        ({"TF_CONFIG": "null"}, "it is a NoneType"),
        ({"TF_CONFIG": "[" * 100_000}, "TF_CONFIG must be a JSON object"),
        (
            {"TF_CONFIG": '{"cluster": {"worker": ["a:1"], "worker": ["b:1"]}}'},
            "a name is given twice among ['worker', 'worker']",
        ),
        (
            config({"chief": ["a:1", "b:1"]}, {"type": "chief", "index": 0}),
            "names 2 processes 'chief'",
        ),
        (
            config({"worker": ["a:1"], "evaluator": ["A:1"]}, {}),
            "Two processes of TF_CONFIG share an address",
        ),
        *(
            (
                config({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": index}),
                f"task 'worker' number {index!r}",
            )
            for index in (True, 1.0, -1, "-1", "²", None, [0])
        ),
        (
            config({"worker": ["a:1", "b:1"]}, {"type": ["worker"], "index": 0}),
            "task ['worker'] number 0",
        ),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(environment, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        read_cluster(environment)


def test_a_tpu_that_does_not_answer_is_not_waited_for():
    cores, problem = _start_tpu("nowhere", 0.01)
    assert cores == 0
    assert problem == "the TPU runtime did not start within 0.01 s"


def test_why_a_tpu_failed_is_the_error_and_not_the_last_line(monkeypatch):
    shown = "Traceback:\npkg.errors.NoKernelError: no kernel\n\t [[Configure]]\n"
    done = subprocess.CompletedProcess([], 1, stdout="", stderr=shown)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    _, problem = _start_tpu("local", 1.0)
    assert problem == "the TPU runtime failed: pkg.errors.NoKernelError: no kernel"


def test_choosing_imports_neither_keras_nor_tensorflow():
    folder = pathlib.Path(distribute.__file__).parent
    for name in ("plans.py", "facts.py"):
        for node in ast.parse((folder / name).read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None)] + [n.name for n in node.names]
                assert not {"keras", "tensorflow"} & set(names)


def test_every_name_of_the_front_is_there():
    for name in distribute._HOME:
        assert getattr(distribute, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = distribute.nothing
    assert "strategy" in dir(distribute)


def test_what_needs_tensorflow_says_so_on_another_backend(monkeypatch):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    for call in (
        lambda: distribute.strategy("cpu:1"),
        lambda: distribute.data_parallel(model),
        lambda: distribute.predict(model, [1.0]),
        lambda: distribute.search_batch_size(model, [1.0]),
        lambda: distribute.fit(model, None, choose(Facts()), directory="nowhere"),
    ):
        with pytest.raises(ConfigError, match="needs the TensorFlow backend of Keras"):
            call()


def test_a_plan_is_data():
    plan = choose(GPUS)
    assert Plan(**{f: getattr(plan, f) for f in plan.__dataclass_fields__}) == plan
