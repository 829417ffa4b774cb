"""When tensors are there, against a walk that asks each step anew."""

from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dlopt.measure.memory import Usage, bytes_of, peak


@st.composite
def programs(draw):
    """Steps that read what is there; some results are never read."""
    inputs = tuple(range(draw(st.integers(1, 3))))
    steps = []
    count = len(inputs)
    for _ in range(draw(st.integers(1, 8))):
        read = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3))
        made = draw(st.integers(1, 2))
        steps.append(Usage(tuple(read), tuple(range(count, count + made))))
        count += made
    sizes = {t: draw(st.integers(0, 9)) for t in range(count)}
    outputs = tuple(draw(st.sets(st.integers(0, count - 1), min_size=1)))
    return steps, sizes, inputs, outputs


def needed(tensor, at, steps, inputs, outputs):
    """Whether a tensor must be there while a step runs."""
    made = tensor in inputs or any(tensor in s.outputs for s in steps[: at + 1])
    later = any(tensor in s.inputs for s in steps[at:])
    return made and (later or tensor in outputs or tensor in steps[at].outputs)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(programs())
def test_against_asking_each_step(program):
    steps, sizes, inputs, outputs = program
    totals = [
        sum(n for t, n in sizes.items() if needed(t, at, steps, inputs, outputs))
        for at in range(len(steps))
    ]
    # Inputs that nobody reads are there at the start all the same.
    idle = [t for t in inputs if not needed(t, 0, steps, inputs, outputs)]
    totals[0] += sum(sizes[t] for t in idle)
    most, at = peak(steps, sizes, inputs=inputs, outputs=outputs)
    assert most == max(totals) == totals[at]


def test_an_output_that_is_made_first_stays_to_the_end():
    steps = [Usage((0,), (1,)), Usage((0,), (2,)), Usage((2,), (3,))]
    sizes = {0: 1, 1: 100, 2: 10, 3: 20}
    assert peak(steps, sizes, inputs=(0,), outputs=(1, 3)) == (130, 2)
    assert peak(steps, sizes, inputs=(0,), outputs=(3,)) == (101, 0)


def test_bytes_of_types():
    sizes = {"float32": 4, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1, "bool": 1}
    sizes |= {"int64": 8, "uint8": 1, "float64": 8}
    assert {name: bytes_of((3,), name) // 3 for name in sizes} == sizes
    assert bytes_of((3, 3), "int4") == 4


def test_a_model_that_does_nothing():
    assert peak([], {0: 4}, inputs=(0,), outputs=(0,)) == (4, -1)
