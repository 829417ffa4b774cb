"""What one gradient gives away, without noise and with it."""

import keras
import numpy as np

from keras_dlopt import data, finalize, privacy

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def leaked(x, y, *, sigma):
    """The image that the change of a linear layer in one step tells.

    Of s = W x + b the gradients are g x^T and g: their quotient is x (Phong 2018),
    whatever the loss.
    """
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [keras.Input(x.shape[1:]), L.Flatten(), L.Dense(32, "tanh"), L.Dense(10)]
    )
    private = privacy.private(net, noise_multiplier=sigma, clip=1.0, seed=2)
    private.compile(keras.optimizers.SGD(1.0), LOSS)
    private.fit(x, y, 1, verbose=0)  # one example, one step
    after = finalize(private)
    kernel, bias = (
        a - b
        for a, b in zip(after.get_weights()[:2], net.get_weights()[:2], strict=True)
    )
    unit = abs(bias).argmax()
    return kernel[:, unit] / bias[unit]


def test_a_gradient_holds_the_image_and_noise_hides_it():
    digits = data.load("digits")
    x, y = digits.x_train[:1], digits.y_train[:1]
    bare = leaked(x, y, sigma=0.0)
    np.testing.assert_allclose(bare, x.ravel(), atol=1e-4)
    hidden = leaked(x, y, sigma=1.0)
    assert abs(np.corrcoef(hidden, x.ravel())[0, 1]) < 0.3
    assert abs(hidden - x.ravel()).mean() > 0.3
