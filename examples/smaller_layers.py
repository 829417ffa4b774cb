"""A network that is cut in three steps, each fit on, beside one trained small.

    python examples/smaller_layers.py --data fashion_mnist
    python examples/smaller_layers.py --smoke

ResNet-8 is trained; then, three times, the least important channels leave to the next
share of its multiply-accumulates and the rest trains on. At the end the same small
architecture is trained from fresh weights for as many epochs: what a method is worth is
the difference.
"""

import argparse

import keras

import keras_dlopt as dlopt

SHARES = (0.8, 0.65, 0.5)


def fit(model, data, *, epochs, batch_size, rate):
    """Trains with Adam; returns the accuracy on the test images."""
    model.compile(
        optimizer=dlopt.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(*data.train, batch_size=batch_size, epochs=epochs, verbose=0)
    return model.evaluate(*data.test, batch_size=256, verbose=0)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion_mnist", help="a name or a path")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="digits, one epoch")
    args = parser.parse_args()
    if args.smoke:
        args.data, args.epochs = "digits", 1

    keras.utils.set_random_seed(args.seed)
    data = dlopt.data.load(args.data)
    size = {"input_shape": data.input_shape, "classes": data.classes}
    model = dlopt.models.resnet(depth=8, **size)
    options = {"batch_size": args.batch_size, "rate": 1e-3}
    accuracy = fit(model, data, epochs=args.epochs, **options)
    macs = dlopt.measure.costs(model).macs
    print(f"whole: {macs:,} MACs, test accuracy {accuracy:.2%}")

    more = max(args.epochs // 3, 1)
    for share in SHARES:
        model, report = dlopt.prune_channels(
            model, macs=share * macs, multiple=4, data=data.train, seed=args.seed
        )
        accuracy = fit(model, data, epochs=more, **options)
        print(f"cut: {report.macs_after:,} MACs, test accuracy {accuracy:.2%}")

    fresh = keras.models.clone_model(model)
    total = args.epochs + more * len(SHARES)
    accuracy = fit(fresh, data, epochs=total, **options)
    print(f"small from the start, {total} epochs: test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
