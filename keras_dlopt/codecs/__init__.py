"""Codecs: `encode`, `decode`, `config`, in NumPy, without Keras."""

from keras_dlopt.codecs.deflate import Deflate
from keras_dlopt.codecs.gaps import Gaps
from keras_dlopt.codecs.hints import Codebook, Grid, Hint
from keras_dlopt.codecs.huffman import Huffman
from keras_dlopt.codecs.lattice import find_grid
from keras_dlopt.codecs.tensor import Tensor
from keras_dlopt.errors import ConfigError

_CODECS = {"deflate": Deflate, "gaps": Gaps, "huffman": Huffman, "tensor": Tensor}


def get(config: dict):
    """The codec that `config()` described.

    >>> get({"codec": "huffman", "limit": 12})
    Huffman(limit=12)
    """
    options = dict(config)
    name = options.pop("codec", None)
    if name not in _CODECS:
        raise ConfigError(
            f"codec must be one of {sorted(_CODECS)}. Received: {name!r}. Pass what "
            "the config() of a codec returned."
        )
    return _CODECS[name](**options)


__all__ = [
    "Codebook",
    "Deflate",
    "Gaps",
    "Grid",
    "Hint",
    "Huffman",
    "Tensor",
    "find_grid",
    "get",
]
