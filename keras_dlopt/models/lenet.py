"""The small networks of the compression literature and of textbooks."""

import keras
from keras import layers

from keras_dlopt.models._build import counts


def lenet_300_100(
    *,
    input_shape: tuple[int, ...] = (28, 28, 1),
    classes: int = 10,
    activation: str | None = None,
    name: str = "lenet_300_100",
) -> keras.Model:
    """LeNet-300-100: two hidden dense layers, 266,610 parameters on MNIST.

    Args:
        input_shape: of one example, without the batch.
        classes: number of outputs.
        activation: of the last layer; None returns logits.
        name: of the model.

    Example:
        >>> lenet_300_100().count_params()
        266610

    Source: LeCun et al., "Gradient-based learning applied to document recognition"
    (1998), section III; Han et al., "Deep Compression" (arXiv:1510.00149), table 2.
    """
    counts(classes=classes)
    inputs = keras.Input(input_shape, name="image")
    x = layers.Flatten(name="flatten")(inputs)
    x = layers.Dense(300, activation="relu", name="ip1")(x)
    x = layers.Dense(100, activation="relu", name="ip2")(x)
    x = layers.Dense(classes, activation=activation, name="ip3")(x)
    return keras.Model(inputs, x, name=name)


def lenet5(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    activation: str | None = None,
    conv_activation: str | None = None,
    name: str = "lenet5",
) -> keras.Model:
    """LeNet-5 as Caffe has it: 431,080 parameters on MNIST.

    Convolution 20@5x5, max pooling 2, convolution 50@5x5, max pooling 2, dense 500
    with ReLU, dense 10; no padding. Caffe's definition has one ReLU, after the dense
    layer of 500: the pooling is the only nonlinearity of the convolutions.

    Args:
        input_shape: `(height, width, channels)`, at least 16 pixels a side.
        classes: number of outputs.
        activation: of the last layer; None returns logits.
        conv_activation: after each convolution; None as in Caffe.
        name: of the model.

    Example:
        >>> lenet5().count_params()
        431080

    Source: Caffe, `examples/mnist/lenet_train_test.prototxt`; Han et al., "Deep
    Compression" (arXiv:1510.00149), table 3.
    Differs from the paper of 1998: wider, max pooling, no radial basis functions.
    """
    counts(classes=classes)
    inputs = keras.Input(input_shape, name="image")
    x = layers.Conv2D(20, 5, activation=conv_activation, name="conv1")(inputs)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.Conv2D(50, 5, activation=conv_activation, name="conv2")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(500, activation="relu", name="ip1")(x)
    x = layers.Dense(classes, activation=activation, name="ip2")(x)
    return keras.Model(inputs, x, name=name)


def textbook_cnn(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    activation: str | None = None,
    name: str = "textbook_cnn",
) -> keras.Model:
    """The convolutional network of introductions.

    Convolution 32@3x3 "same", ReLU, max pooling 2; convolution 64@3x3 "same", ReLU,
    max pooling 2; dense 128 with ReLU; dense `classes`. 421,642 parameters on MNIST.

    Args:
        input_shape: `(height, width, channels)`, at least 4 pixels a side.
        classes: number of outputs.
        activation: of the last layer; None returns logits.
        name: of the model.

    Example:
        >>> textbook_cnn().output_shape
        (None, 10)
    """
    counts(classes=classes)
    inputs = keras.Input(input_shape, name="image")
    x = inputs
    for i, filters in enumerate((32, 64), 1):
        x = layers.Conv2D(filters, 3, padding="same", name=f"conv{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{i}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(128, activation="relu", name="dense")(x)
    x = layers.Dense(classes, activation=activation, name="classifier")(x)
    return keras.Model(inputs, x, name=name)
