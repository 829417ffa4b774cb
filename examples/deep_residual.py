"""Trains 20 and 110 layers with and without shortcuts, and plots the training loss.

    python examples/deep_residual.py --out docs/deep_residual.png
    python examples/deep_residual.py --smoke

The four networks are `models.resnet` of depth 20 and 110, as they are and with
`shortcut="none"`: the same layers without the additions. scikit-learn's digits, Adam at
0.001, the same batches for all. Shortcuts let the deep network train; the plain one of
110 layers stays near chance (a loss of ln 10 = 2.3).
"""

import argparse
import json
import pathlib
import time

import keras

import keras_dlopt as dlopt


def train(depth, shortcut, data, args):
    """Training loss per epoch, and the test accuracy."""
    keras.utils.set_random_seed(args.seed)
    model = dlopt.models.resnet(
        depth=depth,
        width=args.width,
        input_shape=data.input_shape,
        classes=data.classes,
        shortcut=shortcut,
    )
    dlopt.layers.use_fused(model)
    model.compile(
        optimizer=dlopt.optimizers.Adam(0.001),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    batches = dlopt.data.batches(
        *data.train, batch_size=64, shuffle=True, drop_remainder=True, seed=args.seed
    )
    start = time.perf_counter()
    history = model.fit(batches, epochs=args.epochs, shuffle=False, verbose=0)
    accuracy = model.evaluate(*data.test, verbose=0)[1]
    return {
        "depth": depth,
        "shortcut": shortcut,
        "loss": [round(float(v), 4) for v in history.history["loss"]],
        "test_accuracy": round(float(accuracy), 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


def plot(runs, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for run in runs:
        plain = run["shortcut"] == "none"
        axes.plot(
            range(1, len(run["loss"]) + 1),
            run["loss"],
            linestyle="--" if plain else "-",
            color="tab:blue"
            if run["depth"] == min(r["depth"] for r in runs)
            else "tab:red",
            label=f"{run['depth']} layers, {'plain' if plain else 'residual'}",
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", help="a name or a path")
    parser.add_argument("--depths", nargs="+", type=int, default=[20, 110])
    parser.add_argument("--width", type=int, default=8, help="filters of stage 1")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default="deep_residual.png")
    parser.add_argument("--smoke", action="store_true", help="8 and 14 layers, 1 epoch")
    args = parser.parse_args()
    if args.smoke:
        args.depths, args.epochs, args.width = [8, 14], 1, 4

    data = dlopt.data.load(args.data)
    if args.smoke:
        data = data.take(128, test=64)
    runs = []
    for depth in args.depths:
        for shortcut in ("pad", "none"):
            runs.append(train(depth, shortcut, data, args))
            print(json.dumps(runs[-1]), flush=True)
    plot(runs, args.out)
    print(f"plot: {args.out}")


if __name__ == "__main__":
    main()
