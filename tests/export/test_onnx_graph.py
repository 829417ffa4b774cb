"""Editing an ONNX graph changes what it is made of, never what it computes."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from onnx import TensorProto, helper, numpy_helper

from keras_dlopt.export.onnx_codes import _put_ranges, put
from keras_dlopt.export.onnx_graph import Graph
from keras_dlopt.export.twin import Kernel, Range

RNG = np.random.default_rng(0)
IMAGE, ROWS, STEPS = (2, 3, 6, 6), (5, 3), (2, 4, 3)
NEXT = RNG.uniform(0.5, 2, 4).astype("float32") * np.float32([1, -1, 1, -1])


def values(*shape):
    return RNG.normal(size=shape).astype("float32")


def node(kind, *inputs, to="y", **attributes):
    return helper.make_node(kind, inputs, [to], name=f"{to}__7", **attributes)


def proto_of(shape, nodes, **constants):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, name) for name, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 15)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def run(proto, x):
    onnx.checker.check_model(proto)
    session = runtime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["y"], {"x": x})[0]


def kinds(proto):
    return [one.op_type for one in proto.graph.node]


PER_CHANNEL = NEXT[:, None, None]
AXES = np.array([2, 3])
CASES = {
    "a product": (
        IMAGE,
        [node("Conv", "x", "w", to="c"), node("Mul", "c", "m")],
        {"w": values(4, 3, 3, 3), "m": PER_CHANNEL},
        ["Conv"],
    ),
    "a normalization, behind a bias": (
        IMAGE,
        [
            node("Conv", "x", "w", "b", to="c"),
            node("Mul", "m", "c", to="d"),
            node("Add", "d", "a"),
        ],
        {
            "w": values(4, 3, 1, 1),
            "b": values(4),
            "m": PER_CHANNEL[None],
            "a": PER_CHANNEL,
        },
        ["Conv"],
    ),
    "one number for all channels": (
        IMAGE,
        [
            node("ConvTranspose", "x", "w", to="c", strides=[2, 2]),
            node("Add", "c", "a", to="d"),
            node("Mul", "d", "m"),
        ],
        {"w": values(3, 4, 2, 2), "a": np.float32(2), "m": np.float32(-3)},
        ["ConvTranspose"],
    ),
    "channels last behind a transpose": (
        IMAGE,
        [
            node("Conv", "x", "w", to="c"),
            node("Transpose", "c", to="t", perm=[0, 2, 3, 1]),
            node("Add", "t", "a"),
        ],
        {"w": values(4, 3, 3, 3), "a": NEXT},
        ["Conv", "Transpose"],
    ),
    "channels of a row behind a squeeze": (
        IMAGE,
        [
            node("Conv", "x", "w", to="c"),
            node("Squeeze", "c", "axes", to="s"),
            node("Mul", "s", "m"),
        ],
        {"w": values(4, 3, 6, 6), "m": NEXT, "axes": AXES},
        ["Conv", "Squeeze"],
    ),
    "a product of matrices": (
        ROWS,
        [node("MatMul", "x", "w", to="c"), node("Add", "a", "c")],
        {"w": values(3, 4), "a": NEXT},
        ["Gemm"],
    ),
    "a product along the last axis has no bias": (
        STEPS,
        [
            node("MatMul", "x", "w", to="c"),
            node("Mul", "c", "m", to="d"),
            node("Add", "d", "a"),
        ],
        {"w": values(3, 4), "m": NEXT, "a": NEXT},
        ["MatMul", "Add"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_scales_and_shifts_channels_goes_into_the_kernel(name):
    shape, nodes, constants, left = CASES[name]
    proto, x = proto_of(shape, nodes, **constants), values(*shape)
    expected = run(proto, x)
    graph = Graph(proto.graph)
    graph.fold()
    graph.finish()
    assert kinds(proto) == left
    np.testing.assert_allclose(run(proto, x), expected, rtol=1e-4, atol=1e-5)


KEPT = {
    "another reader": (
        [
            node("Conv", "x", "w", to="c"),
            node("Mul", "c", "m", to="d"),
            node("Add", "d", "c"),
        ],
        {"m": PER_CHANNEL},
    ),
    "along an axis of the image": (
        [node("Conv", "x", "w", to="c"), node("Mul", "c", "m")],
        {"m": NEXT},
    ),
    "a number for each place": (
        [node("Conv", "x", "w", to="c"), node("Add", "c", "a")],
        {"a": values(4, 4, 4)},
    ),
    "a tensor of two": (
        [node("Conv", "x", "w", to="c"), node("Mul", "c", "c")],
        {},
    ),
    "behind a pool": (
        [
            node("Conv", "x", "w", to="c"),
            node("MaxPool", "c", to="p", kernel_shape=[2, 2]),
            node("Mul", "p", "m"),
        ],
        {"m": PER_CHANNEL},
    ),
    "the channels squeezed away": (
        [
            node("Conv", "x", "w", to="c"),
            node("Squeeze", "c", "axes", to="s"),
            node("Mul", "s", "m"),
        ],
        {"m": np.float32([3, 4, 5, 6]), "axes": np.array([1]), "w": values(1, 3, 3, 3)},
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_anything_else_stays(name):
    nodes, constants = KEPT[name]
    proto = proto_of(IMAGE, nodes, **{"w": values(4, 3, 3, 3), **constants})
    x, before = values(*IMAGE), kinds(proto)
    expected = run(proto, x)
    graph = Graph(proto.graph)
    graph.fold()
    graph.finish()
    assert kinds(proto) == before
    np.testing.assert_array_equal(run(proto, x), expected)


def test_names_lose_the_converters_numbers_also_inside_branches():
    inner = helper.make_graph(
        [node("Mul", "c__3:0", "m__4", to="i__5:0")],
        "branch",
        [],
        [helper.make_tensor_value_info("i__5:0", TensorProto.FLOAT, None)],
    )
    proto = proto_of(
        IMAGE,
        [
            node("Conv", "x", "net/conv_1/w__1", to="c__3:0"),
            node("If", "yes", then_branch=inner, else_branch=inner),
        ],
        **{
            "net/conv_1/w__1": values(4, 3, 3, 3),
            "m__4": PER_CHANNEL,
            "yes": np.array(True),
            "unused": values(3),
        },
    )
    x = values(*IMAGE)
    expected = run(proto, x)
    graph = Graph(proto.graph)
    graph.fold()
    graph.finish()
    np.testing.assert_array_equal(run(proto, x), expected)
    assert [list(one.input) for one in proto.graph.node] == [["x", "conv/w"], ["yes"]]
    assert [one.name for one in proto.graph.initializer] == ["conv/w", "m", "yes"]
    branch = proto.graph.node[1].attribute[0].g
    assert (list(branch.node[0].input), branch.output[0].name) == (["c", "m"], "i")


def test_constants_of_equal_values_are_one():
    graph = Graph(proto_of(ROWS, [node("Neg", "x")]).graph)
    one = graph.add("scale", np.float32([1, 2]))
    assert graph.add("scale", np.float32([1, 2])) == one
    assert graph.add("scale", np.float32([1, 3])) == "scale_1"
    assert graph.add("scale", np.array([1, 2])) == "scale_2"


def pair(scale, zero, to="y"):
    return (
        [
            node("QuantizeLinear", "x", f"s{to}", f"z{to}", to=f"q{to}"),
            node("DequantizeLinear", f"q{to}", f"s{to}", f"z{to}", to=to),
        ],
        {f"s{to}": np.float32(scale), f"z{to}": np.uint8(zero)},
    )


def test_a_pair_that_no_range_made_stays_as_it_is():
    nodes, constants = pair(0.5, 3)
    proto = proto_of(ROWS, nodes, **constants)
    graph = Graph(proto.graph)
    known = Range("d/output", np.float32(-1), np.float32(1))
    with pytest.raises(Exception, match=r"ranges of \['d/output'\] are not in the fil"):
        put(graph, [known], [])
    assert list(proto.graph.node[0].input) == ["x", "sy", "zy"]


def test_a_pair_gets_the_numbers_of_its_range_not_of_one_nearby():
    near = [
        Range(name, np.float32(-1), np.float32(h))
        for name, h in (("a", 1.0), ("b", 1.001))
    ]
    for r in near:
        nodes, constants = pair(float(r.scale) * (1 + 1e-6), r.zero_point + 128)
        proto = proto_of(ROWS, nodes, **constants)
        graph = Graph(proto.graph)
        assert _put_ranges(graph, near) == {(r.scale, r.zero_point)}
        assert graph.constants[proto.graph.node[0].input[1]] == r.scale


def test_equal_kernels_are_both_found():
    codes = np.arange(-6, 6).reshape(4, 3)
    kernels = [Kernel(name, codes, np.float32([0.5])) for name in ("a", "b")]
    weight = (codes * np.float32(0.5)).astype("float32").T
    proto = proto_of(
        ROWS,
        [
            node("MatMul", "x", "w", to="c"),
            node("Relu", "c", to="r"),
            node("MatMul", "r", "v"),
        ],
        w=weight,
        v=values(4, 2),
    )
    x, graph = values(*ROWS), Graph(proto.graph)
    expected = run(proto, x)
    graph.fold()
    found = put(graph, [], kernels)
    graph.finish()
    assert [k.path for k in found.kernels] == ["a", "b"]
    assert found.missing == ()
    np.testing.assert_allclose(run(proto, x), expected, rtol=1e-5, atol=1e-5)
    (stored,) = (
        one
        for one in proto.graph.initializer
        if one.data_type == TensorProto.INT8 and len(one.dims) == 2
    )
    np.testing.assert_array_equal(numpy_helper.to_array(stored), codes.T)
