"""The parts that need no compiler: chips, program text, padding, roofline, search."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_dlopt import tpu
from keras_dlopt.errors import ConfigError
from keras_dlopt.tpu import batches, hlo, padding
from keras_dlopt.tpu.roofline import roofline


@pytest.mark.parametrize(
    "name",
    ["", "v5e", "v5e:8", "v5e:2x2x2", "v5p:2x2", "v9:2x2", "v5e:0x2", "a100:1x1"],
)
def test_unknown_topologies_list_the_known_ones(name):
    with pytest.raises(ConfigError) as error:
        tpu.topology(name)
    assert str(error.value).startswith(f"Unknown topology {name!r}. A topology is a")
    assert "v5e:2x4" in str(error.value)
    assert "v6e:2x4" in str(error.value)


@pytest.mark.parametrize("name", tpu.KNOWN_TOPOLOGIES)
def test_known_topologies_are_topologies(name):
    found = tpu.topology(name)
    assert found.name == name
    assert found.devices == math.prod(found.shape) * found.chip.devices


def test_two_cores_share_the_rates_of_a_chip():
    chip = tpu.CHIPS["v3"]
    assert chip.device_flops == chip.flops / 2
    assert chip.device_memory_rate == chip.memory_rate / 2
    assert chip.device_link_rate == chip.link_rate / 2


def test_every_chip_names_its_source():
    for chip in tpu.CHIPS.values():
        assert chip.source.startswith("https://cloud.google.com/tpu/docs/")


PROGRAM = """
HloModule jit_step
%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(128)} parameter(0)
}

ENTRY %main (a: f32[100,60]) -> f32[] {
  %a = f32[100,60]{1,0:T(8,128)} parameter(0), metadata={op_name="weights"}
  %b = bf16[3,3,4,20]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %s = s32[]{:T(128)} parameter(2)
  %all-reduce.1 = (f32[64]{0:T(128)}, f32[8]{0}) all-reduce(%x, %y), channel_id=5, \
metadata={op_name="jit(step)/bn/add" stack_frame_id=3}
  %ag = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
  %agd = f32[32]{0} all-gather-done(%ag)
  ROOT %r = f32[]{} reduce(%a), metadata={op_name="not an all-reduce("}
}
"""


def test_collectives_are_found_with_their_bytes_and_place():
    found = hlo.collectives(PROGRAM)
    assert [(c.kind, c.bytes) for c in found] == [
        ("all-reduce", 288),
        ("all-gather", 128),
    ]
    assert found[0].path == "jit(step)/bn/add"


def test_arguments_are_those_of_the_entry_with_their_tiles():
    assert hlo.parameters(PROGRAM) == [
        (100 * 60 * 4, 104 * 128 * 4),
        (3 * 3 * 4 * 20 * 2, 3 * 3 * 8 * 128 * 2),
        (4, 4),
    ]


def test_transposed_layouts_pad_the_axes_that_are_minor():
    ((values, tiles),) = hlo.sizes_of("f32[100,8]{0,1:T(8,128)}")
    assert (values, tiles) == (3200, 128 * 8 * 4)


def test_ring_times():
    rate = 1e9
    assert hlo.Collective("all-reduce", 8000).seconds(8, rate) == pytest.approx(14e-6)
    assert hlo.Collective("all-gather", 8000).seconds(8, rate) == pytest.approx(7e-6)
    assert hlo.Collective("reduce-scatter", 1000).seconds(8, rate) == pytest.approx(
        7e-6
    )
    assert hlo.Collective("collective-permute", 10).seconds(8, rate) == 1e-8
    assert hlo.Collective("all-reduce", 8000).seconds(1, rate) == 0


def test_the_roofline_is_its_longest_part():
    where = tpu.topology("v5e:2x4")
    all_reduce = [hlo.Collective("all-reduce", 10**9)]
    assert roofline(197e12, 1.0, [], where).bound == "compute"
    assert roofline(1.0, 819e9, [], where).bound == "memory"
    found = roofline(1.0, 1.0, all_reduce, where)
    assert found.bound == "network"
    assert found.seconds == pytest.approx(2 * 7 / 8 * 1e9 / 200e9)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([128, 256]))
def test_padding_against_counting_blocks(inputs, outputs, unit):
    (found,) = padding.padding([padding.Product("a", inputs, outputs)], unit=unit)
    rows = len(range(0, inputs, unit)) * unit
    columns = len(range(0, outputs, unit)) * unit
    assert found.waste == pytest.approx(1 - inputs * outputs / (rows * columns))
    assert 0 <= found.waste < 1
    assert bool(outputs % unit) == ("costs the same" in found.advice)


def test_advice_names_the_size_to_use():
    (found,) = padding.padding([padding.Product("a", 512, 130)])
    assert found.advice == "outputs 130 -> 256 costs the same, 128 saves a block"
    (found,) = padding.padding([padding.Product("a", 25, 128)])
    assert found.advice == "its sum over 25 fills 20% of a unit"
    (found,) = padding.padding([padding.Product("a", 512, 256)])
    assert found.advice == ""


def test_waste_of_a_model_is_weighted_by_work():
    products = [padding.Product("a", 128, 64, 3.0), padding.Product("b", 128, 128, 1.0)]
    found = padding.padding(products)
    assert [p.path for p in found] == ["a", "b"]
    assert padding.total_waste(found) == pytest.approx(1 - 4 / 7)
    assert padding.total_waste([]) == 0.0


@given(
    fixed=st.floats(0, 50),
    slope=st.floats(0.001, 5),
    devices=st.sampled_from([1, 4, 8]),
    start=st.integers(1, 200),
)
def test_the_search_ends_near_the_largest_batch(fixed, slope, devices, start):
    search = batches.Search(devices=devices, memory=100.0)
    batch = start * devices
    while batch is not None:
        assert batch % devices == 0
        assert batch not in search.tried
        search.add(batch, {"needed": fixed + slope * batch})
        batch = search.next()
    assert len(search.tried) <= batches.COMPILATIONS
    true = int((95 - fixed) / slope) // devices * devices
    if search.largest is not None:
        assert search.largest <= true
        # Alignment to eight examples a device, and the last few per cent, may be lost.
        assert search.largest >= min(0.85 * true, search.limit) - 8 * devices
    elif true >= devices:
        assert true < 8 * devices or len(search.tried) == batches.COMPILATIONS


def test_the_search_ends_where_compiling_takes_minutes():
    search = batches.Search(devices=2, memory=1e15)
    search.add(64, {"needed": 64.0})
    while (batch := search.next()) is not None:
        search.add(batch, {"needed": float(batch)})
    assert search.largest == search.limit == 2 * batches.LIMIT


def test_a_batch_that_fails_to_compile_counts_as_too_big():
    search = batches.Search(devices=8, memory=100.0)
    search.add(64, {"needed": 10.0})
    search.add(128, {"compiles": False})
    assert search.largest == 64
    assert search.next() < 128
