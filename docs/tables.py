"""Writes the tables of the pages that are made from `benchmarks/results/*.json`.

    python docs/tables.py          # rewrites what is between the marks
    python docs/tables.py --check  # says what is out of date, and fails

A table stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; `TABLES` names
the page and what makes it. Figures are never typed.
"""

import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Row = Sequence[str]


def result(name: str) -> Any:
    """What a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(columns: Row, rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and worst and best where there are several."""
    mean = f"{statistics.fmean(values):,.{digits}f}"
    if len(values) == 1:
        return f"{mean} (one seed)"
    low, high = (f"{f(values):,.{digits}f}" for f in (min, max))
    return f"{mean} ({low} to {high}, {len(values)} seeds)"


def choosing() -> str:
    """What each method brought, where it was measured."""
    columns = ("method", "measured on", "brought", "cost", "from")
    return table(columns, [*_smaller(), *_bits(), *_faster(), *_taught()])


def _smaller() -> Iterator[Row]:
    for name, network in (
        ("lenet_300_100", "LeNet-300-100, MNIST"),
        ("lenet5", "LeNet-5, MNIST"),
    ):
        file = f"deep_compression_{name}"
        rows = result(file)
        yield (
            "`Prune` >> `Cluster`",
            network,
            f"{spread([r['ratio'] for r in rows], 1)} times smaller",
            "test error, %: "
            + spread([r["error_float"] for r in rows])
            + " became "
            + spread([r["error_compressed"] for r in rows]),
            f"`{file}`",
        )
    rows = [
        r
        for r in result("records")
        if (r["goal"], r["judged on"]) == (8000, "test") and r["row"] == "lenet_300_100"
    ]
    yield (
        "`RateAware`",
        "LeNet-300-100, MNIST",
        f"{spread([r['plain_bytes'] / r['bytes'] for r in rows], 1)} times smaller",
        "test error, %: "
        + spread([r["error_float"] for r in rows])
        + " became "
        + spread([r["error"] for r in rows]),
        "`records`",
    )


def _bits() -> Iterator[Row]:
    runs = result("quantize_lenet5")["runs"]
    for method, words in (("ternary", "ternary weights"), ("two_bit", "2 bits")):
        rows = [r for r in runs if r["method"] == method]
        yield (
            f"quantizers, {words}",
            "LeNet-5, MNIST",
            f"{rows[0]['bits_a_kernel_weight']:g} bits a kernel weight",
            "test error, %: "
            + spread([r["parent_error"] for r in rows])
            + " became "
            + spread([r["test_error"] for r in rows]),
            "`quantize_lenet5`",
        )
    for row in result("qat_pays")["rows"]:
        if not row["after training"]["float operations"]:
            yield (
                "int8, without training",
                f"{row['network']}, {row['parameters']:,} parameters",
                f"{4 * row['parameters'] / row['after training']['bytes']:.1f} "
                "times smaller than its plain weights",
                f"accuracy, %: {row['float']:.2f} became "
                f"{row['after training']['accuracy']:.2f} (one seed); trained with "
                f"quantizers {row['with training']['accuracy']:.2f}",
                "`qat_pays`",
            )


def _faster() -> Iterator[Row]:
    for name, row in result("latency_int8")["networks"].items():
        yield (
            "int8, LiteRT",
            name,
            f"{row['litert float']['ratio']:.1f} times faster than LiteRT float",
            f"{row['litert float']['bytes']:,} bytes became "
            f"{row['litert int8']['bytes']:,}",
            "`latency_int8`",
        )
    for name, row in result("removal_latency")["networks"].items():
        yield (
            "`prune_channels`" if "person" not in name else "`remove_dead`",
            name,
            f"{1 / row['ratios']['float after / before']:.1f} times faster in float, "
            f"{1 / row['ratios']['int8 after / before']:.1f} in int8",
            "time only",
            "`removal_latency`",
        )


def _taught() -> Iterator[Row]:
    found = result("distill_bars")["hinton"]["test_error_percent"]
    alone, taught = found["alone"], found["distilled_moved"]
    yield (
        "`distill`",
        "perceptrons of Hinton 2015, MNIST",
        f"test error, %: {alone['mean']:.2f} alone became {taught['mean']:.2f} with a "
        "teacher and moved images",
        f"{taught['seeds']} seeds each, worst {taught['worst']:.2f}",
        "`distill_bars`",
    )


