"""ResNet-50's train step compiled for TPUs at several batch sizes: memory, roofline.

    python benchmarks/tpu_resnet50.py

Nothing runs on a TPU: the figures are the compiler's, the times a roofline estimate.
One compilation takes minutes; each is written at once, and a second call goes on with
what is missing.
"""

import argparse
import importlib.metadata
import json
import pathlib
import time

RESULT = pathlib.Path(__file__).parent / "results" / "tpu_resnet50.json"
IMAGES, CLASSES = (224, 224, 3), 1000
# (topology, batch, program), most wanted first.
CASES = (
    ("v5e:2x4", 1024, "train"),
    ("v5e:2x4", 8192, "train"),
    ("v5e:2x4", 2048, "train"),
    ("v6e:2x4", 1024, "train"),
    ("v5e:2x4", 1024, "inference"),
    ("v5p:2x2x2", 1024, "train"),
    ("v5e:2x4", 256, "train"),
)


def build():
    """ResNet-50 as trained on ImageNet: momentum SGD, mixed bfloat16."""
    import keras

    from keras_dlopt import models, optimizers

    keras.config.set_dtype_policy("mixed_bfloat16")
    model = models.resnet50(input_shape=IMAGES, classes=CLASSES)
    model.compile(
        optimizers.SGD(0.1, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="jax", choices=("jax", "tensorflow"))
    parser.add_argument("--hours", type=float, default=2.0, help="for each case")
    args = parser.parse_args()
    from keras_dlopt import tpu

    done = json.loads(RESULT.read_text())["cases"] if RESULT.exists() else []
    for topology, batch, program in CASES:
        key = {"topology": topology, "batch": batch, "program": program}
        key["backend"] = args.backend
        if any(key.items() <= case.items() for case in done):
            continue
        start = time.perf_counter()
        report = tpu.check(
            f"{pathlib.Path(__file__).stem}:build",
            topology=topology,
            batch=batch,
            programs=(program,),
            search=False,
            backend=args.backend,
            time_limit=args.hours * 3600,
        )
        print(report.summary(), f"{time.perf_counter() - start:.0f} s", flush=True)
        found = report.to_dict()
        step = found["steps"][0]
        for exchange in ("collectives",):
            step[exchange] = report.exchanges()
        done.append({**key, "step": step, "waste": report.waste})
        write(done)


def write(done):
    """Writes the results so far."""
    names = ("jax", "libtpu", "keras", "tensorflow_cpu")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    about = "compiled, not run; times are a roofline estimate"
    RESULT.write_text(
        json.dumps({"about": about, "versions": versions, "cases": done}, indent=1)
    )


if __name__ == "__main__":
    main()
