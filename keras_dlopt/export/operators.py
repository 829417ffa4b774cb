"""What LiteRT's operators do in int8. A test runs each on its own.

Source: LiteRT's 8-bit quantization specification and its operator versions.
"""

# Operator -> where it takes its kernel and its bias.
WEIGHTED = {
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "FULLY_CONNECTED": (1, 2),
    "TRANSPOSE_CONV": (1, 3),
}
# Where it takes the images or rows, if not first.
GIVEN = {"TRANSPOSE_CONV": 2}
# What goes in and what comes out are on one grid: there is no rescaling inside.
KEEPS_GRID = frozenset(
    [
        "AVERAGE_POOL_2D",
        "BATCH_TO_SPACE_ND",
        "BROADCAST_TO",
        "CONCATENATION",
        "DEPTH_TO_SPACE",
        "EXPAND_DIMS",
        "GATHER",
        "GATHER_ND",
        "MAXIMUM",
        "MAX_POOL_2D",
        "MINIMUM",
        "MIRROR_PAD",
        "PACK",
        "PAD",
        "PADV2",
        "REDUCE_MAX",
        "REDUCE_MIN",
        "RESHAPE",
        "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR",
        "REVERSE_V2",
        "SELECT",
        "SELECT_V2",
        "SLICE",
        "SPACE_TO_BATCH_ND",
        "SPACE_TO_DEPTH",
        "SPLIT",
        "SPLIT_V",
        "STRIDED_SLICE",
        "TILE",
        "TRANSPOSE",
        "UNPACK",
    ]
)
# Their kernels round anew, from the grids of what they take to that of what they make.
RESCALES = frozenset(
    [
        "ABS",
        "ADD",
        "BATCH_MATMUL",
        "ELU",
        "EXP",
        "GELU",
        "HARD_SWISH",
        "LEAKY_RELU",
        "MEAN",
        "MUL",
        "PRELU",
        "RELU",
        "RELU6",
        "RELU_N1_TO_1",
        "RSQRT",
        "SQUARED_DIFFERENCE",
        "SUB",
        "SUM",
    ]
)
# The grids that their lookup tables end in: (scale, zero point).
FIXED = {
    "L2_NORMALIZATION": (1 / 128, 0),
    "LOGISTIC": (1 / 256, -128),
    "LOG_SOFTMAX": (16 / 256, 127),
    "SOFTMAX": (1 / 256, -128),
    "TANH": (1 / 128, 0),
}
# The same with activations of 16 bits, which have no zero point.
FIXED_16 = {
    "LOGISTIC": (1 / 32768, 0),
    "SOFTMAX": (1 / 32768, 0),
    "TANH": (1 / 32768, 0),
}
# Without kernels for 16 bits, or with wrong ones: PRELU, and SUM in reference kernels,
# are thousands of levels off, RSQRT up to 67, and EXP three.
ONLY_8 = frozenset(
    [
        "DEPTH_TO_SPACE",
        "ELU",
        "EXP",
        "HARD_SWISH",
        "L2_NORMALIZATION",
        "LOG_SOFTMAX",
        "PRELU",
        "RELU_N1_TO_1",
        "RSQRT",
        "SPACE_TO_DEPTH",
        "SQUARED_DIFFERENCE",
        "SUM",
    ]
)
# On a grid that ends where they cut, they change nothing: (lowest, highest) value.
CUTS = {"RELU": (0.0, float("inf")), "RELU6": (0.0, 6.0)}
# They ask what a tensor of any type is, not what it holds.
READS_SHAPE = frozenset(["RANK", "SHAPE"])
# The first version of each operator that knows int8, where it isn't the second.
_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "ELU": 1,
    "EXPAND_DIMS": 1,
    "FULLY_CONNECTED": 4,
    "GATHER_ND": 1,
    "GELU": 1,
    "HARD_SWISH": 1,
    "PRELU": 1,
    "RELU_N1_TO_1": 1,
    "RESHAPE": 1,
    "SELECT": 1,
    "SELECT_V2": 1,
    "TRANSPOSE_CONV": 3,
}


def version(name: str, given: int) -> int:
    """The version of an operator that runs in int8; at least the one of the file."""
    return max(given, _VERSIONS.get(name, 2))


def runs_in_int(name: str, bits: int = 8) -> bool:
    """Whether an operator has a kernel for activations of so many bits, 8 or 16."""
    if bits == 16 and name in ONLY_8:
        return False
    tables = (WEIGHTED, KEEPS_GRID, RESCALES, FIXED)
    return any(name in table for table in tables)


def fixed(name: str, bits: int = 8) -> tuple[float, int] | None:
    """The grid that an operator's results are on in any case: scale and zero point."""
    return (FIXED_16 if bits == 16 else FIXED).get(name)