def steps() -> str:
    """What a training step costs under each transform."""
    rows = []
    for name in ("lenet5", "resnet20"):
        for row in result(f"transform_step_{name}")["rows"]:
            if not row["jit"]:
                shares = [f"{row[k]:.2f}x" for k in _STEPS]
                rows.append((name, f"{row['batch']}", *shares))
    return table(("network", "batch", *_STEPS.values()), rows)


def records() -> str:
    """Bytes and error of fixed networks, trained towards few bytes."""
    found: dict[Row, list[Any]] = {}
    for r in result("records"):
        first, then = r["epochs"] if "epochs" in r else (r["first"], r["then"])
        how = {"turn": "turned", "bend": "turned and sheared"}.get(r.get("moves"))
        moved = f", {r['copies']} copies {how}" if how else ""
        name = _NETWORKS[r.get("network", r["row"])]
        data = "Fashion-MNIST" if "fashion" in r["row"] else "MNIST"
        most, error = r["bar"]
        bar = f"{most:,} B at {'0.3 over float' if error is None else error}"
        key = (f"{name}, {data}{moved}", f"{r['goal']:,}", f"{first} + {then}")
        found.setdefault((*key, r["judged on"], bar), []).append(r)
    rows = [
        (
            *key[:4],
            spread([r["bytes"] for r in some], 0),
            f"{statistics.fmean(r['plain_bytes'] / r['bytes'] for r in some):.0f}x",
            _floats(some),
            spread([r["error"] for r in some]),
            key[4],
        )
        for key, some in found.items()
    ]
    rows.sort(key=lambda row: (row[0], row[3], row[4]))
    columns = ("network, data", "goal, bytes", "epochs", "judged on", "file, bytes")
    return table((*columns, "ratio", "float error, %", "error, %", "asked for"), rows)


def _floats(rows: Sequence[Any]) -> str:
    told = f"{statistics.fmean(r['error_float'] for r in rows):.2f}"
    long = [r[key] for r in rows if (key := "error_float_as_long") in r]
    return told + (f"; {statistics.fmean(long):.2f} trained as long" if long else "")


def calls() -> str:
    """What `deep_compression` makes of trained networks."""
    found: dict[Row, list[Any]] = {}
    for r in result("records_call"):
        said = ", ".join(f"`{k}={v}`" for k, v in r["options"].items())
        ratio, most = r["bar"]
        bar = f"{ratio}x at {'0.3 over float' if most is None else most}"
        name = _NETWORKS[r["network"].removeprefix("fashion_").removesuffix("_2800")]
        name += ", Fashion-MNIST" if "fashion" in r["network"] else ", MNIST"
        before = f"{r['epochs']} epochs"
        before += f", dropout {r['dropout']}" if r["dropout"] else ""
        key = (name, before, said, r["judged on"], bar)
        found.setdefault(key, []).append(r)
    rows = [
        (
            *key[:4],
            spread([r["bytes"] for r in some], 0),
            spread([r["ratio"] for r in some], 1),
            spread([r["error_float"] for r in some]),
            spread([r["error"] for r in some]),
            spread([r["of one core"] for r in some], 0),
            key[4],
        )
        for key, some in found.items()
    ]
    columns = (
        "network, data",
        "in float",
        "options",
        "judged on",
        "file, bytes",
        "smaller",
    )
    costs = ("float error, %", "error, %", "seconds of a core", "asked for")
    return table((*columns, *costs), sorted(rows))


_NETWORKS = {
    "resnet20": "ResNet-20",
    "lenet_300_100": "LeNet-300-100",
    "lenet5": "LeNet-5",
}
_STEPS = {
    "empty": "empty recipe",
    "prune": "`Prune`",
    "fake_quant_8": "`FakeQuant(8)`",
    "cluster_16": "`Cluster(16)`",
}


def removal() -> str:
    """Times and bytes before and after channels are removed."""
    rows = []
    for name, row in result("removal_latency")["networks"].items():
        ratio, size = row["ratios"], row["bytes"]
        rows.append(
            (
                f"{name} (dead channels only)" if "person" in name else name,
                f"{ratio['float after / before']:.2f}",
                f"{ratio['int8 after / before']:.2f}",
                f"{ratio['float before / int8 after']:.1f}x",
                f"{size['before']['int8']:,} -> {size['after']['int8']:,} B",
            )
        )
    columns = (
        "network",
        "float, after / before",
        "int8, after / before",
        "float before / int8 after",
        "int8 file",
    )
    return table(columns, rows)


