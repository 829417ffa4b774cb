"""The report: rows, JSON, plot."""

import json

import PIL.Image
import pytest

from keras_dlopt import tpu
from keras_dlopt.report.tpu import plot
from keras_dlopt.tpu.padding import Product, padding
from keras_dlopt.tpu.report import made

WHERE = tpu.topology("v5e:2x4")
FITS = {
    "seconds": 12.3,
    "compiles": True,
    "arguments": 2 * 2**30,
    "results": 0,
    "temporary": 2**30,
    "code": 2**20,
    "flops": 197e9,
    "moved": 819e6 / 2,
    "collectives": [["all-reduce", 2**20, "jit/a"], ["all-reduce", 2**20, "jit/b"]],
    "argument_values": 100,
    "argument_tiles": 200,
}
TOO_BIG = {"seconds": 9.0, "compiles": True, "needed": 43e9, "available": 16.9e9}
FAILS = {
    "seconds": 1.0,
    "compiles": False,
    "operation": "eig",
    "layer": "inner/bad",
    "message": "no rule",
}


def _report(*found):
    names = ("train", "inference")
    steps = [made(n, 1024, f, WHERE) for n, f in zip(names, found, strict=False)]
    products = padding([Product("head", 256, 100, 1e6)])
    return tpu.Report(
        "net", 12_000, WHERE, "jax", tuple(steps), 2048, (), tuple(products)
    )


def test_a_program_that_fits():
    report = _report(FITS)
    step = report.step("train")
    assert report.ok
    assert step.memory == 3 * 2**30 + 2**20
    assert step.roofline.compute == pytest.approx(1e-3)
    assert step.intensity == pytest.approx(197e9 / (819e6 / 2))
    rows = {row[0]: row[1] for row in report.summary()[1]}
    assert rows["compiles"] == "yes"
    assert rows["memory per chip"] == "3.00 GiB of 15.75 GiB (19%)"
    assert rows["roofline estimate"] == "1.000 ms"
    assert rows["  bound by"] == "compute"
    assert rows["  examples a second, at most"] == "1,024,000"
    assert report.exchanges() == [("train", "all-reduce", "2", "2.00 MiB")]
    assert report.advice()[0][-1] == "outputs 100 -> 128 costs the same"


def test_a_program_that_is_too_big():
    report = _report(TOO_BIG)
    assert not report.ok
    assert report.step("train").compiles
    rows = {row[0]: row[1] for row in report.summary()[1]}
    assert rows["compiles"] == "yes, but too big"
    assert rows["memory per chip"] == "40.05 GiB of 15.74 GiB (254%)"


def test_a_program_that_does_not_compile():
    report = _report(FAILS)
    assert not report.ok
    assert report.step("train").failure == tpu.Failure("eig", "inner/bad", "no rule")
    rows = {row[0]: row[1] for row in report.summary()[1]}
    assert rows["compiles"] == "no: eig in inner/bad"


def test_json():
    data = json.loads(_report(FITS, TOO_BIG).to_json())
    assert data["ok"] is False
    assert data["topology"]["chip"]["name"] == "v5e"
    assert [s["name"] for s in data["steps"]] == ["train", "inference"]


@pytest.mark.parametrize("found", [(FITS, TOO_BIG), (FITS,), (FAILS, FITS), (FAILS,)])
def test_plot(found, tmp_path):
    plot(_report(*found), tmp_path / "report.png")
    image = PIL.Image.open(tmp_path / "report.png")
    assert image.size[0] == 1080
    assert len(image.convert("L").getcolors()) > 20
