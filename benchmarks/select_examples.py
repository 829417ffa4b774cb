"""Test accuracy on a chosen part of MNIST and Fashion-MNIST, beside a random part.

    KERAS_DLOPT_DATA=... python benchmarks/select_examples.py fashion_mnist [--seeds 5]

One small convolutional network, Adam with a cosine decay, the same number of steps of
128 images for all: the whole training set, a random part, the chosen part. Two networks
of other seeds are trained first, whose records (`ExampleHistory`) give the scores; they
are kept in --records. Settings were chosen on the validation images (--validation runs
the same on those); the test images are used once, by the runs that are reported. A
result is written after each run, and those that are there are not run again.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from keras_dlopt.data import batches, load, select

RESULTS = pathlib.Path(__file__).parent / "results"
BATCH, STEPS, EPOCHS = 128, 1600, 10
SCORERS = (1000, 1001)
KEEP = {"mnist": 0.5, "fashion_mnist": 0.3}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
L = keras.layers


def network():
    """0.12 million parameters, 98.9 % on MNIST and 89 % on Fashion-MNIST."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            L.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
            L.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            L.Flatten(),
            L.Dense(64, activation="relu"),
            L.Dense(10),
        ]
    )


def train(x, y, seed, *, steps=STEPS, epochs=1, callbacks=()):
    keras.utils.set_random_seed(seed)
    model = network()
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.Adam(rate), LOSS, steps_per_execution=20)
    data = batches(
        x, y, batch_size=BATCH, shuffle=True, drop_remainder=True, seed=seed
    ).repeat()
    model.fit(
        data,
        steps_per_epoch=steps // epochs,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=list(callbacks),
    )
    return model


def accuracy(model, x, y):
    return float((model.predict(x, batch_size=1000, verbose=0).argmax(1) == y).mean())


def records(data, folder):
    """Margins and errors of each training image: (networks, epochs, images)."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = len(data.x_train) // BATCH * EPOCHS // 20 * 20
    found = []
    for seed in SCORERS:
        path = folder / f"{data.name}_{seed}.npz"
        history = select.ExampleHistory(*data.train, batch_size=1000, path=path)
        if not path.exists():
            train(*data.train, seed, steps=steps, epochs=EPOCHS, callbacks=[history])
        with np.load(path) as kept:
            found.append(kept["rows"])
    return np.array(found).transpose(2, 0, 1, 3)


def ways(data, folder):
    """Name to a function of the seed that chooses indices."""
    margins, errors = records(data, folder)
    keep, n = KEEP[data.name], len(data.x_train)
    right = margins > 0
    forgotten = (right[:, :-1] & ~right[:, 1:]).sum(axis=1).mean(axis=0)
    forgotten += EPOCHS * (~right.any(axis=1)).mean(axis=0)
    difficulty = -margins.mean(axis=(0, 1))
    early = errors[:, 2].mean(axis=0)
    return {
        "all": lambda seed: np.arange(n),
        "random": lambda seed: np.sort(
            np.random.default_rng(seed).permutation(n)[: round(keep * n)]
        ),
        "hardest": lambda seed: select.hardest(difficulty, keep),
        "hardest, skip 5 %": lambda seed: select.hardest(difficulty, keep, skip=0.05),
        "stratified": lambda seed: select.stratified(difficulty, keep, seed=seed),
        "stratified, skip 2 %": lambda seed: select.stratified(
            difficulty, keep, skip=0.02, seed=seed
        ),
        "stratified, skip 5 %": lambda seed: select.stratified(
            difficulty, keep, skip=0.05, seed=seed
        ),
        "EL2N, skip 5 %": lambda seed: select.hardest(early, keep, skip=0.05),
        "forgetting, skip 5 %": lambda seed: select.hardest(forgotten, keep, skip=0.05),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=KEEP)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", default="all,random,stratified; skip 5 %")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--records", type=pathlib.Path, default="select_records")
    args = parser.parse_args()
    data = load(args.name)
    part = "validation" if args.validation else "test"
    x, y = data.val if args.validation else data.test
    path = RESULTS / f"select_{args.name}_{part}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    choices = ways(data, args.records)
    wanted = [way.replace(";", ",") for way in args.ways.split(",")]
    for seed in range(args.seeds):
        for way in wanted:
            runs = found.setdefault(way, {})
            if str(seed) in runs:
                continue
            chosen = choices[way](seed)
            cpu = time.process_time()
            model = train(data.x_train[chosen], data.y_train[chosen], seed)
            runs[str(seed)] = round(100 * accuracy(model, x, y), 2)
            print(way, seed, runs, f"{time.process_time() - cpu:.0f} s CPU", flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
