"""Float64 NumPy twins of the layers; nothing here is shared with the package."""

import math

import numpy as np


def mse(body, short):
    """Mean squared difference over everything."""
    return float(((body.astype(float) - short.astype(float)) ** 2).mean())


def cosine(body, short):
    """One minus the cosine of flattened examples, averaged."""
    values = []
    for b, s in zip(body.astype(float), short.astype(float), strict=True):
        b, s = b.ravel(), s.ravel()
        values.append(1 - b @ s / (math.sqrt(b @ b) * math.sqrt(s @ s)))
    return float(np.mean(values))


def conv_same(x, kernel, stride=1, groups=1):
    """2-D "same" convolution, channels last, by explicit loops over the kernel."""
    x = np.asarray(x, float)
    kh, kw, _, filters = kernel.shape
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    pad_h = max((height - 1) * stride + kh - x.shape[1], 0)
    pad_w = max((width - 1) * stride + kw - x.shape[2], 0)
    x = np.pad(
        x,
        (
            (0, 0),
            (pad_h // 2, pad_h - pad_h // 2),
            (pad_w // 2, pad_w - pad_w // 2),
            (0, 0),
        ),
    )
    out = np.zeros((x.shape[0], height, width, filters))
    per_in, per_out = x.shape[-1] // groups, filters // groups
    for g in range(groups):
        cin = slice(g * per_in, (g + 1) * per_in)
        cout = slice(g * per_out, (g + 1) * per_out)
        for i in range(kh):
            for j in range(kw):
                rows = slice(i, i + height * stride, stride)
                cols = slice(j, j + width * stride, stride)
                patch = x[:, rows, cols, cin][:, :height, :width]
                out[..., cout] += patch @ kernel[i, j][:, cout].astype(float)
    return out


def depthwise_same(x, kernel, stride=1):
    """Depthwise "same" convolution: one `conv_same` per channel."""
    parts = [
        conv_same(x[..., c : c + 1], kernel[:, :, c : c + 1, :], stride)
        for c in range(x.shape[-1])
    ]
    return np.concatenate(parts, axis=-1)


def batch_norm(x, gamma, beta, epsilon, mean=None, variance=None):
    """Batch normalization over all axes but the last; batch statistics by default."""
    x = np.asarray(x, float)
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes) if mean is None else mean
    variance = x.var(axes) if variance is None else variance
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def layer_norm(x, gamma, beta, epsilon):
    """Normalization over the last axis."""
    x = np.asarray(x, float)
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def gelu(x):
    """x times the normal distribution function."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def relu(x, top=np.inf):
    return np.clip(x, 0, top)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(x, query, key, value, out, heads):
    """Self-attention; each of query, ... is a (kernel, bias) pair as Keras has it."""
    x = np.asarray(x, float)
    q, k, v = (
        np.einsum("btu,uhd->bhtd", x, w.astype(float)) + b[None, :, None]
        for w, b in (query, key, value)
    )
    weights = softmax(q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1]))
    assert q.shape[1] == heads
    return np.einsum("bhtd,hdu->btu", weights @ v, out[0].astype(float)) + out[1]
