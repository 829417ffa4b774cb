"""Learning rates that follow the training loss, and how to choose one beforehand.

python examples/dynamic_learning_rate.py            # scikit-learn's digits
python examples/dynamic_learning_rate.py --smoke    # a few seconds
"""

import argparse

import keras

from keras_dlopt import callbacks, data, schedules


def network(rate):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=8,
    )
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    digits = data.load("digits")
    x, y = digits.x_train, digits.y_train
    epochs = 2 if args.smoke else 40

    # 1. Nothing chosen: the rate finds its way, and is lowered at the end.
    keras.utils.set_random_seed(0)
    model = network(1e-1)
    history = model.fit(
        x,
        y,
        batch_size=32,
        epochs=epochs,
        verbose=0,
        callbacks=[callbacks.LossDrivenLearningRate(), callbacks.DivergenceGuard()],
    ).history
    accuracy = model.evaluate(digits.x_test, digits.y_test, verbose=0)[1]
    rates = ", ".join(f"{rate:.1e}" for rate in history["learning_rate"][::8])
    print(f"loss-driven: test accuracy {accuracy:.4f}, rates {rates}")

    # 2. A range test first, then one cycle up to the rate that it suggests.
    keras.utils.set_random_seed(0)
    model = network(1e-3)
    finder = callbacks.LearningRateFinder(steps=30 if args.smoke else 100)
    test = finder.find(model, x, y, batch_size=32)
    peak = test.suggestion or 1e-3
    steps = epochs * -(-len(x) // 32)
    cycle = schedules.OneCycle(peak, steps=steps)
    model = network(cycle)
    model.fit(
        x,
        y,
        batch_size=32,
        epochs=epochs,
        verbose=0,
        callbacks=[callbacks.ScheduledMomentum(cycle)],
    )
    accuracy = model.evaluate(digits.x_test, digits.y_test, verbose=0)[1]
    print(f"one cycle to {peak:.1e}: test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
