"""The MLPerf Tiny networks from the original file to a verified int8 file.

    KERAS_DLOPT_DATA=... python benchmarks/mlperf_tiny.py

Two calls (`post_training.quantize`, `export.litert` with int8 ends), and one
(`auto.to_int8`, which removes dead channels and folds first). Inputs are uniform random
numbers, except for the wake word's 45 labelled maps, which calibrate it too. Levels are
the largest difference of an output between file and quantized model.
"""

import json
import os
import pathlib
import tempfile
import time
import warnings

import numpy as np

import keras_dlopt as dlopt

HERE = pathlib.Path(__file__).parent
DATA = pathlib.Path(os.environ.get("KERAS_DLOPT_DATA", "data")) / "mlperf_tiny"
# The original of each, and its official int8 file.
NETWORKS = {
    "anomaly_autoencoder": ("anomaly_autoencoder.h5", "anomaly_autoencoder_int8"),
    "keyword_dscnn": ("kws_ref_model", "keyword_dscnn_int8"),
    "mobilenet_person_96": ("mobilenet_person_96.h5", "mobilenet_person_96_int8"),
    "resnet8_cifar10": ("resnet8_cifar10.h5", "resnet8_cifar10_int8"),
    "wakeword_dscnn1d": ("wakeword_dscnn1d.h5", "wakeword_dscnn1d_int8"),
}
# What the first of the two calls is given besides: dense kernels alone pay for a scale
# per channel, of which `"auto"` says whether the outputs need it.
OPTIONS = {"anomaly_autoencoder": {"per_channel": "auto", "correct_bias": True}}


def measured(name, original, official, folder):
    """The row of one network."""
    source = DATA / original
    model = dlopt.interop.load(source)
    maps = np.load(DATA / "wakeword_samples.npz") if "wakeword" in name else None
    if maps is None:
        shape = (64, *model.inputs[0].shape[1:])
        x = np.random.default_rng(0).random(shape).astype("float32")
    else:
        x = maps["specs"].astype("float32")
    start, path = time.perf_counter(), folder / f"{name}.tflite"
    options = OPTIONS.get(name, {})
    small = dlopt.post_training.quantize(model, x, **options)
    report = dlopt.export.litert(small, path, data=x, io="int8")
    seconds = round(time.perf_counter() - start, 1)
    one_path = folder / "one.tflite"
    one = dlopt.auto.to_int8(source, one_path, x, io="int8", **options).export
    moved = small.predict(x, verbose=0) - model.predict(x, verbose=0)
    row = {
        "name": name,
        "official": (DATA / f"{official}.tflite").stat().st_size,
        "options": options,
        "two_calls": facts(report) | {"seconds": seconds},
        "one_call": facts(one),
        "rms_to_float": float(np.sqrt(np.mean(moved**2))),
        "range_of_float": float(np.ptp(model.predict(x, verbose=0))),
    }
    if maps is not None:
        labels = maps["labels"].astype(int)
        outputs = {
            "float": model.predict(x, verbose=0),
            "int8": dlopt.export.run_litert(path, x),
            "int8_one_call": dlopt.export.run_litert(one_path, x),
        }
        row["right_of_45"] = {
            kind: int((made.reshape(len(x), -1).argmax(1) == labels).sum())
            for kind, made in outputs.items()
        }
    return row


def facts(report):
    """What the table shows of a report."""
    return {
        "bytes": report.size,
        "codes": report.codes,
        "islands": list(report.islands),
        "levels": report.agreement.largest_lsb,
        "top1_clear": round(report.agreement.top1_clear, 4),
    }


def main():
    """Measures all and writes the JSON."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(n, *of, pathlib.Path(folder)) for n, of in NETWORKS.items()]
    for row in rows:
        print(json.dumps(row))
    out = HERE / "results" / "mlperf_tiny.json"
    out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
