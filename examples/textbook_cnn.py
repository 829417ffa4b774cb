"""Trains the convolutional network of introductions: Adam, 10 epochs, real data.

    python examples/textbook_cnn.py --data mnist
    python examples/textbook_cnn.py --smoke

Two 3x3 convolutions of 32 and 64 filters, each with ReLU and 2x2 max pooling, dense
128, dense 10; cross-entropy; Adam at 0.001. MNIST is read from the folder in
KERAS_DLOPT_DATA, or downloaded by Keras.
"""

import argparse

import keras

import keras_dlopt as dlopt


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist", help="a name or a path")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="digits, one epoch")
    args = parser.parse_args()
    if args.smoke:
        args.data, args.epochs = "digits", 1

    keras.utils.set_random_seed(args.seed)
    data = dlopt.data.load(args.data)
    model = dlopt.models.textbook_cnn(
        input_shape=data.input_shape, classes=data.classes
    )
    model.compile(
        optimizer=dlopt.optimizers.Adam(0.001),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        dlopt.data.batches(
            *data.train, batch_size=args.batch_size, shuffle=True, seed=args.seed
        ),
        validation_data=dlopt.data.batches(*data.val, batch_size=256),
        epochs=args.epochs,
        shuffle=False,
        verbose=2,
    )
    loss, accuracy = model.evaluate(*data.test, batch_size=256, verbose=0)
    print(f"{data}\ntest loss {loss:.4f}, test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
