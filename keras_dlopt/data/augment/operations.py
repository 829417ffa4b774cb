"""Pillow's image operations on batches, each image with a strength of its own.

Images are float32 of 0 to 255, (n, height, width, channels); strengths are (n,).
"""

from typing import Any

Tensor = Any  # TensorFlow's

# Pillow's weights of red, green and blue in gray (ITU-R 601-2), of 65,536.
_GRAY = (19_595, 38_470, 7_471)


def moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Each image through an affine map about its middle, zeros where nothing was.

    Args:
        images: (n, height, width, channels).
        matrices: (n, 6), `a, b, c, d, e, f`: the pixel at (x, y) from the middle is
            taken from (ax + by + c, dx + ey + f), the nearest one.
    """
    import tensorflow as tf

    shape = tf.shape(images)
    n, height, width, channels = (shape[i] for i in range(4))
    half = [tf.cast(side - 1, "float32") / 2 for side in (width, height)]
    a, b, c, d, e, f = (v[:, None, None] for v in tf.unstack(matrices, axis=1))
    c = c + half[0] - a * half[0] - b * half[1]
    f = f + half[1] - d * half[0] - e * half[1]
    x = tf.cast(tf.range(width), "float32")[None, None, :]
    y = tf.cast(tf.range(height), "float32")[None, :, None]
    column, row = _nearest(a * x + b * y + c), _nearest(d * x + e * y + f)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # TensorFlow's own op for this is unknown to XLA; a gather gives the same bits.
    place = tf.where(inside, row * width + column, 0)
    flat = tf.reshape(images, [n, height * width, channels])
    found = tf.gather(flat, tf.reshape(place, [n, -1]), batch_dims=1)
    return tf.where(inside[..., None], tf.reshape(found, shape), 0.0)


def _nearest(position: Tensor) -> Tensor:
    """The whole number that is nearest; a half goes away from zero, as in C."""
    import tensorflow as tf

    away = tf.sign(position) * tf.floor(tf.abs(position) + 0.5)
    return tf.cast(away, "int32")


def gray(images: Tensor) -> Tensor:
    """Gray as Pillow rounds it, (n, height, width, 1); other colors' mean."""
    import tensorflow as tf

    if images.shape[-1] != 3:
        return tf.reduce_mean(images, axis=-1, keepdims=True)
    total = tf.reduce_sum(images * tf.constant(_GRAY, "float32"), -1, keepdims=True)
    return tf.floor((total + 32_768) / 65_536)


def mean_gray(images: Tensor) -> Tensor:
    """One number an image, the mean of its gray, rounded."""
    import tensorflow as tf

    return tf.floor(tf.reduce_mean(gray(images), axis=(1, 2), keepdims=True) + 0.5)


def smoothed(images: Tensor) -> Tensor:
    """Pillow's SMOOTH: five times the pixel and its eight neighbours, of 13."""
    import tensorflow as tf

    channels = images.shape[-1]
    kernel = tf.ones((3, 3, channels, 1)) + 4 * tf.pad(
        tf.ones((1, 1, channels, 1)), [(1, 1), (1, 1), (0, 0), (0, 0)]
    )
    inside = tf.nn.depthwise_conv2d(images, kernel / 13, [1, 1, 1, 1], "VALID")
    inside = tf.pad(tf.floor(inside + 0.5), [(0, 0), (1, 1), (1, 1), (0, 0)])
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    edge = [
        (tf.range(side) == 0) | (tf.range(side) == side - 1) for side in (height, width)
    ]
    at_edge = (edge[0][:, None] | edge[1][None, :])[None, ..., None]
    return tf.where(at_edge, images, inside)


def blended(images: Tensor, base: Tensor, strength: Tensor) -> Tensor:
    """`base + strength * (images - base)`, cut to 0 and 255 and rounded down."""
    import tensorflow as tf

    mixed = base + strength[:, None, None, None] * (images - base)
    return tf.floor(tf.clip_by_value(mixed, 0.0, 255.0) + 1e-3)


def solarized(images: Tensor, threshold: Tensor) -> Tensor:
    """The negative of all that is not below a threshold."""
    import tensorflow as tf

    below = images < threshold[:, None, None, None]
    return tf.where(below, images, 255.0 - images)


def posterized(images: Tensor, bits: Tensor) -> Tensor:
    """The highest bits only, 1 to 8 of them."""
    import tensorflow as tf

    # Whole numbers: a power or quotient of floats may be just below one in a graph.
    kept = tf.clip_by_value(tf.cast(tf.round(bits), "int32"), 1, 8)
    off = 8 - kept[:, None, None, None]
    step = tf.bitwise.left_shift(tf.ones_like(off), off)
    return tf.cast(tf.cast(images, "int32") // step * step, "float32")


def autocontrasted(images: Tensor) -> Tensor:
    """Each channel from its least to its largest value, stretched to 0 and 255."""
    import tensorflow as tf

    low = tf.reduce_min(images, axis=(1, 2), keepdims=True)
    high = tf.reduce_max(images, axis=(1, 2), keepdims=True)
    scale = 255.0 / tf.maximum(high - low, 1.0)
    made = tf.clip_by_value(tf.floor((images - low) * scale + 1e-3), 0.0, 255.0)
    return tf.where(high > low, made, images)


def equalized(images: Tensor) -> Tensor:
    """Each channel with about as many pixels of each value, by Pillow's table."""
    import tensorflow as tf

    shape = tf.shape(images)
    values = tf.cast(tf.round(tf.transpose(images, [0, 3, 1, 2])), "int32")
    rows = shape[0] * shape[3]
    values = tf.reshape(values, [rows, shape[1] * shape[2]])
    places = values + 256 * tf.range(rows)[:, None]  # XLA knows no bincount
    counts = tf.math.unsorted_segment_sum(tf.ones_like(places), places, 256 * rows)
    counts = tf.reshape(counts, [rows, 256])
    last = tf.reduce_max(values, axis=1, keepdims=True)
    step = (shape[1] * shape[2] - tf.gather(counts, last, batch_dims=1)) // 255
    before = tf.cumsum(counts, axis=1, exclusive=True)
    table = (before + step // 2) // tf.maximum(step, 1)
    made = tf.gather(tf.minimum(table, 255), values, batch_dims=1)
    made = tf.cast(tf.where(step > 0, made, values), "float32")
    made = tf.reshape(made, [shape[0], shape[3], shape[1], shape[2]])
    return tf.transpose(made, [0, 2, 3, 1])
