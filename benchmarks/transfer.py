"""Fashion-MNIST to MNIST with 1,000 labelled images: from scratch, all, LoRA.

    python benchmarks/transfer.py [--seeds 5] [--net lenet_300_100] [--steps 1000]

A network is trained on the source; then one with a new head on 1,000 images of the
target: all weights from scratch, all weights from the source, and LoRA beside the
source's kernels, with the biases. All three have the same images, steps, optimizer and
schedule; each has its learning rate from the same grid, chosen on validation images of
the target in the first seed. The test set is used once a seed. Finished seeds are kept
in the file and skipped. `--smoke` runs a few steps on digits and writes nothing.
"""

import argparse
import functools
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import stored

import keras_dlopt as dlopt
from keras_dlopt import adapt

RESULTS = pathlib.Path(__file__).parent / "results" / "transfer.json"
SETTINGS = ("net", "source", "target", "steps", "source_steps", "rank", "images")
RATES = (3e-3, 1e-2, 3e-2)
KINDS = ("scratch", "all", "lora")


def fit(model, x, y, *, steps, rate, seed):
    model.compile(
        dlopt.optimizers.Adam(dlopt.schedules.OneCycle(rate, steps=steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=min(50, steps),
    )
    order = np.random.default_rng(seed)
    rows = [order.permutation(len(x)) for _ in range(-(-64 * steps // len(x)))]
    rows = np.concatenate(rows)[: 64 * steps]
    model.fit(x[rows], y[rows], batch_size=64, shuffle=False, verbose=0)
    return model


def accuracy(model, x, y):
    return round(float(model.evaluate(x, y, batch_size=1000, verbose=0)[1]), 4)


def made(kind, build, source, args):
    """The model to fine-tune, and the numbers trained by those in all."""
    if kind == "scratch":
        return build(), 1.0
    model = adapt.new_head(source, 10)
    if kind == "all":
        return model, 1.0
    plain = dlopt.named("bias") | dlopt.matching("head/.*")
    recipe = adapt.lora_recipe(model, args.rank, train=plain)
    tuned = dlopt.transform(model, recipe)
    trained = sum(int(np.prod(v.shape)) for v in tuned.trainable_variables)
    return tuned, trained / model.count_params()


def run(seed, sets, args, rates):
    """One seed; `rates` is filled in the first."""
    source_data, data = sets
    net = {"lenet_300_100": dlopt.models.lenet_300_100, "lenet5": dlopt.models.lenet5}
    build = functools.partial(
        net[args.net], input_shape=data.input_shape, classes=data.classes
    )
    keras.utils.set_random_seed(seed)
    source = build()
    fit(source, *source_data.train, steps=args.source_steps, rate=3e-3, seed=seed)
    chosen = np.random.default_rng(seed).permutation(len(data.x_train))[: args.images]
    x, y = data.x_train[chosen], data.y_train[chosen]
    row = {"seed": seed, "source": accuracy(source, *source_data.val)}
    for kind in KINDS:
        options = {"steps": args.steps, "seed": seed}
        for rate in () if kind in rates else RATES:
            keras.utils.set_random_seed(100 + seed)
            model, _ = made(kind, build, source, args)
            found = accuracy(fit(model, x, y, rate=rate, **options), *data.val)
            row.setdefault("validation", {}).setdefault(kind, {})[str(rate)] = found
        if kind not in rates:
            tried = row["validation"][kind]
            rates[kind] = float(max(tried, key=tried.get))
        keras.utils.set_random_seed(100 + seed)
        model, share = made(kind, build, source, args)
        before = made("all", build, source, args)[0] if kind == "all" else None
        fit(model, x, y, rate=rates[kind], **options)
        row[kind] = accuracy(model, *data.test)
        row[f"{kind}_trained_share"] = round(share, 4)
        if before is not None:
            moves = adapt.moved(before, model).layers
            row["moved"] = {m.path: round(m.relative, 3) for m in moves}
        print(seed, kind, rates[kind], row[kind], flush=True)
    return row


def report(runs, rates, settings):
    means = {}
    for kind in KINDS:
        values = np.array([r[kind] for r in runs])
        means[kind] = {
            "mean": round(float(values.mean()), 4),
            "spread": round(float(values.std()), 4),
            "worst": round(float(values.min()), 4),
            "trained_share": runs[0][f"{kind}_trained_share"],
        }
    scratch, full, lora = (means[k]["mean"] for k in KINDS)
    return {
        "machine": stored.machine(),
        "settings": settings,
        "rates": rates,
        "test_accuracy": means,
        "all_over_scratch": round(full - scratch, 4),
        "lora_over_all": round(lora - full, 4),
        "runs": runs,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--net", default="lenet_300_100")
    parser.add_argument("--source", default="fashion_mnist")
    parser.add_argument("--target", default="mnist")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--source-steps", type=int, default=1500)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.source = args.target = "digits"
        args.seeds, args.steps, args.source_steps, args.rank = 1, 4, 4, 1
    settings = {name: getattr(args, name) for name in SETTINGS}
    sets = [dlopt.data.load(name) for name in (args.source, args.target)]
    runs = [] if args.smoke else stored.earlier(RESULTS, settings, "runs")
    rates = {} if args.smoke else dict(stored.earlier(RESULTS, settings, "rates"))
    for seed in range(args.seeds):
        if seed in {r["seed"] for r in runs}:
            continue
        runs.append(run(seed, sets, args, rates))
        text = json.dumps(report(runs, rates, settings), indent=1)
        if args.smoke:
            print(text)
        else:
            RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
