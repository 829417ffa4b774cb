"""Files without training beside NNCodec's, of the networks of `records_call.py`.

    KERAS_DLOPT_DATA=... python benchmarks/codec_nncodec.py --nncodec PYTHON

PYTHON is that of an environment with nncodec 2.1.3, which wants PyTorch. A trained
network is rounded and coded at several sizes by each: `post_training.rate_distortion`
with 1,024 images, and nncodec at several quantization parameters with dependent
quantization. Of each the smallest is taken that costs at most 0.2 points on the
validation images, and judged on the test images. Beside it, the same whole numbers by
both coders. Our bytes are of the file, nncodec's of its stream, without a description
of the model. A finished network is written at once and not run again.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results" / "codec_nncodec.json"
STEPS = range(-38, -7, 2)  # nncodec's parameters: larger ones are coarser
SHARES = (0.02, 0.027, 0.036, 0.048, 0.065, 0.09, 0.12)  # of the bytes in float32
MOST = 0.2  # points
IMAGES = 1024


def worker(folder):
    """Runs under the other Python: streams of arrays, floats lossy and codes exact."""
    from nncodec.nn import decode, encode

    def coded(arrays, **args):
        with contextlib.redirect_stdout(io.StringIO()):
            stream = encode(dict(arrays), args=args)
            return len(stream), decode(stream)

    if (folder / "codes.npz").exists():
        codes = dict(np.load(folder / "codes.npz"))
        size, found = coded(codes)
        assert all(np.array_equal(found[k], v) for k, v in codes.items())
        (folder / "codes.json").write_text(json.dumps(size))
        return
    sizes = {}
    for step in STEPS:
        sizes[step], found = coded(np.load(folder / "w.npz"), qp=step, use_dq=True)
        np.savez(folder / f"{step}.npz", **found)
    (folder / "sizes.json").write_text(json.dumps(sizes))


def turned(array, back=False):
    """A kernel as PyTorch lays it out: outputs, inputs, then space."""
    if array.ndim < 2:
        return array
    order = (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
    return array.transpose(np.argsort(order) if back else order).copy()


def theirs(net, python, folder):
    """Pairs of bytes and a model, the smallest first."""
    import keras

    names = [f"{i:03}.{v.name}" for i, v in enumerate(net.weights)]
    arrays = dict(zip(names, net.get_weights(), strict=True))
    np.savez(folder / "w.npz", **{k: turned(v) for k, v in arrays.items()})
    other(python, folder)
    sizes = json.loads((folder / "sizes.json").read_text())
    for step, size in sorted(sizes.items(), key=lambda one: one[1]):
        found = np.load(folder / f"{step}.npz")
        model = keras.models.clone_model(net)
        back = [turned(found[k], back=True).reshape(v.shape) for k, v in arrays.items()]
        model.set_weights(back)
        yield size, model


def ours(net, images, folder):
    import keras_dlopt as dlopt

    path = folder / "ours.dlopt"
    for share in SHARES:
        budget = round(4 * net.count_params() * share)
        model = dlopt.post_training.rate_distortion(net, images, budget=budget)
        dlopt.save_compressed(model, path)
        yield path.stat().st_size, dlopt.load_compressed(path)


def other(python, folder):
    # It leaves its streams where it runs.
    command = [pathlib.Path(python).absolute(), pathlib.Path(__file__).resolve()]
    subprocess.run([*command, "--worker", folder], check=True, cwd=folder)


def first(made, most, val, test, error):
    """The first that costs no more on validation."""
    for size, model in made:
        found = error(model, *val)
        if found <= most:
            judged = round(error(model, *test), 2)
            return {
                "bytes": size,
                "validation": round(found, 2),
                "error": judged,
            }, model
    return None, None


def same_codes(model, python, folder):
    """The whole numbers of a model by both coders."""
    from keras_dlopt.codecs import Tensor
    from keras_dlopt.codecs.hints import Grid
    from keras_dlopt.transforms.coding import coding_hints

    size, codes, weights = 0, {}, model.get_weights()
    for i, grid in coding_hints(model).items():
        assert isinstance(grid, Grid)
        size += len(Tensor().encode(weights[i], hint=grid))
        codes[f"{i:03}.weight"] = turned(grid.codes.astype("int32"))
    np.savez(folder / "codes.npz", **codes)
    other(python, folder)
    return {"ours": size, "nncodec": json.loads((folder / "codes.json").read_text())}


def run(name, args):
    import keras
    from records import error, kept
    from records_call import LOSS, given, trained

    import keras_dlopt as dlopt

    data = dlopt.data.load("fashion_mnist" if "fashion" in name else "mnist")
    what = {"parent": name, "seed": 0, **given(name)}
    place, _ = kept(
        lambda to: trained(name, data, 0).save(to / "float.keras"), args.keep, what
    )
    net = keras.models.load_model(place / "float.keras", compile=False)
    net.compile(loss=LOSS)
    most, test = error(net, *data.val) + MOST, data.test
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        peer, _ = first(theirs(net, args.nncodec, folder), most, data.val, test, error)
        made = ours(net, data.x_train[:IMAGES], folder)
        own, model = first(made, most, data.val, test, error)
        codes = same_codes(model, args.nncodec, folder)
    floats = round(error(net, *test), 2)
    return {
        "network": name,
        "error_float": floats,
        "nncodec": peer,
        "ours": own,
        "codes": codes,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nncodec", help="a Python that has nncodec")
    parser.add_argument("--networks", nargs="+", default=["lenet_300_100", "lenet5"])
    parser.add_argument("--keep", help="folder for networks that are trained once")
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker)
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for name in args.networks:
        if name not in {row["network"] for row in rows}:
            rows.append(run(name, args))
            print(json.dumps(rows[-1]), flush=True)
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