def jobs() -> str:
    """What became of jobs drawn at random, and how many kept their budget."""
    found = result("jobs")
    rows = []
    for job in found["jobs"]:
        asked = [_ASKED[k].format(v) for k, v in job["budget"].items()]
        name = f"{job['network']}, {job['data']}"
        if job["kept"] is None:
            rows.append((f"{job['number']}", name, ", ".join(asked), "refused", "", ""))
            continue
        right = f"{100 * job['test_before']:.2f} became {100 * job['test_after']:.2f}"
        brought = f"{job['bytes']:,} B, {job['plain_bytes'] / job['bytes']:.1f}x"
        if "latency_share" in job:
            brought += f", {job['latency_share']:.2f} of the time"
        kept = "kept" if job["kept"] else "missed"
        line = (", ".join(asked), brought, right, f"{kept}, {job['tried']} tried")
        rows.append((f"{job['number']}", name, *line))
    said = (
        f"Of {len(rows)} jobs {found['kept']} kept their budget, {found['missed']} "
        f"missed it, and {found['refused']} were refused with figures."
    )
    columns = ("job", "network, data", "asked", "file", "test accuracy, %", "came to")
    return f"{said}\n\n{table(columns, rows)}"


def fixed() -> str:
    """The same networks under recipes that look at no budget."""
    found = result("jobs")
    rows = [
        (
            f"`{name}`" + (", the best" if name == found["best_fixed"] else ""),
            f"{row['kept']} of {row['jobs']}",
            f"{row['both_kept']}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        )
        for name, row in found["by_fixed_recipe"].items()
    ]
    columns = ("recipe", "jobs kept", "of them kept by `compress`", "its bytes by ours")
    return table(columns, rows)


def forty() -> str:
    """LeNet-5 in a fortieth of its bytes."""
    rows = [
        (
            row["number"],
            f"{row['bytes']:,}",
            f"{row['ratio']:.1f}x",
            f"{100 * row['churn']:.2f}",
            *(
                f"{scale * row['before'][name]:.{digits}f} became "
                f"{scale * row['after'][name]:.{digits}f}"
                for name, scale, digits in (
                    ("test_accuracy", 100, 2),
                    ("calibration_error", 1, 4),
                )
            ),
            f"{row['cpu_s']}",
        )
        for row in result("jobs")["forty"]
    ]
    columns = ("data", "bytes", "ratio", "labels that changed, %", "test accuracy, %")
    return table((*columns, "calibration error", "seconds of a core"), rows)


def others() -> str:
    """Bytes of weights beside those of general compressors."""
    coders = ("ours", "zstd_19", "brotli_11", "xz_9e")
    rows = [
        (row["weights"], *(f"{row[name]:,}" for name in ("plain", *coders)))
        for row in result("codec")["others"]
    ]
    names = ("ours", "zstd -19", "brotli -q 11", "xz -9e")
    return table(("weights", "bytes in memory", *names), rows)


def resnet50() -> str:
    """A whole model beside Keras' own file."""
    rows = []
    for row in result("codec")["resnet50"]:
        found, taken = row["seconds"], row["seconds"]["cpu_seconds"]
        rows.append(
            (
                row["kernels"],
                f"{found['bytes']:,} ({found['keras_bytes']:,})",
                f"{taken['save']:.2f} ({taken['keras save']:.2f})",
                f"{taken['load']:.2f} ({taken['keras load']:.2f})",
                f"{row['save']['over_model_bytes']:.2f}",
                f"{row['load']['over_model_bytes']:.2f}",
            )
        )
    columns = ("kernels", "bytes", "save, seconds of a core", "load, seconds of a core")
    memory = ("memory to save, models", "memory to load, models")
    return table((*columns, *memory), rows)


_ASKED = {
    "max_accuracy_drop": "drop {:g}",
    "size": "size {:g}",
    "int8": "int8",
    "max_latency_share": "{:g} of the time",
}


def measured() -> str:
    """Deep Compression's networks, means of the seeds."""
    rows = []
    for name, paper in (("lenet_300_100", "40x"), ("lenet5", "39x")):
        found = result(f"deep_compression_{name}")
        mean = {
            key: statistics.fmean(r[key] for r in found)
            for key in ("error_float", "error_compressed", "bytes", "ratio")
        }
        rows.append(
            (
                _NETWORKS[name],
                f"{mean['error_float']:.2f} -> {mean['error_compressed']:.2f} %",
                f"{found[0]['bytes_plain']:,} -> {mean['bytes']:,.0f}",
                f"{mean['ratio']:.1f}x",
                paper,
            )
        )
    columns = ("network", "test error, float -> compressed", "bytes, float -> file")
    return table((*columns, "ratio", "Deep Compression (2016)"), rows)


def tiny() -> str:
    """MLPerf Tiny's networks as int8 files, beside MLPerf's own."""
    rows = []
    for row in result("mlperf_tiny")["rows"]:
        name, two, one = _TINY[row["name"]], row["two_calls"], row["one_call"]
        if right := row.get("right_of_45"):
            name += f" ({right['float']} and {right['int8']} of 45 right)"
        sizes = [f"{n:,}" for n in (row["official"], two["bytes"], one["bytes"])]
        rows.append((name, *sizes, f"{max(two['levels'], one['levels'])}"))
    columns = ("network", "MLPerf's file", "two calls", "one call")
    return table((*columns, "largest difference in levels"), rows)


_TINY = {
    "anomaly_autoencoder": "anomaly detection",
    "keyword_dscnn": "keyword spotting",
    "mobilenet_person_96": "person detection",
    "resnet8_cifar10": "ResNet-8",
    "wakeword_dscnn1d": "wake word, float and int8",
}


def rate_distortion() -> str:
    """Rounding without training, by network and way."""
    rows: dict[tuple[str, str], list[Any]] = {}
    for row in result("rate_distortion"):
        way = f"`budget={row['budget']:_}`" if "budget" in row else ""
        way = way or f"nearest, {row['bits']} bits"
        rows.setdefault((row["network"], way), []).append(row)
    columns = ("network", "rounded", "file, bytes", "error, %", "in float, %")
    return table(
        columns,
        [
            (
                {"lenet_300_100": "LeNet-300-100", "lenet5": "LeNet-5"}[name],
                way,
                spread([r["bytes"] for r in found], 0),
                spread([r["error"] for r in found]),
                spread([r["error_float"] for r in found]),
            )
            for (name, way), found in rows.items()
        ],
    )


def random_code() -> str:
    """Random codes beside coded integers, by way and goal."""
    rows: dict[tuple[str, int, bool], list[Any]] = {}
    for row in result("random_code"):
        rows.setdefault((row["way"], row["goal"], row["hashed"]), []).append(row)
    columns = ("way", "file, bytes", "error, %", "in float, %")
    return table(
        columns,
        [
            (
                f"`{way}({goal:_}, ...)`{', hashed to a quarter' if hashed else ''}",
                spread([r["bytes"] for r in found], 0),
                spread([r["error"] for r in found]),
                spread([r["error_float"] for r in found]),
            )
            for (way, goal, hashed), found in rows.items()
        ],
    )


def nncodec() -> str:
    """Files beside NNCodec's, and the same integers by both coders."""
    columns = ("network", "by", "bytes", "error, %", "in float, %", "the same integers")
    rows = []
    for row in result("codec_nncodec"):
        network = _NETWORKS[row["network"].removeprefix("fashion_")]
        for by, name in (("ours", "`rate_distortion`"), ("nncodec", "NNCodec")):
            one = row[by]
            found = (f"{one['bytes']:,}", f"{one['error']:.2f}")
            codes = f"{row['codes'][by]:,}"
            rows.append((network, name, *found, f"{row['error_float']:.2f}", codes))
    return table(columns, rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "choosing": ("docs/choosing.md", choosing),
    "steps": ("docs/choosing.md", steps),
    "rate_distortion": ("docs/compressing.md", rate_distortion),
    "nncodec": ("docs/compressing.md", nncodec),
    "random_code": ("docs/compressing.md", random_code),
    "removal": ("docs/speed.md", removal),
    "records": ("docs/records.md", records),
    "measured": ("README.md", measured),
    "tiny": ("docs/export.md", tiny),
    "records_call": ("docs/records.md", calls),
    "jobs": ("docs/compressing.md", jobs),
    "fixed": ("docs/compressing.md", fixed),
    "forty": ("docs/compressing.md", forty),
    "others": ("docs/compressing.md", others),
    "resnet50": ("docs/compressing.md", resnet50),
}


def renewed(text: str, name: str, made: str) -> str:
    """A page with one of its tables made anew."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"The page has no {begin} ... {end}.")
    return f"{before}{begin}\n{made}\n{end}{after}"


def main(arguments: Sequence[str]) -> int:
    """Rewrites the pages, or tells which tables are out of date."""
    stale = []
    for name, (page, make) in TABLES.items():
        path = ROOT / page
        text = path.read_text()
        made = renewed(text, name, make())
        if made != text:
            stale.append(f"{page}: {name}")
            if "--check" not in arguments:
                path.write_text(made)
    if stale:
        print("\n".join(stale))
    return len(stale) if "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
