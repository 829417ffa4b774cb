"""ResNet-20 at half and 0.3 of its multiply-accumulates, beside its honest control.

    KERAS_DLOPT_DATA=... python benchmarks/prune_channels.py [--seeds 3] [--smoke]

Per seed, on Fashion-MNIST: the network is trained; for each share every score prunes it
and trains a quarter of an epoch; the one that is best on validation images (chance
aside) is trained on in full. The control is the same pruned architecture trained from
fresh weights for the same total of epochs, and the whole network is trained on for as
long, too. Nothing was tuned. The test images are read once per network, at its end.
`--size 14` takes means of 2x2 pixels, a quarter of the time; `--size 28` the images as
they are.

Each finished network is written to `benchmarks/results/prune_channels.json` at once and
not trained again; the networks themselves are kept in `--models`.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import stored
import tensorflow as tf

import keras_dlopt as dlopt
from keras_dlopt import surgery

RESULTS = pathlib.Path(__file__).parent / "results" / "prune_channels.json"
SETTINGS = ("depth", "width", "size", "images", "epochs", "more", "batch_size")
PEAKS = {"start": 0.2, "more": 0.05}  # highest rates of SGD
SHARES = (0.5, 0.3)
SCORES = {
    "norm": surgery.ChannelNorm(),
    "normalization scale": surgery.NormalizationScale(),
    "taylor": dlopt.prune.Taylor(),
    "random": dlopt.prune.Random(),
}


def augment(images):
    """Flips each image with probability 1/2; shifts the batch by -1 to 1 pixel."""
    size = tf.shape(images)[0]
    flip = tf.random.uniform([size, 1, 1, 1]) < 0.5
    images = tf.where(flip, tf.reverse(images, [2]), images)
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.image.random_crop(padded, [size, *images.shape[1:]])


class Bench:
    """Data, settings and what is already known."""

    def __init__(self, args):
        self.args = args
        data = dlopt.data.load("digits" if args.smoke else "fashion_mnist")
        take = slice(0, args.images)
        self.train = self.sized(data.x_train[take]), data.y_train[take]
        self.val = self.sized(data.x_val), data.y_val
        self.test = self.sized(data.x_test), data.y_test
        known = [] if args.smoke else stored.earlier(args.out, self.settings, "rows")
        self.rows = known

    @property
    def settings(self):
        return {name: getattr(self.args, name) for name in SETTINGS}

    def sized(self, images):
        if self.args.size == images.shape[1]:
            return images
        half = self.args.size
        return images.reshape(len(images), half, 2, half, 2, -1).mean((2, 4))

    def fitted(self, model, epochs, peak, seed):
        """Trains a model in place; accuracy on validation images."""
        keras.utils.set_random_seed(seed)
        batch = self.args.batch_size
        steps = max(round(epochs * len(self.train[0]) / batch), 1)
        dlopt.layers.use_fused(model)
        model.compile(
            dlopt.optimizers.SGD(
                dlopt.schedules.OneCycle(peak, steps=steps),
                momentum=0.9,
                nesterov=True,
                weight_decay=1e-3,
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        train = dlopt.data.batches(
            *self.train, batch_size=batch, shuffle=True, augment=augment, seed=seed
        )
        per = max(min(steps, len(self.train[0]) // batch), 1)
        model.fit(
            train.repeat(),
            steps_per_epoch=per,
            epochs=max(round(steps / per), 1),
            shuffle=False,
            verbose=0,
        )
        return self.accuracy(model, self.val)

    def accuracy(self, model, part):
        return round(100 * model.evaluate(*part, batch_size=500, verbose=0)[1], 2)

    def network(self, seed, name, make):
        """A trained network: kept, or made, tested and kept."""
        path = self.args.models / f"{name} {seed}.keras"
        known = any(row["seed"] == seed and row["what"] == name for row in self.rows)
        if known and path.exists():
            return keras.models.load_model(path)
        start = time.perf_counter()
        model, val, facts = make()
        row = {"seed": seed, "what": name, "val": val}
        row |= {"test": self.accuracy(model, self.test)} | facts
        row["seconds"] = round(time.perf_counter() - start)
        self.rows = [r for r in self.rows if (r["seed"], r["what"]) != (seed, name)] + [
            row
        ]
        print(row, flush=True)
        self.args.models.mkdir(parents=True, exist_ok=True)
        model.save(path)
        if not self.args.smoke:
            result = {"machine": stored.machine(), "settings": self.settings}
            text = json.dumps(result | {"rows": self.rows}, indent=1)
            self.args.out.write_text(text + "\n")
        return model

    def whole(self, seed):
        keras.utils.set_random_seed(seed)
        shape = self.train[0].shape[1:]
        args = self.args
        model = dlopt.models.resnet(
            depth=args.depth, width=args.width, input_shape=shape
        )
        return model, self.fitted(model, args.epochs, PEAKS["start"], seed), {}

    def more(self, model, seed):
        again = keras.models.clone_model(model)
        again.set_weights(model.get_weights())
        val = self.fitted(again, self.args.more, PEAKS["more"], seed)
        return again, val, {}

    def pruned(self, parent, share, seed):
        tried, best = {}, None
        for name, score in SCORES.items():
            small, report = surgery.prune_channels(
                parent, macs=share, score=score, data=self.train, multiple=4, seed=seed
            )
            weights = small.get_weights()
            before = self.accuracy(small, self.val)
            short = self.fitted(small, self.args.more / 12, PEAKS["more"] / 2, seed)
            tried[name] = [before, short]
            if name != "random" and (best is None or short > tried[best[0]][1]):
                best = name, small, weights, report
        name, small, weights, report = best
        small.set_weights(weights)
        val = self.fitted(small, self.args.more, PEAKS["more"], seed)
        facts = {
            "score": name,
            "after removal, after a short training": tried,
            "macs": [report.macs_before, report.macs_after],
            "parameters": [report.parameters_before, report.parameters_after],
        }
        return small, val, facts

    def fresh(self, small, seed):
        keras.utils.set_random_seed(seed + 100)
        model = keras.models.clone_model(small)
        total = self.args.epochs + self.args.more
        return model, self.fitted(model, total, PEAKS["start"], seed), {}


def one_seed(bench, seed):
    """All networks of one seed."""
    whole = bench.network(seed, "whole", lambda: bench.whole(seed))
    for share in SHARES:
        small = bench.network(
            seed, f"pruned {share}", lambda s=share: bench.pruned(whole, s, seed)
        )
        bench.network(seed, f"fresh {share}", lambda m=small: bench.fresh(m, seed))
    bench.network(seed, "whole, trained on", lambda: bench.more(whole, seed))


def main():
    """Trains what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=14, choices=(8, 14, 28))
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--more", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--models", type=pathlib.Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    if args.smoke:
        args.seeds, args.epochs, args.more = 1, 1, 1
        args.depth, args.size, args.images = 8, 8, 256
    with tempfile.TemporaryDirectory() as folder:
        args.models = args.models or pathlib.Path(folder)
        bench = Bench(args)
        for seed in range(args.seeds):
            one_seed(bench, seed)


if __name__ == "__main__":
    main()
